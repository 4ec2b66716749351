//! Transactions that the server sends while they still run (protocol version 2), set aside until they commit.
//!
//! A large transaction costs the server least when it may send what it has gathered of it at once: until the commit it
//! would write every change to a file of its own and read it back. Here the blocks of such a transaction go to a
//! [`Spill`], without the transaction id that version 2 puts into each message; when its commit comes, they are handed
//! out as the transaction that version 1 would have sent then. Decoder, positions and accounting know of version 1 alone.
//!
//! What a subtransaction takes with it when it is rolled back is everything since its first change: they are nested, and
//! what follows the rollback comes after its message (protocol manual, "Streaming Replication Message Formats"). But that
//! message may fail to come: the server sends it only for subtransactions of which it had something in memory when it
//! streamed (`ReorderBufferAbort`, `RBTXN_IS_STREAMED`), which is not so after it had written more than 4096 changes to
//! disk. So the changes of subtransactions keep their id until the commit, when the server is asked which were rolled back.

#[cfg(any(test, feature = "testing"))]
mod alone;

use std::collections::{HashMap, HashSet};

use cdc_core::spill::{Spill, SpillReader};
use cdc_core::{Error, Kind, Result};

use super::CHUNK_BYTES;
use crate::error::PgError;
use crate::walsender::{Frame, parse_frame, split_frames};

#[cfg(any(test, feature = "testing"))]
pub use alone::StreamedFrames;

/// Bytes of XLogData before the plugin's message.
const HEADER_BYTES: usize = 25;
/// In what is set aside, the first byte of a frame that has the id of its subtransaction before the message.
const MARK: u8 = b's';

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
    /// a transaction that has committed and is being handed out
    replay: Option<Replay>,
    /// Type messages that belong to the next Relation message
    types: Vec<u8>,
    /// tables as they were last announced, outside of blocks or in a transaction that has committed
    known: HashMap<u32, Announcement>,
    /// numbers announcements in the order of their arrival
    arrived: u64,
}

/// A transaction that has not ended.
#[derive(Debug)]
struct Aside {
    frames: Spill,
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
    frames: SpillReader,
    /// its subtransactions
    subtransactions: Vec<u32>,
    /// those of them that were rolled back, once the server has told
    rolled_back: Option<HashSet<u32>>,
    /// what follows the frames: its commit
    end: Vec<u8>,
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
        self.replay.is_some() || self.at < self.read.len()
    }

    /// The subtransactions of which the server must say whether they were rolled back, before there is more.
    pub(super) fn doubtful(&self) -> Option<&[u32]> {
        let replay = self.replay.as_ref()?;
        replay
            .rolled_back
            .is_none()
            .then_some(replay.subtransactions.as_slice())
    }

    /// Takes the server's answer: those that were rolled back.
    pub(super) fn settle(&mut self, rolled_back: HashSet<u32>) {
        if let Some(replay) = &mut self.replay {
            replay.rolled_back = Some(rolled_back);
        }
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
            self.read.extend_from_slice(chunk.get(from..).unwrap_or_default());
            chunk.truncate(from);
        }
        self.fill(chunk)
    }

    /// Appends what is to be decoded next, as long as there is something and the chunk takes it.
    pub(super) fn fill(&mut self, chunk: &mut Vec<u8>) -> Result<()> {
        while chunk.len() < CHUNK_BYTES {
            if let Some(replay) = &mut self.replay {
                let Some(rolled_back) = &replay.rolled_back else {
                    break;
                };
                let begin = chunk.len();
                let more = replay.frames.next(chunk)?;
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
                self.read = read;
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
            (Some(top), _) => self.set_aside(top, payload, data),
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
            self.aside.insert(xid, Aside::new()?);
        }
        self.block = Some(xid);
        Ok(())
    }

    /// A message within a block.
    fn set_aside(&mut self, top: u32, payload: &[u8], data: &[u8]) -> Result<()> {
        let aside = self.aside.get_mut(&top);
        let aside = aside.ok_or_else(|| Error::bug("a block without its transaction"))?;
        let (Some(header), Some((tag, fields))) = (payload.get(..HEADER_BYTES), data.split_first()) else {
            return Err(short());
        };
        if *tag == b'O' {
            return aside.frames.add(&[&length_of(&[payload]), payload]);
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
                let at = aside.frames.length();
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
            return aside.frames.add(&[&length_of(&parts), header, tag, rest]);
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
        aside.frames.add(&[&length, mark, header, xid, tag, rest])
    }

    /// The end of a transaction, or of one of its subtransactions, that is rolled back.
    fn roll_back(&mut self, fields: &[u8]) -> Result<()> {
        let (top, rest) = take_u32(fields)?;
        let (xid, _) = take_u32(rest)?;
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
        push(chunk, &[header, b"B", lsn, time, &xid.to_be_bytes()]);
        let mut end = Vec::new();
        push(&mut end, &[header, b"C", commit]);
        for announcement in aside.announced {
            match self.known.get(&announcement.table) {
                // With the transaction an older one comes again; the server goes on with the newer.
                Some(known) if known.number > announcement.number => end.extend_from_slice(&known.frames),
                _ => drop(self.known.insert(announcement.table, announcement)),
            }
        }
        let subtransactions: Vec<u32> = aside.began.into_iter().map(|(xid, _)| xid).collect();
        self.replay = Some(Replay {
            frames: aside.frames.into_reader(),
            rolled_back: subtransactions.is_empty().then(HashSet::new),
            subtransactions,
            end,
        });
        Ok(())
    }
}

impl Aside {
    fn new() -> Result<Aside> {
        Ok(Aside {
            frames: Spill::create()?,
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
        self.began.push((xid, self.frames.length()));
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
        self.frames.cut(at)
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
