//! Becoming the one instance that applies a stream.
//!
//! Two locks, because two questions differ. *Is another instance alive?* A session-level advisory lock on an
//! otherwise idle connection says so: the server releases it the moment that process dies. *Is a transaction of
//! a dead one still running?* A killed client's pipelined statements, COMMIT included, run on; each such
//! transaction holds a shared lock on the fence row, so raising the epoch under the exclusive lock waits for it.

use std::time::{Duration, Instant};

use cdc_core::engine::Fence;
use cdc_core::{Action, BoxFuture, Error, Kind, Result, failpoint};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::schema;
use crate::config::Config;
use crate::session::{connect, during};

/// The class of our advisory locks; the second key is the stream's hash.
const LOCK_CLASS: i32 = 0x6364_6373;
/// How often a lock that is held by another is tried again.
const POLL: Duration = Duration::from_millis(100);
/// How long sessions that were ended may take to roll back.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(600);

/// Keepalives on the control session let the server notice within a minute that our machine is gone.
const CONTROL_SETTINGS: &[(&str, &str)] = &[
    ("tcp_keepalives_idle", "20"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "4"),
    // While it waits for a lock the server does not notice that its client is gone, and keeps our advisory lock.
    ("lock_timeout", "1s"),
];

/// The right to apply a stream, as long as its control session lives.
#[derive(Debug)]
pub(crate) struct PgFence {
    config: Config,
    control: Client,
    stream: String,
    epoch: i64,
}

/// Takes the right; waits until a live holder goes, then until the last transaction of a dead one has ended.
pub(crate) async fn take(config: &Config, stream: &str, timeout: Duration) -> Result<PgFence> {
    let control = connect(config, CONTROL_SETTINGS).await?;
    wait_for_predecessor(&control, stream, timeout).await?;
    failpoint!("fence.locked");
    let epoch = raise_epoch(config, &control, stream, timeout).await?;
    failpoint!("fence.raised");
    Ok(PgFence {
        config: config.clone(),
        control,
        stream: stream.to_owned(),
        epoch,
    })
}

async fn try_lock(client: &Client, stream: &str) -> Result<bool> {
    let sql = "SELECT pg_try_advisory_lock($1, hashtext($2))";
    let row = client
        .query_one(sql, &[&LOCK_CLASS, &stream])
        .await
        .map_err(during("taking the job's lock"))?;
    Ok(row.get(0))
}

