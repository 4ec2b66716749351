//! Borrowed views of a batch: a change and its cells.

use std::sync::Arc;

use super::cell::CellState;
use super::row::{NO_IMAGE, Op, RowChange, Truncation};
use super::{Batch, Cell};
use crate::error::{Error, Result};
use crate::model::{TableSchema, TxnRecord, Value};

/// The content of one column of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datum<'a> {
    /// SQL NULL.
    Null,
    /// Not sent because unchanged.
    Unchanged,
    /// Not part of the image.
    Absent,
    /// The value in its column's encoding.
    Bytes(&'a [u8]),
    /// A difference to the old value.
    Patch(&'a [u8]),
}

impl Datum<'_> {
    /// Whether the image says what the value is.
    pub fn is_known(&self) -> bool {
        matches!(self, Datum::Null | Datum::Bytes(_))
    }
}

/// One change: a view into its batch.
#[derive(Debug, Clone, Copy)]
pub struct ChangeEvent<'a> {
    batch: &'a Batch,
    row: &'a RowChange,
}

impl<'a> ChangeEvent<'a> {
    pub(crate) fn new(batch: &'a Batch, row: &'a RowChange) -> Self {
        Self { batch, row }
    }

    /// What the change does.
    #[inline]
    pub fn op(&self) -> Op {
        self.row.op
    }

    /// The table; `None` for [`Op::Truncate`] and [`Op::Message`].
    #[inline]
    pub fn table(&self) -> Option<&'a Arc<TableSchema>> {
        match self.row.op {
            Op::Truncate | Op::Message => None,
            _ => self.batch.tables.get(usize::from(self.row.table)),
        }
    }

    /// The tables of an [`Op::Truncate`].
    pub fn truncation(&self) -> Option<&'a Truncation> {
        match self.row.op {
            Op::Truncate => self.batch.truncations.get(self.row.before as usize),
            _ => None,
        }
    }

    /// The transaction it belongs to.
    pub fn txn(&self) -> Option<&'a TxnRecord> {
        self.batch.txns.get(self.row.txn as usize)
    }

    /// Whether there is an old image.
    #[inline]
    pub fn has_before(&self) -> bool {
        self.row.op != Op::Truncate && self.row.before != NO_IMAGE
    }

    /// Whether the old image is the whole row and not only its identity.
    pub fn before_is_full(&self) -> bool {
        self.row.full_before
    }

    /// Whether there is a new image.
    #[inline]
    pub fn has_after(&self) -> bool {
        self.row.after != NO_IMAGE
    }

    /// Column `index` of the old image; [`Datum::Absent`] without one.
    #[inline]
    pub fn before(&self, index: usize) -> Datum<'a> {
        self.cell_at(self.row.before, index)
    }

    /// Column `index` of the new image; [`Datum::Absent`] without one.
    #[inline]
    pub fn after(&self, index: usize) -> Datum<'a> {
        self.cell_at(self.row.after, index)
    }

    /// Column `index` of the image that identifies the row as it was before the change: the old image, or the
    /// new one when the source sent no old one because the identity did not change.
    #[inline]
    pub fn identity(&self, index: usize) -> Datum<'a> {
        if self.has_before() {
            self.before(index)
        } else {
            self.after(index)
        }
    }

    /// The typed value of column `index` of the new image.
    ///
    /// # Errors
    /// When the value is not in the image or its bytes are not of its type.
    pub fn value(&self, index: usize) -> Result<Value<'a>> {
        let table = self
            .table()
            .ok_or_else(|| Error::bug("value of a change without a table"))?;
        let column = table
            .columns
            .get(index)
            .ok_or_else(|| Error::bug("value of a column beyond the table"))?;
        match self.after(index) {
            Datum::Null => Ok(Value::Null),
            Datum::Bytes(bytes) => table.reader.value(column, bytes),
            other => Err(Error::bug(format!("value of a cell that is {other:?}"))),
        }
    }

    #[inline]
    fn cell_at(&self, image: u32, index: usize) -> Datum<'a> {
        if image == NO_IMAGE {
            return Datum::Absent;
        }
        self.batch
            .cells
            .get(image as usize + index)
            .map_or(Datum::Absent, |cell| self.batch.datum(cell))
    }
}

impl Batch {
    /// The content of `cell`.
    #[inline]
    pub fn datum(&self, cell: Cell) -> Datum<'_> {
        match cell.state() {
            CellState::Null => Datum::Null,
            CellState::Unchanged => Datum::Unchanged,
            CellState::Absent => Datum::Absent,
            CellState::Bytes { off, len, patch } => {
                let bytes = self
                    .slab
                    .get(off as usize..(off as usize).saturating_add(len as usize));
                match (bytes, patch) {
                    (Some(bytes), false) => Datum::Bytes(bytes),
                    (Some(bytes), true) => Datum::Patch(bytes),
                    (None, _) => Datum::Absent,
                }
            }
        }
    }
}
