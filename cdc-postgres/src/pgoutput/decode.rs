//! The decoder: chunks of frames in, batches out.

use std::collections::HashMap;

use cdc_core::batch::{Op, Truncation};
use cdc_core::engine::SiteIdentity;
use cdc_core::model::{ChangeCounts, TxnKind};
use cdc_core::source::{Decoder, PositionTracker, StreamStart};
use cdc_core::{Batch, Error, Kind, Position, RawChunk, Result, TableName, TableSchema};

use super::message::{Begin, Commit, Message, Origin, ProtocolVersion, RowChange, Truncate};
use super::relation::{Handling, Relations};
use super::transaction::{OpenTransaction, transaction_id};
use super::tuple::{Numbered, TupleReader, Tuples, new_column_is};
use crate::error_map::position_lsn;
use crate::lsn::Lsn;
use crate::tracker::PgTracker;
use crate::walsender::{Frame, parse_frame, split_frames};

/// What precedes each frame of a chunk: its length.
const FRAME_LENGTH_BYTES: usize = 4;

/// Decodes the stream of a slot. One for each session of the walsender: relation ids are the session's.
///
/// After an error the batch holds whole rows only, but not all of the chunk, and the decoder is of no more use.
#[derive(Clone, Debug)]
pub struct PgDecoder {
    version: ProtocolVersion,
    stream: String,
    peer: Option<SiteIdentity>,
    from: Lsn,
    relations: Relations,
    tuples: TupleReader,
    open: Option<OpenTransaction>,
    /// how far the stream has come: the start, the end of the newest transaction, the newest idle position
    reached: Lsn,
    /// the newest keepalive of the chunk after which no transaction has begun
    idle: Option<Lsn>,
    /// logical messages that came outside any transaction, to be counted with the next one
    messages_between: u64,
}

impl PgDecoder {
    /// A decoder for a stream that begins at `start`.
    ///
    /// # Errors
    /// When a position of `start` is not an LSN.
    pub fn new(version: ProtocolVersion, start: &StreamStart) -> Result<PgDecoder> {
        let from = position_lsn(&start.from)?;
        let seeded_to: Result<HashMap<_, _>> = start
            .seeded_to
            .iter()
            .map(|(table, position)| Ok((table.clone(), position_lsn(position)?)))
            .collect();
        Ok(PgDecoder {
            version,
            stream: start.stream.clone(),
            peer: start.peer.clone(),
            from,
            relations: Relations::new(start, seeded_to?),
            tuples: TupleReader::default(),
            open: None,
            reached: from,
            idle: None,
            messages_between: 0,
        })
    }

    /// Refuses these tables, by their OID, when they come under a name that is not selected: they were renamed, and their
    /// changes would be counted as filtered.
    pub fn expect_selected(&mut self, tables: HashMap<u32, TableName>) {
        self.relations.expect_selected(tables);
    }

    /// Decodes the frames of a chunk that will begin at `base` of the slab.
    fn frames(&mut self, chunk: &[u8], base: u32, batch: &mut Batch) -> Result<()> {
        let mut end = base;
        for payload in split_frames(chunk) {
            let payload = payload?;
            end += (FRAME_LENGTH_BYTES + payload.len()) as u32;
            match parse_frame(payload)? {
                Frame::XLogData { start, data, .. } => {
                    if let Err(error) = self.message(data, end, batch) {
                        return Err(self.locate(error, start, data));
                    }
                }
                // With a transaction open its position may lie inside that transaction. With none open the server
                // has sent everything that committed below it, as frames come in order. A keepalive sent while a
                // commit is on its way may tell an older position than that commit's.
                Frame::Keepalive { wal_end, .. } => {
                    if self.open.is_none() {
                        self.reached = self.reached.max(wal_end);
                        self.idle = Some(self.reached);
                    }
                }
            }
        }
        Ok(())
    }

    /// The message before `end` of the slab. Those that come with every row or transaction are told by their tag, before
    /// anything is made of them.
    #[inline(always)]
    fn message(&mut self, bytes: &[u8], end: u32, batch: &mut Batch) -> Result<()> {
        let ProtocolVersion::V1 = self.version;
        match bytes {
            [b'I', ..] => self.row(Op::Insert, bytes, end, batch),
            [b'U', ..] => self.row(Op::Update, bytes, end, batch),
            [b'D', ..] => self.row(Op::Delete, bytes, end, batch),
            [b'B', ..] => self.begin(&Begin::parse(bytes)?),
            [b'C', ..] => self.commit(&Commit::parse(bytes)?, batch),
            [b'c', ..] => self.committed_ahead(bytes, batch),
            [b'R', ..] if self.relations.is_known(bytes) => Ok(()),
            _ => self.other(bytes, batch),
        }
    }

