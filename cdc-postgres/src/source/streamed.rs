//! Transactions that the server sends while they still run (protocol version 2), set aside until they commit.
//!
//! A large transaction costs the server least when it may send what it has gathered of it at once: until the commit it
//! would write every change to a file of its own and read it back. Here the blocks of such a transaction go to a
//! [`Spill`], without the transaction id that version 2 puts into each message; when its commit comes, they are handed
//! out as the transaction that version 1 would have sent then. Decoder, positions and accounting know of version 1 alone.
//!
//! One such transaction at a time may go ahead ([`cdc_core::ahead`]): the lane is given its frames as they are set aside. If
//! it has applied them all when the commit comes, that is handed out alone, as the version-2 message that it is. Its
//! subtransactions are applied as if they were kept; when one is rolled back after all, the lane gives the transaction up.
//!
//! What a subtransaction takes with it when it is rolled back is everything since its first change: they are nested, and
//! what follows the rollback comes after its message (protocol manual, "Streaming Replication Message Formats"). But that
//! message may fail to come: the server sends it only for subtransactions of which it had something in memory when it
//! streamed (`ReorderBufferAbort`, `RBTXN_IS_STREAMED`), which is not so after it had written more than 4096 changes to
//! disk. So the changes of subtransactions keep their id until the commit, when the server is asked which were rolled back.

#[cfg(any(test, feature = "testing"))]
mod alone;

use std::collections::{HashMap, HashSet};

use cdc_core::ahead::{Ahead, SharedSpill};
use cdc_core::source::PositionTracker;
use cdc_core::{Batch, Decoder, Error, Kind, Position, RawChunk, Result};

use super::CHUNK_BYTES;
use crate::error::PgError;
use crate::lsn::Lsn;
use crate::pgoutput::PgDecoder;
use crate::walsender::{Frame, parse_frame, split_frames};

#[cfg(any(test, feature = "testing"))]
pub use alone::{StreamedFrames, lane_decoder};

/// Bytes of XLogData before the plugin's message.
const HEADER_BYTES: usize = 25;
/// In what is set aside, the first byte of a frame that has the id of its subtransaction before the message.
const MARK: u8 = b's';

/// Stands for the commit of a transaction that still runs: after every other.
const UNKNOWN_COMMIT: Lsn = Lsn(u64::MAX - 1);

/// Frames of version 2 in, frames of version 1 out.
#[derive(Debug, Default)]
pub(super) struct Streamed {
    /// what has been read and not been looked at, from `at` on
    read: Vec<u8>,
    at: usize,
    /// the transaction whose block is being read
    block: Option<u32>,
    /// transactions that have not ended
    aside: HashMap<u32, Aside>,
    /// what is handed out before anything else
    next: Vec<u8>,
    /// a transaction that has committed and is being handed out
    replay: Option<Replay>,
    /// Type messages that belong to the next Relation message
    types: Vec<u8>,
    /// tables as they were last announced, outside of blocks or in a transaction that has committed
    known: HashMap<u32, Announcement>,
    /// numbers announcements in the order of their arrival
    arrived: u64,
    /// where one of the transactions that have not ended may be applied
    lane: Option<Lane>,
}

/// The lane, and what it must know of the stream.
#[derive(Debug)]
struct Lane {
    ahead: Ahead,
    /// the transaction that it was given
    current: Option<u32>,
    /// the end of the newest transaction that has been handed out
    committed: Lsn,
    /// changes of tables that were copied are not applied when they committed before this
    seeded: Lsn,
}

/// A transaction that has not ended.
#[derive(Debug)]
struct Aside {
    frames: SharedSpill,
    /// the segments of which the lane has been told
    told: usize,
    /// the subtransactions that have changes, with where their first is, in order
    began: Vec<(u32, u64)>,
    /// their places in `began`
    places: HashMap<u32, usize>,
    /// Type messages that belong to the next Relation message
    types: Vec<u8>,
    /// tables as they were announced in its blocks, in order
    announced: Vec<Announcement>,
}

/// A transaction that is being handed out.
#[derive(Debug)]
struct Replay {
    xid: u32,
    /// whether the lane has it, and must be asked what became of it
    asks_lane: bool,
    /// what was handed out before it ends here
    after: Lsn,
    /// where it ends
    ends: Lsn,
    /// what precedes the frames: that it begins
    begin: Vec<u8>,
    frames: SharedSpill,
    /// the segments that are handed out
    segment: usize,
    /// its subtransactions
    subtransactions: Vec<u32>,
    /// those of them that were rolled back, once the server has told
    rolled_back: Option<HashSet<u32>>,
    /// what follows the frames: its commit
    end: Vec<u8>,
    /// its commit as it came, and the tables that it announced: all that is handed out where its changes are applied
    alone: Vec<u8>,
}

