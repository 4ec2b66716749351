//! `COPY … TO STDOUT` (protocol manual, "COPY Operations") as a stream of bytes.
//!
//! The server sends one CopyData message a row. Only their content is kept, appended to one buffer, so that a row
//! costs neither an allocation nor a wakeup.

use std::task::Context;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::Message;

use super::connection::Connection;
use crate::error::PgError;

/// The bytes before the content of a CopyData message: tag and length.
const HEADER: usize = 5;

/// A COPY that gives data. Owns its connection until the end.
#[derive(Debug)]
pub struct CopyOut {
    connection: Connection,
    done: bool,
}

impl CopyOut {
    /// Runs `sql`, a `COPY … TO STDOUT`.
    pub async fn start(mut connection: Connection, sql: &str) -> Result<CopyOut, PgError> {
        connection.settle().await?;
        connection.send_query(sql)?;
        let mut failure = None;
        loop {
            match connection.receive().await? {
                Message::CopyOutResponse(_) => {
                    return Ok(CopyOut {
                        connection,
                        done: false,
                    });
                }
                Message::ErrorResponse(body) => failure = Some(PgError::from_fields(body.fields())),
                Message::ReadyForQuery(body) => {
                    connection.ready(body.status());
                    return Err(
                        failure.unwrap_or_else(|| PgError::usage("the statement is not COPY … TO STDOUT"))
                    );
                }
                _ => return Err(connection.out_of_step("the start of a COPY")),
            }
        }
    }

    /// Appends rows to `out` until it holds at least `at_least` bytes; `false` once all rows have been given.
    pub async fn read(&mut self, out: &mut BytesMut, at_least: usize) -> Result<bool, PgError> {
        while !self.done {
            self.take_rows(out, at_least)?;
            if out.len() >= at_least {
                return Ok(true);
            }
            match self.connection.channel().header()? {
                // A row of which a part is still to come, or nothing at all.
                Some((b'd', _)) | None => self.fill().await?,
                Some(_) => self.control().await?,
            }
        }
        Ok(!out.is_empty())
    }

    /// Moves the content of all whole rows that have arrived.
    fn take_rows(&mut self, out: &mut BytesMut, at_least: usize) -> Result<(), PgError> {
        let channel = self.connection.channel();
        while out.len() < at_least {
            let Some((b'd', total)) = channel.header()? else {
                break;
            };
            let Some(content) = channel.incoming.get(HEADER..total) else {
                break;
            };
            out.extend_from_slice(content);
            channel.incoming.advance(total);
        }
        Ok(())
    }

    async fn fill(&mut self) -> Result<(), PgError> {
        let filling = |connection: &mut Connection, cx: &mut Context<'_>| {
            let channel = connection.channel();
            // Nothing waits to be written, but an answer to the server's TLS may.
            let _ = channel.poll_drain(cx);
            channel.poll_fill(cx)
        };
        self.connection.attended(filling).await
    }

    /// A message that is not a row.
    async fn control(&mut self) -> Result<(), PgError> {
        match self.connection.receive().await? {
            Message::CopyDone | Message::CommandComplete(_) => Ok(()),
            Message::ErrorResponse(body) => {
                let error = PgError::from_fields(body.fields());
                self.connection.settle().await?;
                Err(error)
            }
            Message::ReadyForQuery(body) => {
                self.connection.ready(body.status());
                self.done = true;
                Ok(())
            }
            _ => Err(self.connection.out_of_step("a COPY")),
        }
    }

    /// The connection, once all rows have been given.
    pub fn into_connection(self) -> Option<Connection> {
        self.done.then_some(self.connection)
    }
}
