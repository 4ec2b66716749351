//! The consistent initial copy on the source's side: a slot, the snapshot exported with it, and parallel COPY out.
//!
//! The snapshot is the slot's own: it shows exactly the transactions that the slot's stream does not bring
//! (protocol manual, "Streaming Replication Protocol", `CREATE_REPLICATION_SLOT`). It lives as long as the walsender
//! connection that made it stays open and runs no further command.

mod parts;
pub(crate) mod waiting;

use std::sync::Arc;

use bytes::BytesMut;
use cdc_core::engine::JobNames;
use cdc_core::seed::{BulkFormat, BulkReader, Snapshot, TablePart};
use cdc_core::{Action, BoxFuture, Error, Kind, Position, Result, TableName, failpoint};

use crate::catalog::{RelationKind, column_list, qualified};
use crate::clients::Clients;
use crate::copy_format::{self, COPY_TEXT};
use crate::error::PgError;
use crate::session::{Pool, during};
use crate::slot;
use crate::storage;
use crate::walsender::{CreateSlot, SlotSnapshot, WalSender, WalSenderOptions};
use crate::wire::copy_out::CopyOut;
use crate::wire::literal;
use crate::wire::{Connection, Feature, QueryResult, ServerVersion};

/// A chunk handed to the loader: large enough that passing it on costs nothing beside its bytes.
const CHUNK: usize = 256 * 1024;

/// What a reading session is set to. A policy that would hide rows makes the read fail instead; parallel workers
/// and the compiler are blue's own.
const READ_SETTINGS: &[(&str, &str)] = &[
    ("row_security", "off"),
    ("lock_timeout", crate::lock::LOCK_TIMEOUT),
    ("max_parallel_workers_per_gather", "0"),
    ("jit", "off"),
    ("enable_tidscan", "on"),
];

/// A slot and its snapshot.
#[derive(Debug)]
pub(crate) struct PgSnapshot {
    clients: Clients,
    shared: Arc<Shared>,
    position: Position,
    version: ServerVersion,
    /// holds the snapshot open, and a temporary slot with it
    walsender: WalSender,
}

/// What readers need of the snapshot.
#[derive(Debug)]
struct Shared {
    pool: Pool,
    snapshot: String,
}

/// Creates the slot, permanent under the job's name or temporary, with an exported snapshot.
pub(crate) async fn create(
    clients: &Clients,
    version: ServerVersion,
    names: &JobNames,
    permanent: bool,
) -> Result<PgSnapshot> {
    let client = clients.lend(&[]).await?;
    let name = if permanent {
        names.slot.clone()
    } else {
        temporary_name(&names.slot)
    };
    if permanent && let Some(found) = slot::find(&client, &name).await? {
        return Err(Error::new(
            Kind::Check,
            format!("the slot exists already (database {:?}), and what it was made for is not known here",
                found.database),
        )
        .object(format!("replication slot {name}"))
        .remedy(format!(
            "if no other job uses it: SELECT pg_drop_replication_slot('{name}') on the source, or cdc-sync cleanup"
        )));
    }
    let mut walsender = WalSender::connect(clients.config(), &WalSenderOptions::default()).await?;
    let wanted = CreateSlot {
        name: &name,
        temporary: !permanent,
        snapshot: SlotSnapshot::Export,
        // A standby that synchronises slots can then take over as the source; without one it changes nothing.
        failover: permanent && version.has(Feature::FailoverSlots) && !in_recovery(&client).await?,
    };
    let created = waiting::create_slot(&client, &mut walsender, &wanted).await?;
    if permanent {
        failpoint!("slot.created", error);
    } else {
        failpoint!("snapshot.taken-again", error);
    }
    let snapshot = created
        .snapshot_name
        .ok_or_else(|| Error::bug("a slot without the snapshot asked for"))?;
    tracing::info!(slot = name, position = %created.consistent_point, "snapshot taken");
    Ok(PgSnapshot {
        clients: clients.clone(),
        shared: Arc::new(Shared {
            pool: Pool::new(clients.config().clone(), READ_SETTINGS, false),
            snapshot,
        }),
        position: Position::new(created.consistent_point.to_string()),
        version,
        walsender,
    })
}

/// Whether the server is a standby: it cannot make a slot for its own standbys.
async fn in_recovery(client: &tokio_postgres::Client) -> Result<bool> {
    let row = client
        .query_typed_one("SELECT pg_is_in_recovery()", &[])
        .await
        .map_err(during("asking whether the source is a standby"))?;
    Ok(row.get(0))
}

/// A name of its own for each process and call, within the 63 bytes that a slot's name may have.
pub(crate) fn temporary_name(slot: &str) -> String {
    use std::hash::{BuildHasher, RandomState};
    let unique = RandomState::new().hash_one(std::process::id());
    let stem: String = slot.chars().take(42).collect();
    format!("{stem}_tmp_{unique:016x}")
}

