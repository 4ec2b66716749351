//! Plans leave on the target what the changes leave one by one, whatever the tables, keys, histories and groups.
#![no_main]

use cdc_core::testing::conformance::{MemorySinkHarness, apply_log};
use cdc_core::testing::{Action, CellFormat, History, HistoryOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((seed, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let seed = u64::from_le_bytes(*seed);
    // Eight bytes an action; one that ends a transaction says so with its highest bit.
    let mut txns: Vec<Vec<Action>> = vec![Vec::new()];
    for action in rest.as_chunks::<8>().0.iter().take(64) {
        let [kind, table, row, end, value @ ..] = *action;
        if let Some(last) = txns.last_mut() {
            last.push(Action {
                kind,
                table,
                row,
                value: u32::from_le_bytes(value),
            });
        }
        if end & 0x80 != 0 {
            txns.push(Vec::new());
        }
    }
    txns.retain(|txn| !txn.is_empty());
    let history = History::new(seed, HistoryOptions::ALL, &txns);
    let format = if seed.is_multiple_of(3) {
        CellFormat::canonical()
    } else {
        CellFormat::text()
    };
    let mut harness = MemorySinkHarness::new(format, seed);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime
        .block_on(apply_log(&mut harness, &history, seed, &mut |_| {}))
        .unwrap();
});
