//! Tables as a source describes them in its stream.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::types::{DataType, Encoding};
use super::value::Value;
use crate::error::Result;

/// A table's schema-qualified name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// schema (PostgreSQL, SQL Server) or database (MySQL)
    pub schema: String,
    /// table
    pub name: String,
}

impl TableName {
    /// Names a table.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// How the source identifies the old row of an update or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// By the columns flagged [`ColumnSchema::identity`]; the old image carries those when they change.
    Key,
    /// By the whole old row.
    Full,
    /// Not at all: only inserts and truncates can come.
    Nothing,
}

/// What a table is to cdc-sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableRole {
    /// A user's table: its changes are applied and counted.
    User,
    /// The heartbeat table on the source: read for lag, never applied. Columns `stream`, `beat`.
    Heartbeat,
    /// The marker table on the source: read to know that a point was reached. Columns `stream`, `id`.
    Marker,
}

/// Reads a cell's bytes as a typed value. Compiled by the source engine once per schema version; called only
/// by sinks of another encoding, and for heartbeat and marker rows.
pub trait CellReader: Send + Sync + fmt::Debug {
    /// The typed value of non-NULL `bytes` of `column`.
    ///
    /// # Errors
    /// When the bytes are not of the column's type and encoding.
    fn value<'a>(&self, column: &ColumnSchema, bytes: &'a [u8]) -> Result<Value<'a>>;
}

/// One column of one version of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnSchema {
    /// name
    pub name: String,
    /// what it holds
    pub data_type: DataType,
    /// its type in the source's own words, length and precision included; empty where it is not known
    pub declared: Box<str>,
    /// how its bytes are encoded in a batch
    pub encoding: Encoding,
    /// whether it is part of the replica identity
    pub identity: bool,
}

/// One version of a table as its source describes it. Shared by all changes decoded under it; a decoder hands
/// out a new one only when the description really changed.
#[derive(Debug, Clone)]
pub struct TableSchema {
    /// name
    pub name: TableName,
    /// columns in stream order
    pub columns: Vec<ColumnSchema>,
    /// how old rows are identified
    pub identity: Identity,
    /// what the table is to cdc-sync
    pub role: TableRole,
    /// reads this version's cells
    pub reader: Arc<dyn CellReader>,
}

impl TableSchema {
    /// Whether `other` describes the same columns and identity, so that changes of both may be merged.
    pub fn same_shape(&self, other: &Self) -> bool {
        self.name == other.name && self.columns == other.columns && self.identity == other.identity
    }

    /// The place of the column called `name`.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}
