//! Repairs beside a running job while blue is written: nothing that the stream brings is overwritten by an older row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use testbed::pair::LIMIT;
use testbed::{Pair, Process};

use super::{Session, counts, plant, wait_for_green};

const SCHEMA: &str = "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
    INSERT INTO account SELECT i, 0 FROM generate_series(1, 4000) i;
    CREATE TABLE log (n bigint, note text); ALTER TABLE log REPLICA IDENTITY FULL";

/// Rows to 3000 are written here and there. Those above are left alone: a row that is changed on blue and lacking on green
/// would be a conflict.
fn load(pair: &Pair) -> (Arc<AtomicBool>, std::thread::JoinHandle<u64>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, blue) = (Arc::clone(&stop), pair.blue.url(Pair::DATABASE));
    let writer = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&blue, tokio_postgres::NoTls)
                .await
                .unwrap();
            tokio::spawn(connection);
            let mut written = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                let id = written * 7 % 3000 + 1;
                let script = format!(
                    "BEGIN; UPDATE account SET balance = balance + 1 WHERE id = {id}; \
                     DELETE FROM account WHERE id = {}; INSERT INTO account VALUES ({0}, {written}); \
                     INSERT INTO log VALUES ({written}, 'n'); COMMIT",
                    (id + 1500) % 3000 + 1
                );
                client.batch_execute(&script).await.unwrap();
                written += 1;
            }
            written
        })
    });
    (stop, writer)
}

fn started(pair: &Pair) -> Process {
    let mut running = pair.spawn(&["run"]).unwrap();
    let deadline = Instant::now() + LIMIT;
    while pair
        .on_green("SELECT NOT schema_pending FROM cdc_sync.stream")
        .ok()
        .as_deref()
        != Some("t")
    {
        assert!(running.is_running(), "{}", running.stderr());
        assert!(Instant::now() < deadline, "no seed\n{}", running.stderr());
        std::thread::sleep(Duration::from_millis(50));
    }
    running
}

#[test]
fn what_the_stream_brings_meanwhile_is_kept() {
    let pair = Pair::start(12, 18).unwrap();
    pair.on_blue(SCHEMA).unwrap();
    let mut running = started(&pair);
    mended_by_the_stream_between_survey_and_writing(&pair);

    let (stop, writer) = load(&pair);
    for round in 0..3 {
        plant(
            &pair,
            &format!(
                "UPDATE account SET balance = -1 WHERE id % 2 = {0}; DELETE FROM account WHERE id % 5 = {0} AND id BETWEEN 3001 AND 4000; \
                 INSERT INTO account SELECT 100000 + i, {0} FROM generate_series(1, 200) i; \
                 INSERT INTO log SELECT -i, 'planted' FROM generate_series(1, 50) i",
                round % 2
            ),
        );
        let repaired = pair.verb(&["repair"], 0).unwrap();
        assert_eq!(repaired["alignment"], "running", "{repaired}");
        assert_eq!(counts(&repaired, "public.log")[2], 50, "{repaired:#}");
        assert_eq!(counts(&repaired, "public.account")[2], 200, "{repaired:#}");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(writer.join().unwrap() > 20);
    running.sigterm().unwrap();
    let ended = running.wait_timeout(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let caught_up = pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    let changes = &caught_up["changes"];
    let count = |kind: &str| changes[kind].as_u64().unwrap();
    let accounted = ["applied", "loop", "filtered", "superseded", "dead_lettered"];
    assert_eq!(
        count("read"),
        accounted.iter().map(|kind| count(kind)).sum::<u64>(),
        "{changes}"
    );
    pair.assert_equal().unwrap();
}

/// The repair has found its rows and waits, kept from its replication origin, while the stream brings some of these rows
/// anew. What was found must not be written then: the rows are as blue has them, or newer than what was found.
fn mended_by_the_stream_between_survey_and_writing(pair: &Pair) {
    plant(
        pair,
        "UPDATE account SET balance = -1 WHERE id <= 1000; DELETE FROM account WHERE id BETWEEN 1001 AND 1100",
    );
    let name = "'cdc_sync_' || d.oid || '+repair/' || c.source_system || '/' || c.stream || '/' || c.source_database";
    let of_job = "FROM cdc_sync.checkpoint c JOIN pg_database d ON d.datname = current_database()";
    let held = Session::on_green(
        pair,
        &format!(
            "SELECT pg_replication_origin_create({name}) {of_job}; \
             SELECT pg_replication_origin_session_setup({name}) {of_job}"
        ),
    );
    let mut repair = pair.spawn(&["repair"]).unwrap();
    wait_for_green(
        pair,
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
         AND pid <> pg_backend_pid() AND application_name LIKE 'cdc-sync%' AND query LIKE '%origin_session_setup%|| ''+repair''%')",
    );
    pair.on_blue(
        "UPDATE account SET balance = balance + 10 WHERE id BETWEEN 1 AND 300; \
         DELETE FROM account WHERE id BETWEEN 301 AND 400; \
         UPDATE account SET balance = 20 WHERE id BETWEEN 2000 AND 2100",
    )
    .unwrap();
    wait_for_green(
        pair,
        "SELECT count(*) = 300 AND bool_and(balance = 10) FROM account WHERE id BETWEEN 1 AND 400",
    );
    wait_for_green(
        pair,
        "SELECT bool_and(balance = 20) FROM account WHERE id BETWEEN 2000 AND 2100",
    );
    held.end("SELECT pg_replication_origin_session_reset()");
    let ended = repair.wait_timeout(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(0), "{}\n{}", ended.stdout, ended.stderr);
    let report = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(counts(&report, "public.account"), [100, 600, 0, 0]);
    pair.assert_equal().unwrap();
}
