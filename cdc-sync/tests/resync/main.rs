//! `resync`: tables copied anew, or taken into the job, while the rest goes on.

mod deaths;
mod refused;
mod setbacks;

use std::time::{Duration, Instant};

use testbed::pair::LIMIT;
use testbed::{Pair, Process};

const TABLES: &str = "CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE FUNCTION touch() RETURNS int LANGUAGE sql AS 'SELECT 1'; \
                      CREATE TABLE kept (id int PRIMARY KEY, note text); CREATE TABLE again (id int PRIMARY KEY, note text); \
                      INSERT INTO kept SELECT g, 'old' FROM generate_series(1, 100) g; \
                      INSERT INTO again SELECT g, 'old' FROM generate_series(1, 5000) g";

fn until_caught_up(pair: &Pair, flags: &[&str]) -> serde_json::Value {
    let all: Vec<&str> = ["run", "--until-caught-up"]
        .iter()
        .chain(flags)
        .copied()
        .collect();
    pair.verb(&all, 0).expect("run")
}

/// Starts a run and waits until it follows.
fn following(pair: &Pair, flags: &[&str]) -> Process {
    let all: Vec<&str> = ["run"].iter().chain(flags).copied().collect();
    let mut running = pair.spawn(&all).expect("run starts");
    running
        .wait_for("stream started", LIMIT)
        .expect("the stream starts");
    running
}

/// Waits for a condition while the processes run.
fn wait(what: &str, running: &mut [&mut Process], mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        for process in &mut *running {
            assert!(
                process.is_running(),
                "{what}: it ended\n{}\n{}",
                process.stdout(),
                process.stderr()
            );
        }
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(60));
    }
}

/// Ends a process that was told to, or that ends by itself; returns its JSON.
fn end(mut running: Process, code: i32) -> serde_json::Value {
    let ended = running.wait_timeout(LIMIT).expect("it ends");
    assert_eq!(ended.code(), Some(code), "{}\n{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).expect("it prints JSON")
}

/// Asserts that all is equal, accounted for, and that only the job's own objects are left.
fn assert_whole(pair: &Pair, run: &serde_json::Value) {
    pair.assert_equal().expect("both compare");
    let count = |key: &str| run["changes"][key].as_u64().expect(key);
    let ends = ["applied", "loop", "filtered", "superseded", "dead_lettered"];
    assert_eq!(count("read"), ends.map(count).iter().sum::<u64>(), "{run}");
    let left =
        "SELECT (SELECT count(*) FROM pg_replication_slots) || ' ' || (SELECT count(*) FROM pg_publication)";
    assert_eq!(
        pair.on_blue(left).expect("blue answers"),
        "1 1",
        "slots and publications"
    );
    let streams = "SELECT string_agg(DISTINCT stream, ' ') NOT LIKE '%~%' AND count(*) FILTER (WHERE phase <> 'live') = 0 \
                   AND (SELECT count(*) = 1 FROM cdc_sync.checkpoint) AND (SELECT count(*) = 1 FROM cdc_sync.fence) \
                   AND (SELECT count(*) <= 1 FROM pg_replication_origin) FROM cdc_sync.seed";
    assert_eq!(
        pair.on_green(streams).expect("green answers"),
        "t",
        "state of one stream"
    );
}

/// Has whoever loads rows into this table of green wait until it is let go.
fn hold_rows(pair: &Pair, table: &str) {
    pair.on_green(&format!(
        "CREATE SCHEMA testing; CREATE TABLE testing.hold AS SELECT; \
         CREATE FUNCTION testing.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             WHILE EXISTS (SELECT FROM testing.hold) LOOP PERFORM pg_catalog.pg_sleep(0.01); END LOOP; \
             RETURN NEW; END $$; \
         CREATE TRIGGER held BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION testing.wait(); \
         ALTER TABLE {table} ENABLE ALWAYS TRIGGER held"
    ))
    .expect("rows are held");
}

fn is_held(pair: &Pair) -> bool {
    let waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' \
                   AND datname = current_database())";
    pair.on_green(waiting).expect("green answers") == "t"
}

fn let_go(pair: &Pair, table: &str) {
    pair.on_green("DELETE FROM testing.hold").expect("green lets go");
    pair.on_green(&format!("SET lock_timeout = '60s'; DROP TRIGGER held ON {table}; SET client_min_messages = warning; DROP SCHEMA testing CASCADE"))
        .expect("green drops what held");
}

#[test]
fn a_table_is_copied_anew_while_the_others_are_followed() {
    let pair = Pair::start(12, 18).expect("two servers");
    pair.on_blue(TABLES).expect("blue has tables");
    let mut running = following(&pair, &[]);
    let copied = || {
        pair.on_green("SELECT count(*) FROM again")
            .expect("green answers")
            == "5000"
    };
    wait("the first copy", &mut [&mut running], copied);
    pair.on_green("DELETE FROM again WHERE id % 3 = 0; UPDATE again SET note = 'spoilt' WHERE id % 3 = 1")
        .expect("green is spoilt");
    hold_rows(&pair, "again");
    let mut resync = pair
        .spawn(&["resync", "--table", "public.again"])
        .expect("resync starts");
    wait("the copy", &mut [&mut running, &mut resync], || is_held(&pair));

    // Both tables are written while the copy of one stands still, and the other is followed.
    pair.on_blue(
        "UPDATE again SET note = 'newer' WHERE id <= 200; DELETE FROM again WHERE id > 4900; \
                  INSERT INTO again VALUES (6000, 'new'); UPDATE kept SET note = 'followed'",
    )
    .expect("blue writes");
    let followed = || {
        pair.on_green("SELECT count(*) FROM kept WHERE note = 'followed'")
            .expect("green answers")
            == "100"
    };
    wait("the other table", &mut [&mut running, &mut resync], followed);
    let verified = pair
        .verb(&["verify", "--exclude", "testing.*"], 10)
        .expect("verify");
    assert_eq!(
        (&verified["differences"], &verified["unverifiable"]),
        (&0.into(), &1.into()),
        "{verified}"
    );
    let status = pair.verb(&["status"], 0).expect("status");
    assert_eq!(
        (&status["tables"]["copying"], &status["tables"]["live"]),
        (&1.into(), &1.into()),
        "{status}"
    );

    let_go(&pair, "again");
    // What is in its way stands in the other one's log.
    let ended = resync
        .wait_timeout(LIMIT)
        .unwrap_or_else(|error| panic!("{error}\n{}", running.stderr()));
    assert_eq!(ended.code(), Some(0), "{}\n{}", ended.stdout, ended.stderr);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).expect("it prints JSON");
    assert_eq!(
        (&report["running"], &report["tables"][0]["live"]),
        (&true.into(), &true.into()),
        "{report}"
    );
    pair.on_blue("UPDATE again SET note = 'after' WHERE id % 7 = 0; UPDATE kept SET note = 'after'")
        .expect("blue writes");
    running.sigterm().expect("the signal arrives");
    end(running, 0);
    let run = until_caught_up(&pair, &[]);
    assert_whole(&pair, &run);
    // What the job's stream left out was read, and is accounted for.
    assert!(
        run["changes"]["filtered"].as_u64().expect("a number") >= 301,
        "{run}"
    );
}

