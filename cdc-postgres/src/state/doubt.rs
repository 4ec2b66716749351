//! Commits whose answer was lost, or that are not durable yet, and waiting for them.
//!
//! The server runs a COMMIT to its end whether or not its client is there (a deferred trigger, a synchronous standby
//! may take their time). Until then the checkpoint tells what was before it, and a session that went on from there
//! would apply the same changes once more. The transaction holds its share of the fence row to its end.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cdc_core::{Action, Error, Kind, Result};

use crate::config::Config;
use crate::session::{connect, during};

/// How long one attempt waits: the caller tries again, and looks in between whether it is to stop.
const PATIENCE: &[(&str, &str)] = &[("lock_timeout", "5s")];
/// The same for the wait's own commit, which a synchronous standby that is away may keep from being durable: no setting
/// bounds that, and one that is cancelled there says that all is well.
const TURN: Duration = Duration::from_secs(8);
/// Waits for every transaction that holds its share, and makes durable what they have committed: locking the row is a
/// change, whose own commit is. Nothing is read from it: the statement that reads the checkpoint
/// must begin after the wait, to see what it ended with.
const WAIT: &str = "SELECT FROM cdc_sync.fence WHERE stream = $1 FOR NO KEY UPDATE";

/// The streams of a site of which a commit of this process is in doubt.
#[derive(Debug, Default)]
pub(crate) struct Doubts(Mutex<HashSet<String>>);

impl Doubts {
    fn streams(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no transaction of the stream is in doubt any more. Other processes do not wait: only who goes on
    /// applying has to know.
    pub(crate) async fn settle(&self, config: &Config, stream: &str) -> Result<()> {
        if !self.streams().contains(stream) {
            return Ok(());
        }
        let client = connect(config, PATIENCE).await?;
        let Ok(waited) = tokio::time::timeout(TURN, client.execute(WAIT, &[&stream])).await else {
            return Err(pending(
                stream,
                "the target does not make durable what this job committed",
            ));
        };
        match waited {
            Ok(_) => {
                self.streams().remove(stream);
                Ok(())
            }
            Err(error) if error.code().is_some_and(|code| code.code() == "55P03") => Err(pending(
                stream,
                "the target still runs a COMMIT of this job whose answer was lost",
            )),
            Err(error) => Err(during("waiting for a commit whose answer was lost")(error)),
        }
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
            committing: false,
            undurable: false,
        }
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
        self.of.streams().insert(self.stream.clone());
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        if self.committing || self.undurable {
            self.remains();
        }
    }
}
