//! Whose a slot is, and what becomes of a job whose slot is gone.

use std::process::Command;

use testbed::pair::LIMIT;
use testbed::provision::postgres_tools;
use testbed::{Pair, Process, process};

use super::{Hold, end, error, until_caught_up, wait};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";
const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots WHERE NOT temporary";

/// A run of job `shop` into another database of green.
fn shop(pair: &Pair, database: &str) -> Command {
    let mut command = process::cdc_sync().expect("the binary");
    command
        .args(["run", "--until-caught-up", "--yes", "--json", "--job", "shop"])
        .args(["--source", &pair.urls()[0]])
        .args(["--target", &pair.green.url(database)]);
    command
        .arg("--pg-bin")
        .arg(postgres_tools().expect("the tools").bin);
    command
}

#[test]
fn a_first_run_leaves_the_slot_of_another_targets_job_alone() {
    let pair = Pair::start(14, 18).expect("two servers");
    pair.on_blue(TABLE).expect("blue has a table");
    let first = Process::run(shop(&pair, Pair::DATABASE), LIMIT).expect("run");
    assert_eq!(first.code(), Some(0), "{}", first.stderr);
    pair.green.create_database("other").expect("green has another");
    pair.on_blue("INSERT INTO t VALUES (1, 'not to be lost')")
        .expect("blue writes");
    for _ in 0..2 {
        let refused = Process::run(shop(&pair, "other"), LIMIT).expect("run");
        assert_eq!(refused.code(), Some(3), "{}\n{}", refused.stdout, refused.stderr);
        let report: serde_json::Value = serde_json::from_str(&refused.stdout).expect("JSON");
        assert_eq!(
            report["error"]["object"], "replication slot cdc_sync_shop",
            "{report}"
        );
        assert!(error(&report).contains("--job"), "{report}");
    }
    // Nothing was made on a target that the job cannot have.
    let made = pair.green.sql("other", "SELECT to_regclass('public.t') IS NULL");
    assert_eq!(made.expect("green answers"), "t");
    let again = Process::run(shop(&pair, Pair::DATABASE), LIMIT).expect("run");
    assert_eq!(again.code(), Some(0), "{}", again.stderr);
    assert_eq!(
        pair.on_green("SELECT v FROM t").expect("green answers"),
        "not to be lost"
    );
}

#[test]
fn a_slot_left_between_its_creation_and_the_first_checkpoint_is_replaced() {
    let pair = Pair::start(12, 18).expect("two servers");
    pair.on_blue(TABLE).expect("blue has a table");
    pair.on_blue("INSERT INTO t VALUES (1, 'a')")
        .expect("blue writes");
    // Refused for its rows, after the state was prepared.
    pair.on_green(&format!("{TABLE}; INSERT INTO t VALUES (0, '')"))
        .expect("green has a table");
    pair.verb(&["run"], 3).expect("run");
    pair.on_green("TRUNCATE t").expect("green empties it");
    let hold = Hold::rows(&pair, "cdc_sync.checkpoint");
    let mut running = pair.spawn(&["run"]).expect("run starts");
    hold.wait(&mut running);
    assert_eq!(pair.on_blue(SLOTS).expect("blue answers"), "1");
    running.kill9().expect("the process dies");
    hold.remove();
    until_caught_up(&pair);
    pair.assert_equal().expect("both compare");
    let intents = "SELECT count(*) FROM cdc_sync.slot_intent";
    assert_eq!(pair.on_green(intents).expect("green answers"), "0");
}

#[test]
fn a_slot_dropped_in_mid_seed_is_a_lost_position_at_once() {
    let pair = Pair::start(13, 18).expect("two servers");
    pair.on_blue(TABLE).expect("blue has a table");
    pair.on_blue("INSERT INTO t VALUES (1, 'a')")
        .expect("blue writes");
    pair.on_green(TABLE).expect("green has a table");
    let hold = Hold::rows(&pair, "t");
    let mut running = pair.spawn(&["run"]).expect("run starts");
    hold.wait(&mut running);
    pair.on_blue("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT temporary")
        .expect("the slot goes");
    // While its rows are still held: it does not wait for the copy.
    let report = end(&mut running, 9);
    assert!(error(&report).contains("slot cdc_sync_"), "{report}");
    assert!(error(&report).contains("cdc-sync cleanup"), "{report}");
    assert!(hold.holds(), "the copy was still under way");
}

#[test]
fn a_slot_that_the_server_gave_up_is_a_lost_position() {
    let pair = Pair::start(14, 18).expect("two servers");
    pair.on_blue(TABLE).expect("blue has a table");
    pair.on_blue("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        .expect("blue keeps little");
    pair.on_blue("SELECT pg_reload_conf()").expect("blue reads it");
    let mut running = pair.spawn(&["run"]).expect("run starts");
    running
        .wait_for("stream started", LIMIT)
        .expect("the stream starts");
    // Nobody reads the slot while its log is cut.
    running.suspend().expect("it stands still");
    pair.on_blue("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
        .expect("its walsender goes");
    let status = "SELECT wal_status FROM pg_replication_slots";
    wait("the slot to be given up", &mut running, || {
        pair.on_blue(
            "INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t; SELECT pg_switch_wal(); CHECKPOINT",
        )
        .expect("blue writes");
        pair.on_blue(status).expect("blue answers") == "lost"
    });
    running.kill9().expect("the process dies");
    let report = pair.verb(&["run", "--until-caught-up"], 9).expect("run");
    assert!(error(&report).contains("slot cdc_sync_"), "{report}");
    assert!(error(&report).contains("--truncate-target"), "{report}");
}
