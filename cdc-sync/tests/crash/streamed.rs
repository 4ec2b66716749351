//! Transactions that the server sends while they still run: everything that small ones may be, they may be too.

use testbed::workload::{Fill, prepare};
use testbed::{Pair, PgCluster};

use super::kills::survives;

/// A pair whose blue streams as much as it can: every change from 16 on, whatever is more than 64 kB before.
fn pair(old: u16, new: u16) -> Pair {
    let (name, value) = match old {
        ..16 => ("logical_decoding_work_mem", "64kB"),
        16.. => ("debug_logical_replication_streaming", "immediate"),
    };
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

/// Enough of everything that a server which streams from 64 kB on does so.
const CASES: [&str; 5] = [
    // Parts that are taken back, one in the other, also when the inner one was kept; a table that is announced in a
    // part that is taken back, and comes again.
    "BEGIN; UPDATE a SET mood = 'high' WHERE id <= 20;
     SAVEPOINT one; INSERT INTO a SELECT n, repeat('x', 3000), 'low' FROM generate_series(101, 140) n;
     SAVEPOINT two; INSERT INTO c SELECT n, 'high' FROM generate_series(1, 3000) n; RELEASE two;
     ROLLBACK TO one; INSERT INTO c SELECT n, 'low' FROM generate_series(1, 2000) n;
     SAVEPOINT three; DELETE FROM b WHERE id > 20; SAVEPOINT four; UPDATE b SET body = repeat('four', 900);
     ROLLBACK TO four; UPDATE b SET body = 'three' WHERE id < 5; RELEASE three;
     INSERT INTO b SELECT n, repeat('y', 2000) FROM generate_series(201, 260) n; COMMIT",
    // All of it is taken back.
    "BEGIN; DELETE FROM a; INSERT INTO c SELECT n, 'low' FROM generate_series(5001, 8000) n;
     SAVEPOINT s; UPDATE c SET mood = 'high'; ROLLBACK",
    "BEGIN; SAVEPOINT s; INSERT INTO a SELECT n, repeat('z', 2500), 'high' FROM generate_series(301, 360) n;
     TRUNCATE b; ROLLBACK TO s; UPDATE a SET body = body || '!' WHERE id <= 10; TRUNCATE c;
     INSERT INTO c SELECT n, 'high' FROM generate_series(1, 2500) n;
     SELECT pg_logical_emit_message(true, 'app', repeat('m', 5000)); COMMIT",
    // Committed long after it was prepared, with others in between, and one that is not.
    "BEGIN; UPDATE a SET body = repeat('p', 3000) WHERE id BETWEEN 11 AND 40; PREPARE TRANSACTION 'kept';
     BEGIN; UPDATE b SET body = repeat('q', 3000); PREPARE TRANSACTION 'dropped';
     INSERT INTO c VALUES (9001, 'low'); ROLLBACK PREPARED 'dropped'; UPDATE b SET body = 'after';
     COMMIT PREPARED 'kept'",
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
        pair.on_blue(case).expect("blue takes it");
        pair.verb(&["run", "--until-caught-up"], 0)
            .unwrap_or_else(|error| panic!("{case}: {error:#}"));
        pair.assert_equal()
            .unwrap_or_else(|error| panic!("{case}: {error:#}"));
    }
    let streamed = "SELECT stream_txns > 3 FROM pg_stat_replication_slots";
    let deadline = std::time::Instant::now() + testbed::pair::LIMIT;
    // The statistics come late.
    while pair.on_blue(streamed).expect("blue answers").trim() != "t" {
        assert!(std::time::Instant::now() < deadline, "nothing was streamed");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

#[test]
fn parts_that_are_taken_back_and_tables_that_are_named_in_them_on_18() {
    migrates(18, 18);
}

#[test]
fn parts_that_are_taken_back_and_tables_that_are_named_in_them_on_14() {
    migrates(14, 17);
}
