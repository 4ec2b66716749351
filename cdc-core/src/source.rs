//! What an engine provides to read its log: a [`Source`] that moves bytes and a [`Decoder`] without I/O.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::ahead::{Ahead, DecoderMaker};
use crate::batch::Batch;
use crate::engine::SiteIdentity;
use crate::error::Result;
use crate::model::{Position, TableName, TxnRecord};
use crate::pipeline::Charge;
use crate::{BoxFuture, TableSelection};

/// Bytes as they came from the log, whole frames only. The framing belongs to the engine.
#[derive(Debug, Default)]
pub struct RawChunk {
    /// the frames
    pub bytes: Vec<u8>,
    /// when the last of them arrived
    pub received: Option<Instant>,
    /// its share of the memory budget
    pub(crate) charge: Option<Charge>,
}

impl RawChunk {
    /// Frames that did not just arrive.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            ..Self::default()
        }
    }
}

/// Where and for what a stream starts.
#[derive(Debug, Clone)]
pub struct StreamStart {
    /// the checkpoint's position; transactions up to and including it are not delivered again
    pub from: Position,
    /// the name of the stream, by which heartbeat and marker rows are told from other jobs'
    pub stream: String,
    /// which tables the job replicates; changes of others are counted as filtered
    pub selection: TableSelection,
    /// tables whose seed already contains transactions up to a later position: changes up to it are counted
    /// as filtered
    pub seeded_to: HashMap<TableName, Position>,
    /// tables that are copied beside the stream at the moment: all their changes are counted as filtered
    pub aside: HashSet<TableName>,
    /// where the stream leads to: changes that the same job applied on the source, coming from there, are not sent back
    pub peer: Option<SiteIdentity>,
}

/// One connection to a source's log. Owned by the source thread.
pub trait Source: Send {
    /// Connects, checks that the log can be read from `start` and starts the stream.
    ///
    /// # Errors
    /// [`crate::Kind::PositionLost`] when the log is not the one of the checkpoint or no longer reaches back.
    fn open<'a>(&'a mut self, start: &'a StreamStart) -> BoxFuture<'a, Box<dyn Decoder>>;

    /// Gives the source, once it is open, the way by which transactions are applied ahead of their commits. Returns what
    /// decodes them; `None` from a source that tells of a transaction only when it has committed.
    ///
    /// Of a transaction that was applied so, the stream has a record of kind
    /// [`TxnKind::Ahead`](crate::model::TxnKind::Ahead) alone.
    fn hand_out(&mut self, _ahead: Ahead) -> Option<DecoderMaker> {
        None
    }

    /// Waits for at least one frame, then takes what has arrived, up to the engine's chunk size; appends to
    /// `chunk`. Cancel-safe: unread bytes stay buffered, whole frames already in `chunk` stay valid.
    ///
    /// # Errors
    /// [`crate::Action::Reconnect`] when the connection is lost.
    fn read<'a>(&'a mut self, chunk: &'a mut RawChunk) -> BoxFuture<'a, ()>;

    /// How long to wait before the next read while the log flows, where the source knows that it then costs less.
    fn pause(&mut self) -> Option<Duration> {
        None
    }

    /// Tells the server that everything up to `durable` is on the target for good, and that we are alive.
    /// Called on a timer whatever the back-pressure; with `None` it only says that we are alive. Idempotent;
    /// never moves backwards.
    ///
    /// # Errors
    /// [`crate::Action::Reconnect`] when the connection is lost.
    fn confirm<'a>(&'a mut self, durable: Option<&'a Position>) -> BoxFuture<'a, ()>;

    /// Ends the stream in an orderly way, so that the server releases it at once.
    ///
    /// # Errors
    /// When the server cannot be told; the connection is closed all the same.
    fn close(&mut self) -> BoxFuture<'_, ()>;
}

/// Turns chunks into batches. Pure: no I/O, no clock, never panics on any bytes.
pub trait Decoder: Send {
    /// Decodes the whole chunk, appending to `batch`. The chunk's bytes may become the batch's ([`Batch::adopt`]); what
    /// is left in the chunk means nothing. A transaction may begin in one chunk and end in a later one: its record is
    /// continued with [`TxnRecord::first`] false.
    ///
    /// # Errors
    /// [`crate::Kind::Protocol`] with offset and message when the bytes break the protocol.
    fn decode(&mut self, chunk: &mut RawChunk, batch: &mut Batch) -> Result<()>;

    /// A fresh tracker at the position the stream was opened from.
    fn tracker(&self) -> Box<dyn PositionTracker>;
}

/// Folds transaction identities into the resumable [`Position`].
pub trait PositionTracker: Send {
    /// Adds a finished transaction.
    ///
    /// # Errors
    /// When the identity is not one of this engine.
    fn fold(&mut self, txn: &TxnRecord) -> Result<()>;

    /// Moves to a position the source attested while idle.
    ///
    /// # Errors
    /// When the position is not one of this engine.
    fn advance(&mut self, idle: &Position) -> Result<()>;

    /// The position after everything folded so far.
    fn position(&self) -> Position;

    /// Another one at the same place, which goes its own way.
    fn fork(&self) -> Box<dyn PositionTracker>;

    /// Whether `txn` is *not* contained in a snapshot of the source taken at `snapshot`.
    ///
    /// # Errors
    /// When the position is not one of this engine.
    fn is_after(&self, txn: &TxnRecord, snapshot: &Position) -> Result<bool>;

    /// The identity of `txn` for people: the same for all parts of a transaction, whenever it is read.
    fn describe(&self, txn: &TxnRecord) -> String {
        format!("{:?}", txn.id)
    }

    /// Whether everything contained in a snapshot taken at `snapshot` has been folded, judging by the
    /// position alone.
    ///
    /// # Errors
    /// When the position is not one of this engine.
    fn has_reached(&self, snapshot: &Position) -> Result<bool>;
}
