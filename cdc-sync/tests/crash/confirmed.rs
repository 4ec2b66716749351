//! What blue is told to forget is on green for good, at every moment.

use testbed::Pair;
use testbed::pair::LIMIT;
use testbed::workload::{Config, Fill, Workload, prepare};

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
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE NOT temporary";
    let first = pair.on_blue(confirmed).expect("blue answers");
    for round in 0..4 {
        let mut running = pair.spawn(&["run"]).expect("run starts");
        running
            .wait_for("stream started", LIMIT)
            .expect("the stream starts");
        for _ in 0..SAMPLES {
            // In this order: the checkpoint can only have moved on since.
            let confirmed = pair.on_blue(confirmed).expect("blue answers");
            let held = format!("SELECT position, position::pg_lsn >= '{confirmed}' FROM cdc_sync.checkpoint");
            let held = pair.on_green(&held).expect("green answers");
            assert!(
                held.ends_with("|t"),
                "round {round}: {confirmed} is confirmed, green holds {held}"
            );
        }
        running.kill9().expect("the process dies");
    }
    let moved = format!("SELECT ({confirmed}) > '{first}'");
    assert_eq!(
        pair.on_blue(&moved).expect("blue answers"),
        "t",
        "nothing was confirmed at all"
    );
    drop(load);
}
