//! What a site is known by: its identity, tables, findings, the state of a stream on it.

use std::any::Any;
use std::time::Duration;

use serde::Serialize;

use crate::model::{Position, TableName};
use crate::sink::Checkpoint;

/// Who a database is, whatever the spelling of its URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SiteIdentity {
    /// the product and its version, for people (`PostgreSQL 16.14`)
    pub product: String,
    /// the server's own identity (PostgreSQL system identifier)
    pub system: String,
    /// the database
    pub database: String,
    /// the history of the log (PostgreSQL timeline), or empty
    pub timeline: String,
}

/// Names that a job uses on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobNames {
    /// the job id; also the name of its stream
    pub job: String,
    /// slot and publication
    pub slot: String,
}

/// A statement that brings a table of a target into its source's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alteration {
    /// the table, as the target calls it
    pub table: TableName,
    /// one or several statements, each with its semicolon, or a choice between some, in words
    pub statement: String,
}

/// A table of a job that has another name than when the job began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenamedTable {
    /// what it is called now
    pub now: TableName,
    /// what it was called; several where more than one table could be meant
    pub was: Vec<TableName>,
}

/// What is known of one table of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableInfo {
    /// name
    pub name: TableName,
    /// columns in order; generated ones are flagged
    pub columns: Vec<ColumnInfo>,
    /// columns of the primary key, empty without one
    pub primary_key: Vec<String>,
    /// the columns of each unique key that holds for all rows, the primary key's included
    pub unique_keys: Vec<Vec<String>>,
    /// unique and exclusion constraints whose violations cannot be foreseen from a row's columns (partial, on expressions,
    /// deferrable and the like), by name
    pub opaque_constraints: Vec<String>,
    /// columns that the server numbers and lets nobody update
    pub fixed_columns: Vec<String>,
    /// whether an update may leave unchanged values out of the log, unless it has whole old rows
    pub leaves_out_values: bool,
    /// how old rows are identified in the log, in the product's words (`default`, `full`, `index`, `nothing`)
    pub identity: String,
    /// whether updates and deletes can be replicated
    pub has_identity: bool,
    /// rows, as the server estimates them
    pub estimated_rows: u64,
    /// bytes on disk, without indexes
    pub bytes: u64,
}

/// What is known of one column of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnInfo {
    /// name
    pub name: String,
    /// the product's name of the type, with modifiers
    pub type_name: String,
    /// whether NULL is refused
    pub not_null: bool,
    /// whether a row that says nothing of the column gets a value
    pub has_default: bool,
    /// whether the server computes it
    pub generated: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// good to know
    Info,
    /// works, but see to it
    Warn,
    /// the job cannot run
    Fail,
}

/// Which database a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// blue
    Source,
    /// green
    Target,
    /// the two together
    Both,
}

/// One result of `check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// stable id, such as `PG-WAL-LEVEL`
    pub id: &'static str,
    /// how bad
    pub severity: Severity,
    /// where
    pub side: Side,
    /// the table, setting or role
    pub object: String,
    /// what is wrong
    pub message: String,
    /// what to do, with the statement to run where there is one
    pub remedy: String,
}

/// What of a site its peer is compared with, in a form that a site of the same product understands.
#[derive(Debug)]
pub struct SiteProfile {
    /// the product that wrote it
    pub product: &'static str,
    /// the product's own facts
    pub facts: Box<dyn Any + Send + Sync>,
}

/// The schema of the selected tables in a form that a site of the same product restores.
#[derive(Debug)]
pub struct SchemaDump {
    /// the product that wrote it
    pub product: &'static str,
    /// the product's own archive
    pub archive: Box<dyn Any + Send + Sync>,
}

/// Which part of a schema to create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaPhase {
    /// schemas, types, functions, tables, sequences
    BeforeData,
    /// indexes, primary keys and other constraints within a table
    AfterData,
    /// what spans tables or acts on changes: foreign keys, triggers, the rest. Tables that were seeded from
    /// different snapshots agree only when the stream has passed the newest of these.
    AfterCatchUp,
}

/// How far a table's seed has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SeedPhase {
    /// not begun
    Todo,
    /// begun; after a restart it is copied again from the start
    Copying,
    /// complete
    Live,
    /// taken out of the stream, to be copied anew beside it
    Aside,
}

/// The seed of one table, as stored on the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedTable {
    /// the table
    pub table: TableName,
    /// how far it has come
    pub phase: SeedPhase,
    /// the position of the snapshot it was copied from
    pub position: Position,
    /// rows copied
    pub rows: u64,
    /// bytes copied
    pub bytes: u64,
}

/// Everything about a stream that the target stores, read in one go.
#[derive(Debug, Clone)]
pub struct StreamState {
    /// the checkpoint; `None` before the seed begins
    pub checkpoint: Option<Checkpoint>,
    /// the seed, table by table
    pub seed: Vec<SeedTable>,
    /// whether cdc-sync created the target's schema and still has indexes and constraints to add
    pub schema_pending: bool,
}

/// What the source keeps for a stream's sake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retention {
    /// bytes of log that the stream holds back
    pub retained_bytes: u64,
    /// bytes that can still be written before the log is cut; `None` without a limit
    pub safe_bytes: Option<u64>,
    /// the product's own word for it (`reserved`, `extended`, `unreserved`, `lost`)
    pub status: String,
}

/// A sequence and what it was set to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SequenceAdvance {
    /// the sequence
    pub sequence: TableName,
    /// its last value on the source
    pub source: i64,
    /// its last value on the target before
    pub before: i64,
    /// its last value on the target after
    pub after: i64,
}

/// What a running instance last said about itself, see [`super::Site::publish_status`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedStatus {
    /// the text as published
    pub status: String,
    /// how long ago, by the target's clock
    pub age: Duration,
}

/// Something that was done for a stream, as its history has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryEvent {
    /// when, by the target's clock, RFC 3339; filled in when it is read
    pub time: String,
    /// what: `begun`, `seeded`, or the verb
    pub kind: String,
    /// the verb's exit code
    pub exit: Option<i32>,
    /// what the settings came to, as a hash
    pub config: Option<String>,
    /// a JSON object
    pub facts: String,
}

/// A request of a `verify` to the running instance to stand still for a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Barrier {
    /// Stop applying wherever the stream is.
    Hold,
    /// Apply exactly what a snapshot at this position contains, then stop.
    HoldAt(Position),
}

/// A sequence of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceState {
    /// the sequence
    pub name: TableName,
    /// the value it last gave, or would give first when never used
    pub last_value: i64,
    /// whether it has given a value
    pub is_called: bool,
    /// its step, negative when descending
    pub increment: i64,
    /// the tables that take their values from it: by a column that owns it, or by a default
    pub tables: Vec<TableName>,
}

/// Whether a target table is there and holds rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupancy {
    /// does not exist
    Missing,
    /// exists without rows
    Empty,
    /// holds at least one row
    Rows,
}

/// What `cleanup` did on one side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CleanupReport {
    /// objects dropped (or that would be)
    pub dropped: Vec<String>,
    /// objects of cdc-sync that stay, with the reason
    pub stays: Vec<String>,
}