#[test]
fn a_table_is_taken_into_a_running_job() {
    let pair = Pair::start(14, 17).expect("two servers");
    pair.on_blue(TABLES).expect("blue has tables");
    let narrow = ["--table", "public.kept", "--table", "public.again"];
    let mut running = following(&pair, &narrow);
    pair.on_blue(
        "CREATE TABLE fresh (id int PRIMARY KEY, kept int REFERENCES kept, feels mood, body text, \
         n int GENERATED ALWAYS AS IDENTITY); \
         CREATE VIEW of_fresh AS SELECT * FROM fresh; \
         CREATE INDEX fresh_body ON fresh (body); \
         INSERT INTO fresh SELECT g, g % 100 + 1, 'good', 'x' FROM generate_series(1, 3000) g",
    )
    .expect("blue gets a table");
    let report = pair
        .verb(&["resync", "--table", "public.fresh"], 0)
        .expect("resync");
    assert_eq!(report["tables"][0]["before"], serde_json::Value::Null, "{report}");
    let made = "SELECT (SELECT count(*) FROM pg_indexes WHERE tablename = 'fresh') || ' ' || \
                (SELECT count(*) FROM pg_constraint WHERE conrelid = 'fresh'::regclass AND contype = 'f')";
    assert_eq!(
        pair.on_green(made).expect("green answers"),
        "2 1",
        "indexes and foreign keys"
    );
    pair.on_blue(
        "INSERT INTO kept VALUES (500, 'new'); INSERT INTO fresh VALUES (9000, 500, 'bad', 'followed')",
    )
    .expect("blue writes");
    let followed = || {
        pair.on_green("SELECT count(*) FROM fresh WHERE id = 9000")
            .expect("green answers")
            == "1"
    };
    wait("the new table", &mut [&mut running], followed);
    running.sigterm().expect("the signal arrives");
    end(running, 0);

    // From now on it is the job's: to leave it out would lose its changes.
    let refused = pair
        .verb(
            &[
                "run",
                "--until-caught-up",
                "--table",
                "public.kept",
                "--table",
                "public.again",
            ],
            2,
        )
        .expect("run");
    assert_eq!(refused["error"]["object"], "public.fresh", "{refused}");
    let run = until_caught_up(&pair, &[]);
    assert_whole(&pair, &run);
}

#[test]
fn a_new_table_stops_the_job_and_the_remedy_takes_it_in() {
    let pair = Pair::start(16, 18).expect("two servers");
    pair.on_blue(TABLES).expect("blue has tables");
    until_caught_up(&pair, &[]);
    pair.on_blue(
        "CREATE TABLE \"Fresh One\" (a int, b text); INSERT INTO \"Fresh One\" VALUES (1, 'x'), (1, 'x')",
    )
    .expect("blue gets a table");
    let stopped = pair.verb(&["run", "--until-caught-up"], 13).expect("run");
    let remedy = stopped["error"]["remedy"].as_str().expect("a remedy");
    assert!(
        remedy.contains("cdc-sync resync --table 'public.Fresh One'"),
        "{remedy}"
    );
    let report = pair
        .verb(&["resync", "--table", "public.Fresh One"], 0)
        .expect("resync");
    assert_eq!(
        (&report["running"], &report["tables"][0]["live"]),
        (&false.into(), &false.into()),
        "{report}"
    );
    // Both in one request: one that green has, and one that it lacks.
    pair.on_green("DELETE FROM again").expect("green is spoilt");
    pair.verb(&["resync", "--table", "public.again"], 0)
        .expect("resync");
    pair.on_blue("INSERT INTO \"Fresh One\" VALUES (1, 'x'); DELETE FROM again WHERE id = 7")
        .expect("blue writes");
    let run = until_caught_up(&pair, &[]);
    assert_whole(&pair, &run);
}
