//! The copy-both stream of a logical slot.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::WalSender;
use super::bursts::Bursts;
use super::frame::{self, Frame, parse_frame};
use super::options::{PgoutputOptions, Streaming};
use super::slot::slot_name;
use crate::error::{PgError, SqlState};
use crate::lsn::Lsn;
use crate::wire::channel::Incoming;

/// Status updates that may wait to be written. A server that takes none for so long is stuck, and more would not help.
const MAX_UNSENT: usize = 4096;

/// Bytes of a too large frame that are looked at to say what it is: its own header, the message's type, the relation.
const PREFIX: usize = 25 + 5;
/// In a block the transaction's id comes before the relation.
const XID: usize = 4;

impl WalSender {
    /// Starts the stream of a slot at `from`, or at the slot's confirmed position if that is later: the server moves
    /// forward without a word. To notice, compare with `confirmed_flush_lsn` before.
    ///
    /// Give the position that was stored with the data: a server before 17 can come back from a restart with an older
    /// confirmed position than it was last told, and then sends again what lies between.
    pub async fn start_logical_replication(
        &mut self,
        slot: &str,
        from: Lsn,
        options: &PgoutputOptions,
    ) -> Result<(), PgError> {
        if self.streaming {
            return Err(PgError::usage("the connection is streaming already"));
        }
        let in_blocks = options.streaming == Streaming::On;
        let options = options.to_sql(self.server_version())?;
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} {options}",
            slot_name(slot)?
        );
        let context = format!("start slot {slot} at {from} on {}", self.connection.endpoint());
        self.connection.settle().await?;
        self.connection.send_query(&command)?;
        let mut failure = None;
        loop {
            match self
                .connection
                .receive_any()
                .await
                .map_err(|e| e.during(context.clone()))?
            {
                Incoming::CopyBoth => {
                    self.streaming = true;
                    self.bursts = Bursts::begin(&mut self.connection);
                    self.in_blocks = in_blocks;
                    return Ok(());
                }
                Incoming::Known(Message::ErrorResponse(body)) => {
                    failure = Some(PgError::from_fields(body.fields()))
                }
                Incoming::Known(Message::ReadyForQuery(body)) => {
                    self.connection.ready(body.status());
                    let error =
                        failure.unwrap_or_else(|| PgError::protocol("the server did not start the stream"));
                    return Err(error.during(context));
                }
                _ => return Err(self.connection.out_of_step("START_REPLICATION").during(context)),
            }
        }
    }

    /// Waits for at least one frame, then takes all that have arrived, up to about `max_bytes`; returns how many.
    ///
    /// Each frame is appended to `into` as its length (`u32`, little-endian) and its payload, keepalives included;
    /// see [`split_frames`](super::split_frames) and [`parse_frame`]. A frame larger than `max_bytes` comes alone.
    /// Pending status updates are written meanwhile.
    ///
    /// Cancel-safe: a call that is dropped has taken nothing. When the stream ends (the server shuts down, the
    /// connection breaks), the frames before the end are handed out first.
    pub async fn read_frames(&mut self, into: &mut Vec<u8>, max_bytes: usize) -> Result<usize, PgError> {
        if !self.streaming {
            return Err(PgError::usage("no stream has been started"));
        }
        let before = into.len();
        let frames = poll_fn(|cx| self.poll_frames(cx, into, max_bytes)).await?;
        if let Some(bursts) = &mut self.bursts {
            bursts.note(into.get(before..).unwrap_or_default());
        }
        Ok(frames)
    }

    /// How long to leave the server alone before the next read, where that costs it less.
    pub fn pause(&mut self) -> Option<Duration> {
        self.bursts.as_mut().and_then(Bursts::pause)
    }

    fn poll_frames(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut Vec<u8>,
        max_bytes: usize,
    ) -> Poll<Result<usize, PgError>> {
        let begin = into.len();
        let mut frames = 0;
        loop {
            if let Some(error) = &self.ended {
                return Poll::Ready(if frames > 0 {
                    Ok(frames)
                } else {
                    Err(error.clone())
                });
            }
            let full = match self.take_frames(into, begin, max_bytes, &mut frames) {
                Ok(full) => full,
                Err(error) => {
                    self.ended = Some(error);
                    continue;
                }
            };
            if full {
                return Poll::Ready(Ok(frames));
            }
            let channel = self.connection.channel();
            let _ = channel.poll_drain(cx);
            match channel.poll_fill(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.ended = Some(error.during(format!("stream from {}", self.connection.endpoint())));
                }
                Poll::Pending if frames > 0 => return Poll::Ready(Ok(frames)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Moves the frames that are complete; true if the chunk takes no more.
    fn take_frames(
        &mut self,
        into: &mut Vec<u8>,
        begin: usize,
        max_bytes: usize,
        frames: &mut usize,
    ) -> Result<bool, PgError> {
        loop {
            let channel = self.connection.channel();
            let Some((tag, total)) = channel.header()? else {
                return Ok(false);
            };
            let buffered = channel.incoming.len();
            if tag != b'd' {
                if buffered < total {
                    return Ok(false);
                }
                if let Some(message) = channel.buffered()? {
                    self.out_of_band(message)?;
                }
                continue;
            }
            let length = total.saturating_sub(5);
            if length > self.max_frame_bytes {
                if buffered < 5 + PREFIX + if self.in_blocks { XID } else { 0 } {
                    return Ok(false);
                }
                return Err(too_large(
                    length,
                    self.max_frame_bytes,
                    channel.incoming.get(5..).unwrap_or_default(),
                    self.in_blocks,
                ));
            }
            if *frames > 0 && into.len() - begin + 4 + length > max_bytes {
                return Ok(true);
            }
            let Some(payload) = channel.incoming.get(5..total) else {
                return Ok(false);
            };
            let prefix = u32::try_from(length).map_err(|_| PgError::limit("a frame of more than 4 GiB"))?;
            into.extend_from_slice(&prefix.to_le_bytes());
            into.extend_from_slice(payload);
            channel.incoming.advance(total);
            *frames += 1;
            if into.len() - begin >= max_bytes {
                return Ok(true);
            }
        }
    }

    /// A message between the frames. All but notices end the stream.
    fn out_of_band(&mut self, message: Incoming) -> Result<(), PgError> {
        let endpoint = self.connection.endpoint().to_string();
        if let Incoming::Known(Message::NoticeResponse(body)) = &message {
            let notice = PgError::from_fields(body.fields());
            if changes_are_left_out(&notice) {
                return Err(notice.during(format!("stream from {endpoint}")));
            }
        }
        match self
            .connection
            .sift(message)
            .map_err(|e| e.during(format!("stream from {endpoint}")))?
        {
            None => Ok(()),
            Some(Incoming::Known(Message::ErrorResponse(body))) => {
                Err(PgError::from_fields(body.fields()).during(format!("stream from {endpoint}")))
            }
            // A server that shuts down sends CommandComplete alone once everything has been confirmed.
            Some(Incoming::Known(Message::CopyDone | Message::CommandComplete(_))) => Err(
                PgError::connection("the server ended the stream, as it does when it shuts down")
                    .during(format!("stream from {endpoint}")),
            ),
            Some(_) => Err(self.connection.out_of_step("a replication stream")),
        }
    }

    /// Sends a standby status update, or queues it if the socket takes nothing now: never waits. A queued one leaves
    /// with the next call of this or of [`WalSender::read_frames`]; `Ok(false)` says that something is still queued.
    ///
    /// Any update resets the server's `wal_sender_timeout`, also while frames are not read. `flushed` must be durable:
    /// the server discards the WAL below it.
    pub async fn try_send_status(
        &mut self,
        written: Lsn,
        flushed: Lsn,
        applied: Lsn,
        reply_requested: bool,
    ) -> Result<bool, PgError> {
        if !self.streaming {
            return Err(PgError::usage("no stream has been started"));
        }
        let channel = self.connection.channel();
        if channel.outgoing.len() < MAX_UNSENT {
            frame::write_status(&mut channel.outgoing, written, flushed, applied, reply_requested);
        }
        // One look at the socket. It must not count against the task's budget: once that is used up, the runtime
        // claims that no socket takes anything until the task has waited, which this call never does.
        tokio::task::unconstrained(poll_fn(|cx| {
            let _ = channel.poll_drain(cx);
            Poll::Ready(())
        }))
        .await;
        channel.check_write()?;
        Ok(!channel.has_output())
    }

    /// Ends the stream and the session. When this returns without an error, the slot is free; otherwise the server
    /// frees it when it notices that the connection is gone.
    ///
    /// Frames that arrive until the server has stopped are thrown away: nothing of them is confirmed, so they come
    /// again.
    pub async fn stop(mut self, within: Duration) -> Result<(), PgError> {
        if !self.streaming || self.ended.is_some() {
            self.close().await;
            return Ok(());
        }
        let endpoint = self.connection.endpoint().to_string();
        frontend::copy_done(&mut self.connection.channel().outgoing);
        let drained = tokio::time::timeout(within, self.drain())
            .await
            .unwrap_or_else(|_| {
                Err(PgError::timeout(format!(
                    "the stream did not end within {} s",
                    within.as_secs_f32()
                )))
            });
        if drained.is_ok() {
            self.close().await;
        }
        drained.map_err(|e| e.during(format!("stop the stream from {endpoint}")))
    }

    /// Reads up to ReadyForQuery.
    async fn drain(&mut self) -> Result<(), PgError> {
        let mut failure = None;
        loop {
            match self.connection.receive_any().await? {
                Incoming::Known(Message::CopyData(_) | Message::CopyDone | Message::CommandComplete(_)) => {}
                Incoming::Known(Message::ErrorResponse(body)) => {
                    failure = Some(PgError::from_fields(body.fields()))
                }
                Incoming::Known(Message::ReadyForQuery(body)) => {
                    self.connection.ready(body.status());
                    return failure.map_or(Ok(()), Err);
                }
                _ => return Err(self.connection.out_of_step("the end of a stream")),
            }
        }
    }
}

/// Whether a notice says that the stream is not complete: from PostgreSQL 18 on, a publication that does not exist at a
/// point of the WAL is skipped with a warning (`object_not_in_prerequisite_state`), where older servers raise an error.
fn changes_are_left_out(notice: &PgError) -> bool {
    notice.severity.as_deref() == Some("WARNING") && notice.is(SqlState::WRONG_STATE)
}

/// The error for a frame above the limit, with what its first bytes tell.
fn too_large(length: usize, limit: usize, prefix: &[u8], in_block: bool) -> PgError {
    let error = PgError::limit(format!(
        "the server sent a replication frame of {length} bytes; the limit is {limit} bytes"
    ))
    .with_hint("raise the limit for the size of a row");
    match parse_frame(prefix) {
        Ok(Frame::XLogData {
            start,
            data: [kind @ (b'I' | b'U' | b'D'), ids @ ..],
            ..
        }) => {
            // A row of that size comes in a block where there are blocks: behind its transaction's id.
            let (ids, _) = ids.as_chunks();
            let relation = ids
                .get(usize::from(in_block))
                .map_or(0, |id| u32::from_be_bytes(*id));
            let kind = char::from(*kind);
            error.with_detail(format!(
                "at LSN {start}, message type {kind:?}, relation with OID {relation}"
            ))
        }
        Ok(Frame::XLogData { start, .. }) => error.with_detail(format!("at LSN {start}")),
        _ => error,
    }
}
