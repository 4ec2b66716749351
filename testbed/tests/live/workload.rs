//! The workload's account against what the server's own logical decoding says.

use std::thread::sleep;
use std::time::{Duration, Instant};

use testbed::workload::{Changes, Config, Fill};
use testbed::{StopMode, Workload};

use crate::account::{DB, counted, decoded, prepared};

#[test]
fn account_equals_logical_decoding() {
    for major in [12, 18] {
        let fill = Fill {
            orders: 500,
            pgbench_scale: Some(1),
        };
        let cluster = prepared(major, fill);
        let config = Config {
            seed: 7,
            threads: 4,
            pgbench_scale: fill.pgbench_scale,
            ..Config::default()
        };
        let workload = Workload::start(&cluster.url(DB), &config).unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        // Until each table has seen its operations, the rarest of which is TRUNCATE.
        while workload.progress().tables.len() < 15
            || workload.progress().table("shop", "scratch").truncates == 0
            || workload.progress().transactions < 2000
        {
            assert!(
                !workload.has_failed() && Instant::now() < deadline,
                "{:#?}",
                workload.progress()
            );
            sleep(Duration::from_millis(20));
        }
        let totals = workload.stop().unwrap();
        assert_eq!(counted(&totals), decoded(&cluster));
        assert!(totals.rolled_back > 0);
        assert_eq!(
            totals.changes(),
            totals.tables.values().map(Changes::total).sum::<u64>()
        );
    }
}

#[test]
fn account_stays_exact_over_restarts_and_crashes_of_the_server() {
    let mut cluster = prepared(18, Fill::default());
    let config = Config {
        threads: 4,
        outage: Duration::from_secs(120),
        ..Config::default()
    };
    let workload = Workload::start(&cluster.url(DB), &config).unwrap();
    for round in 0..6 {
        let before = workload.progress().transactions;
        let deadline = Instant::now() + Duration::from_secs(120);
        while workload.progress().transactions < before + 200 {
            assert!(
                !workload.has_failed() && Instant::now() < deadline,
                "{:#?}",
                workload.progress()
            );
            sleep(Duration::from_millis(5));
        }
        match round % 3 {
            0 => cluster.crash().unwrap(),
            1 => cluster.stop(StopMode::Immediate).unwrap(),
            _ => cluster.stop(StopMode::Fast).unwrap(),
        }
        cluster.start_again().unwrap();
    }
    let totals = workload.stop().unwrap();
    assert!(totals.reconnects >= 4, "{totals:?}");
    assert_eq!(counted(&totals), decoded(&cluster));
}

#[test]
fn an_unknown_outcome_is_an_error() {
    let mut cluster = prepared(18, Fill::default());
    let workload = Workload::start(&cluster.url(DB), &Config::default()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while workload.progress().transactions < 50 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(5));
    }
    cluster.stop(StopMode::Immediate).unwrap();
    let error = format!("{:#}", workload.stop().unwrap_err());
    assert!(
        error.contains("whether the last transaction was committed is unknown"),
        "{error}"
    );
}

#[test]
fn the_rate_is_kept() {
    let cluster = prepared(18, Fill::default());
    let config = Config {
        rate: 100.0,
        threads: 3,
        ..Config::default()
    };
    let workload = Workload::start(&cluster.url(DB), &config).unwrap();
    sleep(Duration::from_secs(4));
    let totals = workload.stop().unwrap();
    let all = totals.transactions + totals.empty + totals.rolled_back + totals.refused;
    let expected = 100.0 * totals.elapsed.as_secs_f64();
    // A loaded machine can make it as late as it will; it is never ahead of its schedule.
    assert!(all > 0 && (all as f64) <= expected + 3.0, "{all} of {expected}");
}
