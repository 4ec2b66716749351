//! A source in memory: the log of a [`SourceDatabase`] as transactions or as net windows, in frames cut into
//! chunks at arbitrary places, with faults.
//!
//! Frames refer to the shared log by number, so that they stay small: the framing belongs to the source.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use super::capture::SourceDatabase;
use super::change::{SourceChange, SourceTxn, counts, push_change};
use super::rng::Rng;
use super::schema::CellFormat;
use super::windows::net_window;
use crate::BoxFuture;
use crate::batch::{Batch, Op};
use crate::error::{Action, Error, Kind, Result};
use crate::model::{Position, TableRole, TableSchema, TxnKind, TxnRecord};
use crate::source::{Decoder, PositionTracker, RawChunk, Source, StreamStart};

const BEGIN: u8 = 1;
const CHANGE: u8 = 2;
const END: u8 = 3;
const IDLE: u8 = 4;
/// tag, two numbers of 8 bytes
const FRAME: usize = 17;
const LARGEST_CHUNK: usize = 24;

/// Something that goes wrong once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceFault {
    /// The connection is lost after this many more frames.
    Disconnect {
        /// frames still delivered
        after_frames: u64,
    },
    /// The next connection fails.
    Open,
}

/// A source and its log: cheap to clone, all clones are the same one.
#[derive(Debug, Clone)]
pub struct MemoryLog(Arc<Mutex<Server>>);

#[derive(Debug)]
struct Server {
    database: SourceDatabase,
    schemas: Vec<Arc<TableSchema>>,
    format: CellFormat,
    kind: TxnKind,
    /// net windows handed out, which frames number
    windows: Vec<SourceTxn>,
    confirmed: u64,
    confirms: Vec<u64>,
    faults: Vec<SourceFault>,
    waiting: Vec<Waker>,
    rng: Rng,
}

impl MemoryLog {
    /// The log of `database`, read as ordered transactions or as net windows, its cells in `format`.
    pub fn new(database: SourceDatabase, kind: TxnKind, format: CellFormat, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Server {
            schemas: database.schemas(&format),
            confirmed: 0,
            database,
            format,
            kind,
            windows: Vec::new(),
            confirms: Vec::new(),
            faults: Vec::new(),
            waiting: Vec::new(),
            rng: Rng::new(seed),
        })))
    }

    /// Looks at or writes to the database; readers that wait look again.
    pub fn database<T>(&self, visit: impl FnOnce(&mut SourceDatabase) -> T) -> T {
        let mut server = self.server();
        let result = visit(&mut server.database);
        server.waiting.drain(..).for_each(Waker::wake);
        result
    }

    /// Starts anew with another database, nothing confirmed.
    pub fn restart(&self, database: SourceDatabase) {
        let mut server = self.server();
        server.schemas = database.schemas(&server.format);
        server.database = database;
        server.windows.clear();
        server.confirmed = 0;
        server.confirms.clear();
    }

    /// A connection, not yet open.
    pub fn source(&self) -> MemorySource {
        MemorySource {
            log: self.clone(),
            cursor: None,
        }
    }

    /// The newest position confirmed.
    pub fn confirmed(&self) -> Position {
        position(self.server().confirmed)
    }

    /// All positions that were confirmed, in order, as they came.
    pub fn confirms(&self) -> Vec<u64> {
        self.server().confirms.clone()
    }

    /// Makes something go wrong.
    pub fn inject(&self, fault: SourceFault) {
        let mut server = self.server();
        server.faults.push(fault);
        server.waiting.drain(..).for_each(Waker::wake);
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The position of an offset.
fn position(offset: u64) -> Position {
    Position::new(offset.to_string())
}

fn offset(position: &Position) -> Result<u64> {
    position
        .as_str()
        .parse()
        .map_err(|_| Error::new(Kind::PositionLost, "this is no position of a memory log").at(position))
}

fn offset_of(txn: &TxnRecord) -> Result<u64> {
    let bytes = <[u8; 8]>::try_from(txn.id.as_bytes());
    bytes
        .map(u64::from_be_bytes)
        .map_err(|_| Error::bug("a transaction that is not of a memory log"))
}

/// One connection to a [`MemoryLog`].
#[derive(Debug)]
pub struct MemorySource {
    log: MemoryLog,
    cursor: Option<Cursor>,
}

/// What has been sent.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    /// offset up to which everything has been sent
    sent: u64,
    /// number of the transaction being sent and of its next frame
    sending: Option<(usize, usize)>,
}

impl Server {
    fn txn(&self, number: usize) -> Option<&SourceTxn> {
        match self.kind {
            TxnKind::Log | TxnKind::Ahead => self.database.txns().get(number),
            TxnKind::NetWindow => self.windows.get(number),
        }
    }

