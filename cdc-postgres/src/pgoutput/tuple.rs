//! Tuples (TupleData): one copy of the bytes into the slab, cells that point into it.

use cdc_core::model::Identity;
use cdc_core::{Batch, Cell, Error, Kind, Result, TableSchema};

use super::cursor::{Cursor, Flaw, Malformed};

/// What a tuple says of one column. The four states are never merged: an unchanged TOAST value is not NULL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    /// `n`
    Null,
    /// `u`: stored out of line and not changed, therefore not sent
    Unchanged,
    /// `t`: offset in the message and length
    Text(usize, usize),
}

#[inline]
fn field(cursor: &mut Cursor<'_>) -> Result<Field, Malformed> {
    match cursor.u8("column kind")? {
        b't' => {
            let length = cursor.u32("column length")? as usize;
            let at = cursor.at();
            cursor.skip(length, "column value")?;
            Ok(Field::Text(at, length))
        }
        b'n' => Ok(Field::Null),
        b'u' => Ok(Field::Unchanged),
        // Binary values are sent on request only, and none was made.
        kind => Err(cursor.unknown("column kind", kind)),
    }
}

/// A column of the old tuple, kept while the new one is read.
#[derive(Clone, Copy, Debug)]
enum Kept {
    Null,
    Unchanged,
    Bytes(u32, u32),
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
    old: Vec<Kept>,
}

/// What is being read: the message, and where its tuples are in the slab.
struct Copied<'a> {
    cursor: Cursor<'a>,
    /// slab offset of the message's byte `begin`
    base: u32,
    begin: usize,
}

impl<'a> Copied<'a> {
    fn new(tuples: Cursor<'a>, batch: &mut Batch) -> Result<Copied<'a>> {
        Ok(Copied {
            base: batch.append(tuples.rest())?,
            begin: tuples.at(),
            cursor: tuples,
        })
    }

    /// A value's offset in the slab. It lies within what [`Batch::append`] took, so it fits.
    #[inline]
    fn slab(&self, at: usize) -> u32 {
        self.base + (at - self.begin) as u32
    }
}

impl TupleReader {
    /// The new row of an insert: `N` tuple.
    #[inline]
    pub(super) fn insert(
        &mut self,
        tuples: Cursor<'_>,
        schema: &TableSchema,
        batch: &mut Batch,
    ) -> Result<Images> {
        let mut copied = Copied::new(tuples, batch)?;
        match copied.cursor.u8("tuple marker")? {
            b'N' => {}
            marker => return Err(copied.cursor.unknown("tuple marker", marker).into()),
        }
        let after = new_tuple(&mut copied, schema, batch)?;
        copied.cursor.end()?;
        Ok(Images {
            before: None,
            full_before: false,
            after: Some(after),
        })
    }

    /// Old and new row of an update: optional `K` or `O` tuple, `N` tuple.
    pub(super) fn update(
        &mut self,
        tuples: Cursor<'_>,
        schema: &TableSchema,
        batch: &mut Batch,
    ) -> Result<Images> {
        let mut copied = Copied::new(tuples, batch)?;
        let mut marker = copied.cursor.u8("tuple marker")?;
        let (mut before, mut full_before) = (None, false);
        if let b'K' | b'O' = marker {
            full_before = marker == b'O';
            before = Some(self.old_tuple(&mut copied, schema, full_before, batch)?);
            marker = copied.cursor.u8("tuple marker")?;
        }
        if marker != b'N' {
            return Err(copied.cursor.unknown("tuple marker", marker).into());
        }
        let after = if full_before {
            self.completed_tuple(&mut copied, schema, batch)?
        } else {
            new_tuple(&mut copied, schema, batch)?
        };
        copied.cursor.end()?;
        Ok(Images {
            before,
            full_before,
            after: Some(after),
        })
    }

