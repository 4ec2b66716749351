//! The replication slot as the server's catalog shows it, and the end of the log.

use cdc_core::engine::Retention;
use cdc_core::{Error, Kind, Position, Result};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::lsn::Lsn;
use crate::session::during;
use crate::wire::ServerVersion;

/// The newest position of the log: of a primary what it has inserted, of a standby what it has replayed.
const LOG_END: &str =
    "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END";

/// What `slot` holds back; `None` when there is no such slot.
///
/// `wal_status` and `safe_wal_size` came with `max_slot_wal_keep_size` in PostgreSQL 13: before, a slot keeps its
/// log without limit.
pub(crate) async fn retention(
    client: &Client,
    version: ServerVersion,
    slot: &str,
) -> Result<Option<Retention>> {
    let limits = if version.major() >= 13 {
        "wal_status, safe_wal_size"
    } else {
        "'reserved'::text, NULL::int8"
    };
    let statement = format!(
        "SELECT GREATEST(COALESCE(pg_wal_lsn_diff({LOG_END}, restart_lsn), 0), 0)::int8, {limits} \
         FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database()"
    );
    let row = client
        .query_typed_opt(&statement, &[(&slot, Type::TEXT)])
        .await
        .map_err(during("reading the state of the replication slot"))?;
    Ok(row.map(|row| Retention {
        retained_bytes: row.get::<_, i64>(0).unsigned_abs(),
        // NULL while the slot is being made.
        status: row
            .get::<_, Option<String>>(1)
            .unwrap_or_else(|| "reserved".to_owned()),
        // Negative once the slot lives on what a checkpoint has not removed yet.
        safe_bytes: row
            .get::<_, Option<i64>>(2)
            .map(|bytes| bytes.max(0).unsigned_abs()),
    }))
}

/// The newest position of the log and the bytes from `applied` to it.
pub(crate) async fn log_end(client: &Client, applied: Option<&Position>) -> Result<(Position, u64)> {
    let row = client
        .query_typed_one(&format!("SELECT ({LOG_END})::text"), &[])
        .await
        .map_err(during("reading the end of the log"))?;
    let end = parse(&row.get::<_, String>(0))?;
    let behind = match applied {
        Some(applied) => end.bytes_since(parse(applied.as_str())?),
        None => 0,
    };
    Ok((Position::new(end.to_string()), behind))
}

fn parse(text: &str) -> Result<Lsn> {
    text.parse()
        .map_err(|error: crate::lsn::ParseLsnError| Error::new(Kind::Protocol, error.to_string()))
}

/// A slot as others left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundSlot {
    /// empty for a physical one
    pub(crate) plugin: String,
    /// empty for a physical one
    pub(crate) database: String,
    /// who reads it
    pub(crate) active_pid: Option<i32>,
    /// where its reader goes on; `None` while it is being made
    pub(crate) confirmed: Option<Lsn>,
}

/// The slot of this name, in whichever database of the server.
pub(crate) async fn find(client: &Client, slot: &str) -> Result<Option<FoundSlot>> {
    let row = client
        .query_typed_opt(
            "SELECT COALESCE(plugin::text, ''), COALESCE(database::text, ''), active_pid, \
                    confirmed_flush_lsn::text \
             FROM pg_replication_slots WHERE slot_name = $1",
            &[(&slot, Type::TEXT)],
        )
        .await
        .map_err(during("looking for the replication slot"))?;
    row.map(|row| {
        let confirmed: Option<String> = row.get(3);
        Ok(FoundSlot {
            plugin: row.get(0),
            database: row.get(1),
            active_pid: row.get(2),
            confirmed: confirmed.as_deref().map(parse).transpose()?,
        })
    })
    .transpose()
}
