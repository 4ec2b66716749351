//! A job keeps the tables that it began with; whatever comes in or is left out later stops it by name.

use testbed::pair::LIMIT;
use testbed::{Pair, StopMode};

use super::{Hold, end, error, until_caught_up};

const TWO: &str = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); \
                   INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)";
const RUN: [&str; 2] = ["run", "--until-caught-up"];

fn with(flags: &[&'static str]) -> Vec<&'static str> {
    RUN.into_iter().chain(flags.iter().copied()).collect()
}

#[test]
fn a_resumed_job_refuses_another_selection() {
    let pair = Pair::start(14, 18).expect("two servers");
    pair.on_blue(TWO).expect("blue has tables");
    until_caught_up(&pair);
    pair.on_blue("INSERT INTO b VALUES (2)").expect("blue writes");
    for narrower in [["--exclude", "public.b"], ["--table", "public.a"]] {
        let report = pair.verb(&with(&narrower), 2).expect("run");
        assert_eq!(report["error"]["object"], "public.b", "{report}");
        assert!(error(&report).contains("--exclude"), "{report}");
    }
    // Nothing was passed over meanwhile.
    until_caught_up(&pair);
    pair.assert_equal().expect("both compare");
}

#[test]
fn a_table_that_the_job_began_without_is_named_on_resume() {
    let pair = Pair::start(12, 17).expect("two servers");
    pair.on_blue(TWO).expect("blue has tables");
    let without = with(&["--exclude", "b"]);
    pair.verb(&without, 0).expect("run");
    let report = pair.verb(&RUN, 13).expect("run");
    assert_eq!(report["error"]["object"], "public.b", "{report}");
    assert_eq!(report["error"]["code"], "schema", "{report}");
    pair.verb(&without, 0).expect("run goes on as it began");
}

#[test]
fn a_new_table_stops_the_job_before_it_says_caught_up() {
    let pair = Pair::start(13, 18).expect("two servers");
    pair.on_blue(TWO).expect("blue has tables");
    pair.on_green("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
        .expect("green has tables");
    let hold = Hold::rows(&pair, "a");
    let mut running = pair.spawn(&RUN).expect("run starts");
    hold.wait(&mut running);
    // In mid-seed, long after the list of tables was made.
    pair.on_blue("CREATE TABLE fresh (id int PRIMARY KEY)")
        .expect("blue gets a table");
    hold.release("row");
    let report = end(&mut running, 13);
    assert_eq!(report["error"]["object"], "public.fresh", "{report}");
    assert_eq!(report["caught_up"], false, "{report}");
    // What the remedy says: without it the job goes on.
    pair.verb(&with(&["--exclude", "public.fresh"]), 0).expect("run");
}

#[test]
fn a_new_partition_is_noticed_while_following() {
    let pair = Pair::start(14, 18).expect("two servers");
    pair.on_blue(
        "CREATE TABLE p (id int) PARTITION BY RANGE (id); \
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)",
    )
    .expect("blue has a partitioned table");
    let mut running = pair.spawn(&["run"]).expect("run starts");
    running
        .wait_for("stream started", LIMIT)
        .expect("the stream starts");
    pair.on_blue("CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); INSERT INTO p VALUES (15)")
        .expect("blue gets a partition");
    let report = end(&mut running, 13);
    assert_eq!(report["error"]["object"], "public.p2", "{report}");
    assert!(
        error(&report).contains("cdc-sync resync --table 'public.p2'"),
        "{report}"
    );
}

#[test]
fn a_table_dropped_on_blue_is_only_warned_about() {
    let pair = Pair::start(16, 18).expect("two servers");
    pair.on_blue(TWO).expect("blue has tables");
    until_caught_up(&pair);
    pair.on_blue("DROP TABLE b").expect("blue drops a table");
    let mut running = pair.spawn(&RUN).expect("run starts");
    end(&mut running, 0);
    let said = running.stderr();
    assert!(
        said.contains("gone from the source") && said.contains("public.b"),
        "{said}"
    );
}

#[test]
fn a_table_whose_changes_are_missed_is_named_and_copied_anew() {
    let pair = Pair::start(15, 18).expect("two servers");
    pair.on_blue(TWO).expect("blue has tables");
    until_caught_up(&pair);
    let missed = |what: &str| {
        let report = pair.verb(&RUN, 13).expect("run");
        assert_eq!(report["error"]["object"], "public.b", "{what}: {report}");
        assert!(error(&report).contains("cdc-sync resync"), "{what}: {report}");
        let check = pair.verb(&["check"], 3).expect("check");
        let found = check["findings"].as_array().expect("findings").iter();
        let named: Vec<_> = found
            .filter(|finding| finding["id"] == "JOB-UNPUBLISHED")
            .collect();
        assert_eq!(named.len(), 1, "{what}: {check}");
        assert_eq!(named[0]["object"], "table public.b", "{what}: {check}");
    };
    let publication = pair
        .on_blue("SELECT pubname FROM pg_publication")
        .expect("blue answers");
    for what in [
        "DROP TABLE b; CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (7), (8)".to_owned(),
        "ALTER TABLE b RENAME TO old_b; CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (9); \
         DROP TABLE old_b"
            .to_owned(),
        format!("ALTER PUBLICATION {publication} DROP TABLE b; INSERT INTO b VALUES (10)"),
    ] {
        pair.on_blue(&what).expect("blue changes");
        missed(&what);
        pair.verb(&["resync", "--table", "public.b"], 0).expect("resync");
        pair.on_blue("INSERT INTO b SELECT max(id) + 100 FROM b; INSERT INTO a SELECT max(id) + 1 FROM a")
            .expect("blue writes");
        until_caught_up(&pair);
        pair.assert_equal().expect("both compare");
    }
    // All of them miss updates.
    pair.on_blue(&format!(
        "ALTER PUBLICATION {publication} SET (publish = 'insert')"
    ))
    .expect("blue restricts it");
    let report = pair.verb(&RUN, 13).expect("run");
    assert_eq!(report["error"]["object"], "public.a, public.b", "{report}");
}

#[test]
fn a_table_made_again_is_noticed_while_following() {
    let pair = Pair::start(13, 17).expect("two servers");
    pair.on_blue(TWO).expect("blue has tables");
    let mut running = pair.spawn(&["run"]).expect("run starts");
    running
        .wait_for("stream started", LIMIT)
        .expect("the stream starts");
    pair.on_blue("DROP TABLE b; CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (7)")
        .expect("blue makes it again");
    let report = end(&mut running, 13);
    assert_eq!(report["error"]["object"], "public.b", "{report}");
}

#[test]
fn a_table_renamed_out_of_the_selection_stops_before_a_change_is_left_out() {
    let pair = Pair::start(14, 18).expect("two servers");
    pair.on_blue(TWO).expect("blue has tables");
    let flags = ["--table", "public.a", "--table", "public.b"];
    let drained = with(&flags);
    pair.verb(&drained, 0).expect("run");
    let mut running = pair
        .spawn(&["run", "--table", "public.a", "--table", "public.b"])
        .expect("run starts");
    running
        .wait_for("stream started", LIMIT)
        .expect("the stream starts");
    // Since the stream started, none of its changes has come under the old name.
    pair.on_blue("ALTER TABLE b RENAME TO c; INSERT INTO c VALUES (5)")
        .expect("blue renames it");
    let report = end(&mut running, 13);
    assert!(error(&report).contains("public.b"), "{report}");
    assert_eq!(report["changes"]["filtered"], 0, "{report}");
    let report = pair.verb(&drained, 13).expect("run");
    assert_eq!(report["error"]["object"], "public.b", "{report}");
    assert!(error(&report).contains("public.c"), "{report}");

    // Named as before, it still has the change that came under the other name.
    pair.on_blue("ALTER TABLE c RENAME TO b")
        .expect("blue renames it back");
    let report = pair.verb(&drained, 13).expect("run");
    assert!(
        error(&report).contains("cdc-sync resync --table 'public.b'"),
        "{report}"
    );
    pair.verb(&["resync", "--table", "public.b"], 0).expect("resync");
    pair.verb(&drained, 0).expect("run");
    pair.assert_equal().expect("both compare");
}

fn restart(pair: &mut Pair) {
    for server in [&mut pair.blue, &mut pair.green] {
        server.stop(StopMode::Fast).expect("it stops");
        server.start_again().expect("it starts");
    }
}

/// A statement that reads all of `pg_class` anew for every table makes a run with nothing to do take seconds at a thousand
/// tables, and minutes at ten thousand.
#[test]
fn the_catalog_is_not_read_once_a_table() {
    const TABLES: i64 = 150;
    const SCANS: &str = "SELECT seq_scan FROM pg_stat_all_tables WHERE relid = 'pg_class'::regclass";
    // Servers that count at the end of a session, and keep counts when they are stopped.
    let mut pair = Pair::start(15, 18).expect("two servers");
    pair.on_blue(&format!(
        "DO $$ BEGIN CREATE TABLE t0 (id bigserial PRIMARY KEY); FOR n IN 1..{TABLES} LOOP EXECUTE format( \
         'CREATE TABLE t%s (id bigserial PRIMARY KEY, before bigint REFERENCES t%s)', n, n - 1); END LOOP; END $$"
    ))
    .expect("blue has tables");
    until_caught_up(&pair);
    // Autovacuum reads pg_class, too.
    const QUIET: &str = "ALTER SYSTEM SET autovacuum = off";
    pair.on_blue(QUIET).expect("blue is quiet");
    pair.on_green(QUIET).expect("green is quiet");
    restart(&mut pair);
    const RESET: &str = "ANALYZE; SELECT pg_stat_reset()";
    pair.on_blue(RESET).expect("blue counts from zero");
    pair.on_green(RESET).expect("green counts from zero");
    until_caught_up(&pair);
    restart(&mut pair);
    for answer in [pair.on_blue(SCANS), pair.on_green(SCANS)] {
        let scans: i64 = answer.expect("statistics").parse().expect("a count");
        assert!(
            (1..TABLES / 2).contains(&scans),
            "{scans} sequential reads of pg_class"
        );
    }
}
