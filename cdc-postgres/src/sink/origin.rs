//! The replication origin of a job: what carries it in the target's log was applied by that job, so that the stream in the
//! other direction does not send it back.
//!
//! Origins belong to the whole server, jobs to a database, and jobs of one name may follow each other in a chain: the
//! name is `cdc_sync_<oid of the database>/<system of the source>/<job>/<database of the source>`. One session at a time
//! can have an origin, so that those which work beside the stream have another: behind the number is [`RETRY`],
//! [`REPAIR`] or [`AHEAD`].

use std::time::{Duration, Instant};

use cdc_core::engine::SiteIdentity;
use cdc_core::{Action, Error, Kind, Result};
use tokio_postgres::Client;

use crate::error::{PgError, SqlState};
use crate::session::during;
use crate::wire::Connection;
use crate::wire::session::literal;

const PREFIX: &str = "cdc_sync_";
/// Behind the database's oid in the name of the origin of changes that are retried.
const RETRY: &str = "+retry";
/// The same for a repair.
const REPAIR: &str = "+repair";
/// The same for transactions that are applied ahead of their commits.
const AHEAD: &str = "+ahead";
/// The role may not use origins, the server is not made for them, or has no room for another one. One direction does not
/// need them.
const NOT_TO_BE_HAD: [&str; 3] = ["42501", "55000", "53400"];
/// No other origin can be had now.
const NO_ROOM: &str = "53400";
/// How long a session that holds the origin may take to go.
const LINGER: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// Where the changes with an origin came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CameFrom<'n> {
    system: &'n str,
    job: &'n str,
    database: &'n str,
}

impl<'n> CameFrom<'n> {
    /// What an origin's name says; `None` for an origin of another program.
    pub(crate) fn parse(name: &'n str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.splitn(4, '/');
        let (own, system, job, database) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let own = [RETRY, REPAIR, AHEAD]
            .iter()
            .find_map(|suffix| own.strip_suffix(suffix))
            .unwrap_or(own);
        let is_oid = !own.is_empty() && own.bytes().all(|byte| byte.is_ascii_digit());
        is_oid.then_some(Self {
            system,
            job,
            database,
        })
    }

    /// Whether `stream`, which leads to `peer`, would send them back to where they came from.
    pub(crate) fn is_loop(&self, stream: &str, peer: Option<&SiteIdentity>) -> bool {
        self.job == stream
            && peer.is_some_and(|peer| peer.system == self.system && peer.database == self.database)
    }
}

/// A query for the name of the origin of `stream` in the current database; no row without a checkpoint. `suffix` is
/// empty, [`RETRY`], [`REPAIR`] or [`AHEAD`].
fn name(stream: &str, suffix: &str) -> String {
    format!(
        "SELECT concat_ws('/', '{PREFIX}' || d.oid || '{suffix}', c.source_system, c.stream, c.source_database) AS name \
         FROM cdc_sync.checkpoint c JOIN pg_database d ON d.datname = current_database() \
         WHERE c.stream = {} LIMIT 1",
        literal(stream)
    )
}

/// A query for the origins that jobs called `stream` have in the current database.
pub(crate) fn of_job(stream: &str) -> String {
    format!(
        "SELECT o.roname FROM pg_replication_origin o JOIN pg_database d ON d.datname = current_database() \
         WHERE split_part(o.roname, '/', 1) IN ('{PREFIX}' || d.oid, '{PREFIX}' || d.oid || '{RETRY}', \
               '{PREFIX}' || d.oid || '{REPAIR}', '{PREFIX}' || d.oid || '{AHEAD}') AND split_part(o.roname, '/', 3) = {}",
        literal(stream)
    )
}

/// Whether any job applies changes to the current database under an origin.
pub(crate) async fn exists(client: &Client) -> Result<bool> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_replication_origin o JOIN pg_database d ON d.datname = current_database() \
         WHERE starts_with(o.roname, '{PREFIX}' || d.oid))"
    );
    let row = client.query_typed_one(&sql, &[]).await;
    Ok(row.map_err(during("looking for replication origins"))?.get(0))
}

/// Which of the applying sessions of a stream it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// applies what has committed
    Stream,
    /// applies ahead of it
    Lane,
}

