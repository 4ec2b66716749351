//! A pipeline of the extended protocol: many statements, one Sync, no waiting in between (protocol manual,
//! "Pipelining").

use std::collections::VecDeque;
use std::fmt;

use bytes::BufMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend::{self, BindError};

use super::connection::Connection;
use super::rows::{self, Row};
use crate::error::PgError;

/// The buffer is written out when it has grown to this.
const FLUSH_AT: usize = 64 * 1024;
/// COPY data are sent in messages of at most this size: an error that the server reports in between is seen after one.
const COPY_MESSAGE: usize = 256 * 1024;

/// The form of a parameter's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The type's text form.
    Text,
    /// The type's binary form (its `send` function's).
    Binary,
}

impl Format {
    fn code(self) -> i16 {
        match self {
            Format::Text => 0,
            Format::Binary => 1,
        }
    }
}

/// The outcome of one executed statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// Rows inserted, updated, deleted or returned, as the command tag says.
    pub affected: u64,
    /// Rows that the statement returned.
    pub rows: Vec<Row>,
}

/// At which step a statement failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A Parse that stands before the statement, the n-th Parse of the pipeline (from 0).
    Parse(u64),
    /// The statement's Bind, for example because a value does not fit its type.
    Bind,
    /// The statement's Execute.
    Execute,
    /// After the last statement: the implicit COMMIT of a pipeline outside a transaction, or a Close.
    Sync,
    /// The connection broke. The index tells how far the server is known to have come.
    Connection,
}

/// Why a pipeline stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineError {
    /// The failed statement: its number among the executed ones, from 0.
    pub index: u64,
    /// The step that failed.
    pub stage: Stage,
    /// How many Parse messages of the pipeline succeeded. Prepared statements outlive a ROLLBACK.
    pub parsed: u64,
    /// What the server said.
    pub error: PgError,
}

impl fmt::Display for PipelineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "statement {} of the pipeline ({:?}): {}",
            self.index, self.stage, self.error
        )
    }
}

impl std::error::Error for PipelineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl From<PipelineError> for PgError {
    fn from(error: PipelineError) -> PgError {
        error.error
    }
}

/// A pipeline under construction; it is already being sent while it is built.
///
/// Memory stays bounded whatever its length: the messages leave in pieces of 64 KiB, the answers are read at the same
/// time, and [`Pipeline::take_completions`] hands them out on the way. A server error ends it early: the calls that
/// add to it return that error, and [`Pipeline::finish`] says which statement it was. A pipeline that is dropped
/// before `finish` is brought to its end by the connection's next call; outside a transaction block the server then
/// commits what succeeded, as it does at every Sync.
#[derive(Debug)]
pub struct Pipeline<'c> {
    connection: &'c mut Connection,
    progress: Progress,
}

#[derive(Debug, Default)]
struct Progress {
    /// Execute messages sent.
    executed: u64,
    /// Statements whose answer is complete.
    completed: u64,
    /// Bind messages answered.
    bound: u64,
    /// Parse messages answered.
    parsed: u64,
    /// For each Parse not yet answered, the number of the Execute that follows it.
    parses: VecDeque<u64>,
    /// Rows of the statement that is being answered.
    rows: Vec<Row>,
    done: Vec<Completion>,
    failure: Option<PipelineError>,
}

impl<'c> Pipeline<'c> {
    pub(super) fn new(connection: &'c mut Connection) -> Pipeline<'c> {
        Pipeline {
            connection,
            progress: Progress::default(),
        }
    }

    /// Adds Parse: prepares `sql` as `name` (empty: the unnamed statement). An OID of 0, or a missing one, leaves the
    /// parameter's type to the server.
    pub async fn parse(&mut self, name: &str, sql: &str, parameter_types: &[u32]) -> Result<(), PgError> {
        let executed = self.progress.executed;
        self.add(|buf| frontend::parse(name, sql, parameter_types.iter().copied(), buf))?;
        self.progress.parses.push_back(executed);
        self.flow().await
    }

    /// Adds Bind and Execute of a prepared statement; all values are in text form.
    pub async fn bind_execute<'v>(
        &mut self,
        statement: &str,
        values: impl IntoIterator<Item = Option<&'v [u8]>>,
    ) -> Result<(), PgError> {
        self.bind_execute_as(statement, &[], values).await
    }

