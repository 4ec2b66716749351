//! Rows in text form.

use std::ops::Range;

use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{CommandCompleteBody, DataRowBody, RowDescriptionBody};

use crate::error::PgError;

/// One row. Its values share one buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    body: Bytes,
    cells: Box<[Option<Range<usize>>]>,
}

impl Row {
    pub(super) fn new(body: &DataRowBody) -> Result<Row, PgError> {
        let cells = all(body.ranges())?;
        Ok(Row {
            body: body.buffer_bytes().clone(),
            cells: cells.into_boxed_slice(),
        })
    }

    /// Number of columns.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether the row has no columns.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The value of a column as the server wrote it; `None` if it is NULL or there is no such column.
    pub fn get(&self, column: usize) -> Option<&[u8]> {
        let range = self.cells.get(column)?.clone()?;
        self.body.get(range)
    }

    /// The value of a column as text; `None` if it is NULL. An error if there is no such column, or it is not UTF-8.
    pub fn text(&self, column: usize) -> Result<Option<&str>, PgError> {
        if column >= self.cells.len() {
            return Err(PgError::protocol(format!(
                "the server's row has {} columns, column {} was expected",
                self.cells.len(),
                column + 1
            )));
        }
        self.get(column)
            .map(std::str::from_utf8)
            .transpose()
            .map_err(|_| PgError::protocol(format!("column {} of the server's row is not UTF-8", column + 1)))
    }
}

/// A result column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// The OID of its type.
    pub type_oid: u32,
}

/// The result of one statement of a simple query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryResult {
    /// The columns; none if the statement returns no rows.
    pub columns: Vec<Column>,
    /// The rows.
    pub rows: Vec<Row>,
    /// The command tag, for example `UPDATE 3`; empty for an empty statement.
    pub tag: String,
    /// The number of rows that the tag gives, 0 if it gives none.
    pub affected: u64,
}

pub(super) fn columns(body: &RowDescriptionBody) -> Result<Vec<Column>, PgError> {
    let columns = body.fields().map(|field| {
        Ok(Column {
            name: field.name().to_owned(),
            type_oid: field.type_oid(),
        })
    });
    all(columns)
}

/// All that are there. How many are announced is not believed: memory is taken for what has come.
fn all<T>(mut items: impl FallibleIterator<Item = T, Error = std::io::Error>) -> Result<Vec<T>, PgError> {
    let mut all = Vec::new();
    while let Some(item) = items.next().map_err(|e| PgError::malformed(&e))? {
        all.push(item);
    }
    Ok(all)
}

pub(super) fn tag(body: &CommandCompleteBody) -> Result<&str, PgError> {
    body.tag().map_err(|e| PgError::malformed(&e))
}

/// The row count at the end of a command tag (`INSERT 0 5`, `COPY 7`), 0 if there is none (`BEGIN`).
pub(super) fn affected(tag: &str) -> u64 {
    tag.rsplit(' ')
        .next()
        .and_then(|last| last.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_count_is_the_last_word_of_the_tag() {
        for (tag, rows) in [
            ("INSERT 0 5", 5),
            ("UPDATE 3", 3),
            ("COPY 7", 7),
            ("BEGIN", 0),
            ("CREATE TABLE", 0),
            ("", 0),
        ] {
            assert_eq!(affected(tag), rows, "{tag}");
        }
    }
}
