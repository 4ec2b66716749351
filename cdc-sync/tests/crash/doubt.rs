//! Connections that break at the worst moment while the process lives on: amid a COMMIT, amid the seed.

use std::time::{Duration, Instant};

use testbed::pair::LIMIT;
use testbed::{Gate, Pair, Process, Proxy};

/// Waits until `condition` holds; the process under test must run on meanwhile.
fn wait_until(running: &mut Process, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(running.is_running(), "{what}: it has ended\n{}", running.stderr());
        assert!(Instant::now() < deadline, "{what}\n{}", running.stderr());
        std::thread::sleep(Duration::from_millis(60));
    }
}

/// The COMMIT runs on at the server while its client connects anew. Until it has ended, the checkpoint does not tell
/// of it: with a key the rows would meet themselves, without one the checkpoint's successor would.
#[test]
fn a_commit_that_outlives_its_connection_is_waited_for() {
    for (table, schema) in [
        ("keyed", "CREATE TABLE keyed (n integer PRIMARY KEY)"),
        (
            "keyless",
            "CREATE TABLE keyless (n integer); ALTER TABLE keyless REPLICA IDENTITY FULL",
        ),
    ] {
        let pair = Pair::start(14, 18).expect("two servers");
        pair.on_blue(schema).expect("blue has the table");
        pair.verb(&["run", "--until-caught-up"], 0).expect("run");
        pair.on_green(&Gate::at_commit(table)).expect("green has a gate");
        let proxy = Proxy::start(pair.green.port()).expect("a proxy");
        let target = pair.green.url_at(proxy.port(), Pair::DATABASE);
        let mut running = pair.spawn_to(&target, &["run"]).expect("run starts");
        running
            .wait_for("stream started", LIMIT)
            .expect("the stream starts");
        for n in 0..3 {
            let gate = Gate::shut(&pair.green, Pair::DATABASE).expect("the gate is shut");
            pair.on_blue(&format!("INSERT INTO {table} VALUES ({n})"))
                .expect("blue writes");
            wait_until(&mut running, "no COMMIT comes to the gate", || {
                Gate::waiting(&pair.green, Pair::DATABASE).expect("green answers") == 1
            });
            proxy.cut_all();
            // The new session has come to where it reads the checkpoint.
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%FOR NO KEY UPDATE' \
                         AND wait_event_type = 'Lock'";
            wait_until(&mut running, "nobody waits for the COMMIT", || {
                pair.on_green(waits).expect("green answers") == "1"
            });
            gate.open();
            let count = format!("SELECT count(*) FROM {table} WHERE n = {n}");
            wait_until(&mut running, "the row does not arrive", || {
                pair.on_green(&count).expect("green answers") == "1"
            });
        }
        running.sigterm().expect("the signal arrives");
        let ended = running.wait_timeout(LIMIT).expect("run ends after SIGTERM");
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
        pair.verb(&["run", "--until-caught-up"], 0).expect("run");
        let rows = pair.on_green(&format!("SELECT count(*), count(DISTINCT n) FROM {table}"));
        assert_eq!(rows.expect("green answers"), "3|3");
    }
}

/// The session that holds the snapshot is ended while the first of two tables is being copied.
#[test]
fn a_seed_that_loses_its_snapshot_takes_another() {
    let pair = Pair::start(12, 18).expect("two servers");
    let schema = "CREATE TABLE first (n integer PRIMARY KEY); CREATE TABLE second (n integer PRIMARY KEY);";
    pair.on_blue(schema).expect("blue has tables");
    pair.on_blue(
        "INSERT INTO first SELECT generate_series(1, 1000); INSERT INTO second SELECT generate_series(1, 100)",
    )
    .expect("blue has rows");
    let gates = format!("{}{}", Gate::at_commit("first"), Gate::at_commit("second"));
    pair.on_green(&format!("{schema}{gates}"))
        .expect("green has gates");
    let gate = Gate::shut(&pair.green, Pair::DATABASE).expect("the gate is shut");
    let mut running = pair
        .spawn(&["run", "--until-caught-up", "--parallel", "1"])
        .expect("run starts");
    wait_until(&mut running, "no COMMIT comes to the gate", || {
        Gate::waiting(&pair.green, Pair::DATABASE).expect("green answers") == 1
    });
    pair.on_blue("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'")
        .expect("blue answers");
    wait_until(&mut running, "the walsender does not end", || {
        let walsenders = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
        pair.on_blue(walsenders).expect("blue answers") == "0"
    });
    gate.open();
    let ended = running.wait_timeout(LIMIT).expect("run ends");
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("from a new snapshot"), "{}", ended.stderr);
    pair.assert_equal().expect("both compare");
}
