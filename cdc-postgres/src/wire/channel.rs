//! Messages over a byte stream: two buffers, and one loop that writes and reads at the same time.
//!
//! Nothing here ever waits for a write alone. A server that is itself waiting to send (results, notices, WAL) reads
//! nothing, so a client that only writes would wait for ever once both sockets' buffers are full.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::{Header, Message};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::time::Instant;

use super::stream::Stream;
use crate::error::PgError;

/// Read buffer: what one read can bring.
const READ_STEP: usize = 64 * 1024;
/// A buffer that one large message made larger than this is given back once it is empty.
const KEEP_CAPACITY: usize = 4 * 1024 * 1024;
/// The largest message a server can send: its own allocation limit (`MaxAllocSize`, 1 GB).
pub(crate) const MAX_MESSAGE: usize = 1 << 30;

/// A message from the server.
pub(crate) enum Incoming {
    /// One that the codec knows.
    Known(Message),
    /// CopyBothResponse, which the codec does not know.
    CopyBoth,
    /// NegotiateProtocolVersion, which the codec does not know: the newest minor version the server speaks.
    NegotiateVersion(i32),
}

/// A stream and its buffers.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: Stream,
    pub(crate) incoming: BytesMut,
    pub(crate) outgoing: BytesMut,
    /// Bytes were handed to the stream that it may hold back (TLS).
    unflushed: bool,
    /// Writing failed. Kept until reading fails too: the server's last words say more than "broken pipe".
    write_error: Option<PgError>,
    /// Largest message accepted.
    max_message: usize,
    /// When a byte last came.
    heard: Instant,
    /// When a byte last went.
    told: Instant,
}

impl Channel {
    pub(crate) fn new(stream: Stream, max_message: usize) -> Channel {
        Channel {
            stream,
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
            unflushed: false,
            write_error: None,
            max_message,
            heard: Instant::now(),
            told: Instant::now(),
        }
    }

    /// When a byte last came.
    pub(crate) fn heard(&self) -> Instant {
        self.heard
    }

    /// When a byte last came or went.
    pub(crate) fn moved(&self) -> Instant {
        self.heard.max(self.told)
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    pub(crate) fn set_max_message(&mut self, bytes: usize) {
        self.max_message = bytes;
    }

    /// Writes one message; on failure nothing of it stays in the buffer.
    pub(crate) fn push<E>(&mut self, write: impl FnOnce(&mut BytesMut) -> Result<(), E>) -> Result<(), E> {
        let before = self.outgoing.len();
        write(&mut self.outgoing).inspect_err(|_| self.outgoing.truncate(before))
    }

    /// Tag and total length of the message at the front of the buffer, once its header is there.
    pub(crate) fn header(&self) -> Result<Option<(u8, usize)>, PgError> {
        let Some(header) = Header::parse(&self.incoming).map_err(|e| PgError::malformed(&e))? else {
            return Ok(None);
        };
        let total = usize::try_from(header.len()).map_or(usize::MAX, |length| length.saturating_add(1));
        if total > self.max_message {
            return Err(PgError::limit(format!(
                "the server sent a message of {total} bytes (type {:?}); the limit is {} bytes",
                char::from(header.tag()),
                self.max_message
            )));
        }
        Ok(Some((header.tag(), total)))
    }

    /// Takes the next message out of the buffer if it is there in full.
    pub(crate) fn buffered(&mut self) -> Result<Option<Incoming>, PgError> {
        let Some((tag, total)) = self.header()? else {
            return Ok(None);
        };
        if self.incoming.len() < total {
            return Ok(None);
        }
        match tag {
            b'W' => {
                self.incoming.advance(total);
                Ok(Some(Incoming::CopyBoth))
            }
            b'v' => {
                let mut body = self.take(total);
                let version = body.try_get_i32().map_err(|_| {
                    PgError::protocol(
                        "malformed message from the server: NegotiateProtocolVersion is too short",
                    )
                })?;
                Ok(Some(Incoming::NegotiateVersion(version)))
            }
            _ => {
                let parsed = Message::parse(&mut self.incoming).map_err(|e| PgError::malformed(&e))?;
                Ok(parsed.map(Incoming::Known))
            }
        }
    }

    /// The body of the message at the front, which must be there in full.
    fn take(&mut self, total: usize) -> Bytes {
        let mut message = self.incoming.split_to(total).freeze();
        message.advance(5);
        message
    }

    /// Reads what has arrived, at least one byte. The end of the stream is an error.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PgError>> {
        if self.incoming.is_empty() && self.incoming.capacity() > KEEP_CAPACITY {
            self.incoming = BytesMut::new();
        }
        if self.incoming.capacity() - self.incoming.len() < READ_STEP / 4 {
            self.incoming.reserve(READ_STEP);
        }
        // `read_buf` keeps no state between polls, so dropping the future after one loses nothing.
        let read = pin!(self.stream.read_buf(&mut self.incoming));
        let result = ready!(std::future::Future::poll(read, cx));
        Poll::Ready(match result {
            Ok(0) => Err(self.write_error.take().unwrap_or_else(PgError::closed)),
            Ok(_) => {
                self.heard = Instant::now();
                Ok(())
            }
            Err(error) => Err(self.write_error.take().unwrap_or_else(|| error.into())),
        })
    }

