//! Bringing rows of the target to what the source has, where a comparison found that they differ.
//!
//! A comparison of long ago says only *which* rows to look at. What is written is read from a view of the source that
//! stands where the target's checkpoint stands, and the target refuses it when its checkpoint is another by then: a
//! row that the stream has brought meanwhile is never overwritten with an older one.

use crate::BoxFuture;
use crate::model::TableName;
use crate::sink::Checkpoint;

/// A row as text, column by column; `None` is NULL.
pub type TextRow = Vec<Option<Box<str>>>;

/// Rows of a table to look at.
#[derive(Debug, Clone)]
pub struct Asked<'a> {
    /// the table
    pub table: &'a TableName,
    /// the columns that are compared
    pub columns: &'a [String],
    /// those by which a row is found; without any, equal rows are counted
    pub key: &'a [String],
    /// of each row its key, without a key all its columns
    pub rows: &'a [TextRow],
}

/// What a view has of a row that was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// how many rows are like it: with a key, none or one
    pub copies: u64,
    /// with a key, the columns of the row that has it
    pub row: Option<TextRow>,
}

/// Rows written to a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mended {
    /// rows that the target lacked
    pub inserted: u64,
    /// rows that had other values
    pub updated: u64,
    /// rows that the source does not have
    pub deleted: u64,
}

impl std::ops::AddAssign for Mended {
    fn add_assign(&mut self, other: Self) {
        self.inserted += other.inserted;
        self.updated += other.updated;
        self.deleted += other.deleted;
    }
}

impl Mended {
    /// Rows written in any way.
    pub fn rows(&self) -> u64 {
        self.inserted + self.updated + self.deleted
    }
}

/// A connection that writes what a repair found, with triggers, foreign keys and marks as the stream's own has them.
pub trait Mender: Send {
    /// Makes the rows of `asked` what `source` says the source has of each, in one transaction, if the stream's
    /// checkpoint is still `at`; `None` when it is not, and nothing was written. While the transaction runs, none of
    /// the stream's can.
    ///
    /// # Errors
    /// [`crate::Kind::Unverifiable`] when a key finds several rows; [`crate::Kind::Data`] and
    /// [`crate::Kind::Conflict`] when the table refuses a row. Nothing was written then, unless the connection was
    /// lost at the end.
    fn mend<'a>(
        &'a mut self,
        at: &'a Checkpoint,
        asked: &'a Asked<'a>,
        source: &'a [Found],
    ) -> BoxFuture<'a, Option<Mended>>;
}
