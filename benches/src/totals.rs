//! What a decoder has to have found: counted by visiting every column, so that nothing is optimised away, and the same
//! for all, so that none is timed for less work.

use cdc_core::batch::Op;
use cdc_core::{Batch, Datum};

/// What a stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// new rows: of inserts and updates
    pub rows: u64,
    /// columns of new rows that have a value
    pub values: u64,
    /// bytes of these
    pub bytes: u64,
}

impl Totals {
    /// Counts one column of a new row; `None` for NULL and for what was not sent because unchanged.
    #[inline]
    pub fn column(&mut self, value: Option<&[u8]>) {
        if let Some(bytes) = value {
            self.values += 1;
            self.bytes += bytes.len() as u64;
        }
    }

    /// Counts the rows of a batch.
    pub fn add_batch(&mut self, batch: &Batch) {
        for index in 0..batch.rows().len() {
            let Some(event) = batch.event(index) else { continue };
            let Some(table) = event.table() else { continue };
            if event.op() == Op::Delete {
                continue;
            }
            self.rows += 1;
            for column in 0..table.columns.len() {
                match event.after(column) {
                    Datum::Bytes(bytes) => self.column(Some(bytes)),
                    _ => self.column(None),
                }
            }
        }
    }
}