impl Shared {
    /// A connection in a transaction that sees the snapshot.
    async fn begin(&self) -> Result<Connection> {
        let mut connection = self.pool.take().await?;
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            literal(&self.snapshot)
        );
        match connection.simple_query(&begin).await {
            Ok(_) => Ok(connection),
            // For a snapshot that is not there, 22023 before PostgreSQL 16 and 42704 since.
            Err(error) if is_one_of(&error, &["22023", "42704"]) => {
                Err(snapshot_gone(&self.snapshot).caused_by(self.lost(error)))
            }
            Err(error) => Err(self.lost(error)),
        }
    }

    /// Ends the transaction and gives the connection back.
    async fn end(&self, mut connection: Connection) -> Result<()> {
        connection
            .simple_query("COMMIT")
            .await
            .map_err(|error| self.lost(error))?;
        self.pool.put(connection);
        Ok(())
    }

    /// An error while reading: after one connection was lost the others are likely lost as well.
    fn lost(&self, error: PgError) -> Error {
        self.pool.clear();
        Error::from(error)
    }
}

fn is_one_of(error: &PgError, codes: &[&str]) -> bool {
    error.sqlstate.is_some_and(|code| codes.contains(&code.as_str()))
}

/// A new snapshot mends it: what is not complete is copied again.
fn snapshot_gone(snapshot: &str) -> Error {
    Error::new(
        Kind::PositionLost,
        format!("snapshot {snapshot} is gone: the connection that held it has ended, or this is another server"),
    )
    .action(Action::Retry)
    .remedy(
        "run again: unfinished tables are copied from a new snapshot. A URL must lead to one server, not through \
         a load balancer or a pooler that shares sessions",
    )
}

/// What dividing a table needs to know of it.
struct TableShape {
    columns: Vec<String>,
    /// of the largest partition, where there are several: a range of blocks takes the same blocks of each
    blocks: u64,
    bytes: u64,
    /// the first column of the primary key, when it is an integer
    key: Option<String>,
}

async fn shape(connection: &mut Connection, table: &TableName) -> Result<Option<TableShape>> {
    let statement = format!(
        "SELECT s.blocks, s.bytes, \
                (SELECT t.attname FROM pg_index i JOIN pg_attribute t ON t.attrelid = i.indrelid \
                        AND t.attnum = i.indkey[0] AND t.atttypid IN ('int2'::regtype, 'int4'::regtype, \
                        'int8'::regtype) WHERE i.indrelid = c.oid AND i.indisprimary), \
                a.attname \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         CROSS JOIN LATERAL (SELECT \
             COALESCE(max(pg_relation_size(x.oid)), 0) / current_setting('block_size')::int8 AS blocks, \
             COALESCE(sum(pg_table_size(x.oid)), 0)::int8 AS bytes \
             FROM (SELECT c.oid UNION SELECT p.relid FROM pg_partition_tree(c.oid) p WHERE c.relkind = 'p') x) s \
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
              AND a.attgenerated = '' \
         WHERE n.nspname = {} AND c.relname = {} AND c.relkind IN ('r', 'p') ORDER BY a.attnum",
        literal(&table.schema),
        literal(&table.name)
    );
    let results = connection.simple_query(&statement).await?;
    let rows = results
        .first()
        .map(|result| result.rows.as_slice())
        .unwrap_or_default();
    let Some(row) = rows.first() else { return Ok(None) };
    let number = |column| -> Result<u64> {
        let text = row.text(column)?.unwrap_or("0");
        text.parse()
            .map_err(|_| Error::new(Kind::Protocol, format!("{text:?} is not the size of a table")))
    };
    let mut columns = Vec::with_capacity(rows.len());
    for row in rows {
        columns.extend(row.text(3)?.map(str::to_owned));
    }
    Ok(Some(TableShape {
        columns,
        blocks: number(0)?,
        bytes: number(1)?,
        key: row.text(2)?.map(str::to_owned),
    }))
}

impl PgSnapshot {
    /// The snapshot's name, for SET TRANSACTION SNAPSHOT on another connection.
    pub(crate) fn name(&self) -> &str {
        &self.shared.snapshot
    }

