//! What the lane decodes of a transaction that still runs: frames with the marks of their subtransactions.
//!
//! Whatever comes: no panic, batches keep their invariants, and chunks cut elsewhere tell the same.

use cdc_core::RawChunk;
use cdc_postgres::lsn::Lsn;
use cdc_postgres::pgoutput::encode::{self, Field, Frames, Old};
use cdc_postgres::source::lane_decoder;

use crate::pgoutput_stream::{after, beginning, commit, keepalive, preceded_by_length, told_by};

pub(crate) fn run(bytes: &[u8]) {
    let frames = after(beginning(), bytes);
    let whole = told(vec![frames.chunk()]);
    let cuts: Vec<usize> = (1..frames.ends.len()).collect();
    let in_parts = told(frames.cut(&cuts));
    assert_eq!(whole.1.is_some(), in_parts.1.is_some(), "{whole:?} {in_parts:?}");
    // Marks that are malformed refuse all of a chunk.
    assert!(
        whole.1.is_some() || whole.0 == in_parts.0,
        "{whole:?} {in_parts:?}"
    );
}

fn told(chunks: Vec<RawChunk>) -> (String, Option<String>) {
    told_by(chunks, lane_decoder)
}

/// As an input has it: a frame that says of which subtransaction the message is.
fn marked(xid: u32, message: &[u8]) -> Vec<u8> {
    let mut frames = Frames::default();
    frames.message(Lsn(0x100), message);
    let payload = frames.bytes.get(4..).unwrap_or_default();
    let (header, message) = payload.split_at(25);
    [
        &b"ks"[..],
        header.get(1..).unwrap_or_default(),
        &xid.to_be_bytes(),
        message,
    ]
    .concat()
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let row = [Field::Text(b"1"), Field::Text(b"a")];
    let insert = encode::insert(1, &row);
    let delete = encode::delete(1, Old::Key(&row));
    vec![
        (
            "marked",
            preceded_by_length(&[marked(16, &insert), marked(17, &delete), keepalive(), commit()]),
        ),
        (
            "mixed",
            preceded_by_length(&[insert.clone(), marked(17, &insert), delete, commit()]),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_decoded_to_their_end() {
        for (name, seed) in seeds() {
            let (told, error) = told(vec![after(beginning(), &seed).chunk()]);
            assert_eq!(error, None, "{name} after {told}");
            assert!(told.lines().count() >= 2, "{name}: {told}");
        }
    }
}
