//! A stream of protocol version 2: blocks of transactions that still run, as they are set aside and handed on as
//! version 1, and what is decoded of that.
//!
//! Whatever comes: no panic, and chunks cut elsewhere tell the same.

use cdc_core::RawChunk;
use cdc_postgres::lsn::Lsn;
use cdc_postgres::pgoutput::encode::{self, Field, Frames, Old};
use cdc_postgres::source::StreamedFrames;

use crate::limit::within;
use crate::pgoutput_stream::{
    after, begin, beginning, commit, keepalive, preceded_by_length, relation, told,
};

/// A transaction that is begun costs more than the message that begins it.
fn most_bytes(chunk: &RawChunk) -> usize {
    (64 << 10) + 64 * chunk.bytes.len()
}

/// What is handed on at a time is as large as a chunk, whatever is set aside; a buffer grows by doubling.
const MOST_HANDED_ON: usize = 1 << 20;

/// The first byte says which subtransactions the server would say were rolled back.
pub(crate) fn run(bytes: &[u8]) {
    let Some((rolled_back, bytes)) = bytes.split_first() else {
        return;
    };
    let frames = after(known(), bytes);
    let cuts: Vec<usize> = (1..frames.ends.len()).collect();
    let whole = handed_on(vec![frames.chunk()], *rolled_back);
    let in_parts = handed_on(frames.cut(&cuts), *rolled_back);
    assert_eq!(whole.1.is_some(), in_parts.1.is_some(), "{whole:?} {in_parts:?}");
    // A read that fails hands nothing on.
    let refused = whole.1.is_some();
    let (whole, in_parts) = (told(whole.0), told(in_parts.0));
    assert!(refused || whole == in_parts, "{whole:?} {in_parts:?}");
}

/// Three tables, and no transaction that is open.
fn known() -> Frames {
    let mut frames = beginning();
    frames.message(Lsn(0x100), &commit());
    frames
}

/// The chunks that the source hands on, and the error that ended it.
fn handed_on(chunks: Vec<RawChunk>, rolled_back: u8) -> (Vec<RawChunk>, Option<String>) {
    let mut streamed = StreamedFrames::default();
    let mut out = Vec::new();
    for mut chunk in chunks {
        let mut done = Ok(());
        within(most_bytes(&chunk), || done = streamed.sift(&mut chunk));
        let mut more = Ok(true);
        while done.is_ok() && matches!(more, Ok(true)) {
            out.push(std::mem::take(&mut chunk));
            within(MOST_HANDED_ON, || {
                more = streamed.next(|xid| rolled_back >> (xid % 8) & 1 == 1, &mut chunk);
            });
        }
        if let Err(error) = done.and(more) {
            return (out, Some(error.to_string()));
        }
    }
    (out, None)
}

fn block(top: u32, first: bool) -> Vec<u8> {
    [&b"S"[..], &top.to_be_bytes(), &[u8::from(first)]].concat()
}

fn of(xid: u32, message: &[u8]) -> Vec<u8> {
    let (tag, fields) = message.split_at(1);
    [tag, &xid.to_be_bytes(), fields].concat()
}

fn rolled_back(top: u32, xid: u32) -> Vec<u8> {
    [&b"A"[..], &top.to_be_bytes(), &xid.to_be_bytes()].concat()
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let row = [Field::Text(b"1"), Field::Text(b"a")];
    let insert = encode::insert(1, &row);
    let end = || b"E".to_vec();
    let commit_of = |xid| of(xid, &[&b"c"[..], commit().get(1..).unwrap_or_default()].concat());
    let blocks = [
        block(16, true),
        of(16, &relation(1, b'd')),
        of(16, &insert),
        end(),
        begin(),
        insert.clone(),
        commit(),
        keepalive(),
        block(16, false),
        of(16, &encode::delete(1, Old::Key(&row))),
        end(),
        commit_of(16),
    ];
    let savepoints = [
        block(16, true),
        of(16, &insert),
        of(17, &insert),
        of(18, &insert),
        end(),
        rolled_back(16, 18),
        block(16, false),
        of(17, &encode::update(1, None, &row)),
        of(19, &insert),
        end(),
        commit_of(16),
    ];
    let two_at_once = [
        block(16, true),
        of(16, &insert),
        end(),
        block(24, true),
        of(24, &relation(2, b'd')),
        of(24, &encode::truncate(false, false, &[1, 2])),
        end(),
        rolled_back(16, 16),
        relation(2, b'f'),
        commit_of(24),
        begin(),
        encode::delete(2, Old::Full(&row)),
        commit(),
    ];
    // 17 is taken, 19 is rolled back without the server having said so.
    let seed = |messages: &[Vec<u8>]| [&[1 << 3][..], &preceded_by_length(messages)].concat();
    vec![
        ("blocks", seed(&blocks)),
        ("savepoints", seed(&savepoints)),
        ("two-at-once", seed(&two_at_once)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_decoded_to_their_end() {
        let mut rows = Vec::new();
        for (name, seed) in seeds() {
            let chunk = after(known(), seed.get(1..).unwrap()).chunk();
            let (chunks, refused) = handed_on(vec![chunk], *seed.first().unwrap());
            assert_eq!(refused, None, "{name}");
            let (told, error) = told(chunks);
            assert_eq!(error, None, "{name} after {told}");
            rows.push((name, told.lines().count()));
        }
        assert_eq!(rows, [("blocks", 3), ("savepoints", 3), ("two-at-once", 2)]);
    }
}