    async fn divide(&self, table: &TableName, part_bytes: u64) -> Result<Vec<TablePart>> {
        let mut connection = self.shared.begin().await?;
        let shape = shape(&mut connection, table).await?.ok_or_else(|| {
            Error::new(
                Kind::Schema,
                "the table does not exist, or is neither an ordinary nor a partitioned table",
            )
            .object(format!("table {table}"))
        })?;
        let ranges = if self.version.has(Feature::TidRangeScan) {
            parts::by_block(shape.blocks, shape.bytes, part_bytes)
        } else if let Some(key) = shape.key.as_deref().filter(|_| shape.bytes > part_bytes) {
            match key_limits(&mut connection, table, key).await? {
                Some((min, max)) => parts::by_key(key, min, max, shape.bytes, part_bytes),
                None => vec![None],
            }
        } else {
            vec![None]
        };
        self.shared.end(connection).await?;
        let of = ranges.len();
        let part = |(index, range)| TablePart {
            table: table.clone(),
            columns: shape.columns.clone(),
            range,
            index,
            of,
        };
        Ok(ranges.into_iter().enumerate().map(part).collect())
    }

    /// The server, not our end of the connection, decides whether the snapshot stands.
    async fn check(&self) -> Result<()> {
        let client = self.clients.lend(&[]).await?;
        let pid = self.walsender.backend_pid();
        let row = client
            .query_typed_opt(
                "SELECT FROM pg_stat_activity WHERE pid = $1 AND backend_type = 'walsender'",
                &[(&pid, tokio_postgres::types::Type::INT4)],
            )
            .await
            .map_err(during("looking for the session that holds the snapshot"))?;
        match row {
            Some(_) => Ok(()),
            None => Err(snapshot_gone(&self.shared.snapshot)),
        }
    }
}

/// The smallest and largest key of the table in the snapshot, by its primary key's index.
async fn key_limits(connection: &mut Connection, table: &TableName, key: &str) -> Result<Option<(i64, i64)>> {
    let kind = storage::kind(connection, table).await?;
    let (key, table) = (
        crate::wire::session::identifier(key),
        format!("{}{}", kind.only(), qualified(table)),
    );
    let results = connection
        .simple_query(&format!("SELECT min({key}), max({key}) FROM {table}"))
        .await?;
    let value = |column| -> Result<Option<i64>> {
        Ok(first_text(&results, column)?.and_then(|text| text.parse().ok()))
    };
    Ok(value(0)?.zip(value(1)?))
}

fn first_text(results: &[QueryResult], column: usize) -> Result<Option<String>> {
    match results.first().and_then(|result| result.rows.first()) {
        Some(row) => Ok(row.text(column)?.map(str::to_owned)),
        None => Ok(None),
    }
}

impl Snapshot for PgSnapshot {
    fn position(&self) -> &Position {
        &self.position
    }

    fn parts<'a>(&'a self, table: &'a TableName, part_bytes: u64) -> BoxFuture<'a, Vec<TablePart>> {
        Box::pin(self.divide(table, part_bytes))
    }

    fn read<'a>(
        &'a self,
        part: &'a TablePart,
        formats: &'a [BulkFormat],
    ) -> BoxFuture<'a, Box<dyn BulkReader>> {
        Box::pin(async move {
            let reader = CopyReader::open(Arc::clone(&self.shared), part, formats).await?;
            Ok(Box::new(reader) as Box<dyn BulkReader>)
        })
    }

    fn alive(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.check())
    }
}

/// Reads one part.
#[derive(Debug)]
struct CopyReader {
    shared: Arc<Shared>,
    /// `None` at the end
    copy: Option<CopyOut>,
    table: TableName,
    format: BulkFormat,
}

impl CopyReader {
    async fn open(shared: Arc<Shared>, part: &TablePart, formats: &[BulkFormat]) -> Result<CopyReader> {
        let mut connection = shared.begin().await?;
        let named = |error: Error| error.object(format!("table {}", part.table));
        let kind = storage::kind(&mut connection, &part.table)
            .await
            .map_err(|error| named(shared.lost(error)))?;
        same_storage(&mut connection, &part.table, kind)
            .await
            .map_err(|error| named(shared.lost_or(error)))?;
        let format = choose(&mut connection, part, formats)
            .await
            .map_err(|error| named(shared.lost(error)))?
            .ok_or_else(|| named(Error::bug("the target takes no format that PostgreSQL writes")))?;
        let statement = copy_statement(part, kind) + copy_format::clause(&format);
        let copy = CopyOut::start(connection, &statement)
            .await
            .map_err(|error| named(shared.lost(error)))?;
        Ok(CopyReader {
            shared,
            copy: Some(copy),
            table: part.table.clone(),
            format,
        })
    }

    async fn read(&mut self) -> Result<Option<bytes::Bytes>> {
        let Some(copy) = &mut self.copy else {
            return Ok(None);
        };
        let mut chunk = BytesMut::with_capacity(CHUNK + CHUNK / 4);
        match copy.read(&mut chunk, CHUNK).await {
            Ok(true) => Ok(Some(chunk.freeze())),
            Ok(false) => {
                if let Some(connection) = self.copy.take().and_then(CopyOut::into_connection) {
                    self.shared.end(connection).await?;
                }
                Ok(None)
            }
            Err(error) => {
                self.copy = None;
                Err(self.shared.lost(error).object(format!("table {}", self.table)))
            }
        }
    }
}

