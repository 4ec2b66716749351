//! Other pairs of versions, one pass each: seed under load, follow, drain, equal.

use std::time::Duration;

use testbed::Pair;
use testbed::workload::{Config, Fill, Workload, prepare};

fn migrates(old: u16, new: u16) {
    let pair = Pair::start(old, new).expect("two servers");
    let [url, _] = pair.urls();
    prepare(
        &url,
        Fill {
            orders: 2_000,
            pgbench_scale: None,
        },
    )
    .expect("blue is filled");
    let load = Config {
        seed: u64::from(old),
        threads: 2,
        rate: 300.0,
        ..Config::default()
    };
    let workload = Workload::start(&url, &load).expect("the workload starts");
    let first = pair.verb(&["run", "--until-caught-up"], 0).expect("run");
    assert_eq!(first["caught_up"], true, "{first}");
    std::thread::sleep(Duration::from_secs(2));
    workload.stop().expect("the workload kept count");
    pair.verb(&["run", "--until-caught-up"], 0).expect("run");
    pair.assert_equal().expect("both compare");
}

#[test]
fn from_14_to_17() {
    migrates(14, 17);
}

#[test]
fn from_18_back_to_14() {
    migrates(18, 14);
}

#[test]
fn each_remaining_major_once() {
    migrates(13, 15);
    migrates(16, 18);
}
