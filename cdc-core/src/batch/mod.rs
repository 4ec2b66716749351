//! The batch: decoded changes in four flat arrays, which is what moves between threads.
//!
//! ```text
//! slab   |….7.2026-01-01.alice.….|        bytes of all values, source encoding, at most 2 GiB
//! cells  [off,len][NULL][off,len][UNCHANGED]…   8 bytes each; an image is one cell per column of its table
//! rows   {op, table, before→cell, after→cell}…  16 bytes each, commit order
//! txns   {id, commit time, rows a..b, first, last}
//! ```
//!
//! Invariants, checked by [`Batch::verify`]: every cell lies inside the slab; every image has one cell per
//! column of its table; transactions cover the rows contiguously and in order. Filling a cleared batch of the
//! same shape allocates nothing.

mod build;
mod cell;
mod cells;
mod row;
mod view;

pub use build::ImageBuilder;
pub use cell::{Cell, CellState};
pub use row::{NO_IMAGE, Op, OpCounts, RowChange, Truncation};
pub use view::{ChangeEvent, Datum};

use std::sync::Arc;
use std::time::Instant;

use cells::Cells;

use crate::error::{Error, Result};
use crate::model::{Position, TableSchema, TxnRecord};
use crate::pipeline::Charge;

/// Capacity above this many bytes is given back when a batch is cleared, so that one huge row does not pin
/// memory for ever.
const RETAINED_SLAB_BYTES: usize = 1 << 20;

/// Decoded changes of whole or partial transactions, in commit order. Filled by a decoder, read through
/// [`ChangeEvent`].
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) slab: Vec<u8>,
    pub(crate) cells: Cells,
    pub(crate) rows: Vec<RowChange>,
    pub(crate) txns: Vec<TxnRecord>,
    pub(crate) tables: Vec<Arc<TableSchema>>,
    pub(crate) truncations: Vec<Truncation>,
    idle: Option<Position>,
    received: Option<Instant>,
    charge: Option<Charge>,
    generation: u64,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties the batch, keeping its capacity. Table numbers of before mean nothing any more.
    pub fn clear(&mut self) {
        self.slab.clear();
        if self.slab.capacity() > RETAINED_SLAB_BYTES {
            self.slab.shrink_to(RETAINED_SLAB_BYTES);
        }
        self.cells.truncate(0);
        self.rows.clear();
        self.txns.clear();
        self.tables.clear();
        self.truncations.clear();
        self.idle = None;
        self.received = None;
        self.charge = None;
        self.generation += 1;
    }

    /// Counts the times this batch was cleared. Each batch counts its own, so that two batches have the same number at
    /// times: a decoder that remembers table numbers tells by the table itself whether one still stands for it.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Transaction records, in commit order; the last may be open.
    pub fn txns(&self) -> &[TxnRecord] {
        &self.txns
    }

    /// Transaction records for the pipeline to number.
    pub(crate) fn txns_mut(&mut self) -> &mut [TxnRecord] {
        &mut self.txns
    }

    /// Row records, in commit order.
    #[inline]
    pub fn rows(&self) -> &[RowChange] {
        &self.rows
    }

    /// The tables that [`RowChange::table`] numbers.
    #[inline]
    pub fn tables(&self) -> &[Arc<TableSchema>] {
        &self.tables
    }

    /// The truncations that [`RowChange::truncation`] numbers.
    pub fn truncations(&self) -> &[Truncation] {
        &self.truncations
    }

    /// The change at row `index`.
    #[inline]
    pub fn event(&self, index: usize) -> Option<ChangeEvent<'_>> {
        self.rows.get(index).map(|row| ChangeEvent::new(self, row))
    }

    /// Bytes held: those of values, and whatever of the log lies between them.
    pub fn bytes(&self) -> usize {
        self.slab.len()
    }

    /// Bytes that the changes occupy: values, cells, records of rows and of transactions.
    pub(crate) fn filled(&self) -> usize {
        self.slab.len()
            + size_of_val(self.cells.as_slice())
            + size_of_val(self.rows.as_slice())
            + size_of_val(self.txns.as_slice())
    }

    /// Bytes of memory that the arrays have, filled or not: what was filled once stays in memory.
    pub fn footprint(&self) -> usize {
        self.slab.capacity()
            + self.cells.capacity() * size_of::<Cell>()
            + self.rows.capacity() * size_of::<RowChange>()
            + self.txns.capacity() * size_of::<TxnRecord>()
    }

    /// Holds a share of the memory budget until the batch is cleared or dropped.
    pub(crate) fn hold(&mut self, charge: Charge) {
        self.charge = Some(charge);
    }

    /// Whether there is neither a transaction nor an idle position.
    pub fn is_empty(&self) -> bool {
        self.txns.is_empty() && self.idle.is_none()
    }

    /// A position the source attests with no transaction open, after all transactions of this batch: there is
    /// nothing for this stream up to it.
    pub fn idle(&self) -> Option<&Position> {
        self.idle.as_ref()
    }

    /// Notes an idle position; see [`Batch::idle`]. A later transaction in the same batch removes it.
    pub fn set_idle(&mut self, position: Position) {
        self.idle = Some(position);
    }

    /// When the bytes of this batch were read from the source.
    pub fn received(&self) -> Option<Instant> {
        self.received
    }

    /// Notes when the bytes were read.
    pub fn set_received(&mut self, at: Instant) {
        self.received = Some(at);
    }

    /// Checks the invariants of the module page.
    ///
    /// # Errors
    /// Names the first invariant that does not hold.
    pub fn verify(&self) -> Result<()> {
        let broken = |what: String| Err(Error::bug(format!("batch invariant: {what}")));
        for (index, cell) in self.cells.as_slice().iter().enumerate() {
            if let CellState::Bytes { off, len, .. } = cell.state()
                && off as usize + len as usize > self.slab.len()
            {
                return broken(format!("cell {index} ends beyond the slab"));
            }
        }
        for (index, row) in self.rows.iter().enumerate() {
            if row.op() == Op::Truncate {
                if self.truncations.get(row.before as usize).is_none() {
                    return broken(format!("row {index} has no truncation"));
                }
                continue;
            }
            if row.op() == Op::Message {
                continue;
            }
            let Some(table) = self.tables.get(usize::from(row.table)) else {
                return broken(format!("row {index} has no table"));
            };
            for image in [row.before, row.after] {
                if image != NO_IMAGE && image as usize + table.columns.len() > self.cells.len() {
                    return broken(format!("row {index} lacks cells"));
                }
            }
        }
        let mut next = 0;
        for (index, txn) in self.txns.iter().enumerate() {
            if txn.rows.start != next || txn.rows.end < txn.rows.start {
                return broken(format!("transaction {index} does not follow its predecessor"));
            }
            next = txn.rows.end;
        }
        if next as usize != self.rows.len() {
            return broken("rows outside any transaction".into());
        }
        Ok(())
    }
}
