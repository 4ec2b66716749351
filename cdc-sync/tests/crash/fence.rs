//! A killed client's last statement runs on at the server. Its successor must wait for it: until it has ended,
//! the checkpoint does not tell what is on the target.

use std::time::{Duration, Instant};

use testbed::pair::LIMIT;
use testbed::postgres::Builder;
use testbed::{Pair, PgCluster, Process};

use super::Moments;

const SEED: u64 = 7;

/// A table without any key: a change that is applied twice shows, instead of meeting a constraint.
const TABLE: &str = "CREATE TABLE ledger (n integer); ALTER TABLE ledger REPLICA IDENTITY FULL";
/// Each COMMIT on green takes a while, however many rows it has, so that it is still running when its client is gone;
/// nothing can take a COMMIT back.
const SLOW: &str = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN \
    IF current_setting('test.slept', true) IS DISTINCT FROM 'yes' THEN \
    PERFORM pg_catalog.pg_sleep(1), set_config('test.slept', 'yes', true); END IF; RETURN NULL; END$$; \
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED \
    FOR EACH ROW EXECUTE FUNCTION slow(); \
    ALTER TABLE ledger ENABLE ALWAYS TRIGGER slow";

/// Kills and restarts over running statements; returns the rows of blue and green at the end.
fn restarts(pair: &Pair, times: usize) -> (i64, i64) {
    let mut moments = Moments(SEED);
    let mut running = pair.spawn(&["run"]).expect("run starts");
    for n in 0..times {
        pair.on_blue(&format!(
            "INSERT INTO ledger SELECT {n} FROM generate_series(1, 3)"
        ))
        .expect("blue writes");
        wait_for_statement(pair, &mut running);
        std::thread::sleep(moments.between(Duration::ZERO, Duration::from_millis(900)));
        running.kill9().expect("the process dies");
        running = pair.spawn(&["run"]).expect("run starts again");
    }
    running
        .wait_for("stream started", LIMIT)
        .expect("the stream starts");
    running.sigterm().expect("the signal arrives");
    running.wait_timeout(LIMIT).expect("run ends after SIGTERM");
    pair.verb(&["run", "--until-caught-up"], 0).expect("run");
    let sql = "SELECT count(*) FROM ledger";
    let [written, applied] = [pair.on_blue(sql), pair.on_green(sql)]
        .map(|count| count.expect("it answers").trim().parse().expect("a number"));
    (written, applied)
}

/// Waits until green executes a COMMIT of ours.
fn wait_for_statement(pair: &Pair, running: &mut Process) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let deadline = Instant::now() + LIMIT;
    while pair.on_green(sql).expect("green answers").trim() == "0" {
        assert!(running.is_running(), "{}", running.stderr());
        assert!(
            Instant::now() < deadline,
            "no statement within {LIMIT:?}:\n{}",
            running.stderr()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn prepared(pair: Pair) -> Pair {
    pair.on_blue(TABLE).expect("blue has the table");
    pair.verb(&["run", "--until-caught-up"], 0).expect("run");
    pair.on_green(SLOW).expect("green is slow");
    pair
}

#[test]
fn restarts_over_a_running_statement_neither_lose_nor_repeat() {
    let pair = prepared(Pair::start(12, 18).expect("two servers"));
    let times = if testbed::runs_long_tier() { 100 } else { 15 };
    let (written, applied) = restarts(&pair, times);
    assert_eq!(written, 3 * times as i64);
    assert_eq!(applied, written);
}

/// The test above would notice a missing fence: with its lock and its checks taken out of the database, the same
/// restarts repeat rows.
#[test]
fn without_the_fence_rows_are_repeated() {
    // A replication origin would have the successor end the session of the killed one, with its last statement.
    let start = |builder: &Builder| {
        let cluster = builder.start().expect("a server");
        cluster.create_database(Pair::DATABASE).expect("a database");
        cluster
    };
    let pair = prepared(Pair::of(
        start(&PgCluster::builder(12)),
        start(&PgCluster::builder(18).setting("max_active_replication_origins", "0")),
    ));
    pair.on_green(DISARM).expect("the fence is taken out");
    pair.on_green(SLOWER).expect("green is slower");
    let counts = || {
        let sql = "SELECT count(*) FROM ledger";
        [pair.on_blue(sql), pair.on_green(sql)].map(|count| {
            count
                .expect("it answers")
                .trim()
                .parse::<i64>()
                .expect("a number")
        })
    };
    let deadline = Instant::now() + LIMIT;
    // Only a process that reads the checkpoint before the COMMIT of the killed one has ended repeats it.
    loop {
        let mut running = pair.spawn(&["run"]).expect("run starts");
        pair.on_blue("INSERT INTO ledger VALUES (1)")
            .expect("blue writes");
        wait_for_statement(&pair, &mut running);
        running.kill9().expect("the process dies");
        let mut next = pair
            .spawn(&["run", "--until-caught-up"])
            .expect("run starts again");
        // How it ends does not matter: with two at work the checkpoint may go back, which the next start refuses.
        next.wait_timeout(LIMIT).expect("run ends");
        let [written, applied] = counts();
        if applied > written {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "no row was repeated within {LIMIT:?}: the fence is not what protects them"
        );
    }
}

/// A COMMIT takes longer than a process needs to start.
const SLOWER: &str = "CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
    'BEGIN PERFORM pg_catalog.pg_sleep(2); RETURN NULL; END'";

/// Replaces what guards a target transaction: no lock, no check of the epoch or of the checkpoint that is followed.
const DISARM: &str = "
CREATE OR REPLACE FUNCTION cdc_sync.hold_fence(of_stream text, own_epoch bigint) RETURNS void LANGUAGE sql AS '';
CREATE OR REPLACE FUNCTION cdc_sync.store_checkpoint(
    of_stream text, its_system text, its_database text, its_timeline text, its_slot text, new_position text,
    new_commit_time bigint, new_groups bigint, new_transactions bigint, n_read bigint, n_applied bigint,
    n_coalesced bigint, n_looped bigint, n_filtered bigint, n_superseded bigint, n_dead_lettered bigint,
    n_internal bigint) RETURNS void LANGUAGE sql AS $$
    DELETE FROM cdc_sync.checkpoint c WHERE c.stream = of_stream;
    INSERT INTO cdc_sync.checkpoint VALUES (of_stream, new_groups, its_system, its_database, its_timeline, its_slot,
        new_position, new_commit_time, new_transactions, n_read, n_applied, n_coalesced, n_looped, n_filtered,
        n_superseded, n_dead_lettered, n_internal) ON CONFLICT DO NOTHING;
$$";
