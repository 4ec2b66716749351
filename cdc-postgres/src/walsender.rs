//! The replication client: commands of a walsender connection and the stream of a logical slot.
//!
//! It moves frames and knows nothing of their content: the decoder reads `pgoutput`, and whoever owns the checkpoint
//! decides which positions are reported as flushed.

mod bursts;
pub mod frame;
pub mod options;
pub mod slot;
pub mod stream;

#[cfg(test)]
mod tests;

use bursts::Bursts;

use crate::config::Config;
use crate::error::PgError;
use crate::lsn::Lsn;
use crate::wire::{CancelToken, Connection, Purpose, QueryResult, ReplicationSettings, ServerVersion};

pub use frame::{Frame, parse_frame, split_frames};
pub use options::{Origin, PgoutputOptions, Streaming};
pub use slot::{CreateSlot, CreatedSlot, SlotSnapshot};

/// Largest frame accepted unless told otherwise: a row of 256 MiB with room for its headers.
pub const DEFAULT_MAX_FRAME_BYTES: usize = 256 * 1024 * 1024 + 64 * 1024;

/// How a walsender connection is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalSenderOptions {
    /// Settings of the server session.
    pub settings: ReplicationSettings,
    /// Largest frame accepted, in bytes. A larger one ends the stream with an error that names its position.
    pub max_frame_bytes: usize,
}

impl Default for WalSenderOptions {
    fn default() -> WalSenderOptions {
        WalSenderOptions {
            settings: ReplicationSettings::default(),
            max_frame_bytes: DEFAULT_MAX_FRAME_BYTES,
        }
    }
}

/// A replication connection to one database of the source.
#[derive(Debug)]
pub struct WalSender {
    pub(crate) connection: Connection,
    max_frame_bytes: usize,
    /// The connection is in copy-both mode.
    streaming: bool,
    /// Transactions that still run come in blocks.
    in_blocks: bool,
    /// How the stream of a server on this machine is read.
    bursts: Option<Bursts>,
    /// Why the stream has ended.
    ended: Option<PgError>,
}

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Identifies the cluster; copies of it made by base backup share it.
    pub system_id: u64,
    /// The current timeline.
    pub timeline: u32,
    /// How far the server has flushed its WAL.
    pub xlogpos: Lsn,
    /// The database connected to.
    pub dbname: String,
}

impl WalSender {
    /// Connects with `replication=database`.
    pub async fn connect(config: &Config, options: &WalSenderOptions) -> Result<WalSender, PgError> {
        let purpose = Purpose::Replication(options.settings.clone());
        let connection = Connection::connect(config, &purpose, &[]).await?;
        Ok(WalSender::over(connection, options.max_frame_bytes))
    }

    pub(crate) fn over(connection: Connection, max_frame_bytes: usize) -> WalSender {
        WalSender {
            connection,
            max_frame_bytes,
            streaming: false,
            bursts: None,
            in_blocks: false,
            ended: None,
        }
    }

    /// The server's version.
    pub fn server_version(&self) -> ServerVersion {
        self.connection.server_version()
    }

    /// The process id of the walsender, as in `pg_stat_replication` and `pg_replication_slots.active_pid`.
    pub fn backend_pid(&self) -> i32 {
        self.connection.backend_pid()
    }

    /// The connection, for what is not a replication command. Not while streaming.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// What is needed to cancel a command of this connection, for example a slot creation that waits for an old
    /// transaction: without a cancel the server goes on waiting after the client has left.
    pub fn cancel_token(&self) -> CancelToken {
        self.connection.cancel_token()
    }

    /// `IDENTIFY_SYSTEM`.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, PgError> {
        let results = self.command("IDENTIFY_SYSTEM").await?;
        let fields = Fields::of(&results, "IDENTIFY_SYSTEM")?;
        Ok(SystemIdentity {
            system_id: fields.parsed("systemid")?,
            timeline: fields.parsed("timeline")?,
            xlogpos: fields.parsed("xlogpos")?,
            dbname: fields.required("dbname")?.to_owned(),
        })
    }

    /// `TIMELINE_HISTORY`: the content of the history file of a timeline other than the first.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<String, PgError> {
        let results = self.command(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let fields = Fields::of(&results, "TIMELINE_HISTORY")?;
        fields.required("content").map(str::to_owned)
    }

    /// `SHOW`: a server setting.
    pub async fn show(&mut self, name: &str) -> Result<String, PgError> {
        // The command takes bare names only.
        if name.is_empty()
            || !name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
        {
            return Err(PgError::usage(format!(
                "{name:?} is not the name of a server setting"
            )));
        }
        let results = self.command(&format!("SHOW {name}")).await?;
        let row = results.first().and_then(|result| result.rows.first());
        let value = row.map(|row| row.text(0)).transpose()?.flatten();
        value
            .map(str::to_owned)
            .ok_or_else(|| PgError::protocol(format!("the server answered SHOW {name} without a value")))
    }

    /// Runs one command, or one SQL statement, by the simple protocol.
    pub(crate) async fn command(&mut self, command: &str) -> Result<Vec<QueryResult>, PgError> {
        if self.streaming {
            return Err(PgError::usage(
                "the connection is streaming: stop the stream before the next command",
            ));
        }
        self.connection
            .simple_query(command)
            .await
            .map_err(|e| e.during(format!("{command} on {}", self.connection.endpoint())))
    }

    /// Ends the session.
    pub async fn close(self) {
        self.connection.close().await;
    }
}

/// The one row that a replication command answers with, by column name: newer servers add columns.
struct Fields<'a> {
    command: &'static str,
    result: &'a QueryResult,
}

impl<'a> Fields<'a> {
    fn of(results: &'a [QueryResult], command: &'static str) -> Result<Fields<'a>, PgError> {
        let result = results.iter().find(|result| !result.rows.is_empty());
        let result = result
            .ok_or_else(|| PgError::protocol(format!("the server answered {command} without a row")))?;
        Ok(Fields { command, result })
    }

    fn optional(&self, name: &str) -> Result<Option<&'a str>, PgError> {
        let Some(column) = self.result.columns.iter().position(|column| column.name == name) else {
            return Ok(None);
        };
        match self.result.rows.first() {
            Some(row) => row.text(column),
            None => Ok(None),
        }
    }

    fn required(&self, name: &str) -> Result<&'a str, PgError> {
        self.optional(name)?
            .ok_or_else(|| PgError::protocol(format!("the server answered {} without {name}", self.command)))
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str) -> Result<T, PgError> {
        let text = self.required(name)?;
        text.parse().map_err(|_| {
            PgError::protocol(format!(
                "the server answered {} with {name} = {text:?}",
                self.command
            ))
        })
    }
}
