//! The initial copy on the target's side: COPY in, one transaction a part, under the fence: an instance that was
//! taken over must not add its part to the table that its successor copies anew.
//!
//! A task owns the connection, so that an error of the server is seen at the next write and not after the last one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cdc_core::seed::{BulkFormat, BulkLoader, TablePart};
use cdc_core::{Action, BoxFuture, Error, Kind, Result, TableName, failpoint};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::catalog::{column_list, qualified};
use crate::copy_format::{self, COPY_TEXT};
use crate::error::{PgError, SqlState};
use crate::error_map::message_without_value;
use crate::session::Pool;
use crate::state::{FENCE_LOST, explained};
use crate::wire::{Connection, literal};

/// What a loading session is set to. Policies that would refuse or change rows make the COPY fail instead.
pub(crate) const LOAD_SETTINGS: &[(&str, &str)] = &[("row_security", "off")];

/// Chunks under way between reader and socket.
const QUEUED: usize = 2;

/// How long the outcome of a commit whose answer was lost is looked for.
const OUTCOME_TIMEOUT: Duration = Duration::from_secs(60);

/// The right under which a part is loaded.
#[derive(Debug)]
pub(crate) struct Held {
    /// whose fence
    pub(crate) stream: String,
    /// the instance's own epoch
    pub(crate) epoch: i64,
}

/// What the task is told.
#[derive(Debug)]
enum Input {
    Chunk(Bytes),
    Finish,
}

#[derive(Debug)]
struct CopyLoader {
    table: TableName,
    input: mpsc::Sender<Input>,
    task: JoinHandle<Result<Option<u64>>>,
}

/// The formats in which a part can be loaded, the best first.
pub(crate) async fn formats(pool: &Pool, part: &TablePart) -> Result<Vec<BulkFormat>> {
    let mut connection = pool.take().await?;
    let query = copy_format::types_query(&part.table, &part.columns);
    let answer = connection.simple_query(&query).await;
    let binary = answer.and_then(|answer| copy_format::binary(answer.first(), part.columns.len()));
    let binary = binary.map_err(|error| {
        pool.clear();
        Error::from(error).object(format!("table {}", part.table))
    })?;
    pool.put(connection);
    Ok(binary.into_iter().chain([COPY_TEXT]).collect())
}

/// Starts loading a part. Triggers do not fire and foreign keys are not checked where the role may say so.
pub(crate) async fn open(
    pool: Arc<Pool>,
    fence: Held,
    part: &TablePart,
    format: BulkFormat,
) -> Result<Box<dyn BulkLoader>> {
    if !copy_format::is_known(&format) {
        return Err(Error::new(
            Kind::Config,
            format!("PostgreSQL loads {}, the source gives {}", COPY_TEXT.0, format.0),
        ));
    }
    let connection = pool.take().await?;
    let (input, chunks) = mpsc::channel(QUEUED);
    let load = Load {
        pool,
        fence,
        table: part.table.clone(),
        columns: part.columns.clone(),
        format,
    };
    Ok(Box::new(CopyLoader {
        table: part.table.clone(),
        input,
        task: tokio::spawn(load.run(connection, chunks)),
    }))
}

impl BulkLoader for CopyLoader {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if self.input.send(Input::Chunk(bytes)).await.is_ok() {
                return Ok(());
            }
            // The task takes chunks until it has failed.
            match outcome(&mut self.task).await {
                Ok(_) => {
                    Err(Error::bug("a load that ended by itself").object(format!("table {}", self.table)))
                }
                Err(error) => Err(error),
            }
        })
    }

    fn finish(mut self: Box<Self>) -> BoxFuture<'static, u64> {
        Box::pin(async move {
            // When the task has ended already, its error says more than a closed channel.
            let _ = self.input.send(Input::Finish).await;
            outcome(&mut self.task)
                .await?
                .ok_or_else(|| Error::bug("a load that was given up while it was finished"))
        })
    }

    fn abort(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let CopyLoader { input, mut task, .. } = *self;
            drop(input);
            outcome(&mut task).await.map(|_| ())
        })
    }
}

