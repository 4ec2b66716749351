//! [`Clients`]: sessions for SQL that are lent for one piece of work after the other. A run begins and ends with dozens
//! of questions, and logging in costs more than most of them.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cdc_core::Result;
use tokio::runtime;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::config::Config;
use crate::error::{PgError, SqlState};
use crate::wire::{OpenedClient, Owed};

/// How long a client that nobody wants stays open: while a job only follows, no session is held for later.
const KEPT: Duration = Duration::from_secs(2);

/// How long a server may take to notice that a session has ended.
const LETTING_GO: Duration = Duration::from_millis(100);

/// The settings of sessions, beside those that all of ours have.
pub(crate) type Settings = &'static [(&'static str, &'static str)];

/// Clients of one database.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    config: Config,
    unused: Arc<Mutex<Vec<Unused>>>,
}

/// A client that came back.
#[derive(Debug)]
struct Unused {
    settings: Settings,
    /// its socket belongs to the runtime it was opened on
    home: runtime::Id,
    since: Instant,
    client: Client,
    owed: Owed,
}

impl Unused {
    /// A runtime that stands still notices neither the end of a connection nor that it was kept for long enough.
    fn is_fresh(&self) -> bool {
        !self.client.is_closed() && self.since.elapsed() < KEPT
    }
}

impl Clients {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            unused: Arc::default(),
        }
    }

    /// The configuration that clients are opened with.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// A client with these settings. Whoever has it leaves them as they are, and no lock, table or cursor of the session.
    pub(crate) async fn lend(&self, settings: Settings) -> Result<Lent> {
        let (client, owed) = match self.take_unused(settings) {
            Some(unused) => (unused.client, unused.owed),
            None => {
                let OpenedClient { client, owed, .. } = self.open(settings).await?;
                (client, owed)
            }
        };
        Ok(self.lent(settings, client, owed))
    }

    /// Where no more connections are allowed, those that are kept here for others make room.
    async fn open(&self, settings: Settings) -> Result<OpenedClient, PgError> {
        match self.config.open_client(settings).await {
            Err(error) if error.is(SqlState::TOO_MANY_CONNECTIONS) && !lock(&self.unused).is_empty() => {
                lock(&self.unused).clear();
                tokio::time::sleep(LETTING_GO).await;
                self.config.open_client(settings).await
            }
            opened => opened,
        }
    }

    /// Takes over a client that was opened without settings.
    pub(crate) fn adopt(&self, OpenedClient { client, owed, .. }: OpenedClient) -> Lent {
        self.lent(&[], client, owed)
    }

    fn lent(&self, settings: Settings, client: Client, owed: Owed) -> Lent {
        Lent {
            settings,
            lender: Arc::clone(&self.unused),
            held: Some((client, owed)),
        }
    }

    fn take_unused(&self, settings: Settings) -> Option<Unused> {
        let here = runtime::Handle::current().id();
        let mut unused = lock(&self.unused);
        unused.retain(Unused::is_fresh);
        // What was asked by whoever had it before must be answered, and no transaction be open.
        let place = unused
            .iter()
            .position(|one| one.home == here && one.settings == settings && one.owed.is_settled())?;
        Some(unused.swap_remove(place))
    }
}

fn lock(unused: &Mutex<Vec<Unused>>) -> MutexGuard<'_, Vec<Unused>> {
    unused.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client that goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lent {
    settings: Settings,
    lender: Arc<Mutex<Vec<Unused>>>,
    held: Option<(Client, Owed)>,
}

impl Deref for Lent {
    type Target = Client;

    fn deref(&self) -> &Client {
        let Some((client, _)) = &self.held else {
            unreachable!("only dropping takes it")
        };
        client
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Client {
        let Some((client, _)) = &mut self.held else {
            unreachable!("only dropping takes it")
        };
        client
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let (Some((client, owed)), Ok(runtime)) = (self.held.take(), runtime::Handle::try_current()) else {
            return;
        };
        let since = Instant::now();
        lock(&self.lender).push(Unused {
            settings: self.settings,
            home: runtime.id(),
            since,
            client,
            owed,
        });
        let lender = Arc::downgrade(&self.lender);
        runtime.spawn(async move {
            tokio::time::sleep_until(since + KEPT).await;
            if let Some(lender) = lender.upgrade() {
                lock(&lender).retain(Unused::is_fresh);
            }
        });
    }
}