    /// The same with a format for each value; one format stands for all, none means text.
    pub async fn bind_execute_as<'v>(
        &mut self,
        statement: &str,
        formats: &[Format],
        values: impl IntoIterator<Item = Option<&'v [u8]>>,
    ) -> Result<(), PgError> {
        self.push_execute(statement, formats, values)?;
        self.flow().await
    }

    /// The same without sending anything: [`Pipeline::flow`] must be called before long.
    pub fn push_execute<'v>(
        &mut self,
        statement: &str,
        formats: &[Format],
        values: impl IntoIterator<Item = Option<&'v [u8]>>,
    ) -> Result<(), PgError> {
        self.add(|buf| {
            frontend::bind(
                "",
                statement,
                formats.iter().map(|format| format.code()),
                values,
                |value, buf| {
                    Ok(match value {
                        Some(value) => {
                            buf.put_slice(value);
                            IsNull::No
                        }
                        None => IsNull::Yes,
                    })
                },
                [Format::Text.code()],
                buf,
            )
            .map_err(|error| match error {
                BindError::Serialization(error) => error,
                BindError::Conversion(error) => std::io::Error::other(error),
            })?;
            frontend::execute("", 0, buf)
        })?;
        self.progress.executed += 1;
        Ok(())
    }

    /// Adds a statement without parameters, for example `BEGIN`.
    pub async fn execute(&mut self, sql: &str) -> Result<(), PgError> {
        self.parse("", sql, &[]).await?;
        self.bind_execute("", []).await
    }

    /// Adds `COPY … FROM STDIN`, whose data follow at once by [`Pipeline::copy_data`], without waiting for the server to
    /// ask for them: once it executes the COPY it takes them from its input, and if it refuses, it skips them like
    /// everything else up to the Sync. Nothing but data may be added before [`Pipeline::copy_done`].
    pub async fn copy_in(&mut self, sql: &str) -> Result<(), PgError> {
        // Noted first: if this call is dropped, the Sync alone would be taken for data.
        self.connection.debts.copying = true;
        self.execute(sql).await
    }

    /// Adds COPY data; pieces need not end at row boundaries.
    pub async fn copy_data(&mut self, data: &[u8]) -> Result<(), PgError> {
        for piece in data.chunks(COPY_MESSAGE) {
            self.add(|buf| {
                // 'd', length with itself, data
                buf.put_u8(b'd');
                buf.put_u32(piece.len() as u32 + 4);
                buf.put_slice(piece);
                Ok(())
            })?;
            self.flow().await?;
        }
        Ok(())
    }

    /// Ends the COPY; its completion gives the number of rows.
    pub async fn copy_done(&mut self) -> Result<(), PgError> {
        self.add(|buf| {
            frontend::copy_done(buf);
            Ok(())
        })?;
        self.connection.debts.copying = false;
        self.flow().await
    }

    /// Adds Close of a prepared statement.
    pub async fn close_statement(&mut self, name: &str) -> Result<(), PgError> {
        self.add(|buf| frontend::close(b'S', name, buf))?;
        self.flow().await
    }

    /// Adds a Sync: outside a transaction block it commits what came before. Does not wait for its answer.
    pub async fn sync(&mut self) -> Result<(), PgError> {
        self.add(|buf| {
            frontend::sync(buf);
            Ok(())
        })?;
        self.connection.debts.unsynced = false;
        self.connection.debts.ready += 1;
        self.flow().await
    }

    /// Statements added so far; the next one has this number.
    pub fn len(&self) -> u64 {
        self.progress.executed
    }

    /// Whether no statement has been added.
    pub fn is_empty(&self) -> bool {
        self.progress.executed == 0
    }

    /// The outcomes that have arrived since the last call, in order.
    pub fn take_completions(&mut self) -> Vec<Completion> {
        std::mem::take(&mut self.progress.done)
    }

    /// Sends the final Sync and waits for all answers. Returns those that [`Pipeline::take_completions`] has not
    /// handed out.
    ///
    /// On an error the connection is ready for the next command all the same, unless the error is fatal.
    pub async fn finish(mut self) -> Result<Vec<Completion>, PipelineError> {
        if let Err(error) = self.drain().await {
            self.progress.fail_connection(error);
        }
        match self.progress.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(self.progress.done),
        }
    }

    async fn drain(&mut self) -> Result<(), PgError> {
        let connection = &mut *self.connection;
        if connection.debts.copying {
            connection.fail_copy("the copy was given up")?;
        }
        if connection.debts.unsynced {
            frontend::sync(&mut connection.channel.outgoing);
            connection.debts.unsynced = false;
            connection.debts.ready += 1;
        }
        while connection.debts.ready > 0 {
            let message = connection.receive().await?;
            self.progress.note(connection, message)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        write: impl FnOnce(&mut bytes::BytesMut) -> std::io::Result<()>,
    ) -> Result<(), PgError> {
        if let Some(failure) = &self.progress.failure {
            return Err(failure.error.clone());
        }
        self.connection
            .channel
            .push(write)
            .map_err(|e| PgError::encode(&e))?;
        self.connection.debts.unsynced = true;
        Ok(())
    }

    /// Sends what has been added once it is worth a write.
    pub async fn flow(&mut self) -> Result<(), PgError> {
        if self.connection.channel.outgoing.len() < FLUSH_AT {
            return Ok(());
        }
        self.flush().await
    }

    /// Writes out what has been added, and takes in the answers that have arrived. Does not wait for answers.
    pub async fn flush(&mut self) -> Result<(), PgError> {
        let progress = &mut self.progress;
        let pumped = self
            .connection
            .pump(&[], |connection, message| progress.note(connection, message))
            .await;
        if let Err(error) = pumped {
            self.progress.fail_connection(error);
        }
        match &self.progress.failure {
            Some(failure) => Err(failure.error.clone()),
            None => Ok(()),
        }
    }
}