    /// The next frame, if there is one.
    fn frame(&mut self, cursor: &mut Cursor) -> Option<[u8; FRAME]> {
        if let Some((number, next)) = cursor.sending {
            let txn = self.txn(number)?;
            let changes = txn.changes.len();
            if next < changes {
                cursor.sending = Some((number, next + 1));
                return Some(encode(CHANGE, number as u64, next as u64));
            }
            cursor.sent = txn.offset;
            cursor.sending = None;
            return Some(encode(END, number as u64, 0));
        }
        if let Some(number) = self.next_txn(cursor.sent) {
            cursor.sending = Some((number, 0));
            return Some(encode(BEGIN, number as u64, 0));
        }
        let end = self.database.log_end();
        if end > cursor.sent {
            cursor.sent = end;
            return Some(encode(IDLE, end, 0));
        }
        None
    }

    /// The number of the first transaction after `sent`. A net window is made when it is asked for, and ends
    /// at a transaction that chance chooses, as polls do.
    fn next_txn(&mut self, sent: u64) -> Option<usize> {
        let first = self.database.txns().iter().position(|txn| txn.offset > sent)?;
        if self.kind == TxnKind::Log {
            return Some(first);
        }
        let left = self.database.txns().len() - first;
        let last = first + self.rng.below(left);
        let to = self.database.txns().get(last)?.offset;
        let window = net_window(&self.database, sent, to, &mut self.rng)?;
        self.windows.push(window);
        Some(self.windows.len() - 1)
    }

    /// Whether the connection is lost now.
    fn disconnects(&mut self) -> bool {
        let due = self
            .faults
            .iter()
            .position(|fault| matches!(fault, SourceFault::Disconnect { after_frames: 0 }));
        if let Some(due) = due {
            self.faults.remove(due);
        }
        due.is_some()
    }

    fn sent_one(&mut self) {
        for fault in &mut self.faults {
            if let SourceFault::Disconnect { after_frames } = fault {
                *after_frames = after_frames.saturating_sub(1);
            }
        }
    }
}

fn encode(tag: u8, one: u64, two: u64) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[0] = tag;
    frame[1..9].copy_from_slice(&one.to_le_bytes());
    frame[9..].copy_from_slice(&two.to_le_bytes());
    frame
}

impl MemorySource {
    fn open_now(&mut self, start: &StreamStart) -> Result<Box<dyn Decoder>> {
        let from = offset(&start.from)?;
        let mut server = self.log.server();
        if let Some(due) = server.faults.iter().position(|fault| *fault == SourceFault::Open) {
            server.faults.remove(due);
            return Err(lost());
        }
        if from > server.database.log_end() || from < server.confirmed {
            return Err(
                Error::new(Kind::PositionLost, "the log does not reach the position")
                    .at(&start.from)
                    .remedy("seed the target again"),
            );
        }
        self.cursor = Some(Cursor {
            sent: from,
            sending: None,
        });
        Ok(Box::new(MemoryDecoder {
            log: self.log.clone(),
            start: start.clone(),
            from,
        }))
    }

    /// Reads without waiting; whether there was anything.
    fn read_now(&mut self, chunk: &mut RawChunk) -> Result<bool> {
        let mut server = self.log.server();
        let Some(cursor) = &mut self.cursor else {
            return Err(lost());
        };
        if server.disconnects() {
            self.cursor = None;
            return Err(lost());
        }
        let most = 1 + server.rng.below(LARGEST_CHUNK);
        let mut any = false;
        for _ in 0..most {
            let Some(frame) = server.frame(cursor) else {
                break;
            };
            chunk.bytes.extend_from_slice(&frame);
            any = true;
            server.sent_one();
            let lost_next = SourceFault::Disconnect { after_frames: 0 };
            if server.faults.contains(&lost_next) {
                break;
            }
        }
        if any {
            chunk.received = Some(Instant::now());
        }
        Ok(any)
    }

    fn confirm_now(&mut self, durable: Option<&Position>) -> Result<()> {
        if self.cursor.is_none() {
            return Err(lost());
        }
        if let Some(durable) = durable {
            let durable = offset(durable)?;
            let mut server = self.log.server();
            server.confirmed = server.confirmed.max(durable);
            server.confirms.push(durable);
        }
        Ok(())
    }
}

impl Source for MemorySource {
    fn open<'a>(&'a mut self, start: &'a StreamStart) -> BoxFuture<'a, Box<dyn Decoder>> {
        Box::pin(async { self.open_now(start) })
    }

    fn read<'a>(&'a mut self, chunk: &'a mut RawChunk) -> BoxFuture<'a, ()> {
        Box::pin(std::future::poll_fn(move |context| match self.read_now(chunk) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => {
                self.log.server().waiting.push(context.waker().clone());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }))
    }

    fn confirm<'a>(&'a mut self, durable: Option<&'a Position>) -> BoxFuture<'a, ()> {
        Box::pin(async move { self.confirm_now(durable) })
    }

    fn close(&mut self) -> BoxFuture<'_, ()> {
        self.cursor = None;
        Box::pin(async { Ok(()) })
    }
}

fn lost() -> Error {
    Error::new(Kind::Unreachable, "the connection to the source is lost").action(Action::Reconnect)
}

/// Turns frames into batches.
#[derive(Debug)]
struct MemoryDecoder {
    log: MemoryLog,
    start: StreamStart,
    from: u64,
}

