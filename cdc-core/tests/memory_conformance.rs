//! The suites, run by the sink and the sources in memory.

use cdc_core::model::TxnKind;
use cdc_core::testing::conformance::{MemorySinkHarness, read_history, sink_suite, source_suite};
use cdc_core::testing::{
    CellFormat, History, HistoryOptions, MemoryLog, Rng, SourceDatabase, random_actions,
};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(future)
}

#[test]
fn the_memory_sink_keeps_the_contract() {
    for format in [CellFormat::text(), CellFormat::canonical()] {
        for seed in 0..10 {
            block_on(sink_suite(&mut MemorySinkHarness::new(format.clone(), seed))).expect("the suite runs");
        }
    }
}

#[test]
fn the_memory_log_keeps_the_contract() {
    for format in [CellFormat::text(), CellFormat::canonical()] {
        for seed in 0..10 {
            let mut log = MemoryLog::new(
                SourceDatabase::new(Vec::new()),
                TxnKind::Log,
                format.clone(),
                seed,
            );
            block_on(source_suite(&mut log)).expect("the suite runs");
        }
    }
}

#[test]
fn the_memory_net_windows_keep_the_contract() {
    for seed in 0..20 {
        let source = SourceDatabase::new(Vec::new());
        let mut log = MemoryLog::new(source, TxnKind::NetWindow, CellFormat::text(), seed);
        block_on(source_suite(&mut log)).expect("the suite runs");
    }
}

#[test]
fn histories_are_read_as_they_happened() {
    for (kind, options) in [
        (TxnKind::Log, HistoryOptions::ALL),
        (TxnKind::NetWindow, HistoryOptions::WINDOWS),
    ] {
        for seed in 0..50 {
            let history = History::new(seed, options, &random_actions(&mut Rng::new(seed), 12, 8));
            let source = SourceDatabase::new(Vec::new());
            let mut log = MemoryLog::new(source, kind, CellFormat::canonical(), seed);
            let read = block_on(read_history(&mut log, &history)).expect("the history is read");
            assert!(kind == TxnKind::NetWindow || read.skipped == 0, "{read:?}");
        }
    }
}
