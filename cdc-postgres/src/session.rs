//! Connections for SQL, and what becomes of their errors.

use std::sync::{Arc, Mutex};

use cdc_core::{Action, Error, Result};
use tokio::runtime;
use tokio_postgres::Client;

use crate::config::Config;
use crate::error::PgError;
use crate::wire::{Connection, Purpose};

/// Opens a tokio-postgres client. Its driver ends with the client, so nobody waits for it.
pub(crate) async fn connect(config: &Config, settings: &[(&str, &str)]) -> Result<Client> {
    let (client, _driver) = config.connect_client(settings).await?;
    Ok(client)
}

/// Turns an error of tokio-postgres into ours, saying what was being done.
pub(crate) fn during(what: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Error {
    |error| Error::from(PgError::from(error).during(what))
}

/// A client kept between calls that come often, and made again when it is lost. Several calls may use it at a time,
/// so each must be a single statement.
///
/// A client works only while the runtime that it was opened on runs; another one gets its own.
#[derive(Debug)]
pub(crate) struct KeptClient {
    config: Config,
    settings: &'static [(&'static str, &'static str)],
    held: tokio::sync::Mutex<Option<(runtime::Id, Arc<Client>)>>,
}

impl KeptClient {
    /// A client with these settings, opened at the first call.
    pub(crate) fn new(config: Config, settings: &'static [(&'static str, &'static str)]) -> Self {
        Self {
            config,
            settings,
            held: tokio::sync::Mutex::default(),
        }
    }

    /// The client.
    pub(crate) async fn get(&self) -> Result<Arc<Client>> {
        let here = runtime::Handle::current().id();
        let mut held = self.held.lock().await;
        if let Some((home, client)) = &*held
            && *home == here
            && !client.is_closed()
        {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(connect(&self.config, self.settings).await?);
        *held = Some((here, Arc::clone(&client)));
        Ok(client)
    }

    /// Hands on what became of a call; after a lost connection the next call gets a new one.
    pub(crate) async fn settle<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome
            && error.what_to_do() == Action::Reconnect
        {
            *self.held.lock().await = None;
        }
        outcome
    }
}

/// The right to set this is the superuser's, or granted (GRANT SET ON PARAMETER, PostgreSQL 15). Without it
/// triggers fire and foreign keys are checked while rows are loaded, which a target made by us has none of yet.
const REPLICA_ROLE: &str = "SET session_replication_role = replica";

/// A session that may not set it goes on as it is; whether it may.
pub(crate) async fn try_replica_role(connection: &mut Connection) -> Result<bool> {
    match connection.simple_query(REPLICA_ROLE).await {
        Ok(_) => Ok(true),
        Err(error) if error.sqlstate.is_some_and(|code| code.as_str() == "42501") => {
            tracing::debug!(
                "the role may not set session_replication_role: triggers fire and foreign keys are checked"
            );
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Connections kept for the next part of a copy: logging in costs more than copying a small table does.
///
/// A connection's socket belongs to the runtime it was opened on and is handed out on that one only.
#[derive(Debug)]
pub(crate) struct Pool {
    config: Config,
    settings: &'static [(&'static str, &'static str)],
    replica_role: bool,
    idle: Mutex<Vec<(runtime::Id, Connection)>>,
}

impl Pool {
    /// Connections with these settings; with `replica_role` in `session_replication_role = replica`, if allowed.
    pub(crate) fn new(
        config: Config,
        settings: &'static [(&'static str, &'static str)],
        replica_role: bool,
    ) -> Self {
        Self {
            config,
            settings,
            replica_role,
            idle: Mutex::default(),
        }
    }

    /// An idle connection or a new one.
    pub(crate) async fn take(&self) -> Result<Connection> {
        if let Some(connection) = self.take_idle() {
            return Ok(connection);
        }
        let mut connection = Connection::connect(&self.config, &Purpose::Sql, self.settings).await?;
        if self.replica_role {
            try_replica_role(&mut connection).await?;
        }
        Ok(connection)
    }

    fn take_idle(&self) -> Option<Connection> {
        let here = runtime::Handle::current().id();
        let mut idle = self
            .idle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let place = idle.iter().position(|(home, _)| *home == here)?;
        Some(idle.swap_remove(place).1)
    }

    /// Gives a connection back that is outside a transaction and has no answer to come.
    pub(crate) fn put(&self, connection: Connection) {
        let here = runtime::Handle::current().id();
        let mut idle = self
            .idle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        idle.push((here, connection));
    }

    /// Drops the idle connections: after one was lost the others are likely lost as well.
    pub(crate) fn clear(&self) {
        let mut idle = self
            .idle
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        idle.clear();
    }
}
