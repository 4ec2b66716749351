//! How a database is reached, inspected and prepared: [`Engine`] and [`Site`].
//!
//! A `Site` is one database in its role as source (blue) or target (green). The verbs of the binary are
//! written against it alone; adding a database product is one implementation of these two traits.

mod facts;
mod selection;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::BoxFuture;
use crate::compare::RowBuffer;
use crate::conflict::ConflictRecord;
use crate::error::Result;
use crate::model::{Position, TableName};
use crate::plan::TargetTable;
use crate::repair::{Asked, Found, Mender};
use crate::seed::{BulkFormat, BulkLoader, Snapshot, TablePart};
use crate::sink::{Checkpoint, Sink};
use crate::source::{Decoder, Source, StreamStart};

pub use facts::{
    Alteration, Barrier, CleanupReport, ColumnInfo, Finding, HistoryEvent, JobNames, Occupancy,
    PublishedStatus, RenamedTable, Retention, SchemaDump, SchemaPhase, SeedPhase, SeedTable, SequenceAdvance,
    SequenceState, Severity, Side, SiteIdentity, SiteProfile, StreamState, TableInfo,
};
pub use selection::{Partitions, TableSelection, matches_pattern};

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

    /// A decoder of what was read before, without a server; see [`crate::capture`].
    ///
    /// # Errors
    /// [`crate::Kind::Config`] when a position of `start` is not one of this engine.
    fn decoder(&self, start: &StreamStart) -> Result<Box<dyn Decoder>>;
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

    /// What the view has of each row of `asked`, in their order.
    ///
    /// # Errors
    /// When the table cannot be read; [`crate::Kind::Unverifiable`] when a key finds several rows.
    fn find<'a>(&'a self, asked: &'a Asked<'a>) -> BoxFuture<'a, Vec<Found>>;
}

/// The log opened for looking at it, see [`Site::tail`].
pub struct TailStream {
    /// the engine, by its first URL scheme
    pub engine: &'static str,
    /// where it starts
    pub start: StreamStart,
    /// the source, already reading
    pub source: Box<dyn Source>,
    /// decodes what it reads
    pub decoder: Box<dyn Decoder>,
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

    /// What there is of the name `pattern`, `schema.table` or `table`, that no selection can mean because it is never
    /// replicated; such as `a view`.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn never_replicated<'a>(&'a self, pattern: &'a str) -> BoxFuture<'a, Option<String>>;

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

