//! COPY's text as `verify` reads it: whole lines into rows of so many columns.
//!
//! Whatever comes: no panic, and what is read in two parts is what is read at once.

use cdc_core::compare::{KeyColumn, KeyOrder, RowBuffer};
use cdc_postgres::copied_rows;

use crate::limit::within;

const COLUMNS: usize = 3;
const KEY: [KeyColumn; 2] = [
    KeyColumn {
        index: 1,
        order: KeyOrder::Integer,
    },
    KeyColumn {
        index: 0,
        order: KeyOrder::Text,
    },
];

/// A value, its length and its part of the key, in a buffer that grows by doubling.
fn most_bytes(bytes: &[u8]) -> usize {
    (4 << 10) + 64 * bytes.len()
}

pub(crate) fn run(bytes: &[u8]) {
    let whole = read(&[bytes]);
    let (first, _) = bytes.split_at(bytes.len() / 2);
    // What a line took is taken away, and what is left of it waits for the rest.
    let in_parts = read(&[first, bytes]);
    assert_eq!(whole.1, in_parts.1);
    assert!(whole.1 || whole.0 == in_parts.0, "{whole:?} {in_parts:?}");
}

/// What has been read when each of these is there, from its beginning on, and whether it was refused.
fn read(grown: &[&[u8]]) -> (Vec<Vec<Option<Vec<u8>>>>, bool) {
    let mut rows = RowBuffer::default();
    let (mut used, mut refused) = (0, false);
    for bytes in grown {
        let rest = bytes.get(used..).unwrap_or_default();
        within(most_bytes(bytes), || {
            match copied_rows(rest, COLUMNS, &KEY, &mut rows) {
                Ok(taken) => {
                    assert!(taken <= rest.len());
                    used += taken;
                }
                Err(_) => refused = true,
            }
        });
        if refused {
            break;
        }
    }
    let row = |index| rows.row(index).into_iter().flat_map(|row| row.columns());
    let read = (0..rows.len()).map(|index| row(index).map(|value| value.map(<[u8]>::to_vec)).collect());
    (read.collect(), refused)
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let seeds: [(&str, &[u8]); 4] = [
        ("cut-off", b"a\t1\tb\nc\t2"),
        ("escaped", b"\\t\\n\\\\\t-5\t\\b\\f\\v\\r\n"),
        ("nulls", b"\\N\t7\t\\N\n\\N\t\\N\t\n"),
        ("rows", b"a\t1\tone\nb\t2\ttwo\n"),
    ];
    seeds.map(|(name, bytes)| (name, bytes.to_vec())).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_rows() {
        for (name, seed) in seeds() {
            let (rows, refused) = read(&[&seed]);
            assert!(!refused && !rows.is_empty(), "{name}: {rows:?}");
        }
    }
}
