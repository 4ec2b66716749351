//! Large transactions are applied while they still run on blue. Whatever then happens to them or to us: what arrives is
//! what blue has committed, in its order.

use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::pair::LIMIT;
use testbed::{Pair, PgCluster, Process, process};
use tokio_postgres::Client;

use super::assert_accounted;

/// Of the job's changes.
const TABLES: &str = "CREATE TABLE big (id int PRIMARY KEY, body text NOT NULL);
    CREATE TABLE small (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO small SELECT n, 0 FROM generate_series(1, 10) n";
/// More rows than a group has, so that the first of them are applied before the rest is written.
const ROWS: u64 = 120_000;
/// Rows of `big` that green holds and nobody sees.
const AHEAD: &str = "SELECT pg_relation_size('big') > 2000000 AND NOT EXISTS (SELECT FROM big)";
/// Whether nobody writes to `big`, or has and not ended.
const UNLOCKED: &str =
    "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE relation = 'big'::regclass AND mode = 'RowExclusiveLock')";
/// Whether the applying sessions are done with what they had open.
const CLOSED: &str = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
    AND application_name LIKE 'cdc-sync%' AND xact_start IS NOT NULL)";

struct Stage {
    pair: Pair,
    runtime: tokio::runtime::Runtime,
    /// changes that blue has committed
    written: u64,
}

impl Stage {
    fn set() -> Stage {
        let blue = PgCluster::builder(18).setting("logical_decoding_work_mem", "64kB");
        let [blue, green] = [blue, PgCluster::builder(18)].map(|cluster| {
            let cluster = cluster.start().expect("a server");
            cluster.create_database(Pair::DATABASE).expect("a database");
            cluster
        });
        let pair = Pair::of(blue, green);
        pair.on_blue(TABLES).expect("the tables");
        pair.verb(&["run", "--until-caught-up"], 0).expect("run");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        Stage {
            pair,
            runtime,
            written: 0,
        }
    }

    fn run(&self) -> Process {
        let mut running = self.pair.spawn(&["run"]).expect("run starts");
        running
            .wait_for("stream started", LIMIT)
            .expect("the stream starts");
        running
    }

