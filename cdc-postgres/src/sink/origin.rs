//! The replication origin of a job: what carries it in the target's log was applied by that job, so that the same job in
//! the other direction does not send it back.
//!
//! Origins belong to the whole server, jobs to a database: the name is `cdc_sync_<oid of the database>_<job>`.

use std::time::{Duration, Instant};

use cdc_core::{Action, Error, Result};

use crate::error::SqlState;
use crate::wire::Connection;
use crate::wire::session::literal;

const PREFIX: &str = "cdc_sync_";
/// The role may not use origins, or the server has no room for another.
const NOT_TO_BE_HAD: [&str; 3] = ["42501", "53400", "55000"];
/// How long a session that holds the origin may take to go.
const LINGER: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// An SQL expression for the name of the origin of `stream` in the current database.
pub(crate) fn name(stream: &str) -> String {
    format!(
        "'{PREFIX}' || (SELECT oid FROM pg_database WHERE datname = current_database()) || {}",
        literal(&format!("_{stream}"))
    )
}

/// The job whose origin this is, of whatever database; `None` for an origin of another program.
pub(crate) fn job(name: &str) -> Option<&str> {
    let (database, job) = name.strip_prefix(PREFIX)?.split_once('_')?;
    (!database.is_empty() && database.bytes().all(|byte| byte.is_ascii_digit())).then_some(job)
}

/// Marks what the session commits with the origin of `stream`, where the role may use origins: without that right
/// changes in one direction are applied all the same.
///
/// One session at a time can have an origin. Another one that has it is of an instance that is no more, or that was taken
/// over: whoever holds the fence under `epoch` ends it, and who does not is refused by its first transaction anyway.
pub(super) async fn take(connection: &mut Connection, stream: &str, epoch: &str) -> Result<()> {
    let name = name(stream);
    let create = format!(
        "SELECT pg_replication_origin_create(name) FROM (SELECT {name} AS name) AS origin \
         WHERE pg_replication_origin_oid(name) IS NULL"
    );
    let setup = format!("SELECT pg_replication_origin_session_setup({name})");
    let begun = Instant::now();
    for sql in [create, setup] {
        while let Err(error) = connection.simple_query(&sql).await {
            if error
                .sqlstate
                .is_some_and(|code| NOT_TO_BE_HAD.contains(&code.as_str()))
            {
                tracing::debug!(%error, "changes are applied without a replication origin");
                return Ok(());
            }
            if !error.is(SqlState::OBJECT_IN_USE) {
                return Err(error.into());
            }
            if !holds_fence(connection, stream, epoch).await? {
                return Ok(());
            }
            if begun.elapsed() >= LINGER {
                return Err(Error::from(error).action(Action::Reconnect));
            }
            if let Some(pid) = last_number(&error.message) {
                end(connection, pid).await?;
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

async fn holds_fence(connection: &mut Connection, stream: &str, epoch: &str) -> Result<bool> {
    let sql = format!(
        "SELECT FROM cdc_sync.fence WHERE stream = {} AND epoch::text = {}",
        literal(stream),
        literal(epoch)
    );
    let answer = connection.simple_query(&sql).await?;
    Ok(answer.iter().any(|result| !result.rows.is_empty()))
}

/// Ends a session of cdc-sync in this database.
async fn end(connection: &mut Connection, pid: u32) -> Result<()> {
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {pid} AND pid <> pg_backend_pid() \
         AND datname = current_database() AND usename = current_user \
         AND application_name = current_setting('application_name')"
    );
    connection.simple_query(&sql).await?;
    Ok(())
}

/// The server names the process that has the origin at the end of its message, whatever the language.
fn last_number(message: &str) -> Option<u32> {
    let end = message.rfind(|c: char| c.is_ascii_digit())? + 1;
    let digits = message.get(..end)?;
    let start = digits.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    digits.get(start..)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_named_last() {
        let message = "replication origin with ID 6 is already active for PID 9398";
        assert_eq!(last_number(message), Some(9398));
        assert_eq!(last_number("PID 7 hat ihn."), Some(7));
        assert_eq!(last_number("none"), None);
    }

    #[test]
    fn the_job_is_in_the_name() {
        assert_eq!(job("cdc_sync_16384_shop_1"), Some("shop_1"));
        for other in ["pg_16384", "cdc_sync_shop", "cdc_sync__shop", "cdc_sync_1x_shop"] {
            assert_eq!(job(other), None, "{other}");
        }
    }
}