/// A Relation message with the Type messages before it.
#[derive(Debug)]
struct Announcement {
    table: u32,
    number: u64,
    frames: Vec<u8>,
    /// where it is in what was set aside
    at: u64,
}

impl Streamed {
    /// Whether there is something to hand out before more is read.
    pub(super) fn has_more(&self) -> bool {
        self.replay.is_some() || !self.next.is_empty() || self.at < self.read.len()
    }

    /// Lets transactions be applied ahead of their commits from here on. The stream begins at `from`; tables were copied as
    /// they were up to `seeded`, at most.
    pub(super) fn hand_out(&mut self, ahead: Ahead, from: Lsn, seeded: Lsn) {
        self.lane = Some(Lane {
            ahead,
            current: None,
            committed: from,
            seeded,
        });
    }

    /// The lane, when it must be asked whether a transaction is ready before there is more.
    pub(super) fn asks_lane(&mut self) -> Option<&mut Ahead> {
        let asks = self
            .replay
            .as_ref()
            .is_some_and(|replay| replay.asks_lane && replay.rolled_back.is_some());
        self.lane.as_mut().filter(|_| asks).map(|lane| &mut lane.ahead)
    }

    /// Takes the lane's answer.
    pub(super) fn lane_answers(&mut self, ready: bool) {
        if let Some(replay) = &mut self.replay {
            replay.asks_lane = false;
            if ready {
                self.next.append(&mut replay.alone);
                self.replay = None;
            } else {
                self.next.append(&mut replay.begin);
            }
        }
    }

    /// The subtransactions of which the server must say whether they were rolled back, before there is more, and where
    /// their transaction ends.
    pub(super) fn doubtful(&self) -> Option<(&[u32], Lsn)> {
        let replay = self.replay.as_ref()?;
        replay
            .rolled_back
            .is_none()
            .then_some((replay.subtransactions.as_slice(), replay.ends))
    }

    /// Takes the server's answer: those that were rolled back.
    pub(super) fn settle(&mut self, rolled_back: HashSet<u32>) {
        let (Some(replay), lane) = (&mut self.replay, &mut self.lane) else {
            return;
        };
        if let Some(lane) = lane.as_mut().filter(|_| replay.asks_lane) {
            if rolled_back.is_empty() {
                lane.end(replay.after);
            } else {
                lane.take_back(replay.xid);
                replay.asks_lane = false;
                self.next.append(&mut replay.begin);
            }
        }
        replay.rolled_back = Some(rolled_back);
    }

    /// Looks at the frames of `chunk` from `begin` on, and takes those that are not to be decoded as they are.
    pub(super) fn sift(&mut self, chunk: &mut Vec<u8>, begin: usize) -> Result<()> {
        let from = match self.block {
            Some(_) => begin,
            None => begin + self.leading(chunk.get(begin..).unwrap_or_default())?,
        };
        if from < chunk.len() {
            self.read.clear();
            self.at = 0;
            if from == 0 {
                std::mem::swap(&mut self.read, chunk);
            } else {
                self.read.extend_from_slice(chunk.get(from..).unwrap_or_default());
                chunk.truncate(from);
            }
        }
        self.fill(chunk)
    }

    /// Appends what is to be decoded next, as long as there is something and the chunk takes it.
    pub(super) fn fill(&mut self, chunk: &mut Vec<u8>) -> Result<()> {
        chunk.append(&mut self.next);
        while chunk.len() < CHUNK_BYTES {
            if let Some(replay) = &mut self.replay {
                let Some(rolled_back) = replay.rolled_back.as_ref().filter(|_| !replay.asks_lane) else {
                    break;
                };
                let begin = chunk.len();
                let more = replay.frames.lock().read(replay.segment, chunk)?;
                replay.segment += 1;
                if !replay.subtransactions.is_empty() {
                    unmark(chunk, begin, rolled_back)?;
                }
                if !more {
                    chunk.append(&mut replay.end);
                    self.replay = None;
                }
                continue;
            }
            let read = std::mem::take(&mut self.read);
            let Some(payload) = split_frames(read.get(self.at..).unwrap_or_default()).next() else {
                // All of it has been taken: what one large row needed is given back.
                self.read = read;
                self.read.clear();
                self.read.shrink_to(2 * CHUNK_BYTES);
                self.at = 0;
                break;
            };
            let sifted = payload.map_err(Error::from).and_then(|payload| {
                self.at += size_of::<u32>() + payload.len();
                self.frame(payload, chunk)
            });
            self.read = read;
            sifted?;
        }
        Ok(())
    }