    /// A session on blue.
    fn session(&self) -> Client {
        let [blue, _] = self.pair.urls();
        self.runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&blue, tokio_postgres::NoTls)
                .await
                .expect("blue answers");
            tokio::spawn(connection);
            client
        })
    }

    /// A session with a transaction of which `ROWS` rows, from this on, are on green.
    fn large(&self, from: u64, running: &mut Process) -> Client {
        let session = self.session();
        self.on(&session, "BEGIN");
        self.on(&session, &rows(from));
        self.wait(AHEAD, running);
        session
    }

    fn on(&self, session: &Client, script: &str) {
        self.runtime
            .block_on(session.batch_execute(script))
            .unwrap_or_else(|error| panic!("{script}: {error}"));
    }

    fn commit(&mut self, session: &Client, changes: u64) {
        self.on(session, "COMMIT");
        self.written += changes;
    }

    /// A small transaction of another session, which is to arrive.
    fn small(&mut self, id: u32, running: &mut Process) {
        self.pair
            .on_blue(&format!("UPDATE small SET n = n + 1 WHERE id = {id}"))
            .expect("blue takes it");
        self.written += 1;
        let n = self
            .pair
            .on_blue(&format!("SELECT n FROM small WHERE id = {id}"))
            .expect("blue answers");
        self.wait(
            &format!("SELECT n = {} FROM small WHERE id = {id}", n.trim()),
            running,
        );
    }

    /// Has a transaction go on, so that it does not rest, until green says so; how many rows it has more, from this on.
    fn go_on(&self, session: &Client, from: u64, question: &str, running: &mut Process) -> u64 {
        let (deadline, mut rows) = (Instant::now() + LIMIT, 0);
        while self.pair.on_green(question).expect("green answers").trim() != "t" {
            assert!(
                running.is_running() && Instant::now() < deadline,
                "{question}: {}",
                running.stderr()
            );
            let first = from + rows;
            let more =
                format!("INSERT INTO big SELECT {first} + n, md5(n::text) FROM generate_series(0, 999) n");
            self.on(session, &more);
            rows += 1_000;
        }
        rows
    }

    /// Waits until green says so.
    fn wait(&self, question: &str, running: &mut Process) {
        let deadline = Instant::now() + LIMIT;
        while self.pair.on_green(question).expect("green answers").trim() != "t" {
            assert!(running.is_running(), "{question}: {}", running.stderr());
            assert!(Instant::now() < deadline, "{question}: {}", running.stderr());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the run, applies what is left and compares everything.
    fn expect_all(&self, mut running: Process) {
        running.sigterm().expect("the signal arrives");
        let ended = running.wait_timeout(LIMIT).expect("run ends");
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
        self.expect_rest();
    }

    fn expect_rest(&self) -> Value {
        let report = self.pair.verb(&["run", "--until-caught-up"], 0).expect("run");
        self.pair.assert_equal().expect("both compare");
        assert_accounted(&report, self.written);
        report
    }
}

fn rows(from: u64) -> String {
    let last = from + ROWS - 1;
    format!("INSERT INTO big SELECT n, md5(n::text) FROM generate_series({from}, {last}) n")
}

/// What it depends on is there before it, what has committed meanwhile is not held up, and a transaction that is taken
/// back leaves nothing.
#[test]
fn a_large_transaction_is_on_green_before_it_commits_and_seen_when_it_has() {
    let mut stage = Stage::set();
    let mut running = stage.run();
    let session = stage.large(1, &mut running);
    // Another one waits in its file meanwhile.
    let second = stage.session();
    stage.on(&second, "BEGIN");
    stage.on(&second, &rows(1_000_001));
    for id in [1, 1, 2] {
        stage.small(id, &mut running);
    }
    stage.wait("SELECT count(*) = 0 FROM big", &mut running);
    stage.on(&session, "UPDATE small SET n = n * 100");
    stage.on(&session, &rows(ROWS + 1));
    stage.commit(&session, 2 * ROWS + 10);
    stage.wait(
        "SELECT (SELECT count(*) FROM big) = 240000 AND (SELECT max(n) = 200 FROM small)",
        &mut running,
    );
    stage.commit(&second, ROWS);
    stage.wait("SELECT count(*) = 360000 FROM big", &mut running);

    stage.on(&session, "BEGIN; DELETE FROM big WHERE id <= 120000");
    stage.on(&session, "ROLLBACK");
    stage.small(3, &mut running);
    stage.wait(CLOSED, &mut running);
    stage.wait("SELECT count(*) = 360000 FROM big", &mut running);
    // A part of it is taken back after it was applied.
    stage.on(&session, "TRUNCATE big");
    stage.written += 1;
    stage.wait("SELECT count(*) = 0 FROM big", &mut running);
    stage.large(1, &mut running);
    stage.on(&session, "BEGIN");
    stage.on(&session, &rows(5_000_001));
    stage.on(&session, "SAVEPOINT s");
    stage.on(&session, &rows(6_000_001));
    stage.on(&session, "ROLLBACK TO s; UPDATE small SET n = -1 WHERE id = 10");
    stage.commit(&session, ROWS + 1);
    stage.wait("SELECT n = -1 FROM small WHERE id = 10", &mut running);
    stage.expect_all(running);
}

/// Where green has what blue has not, a row that a large transaction has locked there may keep another waiting.
#[test]
fn what_stands_in_the_way_of_the_stream_is_given_up() {
    let mut stage = Stage::set();
    stage
        .pair
        .on_green(
            "CREATE SCHEMA own; CREATE TABLE own.counter AS SELECT 0 AS n;
             CREATE FUNCTION own.count() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN UPDATE own.counter SET n = n + 1; RETURN NULL; END $$;
             CREATE TRIGGER count AFTER UPDATE ON small FOR EACH ROW EXECUTE FUNCTION own.count();
             ALTER TABLE small ENABLE ALWAYS TRIGGER count",
        )
        .expect("green takes it");
    let mut running = stage.run();
    let session = stage.session();
    stage.on(&session, "BEGIN; UPDATE small SET n = 7 WHERE id = 1");
    stage.on(&session, &rows(1));
    stage.wait(AHEAD, &mut running);
    stage
        .pair
        .on_blue("UPDATE small SET n = 8 WHERE id = 2")
        .expect("blue takes it");
    let arrived = "SELECT n = 8 FROM small WHERE id = 2";
    let rows = ROWS + stage.go_on(&session, ROWS + 1, arrived, &mut running);
    stage.commit(&session, rows + 2);
    stage.wait(&format!("SELECT count(*) = {rows} FROM big"), &mut running);
    stage.wait("SELECT n = 2 FROM own.counter", &mut running);
    stage
        .pair
        .on_green("DROP SCHEMA own CASCADE")
        .expect("green takes it");
    stage.expect_all(running);
}

/// A source that has sent half of something and then nothing more must not hold a snapshot and locks on green for ever.
#[test]
fn a_transaction_that_rests_is_given_up_and_arrives_all_the_same() {
    let mut stage = Stage::set();
    let mut running = stage.run();
    let session = stage.large(1, &mut running);
    stage.wait(CLOSED, &mut running);
    stage.small(1, &mut running);
    stage.commit(&session, ROWS);
    stage.wait("SELECT count(*) = 120000 FROM big", &mut running);
    // The way is free again.
    let session = stage.session();
    stage.on(&session, "BEGIN; DELETE FROM big");
    stage.on(&session, &rows(1));
    stage.commit(&session, 2 * ROWS);
    stage.small(2, &mut running);
    // While the job is compared, nothing of ours is in the way.
    stage.on(&session, "TRUNCATE big");
    stage.written += 1;
    stage.wait("SELECT count(*) = 0 FROM big", &mut running);
    let session = stage.large(1, &mut running);
    let mut verify = stage.pair.spawn(&["verify"]).expect("verify starts");
    let rows = ROWS + stage.go_on(&session, ROWS + 1, UNLOCKED, &mut running);
    stage.commit(&session, rows);
    let verified = verify.wait_timeout(LIMIT).expect("verify ends");
    assert_eq!(verified.code(), Some(0), "{}", verified.stderr);
    stage.wait(&format!("SELECT count(*) = {rows} FROM big"), &mut running);
    stage.expect_all(running);
}

/// A conflict is met when the transaction commits, and told as ever.
#[test]
fn a_conflict_within_it_stops_at_its_commit() {
    let mut stage = Stage::set();
    stage
        .pair
        .on_green("INSERT INTO big VALUES (60000, 'of green')")
        .expect("green takes it");
    let mut running = stage.run();
    let session = stage.session();
    stage.on(&session, "BEGIN");
    stage.on(&session, &rows(1));
    stage.small(1, &mut running);
    stage.wait(CLOSED, &mut running);
    stage.commit(&session, ROWS);
    let ended = running.wait_timeout(LIMIT).expect("it stops");
    assert_eq!(ended.code(), Some(8), "{}", ended.stderr);
    assert!(ended.stderr.contains("public.big"), "{}", ended.stderr);
    stage
        .pair
        .on_green("DELETE FROM big WHERE id = 60000")
        .expect("green takes it");
    stage.expect_rest();
}

#[test]
fn a_death_or_an_error_while_it_is_applied_loses_nothing_and_repeats_nothing() {
    let mut stage = Stage::set();
    let mut from = 1;
    for point in ["ahead.applied", "ahead.before-commit", "ahead.committed"] {
        for action in ["kill", "error"] {
            if (point, action) == ("ahead.committed", "error") {
                continue;
            }
            let mut command = stage.pair.command(&["run"]).expect("a command");
            let armed = process::cdc_sync_with_failpoints().expect("the binary with failpoints");
            let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            command = armed;
            command.args(arguments);
            command.env("CDC_SYNC_FAILPOINTS", format!("{point}={action}"));
            let mut running = Process::spawn(command).expect("run starts");
            running
                .wait_for("stream started", LIMIT)
                .expect("the stream starts");
            let session = stage.session();
            stage.on(&session, "BEGIN");
            stage.on(&session, &rows(from));
            stage.commit(&session, ROWS);
            if action == "kill" {
                let ended = running.wait_timeout(LIMIT).expect("it dies");
                assert_eq!(ended.code(), None, "{point}: {}", ended.stderr);
                stage.expect_rest();
            } else {
                let arrived = format!("SELECT count(*) = {ROWS} FROM big WHERE id >= {from}");
                stage.wait(&arrived, &mut running);
                stage.expect_all(running);
            }
            from += ROWS;
        }
    }
}