    #[inline(never)]
    fn other(&mut self, bytes: &[u8], batch: &mut Batch) -> Result<()> {
        match Message::parse(self.version, bytes)? {
            Message::Insert(_)
            | Message::Update(_)
            | Message::Delete(_)
            | Message::Begin(_)
            | Message::Commit(_) => Err(Error::bug("a message was not told by its tag")),
            Message::Origin(origin) => self.origin(&origin),
            Message::Relation(relation) => self.relations.announce(&relation, bytes),
            Message::Type(named) => {
                self.relations.name_type(&named);
                Ok(())
            }
            Message::Truncate(truncate) => self.truncate(&truncate, batch),
            // Not transactional ones come at once, also outside a transaction, and again after a restart: none
            // moves a position.
            Message::Logical(_) => {
                match &mut self.open {
                    None => self.messages_between += 1,
                    Some(open) if open.redelivered => {}
                    Some(open) => open.counts(batch)?.internal += 1,
                }
                Ok(())
            }
        }
    }

    fn begin(&mut self, begin: &Begin) -> Result<()> {
        if let Some(open) = &self.open {
            return Err(protocol(format!(
                "a transaction begins before the one that commits at {} has ended",
                open.commit_lsn
            )));
        }
        let mut open = OpenTransaction::begin(begin, self.from)?;
        if !open.redelivered {
            open.internal_before = std::mem::take(&mut self.messages_between);
        }
        self.open = Some(open);
        self.idle = None;
        Ok(())
    }

    fn commit(&mut self, commit: &Commit, batch: &mut Batch) -> Result<()> {
        let Some(open) = &mut self.open else {
            return Err(outside("a commit"));
        };
        if commit.commit_lsn != open.commit_lsn || commit.end_lsn <= commit.commit_lsn {
            return Err(other_commit(open.commit_lsn, commit));
        }
        if open.redelivered {
            // Its changes were dropped in the belief that it ends before the start.
            if commit.end_lsn > self.from {
                return Err(within_commit(self.from, commit));
            }
        } else {
            self.reached = self.reached.max(commit.end_lsn);
            let record = open.record(batch)?;
            record.id = transaction_id(commit.commit_lsn, commit.end_lsn)?;
            record.last = true;
        }
        self.open = None;
        Ok(())
    }

    /// The commit of a transaction of which this decoder is given nothing else: its changes were handed out before it.
    #[inline(never)]
    fn committed_ahead(&mut self, bytes: &[u8], batch: &mut Batch) -> Result<()> {
        let Commit {
            commit_lsn: final_lsn,
            end_lsn,
            commit_time,
        } = Commit::parse_streamed(bytes)?;
        let xid = 0;
        self.begin(&Begin {
            final_lsn,
            commit_time,
            xid,
        })?;
        match &mut self.open {
            Some(open) if !open.redelivered => open.record(batch)?.kind = TxnKind::Ahead,
            // The server streams only what it reads behind the start, and that commits later.
            _ => {
                return Err(protocol(format!(
                    "a transaction was streamed that has committed before {}",
                    self.from
                )));
            }
        }
        self.commit(
            &Commit {
                commit_lsn: final_lsn,
                end_lsn,
                commit_time,
            },
            batch,
        )
    }

    fn origin(&mut self, origin: &Origin<'_>) -> Result<()> {
        let open = self.open.as_mut().ok_or_else(|| outside("an origin"))?;
        open.set_origin(origin, &self.stream, self.peer.as_ref())
    }

