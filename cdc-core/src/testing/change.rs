//! Source transactions as data, and batches made of them.

use std::sync::Arc;

use super::schema::CellFormat;
use crate::batch::{Batch, Op, Truncation};
use crate::error::{Error, Result};
use crate::model::{TableSchema, TxnId, TxnKind, TxnRecord};

/// One column of an image, values in text form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceCell {
    /// SQL NULL.
    Null,
    /// A value.
    Value(Vec<u8>),
    /// Not sent because unchanged.
    Unchanged,
    /// Not part of the image.
    Absent,
    /// What to append to the old value.
    Patch(Vec<u8>),
}

/// The old image of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldImage {
    /// one cell per column
    pub cells: Vec<SourceCell>,
    /// whether it is the whole row
    pub full: bool,
}

/// One change as a log holds it. Tables are numbers into a list of schemas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceChange {
    /// A change of a row.
    Row {
        /// the table
        table: usize,
        /// what it does
        op: Op,
        /// the old image
        before: Option<OldImage>,
        /// the new image
        after: Option<Vec<SourceCell>>,
    },
    /// Emptied tables.
    Truncate(Vec<usize>),
    /// A message, which concerns no table.
    Message,
}

/// A source transaction. `offset` is its place in the log: positions and identities are made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTxn {
    /// its place in the log
    pub offset: u64,
    /// how its changes are to be understood
    pub kind: TxnKind,
    /// commit time, microseconds since 1970-01-01 UTC
    pub commit_time_micros: i64,
    /// its changes, in order
    pub changes: Vec<SourceChange>,
}

impl SourceTxn {
    /// Its record, with no rows yet.
    pub(super) fn record(&self, first: bool) -> Result<TxnRecord> {
        Ok(TxnRecord {
            kind: self.kind,
            commit_time_micros: self.commit_time_micros,
            first,
            last: false,
            ..TxnRecord::new(TxnId::new(&self.offset.to_be_bytes())?)
        })
    }
}

/// Adds a change to the open transaction of `batch`.
///
/// # Errors
/// When it names a table that `schemas` does not have, or a value is not of its column's type.
pub fn push_change(
    batch: &mut Batch,
    schemas: &[Arc<TableSchema>],
    format: &CellFormat,
    change: &SourceChange,
) -> Result<()> {
    let schema = |table: &usize| {
        schemas
            .get(*table)
            .ok_or_else(|| Error::bug(format!("no table number {table}")))
    };
    match change {
        SourceChange::Row {
            table,
            op,
            before,
            after,
        } => {
            let schema = schema(table)?;
            let number = table_number(batch, schema)?;
            let old = match before {
                Some(image) => Some(push_image(batch, schema, format, &image.cells)?),
                None => None,
            };
            let new = match after {
                Some(cells) => Some(push_image(batch, schema, format, cells)?),
                None => None,
            };
            let full = before.as_ref().is_some_and(|image| image.full);
            batch.push(*op, number, old, full, new);
        }
        SourceChange::Truncate(tables) => {
            let tables = tables
                .iter()
                .map(|table| schema(table).map(Arc::clone))
                .collect::<Result<Vec<_>>>()?;
            batch.push_truncate(Truncation {
                tables,
                cascade: false,
                restart_identity: false,
            });
        }
        SourceChange::Message => batch.push(Op::Message, 0, None, false, None),
    }
    Ok(())
}

/// The number of a table in the batch, which gets one if it has none.
fn table_number(batch: &mut Batch, schema: &Arc<TableSchema>) -> Result<u16> {
    let known = batch.tables().iter().position(|table| Arc::ptr_eq(table, schema));
    match known.map(u16::try_from) {
        Some(Ok(number)) => Ok(number),
        _ => batch.add_table(schema),
    }
}

fn push_image(
    batch: &mut Batch,
    schema: &TableSchema,
    format: &CellFormat,
    cells: &[SourceCell],
) -> Result<u32> {
    if cells.len() != schema.columns.len() {
        return Err(Error::bug("an image with another number of cells than columns")
            .object(format!("table {}", schema.name)));
    }
    let mut image = batch.image();
    for (column, cell) in schema.columns.iter().zip(cells) {
        match cell {
            SourceCell::Null => image.null(),
            SourceCell::Unchanged => image.unchanged(),
            SourceCell::Absent => image.absent(),
            SourceCell::Value(text) => image.bytes(&format.encode(&column.data_type, text)?)?,
            SourceCell::Patch(text) => image.patch(text)?,
        };
    }
    Ok(image.finish())
}

/// A batch that holds these transactions whole.
///
/// # Errors
/// As [`push_change`].
pub fn batch_of(txns: &[SourceTxn], schemas: &[Arc<TableSchema>], format: &CellFormat) -> Result<Batch> {
    let mut batch = Batch::new();
    for txn in txns {
        batch.begin(txn.record(true)?);
        for change in &txn.changes {
            push_change(&mut batch, schemas, format, change)?;
        }
        if let Some(open) = batch.open_txn() {
            open.last = true;
            open.counts = counts(&txn.changes, schemas);
        }
    }
    Ok(batch)
}

/// What a decoder counts for these changes when nothing is filtered.
pub(super) fn counts(changes: &[SourceChange], schemas: &[Arc<TableSchema>]) -> crate::model::ChangeCounts {
    let mut counts = crate::model::ChangeCounts::default();
    for change in changes {
        match change {
            SourceChange::Row { table, .. } => match schemas.get(*table).map(|schema| schema.role) {
                Some(crate::model::TableRole::User) => counts.read += 1,
                _ => counts.internal += 1,
            },
            SourceChange::Truncate(tables) => counts.read += tables.len() as u64,
            SourceChange::Message => counts.internal += 1,
        }
    }
    counts
}
