//! The consistent initial copy: a snapshot of the source read in parts, loaded into the target as bytes.

use std::borrow::Cow;

use bytes::Bytes;

use crate::BoxFuture;
use crate::model::{Position, TableName};

/// A format of bulk bytes that a snapshot can produce and a loader accept, such as an engine's COPY text, or its binary
/// form of certain types.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BulkFormat(pub Cow<'static, str>);

/// A part of a table that one connection copies: the whole table or a range of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePart {
    /// the table
    pub table: TableName,
    /// columns to copy, by name, generated ones left out
    pub columns: Vec<String>,
    /// the engine's own description of the range; `None` is the whole table
    pub range: Option<String>,
    /// which part of how many, from 0, for progress
    pub index: usize,
    /// how many parts the table has
    pub of: usize,
}

/// A consistent view of the source tied to a position: exactly the transactions up to it. Lives as long as the
/// connection that made it; all copies of one process share it.
pub trait Snapshot: Send + Sync {
    /// The position the stream continues from.
    fn position(&self) -> &Position;

    /// Divides a table for parallel copying into parts of roughly `part_bytes`.
    ///
    /// # Errors
    /// When the table cannot be inspected.
    fn parts<'a>(&'a self, table: &'a TableName, part_bytes: u64) -> BoxFuture<'a, Vec<TablePart>>;

    /// Opens one part for reading on a connection of its own, in the first of the formats that it can be had in.
    ///
    /// # Errors
    /// When the snapshot is gone, the table cannot be read, or it can be had in none of the formats.
    fn read<'a>(
        &'a self,
        part: &'a TablePart,
        formats: &'a [BulkFormat],
    ) -> BoxFuture<'a, Box<dyn BulkReader>>;

    /// Checks that the snapshot still stands (its connection is alive).
    ///
    /// # Errors
    /// When it is gone.
    fn alive(&self) -> BoxFuture<'_, ()>;
}

/// Reads the bulk bytes of one part.
pub trait BulkReader: Send {
    /// The format of the bytes.
    fn format(&self) -> BulkFormat;

    /// The next bytes, or `None` at the end. Each is at least 64 KiB where the table is that large.
    ///
    /// # Errors
    /// When the connection or the snapshot is lost.
    fn next(&mut self) -> BoxFuture<'_, Option<Bytes>>;
}

/// Loads the bulk bytes of one part in one target transaction.
pub trait BulkLoader: Send {
    /// Sends bytes.
    ///
    /// # Errors
    /// When the target refuses them; names table and the row where the server says so.
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, ()>;

    /// Commits; returns the number of rows loaded.
    ///
    /// # Errors
    /// When the target refuses the rows; nothing of the part is on the target then.
    fn finish(self: Box<Self>) -> BoxFuture<'static, u64>;

    /// Gives the part up.
    ///
    /// # Errors
    /// When the connection is lost; nothing of the part is on the target all the same.
    fn abort(self: Box<Self>) -> BoxFuture<'static, ()>;
}
