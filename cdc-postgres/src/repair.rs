//! Writing the source's rows into the target where a comparison found that they differ.
//!
//! The stream is kept away by the row that each of its transactions locks first, the fence's: a repair's transaction
//! locks it exclusively, so that none of the stream's runs beside it, and then looks whether the checkpoint is still the
//! one that the source's rows belong to. That holds whatever becomes of the request to stand still, of our process and
//! of the instance: a request only makes it likely.

pub(crate) mod table;
mod write;

use std::time::Duration;

use cdc_core::repair::{Asked, Found, Mended, Mender};
use cdc_core::{BoxFuture, Checkpoint, Error, Kind, Result};

use crate::config::Config;
use crate::error::PgError;
use crate::error_map::message_without_value;
use crate::session::try_replica_role;
use crate::sink::{origin, suppressors};
use crate::wire::{Connection, Purpose, literal};
use table::{Located, Table};

const SETTINGS: &[(&str, &str)] = &[
    // A policy that hides rows would make a repair miss them: fail instead.
    ("row_security", "off"),
    ("jit", "off"),
    // Whoever waits for a lock makes others wait behind it, and the stream stands still meanwhile.
    ("lock_timeout", "10s"),
    // The server learns within a minute that our machine is gone, and lets go of our transaction's locks.
    ("tcp_keepalives_idle", "20"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "4"),
];

/// How long the session of a repair that is no more may take to go.
const LINGER: Duration = Duration::from_secs(60);

/// Opens a repairing session of `stream`.
pub(crate) async fn open(config: &Config, stream: &str) -> Result<Box<dyn Mender>> {
    let mut connection = Connection::connect(config, &Purpose::Sql, SETTINGS).await?;
    try_replica_role(&mut connection).await?;
    origin::take_for_repair(&mut connection, stream, LINGER).await?;
    Ok(Box::new(PgMender {
        connection,
        stream: stream.to_owned(),
    }))
}

#[derive(Debug)]
struct PgMender {
    connection: Connection,
    stream: String,
}

impl Mender for PgMender {
    fn mend<'a>(
        &'a mut self,
        at: &'a Checkpoint,
        asked: &'a Asked<'a>,
        source: &'a [Found],
    ) -> BoxFuture<'a, Option<Mended>> {
        Box::pin(async move {
            let mended = self.in_transaction(at, asked, source).await;
            let end = match &mended {
                Ok(Some(_)) => "COMMIT",
                Ok(None) | Err(_) => "ROLLBACK",
            };
            let ended = self.connection.simple_query(end).await;
            let mended = mended?;
            ended.map_err(|error| refused(error, asked))?;
            Ok(mended)
        })
    }
}

impl PgMender {
    async fn in_transaction(
        &mut self,
        at: &Checkpoint,
        asked: &Asked<'_>,
        source: &[Found],
    ) -> Result<Option<Mended>> {
        let stream = literal(&self.stream);
        // READ COMMITTED: what is read after the wait for the lock has to be the newest.
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; \
             SELECT FROM cdc_sync.fence WHERE stream = {stream} FOR NO KEY UPDATE"
        );
        self.connection.simple_query(&begin).await?;
        if !self.stands(at, &stream).await? {
            return Ok(None);
        }
        self.expect_followed(asked, &stream).await?;
        let table = Table::read(&mut self.connection, asked).await?;
        let target = table.locate(&mut self.connection, Located::ForUpdate).await?;
        let written = write::write(&mut self.connection, &table, source, &target).await;
        let written = written.map_err(|error| refused(error, asked))?;
        if written.suppressed > 0 {
            return Err(self.suppressed(written.suppressed, asked).await?);
        }
        Ok(Some(written.mended))
    }

    /// What was not written without an error was kept back by a trigger or a rule.
    async fn suppressed(&mut self, rows: u64, asked: &Asked<'_>) -> Result<Error> {
        let names = suppressors(&mut self.connection, asked.table).await?;
        let names = names.unwrap_or_else(|| "a trigger or rule".to_owned());
        Ok(Error::new(
            Kind::Data,
            format!("the target suppresses the writing of {rows} rows: {names}"),
        )
        .object(format!("table {}", asked.table))
        .remedy("disable it for the time of the repair, then repair again"))
    }

    /// What the job does not have is none of our business. A table that is set aside is emptied and copied by a stream of its own, which the fence does not keep away. Until
    /// our transaction ends it cannot be set aside.
    async fn expect_followed(&mut self, asked: &Asked<'_>, stream: &str) -> Result<()> {
        let sql = format!(
            "SELECT phase FROM cdc_sync.seed WHERE stream = {stream} AND schema_name = {} AND table_name = {} FOR SHARE",
            literal(&asked.table.schema),
            literal(&asked.table.name)
        );
        match self.connection.single_value(&sql).await?.as_deref() {
            Some("aside") => {}
            Some(_) => return Ok(()),
            None => {
                return Err(Error::new(Kind::Unverifiable, "it is not one of the job's tables")
                    .object(format!("table {}", asked.table))
                    .remedy("its rows on the target are the target's own; `cdc-sync resync` takes it into the job"));
            }
        }
        Err(Error::new(Kind::Unverifiable, "it is being copied anew")
            .object(format!("table {}", asked.table))
            .remedy("nothing is to be repaired: `run` gives it back to the stream when the copy is complete"))
    }

    async fn stands(&mut self, at: &Checkpoint, stream: &str) -> Result<bool> {
        let sql = format!(
            "SELECT concat_ws(' ', groups, position) FROM cdc_sync.checkpoint WHERE stream = {stream}"
        );
        let found = self.connection.single_value(&sql).await?;
        Ok(found == Some(format!("{} {}", at.groups, at.position)))
    }
}

/// An error of the server about a row, without the row's values.
fn refused(error: PgError, asked: &Asked<'_>) -> Error {
    let message = message_without_value(&error);
    let cause = Error::from(error);
    let mut refused = Error::new(cause.kind(), message)
        .action(cause.what_to_do())
        .object(format!("table {}", asked.table))
        .remedy("mend what refuses the row, or copy the table anew: `cdc-sync resync`");
    if let Some(code) = cause.server_code() {
        refused = refused.code(code);
    }
    refused
}