    #[inline(never)]
    fn row(&mut self, op: Op, bytes: &[u8], end: u32, batch: &mut Batch) -> Result<()> {
        let change = &RowChange::parse(bytes)?;
        let Some(open) = &mut self.open else {
            return Err(outside("a row change"));
        };
        if open.redelivered {
            return Ok(());
        }
        let table = self.relations.get(change.relation)?;
        let looped = open.looped;
        let counts = open.counts(batch)?;
        match table.handling {
            Handling::Decode | Handling::Filtered if looped => {
                counts.read += 1;
                counts.looped += 1;
                return Ok(());
            }
            Handling::Decode if !table.has_seeded(open.commit_lsn) => counts.read += 1,
            Handling::Decode | Handling::Filtered => {
                counts.read += 1;
                counts.filtered += 1;
                return Ok(());
            }
            Handling::Internal => {
                counts.internal += 1;
                return Ok(());
            }
            Handling::DecodeOwn { stream } => {
                counts.internal += 1;
                // Beats and markers are read when written; that old ones are removed says nothing.
                if op == Op::Delete || !new_column_is(change, stream, self.stream.as_bytes())? {
                    return Ok(());
                }
            }
        }
        let numbered = Numbered {
            number: table.number_in(batch)?,
            schema: &table.schema,
        };
        let tuples = Tuples::new(change, end);
        let added = match op {
            Op::Insert => TupleReader::insert(tuples, numbered, batch),
            Op::Update => self.tuples.update(tuples, numbered, batch),
            _ => self.tuples.delete(tuples, numbered, batch),
        };
        added.map_err(|error| in_table(error, &table.schema))
    }

    fn truncate(&mut self, truncate: &Truncate<'_>, batch: &mut Batch) -> Result<()> {
        let open = self.open.as_mut().ok_or_else(|| outside("a truncate"))?;
        if open.redelivered {
            return Ok(());
        }
        let mut counts = ChangeCounts::default();
        let mut tables = Vec::new();
        for id in truncate.relations() {
            let table = self.relations.get(id)?;
            match table.handling {
                Handling::Internal | Handling::DecodeOwn { .. } => counts.internal += 1,
                Handling::Decode | Handling::Filtered if open.looped => {
                    counts.read += 1;
                    counts.looped += 1;
                }
                Handling::Decode if !table.has_seeded(open.commit_lsn) => {
                    counts.read += 1;
                    tables.push(std::sync::Arc::clone(&table.schema));
                }
                Handling::Decode | Handling::Filtered => {
                    counts.read += 1;
                    counts.filtered += 1;
                }
            }
        }
        *open.counts(batch)? += counts;
        if !tables.is_empty() {
            batch.push_truncate(Truncation {
                tables,
                cascade: truncate.cascade,
                restart_identity: truncate.restart_identity,
            });
        }
        Ok(())
    }

    /// Says of an error which message it is about.
    #[cold]
    fn locate(&self, error: Error, start: Lsn, message: &[u8]) -> Error {
        let error = match (error.kind(), message.first()) {
            (Kind::Protocol, Some(tag)) => error.context(format!(
                "pgoutput version {}, message '{}'",
                self.version.number(),
                tag.escape_ascii()
            )),
            _ => error,
        };
        // Relation and Type messages have no position of their own.
        match &self.open {
            Some(open) if start.is_zero() => error.at(open.commit_lsn),
            _ => error.at(start),
        }
    }
}

impl Decoder for PgDecoder {
    fn decode(&mut self, chunk: &mut RawChunk, batch: &mut Batch) -> Result<()> {
        self.idle = None;
        if let Some(open) = &mut self.open {
            open.next_batch();
        }
        let base = batch.place(&chunk.bytes)?;
        let first_cell = batch.next_cell();
        let decoded = self.frames(&chunk.bytes, base, batch);
        if batch.next_cell() > first_cell {
            batch.adopt(&mut chunk.bytes);
        }
        decoded?;
        if let Some(idle) = self.idle {
            batch.set_idle(Position::new(idle.to_string()));
        }
        Ok(())
    }

    fn tracker(&self) -> Box<dyn PositionTracker> {
        Box::new(PgTracker::new(self.from))
    }
}

#[cold]
fn in_table(error: Error, schema: &TableSchema) -> Error {
    error.object(format!("table {}", schema.name))
}

#[cold]
fn other_commit(announced: Lsn, commit: &Commit) -> Error {
    protocol(format!(
        "a transaction announced to commit at {announced} commits at {} and ends at {}",
        commit.commit_lsn, commit.end_lsn
    ))
}

#[cold]
fn within_commit(from: Lsn, commit: &Commit) -> Error {
    protocol(format!(
        "the stream was started at {from}, within the commit of a transaction ({} to {})",
        commit.commit_lsn, commit.end_lsn
    ))
}

fn protocol(message: String) -> Error {
    Error::new(Kind::Protocol, message)
}

#[cold]
fn outside(what: &str) -> Error {
    protocol(format!("{what} outside any transaction"))
}