async fn outcome(task: &mut JoinHandle<Result<Option<u64>>>) -> Result<Option<u64>> {
    match task.await {
        Ok(result) => result,
        Err(error) => Err(Error::bug("the loading task failed").caused_by(error)),
    }
}

/// What the task knows.
#[derive(Debug)]
struct Load {
    pool: Arc<Pool>,
    fence: Held,
    table: TableName,
    columns: Vec<String>,
    format: BulkFormat,
}

impl Load {
    /// Returns the rows loaded, or `None` when the part was given up.
    async fn run(self, mut connection: Connection, chunks: mpsc::Receiver<Input>) -> Result<Option<u64>> {
        let (transaction, rows) = match self.copy(&mut connection, chunks).await {
            Ok(Some(copied)) => copied,
            Ok(None) => {
                connection.simple_query("ROLLBACK").await?;
                self.pool.put(connection);
                return Ok(None);
            }
            Err(error) => {
                self.pool.clear();
                return Err(self.refused(error));
            }
        };
        failpoint!("seed.part-before-commit", error);
        match connection.simple_query("COMMIT").await {
            Ok(_) => {
                failpoint!("seed.part-committed");
                self.pool.put(connection);
                Ok(Some(rows))
            }
            Err(error) if error.action == crate::error::Action::Reconnect => {
                drop(connection);
                self.resolve(transaction, error).await.map(|()| Some(rows))
            }
            Err(error) => Err(self.refused(error)),
        }
    }

    /// Copies all chunks in a transaction that is left open; returns its number and the rows.
    async fn copy(
        &self,
        connection: &mut Connection,
        mut chunks: mpsc::Receiver<Input>,
    ) -> Result<Option<(String, u64)>, PgError> {
        let Held { stream, epoch } = &self.fence;
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT cdc_sync.hold_fence({}, {epoch}); SELECT txid_current()::text",
            literal(stream)
        );
        let results = connection.simple_query(&begin).await?;
        self.check_types(connection).await?;
        let number = results.last().and_then(|result| result.rows.first());
        let transaction = number.map(|row| row.text(0)).transpose()?.flatten();
        let transaction = transaction
            .ok_or_else(|| PgError::protocol("the server gave no transaction number"))?
            .to_owned();
        let mut copy = connection.copy_in(&self.statement()).await?;
        failpoint!("seed.part-opened");
        loop {
            match chunks.recv().await {
                Some(Input::Chunk(bytes)) => {
                    copy.send(&bytes).await?;
                    failpoint!("seed.mid-copy");
                }
                Some(Input::Finish) => return Ok(Some((transaction, copy.finish().await?))),
                None => {
                    copy.abort("the part was given up").await?;
                    return Ok(None);
                }
            }
        }
    }

    /// Binary bytes mean something else, or nothing, to a column whose type has been changed since it was asked for.
    async fn check_types(&self, connection: &mut Connection) -> Result<(), PgError> {
        if !copy_format::is_binary(&self.format) {
            return Ok(());
        }
        let query = format!(
            "LOCK TABLE ONLY {} IN ROW EXCLUSIVE MODE; {}",
            qualified(&self.table),
            copy_format::types_query(&self.table, &self.columns)
        );
        let results = connection.simple_query(&query).await?;
        if copy_format::binary(results.last(), self.columns.len())?.as_ref() == Some(&self.format) {
            return Ok(());
        }
        Err(
            PgError::usage("the type of a column was changed on the target during the copy")
                .with_hint("run again: the table is emptied and copied anew"),
        )
    }

    fn statement(&self) -> String {
        let (table, columns) = (qualified(&self.table), column_list(&self.columns));
        if self.columns.is_empty() {
            format!("COPY {table} FROM STDIN")
        } else {
            format!(
                "COPY {table} ({columns}) FROM STDIN{}",
                copy_format::clause(&self.format)
            )
        }
    }

    /// The answer to COMMIT was lost: the server knows whether it took place. Without its word the part must not be
    /// copied again, or its rows could be there twice.
    async fn resolve(&self, transaction: String, lost: PgError) -> Result<()> {
        self.pool.clear();
        let deadline = tokio::time::Instant::now() + OUTCOME_TIMEOUT;
        while tokio::time::Instant::now() < deadline {
            match self.status(&transaction).await {
                Ok(Some(status)) if status == "committed" => return Ok(()),
                Ok(Some(status)) if status == "aborted" => return Err(self.refused(lost)),
                // Still running, or the server is not back yet.
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(250)).await,
            }
        }
        Err(self
            .refused(lost)
            .action(Action::Stop)
            .context("the connection was lost at the end of the load, and it cannot be told whether it took effect")
            .remedy("run again when the target is back: the table is emptied and copied anew"))
    }

    async fn status(&self, transaction: &str) -> Result<Option<String>> {
        let mut connection = self.pool.take().await?;
        let results = connection
            .simple_query(&format!("SELECT txid_status({transaction})"))
            .await?;
        let row = results.first().and_then(|result| result.rows.first());
        let status = row
            .map(|row| row.text(0))
            .transpose()?
            .flatten()
            .map(str::to_owned);
        self.pool.put(connection);
        Ok(status)
    }

    /// The server's error with the place it names, but without the values it quotes.
    fn refused(&self, error: PgError) -> Error {
        if error.sqlstate.is_some_and(|code| code.as_str() == FENCE_LOST) {
            return explained(error, &self.fence.stream);
        }
        let place = error
            .server_context
            .as_deref()
            .and_then(|context| copy_place(context, &self.table, &self.columns));
        let error = without_values(error);
        match place {
            Some(place) => error.object(format!("table {}, {place} of its copy", self.table)),
            None => error.object(format!("table {}", self.table)),
        }
    }
}

