//! `check` from the outside: roles that may only read, servers in a special state, exit codes.

use std::time::{Duration, Instant};

use cdc_core::engine::{Finding, Severity};
use testbed::{Pair, PgCluster, StopMode};

use super::checked;

use Severity::{Fail, Info, Warn};

/// Id and severity of each, sorted, repeated ones once.
fn ids(findings: &[Finding]) -> Vec<(&'static str, Severity)> {
    let mut ids: Vec<_> = findings
        .iter()
        .map(|finding| (finding.id, finding.severity))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// What the role may not see or do is said; nothing is an error, and nothing is silence.
#[test]
fn a_role_that_may_only_read_gets_a_complete_answer() {
    for (old, new) in [(12, 18), (15, 13)] {
        let pair = Pair::start(old, new).unwrap();
        let schema = "CREATE ROLE reader LOGIN; CREATE TABLE t (id serial PRIMARY KEY);
            CREATE TABLE guarded (id int PRIMARY KEY); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
            GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
            GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO reader";
        pair.on_blue(schema).unwrap();
        pair.on_green(schema).unwrap();
        let [source, target] = pair.urls().map(|url| url.replace("postgres@", "reader@"));
        let found = checked(&source, &target);
        // That tables hold rows cannot be told where row security may hide them.
        let mut expected = vec![
            ("NOT-CHECKED", Info),
            ("PG-CREATE-RIGHT", Fail),
            ("PG-REPLICATION-RIGHT", Fail),
            ("PG-RLS", Fail),
            ("PG-TARGET-ORIGIN", Warn),
            ("PG-TARGET-REPLICA-ROLE", Warn),
            ("PG-WRITE-RIGHT", Fail),
        ];
        if old > new {
            expected.push(("PG-VERSION-OLDER", Info));
            expected.sort_unstable();
        }
        let mut seen = ids(&found);
        // Whether a session of another role is there to be hidden is a matter of the moment (autovacuum).
        seen.retain(|(id, _)| *id != "PG-NOT-CHECKED");
        assert_eq!(seen, expected, "{found:#?}");

        // A job that another role has begun: its state cannot be read, which is said.
        pair.on_green("DROP TABLE t, guarded").unwrap();
        pair.verb(&["run", "--until-caught-up", "--job", "checked"], 0)
            .unwrap();
        let found = checked(&source, &target);
        let state = found.iter().find(|finding| finding.id == "NOT-CHECKED");
        assert_eq!(state.unwrap().object, "the job's state", "{found:#?}");
    }
}

/// A standby as source and as target, and a slot whose log is gone.
#[test]
fn servers_in_a_special_state() {
    for (major, severity) in [(14, Fail), (17, Warn)] {
        let primary = PgCluster::builder(major).start().unwrap();
        primary.create_database("app").unwrap();
        primary.sql("app", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
        let standby = PgCluster::builder(major).standby_of(&primary).start().unwrap();
        let other = PgCluster::builder(18).start().unwrap();
        other.create_database("app").unwrap();
        let found = checked(&standby.url("app"), &other.url("app"));
        assert_eq!(ids(&found), [("PG-STANDBY", severity)], "{found:#?}");
        let found = checked(&other.url("app"), &standby.url("app"));
        assert!(ids(&found).contains(&("PG-TARGET-READ-ONLY", Fail)), "{found:#?}");
    }
}

#[test]
fn a_slot_that_lost_its_log_is_named() {
    let source = PgCluster::builder(16)
        .setting("max_slot_wal_keep_size", "1MB")
        .setting("min_wal_size", "32MB")
        .setting("max_wal_size", "32MB")
        .start()
        .unwrap();
    let target = PgCluster::builder(17).start().unwrap();
    for cluster in [&source, &target] {
        cluster.create_database("app").unwrap();
    }
    source
        .sql(
            "app",
            "CREATE TABLE t (id int PRIMARY KEY); SELECT pg_create_logical_replication_slot('cdc_sync_checked', 'pgoutput')",
        )
        .unwrap();
    let look = || checked(&source.url("app"), &target.url("app"));
    assert_eq!(ids(&look()), [("PG-MAX-SLOT-WAL-KEEP-SIZE", Warn)]);
    let deadline = Instant::now() + Duration::from_secs(120);
    while !super::has(&look(), "PG-SLOT-LOST") {
        assert!(Instant::now() < deadline);
        source
            .sql(
                "app",
                "SELECT pg_switch_wal(); CREATE TABLE w (); DROP TABLE w; SELECT pg_switch_wal(); CHECKPOINT",
            )
            .unwrap();
    }
}

#[test]
fn exit_codes_follow_severity() {
    let mut pair = Pair::start(15, 16).unwrap();
    pair.on_blue("CREATE TABLE t (id int PRIMARY KEY); CREATE SEQUENCE tickets")
        .unwrap();
    // What is good to know stops nobody.
    let checked = pair.verb(&["check", "--strict"], 0).unwrap();
    assert_eq!(checked["counts"]["info"], 1, "{checked}");
    pair.on_blue("CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY)")
        .unwrap();
    assert_eq!(pair.verb(&["check"], 0).unwrap()["counts"]["warn"], 1);
    let strict = pair.verb(&["check", "--strict"], 3).unwrap();
    let finding = &strict["findings"][0];
    assert_eq!(finding["id"], "PG-UNLOGGED", "{strict}");
    for key in ["severity", "side", "object", "message", "remedy"] {
        assert!(
            finding[key].as_str().is_some_and(|text| !text.is_empty()),
            "{finding}"
        );
    }
    pair.on_blue("DROP TABLE t").unwrap();
    assert_eq!(pair.verb(&["check"], 3).unwrap()["counts"]["fail"], 1);
    // Nothing was made or changed on either side.
    let made = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication) \
                + (SELECT count(*) FROM pg_namespace WHERE nspname = 'cdc_sync')";
    assert_eq!(pair.on_blue(made).unwrap(), "0");
    assert_eq!(pair.on_green(made).unwrap(), "0");
    pair.green.stop(StopMode::Fast).unwrap();
    let gone = pair.verb(&["check", "--connect-timeout", "8s"], 12).unwrap();
    assert_eq!(gone["error"]["object"], "target", "{gone}");
}

#[test]
fn a_foreign_key_from_a_table_left_out_is_named() {
    let pair = Pair::start(14, 17).unwrap();
    let tables = "CREATE TABLE parent (id int PRIMARY KEY); \
                  CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE)";
    pair.on_blue(tables).unwrap();
    pair.on_green(tables).unwrap();
    let found = |flags: &[&str]| -> Vec<String> {
        let all: Vec<&str> = ["check"].iter().chain(flags).copied().collect();
        let report = pair.verb(&all, 0).unwrap();
        let findings = report["findings"].as_array().unwrap().iter();
        let named = findings.filter(|finding| finding["id"] == "PG-FK-LEFT-OUT");
        named.map(|finding| finding["message"].to_string()).collect()
    };
    for flags in [["--exclude", "child"], ["--table", "child"]] {
        let named = found(&flags);
        assert_eq!(named.len(), 1, "{flags:?}: {named:?}");
        assert!(
            named[0].contains("public.child (child_parent_fkey) to public.parent"),
            "{named:?}"
        );
    }
    assert!(found(&[]).is_empty());
}