    /// Writes what waits in the buffer; ready when nothing is left to write.
    ///
    /// A failure is not reported here but by the next read, after the server's last messages have been read.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_drain_with(cx, &mut &[][..])
    }

    /// Writes what waits in the buffer, then `more`, of which the written part is cut off.
    pub(crate) fn poll_drain_with(&mut self, cx: &mut Context<'_>, more: &mut &[u8]) -> Poll<()> {
        while self.write_error.is_none() && (!self.outgoing.is_empty() || !more.is_empty()) {
            let parts = [io::IoSlice::new(&self.outgoing), io::IoSlice::new(more)];
            let stream = Pin::new(&mut self.stream);
            // Without scatter-gather (TLS) only the first non-empty part is written, which is right too.
            match ready!(stream.poll_write_vectored(cx, &parts)) {
                Ok(0) => self.write_error = Some(PgError::closed()),
                Ok(written) => {
                    let buffered = written.min(self.outgoing.len());
                    self.outgoing.advance(buffered);
                    *more = more.get(written - buffered..).unwrap_or_default();
                    self.unflushed = true;
                    self.told = Instant::now();
                }
                Err(error) => self.write_error = Some(error.into()),
            }
        }
        if self.outgoing.is_empty() && self.outgoing.capacity() > KEEP_CAPACITY {
            self.outgoing = BytesMut::new();
        }
        if self.write_error.is_some() {
            self.outgoing.clear();
            *more = &[];
        } else if self.unflushed {
            match ready!(Pin::new(&mut self.stream).poll_flush(cx)) {
                Ok(()) => self.unflushed = false,
                Err(error) => self.write_error = Some(error.into()),
            }
        }
        Poll::Ready(())
    }

    /// Whether something waits to be written.
    pub(crate) fn has_output(&self) -> bool {
        !self.outgoing.is_empty() || self.unflushed
    }

    /// The error of a failed write, if there was one.
    pub(crate) fn check_write(&self) -> Result<(), PgError> {
        self.write_error.clone().map_or(Ok(()), Err)
    }

    /// Waits for the next message, writing meanwhile. Cancel-safe.
    pub(crate) async fn receive(&mut self) -> Result<Incoming, PgError> {
        poll_fn(|cx| self.poll_receive(cx)).await
    }

    /// The same, as a poll.
    pub(crate) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, PgError>> {
        loop {
            if let Some(message) = self.buffered()? {
                return Poll::Ready(Ok(message));
            }
            let _ = self.poll_drain(cx);
            ready!(self.poll_fill(cx))?;
        }
    }

    /// Sends Terminate and closes. Waits for nothing: the session is over either way.
    pub(crate) async fn close(mut self) {
        postgres_protocol::message::frontend::terminate(&mut self.outgoing);
        poll_fn(|cx| {
            let _ = self.poll_drain(cx);
            let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
            Poll::Ready(())
        })
        .await;
    }
}
