//! How a database is reached, inspected and prepared: [`Engine`] and [`Site`].
//!
//! A `Site` is one database in its role as source (blue) or target (green). The verbs of the binary are
//! written against it alone; adding a database product is one implementation of these two traits.

mod selection;

use std::any::Any;
use std::time::Duration;

use serde::Serialize;

use crate::BoxFuture;
use crate::compare::RowBuffer;
use crate::model::{Position, TableName};
use crate::plan::TargetTable;
use crate::seed::{BulkFormat, BulkLoader, Snapshot, TablePart};
use crate::sink::{Checkpoint, Sink};
use crate::source::{Decoder, Source};

pub use selection::TableSelection;

/// One database product.
pub trait Engine: Send + Sync {
    /// The URL schemes it answers to.
    fn schemes(&self) -> &'static [&'static str];

    /// Parses `url` and connects, waiting up to `timeout` for the server to come up.
    ///
    /// # Errors
    /// [`crate::Kind::Config`] for a wrong URL, naming the parameters there are; [`crate::Kind::Unreachable`]
    /// and [`crate::Kind::Login`] for a server that cannot be reached or refuses.
    fn connect<'a>(&'a self, url: &'a str, timeout: Duration) -> BoxFuture<'a, Box<dyn Site>>;
}

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

/// The exclusive right to apply a stream. Held while it lives; dropping it lets the next instance in.
pub trait Fence: Send {
    /// This instance's epoch.
    fn epoch(&self) -> i64;

    /// Looks whether the right is still held.
    ///
    /// # Errors
    /// [`crate::Kind::Fenced`] when another instance has taken over; an action to reconnect when the holding
    /// connection is lost.
    fn check(&mut self) -> BoxFuture<'_, ()>;
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

/// Rows of a table in the order of its key, as text, for comparing two sites.
pub trait OrderedRows: Send {
    /// Fills `rows` with the next rows (appending to a cleared buffer); `false` at the end.
    ///
    /// # Errors
    /// When the connection or the snapshot is lost.
    fn next<'a>(&'a mut self, rows: &'a mut RowBuffer) -> BoxFuture<'a, bool>;
}

/// A frozen view of a site for comparing it.
pub trait CompareView: Send + Sync {
    /// The position the view stands at, on a source.
    fn position(&self) -> Option<&Position>;

    /// Rows of `table`, columns in the order given, ordered by `key` as the order rule of [`crate::compare`]
    /// says. With an empty key the order is that of the whole content.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn rows<'a>(
        &'a self,
        table: &'a TableName,
        columns: &'a [String],
        key: &'a [String],
    ) -> BoxFuture<'a, Box<dyn OrderedRows>>;
}

/// The log opened for looking at it, see [`Site::tail`].
pub struct TailStream {
    /// the source, already reading
    pub source: Box<dyn Source>,
    /// decodes what it reads
    pub decoder: Box<dyn Decoder>,
}

/// What a running instance last said about itself, see [`Site::publish_status`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedStatus {
    /// the text as published
    pub status: String,
    /// how long ago, by the target's clock
    pub age: Duration,
}

/// A request of a `verify` to the running instance to stand still for a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Barrier {
    /// Stop applying wherever the stream is.
    Hold,
    /// Apply exactly what a snapshot at this position contains, then stop.
    HoldAt(Position),
}

/// One database, connected. Methods that need a connection of their own open it from the same URL.
///
/// Methods are grouped by role; a product that cannot be a source or a target says so in the error.
pub trait Site: Send + Sync {
    /// Who it is.
    fn identity(&self) -> &SiteIdentity;

    /// Its URL without secrets.
    fn display_url(&self) -> String;

    /// The user tables there are, selected ones only.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn inspect<'a>(&'a self, selection: &'a TableSelection) -> BoxFuture<'a, Vec<TableInfo>>;