    /// Whether a finding is about what is on the source and not carried to the target.
    fn is_left_behind(&self, finding: &Finding) -> bool;

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
    /// own dump programs are, if the user said so. With `present`, tables that the target has already, foreign keys that
    /// refer to these are part of it, and what else is there when it is created is left as it is.
    ///
    /// # Errors
    /// When the dump program is missing, too old or fails; says which and where it was looked for.
    fn dump_schema<'a>(
        &'a self,
        selection: &'a TableSelection,
        present: Option<&'a TableSelection>,
        target: &'a SiteIdentity,
        tools_dir: Option<&'a std::path::Path>,
    ) -> BoxFuture<'a, SchemaDump>;

    /// Makes sure the source publishes `tables` together with heartbeat and marker tables, creating what is
    /// missing. Must precede [`Site::create_snapshot`].
    ///
    /// # Errors
    /// When a right is missing.
    fn prepare_source<'a>(&'a self, names: &'a JobNames, tables: &'a [TableName]) -> BoxFuture<'a, ()>;

    /// Which of `tables`, all of them there, the source does not send whole to the stream any more, and why: made again
    /// under its name, taken out of what [`Site::prepare_source`] made, or restricted there.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn unpublished<'a>(
        &'a self,
        names: &'a JobNames,
        tables: &'a [TableName],
    ) -> BoxFuture<'a, Vec<(TableName, String)>>;

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

    /// The statements that bring `tables` of a peer of the same product into the shape that the job's tables have here:
    /// renamed tables, then columns that were renamed, dropped, added (so that present rows have in them what the source's
    /// have) and of which the type cannot hold this site's values. What is not certain is said.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn alterations<'a>(
        &'a self,
        names: &'a JobNames,
        tables: &'a [TableInfo],
    ) -> BoxFuture<'a, Vec<Alteration>>;

    /// Which of the tables that the job reads were renamed, or moved to another schema, since it began with `tables`.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn renamed<'a>(
        &'a self,
        names: &'a JobNames,
        tables: &'a [TableName],
    ) -> BoxFuture<'a, Vec<RenamedTable>>;

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

    /// Reads what is stored of the stream. Once this site's sinks of the stream are gone, what they committed has come to
    /// its end and is durable before it is told, also what they only committed soon: whoever goes on from the checkpoint
    /// confirms it to the source.
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

    /// Takes tables out of the stream, to be copied anew beside it, those that the stream does not have included. For a
    /// stream that has a checkpoint; a table that is not live stays as it is. Needs no fence: whoever runs the stream
    /// finds them by [`Site::aside`].
    ///
    /// # Errors
    /// When the write fails.
    fn set_aside<'a>(&'a self, stream: &'a str, tables: &'a [TableName]) -> BoxFuture<'a, ()>;

    /// The tables that are set aside.
    ///
    /// # Errors
    /// When the read fails.
    fn aside<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Vec<TableName>>;

    /// Gives the tables of `beside`, the stream they were copied and followed by, back to `stream`, as of the position
    /// that `beside` has reached, and ends the checkpoint of `beside`; all in one transaction. `stream` must not have
    /// passed that position.
    ///
    /// # Errors
    /// [`crate::Kind::Fenced`] when the epoch of `stream` is not current.
    fn take_back<'a>(&'a self, stream: &'a str, epoch: i64, beside: &'a str) -> BoxFuture<'a, ()>;

    /// Has tables that are set aside no longer be so, as they are: one that this site lacks is none of the stream's any
    /// more.
    ///
    /// # Errors
    /// [`crate::Kind::Fenced`] when the epoch is not current.
    fn give_up_aside<'a>(&'a self, stream: &'a str, epoch: i64, tables: &'a [TableName])
    -> BoxFuture<'a, ()>;

    /// Forgets the checkpoint of the stream and how far its seed has come; that its schema is not complete, if so, is kept.
    /// The stream's cursor must be gone.
    ///
    /// # Errors
    /// [`crate::Kind::Fenced`] when the epoch is not current.
    fn begin_anew<'a>(&'a self, stream: &'a str, epoch: i64) -> BoxFuture<'a, ()>;

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

    /// The formats in which a part of a table can be loaded, the best first.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn bulk_formats<'a>(&'a self, part: &'a TablePart) -> BoxFuture<'a, Vec<BulkFormat>>;

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

    /// Another one beside it, which applies transactions ahead of their commits ([`crate::ahead`]).
    ///
    /// # Errors
    /// When the connection cannot be made.
    fn lane<'a>(&'a self, stream: &'a str, epoch: i64) -> BoxFuture<'a, Box<dyn Sink>>;

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

    /// Conflicts of the stream that were logged, newest first: at most `limit` of them older than `before`, if that is
    /// given, and only those still to be decided with `open`. Empty without state on this site.
    ///
    /// # Errors
    /// When the read fails.
    fn conflicts<'a>(
        &'a self,
        stream: &'a str,
        before: Option<i64>,
        limit: u32,
        open: bool,
    ) -> BoxFuture<'a, Vec<ConflictRecord>>;

    /// How many conflicts of each kind were logged over the life of the stream.
    ///
    /// # Errors
    /// When the read fails.
    fn conflict_counts<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, BTreeMap<String, u64>>;

    /// How many changes that were put aside still wait for a decision.
    ///
    /// # Errors
    /// When the read fails.
    fn open_conflicts<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, u64>;

    /// Applies a change that was put aside, in one transaction with its new state `retried`.
    ///
    /// # Errors
    /// [`crate::Kind::Config`] when there is none of that number that is open; [`crate::Kind::Conflict`] when the row is
    /// no longer as it was when the change was put aside: a newer change may have come since.
    fn retry_conflict<'a>(&'a self, stream: &'a str, id: i64) -> BoxFuture<'a, ()>;

    /// Marks a change that was put aside as not wanted any more.
    ///
    /// # Errors
    /// [`crate::Kind::Config`] when there is none of that number that is open.
    fn discard_conflict<'a>(&'a self, stream: &'a str, id: i64) -> BoxFuture<'a, ()>;

    /// Adds to what is stored of what was done for the stream; without state on this site it does nothing. Old events
    /// of a kind are forgotten.
    ///
    /// # Errors
    /// When the write fails.
    fn record<'a>(&'a self, stream: &'a str, event: &'a HistoryEvent) -> BoxFuture<'a, ()>;

    /// What was done for the stream, newest first.
    ///
    /// # Errors
    /// When the read fails.
    fn history<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Vec<HistoryEvent>>;

    /// A connection that repairs rows of the stream's tables.
    ///
    /// # Errors
    /// When the connection cannot be made; [`crate::Kind::Fenced`] when another repair of the stream has one.
    fn mender<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Box<dyn Mender>>;

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
