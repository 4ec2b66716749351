//! Transactions that the server sends while they still run: everything that small ones may be, they may be too.

use std::time::{Duration, Instant};

use testbed::pair::LIMIT;
use testbed::workload::{Fill, prepare};
use testbed::{Pair, PgCluster, Process};

use super::kills::survives;

/// A pair whose blue streams as much as it can: every change from 16 on, whatever is more than 64 kB before.
fn pair(old: u16, new: u16) -> Pair {
    pair_with(
        match old {
            ..16 => ("logical_decoding_work_mem", "64kB"),
            16.. => ("debug_logical_replication_streaming", "immediate"),
        },
        old,
        new,
    )
}

fn pair_with((name, value): (&str, &str), old: u16, new: u16) -> Pair {
    let blue = PgCluster::builder(old)
        .setting(name, value)
        .setting("max_prepared_transactions", "4");
    let [blue, green] = [blue, PgCluster::builder(new)].map(|cluster| {
        let cluster = cluster.start().expect("a server");
        cluster.create_database(Pair::DATABASE).expect("a database");
        cluster
    });
    Pair::of(blue, green)
}

#[test]
fn kills_while_every_change_is_streamed_lose_nothing_and_repeat_nothing() {
    let kills = if testbed::runs_long_tier() { 30 } else { 4 };
    let pair = pair(18, 18);
    let [url, _] = pair.urls();
    let fill = Fill {
        orders: 1_000,
        pgbench_scale: None,
    };
    prepare(&url, fill).expect("blue is filled");
    survives(&pair, kills, None);
}

const TABLES: &str = "CREATE TYPE mood AS ENUM ('low', 'high');
    CREATE TABLE a (id int PRIMARY KEY, body text, mood mood);
    CREATE TABLE b (id int PRIMARY KEY, body text);
    CREATE TABLE c (id int PRIMARY KEY, mood mood);
    ALTER TABLE a ALTER body SET STORAGE EXTERNAL;
    INSERT INTO a SELECT n, repeat(md5(n::text), 300), 'low' FROM generate_series(1, 40) n;
    INSERT INTO b SELECT n, 'b' FROM generate_series(1, 40) n";

/// While these run, the stream follows: they wait now and then, so that it comes to see them before they end.
const CASES: [&str; 5] = [
    // Parts that are taken back, one in the other, also when the inner one was kept; a table that is announced in a
    // part that is taken back, and comes again.
    "BEGIN; UPDATE a SET mood = 'high' WHERE id <= 20;
     SAVEPOINT one; INSERT INTO a SELECT n, repeat('x', 3000), 'low' FROM generate_series(101, 140) n;
     SAVEPOINT two; INSERT INTO c SELECT n, 'high' FROM generate_series(1, 3000) n; SELECT pg_sleep(0.3); RELEASE two;
     ROLLBACK TO one; INSERT INTO c SELECT n, 'low' FROM generate_series(1, 2000) n;
     SAVEPOINT three; DELETE FROM b WHERE id > 20; SAVEPOINT four; UPDATE b SET body = repeat('four', 900);
     SELECT pg_sleep(0.3); ROLLBACK TO four; UPDATE b SET body = 'three' WHERE id < 5; RELEASE three;
     INSERT INTO b SELECT n, repeat('y', 2000) FROM generate_series(201, 260) n; COMMIT",
    // All of it is taken back.
    "BEGIN; DELETE FROM a; INSERT INTO c SELECT n, 'low' FROM generate_series(5001, 8000) n;
     SAVEPOINT s; UPDATE c SET mood = 'high'; SELECT pg_sleep(0.3); ROLLBACK",
    // Definitions that are taken back with what was written by them.
    "BEGIN; SAVEPOINT s; ALTER TABLE a RENAME TO z; ALTER TABLE z ADD COLUMN more int DEFAULT 7;
     INSERT INTO z SELECT n, repeat('z', 2500), 'high' FROM generate_series(301, 360) n;
     TRUNCATE b; SELECT pg_sleep(0.3); ROLLBACK TO s; UPDATE a SET body = body || '!' WHERE id <= 10; TRUNCATE c;
     INSERT INTO c SELECT n, 'high' FROM generate_series(1, 2500) n; SELECT pg_sleep(0.3);
     SELECT pg_logical_emit_message(true, 'app', repeat('m', 5000)); COMMIT",
    // Committed long after it was prepared, with others in between, and one that is not.
    "BEGIN; UPDATE a SET body = repeat('p', 3000) WHERE id BETWEEN 11 AND 40; SELECT pg_sleep(0.3);
     PREPARE TRANSACTION 'kept'; BEGIN; UPDATE b SET body = repeat('q', 3000); PREPARE TRANSACTION 'dropped';
     INSERT INTO c VALUES (9001, 'low'); SELECT pg_sleep(0.3); ROLLBACK PREPARED 'dropped';
     UPDATE b SET body = 'after'; COMMIT PREPARED 'kept'",
    // Rows by rows that fail: a subtransaction each, every third of them taken back.
    "DO $$ BEGIN FOR n IN 1..900 LOOP BEGIN
         INSERT INTO b VALUES (1000 + n, repeat('r', 200));
         IF n % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF;
     EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$",
];