    /// How many bytes of `frames` come before the first that is of a streamed transaction.
    fn leading(&mut self, frames: &[u8]) -> Result<usize> {
        let mut length = 0;
        for payload in split_frames(frames) {
            let payload = payload?;
            if let Frame::XLogData { data, .. } = parse_frame(payload)? {
                if let [b'S' | b'c' | b'A', ..] = data {
                    break;
                }
                self.note(payload, data)?;
            }
            length += size_of::<u32>() + payload.len();
        }
        Ok(length)
    }

    fn frame(&mut self, payload: &[u8], chunk: &mut Vec<u8>) -> Result<()> {
        let Frame::XLogData { start, data, .. } = parse_frame(payload)? else {
            push(chunk, &[payload]);
            return Ok(());
        };
        let sifted = match (self.block, data) {
            (None, [b'S', fields @ ..]) => self.begin_block(fields),
            (None, [b'c', fields @ ..]) => self.commit(payload, fields, chunk),
            (None, [b'A', fields @ ..]) => self.roll_back(fields),
            (None, _) => {
                push(chunk, &[payload]);
                self.note(payload, data)
            }
            (Some(_), [b'E', ..]) => {
                // A block may end between a type and the table that it belongs to, when its transaction is being rolled back.
                let aside = self.block.take().and_then(|top| self.aside.get_mut(&top));
                aside.into_iter().for_each(|aside| aside.types.clear());
                Ok(())
            }
            (Some(top), _) => {
                self.set_aside(top, payload, data)?;
                self.tell_lane(top);
                Ok(())
            }
        };
        sifted.map_err(|error| error.at(start))
    }

