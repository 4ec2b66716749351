//! Tuples (TupleData): cells that point at the values where they are in the chunk, which becomes the slab.

use cdc_core::batch::Op;
use cdc_core::model::Identity;
use cdc_core::{Batch, Cell, Error, Kind, Result, TableSchema};

use super::cursor::{Cursor, Flaw, Malformed};
use super::message::RowChange;

/// What a tuple says of one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field<'a> {
    /// `n`
    Null,
    /// `u`: stored out of line and not changed, therefore not sent
    Unchanged,
    /// `t`
    Text(&'a [u8]),
}

fn field<'a>(cursor: &mut Cursor<'a>) -> Result<Field<'a>, Malformed> {
    match cursor.u8("column kind")? {
        b't' => {
            let length = cursor.u32("column length")? as usize;
            Ok(Field::Text(cursor.take(length, "column value")?))
        }
        b'n' => Ok(Field::Null),
        b'u' => Ok(Field::Unchanged),
        // Binary values are sent on request only, and none was made.
        kind => Err(cursor.unknown("column kind", kind)),
    }
}

/// A table under its number in the batch.
#[derive(Clone, Copy)]
pub(super) struct Numbered<'a> {
    pub(super) schema: &'a TableSchema,
    pub(super) number: u16,
}

/// Reads the tuples of row changes and adds the changes. Holds only memory that is used again.
#[derive(Clone, Debug, Default)]
pub(super) struct TupleReader {
    /// the old tuple as it was sent, kept while the new one is read
    old: Vec<Cell>,
}

/// The tuples of a row change being read. Errors take it by value, so that it can stay in registers.
#[derive(Clone, Copy)]
pub(super) struct Tuples<'a> {
    message: &'a [u8],
    rest: &'a [u8],
    /// slab offset of the byte after the message
    end: u32,
}

impl<'a> Tuples<'a> {
    /// The tuples of a message that will be in the slab, before `end`.
    #[inline(always)]
    pub(super) fn new(change: &RowChange<'a>, end: u32) -> Tuples<'a> {
        Tuples {
            message: change.message,
            rest: change.message.get(RowChange::TUPLES_AT..).unwrap_or_default(),
            end,
        }
    }

    /// What of the message comes after `rest`, for errors.
    fn cursor(self, rest: &[u8]) -> Cursor<'a> {
        Cursor::from(self.message, self.message.len() - rest.len())
    }

    #[inline(always)]
    fn marker(&mut self) -> Result<u8> {
        let Some((marker, rest)) = self.rest.split_first() else {
            return Err(self.short());
        };
        self.rest = rest;
        Ok(*marker)
    }

    #[cold]
    fn short(self) -> Error {
        self.cursor(self.rest)
            .malformed(Flaw::Short("tuple marker"))
            .into()
    }

    #[cold]
    fn unknown_marker(self, marker: u8) -> Error {
        self.cursor(self.rest).unknown("tuple marker", marker).into()
    }

    /// A tuple has exactly the columns that the Relation message announced. Returns the columns.
    #[inline(always)]
    fn columns(&self, schema: &TableSchema) -> Result<&'a [u8]> {
        match self.rest.split_first_chunk() {
            Some((count, columns)) if usize::from(u16::from_be_bytes(*count)) == schema.columns.len() => {
                Ok(columns)
            }
            _ => Err(self.other_columns(schema)),
        }
    }

    #[cold]
    fn other_columns(self, schema: &TableSchema) -> Error {
        let count = match self.cursor(self.rest).u16("number of columns") {
            Ok(count) => count,
            Err(malformed) => return malformed.into(),
        };
        Error::new(
            Kind::Protocol,
            format!(
                "a row has {count} columns, but the server announced the table with {}",
                schema.columns.len()
            ),
        )
        .remedy(
            "PostgreSQL 15.0 and 15.1 send such rows for publications with column lists: update the server to a newer \
             minor release",
        )
    }

    #[cold]
    fn malformation(self, begin: &[u8], columns: usize) -> Error {
        let mut cursor = self.cursor(begin);
        match (0..columns).try_for_each(|_| field(&mut cursor).map(drop)) {
            Ok(()) => Error::bug("a tuple is malformed when it is read once and not when it is read again"),
            Err(malformed) => malformed.into(),
        }
    }

    /// Refuses bytes after the last tuple.
    #[inline(always)]
    fn end(&self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.trailing())
    }

    #[cold]
    fn trailing(self) -> Error {
        let trailing = Flaw::Trailing(self.rest.len());
        self.cursor(self.rest).malformed(trailing).into()
    }

    /// A tuple as it was sent, but for what `complete` makes of it.
    #[inline(always)]
    fn image(
        &mut self,
        schema: &TableSchema,
        batch: &mut Batch,
        complete: impl FnOnce(&mut [Cell]),
    ) -> Result<u32> {
        let columns = self.columns(schema)?;
        let (image, cells) = batch.add_image(schema.columns.len());
        let Some(rest) = read_columns(columns, self.end, cells) else {
            batch.drop_cells(image);
            return Err(self.malformation(columns, schema.columns.len()));
        };
        complete(cells);
        self.rest = rest;
        Ok(image)
    }

    /// The new row of a change that says nothing of the old one.
    #[inline(always)]
    fn new_row(&mut self, op: Op, table: Numbered<'_>, batch: &mut Batch) -> Result<()> {
        let after = self.image(table.schema, batch, |_| {})?;
        self.end()?;
        batch.push(op, table.number, None, false, Some(after));
        Ok(())
    }
}