impl Progress {
    fn note(&mut self, connection: &mut Connection, message: Message) -> Result<(), PgError> {
        match message {
            Message::ReadyForQuery(body) => connection.ready(body.status()),
            // After an error the server skips to the next Sync; what a later part of the pipeline does is of no more
            // interest.
            _ if self.failure.is_some() => {}
            Message::ParseComplete => {
                self.parsed += 1;
                self.parses.pop_front();
            }
            Message::BindComplete => self.bound += 1,
            Message::CloseComplete | Message::CopyInResponse(_) => {}
            Message::DataRow(body) => self.rows.push(Row::new(&body)?),
            Message::CommandComplete(body) => self.complete(rows::affected(rows::tag(&body)?)),
            Message::EmptyQueryResponse => self.complete(0),
            Message::ErrorResponse(body) => {
                let error = PgError::from_fields(body.fields());
                self.failure = Some(self.failed(self.stage(), error));
            }
            _ => return Err(connection.out_of_step("a pipeline")),
        }
        Ok(())
    }

    fn complete(&mut self, affected: u64) {
        self.completed += 1;
        self.done.push(Completion {
            affected,
            rows: std::mem::take(&mut self.rows),
        });
    }

    /// The server answers strictly in order, so the failed message is the first without an answer.
    fn stage(&self) -> Stage {
        if self.bound > self.completed {
            Stage::Execute
        } else if self.parses.front() == Some(&self.completed) {
            Stage::Parse(self.parsed)
        } else if self.completed < self.executed {
            Stage::Bind
        } else {
            Stage::Sync
        }
    }

    fn failed(&self, stage: Stage, error: PgError) -> PipelineError {
        PipelineError {
            index: self.completed,
            stage,
            parsed: self.parsed,
            error,
        }
    }

    fn fail_connection(&mut self, error: PgError) {
        // A server error that came before says more.
        if self.failure.is_none() {
            self.failure = Some(self.failed(Stage::Connection, error));
        }
    }
}
