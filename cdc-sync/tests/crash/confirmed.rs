//! What blue is told to forget is on green for good, at every moment.

use std::time::{Duration, Instant};

use testbed::pair::LIMIT;
use testbed::workload::{Config, Fill, Workload, prepare};
use testbed::{Pair, PgCluster, Process};

const CONFIRMED: &str = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE NOT temporary";
const COMMITTED: &str = "SELECT position FROM cdc_sync.checkpoint";
/// Samples between two kills.
const SAMPLES: u32 = 40;

#[test]
fn nothing_is_confirmed_that_green_does_not_hold() {
    let pair = Pair::start(13, 17).expect("two servers");
    let fill = Fill {
        orders: 200,
        pgbench_scale: None,
    };
    prepare(&pair.urls()[0], fill).expect("blue is filled");
    pair.verb(&["run", "--until-caught-up"], 0).expect("run");
    let config = Config {
        seed: 5,
        threads: 2,
        rate: 300.0,
        ..Config::default()
    };
    let load = Workload::start(&pair.urls()[0], &config).expect("the workload starts");
    let first = pair.on_blue(CONFIRMED).expect("blue answers");
    for round in 0..4 {
        let mut running = pair.spawn(&["run"]).expect("run starts");
        running
            .wait_for("stream started", LIMIT)
            .expect("the stream starts");
        for _ in 0..SAMPLES {
            // In this order: the checkpoint can only have moved on since.
            let confirmed = pair.on_blue(CONFIRMED).expect("blue answers");
            let held = format!("SELECT position, position::pg_lsn >= '{confirmed}' FROM cdc_sync.checkpoint");
            let held = pair.on_green(&held).expect("green answers");
            assert!(
                held.ends_with("|t"),
                "round {round}: {confirmed} is confirmed, green holds {held}"
            );
        }
        running.kill9().expect("the process dies");
    }
    let moved = format!("SELECT ({CONFIRMED}) > '{first}'");
    assert_eq!(
        pair.on_blue(&moved).expect("blue answers"),
        "t",
        "nothing was confirmed at all"
    );
    drop(load);
}

/// A pair in step, with a busy blue, and the stream between them.
fn followed(blue: u16, green: &[(&str, &str)]) -> (Pair, Workload, Process) {
    let start = |builder: testbed::postgres::Builder| {
        let cluster = builder.start().expect("a server");
        cluster.create_database(Pair::DATABASE).expect("a database");
        cluster
    };
    let builder = green
        .iter()
        .fold(PgCluster::builder(18), |builder, (name, value)| {
            builder.setting(name, value)
        });
    let pair = Pair::of(start(PgCluster::builder(blue)), start(builder));
    let fill = Fill {
        orders: 200,
        pgbench_scale: None,
    };
    prepare(&pair.urls()[0], fill).expect("blue is filled");
    pair.verb(&["run", "--until-caught-up"], 0).expect("run");
    let config = Config {
        seed: 9,
        threads: 2,
        rate: 300.0,
        ..Config::default()
    };
    let load = Workload::start(&pair.urls()[0], &config).expect("the workload starts");
    let running = pair.spawn(&["run"]).expect("run starts");
    (pair, load, running)
}

/// Ends the stream and compares.
fn expect_whole(pair: &Pair, load: Workload, mut running: Process) {
    let written = load.stop().expect("the workload ends");
    running.sigterm().expect("the signal arrives");
    let ended = running.wait_timeout(LIMIT).expect("run ends");
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let run = pair.verb(&["run", "--until-caught-up"], 0).expect("run");
    super::assert_accounted(&run, written.changes());
    pair.assert_equal().expect("both compare");
}

fn until(running: &mut Process, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(running.is_running(), "{what}: it has ended\n{}", running.stderr());
        assert!(Instant::now() < deadline, "{what}\n{}", running.stderr());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Of two positions, whether the first is before the second.
fn is_before(pair: &Pair, one: &str, other: &str) -> bool {
    let compare = format!("SELECT '{one}'::pg_lsn < '{other}'::pg_lsn");
    pair.on_blue(&compare).expect("blue answers") == "t"
}

/// While green's standby is away, what was committed without waiting is there to be read, and blue keeps it.
#[test]
fn what_no_standby_has_is_not_confirmed() {
    let (pair, load, mut running) = followed(14, &[]);
    let first = pair.on_green(COMMITTED).expect("green answers");
    until(&mut running, "nothing is applied", || {
        is_before(&pair, &first, &pair.on_green(COMMITTED).expect("green answers"))
    });
    let (mut ahead, mut held) = (false, String::new());
    // The commit that is held may be that right after another durable one.
    for _ in 0..5 {
        pair.green.hold_durable_commits().expect("commits wait");
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'";
        until(&mut running, "the stream does not wait for a standby", || {
            pair.on_green(waits).expect("green answers") == "1"
        });
        held = pair.on_green(COMMITTED).expect("green answers");
        // Two more answers to blue: what was to be confirmed before is in the first.
        for _ in 0..2 {
            let answered = "SELECT max(reply_time) FROM pg_stat_replication";
            let last = pair.on_blue(answered).expect("blue answers");
            until(&mut running, "blue hears nothing", || {
                pair.on_blue(answered).expect("blue answers") != last
            });
        }
        let confirmed = pair.on_blue(CONFIRMED).expect("blue answers");
        assert_eq!(pair.on_green(COMMITTED).expect("green answers"), held);
        ahead = is_before(&pair, &confirmed, &held);
        pair.green.release_durable_commits().expect("commits go on");
        if ahead {
            break;
        }
    }
    assert!(ahead, "what was committed was confirmed while it waited");
    until(&mut running, "nothing more is confirmed", || {
        let confirmed = pair.on_blue(CONFIRMED).expect("blue answers");
        !is_before(&pair, &confirmed, &held)
    });
    expect_whole(&pair, load, running);
}

/// Green crashes with what it has committed in the last moment still in memory: blue has it, and sends it again.
#[test]
fn what_green_loses_in_a_crash_comes_again() {
    let (mut pair, load, mut running) = followed(12, &[("autovacuum", "off")]);
    let mut lost = 0;
    for round in 0..20 {
        pair.green.freeze_wal_writer().expect("the log stays in memory");
        let first = pair.on_green(COMMITTED).expect("green answers");
        until(&mut running, "nothing is applied", || {
            is_before(&pair, &first, &pair.on_green(COMMITTED).expect("green answers"))
        });
        running.suspend().expect("the signal arrives");
        let seen = pair.on_green(COMMITTED).expect("green answers");
        pair.green.crash().expect("green crashes");
        pair.green.start_again().expect("green starts");
        let left = pair.on_green(COMMITTED).expect("green answers");
        let confirmed = pair.on_blue(CONFIRMED).expect("blue answers");
        assert!(
            !is_before(&pair, &left, &confirmed),
            "round {round}: {confirmed} is confirmed, green has {left} of {seen}"
        );
        running.resume().expect("the signal arrives");
        lost += u32::from(is_before(&pair, &left, &seen));
        if lost == 3 {
            break;
        }
    }
    assert_eq!(lost, 3, "green lost nothing");
    expect_whole(&pair, load, running);
}
