//! The proxy in front of a real server.

use testbed::proxy::Direction;
use testbed::workload::{Config, Fill};
use testbed::{Proxy, Workload};

use crate::account::{DB, counted, decoded, prepared};

use std::time::{Duration, Instant};

#[test]
fn a_workload_survives_cuts_with_an_exact_account() {
    let cluster = prepared(18, Fill::default());
    let proxy = Proxy::start(cluster.port()).unwrap();
    let config = Config {
        outage: Duration::from_secs(120),
        ..Config::default()
    };
    let workload = Workload::start(&cluster.url_at(proxy.port(), DB), &config).unwrap();
    let wait_for = |reconnects: u64, transactions: u64| {
        let deadline = Instant::now() + Duration::from_secs(120);
        while workload.progress().reconnects < reconnects || workload.progress().transactions < transactions {
            assert!(
                !workload.has_failed() && Instant::now() < deadline,
                "{:#?}",
                workload.progress()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    wait_for(0, 10);
    for round in 0..40_u64 {
        let before = workload.progress();
        // Odd numbers of bytes, so that the cut comes anywhere in a message, also between COMMIT and its reply.
        let direction = if round % 2 == 0 {
            Direction::ToClient
        } else {
            Direction::ToServer
        };
        proxy.cut_after(1 + round * 211, direction);
        wait_for(before.reconnects + 1, before.transactions + 3);
    }
    let totals = workload.stop().unwrap();
    assert_eq!(counted(&totals), decoded(&cluster));
}
