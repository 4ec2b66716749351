//! A verify's request to stand still, and what a running instance tells about itself.

use std::time::Duration;

use cdc_core::engine::{Barrier, PublishedStatus};
use cdc_core::{Position, Result};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::schema;
use crate::session::during;

/// How a barrier is written; no position begins with `hold`.
fn encode(barrier: &Barrier) -> &str {
    match barrier {
        Barrier::Hold => "hold",
        Barrier::HoldAt(position) => position.as_str(),
    }
}

fn decode(text: &str) -> Barrier {
    match text {
        "hold" => Barrier::Hold,
        position => Barrier::HoldAt(Position::new(position)),
    }
}

/// Stores the request in the name of its own database session; `None` withdraws it.
pub(crate) async fn request(client: &Client, stream: &str, barrier: Option<&Barrier>) -> Result<()> {
    let written = match barrier {
        Some(barrier) => {
            let sql = "INSERT INTO cdc_sync.barrier SELECT $1, $2, pid, backend_start, NULL FROM pg_stat_activity \
                       WHERE pid = pg_backend_pid() ON CONFLICT (stream) DO UPDATE SET wanted = excluded.wanted, \
                       requester = excluded.requester, requester_start = excluded.requester_start, reached = NULL";
            client.execute(sql, &[&stream, &encode(barrier)]).await
        }
        None => {
            client
                .execute("DELETE FROM cdc_sync.barrier WHERE stream = $1", &[&stream])
                .await
        }
    };
    written.map_err(during("requesting the stream to stand still"))?;
    Ok(())
}

/// The current request; one whose requester's session has ended is none. When a session began is hidden from other
/// roles without `pg_read_all_stats`; to them its process id must do.
pub(crate) async fn wanted(client: &Client, stream: &str) -> Result<Option<Barrier>> {
    // This is asked several times a second and there hardly ever is one: to plan the join takes the server a millisecond.
    let any = "SELECT FROM cdc_sync.barrier WHERE stream = $1";
    let rows = client.query_typed(any, &[(&stream, Type::TEXT)]).await;
    if rows.map_err(during("looking for a waiting verify"))?.is_empty() {
        return Ok(None);
    }
    let sql = "SELECT b.wanted FROM cdc_sync.barrier b JOIN pg_stat_activity a \
               ON a.pid = b.requester AND coalesce(a.backend_start, b.requester_start) = b.requester_start WHERE b.stream = $1";
    let row = client
        .query_opt(sql, &[&stream])
        .await
        .map_err(during("looking for a waiting verify"))?;
    Ok(row.map(|row| decode(row.get(0))))
}

/// Answers the request, unless it has changed meanwhile.
pub(crate) async fn reached(
    client: &Client,
    stream: &str,
    barrier: &Barrier,
    position: &Position,
) -> Result<()> {
    let sql =
        "UPDATE cdc_sync.barrier SET reached = $3 WHERE stream = $1 AND wanted = $2 AND reached IS NULL";
    client
        .execute(sql, &[&stream, &encode(barrier), &position.as_str()])
        .await
        .map_err(during("answering a waiting verify"))?;
    Ok(())
}

/// The position at which the instance stands still for `barrier`.
pub(crate) async fn state(client: &Client, stream: &str, barrier: &Barrier) -> Result<Option<Position>> {
    let sql = "SELECT reached FROM cdc_sync.barrier WHERE stream = $1 AND wanted = $2";
    let row = client
        .query_opt(sql, &[&stream, &encode(barrier)])
        .await
        .map_err(during("waiting for the stream to stand still"))?;
    Ok(row
        .and_then(|row| row.get::<_, Option<String>>(0))
        .map(Position::new))
}

/// Stores what the running instance tells about itself.
pub(crate) async fn publish(client: &Client, stream: &str, status: &str) -> Result<()> {
    let sql = "INSERT INTO cdc_sync.status VALUES ($1, now(), $2) ON CONFLICT (stream) DO UPDATE SET \
               published_at = excluded.published_at, status = excluded.status";
    client
        .execute(sql, &[&stream, &status])
        .await
        .map_err(during("publishing the status"))?;
    Ok(())
}

/// What was published last.
pub(crate) async fn published(client: &Client, stream: &str) -> Result<Option<PublishedStatus>> {
    if !schema::exists(client).await? {
        return Ok(None);
    }
    let sql = "SELECT status, extract(epoch FROM now() - published_at)::float8 FROM cdc_sync.status WHERE stream = $1";
    let row = client
        .query_opt(sql, &[&stream])
        .await
        .map_err(during("reading the published status"))?;
    Ok(row.map(|row| PublishedStatus {
        status: row.get(0),
        age: Duration::from_secs_f64(row.get::<_, f64>(1).max(0.0)),
    }))
}
