//! The yardstick: finds offset and length of every column, and does nothing else. No copy, no relations, no transactions.

use cdc_benches::{Corpus, Totals};

/// Walks over every message.
pub(crate) fn walk(corpus: &Corpus) -> Totals {
    let mut totals = Totals::default();
    let mut columns: Vec<Option<(usize, usize)>> = Vec::new();
    for message in &corpus.messages {
        if row(message, &mut columns).is_none() {
            continue;
        }
        totals.rows += 1;
        for column in &columns {
            totals.column(column.and_then(|(at, length)| message.get(at..at + length)));
        }
    }
    totals
}

/// The columns of the new row of an insert or update; `None` for other messages.
fn row(message: &[u8], columns: &mut Vec<Option<(usize, usize)>>) -> Option<()> {
    let mut at = match message.first()? {
        b'I' | b'U' => 5,
        _ => return None,
    };
    loop {
        let marker = *message.get(at)?;
        at = tuple(message, at + 1, columns)?;
        if marker == b'N' {
            return Some(());
        }
    }
}

/// Reads a tuple; returns where it ends.
fn tuple(message: &[u8], mut at: usize, columns: &mut Vec<Option<(usize, usize)>>) -> Option<usize> {
    columns.clear();
    let count = u16::from_be_bytes(*message.get(at..)?.first_chunk()?);
    at += 2;
    for _ in 0..count {
        let kind = *message.get(at)?;
        at += 1;
        if kind == b't' {
            let length = u32::from_be_bytes(*message.get(at..)?.first_chunk()?) as usize;
            at += 4;
            columns.push(Some((at, length)));
            at += length;
        } else {
            columns.push(None);
        }
    }
    (at <= message.len()).then_some(at)
}
