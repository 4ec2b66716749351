//! Heartbeat and marker rows on the source: written here, read back from the log by the decoder.

use cdc_core::{Result, failpoint};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::session::during;

/// Each stream has one row, so the table never grows.
const BEAT: &str = "INSERT INTO cdc_sync.heartbeat (stream, beat, at) VALUES ($1, $2, clock_timestamp()) \
     ON CONFLICT (stream) DO UPDATE SET beat = excluded.beat, at = excluded.at";

/// The stream's former markers go in the same transaction. The same id twice is a retry after a lost answer.
const MARK: &str = "WITH former AS (DELETE FROM cdc_sync.marker WHERE stream = $1 AND id <> $2) \
     INSERT INTO cdc_sync.marker (stream, id, at) VALUES ($1, $2, clock_timestamp()) \
     ON CONFLICT (stream, id) DO UPDATE SET at = excluded.at";

/// Writes the heartbeat row.
pub(crate) async fn beat(client: &Client, stream: &str, beat: i64) -> Result<()> {
    client
        .execute_typed(BEAT, &[(&stream, Type::TEXT), (&beat, Type::INT8)])
        .await
        .map_err(during("writing the heartbeat row"))?;
    failpoint!("heartbeat.written", error);
    Ok(())
}

/// Writes a marker row.
pub(crate) async fn mark(client: &Client, stream: &str, id: &str) -> Result<()> {
    client
        .execute_typed(MARK, &[(&stream, Type::TEXT), (&id, Type::TEXT)])
        .await
        .map_err(during("writing the marker row"))?;
    failpoint!("marker.written", error);
    Ok(())
}
