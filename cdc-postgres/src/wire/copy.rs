//! `COPY … FROM STDIN` (protocol manual, "COPY Operations").

use bytes::BufMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::connection::Connection;
use super::rows;
use crate::error::PgError;

/// Data is sent in messages of at most this size: an error that the server reports in between is seen after one.
const MESSAGE: usize = 256 * 1024;
/// Pieces smaller than this are gathered in the buffer; larger ones go to the socket without a copy.
const GATHER: usize = 16 * 1024;
/// The buffer is written out when it has grown to this.
const FLUSH_AT: usize = 64 * 1024;

/// A COPY that takes data.
///
/// If it is dropped before [`CopyIn::finish`], the connection's next call ends it with an error on the server.
#[derive(Debug)]
pub struct CopyIn<'c> {
    connection: &'c mut Connection,
    failure: Option<PgError>,
}

impl<'c> CopyIn<'c> {
    /// Waits for CopyInResponse.
    pub(super) async fn start(connection: &'c mut Connection) -> Result<CopyIn<'c>, PgError> {
        let mut failure = None;
        loop {
            match connection.receive().await? {
                Message::CopyInResponse(_) => {
                    connection.debts.copying = true;
                    return Ok(CopyIn {
                        connection,
                        failure: None,
                    });
                }
                Message::ErrorResponse(body) => failure = Some(PgError::from_fields(body.fields())),
                Message::ReadyForQuery(body) => {
                    connection.ready(body.status());
                    return Err(
                        failure.unwrap_or_else(|| PgError::usage("the statement is not COPY … FROM STDIN"))
                    );
                }
                Message::RowDescription(_)
                | Message::DataRow(_)
                | Message::CommandComplete(_)
                | Message::EmptyQueryResponse => {}
                _ => return Err(connection.out_of_step("the start of a COPY")),
            }
        }
    }

    /// Sends data; pieces need not end at row boundaries. An error of the server is returned as soon as it is there,
    /// and the connection is then ready for the next command.
    pub async fn send(&mut self, data: &[u8]) -> Result<(), PgError> {
        for piece in data.chunks(MESSAGE) {
            // 'd', length with itself, data
            let length = u32::try_from(piece.len() + 4).map_err(|_| PgError::usage("COPY data too long"))?;
            let buffer = &mut self.connection.channel.outgoing;
            buffer.put_u8(b'd');
            buffer.put_u32(length);
            if piece.len() < GATHER {
                buffer.put_slice(piece);
                if buffer.len() >= FLUSH_AT {
                    self.pump(&[]).await?;
                }
            } else {
                // A message of which only a part went out can be neither completed nor taken back.
                self.connection.debts.torn = true;
                let failure = &mut self.failure;
                let pumped = self
                    .connection
                    .pump(piece, |connection, m| note(connection, failure, m))
                    .await;
                if pumped.is_ok() {
                    self.connection.debts.torn = false;
                }
                pumped?;
                self.check().await?;
            }
        }
        Ok(())
    }

    /// Ends the data and waits for the server; returns the number of rows.
    pub async fn finish(mut self) -> Result<u64, PgError> {
        self.check().await?;
        frontend::copy_done(&mut self.connection.channel.outgoing);
        self.connection.debts.copying = false;
        let mut copied = 0;
        loop {
            match self.connection.receive().await? {
                Message::CommandComplete(body) => copied = rows::affected(rows::tag(&body)?),
                Message::ErrorResponse(body) => self.failure = Some(PgError::from_fields(body.fields())),
                Message::ReadyForQuery(body) => {
                    self.connection.ready(body.status());
                    return self.failure.map_or(Ok(copied), Err);
                }
                _ => return Err(self.connection.out_of_step("the end of a COPY")),
            }
        }
    }

    /// Ends the COPY without effect. `reason` shows in the server's log.
    pub async fn abort(self, reason: &str) -> Result<(), PgError> {
        if self.connection.debts.copying {
            self.connection.fail_copy(reason)?;
        }
        self.connection.settle().await
    }

    async fn pump(&mut self, more: &[u8]) -> Result<(), PgError> {
        let failure = &mut self.failure;
        self.connection
            .pump(more, |connection, message| note(connection, failure, message))
            .await?;
        self.check().await
    }

    /// Returns the server's error, if one has come, with the connection in step again: after an error the server
    /// ignores COPY data that still arrives, and says ReadyForQuery unasked.
    async fn check(&mut self) -> Result<(), PgError> {
        match self.failure.clone() {
            None => Ok(()),
            Some(error) => {
                self.connection.debts.copying = false;
                self.connection.settle().await?;
                Err(error)
            }
        }
    }
}

fn note(connection: &mut Connection, failure: &mut Option<PgError>, message: Message) -> Result<(), PgError> {
    match message {
        Message::ErrorResponse(body) => {
            failure.get_or_insert(PgError::from_fields(body.fields()));
            connection.debts.copying = false;
            Ok(())
        }
        Message::ReadyForQuery(body) => {
            connection.ready(body.status());
            Ok(())
        }
        _ => Err(connection.out_of_step("a COPY")),
    }
}
