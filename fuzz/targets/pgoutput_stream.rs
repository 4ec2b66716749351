//! A stream of frames after a beginning that makes sense: tables are known and a transaction is open.
//!
//! Whatever comes: no panic, batches keep their invariants, and chunks cut elsewhere tell the same.
#![no_main]

use cdc_core::source::{Decoder, StreamStart};
use cdc_core::{Batch, Position, RawChunk};
use cdc_postgres::lsn::Lsn;
use cdc_postgres::pgoutput::encode::{self, Frames};
use cdc_postgres::pgoutput::{Begin, Column, PgDecoder, ProtocolVersion, Relation};
use libfuzzer_sys::fuzz_target;

fn beginning() -> Frames {
    let mut frames = Frames::default();
    let begin = Begin {
        final_lsn: Lsn(0x100),
        commit_time: 5,
        xid: 1,
    };
    frames.message(Lsn(0x100), &encode::begin(&begin));
    for (id, replica_identity) in [(1, b'd'), (2, b'f'), (3, b'n')] {
        let column = |name, key| Column {
            key,
            name,
            type_oid: 25,
            type_modifier: -1,
        };
        let relation = Relation {
            id,
            namespace: "public",
            name: "t",
            replica_identity,
            columns: vec![column("a", true), column("b", false)],
        };
        frames.message(Lsn(0), &encode::relation(&relation));
    }
    frames
}

/// Messages, each preceded by a byte that is its length.
fn messages(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = bytes.split_first() {
        let (message, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        messages.push(message);
        bytes = rest;
    }
    messages
}

/// What was decoded, in words that do not depend on how the stream was cut; ends at the first error.
fn told(chunks: Vec<RawChunk>) -> String {
    let start = StreamStart {
        from: Position::new("0/0"),
        stream: "job".into(),
        selection: Default::default(),
        seeded_to: Default::default(),
        aside: Default::default(),
        peer: None,
    };
    let mut decoder = PgDecoder::new(ProtocolVersion::V1, &start).unwrap();
    let mut told = String::new();
    for mut chunk in chunks {
        let mut batch = Batch::new();
        let decoded = decoder.decode(&mut chunk, &mut batch);
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
            return told + &error.to_string();
        }
    }
    told
}

fuzz_target!(|bytes: &[u8]| {
    let mut frames = beginning();
    for message in messages(bytes) {
        match message.split_first() {
            Some((b'k', rest)) => frames.frame(rest),
            _ => frames.message(Lsn(0x100), message),
        };
    }
    let whole = told(vec![frames.chunk()]);
    let cuts: Vec<usize> = (1..frames.ends.len()).collect();
    assert_eq!(whole, told(frames.cut(&cuts)));
});
