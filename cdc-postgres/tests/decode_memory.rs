//! Decoding and planning what was there before in shape allocates nothing, or next to nothing: memory is used again.

use std::collections::HashMap;
use std::sync::Arc;

use cdc_core::conflict::Policy;
use cdc_core::plan::{
    ApplyPlan, Piece, PlanMode, Planner, TargetCatalog, TargetColumn, TargetTable, UniqueKey,
};
use cdc_core::source::{Decoder, StreamStart};
use cdc_core::{Batch, Position, RawChunk, TableName, TableSelection};
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

/// How a transaction that commits there begins and ends.
fn ends(commit: u64) -> (Vec<u8>, Vec<u8>) {
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
    (encode::begin(&begin), encode::commit(&end))
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
        let (begin, end) = ends(commit);
        for message in [
            begin,
            relation(replica_identity),
            encode::insert(TABLE, &[text("1"), text("some text"), Field::Null]),
            encode::update(TABLE, Some(old), &[text("2"), Field::Unchanged, text("x")]),
            encode::update(TABLE, None, &[text("2"), Field::Unchanged, Field::Null]),
            encode::delete(TABLE, old),
            end,
        ] {
            frames.message(Lsn(commit), &message);
        }
        commit += 8;
    }
    frames.cut(&[3, 100, 701, 1000])
}

fn decoder() -> PgDecoder {
    let start = StreamStart {
        from: Position::new("0/0"),
        stream: "job".into(),
        selection: TableSelection::default(),
        seeded_to: HashMap::new(),
        aside: Default::default(),
        peer: None,
    };
    PgDecoder::new(ProtocolVersion::V1, &start).unwrap()
}

#[test]
fn the_second_pass_allocates_nothing() {
    for replica_identity in [b'd', b'f'] {
        let mut decoder = decoder();
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

/// Rows of a group, as the pipeline cuts them, and of a batch.
const GROUP: usize = 50_000;
const BATCH: usize = 2_000;
/// Plans under way: one being applied, one ready for it, one being made.
const PLANS: usize = 3;

/// The table of the stream on a target.
fn catalog() -> Arc<TargetCatalog> {
    let column = |name: &str| TargetColumn {
        name: name.to_owned(),
        type_name: "text".to_owned(),
        generated: false,
        byte_comparable: true,
        has_equality: true,
    };
    Arc::new(TargetCatalog::new(vec![TargetTable {
        name: TableName::new("public", "t"),
        columns: ["a", "b", "c"].map(column).to_vec(),
        keys: vec![UniqueKey {
            columns: vec![0],
            primary: true,
        }],
        unique_constraints: 1,
        order_visible: false,
        cascaded: false,
        sees_others: false,
        acts_on_others: false,
        partitioned: false,
        policy: Policy::Stop,
        references: Vec::new(),
    }]))
}

/// A transaction of `BATCH` rows with keys of their own: inserts, updates and deletes in turn.
fn transaction(number: u64) -> RawChunk {
    let commit = 0x1_0000 + number * 8;
    let mut frames = Frames::default();
    let (begin, end) = ends(commit);
    frames.message(Lsn(commit), &begin);
    frames.message(Lsn(commit), &relation(b'd'));
    for row in 0..BATCH as u64 {
        // As long as each other, so that no transaction needs more room than those before it.
        let key = format!("{:010}", number * BATCH as u64 + row);
        let fields = [
            Field::Text(key.as_bytes()),
            Field::Text(b"some text"),
            Field::Null,
        ];
        let message = match row % 3 {
            0 => encode::insert(TABLE, &fields),
            1 => encode::update(TABLE, None, &fields),
            _ => encode::delete(TABLE, Old::Key(&fields)),
        };
        frames.message(Lsn(commit), &message);
    }
    frames.message(Lsn(commit), &end);
    frames.chunk()
}

/// What decodes and plans, with the memory that goes round between it and the target.
struct Stages {
    decoder: PgDecoder,
    planner: Planner,
    batches: Vec<Arc<Batch>>,
    plans: Vec<ApplyPlan>,
    /// rows planned
    planned: u64,
}

impl Stages {
    fn run(&mut self, chunks: &mut [RawChunk]) {
        for group in chunks.chunks_mut(GROUP / BATCH) {
            let mut plan = self.plans.remove(0);
            for piece in plan.group.pieces.drain(..) {
                self.batches.push(piece.batch);
            }
            plan.clear();
            for chunk in group {
                let mut batch = self.batches.pop().unwrap_or_default();
                let filled = Arc::get_mut(&mut batch).expect("nobody else reads it");
                filled.clear();
                self.decoder.decode(chunk, filled).unwrap();
                let (txns, rows) = (0..batch.txns().len(), 0..batch.rows().len());
                plan.group.pieces.push(Piece { batch, txns, rows });
            }
            self.planner.compile_into(&mut plan, PlanMode::Net).unwrap();
            self.planned += plan.applied;
            self.plans.push(plan);
        }
    }
}

#[test]
fn the_second_million_rows_allocate_fewer_than_a_hundred_times() {
    const MILLION: u64 = 1_000_000 / BATCH as u64;
    let mut stages = Stages {
        decoder: decoder(),
        planner: Planner::new(catalog()),
        batches: Vec::new(),
        plans: (0..PLANS).map(|_| ApplyPlan::default()).collect(),
        planned: 0,
    };
    let mut first: Vec<_> = (0..MILLION).map(transaction).collect();
    let cold = allocation_counter::measure(|| stages.run(&mut first));
    drop(first);
    let mut second: Vec<_> = (MILLION..2 * MILLION).map(transaction).collect();
    let warm = allocation_counter::measure(|| stages.run(&mut second));
    assert_eq!(stages.planned, 2_000_000);
    assert!(cold.count_total >= 100, "{cold:?}");
    assert!(warm.count_total < 100, "{warm:?}");
}
