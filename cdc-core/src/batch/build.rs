//! Filling a batch: what decoders call.

use std::sync::Arc;

use super::row::{NO_IMAGE, Op, RowChange, Truncation};
use super::{Batch, Cell};
use crate::error::{Error, Kind, Result};
use crate::model::{TableSchema, TxnRecord};

/// The slab's limit: offsets have 31 bits.
const MAX_SLAB_BYTES: usize = (1 << 31) - 1;

impl Batch {
    /// Numbers a table for the rows that follow. A decoder may remember the number as long as the batch has the same
    /// table under it ([`Batch::tables`]).
    ///
    /// # Errors
    /// When a batch names more than 65,536 table versions.
    pub fn add_table(&mut self, table: &Arc<TableSchema>) -> Result<u16> {
        let number =
            u16::try_from(self.tables.len()).map_err(|_| Error::bug("more than 65,536 tables in a batch"))?;
        self.tables.push(Arc::clone(table));
        Ok(number)
    }

    /// Opens a transaction (or its continuation in this batch); `txn.rows` is kept up to date by the batch.
    #[inline]
    pub fn begin(&mut self, mut txn: TxnRecord) {
        let next = self.rows.len() as u32;
        txn.rows = next..next;
        self.txns.push(txn);
        self.clear_idle();
    }

    /// The transaction being filled.
    #[inline]
    pub fn open_txn(&mut self) -> Option<&mut TxnRecord> {
        self.txns.last_mut()
    }

    fn clear_idle(&mut self) {
        self.idle = None;
    }

    /// Starts a row image; give it exactly one cell per column.
    pub fn image(&mut self) -> ImageBuilder<'_> {
        ImageBuilder {
            start: self.cells.len() as u32,
            batch: self,
        }
    }

    /// Adds a change of the table numbered `table`; images are the results of [`ImageBuilder::finish`].
    #[inline]
    pub fn push(&mut self, op: Op, table: u16, before: Option<u32>, full_before: bool, after: Option<u32>) {
        self.push_row(RowChange {
            op,
            full_before,
            table,
            before: before.unwrap_or(NO_IMAGE),
            after: after.unwrap_or(NO_IMAGE),
            txn: 0,
        });
    }

    /// Adds a TRUNCATE.
    pub fn push_truncate(&mut self, truncation: Truncation) {
        let number = self.truncations.len() as u32;
        self.truncations.push(truncation);
        self.push_row(RowChange {
            op: Op::Truncate,
            full_before: false,
            table: 0,
            before: number,
            after: NO_IMAGE,
            txn: 0,
        });
    }

    #[inline(always)]
    fn push_row(&mut self, mut row: RowChange) {
        row.txn = self.txns.len().saturating_sub(1) as u32;
        self.rows.push(row);
        if let Some(txn) = self.txns.last_mut() {
            txn.rows.end = self.rows.len() as u32;
        }
    }

    /// Copies `bytes` whole into the slab and returns where they start, so that cells can point into them.
    ///
    /// # Errors
    /// When the slab would pass 2 GiB.
    #[inline]
    pub fn append(&mut self, bytes: &[u8]) -> Result<u32> {
        let start = self.slab.len();
        if start + bytes.len() > MAX_SLAB_BYTES {
            return Err(slab_is_full());
        }
        self.slab.extend_from_slice(bytes);
        Ok(start as u32)
    }

    /// Where the bytes of a chunk will be in the slab once it is adopted; see [`Batch::adopt`].
    ///
    /// # Errors
    /// When the slab would pass 2 GiB.
    pub fn place(&self, chunk: &[u8]) -> Result<u32> {
        let start = self.slab.len();
        if start + chunk.len() > MAX_SLAB_BYTES {
            return Err(slab_is_full());
        }
        Ok(start as u32)
    }

    /// Takes over a chunk into which cells point already, from the place that [`Batch::place`] told. Nothing is copied
    /// into an empty slab: the two change places, and `chunk` is left with memory to be filled again.
    pub fn adopt(&mut self, chunk: &mut Vec<u8>) {
        if self.slab.is_empty() {
            std::mem::swap(&mut self.slab, chunk);
        } else {
            self.slab.extend_from_slice(chunk);
        }
    }

    /// Adds an image of a table of so many columns; returns it and its cells. They hold anything: the caller fills all of
    /// them, or drops the image ([`Batch::drop_cells`]).
    #[inline(always)]
    pub fn add_image(&mut self, columns: usize) -> (u32, &mut [Cell]) {
        (self.cells.len() as u32, self.cells.add(columns))
    }

    /// Adds a cell that points at `len` bytes of the slab from `off`, as returned by [`Batch::append`].
    pub fn cell_at(&mut self, off: u32, len: u32) {
        self.cells.push(Cell::bytes(off, len));
    }

    /// Adds a cell without bytes.
    pub fn cell(&mut self, cell: Cell) {
        self.cells.push(cell);
    }

    /// Where the next cell goes; the start of an image built by [`Batch::cell_at`] and [`Batch::cell`].
    #[inline]
    pub fn next_cell(&self) -> u32 {
        self.cells.len() as u32
    }

    /// Forgets the cells from `start` on: an image that turned out malformed or unwanted.
    pub fn drop_cells(&mut self, start: u32) {
        self.cells.truncate(start as usize);
    }
}

#[cold]
fn slab_is_full() -> Error {
    Error::new(Kind::Protocol, "a batch would pass 2 GiB of values")
}

/// Builds one row image value by value. Decoders that copy a whole tuple at once use [`Batch::append`] and
/// [`Batch::cell_at`] instead; those that take over what they read, [`Batch::adopt`] and [`Batch::add_image`].
#[derive(Debug)]
pub struct ImageBuilder<'a> {
    batch: &'a mut Batch,
    start: u32,
}

impl ImageBuilder<'_> {
    /// Adds a value.
    ///
    /// # Errors
    /// When the slab would pass 2 GiB.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<&mut Self> {
        let off = self.batch.append(bytes)?;
        self.batch.cell_at(off, bytes.len() as u32);
        Ok(self)
    }

    /// Adds a difference to the old value.
    ///
    /// # Errors
    /// When the slab would pass 2 GiB.
    pub fn patch(&mut self, bytes: &[u8]) -> Result<&mut Self> {
        let off = self.batch.append(bytes)?;
        self.batch.cell(Cell::patch(off, bytes.len() as u32));
        Ok(self)
    }

    /// Adds SQL NULL.
    pub fn null(&mut self) -> &mut Self {
        self.batch.cell(Cell::NULL);
        self
    }

    /// Adds a cell that was not sent because unchanged.
    pub fn unchanged(&mut self) -> &mut Self {
        self.batch.cell(Cell::UNCHANGED);
        self
    }

    /// Adds a cell that is not part of the image.
    pub fn absent(&mut self) -> &mut Self {
        self.batch.cell(Cell::ABSENT);
        self
    }

    /// The image's number, for [`Batch::push`].
    pub fn finish(self) -> u32 {
        self.start
    }
}
