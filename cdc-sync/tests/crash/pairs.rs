//! Other pairs of versions than the 12 to 18 of the kills, one pass each: seed under load, follow, drain, equal.

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
fn from_13_to_17() {
    migrates(13, 17);
}

#[test]
fn from_14_to_16_and_17() {
    migrates(14, 16);
    migrates(14, 17);
}

#[test]
fn from_15_to_18() {
    migrates(15, 18);
}

#[test]
fn from_16_to_17() {
    migrates(16, 17);
}

#[test]
fn from_18_to_18_and_back_to_14() {
    migrates(18, 18);
    migrates(18, 14);
}
