//! The findings, provoked and absent.

use std::time::{Duration, Instant};

use cdc_core::TableSelection;
use cdc_core::engine::{Finding, Severity, Side};
use testbed::PgCluster;

use super::{MAJORS, block_on, names, site};

use Severity::{Fail, Info, Warn};

pub(super) fn findings(url: &str, side: Side, job: &str) -> Vec<Finding> {
    block_on(async {
        site(url)
            .await
            .findings(side, &names(job), &TableSelection::default())
            .await
            .unwrap()
    })
}

fn pair(source: &str, target: &str) -> Vec<Finding> {
    block_on(async {
        let all = TableSelection::default();
        let profile = site(source).await.profile(&all).await.unwrap();
        site(target).await.pair_findings(&profile, &all).await.unwrap()
    })
}

/// Id and severity of each, sorted.
pub(super) fn ids(findings: &[Finding]) -> Vec<(&'static str, Severity)> {
    let mut ids: Vec<_> = findings
        .iter()
        .map(|finding| (finding.id, finding.severity))
        .collect();
    ids.sort_unstable();
    ids
}

/// The finding with this id about this object.
pub(super) fn about<'a>(findings: &'a [Finding], id: &str, object: &str) -> &'a Finding {
    findings
        .iter()
        .find(|finding| finding.id == id && finding.object.contains(object))
        .unwrap_or_else(|| panic!("no {id} about {object} in {findings:#?}"))
}

fn plain(url: &str) -> String {
    url.replace("postgres@", "plain@")
}

#[test]
fn sound_databases_have_no_findings() {
    let clusters = MAJORS.map(|major| {
        let cluster = PgCluster::builder(major).start().unwrap();
        cluster.create_database("app").unwrap();
        cluster
            .sql("app", "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x'); UPDATE t SET v = 'y'")
            .unwrap();
        cluster
    });
    for cluster in &clusters {
        for side in [Side::Source, Side::Target] {
            assert_eq!(
                ids(&findings(&cluster.url("app"), side, "sound")),
                [],
                "{} {side:?}",
                cluster.version()
            );
        }
    }
    assert_eq!(ids(&pair(&clusters[0].url("app"), &clusters[1].url("app"))), []);
    let backwards = pair(&clusters[1].url("app"), &clusters[0].url("app"));
    assert_eq!(ids(&backwards), [("PG-VERSION-OLDER", Info)]);
}

/// What the server refuses is told before a publication makes it do so; an older server refuses nothing.
#[test]
fn identities_with_generated_columns_are_told_where_they_are_refused() {
    for major in [17, 18] {
        let cluster = PgCluster::builder(major).start().unwrap();
        cluster.create_database("app").unwrap();
        let generated = "int GENERATED ALWAYS AS (id * 2) STORED";
        cluster
            .sql(
                "app",
                &format!(
                    "CREATE TABLE whole (id int PRIMARY KEY, v {generated}); ALTER TABLE whole REPLICA IDENTITY FULL;
                     CREATE TABLE other_key (id int PRIMARY KEY, v {generated}); INSERT INTO whole VALUES (1);
                     INSERT INTO other_key VALUES (1)"
                ),
            )
            .unwrap();
        let warned = || {
            let mut found = findings(&cluster.url("app"), Side::Source, "tables");
            found.retain(|finding| finding.id.starts_with("PG-REPLICA-IDENTITY"));
            found
        };
        let found = warned();
        let publish = "CREATE PUBLICATION p FOR ALL TABLES; UPDATE other_key SET id = 2";
        cluster.sql("app", publish).unwrap();
        let update = || cluster.sql("app", "UPDATE whole SET id = id + 1");
        if major == 17 {
            assert!(found.is_empty(), "{found:#?}");
            update().unwrap();
            continue;
        }
        assert_eq!(ids(&found), [("PG-REPLICA-IDENTITY-GENERATED", Warn)]);
        let finding = about(&found, "PG-REPLICA-IDENTITY-GENERATED", "public.whole");
        let refused = update().unwrap_err().to_string();
        assert!(refused.contains("unpublished generated columns"), "{refused}");
        let statement = finding.remedy.split(" it needs").next().unwrap();
        cluster.sql("app", statement).unwrap();
        update().unwrap();
        assert!(warned().is_empty());
    }
}

