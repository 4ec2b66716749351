//! The suites themselves.

use cdc_core::testing::CellFormat;
use cdc_core::testing::conformance::{sink_suite, source_suite};

use crate::servers::{cluster, runtime, within_deadline};
use crate::sink_harness::{Login, PgSinkHarness, pg_text};
use crate::source_harness::PgSourceHarness;

fn sink_keeps_the_contract(major: u16) {
    let runtime = runtime();
    within_deadline(&runtime, async {
        for (database, login) in [
            ("sink_suite", Login::Superuser),
            ("ordinary_sink_suite", Login::Ordinary),
        ] {
            let mut harness = PgSinkHarness::open(cluster(major), database, login).await;
            for format in [pg_text(), CellFormat::canonical()] {
                harness.give(format);
                sink_suite(&mut harness).await.expect("the suite runs");
            }
        }
    });
}

#[test]
fn the_sink_keeps_the_contract_on_12() {
    sink_keeps_the_contract(12);
}

#[test]
fn the_sink_keeps_the_contract_on_18() {
    sink_keeps_the_contract(18);
}

fn source_keeps_the_contract(major: u16) {
    let runtime = runtime();
    within_deadline(&runtime, async {
        let mut harness = PgSourceHarness::open(cluster(major), "source_suite").await;
        source_suite(&mut harness).await.expect("the suite runs");
    });
}

#[test]
fn the_source_keeps_the_contract_on_12() {
    source_keeps_the_contract(12);
}

#[test]
fn the_source_keeps_the_contract_on_18() {
    source_keeps_the_contract(18);
}