/// The server quotes what it refuses: in the message of a data exception, in detail and context of any error about a
/// row.
fn without_values(error: PgError) -> Error {
    let about_rows = |code: SqlState| code.starts_with("22") || code.starts_with("23");
    let Some(code) = error.sqlstate.filter(|code| about_rows(*code)) else {
        return Error::from(error);
    };
    // What a type does not take in binary is told without its value.
    let message = match code.as_str() {
        "22P03" | "22P04" => error.message.clone(),
        _ => message_without_value(&error),
    };
    let mapped = Error::from(error);
    Error::new(mapped.kind(), message)
        .action(mapped.what_to_do())
        .code(code.as_str())
}

/// Line and column from the server's context of a COPY error: `COPY t, line 3, column b: "value"`.
fn copy_place(context: &str, table: &TableName, columns: &[String]) -> Option<String> {
    let start = format!("COPY {}, line ", table.name);
    let rest = context.lines().find_map(|line| line.strip_prefix(&start))?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (line, rest) = rest.split_at_checked(digits)?;
    let column = rest.strip_prefix(", column ").and_then(|rest| {
        // In binary there is no value behind it.
        let ends = |end: &str| end.is_empty() || end.starts_with(": \"") || end.starts_with(": null input");
        columns
            .iter()
            .find(|column| rest.strip_prefix(column.as_str()).is_some_and(ends))
    });
    Some(match column {
        Some(column) => format!("column {column}, line {line}"),
        None => format!("line {line}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_an_error_is_told_without_the_value() {
        let table = TableName::new("public", "my, line 5");
        let columns = ["a".to_owned(), "a: b".to_owned()];
        let place = |context: &str| copy_place(context, &table, &columns);
        assert_eq!(
            place("COPY my, line 5, line 3, column a: b: \"secret\"").as_deref(),
            Some("column a: b, line 3")
        );
        assert_eq!(
            place("COPY my, line 5, line 7: \"1\tsecret\"").as_deref(),
            Some("line 7")
        );
        assert_eq!(
            place("SQL statement …\nCOPY my, line 5, line 12").as_deref(),
            Some("line 12")
        );
        assert_eq!(
            place("COPY my, line 5, line 4, column a").as_deref(),
            Some("column a, line 4")
        );
        assert_eq!(place("COPY other, line 7"), None);
        assert_eq!(place(""), None);
    }
}