/// Marks what the session commits with the origin of `stream`, where the role may use origins: without that right
/// changes in one direction are applied all the same.
///
/// One session at a time can have an origin. Another one that has it is of an instance that is no more, or that was taken
/// over: whoever holds the fence under `epoch` ends it, and who does not is refused by its first transaction anyway.
pub(super) async fn take(connection: &mut Connection, stream: &str, epoch: &str, place: Place) -> Result<()> {
    let begun = Instant::now();
    let suffix = match place {
        Place::Stream => "",
        Place::Lane => AHEAD,
    };
    for sql in setup(&name(stream, suffix)) {
        while let Err(error) = connection.simple_query(&sql).await {
            let has_room = error.sqlstate.is_none_or(|code| code.as_str() != NO_ROOM);
            if (has_room || place == Place::Stream) && is_not_to_be_had(&error) {
                return Ok(());
            }
            if error.is(SqlState::UNIQUE_VIOLATION) {
                // Another session was faster to create it.
                break;
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

/// The same for a session that applies what was put aside. Another one that has its origin is waited for: such sessions
/// are short.
pub(crate) async fn take_for_retry(client: &Client, stream: &str) -> Result<()> {
    let begun = Instant::now();
    for sql in setup(&name(stream, RETRY)) {
        while let Err(error) = client.batch_execute(&sql).await {
            let error = PgError::from(error);
            if is_not_to_be_had(&error) {
                return Ok(());
            }
            if error.is(SqlState::UNIQUE_VIOLATION) {
                break;
            }
            if !error.is(SqlState::OBJECT_IN_USE) || begun.elapsed() >= LINGER {
                return Err(Error::from(error));
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

/// Marks what a repair of `stream` commits likewise. Only one runs at a time.
pub(crate) async fn take_for_repair(
    connection: &mut Connection,
    stream: &str,
    linger: Duration,
) -> Result<()> {
    let begun = Instant::now();
    for sql in setup(&name(stream, REPAIR)) {
        while let Err(error) = connection.simple_query(&sql).await {
            if is_not_to_be_had(&error) {
                return Ok(());
            }
            if error.is(SqlState::UNIQUE_VIOLATION) {
                // Another session was faster to create it.
                break;
            }
            if !error.is(SqlState::OBJECT_IN_USE) {
                return Err(error.into());
            }
            if begun.elapsed() >= linger {
                return Err(Error::new(
                    Kind::Fenced,
                    "another repair of this job is running on the target",
                )
                .object(format!("job {stream}"))
                .remedy("wait for it to end, then repair again"));
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

/// The statements that create an origin and give it to the session; `name` is a query for its name.
fn setup(name: &str) -> [String; 2] {
    [
        format!(
            "SELECT pg_replication_origin_create(name) FROM ({name}) AS origin \
             WHERE pg_replication_origin_oid(name) IS NULL"
        ),
        format!("SELECT pg_replication_origin_session_setup(name) FROM ({name}) AS origin"),
    ]
}

fn is_not_to_be_had(error: &PgError) -> bool {
    let code = error.sqlstate;
    let not_to_be_had = code.is_some_and(|code| NOT_TO_BE_HAD.contains(&code.as_str()));
    if not_to_be_had {
        tracing::warn!(%error, "changes are applied without a replication origin: a stream back would return them");
    }
    not_to_be_had
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
    fn only_what_came_from_the_streams_own_target_is_a_loop() {
        let name = "cdc_sync_16384/7000/shop_1/app/x";
        let came = CameFrom::parse(name).unwrap();
        let site = |system: &str, database: &str| SiteIdentity {
            product: String::new(),
            system: system.into(),
            database: database.into(),
            timeline: String::new(),
        };
        assert!(came.is_loop("shop_1", Some(&site("7000", "app/x"))));
        for beside in ["+retry", "+repair", "+ahead"] {
            let name = format!("cdc_sync_16384{beside}/7000/shop_1/app/x");
            assert_eq!(CameFrom::parse(&name), Some(came), "{beside}");
        }
        // A chain of jobs of one name, and other jobs.
        assert!(!came.is_loop("shop_1", Some(&site("7001", "app/x"))));
        assert!(!came.is_loop("shop_1", Some(&site("7000", "app"))));
        assert!(!came.is_loop("shop", Some(&site("7000", "app/x"))));
        assert!(!came.is_loop("shop_1", None));
        for other in [
            "pg_16384",
            "cdc_sync_shop",
            "cdc_sync_1x/7/shop/app",
            "cdc_sync_/7/shop/app",
            "cdc_sync_r/7/shop/app",
        ] {
            assert_eq!(CameFrom::parse(other), None, "{other}");
        }
    }
}
