//! A stream of frames after a beginning that makes sense: tables are known and a transaction is open.
//!
//! Whatever comes: no panic, batches keep their invariants, and chunks cut elsewhere tell the same.

use cdc_core::source::{Decoder, StreamStart};
use cdc_core::{Batch, Position, RawChunk};
use cdc_postgres::lsn::Lsn;
use cdc_postgres::pgoutput::encode::{self, Field, Frames, Old};
use cdc_postgres::pgoutput::{
    Begin, Column, Commit, LogicalMessage, Origin, PgDecoder, ProtocolVersion, Relation, TypeName,
};

use crate::limit::within;

/// For each chunk: what the decoder knows of tables, and a batch with its rows.
fn most_bytes(chunk: &RawChunk) -> usize {
    (64 << 10) + 32 * chunk.bytes.len()
}

pub(crate) fn run(bytes: &[u8]) {
    let frames = after(beginning(), bytes);
    let whole = told(vec![frames.chunk()]);
    let cuts: Vec<usize> = (1..frames.ends.len()).collect();
    assert_eq!(whole, told(frames.cut(&cuts)));
}

pub(crate) fn beginning() -> Frames {
    let mut frames = Frames::default();
    frames.message(Lsn(0x100), &begin());
    for (id, replica_identity) in [(1, b'd'), (2, b'f'), (3, b'n')] {
        frames.message(Lsn(0), &relation(id, replica_identity));
    }
    frames
}

/// Adds the messages of an input. What follows a `k` is a whole frame.
pub(crate) fn after(mut frames: Frames, bytes: &[u8]) -> Frames {
    for message in messages(bytes) {
        match message.split_first() {
            Some((b'k', rest)) => frames.frame(rest),
            _ => frames.message(Lsn(0x100), message),
        };
    }
    frames
}

/// Messages, each preceded by its length: a byte, or 255 and two bytes.
fn messages(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = bytes.split_first() {
        let (length, rest) = match rest.split_first_chunk() {
            Some((long, rest)) if *length == LONG => (usize::from(u16::from_be_bytes(*long)), rest),
            _ => (usize::from(*length), rest),
        };
        let (message, rest) = rest.split_at(length.min(rest.len()));
        messages.push(message);
        bytes = rest;
    }
    messages
}

/// In place of a length that does not fit into a byte.
const LONG: u8 = u8::MAX;

/// What was decoded, in words that do not depend on how the stream was cut, and the error that ended it.
pub(crate) fn told(chunks: Vec<RawChunk>) -> (String, Option<String>) {
    told_by(chunks, |decoder| decoder)
}

/// The same by what `of` makes of the decoder.
pub(crate) fn told_by<D: Decoder>(
    chunks: Vec<RawChunk>,
    of: impl FnOnce(PgDecoder) -> D,
) -> (String, Option<String>) {
    let start = StreamStart {
        from: Position::new("0/0"),
        stream: "job".into(),
        selection: Default::default(),
        seeded_to: Default::default(),
        aside: Default::default(),
        peer: None,
    };
    let mut decoder = of(PgDecoder::new(ProtocolVersion::V1, &start).unwrap());
    let mut told = String::new();
    for mut chunk in chunks {
        let mut batch = Batch::new();
        let mut decoded = Ok(());
        within(most_bytes(&chunk), || {
            decoded = decoder.decode(&mut chunk, &mut batch);
        });
        batch.verify().unwrap();
        for index in 0..batch.rows().len() {
            let event = batch.event(index).unwrap();
            told += &format!("{:?}", event.op());
            let columns = event.table().map_or(0, |table| table.columns.len());
            for column in 0..columns {
                told += &format!(" {:?} {:?}", event.before(column), event.after(column));
            }
            told.push('\n');
        }
        if let Err(error) = decoded {
            return (told, Some(error.to_string()));
        }
    }
    (told, None)
}

pub(crate) fn begin() -> Vec<u8> {
    encode::begin(&Begin {
        final_lsn: Lsn(0x100),
        commit_time: 5,
        xid: 1,
    })
}

pub(crate) fn commit() -> Vec<u8> {
    encode::commit(&Commit {
        commit_lsn: Lsn(0x100),
        end_lsn: Lsn(0x110),
        commit_time: 5,
    })
}