fn migrates(old: u16, new: u16) {
    let pair = pair(old, new);
    pair.on_blue(TABLES).expect("the tables");
    pair.verb(&["run", "--until-caught-up"], 0).expect("run");
    for case in CASES {
        let mut running = pair.spawn(&["run"]).expect("run starts");
        running
            .wait_for("stream started", LIMIT)
            .expect("the stream starts");
        pair.on_blue(case).expect("blue takes it");
        end(&pair, running);
        pair.verb(&["run", "--until-caught-up"], 0)
            .unwrap_or_else(|error| panic!("{case}: {error:#}"));
        pair.assert_equal()
            .unwrap_or_else(|error| panic!("{case}: {error:#}"));
    }
    wait(&pair, "SELECT stream_txns > 3 FROM pg_stat_replication_slots");
}

/// Waits until blue's statistics, which come late, say so.
fn wait(pair: &Pair, statistics: &str) {
    let deadline = Instant::now() + LIMIT;
    while pair.on_blue(statistics).expect("blue answers").trim() != "t" {
        assert!(Instant::now() < deadline, "not so: {statistics}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Ends a run that has come to the end of what is written: the next would be told of transactions that have ended.
fn end(pair: &Pair, mut running: Process) {
    let written = pair.on_blue("SELECT pg_current_wal_insert_lsn()");
    let written = written.expect("blue answers");
    let applied = format!(
        "SELECT position::pg_lsn >= '{}' FROM cdc_sync.checkpoint",
        written.trim()
    );
    let deadline = Instant::now() + LIMIT;
    while pair.on_green(&applied).expect("green answers").trim() != "t" {
        assert!(running.is_running(), "{}", running.stderr());
        assert!(Instant::now() < deadline, "{}", running.stderr());
        std::thread::sleep(Duration::from_millis(100));
    }
    running.sigterm().expect("the signal arrives");
    running.wait_timeout(LIMIT).expect("it ends");
}

#[test]
fn parts_that_are_taken_back_and_tables_that_are_named_in_them_on_18() {
    migrates(18, 18);
}

#[test]
fn parts_that_are_taken_back_and_tables_that_are_named_in_them_on_14() {
    migrates(14, 17);
}

/// Of a subtransaction that had more than 4096 changes when the server ran out of memory between the pieces of a large
/// value, it has none in memory when it streams the next moment, and says nothing when it is rolled back.
#[test]
fn a_part_is_left_out_of_which_the_server_does_not_say_that_it_was_taken_back() {
    for (old, new) in [(14, 17), (18, 18)] {
        let pair = pair_with(("logical_decoding_work_mem", "8MB"), old, new);
        pair.on_blue(TABLES).expect("the tables");
        pair.verb(&["run", "--until-caught-up"], 0).expect("run");
        let mut running = pair.spawn(&["run"]).expect("run starts");
        running
            .wait_for("stream started", LIMIT)
            .expect("the stream starts");
        pair.on_blue(
            "BEGIN; INSERT INTO a VALUES (5000, 'before', 'low'); SAVEPOINT s;
             INSERT INTO a SELECT n, repeat(md5(n::text), 620), 'low' FROM generate_series(5001, 5600) n;
             SELECT pg_sleep(1); ROLLBACK TO s; INSERT INTO a VALUES (6000, 'after', 'low'); COMMIT",
        )
        .expect("blue takes it");
        end(&pair, running);
        let both = "SELECT spill_txns > 0 AND stream_txns > 0 FROM pg_stat_replication_slots";
        wait(&pair, both);
        pair.verb(&["run", "--until-caught-up"], 0).expect("run");
        pair.assert_equal().expect("both compare");
    }
}
