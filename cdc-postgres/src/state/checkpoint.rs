//! The checkpoint and the seed's progress, outside the sink.

use cdc_core::engine::{SeedPhase, SeedTable, StreamState};
use cdc_core::model::ChangeCounts;
use cdc_core::{Checkpoint, Error, Kind, Position, Result, SourceIdentity, TableName, failpoint};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Transaction};

use super::history;
use super::schema::{self, explained};
use crate::emptying;
use crate::error::PgError;
use crate::session::during;
use crate::sink::{SessionRole, replica_role};

/// Reads everything stored of a stream.
pub(crate) async fn read(client: &Client, stream: &str) -> Result<StreamState> {
    schema::refuse_newer(client).await?;
    if !schema::exists(client).await? {
        return Ok(StreamState {
            checkpoint: None,
            seed: Vec::new(),
            schema_pending: false,
        });
    }
    let sql = "SELECT schema_pending FROM cdc_sync.stream WHERE stream = $1";
    let pending = client
        .query_opt(sql, &[&stream])
        .await
        .map_err(during("reading the stream"))?;
    let sql = "SELECT * FROM cdc_sync.checkpoint WHERE stream = $1 ORDER BY groups DESC LIMIT 1";
    let row = client
        .query_opt(sql, &[&stream])
        .await
        .map_err(during("reading the checkpoint"))?;
    let sql = "SELECT * FROM cdc_sync.seed WHERE stream = $1 ORDER BY schema_name, table_name";
    let seed = client
        .query(sql, &[&stream])
        .await
        .map_err(during("reading the seed's progress"))?;
    Ok(StreamState {
        schema_pending: pending.is_some_and(|row| row.get("schema_pending")),
        checkpoint: row.as_ref().map(checkpoint),
        seed: seed.iter().map(seed_table).collect::<Result<_>>()?,
    })
}

fn checkpoint(row: &Row) -> Checkpoint {
    let count = |column: &str| row.get::<_, i64>(column).unsigned_abs();
    Checkpoint {
        stream: row.get("stream"),
        source: SourceIdentity {
            system: row.get("source_system"),
            database: row.get("source_database"),
            timeline: row.get("timeline"),
            slot: row.get("slot"),
        },
        position: Position::new(row.get::<_, String>("position")),
        commit_time_micros: row.get("commit_time_micros"),
        groups: count("groups"),
        transactions: count("transactions"),
        changes: ChangeCounts {
            read: count("read"),
            applied: count("applied"),
            coalesced: count("coalesced"),
            looped: count("looped"),
            filtered: count("filtered"),
            superseded: count("superseded"),
            dead_lettered: count("dead_lettered"),
            internal: count("internal"),
        },
    }
}

fn seed_table(row: &Row) -> Result<SeedTable> {
    let phase = match row.get::<_, &str>("phase") {
        "todo" => SeedPhase::Todo,
        "copying" => SeedPhase::Copying,
        "live" => SeedPhase::Live,
        "aside" => SeedPhase::Aside,
        other => {
            return Err(
                Error::new(Kind::Check, format!("unknown seed phase {other}")).object("cdc_sync.seed")
            );
        }
    };
    Ok(SeedTable {
        table: TableName::new(
            row.get::<_, String>("schema_name"),
            row.get::<_, String>("table_name"),
        ),
        phase,
        position: Position::new(row.get::<_, String>("position")),
        rows: row.get::<_, i64>("rows").unsigned_abs(),
        bytes: row.get::<_, i64>("bytes").unsigned_abs(),
    })
}

fn phase_name(phase: SeedPhase) -> &'static str {
    match phase {
        SeedPhase::Todo => "todo",
        SeedPhase::Copying => "copying",
        SeedPhase::Live => "live",
        SeedPhase::Aside => "aside",
    }
}

/// Opens a transaction under the fence of `epoch`.
pub(super) async fn fenced<'a>(client: &'a mut Client, stream: &str, epoch: i64) -> Result<Transaction<'a>> {
    let transaction = client
        .transaction()
        .await
        .map_err(during("opening a transaction"))?;
    transaction
        .query_one("SELECT cdc_sync.hold_fence($1, $2)", &[&stream, &epoch])
        .await
        .map_err(|error| explained(PgError::from(error).during("taking the fence"), stream))?;
    Ok(transaction)
}

