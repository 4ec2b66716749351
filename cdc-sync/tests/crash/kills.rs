//! Blue under load, cdc-sync killed again and again: in the seed, while indexes are built, while following.

use std::time::{Duration, Instant};

use testbed::pair::LIMIT;
use testbed::workload::{Config, Fill, Workload, prepare};
use testbed::{Pair, Process};

use super::{Moments, assert_accounted};

const SEED: u64 = 20_261_121;

#[test]
fn kills_under_load_lose_nothing_and_repeat_nothing() {
    let kills = if testbed::runs_long_tier() { 50 } else { 15 };
    let pair = Pair::start(12, 18).expect("two servers");
    let [url, _] = pair.urls();
    let pgbench_scale = Some(if testbed::runs_long_tier() { 10 } else { 2 });
    let fill = Fill {
        orders: 5_000,
        pgbench_scale,
    };
    prepare(&url, fill).expect("blue is filled");
    survives(&pair, kills, pgbench_scale);
}

/// The target has its tables, with foreign keys that are checked, and rows that are to go.
#[test]
fn kills_where_foreign_keys_are_checked_lose_nothing_and_repeat_nothing() {
    let kills = if testbed::runs_long_tier() { 50 } else { 6 };
    let mut pair = Pair::start(13, 14).expect("two servers");
    for (url, orders) in pair.urls().iter().zip([3_000, 100]) {
        let fill = Fill {
            orders,
            pgbench_scale: None,
        };
        prepare(url, fill).expect("it is filled");
    }
    pair.use_plain_roles().expect("the roles");
    survives(&pair, kills, None);
}

pub(crate) fn survives(pair: &Pair, kills: usize, pgbench_scale: Option<u32>) {
    let [url, _] = pair.urls();
    let start = || pair.spawn(&["run", "--truncate-target"]).expect("run starts");
    let mut running = start();
    // The account is exact from the slot's creation on, so writing begins when the checkpoint names it.
    wait_for_checkpoint(pair, &mut running);
    let load = Config {
        seed: SEED,
        threads: 2,
        rate: 500.0,
        pgbench_scale,
        ..Config::default()
    };
    let workload = Workload::start(&url, &load).expect("the workload starts");
    let mut moments = Moments(SEED);
    for kill in 0..kills {
        // The first kills meet the seed and the index build, the later ones the stream.
        let most = if kill < 8 { 600 } else { 2_500 };
        std::thread::sleep(moments.between(Duration::from_millis(30), Duration::from_millis(most)));
        assert!(
            running.is_running(),
            "run ended by itself before kill {kill}:\n{}",
            running.stderr()
        );
        running.kill9().expect("the process dies");
        running = start();
    }
    let totals = workload.stop().expect("the workload kept count");
    running
        .wait_for("stream started", LIMIT)
        .expect("the stream starts");
    running.sigterm().expect("the signal arrives");
    let ended = running.wait_timeout(LIMIT).expect("run ends after SIGTERM");
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let drained = pair.verb(&["run", "--until-caught-up"], 0).expect("run");
    pair.assert_equal().expect("both compare");
    assert_accounted(&drained, totals.changes());
}

/// Waits until the first checkpoint is on green.
fn wait_for_checkpoint(pair: &Pair, running: &mut Process) {
    let deadline = Instant::now() + LIMIT;
    let stored = || {
        let exists = pair
            .on_green("SELECT to_regclass('cdc_sync.checkpoint') IS NOT NULL")
            .expect("green answers");
        exists.trim() == "t"
            && pair
                .on_green("SELECT count(*) FROM cdc_sync.checkpoint")
                .expect("green answers")
                .trim()
                == "1"
    };
    while !stored() {
        assert!(running.is_running(), "{}", running.stderr());
        assert!(
            Instant::now() < deadline,
            "no checkpoint within {LIMIT:?}:\n{}",
            running.stderr()
        );
        std::thread::sleep(Duration::from_millis(60));
    }
}
