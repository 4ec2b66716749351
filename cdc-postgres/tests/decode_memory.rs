//! Decoding what has been decoded before in shape allocates nothing: memory is used again.

use std::collections::HashMap;

use cdc_core::source::{Decoder, StreamStart};
use cdc_core::{Batch, Position, RawChunk, TableSelection};
use cdc_postgres::lsn::Lsn;
use cdc_postgres::pgoutput::encode::{self, Field, Frames, Old};
use cdc_postgres::pgoutput::{Begin, Column, Commit, PgDecoder, ProtocolVersion, Relation};

const TABLE: u32 = 16_400;

fn relation(replica_identity: u8) -> Vec<u8> {
    let column = |name, key| Column {
        key,
        name,
        type_oid: 25,
        type_modifier: -1,
    };
    encode::relation(&Relation {
        id: TABLE,
        namespace: "public",
        name: "t",
        replica_identity,
        columns: vec![column("a", true), column("b", false), column("c", false)],
    })
}

/// 200 transactions of all row changes, from `commit` on. The relation is announced again by each.
fn chunks(mut commit: u64, replica_identity: u8) -> Vec<RawChunk> {
    let text = |text: &'static str| Field::Text(text.as_bytes());
    let old = [text("1"), text("two"), Field::Null];
    let old = if replica_identity == b'f' {
        Old::Full(&old)
    } else {
        Old::Key(&old)
    };
    let mut frames = Frames::default();
    for _ in 0..200 {
        let begin = Begin {
            final_lsn: Lsn(commit),
            commit_time: 5,
            xid: 1,
        };
        let end = Commit {
            commit_lsn: Lsn(commit),
            end_lsn: Lsn(commit + 8),
            commit_time: 5,
        };
        for message in [
            encode::begin(&begin),
            relation(replica_identity),
            encode::insert(TABLE, &[text("1"), text("some text"), Field::Null]),
            encode::update(TABLE, Some(old), &[text("2"), Field::Unchanged, text("x")]),
            encode::update(TABLE, None, &[text("2"), Field::Unchanged, Field::Null]),
            encode::delete(TABLE, old),
            encode::commit(&end),
        ] {
            frames.message(Lsn(commit), &message);
        }
        commit += 8;
    }
    frames.cut(&[3, 100, 701, 1000])
}

#[test]
fn the_second_pass_allocates_nothing() {
    for replica_identity in [b'd', b'f'] {
        let start = StreamStart {
            from: Position::new("0/0"),
            stream: "job".into(),
            selection: TableSelection::default(),
            seeded_to: HashMap::new(),
            aside: Default::default(),
            peer: None,
        };
        let mut decoder = PgDecoder::new(ProtocolVersion::V1, &start).unwrap();
        let mut batches: Vec<Batch> = Vec::new();
        for chunk in &mut chunks(0x1000, replica_identity) {
            let mut batch = Batch::new();
            decoder.decode(chunk, &mut batch).unwrap();
            batches.push(batch);
        }
        let rows = |batches: &[Batch]| batches.iter().map(|batch| batch.rows().len()).sum::<usize>();
        assert_eq!(rows(&batches), 800);

        let mut again = chunks(0x2000, replica_identity);
        let info = allocation_counter::measure(|| {
            for (chunk, batch) in again.iter_mut().zip(&mut batches) {
                batch.clear();
                decoder.decode(chunk, batch).unwrap();
            }
        });
        assert_eq!(rows(&batches), 800);
        assert_eq!(info.count_total, 0, "{info:?}");
    }
}