#[test]
fn tables_that_are_left_behind_or_cannot_be_followed() {
    for major in MAJORS {
        let cluster = PgCluster::builder(major)
            .setting("max_prepared_transactions", "5")
            .start()
            .unwrap();
        cluster.create_database("app").unwrap();
        cluster
            .sql(
                "app",
                "CREATE TABLE keyed (id int PRIMARY KEY);
                 CREATE TABLE history (at timestamptz); INSERT INTO history VALUES (now());
                 CREATE TABLE changing (v int); INSERT INTO changing VALUES (1); UPDATE changing SET v = 2;
                 CREATE TABLE whole (v int); ALTER TABLE whole REPLICA IDENTITY FULL;
                 CREATE TABLE silent (id int PRIMARY KEY); ALTER TABLE silent REPLICA IDENTITY NOTHING;
                 CREATE TABLE later (id int PRIMARY KEY DEFERRABLE);
                 CREATE TABLE by_index (id int NOT NULL UNIQUE); ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_id_key;
                 CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY);
                 CREATE MATERIALIZED VIEW summary AS SELECT 1 AS x;
                 CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
                 CREATE FOREIGN TABLE remote (id int) SERVER s;
                 SELECT lo_create(0);
                 BEGIN; INSERT INTO keyed VALUES (1); PREPARE TRANSACTION 'left';",
            )
            .unwrap();
        let expected = [
            ("PG-FOREIGN-TABLE", Warn),
            ("PG-KEY-DEFERRABLE", Warn),
            ("PG-LARGE-OBJECTS", Warn),
            ("PG-MATVIEW", Info),
            ("PG-PREPARED-XACT", Fail),
            ("PG-REPLICA-IDENTITY", Warn),
            ("PG-REPLICA-IDENTITY", Fail),
            ("PG-REPLICA-IDENTITY-NOTHING", Warn),
            ("PG-UNLOGGED", Warn),
        ];
        // Statistics arrive a moment after the update they count.
        let deadline = Instant::now() + Duration::from_secs(60);
        let found = loop {
            let found = findings(&cluster.url("app"), Side::Source, "tables");
            if ids(&found) == expected || Instant::now() > deadline {
                break found;
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        assert_eq!(ids(&found), expected, "{}: {found:#?}", cluster.version());
        assert_eq!(
            about(&found, "PG-REPLICA-IDENTITY", "public.changing").severity,
            Fail
        );
        assert_eq!(
            about(&found, "PG-REPLICA-IDENTITY", "public.history").severity,
            Warn
        );
        // Each remedy is a statement that works.
        for id in [
            "PG-REPLICA-IDENTITY",
            "PG-REPLICA-IDENTITY-NOTHING",
            "PG-KEY-DEFERRABLE",
        ] {
            for finding in found.iter().filter(|finding| finding.id == id) {
                let statement = finding.remedy.split("; or:").next().unwrap();
                cluster.sql("app", statement).unwrap();
            }
        }
        cluster.sql("app", "ROLLBACK PREPARED 'left'").unwrap();
        let left = findings(&cluster.url("app"), Side::Source, "tables");
        assert!(left.iter().all(|finding| finding.severity < Fail), "{left:#?}");
    }
}

#[test]
fn a_server_that_is_not_set_up_for_it() {
    for major in MAJORS {
        let mut builder = PgCluster::builder(major)
            .setting("wal_level", "replica")
            .setting("max_replication_slots", "1")
            .setting("max_wal_senders", "1");
        if major >= 13 {
            builder = builder.setting("max_slot_wal_keep_size", "1GB");
        }
        if major >= 18 {
            builder = builder.setting("idle_replication_slot_timeout", "1h");
        }
        let cluster = builder.start().unwrap();
        cluster.create_database("app").unwrap();
        cluster
            .sql(
                "app",
                "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_sync_server FOR TABLE t;
                 SELECT pg_create_physical_replication_slot('cdc_sync_server')",
            )
            .unwrap();
        let found = findings(&cluster.url("app"), Side::Source, "server");
        let mut expected = vec![
            ("PG-PUBLICATION-EXISTS-FOREIGN", Warn),
            ("PG-SLOT-EXISTS-FOREIGN", Fail),
            ("PG-SLOTS-FREE", Warn),
            ("PG-WAL-LEVEL", Fail),
            ("PG-WALSENDERS-FREE", Warn),
        ];
        if major >= 13 {
            expected.push(("PG-MAX-SLOT-WAL-KEEP-SIZE", Warn));
        }
        if major >= 18 {
            expected.push(("PG-IDLE-SLOT-TIMEOUT", Warn));
        }
        expected.sort_unstable();
        assert_eq!(ids(&found), expected, "{found:#?}");
        // Under another name the slot is only one that takes the last place.
        let other = findings(&cluster.url("app"), Side::Source, "other");
        assert_eq!(about(&other, "PG-SLOTS-FREE", "").severity, Fail);
    }
}

#[test]
fn a_publication_of_parts_is_refused() {
    let cluster = PgCluster::builder(16).start().unwrap();
    cluster.create_database("app").unwrap();
    cluster
        .sql("app", "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_sync_parts FOR TABLE t WHERE (id > 5)")
        .unwrap();
    let found = findings(&cluster.url("app"), Side::Source, "parts");
    assert!(
        about(&found, "PG-PUBLICATION-PARTIAL", "")
            .message
            .contains("public.t")
    );
}

#[test]
fn a_role_without_rights_learns_what_it_lacks() {
    for major in MAJORS {
        let cluster = PgCluster::builder(major).start().unwrap();
        cluster.create_database("app").unwrap();
        cluster
            .sql(
                "app",
                "CREATE ROLE plain LOGIN; CREATE TABLE closed (id int PRIMARY KEY);
                 CREATE TABLE hidden (id int PRIMARY KEY); ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
                 GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON hidden TO plain",
            )
            .unwrap();
        let url = plain(&cluster.url("app"));
        let expected = [
            ("PG-CREATE-RIGHT", Fail),
            ("PG-CREATE-RIGHT", Fail),
            ("PG-REPLICATION-RIGHT", Fail),
            ("PG-RLS", Fail),
            ("PG-SELECT-RIGHT", Fail),
        ];
        let found = findings(&url, Side::Source, "rights");
        let seen: Vec<_> = ids(&found)
            .into_iter()
            .filter(|(id, _)| *id != "PG-NOT-CHECKED")
            .collect();
        assert_eq!(seen, expected, "{found:#?}");
        let found = findings(&url, Side::Target, "rights");
        let expected = [
            ("PG-CREATE-RIGHT", Fail),
            ("PG-RLS", Fail),
            ("PG-TARGET-ORIGIN", Warn),
            ("PG-TARGET-REPLICA-ROLE", Warn),
            ("PG-WRITE-RIGHT", Fail),
        ];
        assert_eq!(ids(&found), expected, "{found:#?}");
        cluster
            .sql(
                "app",
                "ALTER ROLE plain REPLICATION BYPASSRLS; GRANT CREATE ON DATABASE app TO plain;
                 ALTER TABLE closed OWNER TO plain; ALTER TABLE hidden OWNER TO plain",
            )
            .unwrap();
        let found = findings(&url, Side::Source, "rights");
        assert!(
            found.iter().all(|finding| finding.id == "PG-NOT-CHECKED"),
            "{found:#?}"
        );
        if major >= 15 {
            cluster
                .sql("app", "GRANT SET ON PARAMETER session_replication_role TO plain;
                     GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_oid(text),
                     pg_replication_origin_session_setup(text), pg_replication_origin_drop(text) TO plain",
                )
                .unwrap();
            assert_eq!(ids(&findings(&url, Side::Target, "rights")), []);
        }
    }
}

#[test]
fn targets_that_do_not_take_writes_or_fire_triggers() {
    for major in MAJORS {
        let cluster = PgCluster::builder(major).start().unwrap();
        cluster.create_database("app").unwrap();
        cluster
            .sql(
                "app",
                "CREATE TABLE t (id int PRIMARY KEY);
                 CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
                 CREATE TRIGGER ordinary BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
                 CREATE TRIGGER always BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
                 CREATE TRIGGER replica BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
                 ALTER TABLE t ENABLE ALWAYS TRIGGER always; ALTER TABLE t ENABLE REPLICA TRIGGER replica;
                 ALTER DATABASE app SET default_transaction_read_only = on",
            )
            .unwrap();
        let found = findings(&cluster.url("app"), Side::Target, "writes");
        let expected = [
            ("PG-TARGET-READ-ONLY", Fail),
            ("PG-TRIGGERS-ALWAYS", Warn),
            ("PG-TRIGGERS-ALWAYS", Warn),
        ];
        assert_eq!(ids(&found), expected, "{found:#?}");
        for finding in found.iter().rev() {
            cluster
                .sql(
                    "app",
                    &format!("SET default_transaction_read_only = off; {}", remedy(finding)),
                )
                .unwrap();
        }
        assert_eq!(ids(&findings(&cluster.url("app"), Side::Target, "writes")), []);
    }
}

/// The statement of a remedy, without the words after it.
fn remedy(finding: &Finding) -> &str {
    finding.remedy.split(" or ").next().unwrap()
}

#[test]
fn what_the_target_lacks() {
    let [source, target] = MAJORS.map(|major| PgCluster::builder(major).start().unwrap());
    let create = |encoding: &str| {
        format!("CREATE DATABASE app ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    };
    source.sql("postgres", &create("LATIN1")).unwrap();
    target.sql("postgres", &create("UTF8")).unwrap();
    source
        .sql(
            "app",
            "CREATE ROLE owner; CREATE ROLE reader; CREATE ROLE bystander;
             CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t OWNER TO owner; GRANT SELECT ON t TO reader;
             CREATE EXTENSION pg_trgm;
             INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
             VALUES (999999, 'elsewhere', 10, 2200, false, '7.7')",
        )
        .unwrap();
    let found = pair(&source.url("app"), &target.url("app"));
    let expected = [
        ("PG-ENCODING", Warn),
        ("PG-EXTENSION-MISSING", Fail),
        ("PG-ROLE-MISSING", Warn),
        ("PG-ROLE-MISSING", Warn),
    ];
    assert_eq!(ids(&found), expected, "{found:#?}");
    let extension = about(&found, "PG-EXTENSION-MISSING", "");
    assert!(extension.message.contains("elsewhere 7.7") && !extension.message.contains("pg_trgm"));
    assert!(
        found
            .iter()
            .all(|finding| finding.side == Side::Both && !finding.object.contains("bystander"))
    );
    target
        .sql("postgres", "CREATE ROLE owner; CREATE ROLE reader")
        .unwrap();
    let found = pair(&source.url("app"), &target.url("app"));
    assert!(found.iter().all(|finding| finding.id != "PG-ROLE-MISSING"));
}

#[test]
fn connected_clients_are_named() {
    for major in MAJORS {
        let cluster = PgCluster::builder(major).start().unwrap();
        cluster.create_database("app").unwrap();
        cluster.sql("app", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
        let url = cluster.url("app");
        let found = block_on(async {
            let (_client, connection) =
                tokio_postgres::connect(&format!("{url}?application_name=shop"), tokio_postgres::NoTls)
                    .await
                    .unwrap();
            tokio::spawn(connection);
            site(&url)
                .await
                .findings(Side::Source, &names("clients"), &TableSelection::default())
                .await
                .unwrap()
        });
        assert_eq!(ids(&found), [("PG-CLIENTS", Info)]);
        assert!(
            found[0].message.contains("shop") && found[0].message.contains("127.0.0.1"),
            "{found:#?}"
        );
    }
}
