//! The word, given before a slot is created, that it will be this target's: until the first checkpoint names the slot,
//! nothing else tells it from one of the same name that another target's job reads.

use cdc_core::{Result, SourceIdentity, failpoint};
use tokio_postgres::Client;

use super::checkpoint::fenced;
use crate::session::during;

/// Whether the slot of `source` was about to be created for the stream.
pub(crate) async fn stands(client: &Client, stream: &str, source: &SourceIdentity) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT FROM cdc_sync.slot_intent WHERE stream = $1 AND slot = $2 \
               AND source_system = $3 AND source_database = $4)";
    let row = client
        .query_one(sql, &[&stream, &source.slot, &source.system, &source.database])
        .await
        .map_err(during("looking whether the slot is this job's"))?;
    Ok(row.get(0))
}

/// Stores or withdraws that the slot of `source` is about to be created.
pub(crate) async fn store(
    client: &mut Client,
    stream: &str,
    epoch: i64,
    source: &SourceIdentity,
    wanted: bool,
) -> Result<()> {
    let doing = "storing that the slot is about to be created";
    let transaction = fenced(client, stream, epoch).await?;
    if wanted {
        let sql = "INSERT INTO cdc_sync.slot_intent VALUES ($1, $2, $3, $4) ON CONFLICT (stream) DO UPDATE SET \
                   slot = excluded.slot, source_system = excluded.source_system, \
                   source_database = excluded.source_database, stored_at = excluded.stored_at";
        transaction
            .execute(sql, &[&stream, &source.slot, &source.system, &source.database])
            .await
            .map_err(during(doing))?;
    } else {
        let sql = "DELETE FROM cdc_sync.slot_intent WHERE stream = $1";
        transaction
            .execute(sql, &[&stream])
            .await
            .map_err(during(doing))?;
    }
    transaction.commit().await.map_err(during(doing))?;
    failpoint!("slot.intended", error);
    Ok(())
}
