//! Locks that statements of ours meet: short waits, a few attempts, and the name of who stands in the way.

use std::time::Duration;

use cdc_core::{Action, Result, TableName};
use tokio_postgres::Client;

use crate::session::during;

/// What a statement may wait for a lock. Whoever waits for a lock makes others wait behind it.
pub(crate) const LOCK_TIMEOUT: &str = "5s";
/// How often a statement that met a lock is tried.
const ATTEMPTS: u32 = 6;
const PAUSE: Duration = Duration::from_secs(1);

/// The locks that stand in a statement's way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InTheWay<'a> {
    /// on these tables; `None` for any
    pub(crate) tables: Option<&'a [TableName]>,
    /// of these modes, as `pg_locks` names them
    pub(crate) modes: &'a [&'a str],
}

/// Runs a statement, a few times when it meets a lock; then names who holds it.
pub(crate) async fn patiently<T, R>(
    client: &Client,
    what: &str,
    object: Option<&str>,
    in_the_way: InTheWay<'_>,
    statement: impl Fn() -> R,
) -> Result<T>
where
    R: Future<Output = Result<T, tokio_postgres::Error>>,
{
    let mut attempt = 1;
    loop {
        let error = match statement().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let waited = error.code().is_some_and(|code| code.code() == "55P03");
        let error = during(what)(error);
        let error = match object {
            Some(object) => error.object(object),
            None => error,
        };
        if !waited {
            return Err(error);
        }
        let (holders, table) = holders(client, in_the_way).await?;
        if attempt == ATTEMPTS {
            let error = match table {
                Some(table) => error.object(format!("table {table}")),
                None => error,
            };
            return Err(error
                .context(format!("waiting for a lock held by {holders}"))
                .action(Action::Retry)
                .remedy("let these sessions finish or end them, then run again"));
        }
        tracing::warn!("{what}: a lock that it needs is held by {holders}; trying again");
        tokio::time::sleep(PAUSE).await;
        attempt += 1;
    }
}

/// Who holds such a lock, and the first table of those.
async fn holders(client: &Client, in_the_way: InTheWay<'_>) -> Result<(String, Option<String>)> {
    let any = in_the_way.tables.is_none();
    let tables = in_the_way.tables.unwrap_or_default();
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let rows = client
        .query(
            "SELECT DISTINCT format('process %s of %s:%s (%s%s, %s on %s.%s, transaction open for %s s)', a.pid, \
                    COALESCE(host(inet_server_addr()), 'the local server'), current_setting('port'), a.backend_type, COALESCE(' ' || NULLIF(a.application_name, ''), ''), l.mode, n.nspname, \
                    c.relname, COALESCE(extract(epoch FROM clock_timestamp() - a.xact_start)::int8, 0)), \
                    format('%s.%s', n.nspname, c.relname) \
             FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace \
             JOIN pg_stat_activity a ON a.pid = l.pid AND a.pid <> pg_backend_pid() \
             WHERE l.locktype = 'relation' AND l.granted AND c.relkind IN ('r', 'p') \
                  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                  AND l.mode = ANY ($4) \
                  AND ($3 OR (n.nspname, c.relname) IN (SELECT * FROM unnest($1::text[], $2::text[]))) \
             ORDER BY 1",
            &[&schemas, &names, &any, &in_the_way.modes],
        )
        .await
        .map_err(during("looking for the holder of a lock"))?;
    let holders: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let table = rows.first().map(|row| row.get(1));
    if holders.is_empty() {
        return Ok(("a session that has ended meanwhile".to_owned(), None));
    }
    Ok((holders.join(", "), table))
}