    /// Remembers what a message outside of streamed transactions announces.
    #[inline]
    fn note(&mut self, payload: &[u8], data: &[u8]) -> Result<()> {
        match data {
            [b'Y', ..] => push(&mut self.types, &[payload]),
            [b'R', fields @ ..] => {
                self.arrived += 1;
                let (table, number) = (take_u32(fields)?.0, self.arrived);
                let mut frames = std::mem::take(&mut self.types);
                push(&mut frames, &[payload]);
                let at = 0;
                let announcement = Announcement {
                    table,
                    number,
                    frames,
                    at,
                };
                self.known.insert(table, announcement);
            }
            [b'C', fields @ ..] => {
                if let Some(lane) = &mut self.lane {
                    lane.committed = lane.committed.max(end_of(fields)?);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn begin_block(&mut self, fields: &[u8]) -> Result<()> {
        let (xid, rest) = take_u32(fields)?;
        let is_first = rest == [1];
        if is_first == self.aside.contains_key(&xid) {
            let which = if is_first { "a second" } else { "no" };
            return Err(protocol(format!("transaction {xid} has {which} first block")));
        }
        if is_first {
            let aside = Aside::new()?;
            if let Some(lane) = &mut self.lane {
                lane.begin(xid, &aside.frames);
            }
            self.aside.insert(xid, aside);
        }
        self.block = Some(xid);
        Ok(())
    }

    /// Tells the lane of segments that are complete.
    #[inline]
    fn tell_lane(&mut self, top: u32) {
        let Some(lane) = self.lane.as_mut().filter(|lane| lane.current == Some(top)) else {
            return;
        };
        let Some(aside) = self.aside.get_mut(&top) else {
            return;
        };
        let segments = aside.frames.lock().segments();
        while aside.told < segments {
            aside.told += 1;
            lane.ahead.more(position(lane.committed));
        }
    }

    /// A message within a block.
    fn set_aside(&mut self, top: u32, payload: &[u8], data: &[u8]) -> Result<()> {
        let aside = self.aside.get_mut(&top);
        let aside = aside.ok_or_else(|| Error::bug("a block without its transaction"))?;
        let (Some(header), Some((tag, fields))) = (payload.get(..HEADER_BYTES), data.split_first()) else {
            return Err(short());
        };
        if *tag == b'O' {
            return aside.frames.lock().add(&[&length_of(&[payload]), payload]);
        }
        let (xid, rest) = take_u32(fields)?;
        if xid != top {
            aside.note_subtransaction(xid);
        }
        let parts = [header, &[*tag], rest];
        match tag {
            b'Y' => push(&mut aside.types, &parts),
            b'R' => {
                self.arrived += 1;
                let (table, number) = (take_u32(rest)?.0, self.arrived);
                let mut frames = std::mem::take(&mut aside.types);
                push(&mut frames, &parts);
                let at = aside.frames.lock().length();
                aside.announced.push(Announcement {
                    table,
                    number,
                    frames,
                    at,
                });
            }
            b'I' | b'U' | b'D' | b'T' | b'M' => {}
            tag => {
                return Err(protocol(format!(
                    "message '{}' within a block of transaction {top}",
                    tag.escape_ascii()
                )));
            }
        }
        let [header, tag, rest] = parts;
        // What is announced stays announced for the server, whatever becomes of the subtransaction.
        if xid == top || matches!(tag, [b'R' | b'Y']) {
            return aside.frames.lock().add(&[&length_of(&parts), header, tag, rest]);
        }
        let marked = [
            &[MARK],
            header.get(1..).unwrap_or_default(),
            &xid.to_be_bytes(),
            tag,
            rest,
        ];
        let length = length_of(&marked);
        let [mark, header, xid, tag, rest] = marked;
        aside.frames.lock().add(&[&length, mark, header, xid, tag, rest])
    }

    /// The end of a transaction, or of one of its subtransactions, that is rolled back.
    fn roll_back(&mut self, fields: &[u8]) -> Result<()> {
        let (top, rest) = take_u32(fields)?;
        let (xid, _) = take_u32(rest)?;
        let has_changes = self
            .aside
            .get(&top)
            .is_some_and(|aside| top == xid || aside.places.contains_key(&xid));
        if let Some(lane) = self.lane.as_mut().filter(|_| has_changes) {
            lane.take_back(top);
        }
        if top == xid {
            self.aside.remove(&top);
            return Ok(());
        }
        match self.aside.get_mut(&top) {
            Some(aside) => aside.roll_back(xid),
            None => Ok(()),
        }
    }

    /// Begins to hand out a transaction. Version 1 tells at its beginning when it commits.
    fn commit(&mut self, payload: &[u8], fields: &[u8], chunk: &mut Vec<u8>) -> Result<()> {
        let (xid, commit) = take_u32(fields)?;
        // flags 1, commit LSN 8, end LSN 8, commit time 8
        let (Some(header), Some(lsn), Some(time)) =
            (payload.get(..HEADER_BYTES), commit.get(1..9), commit.get(17..25))
        else {
            return Err(short());
        };
        let aside = self.aside.remove(&xid);
        let aside = aside.ok_or_else(|| protocol(format!("transaction {xid} commits without a block")))?;
        let (mut begin, mut end, mut alone) = (Vec::new(), Vec::new(), Vec::new());
        push(&mut begin, &[header, b"B", lsn, time, &xid.to_be_bytes()]);
        push(&mut end, &[header, b"C", commit]);
        push(&mut alone, &[payload]);
        for announcement in aside.announced {
            match self.known.get(&announcement.table) {
                // With the transaction an older one comes again; the server goes on with the newer.
                Some(known) if known.number > announcement.number => end.extend_from_slice(&known.frames),
                _ => {
                    alone.extend_from_slice(&announcement.frames);
                    self.known.insert(announcement.table, announcement);
                }
            }
        }
        let subtransactions: Vec<u32> = aside.began.into_iter().map(|(xid, _)| xid).collect();
        let ends = end_of(commit)?;
        let (mut asks_lane, mut after) = (false, Lsn::ZERO);
        if let Some(lane) = &mut self.lane {
            (asks_lane, after) = (lane.current == Some(xid), lane.committed);
            lane.committed = after.max(ends);
        }
        if !asks_lane {
            chunk.append(&mut begin);
        }
        let is_certain = subtransactions.is_empty();
        self.replay = Some(Replay {
            xid,
            asks_lane,
            after,
            ends,
            begin,
            frames: aside.frames,
            segment: 0,
            rolled_back: None,
            subtransactions,
            end,
            alone,
        });
        if is_certain {
            self.settle(HashSet::new());
        }
        Ok(())
    }
}

impl Lane {
    /// Gives it a transaction, if it is free.
    fn begin(&mut self, xid: u32, frames: &SharedSpill) {
        if let Some(current) = self.current.filter(|_| self.ahead.is_given_up()) {
            self.take_back(current);
        }
        // What was copied with a table is told by the commit, which is not known yet.
        if self.current.is_some() || self.committed < self.seeded {
            return;
        }
        let mut opening = Vec::new();
        let header = [b'w']
            .into_iter()
            .chain([0; HEADER_BYTES - 1])
            .collect::<Vec<u8>>();
        let (no_time, unknown) = (0_i64.to_be_bytes(), UNKNOWN_COMMIT.0.to_be_bytes());
        push(
            &mut opening,
            &[&header, b"B", &unknown, &no_time, &xid.to_be_bytes()],
        );
        self.ahead.begin(opening, frames.clone());
        self.current = Some(xid);
    }

    fn take_back(&mut self, xid: u32) {
        if self.current == Some(xid) {
            self.current = None;
            self.ahead.drop_it();
        }
    }

    /// Its transaction has committed, after everything up to `after`.
    fn end(&mut self, after: Lsn) {
        self.current = None;
        self.ahead.end(position(after));
    }
}

impl Aside {
    fn new() -> Result<Aside> {
        Ok(Aside {
            frames: SharedSpill::create()?,
            told: 0,
            began: Vec::new(),
            places: HashMap::new(),
            types: Vec::new(),
            announced: Vec::new(),
        })
    }

    fn note_subtransaction(&mut self, xid: u32) {
        if self.began.last().is_some_and(|(newest, _)| *newest == xid) || self.places.contains_key(&xid) {
            return;
        }
        self.places.insert(xid, self.began.len());
        let at = self.frames.lock().length();
        self.began.push((xid, at));
    }

    fn roll_back(&mut self, xid: u32) -> Result<()> {
        // One without changes has nothing here.
        let Some(place) = self.places.get(&xid).copied() else {
            return Ok(());
        };
        let Some((_, at)) = self.began.get(place).copied() else {
            return Err(Error::bug("a subtransaction without a place"));
        };
        for (gone, _) in self.began.drain(place..) {
            self.places.remove(&gone);
        }
        // The server announces every table again that the transaction goes on with (`pgoutput_stream_abort`).
        self.announced.retain(|announcement| announcement.at < at);
        self.types.clear();
        self.frames.lock().cut(at)
    }
}

/// Decodes what the lane is given of a transaction: its subtransactions are taken for kept.
#[derive(Clone, Debug)]
pub(super) struct LaneDecoder(pub(super) PgDecoder);

impl Decoder for LaneDecoder {
    fn decode(&mut self, chunk: &mut RawChunk, batch: &mut Batch) -> Result<()> {
        let frames = || split_frames(&chunk.bytes);
        if frames().any(|payload| payload.is_ok_and(|payload| payload.first() == Some(&MARK))) {
            unmark(&mut chunk.bytes, 0, &HashSet::new())?;
        }
        self.0.decode(chunk, batch)
    }

    fn tracker(&self) -> Box<dyn PositionTracker> {
        self.0.tracker()
    }
}

/// Takes the marks from the frames of `chunk` from `begin` on, and leaves out those of these subtransactions.
fn unmark(chunk: &mut Vec<u8>, begin: usize, rolled_back: &HashSet<u32>) -> Result<()> {
    let marked = chunk.split_off(begin);
    for payload in split_frames(&marked) {
        let payload = payload?;
        let Some((&[MARK], rest)) = payload.split_first_chunk() else {
            push(chunk, &[payload]);
            continue;
        };
        let (header, rest) = rest.split_at_checked(HEADER_BYTES - 1).ok_or_else(short)?;
        let (xid, message) = take_u32(rest)?;
        if !rolled_back.contains(&xid) {
            push(chunk, &[b"w", header, message]);
        }
    }
    Ok(())
}

/// The end of a transaction by the fields of its Commit message: flags 1, commit LSN 8, end LSN 8, commit time 8.
fn end_of(commit: &[u8]) -> Result<Lsn> {
    let end = commit.get(9..17).and_then(|bytes| bytes.first_chunk());
    Ok(Lsn(u64::from_be_bytes(*end.ok_or_else(short)?)))
}

fn position(lsn: Lsn) -> Position {
    Position::new(lsn.to_string())
}

/// Appends a frame: its length, then its parts.
fn push(out: &mut Vec<u8>, parts: &[&[u8]]) {
    out.extend_from_slice(&length_of(parts));
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// What precedes a frame. None is larger than what the server may send, which is 1 GB.
fn length_of(parts: &[&[u8]]) -> [u8; 4] {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    (length as u32).to_le_bytes()
}

fn take_u32(fields: &[u8]) -> Result<(u32, &[u8])> {
    let (number, rest) = fields.split_first_chunk().ok_or_else(short)?;
    Ok((u32::from_be_bytes(*number), rest))
}

#[cold]
fn short() -> Error {
    PgError::protocol("pgoutput version 2: a message is shorter than its fields").into()
}

#[cold]
fn protocol(what: String) -> Error {
    Error::new(Kind::Protocol, format!("pgoutput version 2: {what}"))
}

#[cfg(test)]
mod tests;