    /// What speaks against using this site in its role, or should be known. Read-only.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn findings<'a>(
        &'a self,
        side: Side,
        names: &'a JobNames,
        selection: &'a TableSelection,
    ) -> BoxFuture<'a, Vec<Finding>>;

    /// What a peer must match or provide for the selected tables. Read-only.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn profile<'a>(&'a self, selection: &'a TableSelection) -> BoxFuture<'a, SiteProfile>;

    /// What speaks against replicating from the site of `source` into this one, seen from the two together
    /// ([`Side::Both`]). A profile of another product has no findings.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn pair_findings<'a>(
        &'a self,
        source: &'a SiteProfile,
        selection: &'a TableSelection,
    ) -> BoxFuture<'a, Vec<Finding>>;

    // --- source ---

    /// Dumps the schema of the selected tables and what they need. `peer_tools_dir` is where the product's
    /// own dump programs are, if the user said so.
    ///
    /// # Errors
    /// When the dump program is missing, too old or fails; says which and where it was looked for.
    fn dump_schema<'a>(
        &'a self,
        selection: &'a TableSelection,
        target: &'a SiteIdentity,
        tools_dir: Option<&'a std::path::Path>,
    ) -> BoxFuture<'a, SchemaDump>;

    /// Makes sure the source publishes `tables` together with heartbeat and marker tables, creating what is
    /// missing. Must precede [`Site::create_snapshot`].
    ///
    /// # Errors
    /// When a right is missing.
    fn prepare_source<'a>(&'a self, names: &'a JobNames, tables: &'a [TableName]) -> BoxFuture<'a, ()>;

    /// Creates the stream's server-side cursor and a snapshot consistent with it. With `permanent` false the
    /// cursor is temporary: a snapshot for copying or comparing only.
    ///
    /// # Errors
    /// When the cursor exists already, or the server cannot create it.
    fn create_snapshot<'a>(
        &'a self,
        names: &'a JobNames,
        permanent: bool,
    ) -> BoxFuture<'a, Box<dyn Snapshot>>;

    /// Looks whether the log still has what the stream read up to `checkpoint`, and returns the identity under which
    /// it goes on: after a promotion of a standby its timeline is the new one. That is the identity for
    /// [`Site::source`] and for the checkpoints that follow; a later look compares with it.
    ///
    /// # Errors
    /// [`crate::Kind::PositionLost`] when this is another server, or its log lacks what was applied.
    fn resume<'a>(&'a self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, crate::SourceIdentity> {
        Box::pin(async move { Ok(checkpoint.source.clone()) })
    }

    /// Reads the log for the stream. `identity` comes from [`Site::resume`].
    ///
    /// # Errors
    /// When the names are not valid on this product.
    fn source(&self, names: &JobNames, identity: &crate::SourceIdentity) -> crate::Result<Box<dyn Source>>;

    /// Opens the log for looking at it, from now on. With `cursor` an existing cursor is read; without, one that
    /// vanishes with the connection, and what else is needed for the purpose is removed with it or by
    /// [`Site::cleanup`] under the same names. Nothing is confirmed unless [`Source::confirm`] is told a
    /// position. The decoder delivers selected tables only, its cells in the product's text form (UTF-8).
    ///
    /// # Errors
    /// [`crate::Kind::Fenced`] when the cursor is in use; [`crate::Kind::Config`] when it does not exist or is
    /// not one that the decoder reads.
    fn tail<'a>(
        &'a self,
        names: &'a JobNames,
        selection: &'a TableSelection,
        cursor: Option<&'a str>,
    ) -> BoxFuture<'a, TailStream>;

    /// What the source retains for the stream; `None` when it keeps no cursor of that name.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn retention<'a>(&'a self, names: &'a JobNames) -> BoxFuture<'a, Option<Retention>>;

    /// The newest position of the log, and the bytes between `applied` and it.
    ///
    /// # Errors
    /// When the log cannot be asked.
    fn log_end<'a>(&'a self, applied: Option<&'a Position>) -> BoxFuture<'a, (Position, u64)>;

    /// Writes the heartbeat row `beat` of the stream.
    ///
    /// # Errors
    /// When the write fails.
    fn beat<'a>(&'a self, names: &'a JobNames, beat: i64) -> BoxFuture<'a, ()>;

    /// Writes a marker row with `id`, committed when this returns.
    ///
    /// # Errors
    /// When the write fails.
    fn mark<'a>(&'a self, names: &'a JobNames, id: &'a str) -> BoxFuture<'a, ()>;

    /// The last values of the sequences of the selected tables' schemas: name, last value, increment, whether
    /// it was ever used.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn sequences(&self) -> BoxFuture<'_, Vec<SequenceState>>;

    // --- target ---

    /// Which of `tables` exist, and of these which hold rows.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn occupancy<'a>(&'a self, tables: &'a [TableName]) -> BoxFuture<'a, Vec<(TableName, Occupancy)>>;

    /// Creates a part of a dumped schema.
    ///
    /// # Errors
    /// When the dump is of another product or a statement fails; names the statement.
    fn create_schema<'a>(&'a self, dump: &'a SchemaDump, phase: SchemaPhase) -> BoxFuture<'a, ()>;

    /// Creates schema `cdc_sync` and its tables where missing.
    ///
    /// # Errors
    /// When a right is missing, or the tables are of a newer format.
    fn prepare_state(&self) -> BoxFuture<'_, ()>;

    /// Becomes the one instance that applies the stream: waits until the former one is gone and its last
    /// transaction has ended.
    ///
    /// # Errors
    /// [`crate::Kind::Fenced`] when a live instance does not go within `takeover_timeout`, naming it.
    fn take_fence<'a>(&'a self, stream: &'a str, takeover_timeout: Duration)
    -> BoxFuture<'a, Box<dyn Fence>>;

    /// Reads what is stored of the stream.
    ///
    /// # Errors
    /// When the format is newer than this program's.
    fn stream_state<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, StreamState>;

    /// Stores the first checkpoint and the list of tables to seed, in one transaction under the fence.
    ///
    /// # Errors
    /// [`crate::Kind::Fenced`] when the epoch is not current.
    fn start_stream<'a>(
        &'a self,
        epoch: i64,
        checkpoint: &'a Checkpoint,
        seed: &'a [SeedTable],
        schema_pending: bool,
    ) -> BoxFuture<'a, ()>;

    /// Whether [`Site::intend_cursor`] was called for the stream's cursor on `source` and no checkpoint has followed.
    ///
    /// # Errors
    /// When the read fails.
    fn intends_cursor<'a>(
        &'a self,
        stream: &'a str,
        source: &'a crate::SourceIdentity,
    ) -> BoxFuture<'a, bool>;

    /// Notes, before the first checkpoint, that the stream is about to create its cursor on `source`, or with
    /// `wanted` false that it will not: only a cursor that was intended here is a leftover of ours when a first run
    /// is interrupted. The first checkpoint ends it.
    ///
    /// # Errors
    /// [`crate::Kind::Fenced`] when the epoch is not current.
    fn intend_cursor<'a>(
        &'a self,
        stream: &'a str,
        epoch: i64,
        source: &'a crate::SourceIdentity,
        wanted: bool,
    ) -> BoxFuture<'a, ()>;

    /// Notes, before the first checkpoint, that the stream is about to create the target's schema, so that indexes
    /// and constraints follow whatever interrupts the first run.
    ///
    /// # Errors
    /// [`crate::Kind::Fenced`] when the epoch is not current.
    fn begin_schema<'a>(&'a self, stream: &'a str, epoch: i64) -> BoxFuture<'a, ()>;

    /// Stores how far a table's seed has come. With phase `Copying` the table is emptied in the same
    /// transaction.
    ///
    /// # Errors
    /// [`crate::Kind::Fenced`] when the epoch is not current.
    fn store_seed<'a>(&'a self, stream: &'a str, epoch: i64, seed: &'a SeedTable) -> BoxFuture<'a, ()>;

    /// Notes that indexes and constraints have been added and statistics gathered.
    ///
    /// # Errors
    /// [`crate::Kind::Fenced`] when the epoch is not current.
    fn finish_schema<'a>(&'a self, stream: &'a str, epoch: i64) -> BoxFuture<'a, ()>;

    /// Gathers statistics of the tables.
    ///
    /// # Errors
    /// When the statement fails.
    fn analyze<'a>(&'a self, tables: &'a [TableName]) -> BoxFuture<'a, ()>;

    /// Empties the tables.
    ///
    /// # Errors
    /// When the statement fails.
    fn truncate<'a>(&'a self, tables: &'a [TableName]) -> BoxFuture<'a, ()>;

    /// Loads a part of a table's seed, in one transaction under the fence.
    ///
    /// # Errors
    /// When the format is not this product's or the table cannot be written; from the loader,
    /// [`crate::Kind::Fenced`] when the epoch is not current.
    fn loader<'a>(
        &'a self,
        stream: &'a str,
        epoch: i64,
        part: &'a TablePart,
        format: BulkFormat,
    ) -> BoxFuture<'a, Box<dyn BulkLoader>>;

    /// The facts about target tables that planning needs.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn target_tables<'a>(&'a self, selection: &'a TableSelection) -> BoxFuture<'a, Vec<TargetTable>>;

    /// A connection that applies the stream under `epoch`.
    ///
    /// # Errors
    /// When the connection cannot be made.
    fn sink<'a>(&'a self, stream: &'a str, epoch: i64) -> BoxFuture<'a, Box<dyn Sink>>;

    /// Sets each sequence to `max(target, source + buffer × increment)`. One that no replicated table takes values from
    /// may be missing: it is left out.
    ///
    /// # Errors
    /// When a sequence of a replicated table is missing, or one would have no value left before its limit. None has been
    /// set then.
    fn advance_sequences<'a>(
        &'a self,
        source: &'a [SequenceState],
        buffer: u32,
    ) -> BoxFuture<'a, Vec<SequenceAdvance>>;

    /// Stores or removes a verify's request to stand still, with the position reached.
    ///
    /// # Errors
    /// When the write fails.
    fn request_barrier<'a>(&'a self, stream: &'a str, barrier: Option<&'a Barrier>) -> BoxFuture<'a, ()>;

    /// The current request, for the running instance; requests whose requester is gone are none.
    ///
    /// # Errors
    /// When the read fails.
    fn barrier<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Option<Barrier>>;

    /// Tells the requester that the instance stands still at `position`.
    ///
    /// # Errors
    /// When the write fails.
    fn barrier_reached<'a>(
        &'a self,
        stream: &'a str,
        barrier: &'a Barrier,
        position: &'a Position,
    ) -> BoxFuture<'a, ()>;

    /// The position at which the running instance stands still for `barrier`; `None` while it does not.
    ///
    /// # Errors
    /// When the read fails.
    fn barrier_state<'a>(&'a self, stream: &'a str, barrier: &'a Barrier) -> BoxFuture<'a, Option<Position>>;

    /// Whether an instance holds the stream now, and who (application, address, process).
    ///
    /// # Errors
    /// When the read fails.
    fn holder<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Option<String>>;

    /// Stores what the running instance says of itself (JSON), for `status` in other processes. Not fenced and
    /// not part of any data transaction.
    ///
    /// # Errors
    /// When the write fails.
    fn publish_status<'a>(&'a self, stream: &'a str, status: &'a str) -> BoxFuture<'a, ()>;

    /// What the stream's newest instance last said of itself; `None` when nothing, or without state on this
    /// site.
    ///
    /// # Errors
    /// When the read fails.
    fn published_status<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Option<PublishedStatus>>;

    // --- both ---

    /// The statements by which this site is prepared for its role, in order, for people to review; each ends
    /// with a semicolon and may be preceded by comments. Runs nothing that changes the site.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn preparation<'a>(
        &'a self,
        side: Side,
        names: &'a JobNames,
        selection: &'a TableSelection,
    ) -> BoxFuture<'a, Vec<String>>;

    /// The statements that give the login of this site's URL the rights it needs in its role, for an administrator to
    /// review and run, in order; `source` is the source's profile, for the target. Changes nothing.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn grants<'a>(
        &'a self,
        side: Side,
        names: &'a JobNames,
        selection: &'a TableSelection,
        source: Option<&'a SiteProfile>,
    ) -> BoxFuture<'a, Vec<String>>;

    /// A frozen view for comparing. On a source, tied to a position.
    ///
    /// # Errors
    /// When the view cannot be made.
    fn compare_view<'a>(&'a self, side: Side, names: &'a JobNames) -> BoxFuture<'a, Box<dyn CompareView>>;

    /// Drops what the job made on this side; returns what was dropped and what stays.
    ///
    /// # Errors
    /// When a statement fails.
    fn cleanup<'a>(&'a self, side: Side, names: &'a JobNames, dry_run: bool) -> BoxFuture<'a, CleanupReport>;
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
