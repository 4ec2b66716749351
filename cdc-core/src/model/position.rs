//! Positions: where a stream can be resumed, and the order of transactions within one run.

use std::fmt;

use crate::error::{Error, Result};

/// A resumable place in a source's log, in the engine's own text form (an LSN, a GTID set, a change tracking
/// version). Opaque to the core: only the engine that wrote it reads it, and it is never compared here.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Position(Box<str>);

impl Position {
    /// Wraps an engine's text form.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The engine's text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The order of transactions within one run of a stream; the only order the core compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TxnSeq(pub u64);

/// A transaction's own identity in its source's log: commit and end LSN, a GTID, a version. At most
/// [`TxnId::MAX`] bytes, held inline so that a transaction record allocates nothing.
///
/// Aligned, and its bytes first: elsewhere eight of them are put together from parts that have just been written, for which
/// the processor waits once a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct TxnId {
    bytes: [u8; TxnId::MAX],
    len: u8,
}

impl TxnId {
    /// The longest identity, in bytes.
    pub const MAX: usize = 48;

    /// Copies an engine's identity bytes.
    ///
    /// # Errors
    /// When `bytes` is longer than [`TxnId::MAX`].
    #[inline]
    pub fn new(bytes: &[u8]) -> Result<Self> {
        let mut id = Self {
            len: bytes.len() as u8,
            bytes: [0; Self::MAX],
        };
        match id.bytes.get_mut(..bytes.len()) {
            Some(slot) => slot.copy_from_slice(bytes),
            None => return Err(too_long(bytes)),
        }
        Ok(id)
    }

    /// The engine's identity bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

#[cold]
fn too_long(id: &[u8]) -> Error {
    Error::bug(format!("transaction identity of {} bytes", id.len()))
}

impl fmt::Debug for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Which log a stream reads. A checkpoint is only good for the source that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceIdentity {
    /// The server's own identity (PostgreSQL system identifier, MySQL server uuid).
    pub system: String,
    /// The database within the server.
    pub database: String,
    /// The history the log belongs to (PostgreSQL timeline), or empty.
    pub timeline: String,
    /// The server-side cursor (replication slot), or empty.
    pub slot: String,
}