    /// The old row of a delete: `K` or `O` tuple.
    pub(super) fn delete(
        &mut self,
        tuples: Cursor<'_>,
        schema: &TableSchema,
        batch: &mut Batch,
    ) -> Result<Images> {
        let mut copied = Copied::new(tuples, batch)?;
        let full_before = match copied.cursor.u8("tuple marker")? {
            b'O' => true,
            b'K' => false,
            marker => return Err(copied.cursor.unknown("tuple marker", marker).into()),
        };
        let before = self.old_tuple(&mut copied, schema, full_before, batch)?;
        copied.cursor.end()?;
        Ok(Images {
            before: Some(before),
            full_before,
            after: None,
        })
    }

    /// In a `K` tuple the columns outside the key are sent as NULL; they are no values.
    fn old_tuple(
        &mut self,
        copied: &mut Copied<'_>,
        schema: &TableSchema,
        full: bool,
        batch: &mut Batch,
    ) -> Result<u32> {
        expect_columns(&mut copied.cursor, schema)?;
        self.old.clear();
        let image = batch.next_cell();
        for column in &schema.columns {
            match field(&mut copied.cursor)? {
                Field::Text(at, length) => {
                    let (off, len) = (copied.slab(at), length as u32);
                    batch.cell_at(off, len);
                    self.old.push(Kept::Bytes(off, len));
                }
                Field::Null => {
                    batch.cell(if full || column.identity {
                        Cell::NULL
                    } else {
                        Cell::ABSENT
                    });
                    self.old.push(Kept::Null);
                }
                Field::Unchanged => {
                    batch.cell(Cell::UNCHANGED);
                    self.old.push(Kept::Unchanged);
                }
            }
        }
        Ok(image)
    }

    /// The new tuple after an `O` tuple: what was not sent because unchanged is in the old row.
    fn completed_tuple(
        &mut self,
        copied: &mut Copied<'_>,
        schema: &TableSchema,
        batch: &mut Batch,
    ) -> Result<u32> {
        expect_columns(&mut copied.cursor, schema)?;
        let image = batch.next_cell();
        for kept in &self.old {
            match field(&mut copied.cursor)? {
                Field::Text(at, length) => batch.cell_at(copied.slab(at), length as u32),
                Field::Null => batch.cell(Cell::NULL),
                Field::Unchanged => match *kept {
                    Kept::Bytes(off, len) => batch.cell_at(off, len),
                    Kept::Null => batch.cell(Cell::NULL),
                    Kept::Unchanged => batch.cell(Cell::UNCHANGED),
                },
            }
        }
        Ok(image)
    }
}

#[inline]
fn new_tuple(copied: &mut Copied<'_>, schema: &TableSchema, batch: &mut Batch) -> Result<u32> {
    expect_columns(&mut copied.cursor, schema)?;
    let image = batch.next_cell();
    for _ in &schema.columns {
        match field(&mut copied.cursor)? {
            Field::Text(at, length) => batch.cell_at(copied.slab(at), length as u32),
            Field::Null => batch.cell(Cell::NULL),
            Field::Unchanged => batch.cell(Cell::UNCHANGED),
        }
    }
    Ok(image)
}

/// A tuple has exactly the columns that the Relation message announced.
#[inline]
fn expect_columns(cursor: &mut Cursor<'_>, schema: &TableSchema) -> Result<()> {
    let count = usize::from(cursor.u16("number of columns")?);
    if count == schema.columns.len() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Protocol,
        format!(
            "a row has {count} columns, but the server announced the table with {}",
            schema.columns.len()
        ),
    )
    .remedy(
        "PostgreSQL 15.0 and 15.1 send such rows for publications with column lists: update the server to a newer \
         minor release",
    ))
}

/// Whether column `column` of the new row of an insert or update holds exactly `wanted`.
pub(super) fn new_column_is(mut tuples: Cursor<'_>, column: usize, wanted: &[u8]) -> Result<bool, Malformed> {
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
    if let Field::Text(..) = field(&mut tuples.clone())? {
        tuples.u8("column kind")?;
        let length = tuples.u32("column length")? as usize;
        return Ok(tuples.take(length, "column value")? == wanted);
    }
    Ok(false)
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
