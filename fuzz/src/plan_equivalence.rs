//! Plans leave on the target what the changes leave one by one, whatever the tables, keys, histories and groups.

use cdc_core::testing::conformance::{MemorySinkHarness, apply_log};
use cdc_core::testing::{Action, CellFormat, History, HistoryOptions, Rng, random_actions};

use crate::limit::within;

/// The most actions of one input: a plan needs no more of them to go wrong, and an execution takes twice as long with
/// twice as many.
const ACTIONS: usize = 24;
/// Source and target are models in memory, with all states between; they are small, as there are few actions.
const MOST_BYTES: usize = 8 << 20;

pub(crate) fn run(bytes: &[u8]) {
    let Some((seed, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let seed = u64::from_le_bytes(*seed);
    let history = History::new(seed, HistoryOptions::ALL, &txns(rest));
    let format = if seed.is_multiple_of(3) {
        CellFormat::canonical()
    } else {
        CellFormat::text()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    within(MOST_BYTES, || {
        let mut harness = MemorySinkHarness::new(format, seed);
        runtime
            .block_on(apply_log(&mut harness, &history, seed, &mut |_| {}))
            .unwrap();
    });
}

/// Eight bytes an action; one that ends a transaction says so with its highest bit.
fn txns(bytes: &[u8]) -> Vec<Vec<Action>> {
    let mut txns: Vec<Vec<Action>> = vec![Vec::new()];
    for action in bytes.as_chunks::<8>().0.iter().take(ACTIONS) {
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
    txns
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let seed = |number: u64, txns: usize, most: usize| {
        let mut bytes = number.to_le_bytes().to_vec();
        for txn in random_actions(&mut Rng::new(number), txns, most) {
            let last = txn.len().saturating_sub(1);
            for (place, action) in txn.into_iter().enumerate() {
                let end = if place == last { 0x80 } else { 0 };
                bytes.extend([action.kind, action.table, action.row, end]);
                bytes.extend(action.value.to_le_bytes());
            }
        }
        bytes
    };
    vec![
        ("many-small", seed(1, 12, 2)),
        ("one-large", seed(2, 1, ACTIONS)),
        ("some", seed(3, 4, 8)),
        ("some-more", seed(4, 4, 8)),
    ]
}
