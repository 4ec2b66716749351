//! What a target that has its own schema may look like, and what is said of a job that another instance holds.

use testbed::Pair;
use testbed::pair::LIMIT;

use super::{end, error, until_caught_up};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";
const ROWS: &str = "INSERT INTO t SELECT i, 'same' FROM generate_series(1, 100) i";

fn pair() -> Pair {
    let pair = Pair::start(14, 18).expect("two servers");
    pair.on_blue(&format!("{TABLE}; {ROWS}"))
        .expect("blue has a table");
    pair
}

#[test]
fn a_constraint_that_only_green_has_stops_the_seed() {
    let pair = pair();
    pair.on_green(&format!("{TABLE}; ALTER TABLE t ADD CONSTRAINT once UNIQUE (v)"))
        .expect("green has a stricter table");
    let report = pair.verb(&["run", "--until-caught-up"], 13).expect("run");
    let said = error(&report);
    assert!(said.contains("public.t") && said.contains("once"), "{report}");
    assert_eq!(report["error"]["code"], "data", "{report}");
}

#[test]
fn a_seeded_target_with_its_own_schema_has_statistics() {
    let pair = pair();
    pair.on_green(TABLE).expect("green has a table");
    until_caught_up(&pair);
    let analyzed = "SELECT last_analyze IS NOT NULL FROM pg_stat_user_tables WHERE relname = 't'";
    assert_eq!(pair.on_green(analyzed).expect("green answers"), "t");
}

#[test]
fn columns_in_another_order_and_keys_that_are_checked_at_once() {
    let pair = Pair::start(12, 18).expect("two servers");
    pair.on_blue(
        "CREATE TABLE placed (id int PRIMARY KEY, a text, b text); \
         INSERT INTO placed SELECT n, 'a' || n, 'b' || n FROM generate_series(1, 20) n; \
         CREATE TABLE turned (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED); \
         INSERT INTO turned SELECT n, n FROM generate_series(1, 100) n",
    )
    .expect("blue has tables");
    pair.on_green(
        "CREATE TABLE placed (b text, extra text DEFAULT 'x', a text, id int PRIMARY KEY); \
         CREATE TABLE turned (id int PRIMARY KEY, u int UNIQUE)",
    )
    .expect("green has them otherwise");
    let equal = |what: &str| {
        let rows = "SELECT md5(string_agg(concat_ws(',', id, a, b), ' ' ORDER BY id)) FROM placed";
        assert_eq!(
            pair.on_blue(rows).unwrap(),
            pair.on_green(rows).unwrap(),
            "{what}"
        );
        let rows = "SELECT md5(string_agg(concat_ws(',', id, u), ' ' ORDER BY id)) FROM turned";
        assert_eq!(
            pair.on_blue(rows).unwrap(),
            pair.on_green(rows).unwrap(),
            "{what}"
        );
        let other = "SELECT count(*) FROM placed WHERE extra IS DISTINCT FROM 'x'";
        assert_eq!(pair.on_green(other).unwrap(), "0", "{what}");
    };
    until_caught_up(&pair);
    equal("after the seed");
    // Few rows, which are applied one by one, and many, by set and COPY.
    for many in [1, 200] {
        pair.on_blue(&format!(
            "INSERT INTO placed SELECT {many} * 1000 + n, 'a', 'b' || n FROM generate_series(1, {many}) n; \
             UPDATE placed SET a = 'new' WHERE id <= {many}; UPDATE placed SET id = -id WHERE id = 5 + {many} % 3; \
             DELETE FROM placed WHERE id = 10 + {many} % 3"
        ))
        .expect("blue changes");
        until_caught_up(&pair);
        equal("after changes");
    }
    pair.on_blue("UPDATE turned SET u = 101 - u")
        .expect("blue turns them");
    let report = pair.verb(&["run", "--until-caught-up"], 8).expect("run");
    let said = error(&report);
    assert!(
        said.contains("public.turned") && said.contains("turned_u_key"),
        "{report}"
    );
    assert!(said.contains("DEFERRABLE INITIALLY DEFERRED"), "{report}");
    pair.on_green(
        "ALTER TABLE turned DROP CONSTRAINT turned_u_key, ADD UNIQUE (u) DEFERRABLE INITIALLY DEFERRED",
    )
    .expect("green does what the remedy says");
    until_caught_up(&pair);
    equal("after all were turned");
}

#[test]
fn a_target_whose_tables_do_not_fit_is_refused_by_check_and_run() {
    let pair = pair();
    pair.on_green("CREATE TABLE t (id bigint, v text, must int NOT NULL)")
        .expect("green has another table");
    let checked = pair.verb(&["check"], 3).expect("check");
    let findings = checked["findings"].to_string();
    for id in ["TARGET-LACKS-KEY", "TARGET-COLUMN-REQUIRED", "TARGET-COLUMN-TYPE"] {
        assert!(findings.contains(id), "{id}: {checked}");
    }
    let report = pair.verb(&["run"], 3).expect("run");
    let said = error(&report);
    assert!(
        said.contains("public.t.must") && said.contains("primary key (id)"),
        "{report}"
    );
    // Another type alone is only warned about.
    pair.on_green("ALTER TABLE t ADD PRIMARY KEY (id); ALTER TABLE t ALTER must SET DEFAULT 0")
        .expect("green mends it");
    let mut running = pair.spawn(&["run", "--until-caught-up"]).expect("run starts");
    end(&mut running, 0);
    assert!(
        running.stderr().contains("TARGET-COLUMN-TYPE"),
        "{}",
        running.stderr()
    );
}

#[test]
fn a_refused_second_instance_does_not_speak_for_the_job() {
    let pair = pair();
    let mut first = pair.spawn(&["run"]).expect("run starts");
    first
        .wait_for("stream started", LIMIT)
        .expect("the stream starts");
    // It holds the job and cannot correct what is said of it.
    first.suspend().expect("it stands still");
    let published = "SELECT published_at::text || status FROM cdc_sync.status";
    let before = pair.on_green(published).expect("green answers");
    let report = pair
        .verb(&["run", "--takeover-timeout", "500ms"], 11)
        .expect("run");
    assert_eq!(report["error"]["code"], "fenced", "{report}");
    assert_eq!(pair.on_green(published).expect("green answers"), before);
    first.resume().expect("it goes on");
    first.sigterm().expect("the signal arrives");
    end(&mut first, 0);
}
