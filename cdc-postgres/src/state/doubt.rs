//! Commits whose answer was lost, or that are not durable yet, and waiting for them.
//!
//! The server runs a COMMIT to its end whether or not its client is there (a deferred trigger, a synchronous standby
//! may take their time), and one that is still on its way to the server is run when it arrives. Until then the checkpoint
//! tells what was before it, and a session that went on from there would apply the same changes once more. The
//! transaction holds its share of the fence row to its end, and one that has not begun will be of a session that is still there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cdc_core::{Action, Error, Kind, Result};
use tokio_postgres::Client;

use crate::config::Config;
use crate::session::{connect, during};
use crate::wire::Backend;

/// How long one wait of an attempt may take: the caller tries again, and looks in between whether it is to stop.
const PATIENCE: &[(&str, &str)] = &[("lock_timeout", "5s")];
/// The same for the wait's own commit, which a synchronous standby that is away may keep from being durable: no setting
/// bounds that, and one that is cancelled there says that all is well. And for the ends of all sessions together.
const TURN: Duration = Duration::from_secs(8);
/// Waits for every transaction that holds its share, and makes durable what they have committed: locking the row is a
/// change, whose own commit is. Nothing is read from it: the statement that reads the checkpoint
/// must begin after the wait, to see what it ended with.
const WAIT: &str = "SELECT FROM cdc_sync.fence WHERE stream = $1 FOR NO KEY UPDATE";
/// Whether a session is there.
const LIVES: &str = "SELECT FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2";
/// Ends it.
const END: &str =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2";
/// Ends it if it waits for the rest of what was sent, which may have got lost: not one that is at work on a COMMIT.
const END_IF_IT_WAITS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
     WHERE pid = $1 AND backend_start::text = $2 AND wait_event_type = 'Client'";
const WAITING: &str = "waiting for a commit whose answer was lost";
/// A session whose connection is closed ends by itself. How long it may take before it is ended: a connection that was
/// lost without a word is closed by nobody.
const LINGER: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);

/// The streams of a site of which a commit of this process is in doubt.
#[derive(Debug, Default)]
pub(crate) struct Doubts(Mutex<HashMap<String, Doubtful>>);

/// What is in doubt of a stream.
#[derive(Clone, Debug, Default)]
struct Doubtful {
    /// counts what came into doubt
    times: u64,
    /// the sessions at which it may still arrive
    sessions: Vec<Backend>,
}

impl Doubts {
    fn streams(&self) -> MutexGuard<'_, HashMap<String, Doubtful>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no transaction of the stream is in doubt any more. Other processes do not wait: only who goes on
    /// applying has to know.
    pub(crate) async fn settle(&self, config: &Config, stream: &str) -> Result<()> {
        let Some(Doubtful { times, sessions }) = self.streams().get(stream).cloned() else {
            return Ok(());
        };
        let client = connect(config, PATIENCE).await?;
        wait(&client, stream, &sessions).await?;
        if !sessions.is_empty() {
            outlive(&client, stream, &sessions).await?;
            // What arrived meanwhile need not be durable.
            wait(&client, stream, &[]).await?;
        }
        let mut streams = self.streams();
        if streams
            .get(stream)
            .is_some_and(|doubtful| doubtful.times == times)
        {
            streams.remove(stream);
        }
        Ok(())
    }
}

/// Waits for the transactions that hold the fence, some perhaps of `sessions` whose connections were given up.
async fn wait(client: &Client, stream: &str, sessions: &[Backend]) -> Result<()> {
    let Ok(waited) = tokio::time::timeout(TURN, client.execute(WAIT, &[&stream])).await else {
        return Err(pending(
            stream,
            "the target does not make durable what this job committed",
        ));
    };
    match waited {
        Ok(_) => Ok(()),
        Err(error) if error.code().is_some_and(|code| code.code() == "55P03") => {
            for Backend { pid, started } in sessions {
                let ended = client.query_opt(END_IF_IT_WAITS, &[pid, started]).await;
                ended.map_err(during(WAITING))?;
            }
            Err(pending(
                stream,
                "the target still runs a COMMIT of this job whose answer was lost",
            ))
        }
        Err(error) => Err(during(WAITING)(error)),
    }
}

/// Waits until the sessions whose connections were given up have ended, and ends those that do not by themselves.
async fn outlive(client: &Client, stream: &str, sessions: &[Backend]) -> Result<()> {
    let begun = Instant::now();
    for Backend { pid, started } in sessions {
        let mut told = false;
        loop {
            let lives = client.query_opt(LIVES, &[pid, started]).await;
            if lives.map_err(during(WAITING))?.is_none() {
                break;
            }
            if begun.elapsed() >= TURN {
                let what = "the target keeps a session of this job whose connection was given up";
                return Err(pending(stream, what));
            }
            if !told && begun.elapsed() >= LINGER {
                told = true;
                let ended = client.query_opt(END, &[pid, started]).await;
                ended.map_err(during(WAITING))?;
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

fn pending(stream: &str, what: &str) -> Error {
    Error::new(Kind::Unreachable, format!("{what}; it is waited for"))
        .action(Action::Reconnect)
        .object(format!("job {stream}"))
        .remedy("look in pg_stat_activity on the target for what it waits for")
}

/// Whether a sink's commit may still run, or be lost.
#[derive(Debug)]
pub(crate) struct Doubt {
    of: Arc<Doubts>,
    stream: String,
    /// the session that commits, where it can be told from others
    session: Option<Backend>,
    committing: bool,
    /// Something is committed that is not durable yet: nobody must go on from it before it is.
    undurable: bool,
}

impl Doubt {
    /// For a sink of `stream`.
    pub(crate) fn new(of: Arc<Doubts>, stream: &str) -> Doubt {
        Doubt {
            of,
            stream: stream.to_owned(),
            session: None,
            committing: false,
            undurable: false,
        }
    }

    /// The sink commits by another session from now on.
    pub(crate) fn by(&mut self, session: Option<Backend>) {
        if self.committing {
            self.remains();
        }
        self.session = session;
    }

    /// A COMMIT is about to be sent; when nothing more is heard of it, it is in doubt.
    pub(crate) fn begin(&mut self) {
        self.committing = true;
    }

    /// The outcome is known: it failed.
    pub(crate) fn end(&mut self) {
        self.committing = false;
    }

    /// It is committed, and durable with all before it unless only `soon`.
    pub(crate) fn committed(&mut self, soon: bool) {
        self.committing = false;
        self.undurable = soon;
    }

    /// The outcome is not known.
    pub(crate) fn remains(&mut self) {
        self.committing = false;
        let mut streams = self.of.streams();
        let doubtful = streams.entry(self.stream.clone()).or_default();
        doubtful.times += 1;
        doubtful.sessions.extend(self.session.take());
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        if self.committing || self.undurable {
            self.remains();
        }
    }
}