/// The first of the formats in which the part can be had.
async fn choose(
    connection: &mut Connection,
    part: &TablePart,
    formats: &[BulkFormat],
) -> Result<Option<BulkFormat>, PgError> {
    let mut own = vec![COPY_TEXT];
    if formats.iter().any(copy_format::is_binary) {
        let query = copy_format::current_types_query(&part.table, &part.columns);
        let answer = connection.simple_query(&query).await?;
        own.extend(copy_format::binary(answer.first(), part.columns.len())?);
    }
    Ok(formats.iter().find(|format| own.contains(format)).cloned())
}

/// `ONLY` keeps inheritance children out, which are tables of their own. `COPY table` does the same and is faster,
/// but takes no condition, no empty list of columns, and no partitioned table.
fn copy_statement(part: &TablePart, kind: RelationKind) -> String {
    let (table, columns) = (qualified(&part.table), column_list(&part.columns));
    let only = kind.only();
    match &part.range {
        None if !part.columns.is_empty() && kind == RelationKind::Table => {
            format!("COPY {table} ({columns}) TO STDOUT")
        }
        None => format!("COPY (SELECT {columns} FROM {only}{table}) TO STDOUT"),
        Some(range) => format!("COPY (SELECT {columns} FROM {only}{table} WHERE {range}) TO STDOUT"),
    }
}

impl Shared {
    fn lost_or(&self, error: StorageError) -> Error {
        match error {
            StorageError::Server(error) => self.lost(error),
            StorageError::Rewritten(error) => error,
        }
    }
}

enum StorageError {
    Server(PgError),
    Rewritten(Error),
}

/// Refuses a table whose storage is another than in the snapshot.
async fn same_storage(
    connection: &mut Connection,
    table: &TableName,
    kind: RelationKind,
) -> Result<(), StorageError> {
    let statement = format!(
        "{}; SELECT {} FROM pg_class c \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = {} AND c.relname = {}",
        storage::lock(table, kind),
        storage::unchanged(kind),
        literal(&table.schema),
        literal(&table.name)
    );
    let results = connection
        .simple_query(&statement)
        .await
        .map_err(StorageError::Server)?;
    let same = results.last().and_then(|result| result.rows.first());
    let same = same
        .map(|row| row.text(0))
        .transpose()
        .map_err(StorageError::Server)?;
    if same.flatten() == Some("t") {
        return Ok(());
    }
    Err(StorageError::Rewritten(
        Error::new(
            Kind::Schema,
            "the table was made, rewritten (ALTER TABLE, VACUUM FULL, CLUSTER), truncated or divided otherwise after the \
             snapshot was taken",
        )
        // A new snapshot mends it.
        .action(Action::Retry)
        .object(format!("table {table}"))
        .remedy("run again: tables that are not complete are copied anew from a new snapshot"),
    ))
}

impl BulkReader for CopyReader {
    fn format(&self) -> BulkFormat {
        self.format.clone()
    }

    fn next(&mut self) -> BoxFuture<'_, Option<bytes::Bytes>> {
        Box::pin(self.read())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_are_valid_and_distinct() {
        let long = "cdc_sync_".repeat(7);
        let (first, second) = (temporary_name(&long), temporary_name(&long));
        assert!(first.len() <= 63 && first != second, "{first} {second}");
        assert!(temporary_name("cdc_sync_j").starts_with("cdc_sync_j_tmp_"));
    }

    #[test]
    fn a_part_is_copied_without_children_and_generated_columns() {
        let mut part = TablePart {
            table: TableName::new("S", "t"),
            columns: vec!["id".into(), "B".into()],
            range: None,
            index: 0,
            of: 1,
        };
        let whole = r#"COPY "S"."t" ("id", "B") TO STDOUT"#;
        assert_eq!(copy_statement(&part, RelationKind::Table), whole);
        let root = r#"COPY (SELECT "id", "B" FROM "S"."t") TO STDOUT"#;
        assert_eq!(copy_statement(&part, RelationKind::Partitioned), root);
        part.range = Some("ctid < '(5,0)'".into());
        assert_eq!(
            copy_statement(&part, RelationKind::Table),
            r#"COPY (SELECT "id", "B" FROM ONLY "S"."t" WHERE ctid < '(5,0)') TO STDOUT"#
        );
        part.columns.clear();
        part.range = None;
        assert_eq!(
            copy_statement(&part, RelationKind::Table),
            r#"COPY (SELECT  FROM ONLY "S"."t") TO STDOUT"#
        );
    }
}
