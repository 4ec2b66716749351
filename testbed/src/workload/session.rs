//! A writer's connection.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures_util::TryStreamExt;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::postgres::connect;

/// A server that does not answer for this long counts as lost. Locks are held for fractions of a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(180);

/// How a transaction, or a part of it, ended.
pub(super) enum Outcome {
    /// Every statement ran; the row count of each.
    Done(Vec<u64>),
    /// The server refused a statement for a conflict with another session, and has rolled back.
    Refused,
    /// The connection broke: what the server made of the statements is not known.
    Lost(anyhow::Error),
}

/// A connection and the identity of its backend.
pub(super) struct Session {
    client: Client,
    pid: String,
    backend_start: String,
}

impl Session {
    pub(super) async fn open(url: &str) -> Result<Session> {
        let client = connect(url).await?;
        let row = within(first_row(
            &client,
            "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()",
        ))
        .await?;
        let [pid, backend_start] =
            <[String; 2]>::try_from(row).map_err(|_| anyhow!("no backend identity"))?;
        Ok(Session {
            client,
            pid,
            backend_start,
        })
    }

    /// The number that the writer's last committed transaction left.
    pub(super) async fn last_transaction(&self, writer: u32) -> Result<u64> {
        let sql = format!("SELECT last_transaction FROM shop.writers WHERE id = {writer}");
        let row = within(first_row(&self.client, &sql)).await?;
        row.first()
            .context("shop.writers has no row for the writer")?
            .parse()
            .context("not a number")
    }

    /// Whether the backend of another session is gone; it is told to go.
    pub(super) async fn has_ended(&self, other: &Session) -> Result<bool> {
        let sql = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid = {} AND backend_start = '{}'",
            other.pid, other.backend_start
        );
        Ok(within(first_row(&self.client, &sql))
            .await?
            .first()
            .is_some_and(|count| count == "0"))
    }

    /// Runs statements sent as one string.
    ///
    /// # Errors
    /// For any refusal that a conflict between writers does not explain.
    pub(super) async fn run(&self, sql: &str, statements: usize) -> Result<Outcome> {
        let mut counts = Vec::with_capacity(statements);
        let answer = async {
            let mut messages = std::pin::pin!(self.client.simple_query_raw(sql).await?);
            while let Some(message) = messages.try_next().await? {
                if let SimpleQueryMessage::CommandComplete(rows) = message {
                    counts.push(rows);
                }
            }
            Ok(())
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Err(_) => Ok(Outcome::Lost(anyhow!("no answer within {ANSWER_TIMEOUT:?}"))),
            Ok(Ok(())) if counts.len() == statements => Ok(Outcome::Done(counts)),
            Ok(Ok(())) => bail!("{} of {statements} statements were answered: {sql}", counts.len()),
            Ok(Err(error)) => self.refused(error, sql).await,
        }
    }

    async fn refused(&self, error: tokio_postgres::Error, sql: &str) -> Result<Outcome> {
        // A FATAL error ends the session, and can come after the commit itself: as good as a broken
        // connection.
        let Some(db) = error
            .as_db_error()
            .filter(|db| db.parsed_severity() == Some(Severity::Error))
        else {
            return Ok(Outcome::Lost(error.into()));
        };
        let conflicts = [
            &SqlState::T_R_DEADLOCK_DETECTED,
            // "tuple to be locked was already moved to another partition"
            &SqlState::T_R_SERIALIZATION_FAILURE,
            &SqlState::UNIQUE_VIOLATION,
            &SqlState::FOREIGN_KEY_VIOLATION,
            &SqlState::LOCK_NOT_AVAILABLE,
        ];
        // A race of the server's between a rollback and the next update of the row, with the SQLSTATE of any internal error
        let raced = db
            .message()
            .starts_with("new multixact has more than one updating member");
        if !raced && !conflicts.contains(&db.code()) {
            return Err(error).with_context(|| format!("the server refused the workload's SQL: {sql}"));
        }
        // After an error the transaction can only be rolled back, with or without this; that the connection
        // is gone shows with the next transaction.
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, self.client.batch_execute("ROLLBACK")).await;
        Ok(Outcome::Refused)
    }
}

async fn within<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(result) => result,
        Err(_) => bail!("no answer within {ANSWER_TIMEOUT:?}"),
    }
}

/// The first row of a query, in text form; NULL reads as empty.
async fn first_row(client: &Client, sql: &str) -> Result<Vec<String>> {
    for message in client.simple_query(sql).await? {
        if let SimpleQueryMessage::Row(row) = message {
            return Ok((0..row.len())
                .map(|i| row.get(i).unwrap_or_default().to_owned())
                .collect());
        }
    }
    bail!("no row from: {sql}")
}
