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

/// How long one attempt waits: the caller tries again, and looks in between whether it is to stop.
const PATIENCE: &[(&str, &str)] = &[("lock_timeout", "5s")];
/// The same for the wait's own commit, which a synchronous standby that is away may keep from being durable: no setting
/// bounds that, and one that is cancelled there says that all is well.
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
/// A session whose connection is closed ends by itself. How long it may take before it is ended: a connection that was
/// lost without a word is closed by nobody.
const LINGER: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);

/// The streams of a site of which a commit of this process is in doubt, with the sessions that it may still arrive at.
#[derive(Debug, Default)]
pub(crate) struct Doubts(Mutex<HashMap<String, Vec<Backend>>>);

impl Doubts {
    fn streams(&self) -> MutexGuard<'_, HashMap<String, Vec<Backend>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no transaction of the stream is in doubt any more. Other processes do not wait: only who goes on
    /// applying has to know.
    pub(crate) async fn settle(&self, config: &Config, stream: &str) -> Result<()> {
        let Some(sessions) = self.streams().get(stream).cloned() else {
            return Ok(());
        };
        let client = connect(config, PATIENCE).await?;
        wait(&client, stream).await?;
        let mut lived = false;
        for session in &sessions {
            lived |= outlive(&client, stream, session).await?;
        }
        if lived {
            // It may have come to its COMMIT meanwhile, which need not be durable.
            wait(&client, stream).await?;
        }
        self.streams().remove(stream);
        Ok(())
    }
}

async fn wait(client: &Client, stream: &str) -> Result<()> {
    let Ok(waited) = tokio::time::timeout(TURN, client.execute(WAIT, &[&stream])).await else {
        return Err(pending(
            stream,
            "the target does not make durable what this job committed",
        ));
    };
    match waited {
        Ok(_) => Ok(()),
        Err(error) if error.code().is_some_and(|code| code.code() == "55P03") => Err(pending(
            stream,
            "the target still runs a COMMIT of this job whose answer was lost",
        )),
        Err(error) => Err(during("waiting for a commit whose answer was lost")(error)),
    }
}

/// Waits until a session whose connection is given up has ended, and ends it when it does not by itself. Says whether it
/// was there at all.
async fn outlive(client: &Client, stream: &str, session: &Backend) -> Result<bool> {
    const WAITING: &str = "waiting for the end of a session that was given up";
    let begun = Instant::now();
    let (mut lived, mut told) = (false, false);
    loop {
        let lives = client.query_opt(LIVES, &[&session.pid, &session.started]).await;
        if lives.map_err(during(WAITING))?.is_none() {
            return Ok(lived);
        }
        lived = true;
        if begun.elapsed() >= TURN {
            let what = "the target keeps a session of this job whose connection was given up";
            return Err(pending(stream, what));
        }
        if !told && begun.elapsed() >= LINGER {
            told = true;
            let ended = client.query_opt(END, &[&session.pid, &session.started]).await;
            ended.map_err(during(WAITING))?;
        }
        tokio::time::sleep(POLL).await;
    }
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
        let sessions = streams.entry(self.stream.clone()).or_default();
        sessions.extend(self.session.take());
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        if self.committing || self.undurable {
            self.remains();
        }
    }
}
