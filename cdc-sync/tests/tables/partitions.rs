//! Partitioned tables, leaf by leaf and as one table each, and what becomes of partitions while a job runs.

use testbed::pair::LIMIT;
use testbed::{Pair, Process};

/// Tables that green divides otherwise: by other bounds, not at all, or alone.
const BLUE: &str = "
    CREATE TABLE events (id int, day date, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE events_2 (v text, day date NOT NULL, id int NOT NULL);
    ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
    CREATE TABLE events_rest PARTITION OF events DEFAULT;
    CREATE TABLE merged (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
    CREATE TABLE merged_1 PARTITION OF merged FOR VALUES IN (1);
    CREATE TABLE merged_2 PARTITION OF merged FOR VALUES IN (2, 3);
    CREATE TABLE divided (id int, part int, v text, PRIMARY KEY (id, part));
    CREATE TABLE keyless (a int, b text) PARTITION BY HASH (a);
    CREATE TABLE keyless_0 PARTITION OF keyless FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE keyless_1 PARTITION OF keyless FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    ALTER TABLE keyless REPLICA IDENTITY FULL; ALTER TABLE keyless_0 REPLICA IDENTITY FULL;
    ALTER TABLE keyless_1 REPLICA IDENTITY FULL;
    INSERT INTO events SELECT n, date '2026-01-01' + n % 90, 'v' FROM generate_series(1, 300) n;
    INSERT INTO merged SELECT n, n % 3 + 1, 'v' FROM generate_series(1, 300) n;
    INSERT INTO divided SELECT n, n % 3, 'v' FROM generate_series(1, 300) n;
    INSERT INTO keyless SELECT n % 10, 'same' FROM generate_series(1, 100) n";
const GREEN: &str = "
    CREATE TABLE events (id int, day date, v text, PRIMARY KEY (id, day)) PARTITION BY HASH (id);
    CREATE TABLE events_a PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE events_b PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE merged (id int, part int, v text, PRIMARY KEY (id, part));
    CREATE TABLE divided (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
    CREATE TABLE divided_0 PARTITION OF divided FOR VALUES IN (0);
    CREATE TABLE divided_rest PARTITION OF divided DEFAULT;
    CREATE TABLE keyless (a int, b text) PARTITION BY RANGE (a);
    CREATE TABLE keyless_low PARTITION OF keyless FOR VALUES FROM (MINVALUE) TO (5);
    CREATE TABLE keyless_high PARTITION OF keyless FOR VALUES FROM (5) TO (MAXVALUE)";
/// Rows that move between partitions of either side, merged keys, duplicates of which some go, and a root that is emptied.
const CHANGES: &str = "
    UPDATE events SET day = day + 31 WHERE id < 50; UPDATE events SET id = id + 1000 WHERE id BETWEEN 50 AND 60;
    DELETE FROM events WHERE id BETWEEN 100 AND 150; INSERT INTO events SELECT n, '2026-02-03', 'new' FROM generate_series(2000, 2050) n;
    UPDATE merged SET part = part % 3 + 1, v = 'moved' WHERE id < 100; DELETE FROM merged WHERE id > 250;
    UPDATE divided SET part = (part + 1) % 3 WHERE id < 100; UPDATE divided SET v = 'w' WHERE id > 200;
    DELETE FROM keyless WHERE ctid = ANY (ARRAY(SELECT ctid FROM keyless_0 LIMIT 3)) AND tableoid = 'keyless_0'::regclass;
    UPDATE keyless SET a = a + 5 WHERE a < 2; UPDATE keyless SET b = 'other' WHERE a = 3;";

/// The rows of the roots, wherever they lie.
fn assert_same_rows(pair: &Pair) {
    for table in ["events", "merged", "divided", "keyless"] {
        let rows = format!(
            "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text COLLATE \"C\")) FROM {table} t"
        );
        assert_eq!(
            pair.on_blue(&rows).unwrap(),
            pair.on_green(&rows).unwrap(),
            "{table}"
        );
    }
    let report = pair.verb(&["verify", "--partitions", "root"], 0).unwrap();
    assert_eq!(report["tables"].as_array().unwrap().len(), 4, "{report}");
}

const RUN: &[&str] = &["run", "--partitions", "root", "--until-caught-up"];

fn root_for_root(old: u16, new: u16) {
    let pair = Pair::start(old, new).unwrap();
    pair.on_blue(BLUE).unwrap();
    pair.on_green(GREEN).unwrap();
    // Leaf by leaf it cannot be done, which is said before anything is copied.
    let refused = pair.verb(&["run"], 3).unwrap().to_string();
    assert!(
        refused.contains("PG-PARTITIONS-DIFFER") && refused.contains("--partitions root"),
        "{refused}"
    );
    let checked = pair
        .verb(&["check", "--partitions", "root"], 0)
        .unwrap()
        .to_string();
    assert!(
        checked.contains("PG-PARTITION-ROOT") && !checked.contains("PG-PARTITIONED"),
        "{checked}"
    );

    pair.verb(RUN, 0).unwrap();
    assert_same_rows(&pair);
    pair.on_blue(CHANGES).unwrap();
    pair.verb(RUN, 0).unwrap();
    assert_same_rows(&pair);
    // A partition that comes later is a part of the root from its first row on.
    pair.on_blue(
        "CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM ('2026-04-05') TO ('2027-01-01');
         INSERT INTO events VALUES (5000, '2026-06-01', 'late'); UPDATE events SET day = '2026-02-01' WHERE id = 5000;
         TRUNCATE merged; INSERT INTO merged VALUES (1, 1, 'after')",
    )
    .unwrap();
    pair.verb(RUN, 0).unwrap();
    assert_same_rows(&pair);
    // To copy one table anew leaves alone how the others are published.
    pair.on_green("DELETE FROM divided WHERE id < 100").unwrap();
    let divided = ["resync", "--partitions", "root", "--table", "public.divided"];
    pair.verb(&divided, 0).unwrap();
    pair.on_blue("UPDATE events SET day = day + 1 WHERE id > 200; DELETE FROM divided WHERE id > 280")
        .unwrap();
    pair.verb(RUN, 0).unwrap();
    assert_same_rows(&pair);
    let publication = pair
        .on_blue("SELECT quote_ident(pubname) FROM pg_publication")
        .unwrap();
    let via_root = |set: bool| {
        pair.on_blue(&format!(
            "ALTER PUBLICATION {publication} SET (publish_via_partition_root = {set})"
        ))
        .unwrap()
    };
    via_root(false);
    let stopped = pair.verb(RUN, 13).unwrap();
    assert!(
        stopped.to_string().contains("publish_via_partition_root"),
        "{stopped}"
    );
    via_root(true);
    // Rows that are detached leave the root without a word in the log; the table that they are in by then is noticed.
    pair.on_blue("ALTER TABLE events DETACH PARTITION events_2")
        .unwrap();
    let stopped = pair.verb(RUN, 13).unwrap();
    assert_eq!(stopped["error"]["object"], "public.events_2", "{stopped}");
    pair.verb(&["verify", "--partitions", "root"], 5).unwrap();
}

#[test]
fn partitioned_tables_as_a_whole() {
    root_for_root(13, 18);
    if testbed::runs_long_tier() {
        root_for_root(18, 14);
        root_for_root(18, 18);
    }
}

#[test]
fn a_server_that_cannot_publish_a_root_is_refused() {
    let pair = Pair::start(12, 16).unwrap();
    pair.on_blue(BLUE).unwrap();
    let refused = pair.verb(RUN, 3).unwrap();
    let findings = refused["findings"].to_string();
    assert!(
        findings.contains("PG-PARTITION-ROOT") && findings.contains("\"fail\""),
        "{refused}"
    );
    let untouched = "SELECT count(*) FROM pg_publication";
    assert_eq!(pair.on_blue(untouched).unwrap(), "0");
}

/// Leaf by leaf: what is detached goes on as the table it was, and what is new stops the job.
#[test]
fn leaves_that_are_detached_attached_and_made() {
    let pair = Pair::start(15, 17).unwrap();
    pair.on_blue(BLUE).unwrap();
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    let mut running = pair.spawn(&["run"]).unwrap();
    running.wait_for("stream started", LIMIT).unwrap();
    pair.on_blue(
        "ALTER TABLE events DETACH PARTITION events_2; UPDATE events_2 SET v = 'alone';
         ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
         UPDATE events SET v = 'back' WHERE id % 2 = 0; UPDATE events SET day = day + 31 WHERE id < 50",
    )
    .unwrap();
    ended(running);
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    pair.assert_equal().unwrap();
    let made = "CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM ('2026-04-05') TO ('2027-01-01')";
    pair.on_blue(made).unwrap();
    let stopped = pair.verb(&["run", "--until-caught-up"], 13).unwrap();
    assert_eq!(stopped["error"]["object"], "public.events_3", "{stopped}");
}

fn ended(mut running: Process) {
    running.sigterm().unwrap();
    let ended = running.wait_timeout(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
}