pub(crate) fn relation(id: u32, replica_identity: u8) -> Vec<u8> {
    let column = |name, key| Column {
        key,
        name,
        type_oid: 25,
        type_modifier: -1,
    };
    encode::relation(&Relation {
        id,
        namespace: "public",
        name: "t",
        replica_identity,
        columns: vec![column("a", true), column("b", false)],
    })
}

fn logical_message(transactional: bool) -> Vec<u8> {
    encode::logical_message(&LogicalMessage {
        transactional,
        lsn: Lsn(0x100),
        prefix: "p",
        content: b"c",
    })
}

/// Every kind of message, with its name.
pub(crate) fn every_message() -> Vec<(&'static str, Vec<u8>)> {
    let row = [Field::Text(b"1"), Field::Text(b"a")];
    let parts = [Field::Text(b"1"), Field::Unchanged];
    let origin = Origin {
        commit_lsn: Lsn(0x100),
        name: "o",
    };
    let type_name = TypeName {
        oid: 20_000,
        namespace: "app",
        name: "mood",
    };
    vec![
        ("begin", begin()),
        ("commit", commit()),
        ("delete", encode::delete(2, Old::Full(&row))),
        ("insert", encode::insert(1, &[Field::Text(b"1"), Field::Null])),
        (
            "insert-binary",
            encode::insert(1, &[Field::Binary(&[0, 1]), Field::Null]),
        ),
        ("message", logical_message(true)),
        ("origin", encode::origin(&origin)),
        ("relation", relation(1, b'd')),
        ("truncate", encode::truncate(true, true, &[1, 2])),
        ("type", encode::type_name(&type_name)),
        ("update", encode::update(1, None, &row)),
        ("update-full", encode::update(2, Some(Old::Full(&row)), &parts)),
        ("update-key", encode::update(1, Some(Old::Key(&row)), &row)),
    ]
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let row = [Field::Text(b"1"), Field::Text(b"a")];
    let key = [Field::Text(b"1"), Field::Null];
    let parts = [Field::Text(b"1"), Field::Unchanged];
    let keyed = [
        encode::insert(1, &row),
        encode::update(1, None, &parts),
        encode::update(1, Some(Old::Key(&key)), &[Field::Text(b"2"), Field::Unchanged]),
        encode::delete(1, Old::Key(&key)),
        commit(),
        begin(),
        encode::insert(1, &row),
        commit(),
    ];
    let full = [
        encode::insert(2, &row),
        encode::update(2, Some(Old::Full(&row)), &parts),
        encode::delete(2, Old::Full(&row)),
        encode::truncate(false, true, &[1, 2, 3]),
        commit(),
    ];
    let altered = [
        encode::insert(3, &row),
        relation(3, b'f'),
        logical_message(true),
        encode::delete(3, Old::Full(&row)),
        commit(),
        logical_message(false),
    ];
    let idle = [commit(), keepalive(), begin(), commit(), keepalive()];
    let long = [b'x'; 700];
    let long = [
        encode::insert(1, &[Field::Text(b"1"), Field::Text(&long)]),
        encode::update(
            2,
            Some(Old::Full(&[Field::Text(&long), Field::Null])),
            &[Field::Text(&long), Field::Unchanged],
        ),
        commit(),
    ];
    vec![
        ("altered", preceded_by_length(&altered)),
        ("full", preceded_by_length(&full)),
        ("idle", preceded_by_length(&idle)),
        ("keyed", preceded_by_length(&keyed)),
        ("long", preceded_by_length(&long)),
    ]
}

/// As an input has it.
pub(crate) fn keepalive() -> Vec<u8> {
    [&b"kk"[..], &[0; 16], &[1]].concat()
}

pub(crate) fn preceded_by_length(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        match u8::try_from(message.len()) {
            Ok(length) if length < LONG => bytes.push(length),
            _ => {
                bytes.push(LONG);
                bytes.extend_from_slice(&u16::try_from(message.len()).unwrap().to_be_bytes());
            }
        }
        bytes.extend_from_slice(message);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_decoded_to_their_end() {
        for (name, seed) in seeds() {
            let (told, error) = told(vec![after(beginning(), &seed).chunk()]);
            assert_eq!(error, None, "{name} after {told}");
            assert_eq!(told.is_empty(), name == "idle", "{name}");
        }
    }
}
