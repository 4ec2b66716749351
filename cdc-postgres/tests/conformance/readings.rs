//! Random histories executed on real servers and read from their logs.

use cdc_core::testing::conformance::read_history;
use cdc_core::testing::{History, Rng, Statement, random_actions};

use crate::histories::OPTIONS;
use crate::servers::{cluster, runtime, within_deadline};
use crate::source_harness::PgSourceHarness;

/// What random statements leave in the server's log is what they did, transaction by transaction.
fn histories_are_read_as_they_happened(major: u16) {
    let runtime = runtime();
    let open = PgSourceHarness::open(cluster(major), "read_histories");
    let mut harness = within_deadline(&runtime, open);
    for seed in 0..20 {
        let txns = random_actions(&mut Rng::new(seed), 12, 12);
        let history = History::new(seed, OPTIONS, &txns);
        let read = within_deadline(&runtime, read_history(&mut harness, &history));
        let read = read.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        assert_eq!(read.skipped, 0, "seed {seed}");
        assert_eq!(read.changes, row_changes(&history), "seed {seed}");
    }
}

/// Of its statements, its initial rows and the signal at its end.
fn row_changes(history: &History) -> u64 {
    let initial = history
        .source
        .state(0)
        .map_or(0, |state| state.values().map(Vec::len).sum());
    let statements = history.source.statements().iter().flatten();
    let changes = statements.map(|statement| match statement {
        Statement::Truncate(tables) => tables.len(),
        _ => 1,
    });
    (initial + changes.sum::<usize>() + 1) as u64
}

#[test]
fn histories_are_read_as_they_happened_on_12() {
    histories_are_read_as_they_happened(12);
}

#[test]
fn histories_are_read_as_they_happened_on_18() {
    histories_are_read_as_they_happened(18);
}
