//! What has been done for a stream, for those who have to account for it: when it began, its runs, what verifies found.

use cdc_core::engine::HistoryEvent;
use cdc_core::{Error, Kind, Result};
use tokio_postgres::{Client, Transaction};

use crate::session::during;

/// Events of one kind that are kept.
const KEPT: i64 = 200;

/// Adds an event and forgets old ones of its kind. Where nothing of the kind is stored yet, as before the first run of a
/// stream, there is nothing to account for.
pub(crate) async fn record(client: &Client, stream: &str, event: &HistoryEvent) -> Result<()> {
    if !exists(client).await? {
        return Ok(());
    }
    let sql = "WITH added AS (INSERT INTO cdc_sync.history (stream, kind, exit, config, facts) \
                              VALUES ($1, $2, $3, $4, $5::text::jsonb)) \
               DELETE FROM cdc_sync.history WHERE stream = $1 AND kind = $2 AND id <= (SELECT id FROM cdc_sync.history \
                   WHERE stream = $1 AND kind = $2 ORDER BY id DESC OFFSET $6 LIMIT 1)";
    client
        .execute(
            sql,
            &[
                &stream,
                &event.kind,
                &event.exit,
                &event.config,
                &event.facts,
                &(KEPT - 1),
            ],
        )
        .await
        .map_err(during("adding to the job's history"))?;
    Ok(())
}

/// The events, newest first.
pub(crate) async fn read(client: &Client, stream: &str) -> Result<Vec<HistoryEvent>> {
    if !exists(client).await? {
        return Ok(Vec::new());
    }
    let sql = "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), kind, exit, config, facts::text \
               FROM cdc_sync.history WHERE stream = $1 ORDER BY id DESC";
    let rows = client
        .query(sql, &[&stream])
        .await
        .map_err(during("reading the job's history"))?;
    let event = |row: &tokio_postgres::Row| HistoryEvent {
        time: row.get(0),
        kind: row.get(1),
        exit: row.get(2),
        config: row.get(3),
        facts: row.get(4),
    };
    Ok(rows.iter().map(event).collect())
}

/// That the stream has begun, in the transaction that makes it so.
pub(super) async fn begun(transaction: &Transaction<'_>, stream: &str, tables: usize) -> Result<()> {
    let facts = format!("{{\"tables\": {tables}}}");
    let sql = "INSERT INTO cdc_sync.history (stream, kind, facts) VALUES ($1, 'begun', $2::text::jsonb)";
    added(transaction.execute(sql, &[&stream, &facts]).await)
}

/// That the seed is complete, if it is, in the transaction that makes it so.
pub(super) async fn seeded(transaction: &Transaction<'_>, stream: &str) -> Result<()> {
    let sql = "INSERT INTO cdc_sync.history (stream, kind, facts) \
               SELECT $1, 'seeded', jsonb_build_object('tables', count(*), 'rows', sum(rows), 'bytes', sum(bytes), \
                   'seconds', round(extract(epoch FROM clock_timestamp() - (SELECT max(at) FROM cdc_sync.history b \
                       WHERE b.stream = $1 AND b.kind = 'begun'))::numeric, 3)) \
               FROM cdc_sync.seed WHERE stream = $1 HAVING bool_and(phase = 'live')";
    added(transaction.execute(sql, &[&stream]).await)
}

fn added(written: std::result::Result<u64, tokio_postgres::Error>) -> Result<()> {
    written.map_err(during("adding to the job's history"))?;
    Ok(())
}

async fn exists(client: &Client) -> Result<bool> {
    let row = client
        .query_one("SELECT to_regclass('cdc_sync.history') IS NOT NULL", &[])
        .await
        .map_err(during("looking for the job's history"))?;
    row.try_get(0)
        .map_err(|error| Error::new(Kind::Protocol, "the server answered without a value").caused_by(error))
}
