//! Tables that are taken out of their stream to be copied anew, by a stream of their own beside it.

use cdc_core::{Result, TableName, failpoint};
use tokio_postgres::Client;

use super::checkpoint::fenced;
use super::schema;
use crate::session::during;

/// Takes tables out of the stream. One that is being copied already is left alone.
pub(crate) async fn set(client: &mut Client, stream: &str, tables: &[TableName]) -> Result<()> {
    const DOING: &str = "setting tables aside";
    let transaction = client.transaction().await.map_err(during(DOING))?;
    let sql = "INSERT INTO cdc_sync.seed SELECT c.stream, $2, $3, 'aside', c.position, 0, 0 \
               FROM cdc_sync.checkpoint c WHERE c.stream = $1 \
               ON CONFLICT (stream, schema_name, table_name) DO UPDATE SET phase = 'aside', rows = 0, bytes = 0 \
               WHERE seed.phase = 'live'";
    for table in tables {
        transaction
            .execute(sql, &[&stream, &table.schema, &table.name])
            .await
            .map_err(during(DOING))?;
    }
    transaction.commit().await.map_err(during(DOING))
}

/// The tables that are out of the stream.
pub(crate) async fn list(client: &Client, stream: &str) -> Result<Vec<TableName>> {
    if !schema::exists(client).await? {
        return Ok(Vec::new());
    }
    let sql = "SELECT schema_name, table_name FROM cdc_sync.seed WHERE stream = $1 AND phase = 'aside' ORDER BY 1, 2";
    let rows = client
        .query(sql, &[&stream])
        .await
        .map_err(during("looking for tables that are set aside"))?;
    let tables = rows
        .iter()
        .map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
    Ok(tables.collect())
}

/// Gives the tables of `beside` back as of its checkpoint, which ends with that: whatever dies before or after, exactly
/// one stream applies to them. Without that checkpoint it was done before, by an attempt whose answer was lost.
pub(crate) async fn take_back(client: &mut Client, stream: &str, epoch: i64, beside: &str) -> Result<()> {
    const DOING: &str = "giving tables back to their stream";
    let transaction = fenced(client, stream, epoch).await?;
    let sql = "DELETE FROM cdc_sync.checkpoint WHERE stream = $1 RETURNING position";
    let reached = transaction
        .query_opt(sql, &[&beside])
        .await
        .map_err(during(DOING))?;
    let Some(reached) = reached else { return Ok(()) };
    let sql = "UPDATE cdc_sync.seed s SET phase = 'live', position = $3, rows = b.rows, bytes = b.bytes \
               FROM cdc_sync.seed b WHERE s.stream = $1 AND b.stream = $2 AND s.schema_name = b.schema_name \
               AND s.table_name = b.table_name";
    transaction
        .execute(sql, &[&stream, &beside, &reached.get::<_, String>(0)])
        .await
        .map_err(during(DOING))?;
    // What policies decided meanwhile is the job's.
    let sql = "UPDATE cdc_sync.conflict_log SET stream = $1 WHERE stream = $2";
    transaction
        .execute(sql, &[&stream, &beside])
        .await
        .map_err(during(DOING))?;
    failpoint!("beside.before-giving-back", error);
    transaction.commit().await.map_err(during(DOING))?;
    failpoint!("beside.given-back", error);
    Ok(())
}

/// Leaves tables of `stream` that were set aside as they are. What is not there is not the stream's any more.
pub(crate) async fn give_up(
    client: &mut Client,
    stream: &str,
    epoch: i64,
    tables: &[TableName],
) -> Result<()> {
    const DOING: &str = "giving up tables that are set aside";
    let transaction = fenced(client, stream, epoch).await?;
    let chosen = "stream = $1 AND phase = 'aside' AND schema_name = $2 AND table_name = $3";
    let missing = "to_regclass(format('%I.%I', schema_name, table_name)) IS NULL";
    for table in tables {
        for sql in [
            format!("DELETE FROM cdc_sync.seed WHERE {chosen} AND {missing}"),
            format!("UPDATE cdc_sync.seed SET phase = 'live' WHERE {chosen}"),
        ] {
            transaction
                .execute(&sql, &[&stream, &table.schema, &table.name])
                .await
                .map_err(during(DOING))?;
        }
    }
    transaction.commit().await.map_err(during(DOING))
}

/// Forgets how far a stream has come, and not that its schema is to be completed.
pub(crate) async fn begin_anew(client: &mut Client, stream: &str, epoch: i64) -> Result<()> {
    const DOING: &str = "forgetting how far the copy has come";
    let transaction = fenced(client, stream, epoch).await?;
    for sql in [
        "DELETE FROM cdc_sync.checkpoint WHERE stream = $1",
        "DELETE FROM cdc_sync.seed WHERE stream = $1",
    ] {
        transaction
            .execute(sql, &[&stream])
            .await
            .map_err(during(DOING))?;
    }
    transaction.commit().await.map_err(during(DOING))
}
