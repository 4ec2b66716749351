//! Tuples (TupleData): cells that point at the values where they are in the chunk, which becomes the slab.

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

/// The images of a row change in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Images {
    pub(super) before: Option<u32>,
    pub(super) full_before: bool,
    pub(super) after: Option<u32>,
}

/// Reads the tuples of row changes. Holds only memory that is used again.
#[derive(Debug, Default)]
pub(super) struct TupleReader {
    /// the old tuple as it was sent, kept while the new one is read
    old: Vec<Cell>,
}

/// The tuples of a row change being read.
///
/// Columns are read without an error for each: this is where decoding spends its time. Whether all was well is asked
/// once a tuple, and only a tuple that is malformed is read again, to say how.
pub(super) struct Tuples<'a> {
    message: &'a [u8],
    rest: &'a [u8],
    /// slab offset of the byte after the message
    end: u32,
    malformed: bool,
}

impl<'a> Tuples<'a> {
    /// The tuples of a message that will be at `place` of the slab.
    #[inline(always)]
    pub(super) fn new(change: &RowChange<'a>, place: u32) -> Tuples<'a> {
        Tuples {
            message: change.message,
            rest: change.message.get(RowChange::TUPLES_AT..).unwrap_or_default(),
            end: place + change.message.len() as u32,
            malformed: false,
        }
    }

    /// What of the message comes after `rest`, for errors.
    fn cursor(&self, rest: &[u8]) -> Cursor<'a> {
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
    fn short(&self) -> Error {
        self.cursor(self.rest)
            .malformed(Flaw::Short("tuple marker"))
            .into()
    }

    #[cold]
    fn unknown_marker(&self, marker: u8) -> Error {
        self.cursor(self.rest).unknown("tuple marker", marker).into()
    }

    /// A tuple has exactly the columns that the Relation message announced. Returns the columns.
    #[inline(always)]
    fn begin(&mut self, schema: &TableSchema) -> Result<&'a [u8]> {
        match self.rest.split_first_chunk() {
            Some((count, rest)) if usize::from(u16::from_be_bytes(*count)) == schema.columns.len() => {
                self.rest = rest;
                Ok(rest)
            }
            _ => Err(self.other_columns(schema)),
        }
    }

    #[cold]
    fn other_columns(&self, schema: &TableSchema) -> Error {
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

    /// The next column; anything when it is malformed.
    #[inline(always)]
    fn cell(&mut self) -> Cell {
        match self.rest {
            [b't', a, b, c, d, value @ ..] => {
                let length = u32::from_be_bytes([*a, *b, *c, *d]);
                if let Some(rest) = value.get(length as usize..) {
                    self.rest = rest;
                    return Cell::bytes(self.end - value.len() as u32, length);
                }
            }
            [b'n', rest @ ..] => {
                self.rest = rest;
                return Cell::NULL;
            }
            [b'u', rest @ ..] => {
                self.rest = rest;
                return Cell::UNCHANGED;
            }
            _ => {}
        }
        self.rest = &[];
        self.malformed = true;
        Cell::ABSENT
    }

    /// Says whether the columns since `begin` were well-formed.
    #[inline(always)]
    fn ended(&self, begin: &[u8], schema: &TableSchema) -> Result<()> {
        if self.malformed {
            return Err(self.malformation(begin, schema.columns.len()));
        }
        Ok(())
    }

    #[cold]
    fn malformation(&self, begin: &[u8], columns: usize) -> Error {
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
    fn trailing(&self) -> Error {
        let trailing = Flaw::Trailing(self.rest.len());
        self.cursor(self.rest).malformed(trailing).into()
    }

    /// A tuple as it was sent.
    #[inline(always)]
    fn image(&mut self, schema: &TableSchema, batch: &mut Batch) -> Result<u32> {
        let begin = self.begin(schema)?;
        let image = batch.add_image((0..schema.columns.len()).map(|_| self.cell()));
        self.ended(begin, schema)?;
        Ok(image)
    }
}

impl TupleReader {
    /// The new row of an insert: `N` tuple.
    #[inline(always)]
    pub(super) fn insert(tuples: &mut Tuples<'_>, schema: &TableSchema, batch: &mut Batch) -> Result<Images> {
        match tuples.marker()? {
            b'N' => {}
            marker => return Err(tuples.unknown_marker(marker)),
        }
        let after = tuples.image(schema, batch)?;
        tuples.end()?;
        Ok(Images {
            before: None,
            full_before: false,
            after: Some(after),
        })
    }

    /// Old and new row of an update: optional `K` or `O` tuple, `N` tuple.
    #[inline(always)]
    pub(super) fn update(
        &mut self,
        tuples: &mut Tuples<'_>,
        schema: &TableSchema,
        batch: &mut Batch,
    ) -> Result<Images> {
        let mut marker = tuples.marker()?;
        let (mut before, mut full_before) = (None, false);
        if let b'K' | b'O' = marker {
            full_before = marker == b'O';
            before = Some(self.old_tuple(tuples, schema, full_before, batch)?);
            marker = tuples.marker()?;
        }
        if marker != b'N' {
            return Err(tuples.unknown_marker(marker));
        }
        let after = if full_before {
            self.completed_tuple(tuples, schema, batch)?
        } else {
            tuples.image(schema, batch)?
        };
        tuples.end()?;
        Ok(Images {
            before,
            full_before,
            after: Some(after),
        })
    }

    /// The old row of a delete: `K` or `O` tuple.
    pub(super) fn delete(
        &mut self,
        tuples: &mut Tuples<'_>,
        schema: &TableSchema,
        batch: &mut Batch,
    ) -> Result<Images> {
        let full_before = match tuples.marker()? {
            b'O' => true,
            b'K' => false,
            marker => return Err(tuples.unknown_marker(marker)),
        };
        let before = self.old_tuple(tuples, schema, full_before, batch)?;
        tuples.end()?;
        Ok(Images {
            before: Some(before),
            full_before,
            after: None,
        })
    }

    /// In a `K` tuple the columns outside the key are sent as NULL; they are no values.
    fn old_tuple(
        &mut self,
        tuples: &mut Tuples<'_>,
        schema: &TableSchema,
        full: bool,
        batch: &mut Batch,
    ) -> Result<u32> {
        let begin = tuples.begin(schema)?;
        self.old.clear();
        self.old.extend(schema.columns.iter().map(|_| tuples.cell()));
        tuples.ended(begin, schema)?;
        let columns = schema.columns.iter().zip(&self.old);
        let cells = columns.map(|(column, sent)| match *sent {
            Cell::NULL if !full && !column.identity => Cell::ABSENT,
            sent => sent,
        });
        Ok(batch.add_image(cells))
    }

    /// The new tuple after an `O` tuple: what was not sent because unchanged is in the old row.
    fn completed_tuple(
        &mut self,
        tuples: &mut Tuples<'_>,
        schema: &TableSchema,
        batch: &mut Batch,
    ) -> Result<u32> {
        let begin = tuples.begin(schema)?;
        let image = batch.add_image(self.old.iter().map(|old| match tuples.cell() {
            Cell::UNCHANGED => *old,
            sent => sent,
        }));
        tuples.ended(begin, schema)?;
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
pub(super) fn expect_identity(schema: &TableSchema) -> Result<()> {
    if schema.identity != Identity::Nothing {
        return Ok(());
    }
    Err(
        Error::new(Kind::Schema, "the source changed a row of a table without replica identity")
            .remedy("give the table a primary key or ALTER TABLE … REPLICA IDENTITY FULL and seed it again, or exclude it"),
    )
}
