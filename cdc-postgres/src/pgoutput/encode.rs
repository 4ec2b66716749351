//! An encoder of the messages, for tests of what reads them: it writes what a server would, and on request what no
//! server would.

use cdc_core::RawChunk;

use super::message::{Begin, Column, Commit, LogicalMessage, Origin, Relation, TypeName};
use crate::lsn::Lsn;

/// A column of a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// `n`
    Null,
    /// `u`
    Unchanged,
    /// `t`
    Text(&'a [u8]),
    /// `b`
    Binary(&'a [u8]),
}

/// The old row that comes with an update or delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old<'a> {
    /// `K`: the replica identity's columns, the others NULL
    Key(&'a [Field<'a>]),
    /// `O`: the whole row
    Full(&'a [Field<'a>]),
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

fn schema_name(out: &mut Vec<u8>, name: &str) {
    text(out, if name == "pg_catalog" { "" } else { name });
}

fn tuple(out: &mut Vec<u8>, marker: u8, fields: &[Field<'_>]) {
    out.push(marker);
    out.extend((fields.len() as u16).to_be_bytes());
    for field in fields {
        let (kind, value) = match field {
            Field::Null => (b'n', None),
            Field::Unchanged => (b'u', None),
            Field::Text(value) => (b't', Some(value)),
            Field::Binary(value) => (b'b', Some(value)),
        };
        out.push(kind);
        if let Some(value) = value {
            out.extend((value.len() as u32).to_be_bytes());
            out.extend_from_slice(value);
        }
    }
}

fn old_tuple(out: &mut Vec<u8>, old: &Old<'_>) {
    match old {
        Old::Key(fields) => tuple(out, b'K', fields),
        Old::Full(fields) => tuple(out, b'O', fields),
    }
}

/// `B`
pub fn begin(begin: &Begin) -> Vec<u8> {
    let mut out = vec![b'B'];
    out.extend(begin.final_lsn.0.to_be_bytes());
    out.extend(begin.commit_time.to_be_bytes());
    out.extend(begin.xid.to_be_bytes());
    out
}

/// `C`
pub fn commit(commit: &Commit) -> Vec<u8> {
    let mut out = vec![b'C', 0];
    out.extend(commit.commit_lsn.0.to_be_bytes());
    out.extend(commit.end_lsn.0.to_be_bytes());
    out.extend(commit.commit_time.to_be_bytes());
    out
}

/// `O`
pub fn origin(origin: &Origin<'_>) -> Vec<u8> {
    let mut out = vec![b'O'];
    out.extend(origin.commit_lsn.0.to_be_bytes());
    text(&mut out, origin.name);
    out
}

/// `R`
pub fn relation(relation: &Relation<'_>) -> Vec<u8> {
    let mut out = vec![b'R'];
    out.extend(relation.id.to_be_bytes());
    schema_name(&mut out, relation.namespace);
    text(&mut out, relation.name);
    out.push(relation.replica_identity);
    out.extend((relation.columns.len() as u16).to_be_bytes());
    for Column {
        key,
        name,
        type_oid,
        type_modifier,
    } in &relation.columns
    {
        out.push(u8::from(*key));
        text(&mut out, name);
        out.extend(type_oid.to_be_bytes());
        out.extend(type_modifier.to_be_bytes());
    }
    out
}

/// `Y`
pub fn type_name(named: &TypeName<'_>) -> Vec<u8> {
    let mut out = vec![b'Y'];
    out.extend(named.oid.to_be_bytes());
    schema_name(&mut out, named.namespace);
    text(&mut out, named.name);
    out
}

/// `I`
pub fn insert(relation: u32, new: &[Field<'_>]) -> Vec<u8> {
    let mut out = vec![b'I'];
    out.extend(relation.to_be_bytes());
    tuple(&mut out, b'N', new);
    out
}

/// `U`
pub fn update(relation: u32, old: Option<Old<'_>>, new: &[Field<'_>]) -> Vec<u8> {
    let mut out = vec![b'U'];
    out.extend(relation.to_be_bytes());
    if let Some(old) = &old {
        old_tuple(&mut out, old);
    }
    tuple(&mut out, b'N', new);
    out
}

/// `D`
pub fn delete(relation: u32, old: Old<'_>) -> Vec<u8> {
    let mut out = vec![b'D'];
    out.extend(relation.to_be_bytes());
    old_tuple(&mut out, &old);
    out
}

/// `T`
pub fn truncate(cascade: bool, restart_identity: bool, relations: &[u32]) -> Vec<u8> {
    let mut out = vec![b'T'];
    out.extend((relations.len() as u32).to_be_bytes());
    out.push(u8::from(cascade) | u8::from(restart_identity) << 1);
    for relation in relations {
        out.extend(relation.to_be_bytes());
    }
    out
}

/// `M`
pub fn logical_message(message: &LogicalMessage<'_>) -> Vec<u8> {
    let mut out = vec![b'M', u8::from(message.transactional)];
    out.extend(message.lsn.0.to_be_bytes());
    text(&mut out, message.prefix);
    out.extend((message.content.len() as u32).to_be_bytes());
    out.extend_from_slice(message.content);
    out
}

/// Frames of a stream, as [`read_frames`](crate::walsender::WalSender::read_frames) lays them out.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    /// the frames, each with its length before it
    pub bytes: Vec<u8>,
    /// where each frame ends
    pub ends: Vec<usize>,
}

impl Frames {
    /// Adds a message at `start`.
    pub fn message(&mut self, start: Lsn, message: &[u8]) -> &mut Frames {
        let mut payload = vec![b'w'];
        payload.extend(start.0.to_be_bytes());
        payload.extend(start.0.to_be_bytes());
        payload.extend(0_i64.to_be_bytes());
        payload.extend_from_slice(message);
        self.frame(&payload)
    }

    /// Adds a keepalive.
    pub fn keepalive(&mut self, wal_end: Lsn, reply_requested: bool) -> &mut Frames {
        let mut payload = vec![b'k'];
        payload.extend(wal_end.0.to_be_bytes());
        payload.extend(0_i64.to_be_bytes());
        payload.push(u8::from(reply_requested));
        self.frame(&payload)
    }

    /// Adds a frame of any content.
    pub fn frame(&mut self, payload: &[u8]) -> &mut Frames {
        self.bytes.extend((payload.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(payload);
        self.ends.push(self.bytes.len());
        self
    }

    /// All frames as one chunk.
    pub fn chunk(&self) -> RawChunk {
        RawChunk::new(self.bytes.clone())
    }

    /// The frames cut into chunks before each of the frames numbered `cuts`, in rising order.
    pub fn cut(&self, cuts: &[usize]) -> Vec<RawChunk> {
        let border = |frame: &usize| match frame.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or(self.bytes.len()),
            None => 0,
        };
        let mut chunks = Vec::new();
        let mut from = 0;
        for to in cuts.iter().map(border).chain([self.bytes.len()]) {
            chunks.push(RawChunk::new(
                self.bytes.get(from..to).unwrap_or_default().to_vec(),
            ));
            from = to;
        }
        chunks
    }
}