async fn wait_for_predecessor(control: &Client, stream: &str, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !try_lock(control, stream).await? {
        if Instant::now() >= deadline {
            let who = holder(control, stream)
                .await?
                .unwrap_or_else(|| "a session that just ended".to_owned());
            return Err(
                Error::new(Kind::Fenced, format!("another instance holds the job: {who}"))
                    .object(format!("job {stream}"))
                    .remedy("stop that instance, or wait for it with a longer --takeover-timeout"),
            );
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Who holds the stream's lock in this database.
pub(crate) async fn holder(client: &Client, stream: &str) -> Result<Option<String>> {
    let sql = "SELECT format('%s, pid %s, from %s, since %s', coalesce(nullif(a.application_name, ''), 'unnamed'), \
               a.pid, coalesce(host(a.client_addr), 'a local socket'), to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SS OF')) \
               FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
               WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid::bigint = $1 \
               AND l.objid = hashtext($2)::bit(32)::bigint::oid AND l.database = \
               (SELECT oid FROM pg_database WHERE datname = current_database())";
    let class = i64::from(LOCK_CLASS);
    let row = client
        .query_opt(sql, &[&class, &stream])
        .await
        .map_err(during("looking who holds the job"))?;
    Ok(row.map(|row| row.get(0)))
}

/// Raises the epoch. The row lock waits for every transaction that applies under an older one; after `timeout`
/// the sessions that are waited for are ended.
async fn raise_epoch(config: &Config, control: &Client, stream: &str, timeout: Duration) -> Result<i64> {
    let pid: i32 = control
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .map_err(during("asking for the control session's pid"))?
        .get(0);
    let sql = "INSERT INTO cdc_sync.fence VALUES ($1, 1, concat_ws(' ', current_user, inet_client_addr()), now()) \
               ON CONFLICT (stream) DO UPDATE SET epoch = cdc_sync.fence.epoch + 1, owner = excluded.owner, \
               raised_at = excluded.raised_at RETURNING epoch";
    let raise = async {
        loop {
            match control.query_one(sql, &[&stream]).await {
                Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {}
                raised => return raised,
            }
        }
    };
    tokio::pin!(raise);
    let raised = tokio::select! {
        raised = &mut raise => raised,
        ended = end_blockers(config, pid, timeout) => {
            ended?;
            match tokio::time::timeout(ROLLBACK_TIMEOUT, &mut raise).await {
                Ok(raised) => raised,
                Err(_) => {
                    return Err(Error::new(Kind::Fenced, "sessions of a former instance were ended but do not roll back")
                        .object(format!("job {stream}")).remedy("look at pg_stat_activity on the target"));
                }
            }
        }
    };
    let row = raised.map_err(during("raising the epoch of the fence"))?;
    Ok(row.get(0))
}

/// Waits, naming the sessions that hold up `pid`; after `timeout` ends them and returns.
async fn end_blockers(config: &Config, pid: i32, timeout: Duration) -> Result<()> {
    let blocked_by = "SELECT a.pid, coalesce(a.application_name, ''), left(coalesce(a.query, ''), 60) \
                      FROM pg_stat_activity a WHERE a.pid = ANY (pg_blocking_pids($1))";
    tokio::time::sleep(POLL).await;
    let watcher = connect(config, &[]).await?;
    let deadline = Instant::now() + timeout;
    let mut named = Vec::new();
    loop {
        let rows = watcher
            .query(blocked_by, &[&pid])
            .await
            .map_err(during("looking what the fence waits for"))?;
        for row in &rows {
            let blocker: i32 = row.get(0);
            if !named.contains(&blocker) {
                named.push(blocker);
                let (application, query): (String, String) = (row.get(1), row.get(2));
                tracing::warn!(
                    pid = blocker,
                    application,
                    query,
                    "waiting for the last transaction of a former instance"
                );
            }
            if Instant::now() >= deadline {
                tracing::warn!(pid = blocker, "ending the session of a former instance");
                watcher
                    .execute("SELECT pg_terminate_backend($1)", &[&blocker])
                    .await
                    .map_err(during("ending the session of a former instance"))?;
            }
        }
        if Instant::now() >= deadline && !rows.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

impl Fence for PgFence {
    fn epoch(&self) -> i64 {
        self.epoch
    }

    fn check(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if self.control.is_closed() {
                self.control = self.reopen().await?;
            }
            self.expect_epoch(&self.control).await
        })
    }
}

impl PgFence {
    /// Takes the lock that went with the session. Whoever took it meanwhile raises the epoch before it does
    /// anything, so the epoch tells a successor from a session of our own that the server has not noticed to be dead.
    async fn reopen(&self) -> Result<Client> {
        let control = connect(&self.config, CONTROL_SETTINGS).await?;
        schema::refuse_newer(&control).await?;
        if try_lock(&control, &self.stream).await? {
            return Ok(control);
        }
        self.expect_epoch(&control).await?;
        let who = holder(&control, &self.stream).await?;
        let who = who.unwrap_or_else(|| "a session that just ended".to_owned());
        Err(Error::new(
            Kind::Unreachable,
            format!("the control session was lost, and its lock is still held by {who}"),
        )
        .action(Action::Reconnect)
        .object(format!("job {}", self.stream)))
    }

    async fn expect_epoch(&self, control: &Client) -> Result<()> {
        let sql = "SELECT epoch FROM cdc_sync.fence WHERE stream = $1";
        let row = control.query_opt(sql, &[&self.stream]).await;
        let row = row.map_err(|error| during("checking the fence")(error).action(Action::Reconnect))?;
        match row.map(|row| row.get::<_, i64>(0)) {
            Some(epoch) if epoch == self.epoch => Ok(()),
            Some(epoch) => Err(self.lost(&format!("epoch {epoch}"))),
            None => Err(self.lost("nobody: the fence row is gone")),
        }
    }

    fn lost(&self, to: &str) -> Error {
        Error::new(Kind::Fenced, format!("another instance has taken over: {to}"))
            .object(format!("job {}", self.stream))
            .remedy("only one instance applies a job; this one stops")
    }
}
