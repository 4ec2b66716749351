//! A killed client's last statement runs on at the server. Its successor must wait for it: until it has ended,
//! the checkpoint does not tell what is on the target.

use std::time::{Duration, Instant};

use testbed::{PgCluster, Process};

use super::{DATABASE, LIMIT, Moments, cdc_sync, pair, verb};

const SEED: u64 = 7;

/// A table without any key: a change that is applied twice shows, instead of meeting a constraint.
const TABLE: &str = "CREATE TABLE ledger (n integer); ALTER TABLE ledger REPLICA IDENTITY FULL";
/// Each COMMIT on green takes a while, so that it is still running when its client is gone; nothing can take a
/// COMMIT back.
const SLOW: &str = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
    'BEGIN PERFORM pg_catalog.pg_sleep(0.4); RETURN NULL; END'; \
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED \
    FOR EACH ROW EXECUTE FUNCTION slow(); \
    ALTER TABLE ledger ENABLE ALWAYS TRIGGER slow";

/// Kills and restarts over running statements; returns the rows of blue and green at the end.
fn restarts(blue: &PgCluster, green: &PgCluster, times: usize) -> (i64, i64) {
    let mut moments = Moments(SEED);
    let mut running = Process::spawn(cdc_sync(blue, green, &["run"])).expect("run starts");
    for n in 0..times {
        blue.sql(
            DATABASE,
            &format!("INSERT INTO ledger SELECT {n} FROM generate_series(1, 3)"),
        )
        .expect("blue writes");
        wait_for_statement(green, &mut running);
        std::thread::sleep(moments.between(Duration::ZERO, Duration::from_millis(900)));
        running.kill9().expect("the process dies");
        running = Process::spawn(cdc_sync(blue, green, &["run"])).expect("run starts again");
    }
    running
        .wait_for("stream started", LIMIT)
        .expect("the stream starts");
    running.sigterm().expect("the signal arrives");
    running.wait_timeout(LIMIT).expect("run ends after SIGTERM");
    verb(blue, green, &["run", "--until-caught-up"], 0);
    let count = |cluster: &PgCluster| -> i64 {
        cluster
            .sql(DATABASE, "SELECT count(*) FROM ledger")
            .expect("it answers")
            .trim()
            .parse()
            .expect("a number")
    };
    (count(blue), count(green))
}

/// Waits until green executes a COMMIT of ours.
fn wait_for_statement(green: &PgCluster, running: &mut Process) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let deadline = Instant::now() + LIMIT;
    while green.sql(DATABASE, sql).expect("green answers").trim() == "0" {
        assert!(running.is_running(), "{}", running.stderr());
        assert!(
            Instant::now() < deadline,
            "no statement within {LIMIT:?}:\n{}",
            running.stderr()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn prepared() -> (PgCluster, PgCluster) {
    let (blue, green) = pair(12, 18);
    blue.sql(DATABASE, TABLE).expect("blue has the table");
    verb(&blue, &green, &["run", "--until-caught-up"], 0);
    green.sql(DATABASE, SLOW).expect("green is slow");
    (blue, green)
}

#[test]
fn restarts_over_a_running_statement_neither_lose_nor_repeat() {
    let (blue, green) = prepared();
    let times = if testbed::runs_long_tier() { 100 } else { 15 };
    let (written, applied) = restarts(&blue, &green, times);
    assert_eq!(written, 3 * times as i64);
    assert_eq!(applied, written);
}

/// The test above would notice a missing fence: with its lock and its checks taken out of the database, the same
/// restarts repeat rows.
#[test]
fn without_the_fence_rows_are_repeated() {
    let (blue, green) = prepared();
    green.sql(DATABASE, DISARM).expect("the fence is taken out");
    let (written, applied) = restarts(&blue, &green, 8);
    assert!(
        applied > written,
        "{applied} rows on green for {written} written: the fence is not what protects them"
    );
}

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