/// Reads a column for each of `cells`; returns what follows them. `end` is the slab offset after the message.
///
/// This is where decoding spends its time: it says only whether all was well, and a tuple that is malformed is read
/// again to say how. A function of its own, so that all it needs stays in registers.
#[inline(never)]
fn read_columns<'a>(columns: &'a [u8], end: u32, cells: &mut [Cell]) -> Option<&'a [u8]> {
    let mut rest = columns;
    for cell in cells {
        if let [b't', a, b, c, d, value @ ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]);
            rest = value.get(length as usize..)?;
            *cell = Cell::bytes(end - value.len() as u32, length);
        } else {
            let (kind, after) = rest.split_first()?;
            *cell = match kind {
                b'n' => Cell::NULL,
                b'u' => Cell::UNCHANGED,
                _ => return None,
            };
            rest = after;
        }
    }
    Some(rest)
}

impl TupleReader {
    /// The new row of an insert: `N` tuple.
    #[inline(always)]
    pub(super) fn insert(mut tuples: Tuples<'_>, table: Numbered<'_>, batch: &mut Batch) -> Result<()> {
        match tuples.marker()? {
            b'N' => tuples.new_row(Op::Insert, table, batch),
            marker => Err(tuples.unknown_marker(marker)),
        }
    }

    /// Old and new row of an update: optional `K` or `O` tuple, `N` tuple.
    #[inline(always)]
    pub(super) fn update(
        &mut self,
        mut tuples: Tuples<'_>,
        table: Numbered<'_>,
        batch: &mut Batch,
    ) -> Result<()> {
        expect_identity(table.schema)?;
        match tuples.marker()? {
            b'N' => tuples.new_row(Op::Update, table, batch),
            b'K' => self.both_rows(tuples, table, false, batch),
            b'O' => self.both_rows(tuples, table, true, batch),
            marker => Err(tuples.unknown_marker(marker)),
        }
    }

    /// Old and new row; the new one completes what was not sent because unchanged from an old one that is `full`.
    #[inline(never)]
    fn both_rows(
        &mut self,
        mut tuples: Tuples<'_>,
        table: Numbered<'_>,
        full: bool,
        batch: &mut Batch,
    ) -> Result<()> {
        let before = self.old_tuple(&mut tuples, table.schema, full, batch)?;
        match tuples.marker()? {
            b'N' => {}
            marker => return Err(tuples.unknown_marker(marker)),
        }
        let after = tuples.image(table.schema, batch, |cells| {
            let cells = cells.iter_mut().zip(&self.old);
            for (cell, old) in cells.filter(|(cell, _)| full && **cell == Cell::UNCHANGED) {
                *cell = *old;
            }
        })?;
        tuples.end()?;
        batch.push(Op::Update, table.number, Some(before), full, Some(after));
        Ok(())
    }

    /// The old row of a delete: `K` or `O` tuple.
    pub(super) fn delete(
        &mut self,
        mut tuples: Tuples<'_>,
        table: Numbered<'_>,
        batch: &mut Batch,
    ) -> Result<()> {
        expect_identity(table.schema)?;
        let full_before = match tuples.marker()? {
            b'O' => true,
            b'K' => false,
            marker => return Err(tuples.unknown_marker(marker)),
        };
        let before = self.old_tuple(&mut tuples, table.schema, full_before, batch)?;
        tuples.end()?;
        batch.push(Op::Delete, table.number, Some(before), full_before, None);
        Ok(())
    }

    /// In a `K` tuple the columns outside the key are sent as NULL; they are no values.
    fn old_tuple(
        &mut self,
        tuples: &mut Tuples<'_>,
        schema: &TableSchema,
        full: bool,
        batch: &mut Batch,
    ) -> Result<u32> {
        let columns = tuples.columns(schema)?;
        self.old.resize(schema.columns.len(), Cell::ABSENT);
        let Some(rest) = read_columns(columns, tuples.end, &mut self.old) else {
            return Err(tuples.malformation(columns, schema.columns.len()));
        };
        tuples.rest = rest;
        let (image, cells) = batch.add_image(schema.columns.len());
        let sent = schema.columns.iter().zip(&self.old);
        for (cell, (column, sent)) in cells.iter_mut().zip(sent) {
            *cell = match *sent {
                Cell::NULL if !full && !column.identity => Cell::ABSENT,
                sent => sent,
            };
        }
        Ok(image)
    }
}

/// Whether column `column` of the new row of an insert or update holds exactly `wanted`.
pub(super) fn new_column_is(change: &RowChange<'_>, column: usize, wanted: &[u8]) -> Result<bool, Malformed> {
    let mut tuples = Cursor::from(change.message, RowChange::TUPLES_AT);
    loop {
        match tuples.u8("tuple marker")? {
            b'N' => break,
            b'K' | b'O' => {
                for _ in 0..tuples.u16("number of columns")? {
                    field(&mut tuples)?;
                }
            }
            marker => return Err(tuples.unknown("tuple marker", marker)),
        }
    }
    let count = usize::from(tuples.u16("number of columns")?);
    if column >= count {
        return Err(tuples.malformed(Flaw::Count { of: "columns", count }));
    }
    for _ in 0..column {
        field(&mut tuples)?;
    }
    Ok(field(&mut tuples)? == Field::Text(wanted))
}

/// Whether old rows of `schema` can be found by what the log says of them.
#[inline]
fn expect_identity(schema: &TableSchema) -> Result<()> {
    if schema.identity != Identity::Nothing {
        return Ok(());
    }
    Err(no_identity())
}

#[cold]
fn no_identity() -> Error {
    Error::new(Kind::Schema, "the source changed a row of a table without replica identity")
        .remedy("give the table a primary key or ALTER TABLE … REPLICA IDENTITY FULL and seed it again, or exclude it")
}