impl MemoryDecoder {
    fn frame(&self, server: &Server, frame: &[u8], batch: &mut Batch) -> Result<()> {
        let malformed = || Error::new(Kind::Protocol, "a malformed frame of a memory log");
        let number = |range: std::ops::Range<usize>| {
            let bytes = frame.get(range).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
            bytes.map(u64::from_le_bytes).ok_or_else(malformed)
        };
        let (one, two) = (number(1..9)?, number(9..17)?);
        let tag = frame.first().copied().ok_or_else(malformed)?;
        if tag == IDLE {
            batch.set_idle(position(one));
            return Ok(());
        }
        let txn = server.txn(one as usize).ok_or_else(malformed)?;
        match tag {
            BEGIN => batch.begin(txn.record(true)?),
            CHANGE => {
                self.continue_txn(txn, batch)?;
                let change = txn.changes.get(two as usize).ok_or_else(malformed)?;
                self.change(server, txn, change, batch)?;
            }
            END => {
                self.continue_txn(txn, batch)?;
                if let Some(open) = batch.open_txn() {
                    open.last = true;
                }
            }
            _ => return Err(malformed()),
        }
        Ok(())
    }

    /// Opens the continuation of a transaction that began in a former batch.
    fn continue_txn(&self, txn: &SourceTxn, batch: &mut Batch) -> Result<()> {
        let record = txn.record(false)?;
        let is_open = batch
            .open_txn()
            .is_some_and(|open| open.id == record.id && !open.last);
        if !is_open {
            batch.begin(record);
        }
        Ok(())
    }

    fn change(
        &self,
        server: &Server,
        txn: &SourceTxn,
        change: &SourceChange,
        batch: &mut Batch,
    ) -> Result<()> {
        let mut counted = counts(std::slice::from_ref(change), &server.schemas);
        let kept = match change {
            SourceChange::Row { table, op, after, .. } => match server.schemas.get(*table) {
                Some(schema) if schema.role == TableRole::User => {
                    let wanted = self.wanted(schema, txn)?;
                    counted.filtered += u64::from(!wanted);
                    wanted.then(|| change.clone())
                }
                Some(schema) => {
                    let ours = *op != Op::Delete && self.is_ours(schema, after.as_deref());
                    ours.then(|| change.clone())
                }
                None => None,
            },
            SourceChange::Truncate(tables) => {
                let mut kept = Vec::new();
                for table in tables {
                    let schema = server.schemas.get(*table);
                    if schema.map(|schema| self.wanted(schema, txn)).transpose()? == Some(true) {
                        kept.push(*table);
                    }
                }
                counted.filtered += (tables.len() - kept.len()) as u64;
                (!kept.is_empty()).then_some(SourceChange::Truncate(kept))
            }
            SourceChange::Message => Some(SourceChange::Message),
        };
        if let Some(change) = kept {
            push_change(batch, &server.schemas, &server.format, &change)?;
        }
        if let Some(open) = batch.open_txn() {
            open.counts += counted;
        }
        Ok(())
    }

    fn wanted(&self, schema: &TableSchema, txn: &SourceTxn) -> Result<bool> {
        let seeded = self.start.seeded_to.get(&schema.name).map(offset).transpose()?;
        let ours = self.start.selection.selects(&schema.name) && !self.start.aside.contains(&schema.name);
        Ok(ours && seeded.is_none_or(|seeded| txn.offset > seeded))
    }

    /// Whether a heartbeat or marker row belongs to our stream.
    fn is_ours(&self, schema: &TableSchema, after: Option<&[super::SourceCell]>) -> bool {
        let column = schema.column("stream");
        let cell = column.zip(after).and_then(|(column, cells)| cells.get(column));
        matches!(cell, Some(super::SourceCell::Value(text)) if *text == self.start.stream.as_bytes())
    }
}

impl Decoder for MemoryDecoder {
    fn decode(&mut self, chunk: &mut RawChunk, batch: &mut Batch) -> Result<()> {
        let server = self.log.server();
        for frame in chunk.bytes.chunks(FRAME) {
            self.frame(&server, frame, batch)?;
        }
        if let Some(received) = chunk.received {
            batch.set_received(received);
        }
        Ok(())
    }

    fn tracker(&self) -> Box<dyn PositionTracker> {
        Box::new(MemoryTracker(self.from))
    }
}

/// Follows offsets.
#[derive(Debug)]
struct MemoryTracker(u64);

impl PositionTracker for MemoryTracker {
    fn fold(&mut self, txn: &TxnRecord) -> Result<()> {
        self.0 = self.0.max(offset_of(txn)?);
        Ok(())
    }

    fn advance(&mut self, idle: &Position) -> Result<()> {
        self.0 = self.0.max(offset(idle)?);
        Ok(())
    }

    fn position(&self) -> Position {
        position(self.0)
    }

    fn fork(&self) -> Box<dyn PositionTracker> {
        Box::new(Self(self.0))
    }

    fn is_after(&self, txn: &TxnRecord, snapshot: &Position) -> Result<bool> {
        Ok(offset_of(txn)? > offset(snapshot)?)
    }

    fn has_reached(&self, snapshot: &Position) -> Result<bool> {
        Ok(self.0 >= offset(snapshot)?)
    }
}