/// Stores the first checkpoint and the tables to seed.
pub(crate) async fn start(
    client: &mut Client,
    epoch: i64,
    checkpoint: &Checkpoint,
    seed: &[SeedTable],
    schema_pending: bool,
) -> Result<()> {
    let transaction = fenced(client, &checkpoint.stream, epoch).await?;
    let (stream, source) = (&checkpoint.stream, &checkpoint.source);
    let sql = "INSERT INTO cdc_sync.stream (stream, schema_pending) VALUES ($1, $2) \
               ON CONFLICT (stream) DO UPDATE SET schema_pending = excluded.schema_pending";
    transaction
        .execute(sql, &[stream, &schema_pending])
        .await
        .map_err(during("storing the stream"))?;
    history::begun(&transaction, stream, seed.len()).await?;
    let sql = "INSERT INTO cdc_sync.checkpoint VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
               $15, $16, $17)";
    let changes = &checkpoint.changes;
    let [
        groups,
        transactions,
        read,
        applied,
        coalesced,
        looped,
        filtered,
        superseded,
        dead_lettered,
        internal,
    ] = [
        checkpoint.groups,
        checkpoint.transactions,
        changes.read,
        changes.applied,
        changes.coalesced,
        changes.looped,
        changes.filtered,
        changes.superseded,
        changes.dead_lettered,
        changes.internal,
    ]
    .map(u64::cast_signed);
    let position = checkpoint.position.as_str();
    let values: [&(dyn ToSql + Sync); 17] = [
        stream,
        &groups,
        &source.system,
        &source.database,
        &source.timeline,
        &source.slot,
        &position,
        &checkpoint.commit_time_micros,
        &transactions,
        &read,
        &applied,
        &coalesced,
        &looped,
        &filtered,
        &superseded,
        &dead_lettered,
        &internal,
    ];
    transaction
        .execute(sql, &values)
        .await
        .map_err(during("storing the first checkpoint"))?;
    for table in seed {
        write_seed(&transaction, stream, table).await?;
    }
    // From here on the checkpoint says whose the slot is.
    transaction
        .execute("DELETE FROM cdc_sync.slot_intent WHERE stream = $1", &[stream])
        .await
        .map_err(during("storing the first checkpoint"))?;
    failpoint!("checkpoint.before-first", error);
    transaction
        .commit()
        .await
        .map_err(during("storing the first checkpoint"))?;
    failpoint!("checkpoint.first", error);
    Ok(())
}

async fn write_seed(transaction: &Transaction<'_>, stream: &str, seed: &SeedTable) -> Result<()> {
    let sql = "INSERT INTO cdc_sync.seed VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (stream, schema_name, \
               table_name) DO UPDATE SET phase = excluded.phase, position = excluded.position, \
               rows = excluded.rows, bytes = excluded.bytes";
    let (schema, name) = (&seed.table.schema, &seed.table.name);
    let (rows, bytes) = (seed.rows.cast_signed(), seed.bytes.cast_signed());
    let (phase, position) = (phase_name(seed.phase), seed.position.as_str());
    transaction
        .execute(sql, &[&stream, schema, name, &phase, &position, &rows, &bytes])
        .await
        .map_err(during("storing the seed's progress"))?;
    Ok(())
}

/// What to do about a foreign key that keeps a table from being emptied.
const REFERRED: &str = "rows of another table refer to it, and foreign keys are checked for our role: have both copied \
                        anew together, `cdc-sync resync` with --table for each";

/// Stores a table's progress; the table is emptied when its copying begins.
pub(crate) async fn store_seed(
    client: &mut Client,
    stream: &str,
    epoch: i64,
    seed: &SeedTable,
) -> Result<()> {
    let empties = seed.phase == SeedPhase::Copying;
    let role = if empties {
        replica_role(client).await?
    } else {
        SessionRole::Origin
    };
    let transaction = fenced(client, stream, epoch).await?;
    if empties {
        emptying::one(&transaction, &seed.table, role)
            .await
            .map_err(|error| error.object(seed.table.to_string()))
            .map_err(|error| match error.kind() {
                Kind::Data => error.remedy(REFERRED),
                _ => error,
            })?;
    }
    write_seed(&transaction, stream, seed).await?;
    if !empties {
        history::seeded(&transaction, stream).await?;
        failpoint!("seed.before-live", error);
    }
    transaction
        .commit()
        .await
        .map_err(during("storing the seed's progress"))?;
    if empties {
        failpoint!("seed.table-begun", error);
    } else {
        failpoint!("seed.table-live", error);
    }
    Ok(())
}

/// Notes that the stream is about to create the schema.
pub(crate) async fn begin_schema(client: &mut Client, stream: &str, epoch: i64) -> Result<()> {
    let transaction = fenced(client, stream, epoch).await?;
    let sql = "INSERT INTO cdc_sync.stream (stream, schema_pending) VALUES ($1, true) \
               ON CONFLICT (stream) DO UPDATE SET schema_pending = true";
    let doing = "storing that the schema is about to be created";
    transaction
        .execute(sql, &[&stream])
        .await
        .map_err(during(doing))?;
    transaction.commit().await.map_err(during(doing))?;
    failpoint!("schema.begun", error);
    Ok(())
}

/// Notes that the schema is complete.
pub(crate) async fn finish_schema(client: &mut Client, stream: &str, epoch: i64) -> Result<()> {
    let transaction = fenced(client, stream, epoch).await?;
    let sql = "UPDATE cdc_sync.stream SET schema_pending = false WHERE stream = $1";
    transaction
        .execute(sql, &[&stream])
        .await
        .map_err(during("storing that the schema is complete"))?;
    transaction
        .commit()
        .await
        .map_err(during("storing that the schema is complete"))?;
    failpoint!("schema.finished", error);
    Ok(())
}
