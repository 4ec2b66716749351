//! What the decode and plan threads allocate once their memory goes round: next to nothing.
//!
//! Both run as in a session, in threads of their own, on chunks as small as those that a server on the same machine sends:
//! a group then has many batches, and all of them have to come back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::budget::Budget;
use super::control::Control;
use super::decode::DecodeStage;
use super::grouper::{GroupLimits, Grouper};
use super::plan::{PlanStage, Work};
use super::pool::BatchPool;
use super::session::{BATCHES, BUDGET_GROUPS, CHUNKS, PLANS, PipelineConfig};
use super::stats::StreamStats;
use crate::batch::{Batch, Op};
use crate::conflict::Policy;
use crate::error::{Error, Result};
use crate::model::{
    CellReader, ColumnSchema, DataType, Encoding, Identity, Position, TableName, TableRole, TableSchema,
    TxnId, TxnRecord, Value,
};
use crate::plan::{ApplyPlan, Planner, TargetCatalog, TargetColumn, TargetTable, UniqueKey};
use crate::source::{Decoder, PositionTracker, RawChunk};

/// Rows of a chunk, each a transaction's.
const ROWS: u64 = 125;
/// Bytes of a row.
const WIDTH: usize = 200;
const MILLION: u64 = 1_000_000;
/// Longest wait for a thread: one that has failed keeps its ends of the channels.
const LIMIT: Duration = Duration::from_secs(60);
/// Chunks of a full group.
const GROUP: usize = 400;
/// Chunks that have to be on their way for the group before them to be full for certain, and the most that then can be: the
/// channels' and one in the decode thread's hands.
const AHEAD: usize = CHUNKS + BATCHES + 1;

/// Rows of `WIDTH` bytes that begin with their key: inserts, updates and deletes in turn.
#[derive(Debug)]
struct Keys(Arc<TableSchema>);

impl Decoder for Keys {
    fn decode(&mut self, chunk: &mut RawChunk, batch: &mut Batch) -> Result<()> {
        let (table, start) = (batch.add_table(&self.0)?, batch.place(&chunk.bytes)?);
        batch.begin(TxnRecord::new(TxnId::new(
            chunk.bytes.get(..8).unwrap_or_default(),
        )?));
        for place in (0..chunk.bytes.len()).step_by(WIDTH) {
            let (key, op) = (start + place as u32, (place / WIDTH) % 3);
            let image = batch.next_cell();
            batch.cell_at(key, 8);
            batch.cell_at(key + 8, WIDTH as u32 - 8);
            match op {
                0 => batch.push(Op::Insert, table, None, false, Some(image)),
                1 => batch.push(Op::Update, table, None, false, Some(image)),
                _ => batch.push(Op::Delete, table, Some(image), false, None),
            }
        }
        batch.adopt(&mut chunk.bytes);
        Ok(())
    }

    fn tracker(&self) -> Box<dyn PositionTracker> {
        Box::new(Nowhere)
    }
}

#[derive(Debug)]
pub(super) struct Nowhere;

impl PositionTracker for Nowhere {
    fn fold(&mut self, _: &TxnRecord) -> Result<()> {
        Ok(())
    }

    fn advance(&mut self, _: &Position) -> Result<()> {
        Ok(())
    }

    fn position(&self) -> Position {
        Position::new("")
    }

    fn fork(&self) -> Box<dyn PositionTracker> {
        Box::new(Nowhere)
    }

    fn is_after(&self, _: &TxnRecord, _: &Position) -> Result<bool> {
        Ok(true)
    }

    fn has_reached(&self, _: &Position) -> Result<bool> {
        Ok(true)
    }
}

#[derive(Debug)]
struct Unread;

impl CellReader for Unread {
    fn value<'a>(&self, _: &ColumnSchema, _: &'a [u8]) -> Result<Value<'a>> {
        Err(Error::bug("nobody asks for values"))
    }
}

const COLUMNS: [(&str, bool); 2] = [("key", true), ("value", false)];

pub(super) fn schema() -> Arc<TableSchema> {
    let column = |(name, identity): (&str, bool)| ColumnSchema {
        name: name.to_owned(),
        data_type: DataType::Text,
        declared: "text".into(),
        encoding: Encoding::new("text"),
        identity,
    };
    Arc::new(TableSchema {
        name: TableName::new("public", "t"),
        columns: COLUMNS.map(column).to_vec(),
        identity: Identity::Key,
        role: TableRole::User,
        reader: Arc::new(Unread),
    })
}

fn catalog() -> Arc<TargetCatalog> {
    let column = |(name, _): (&str, bool)| TargetColumn {
        name: name.to_owned(),
        type_name: "text".to_owned(),
        generated: false,
        byte_comparable: true,
        has_equality: true,
    };
    Arc::new(TargetCatalog::new(vec![TargetTable {
        name: TableName::new("public", "t"),
        columns: COLUMNS.map(column).to_vec(),
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

/// What the source and the apply thread have of the two threads between them.
struct Ends {
    emptied: Receiver<RawChunk>,
    work: Receiver<Work>,
    recycled_plans: Sender<Box<ApplyPlan>>,
    pool: Arc<BatchPool>,
}

fn threads() -> (DecodeStage, PlanStage, Ends) {
    let config = PipelineConfig::default();
    let budget = Budget::new(config.group_bytes * BUDGET_GROUPS);
    let pool = BatchPool::new(&budget);
    let limits = GroupLimits {
        rows: config.group_rows,
        bytes: config.group_bytes,
    };
    let (emptied_tx, emptied) = bounded(CHUNKS);
    let (work_tx, work) = bounded(1);
    let (recycled_plans, recycled) = bounded(PLANS);
    let decode = DecodeStage {
        decoder: Box::new(Keys(schema())),
        chunks: bounded(0).1,
        emptied: emptied_tx,
        batches: bounded(0).0,
        pool: Arc::clone(&pool),
        budget,
        stats: Arc::new(StreamStats::default()),
    };
    let plan = PlanStage {
        grouper: Grouper::new(limits, Box::new(Nowhere)),
        planner: Planner::new(catalog()),
        batches: bounded(0).1,
        free: bounded(0).1,
        work: work_tx,
        recycled,
        control: Arc::new(Control::new()),
    };
    let ends = Ends {
        emptied,
        work,
        recycled_plans,
        pool,
    };
    (decode, plan, ends)
}

impl Ends {
    /// Sends a million rows through both threads in groups of `GROUP` chunks, holding back as many plans as the apply thread
    /// does when it is slow. How often each thread allocated.
    fn million(&self, decode: &mut DecodeStage, plan: &mut PlanStage, from: u64) -> [u64; 2] {
        let (chunk_tx, chunk_rx) = bounded(CHUNKS);
        let (batch_tx, batch_rx) = bounded(BATCHES);
        decode.chunks = chunk_rx;
        decode.batches = batch_tx;
        plan.batches = batch_rx.clone();
        let (free, free_rx) = bounded(1);
        plan.free = free_rx;
        // Both ends go with what is below, so that the threads end when it fails.
        std::thread::scope(move |scope| {
            let chunk_tx = chunk_tx;
            let decode = scope.spawn(|| {
                let mut ended = Ok(());
                let counted = allocation_counter::measure(|| ended = decode.run());
                // Tells those at the other ends that this was all.
                (decode.chunks, decode.batches) = (bounded(0).1, bounded(0).0);
                ended.unwrap();
                counted.count_total
            });
            let plan = scope.spawn(|| {
                let mut ended = Ok(());
                let counted = allocation_counter::measure(|| ended = plan.run());
                (plan.batches, plan.free) = (bounded(0).1, bounded(0).1);
                ended.unwrap();
                counted.count_total
            });
            let mut chunks = (from..from + MILLION).step_by(ROWS as usize).map(|first| {
                let mut chunk = self.emptied.try_recv().unwrap_or_default();
                for key in first..first + ROWS {
                    chunk.bytes.extend_from_slice(&key.to_be_bytes());
                    chunk.bytes.resize(chunk.bytes.len() + WIDTH - 8, b'x');
                }
                chunk
            });
            let send = |chunk| chunk_tx.send_timeout(chunk, LIMIT).unwrap();
            chunks.by_ref().take(AHEAD).for_each(send);
            let (mut rows, mut held) = (0, VecDeque::new());
            while rows < MILLION {
                let sent = chunks.by_ref().take(GROUP).map(send).count();
                // As many batches as can be on their way, every time.
                let deadline = Instant::now() + LIMIT;
                while sent == GROUP && !(chunk_tx.is_full() && batch_rx.is_full()) {
                    assert!(Instant::now() < deadline, "a thread has ended");
                    std::thread::yield_now();
                }
                free.send_timeout((), LIMIT).unwrap();
                let Work::Plan { plan, .. } = self.work.recv_timeout(LIMIT).unwrap() else {
                    panic!("not a plan");
                };
                // With nothing behind it the last may go in parts.
                assert!(plan.group.pieces.len() == GROUP || sent < GROUP);
                rows += plan.applied;
                held.push_back(plan);
                if held.len() == PLANS {
                    held.pop_front().into_iter().for_each(|plan| self.give_back(plan));
                }
            }
            held.into_iter().for_each(|plan| self.give_back(plan));
            drop(chunk_tx);
            [decode.join().unwrap(), plan.join().unwrap()]
        })
    }

    fn give_back(&self, mut plan: Box<ApplyPlan>) {
        let pieces = plan.group.pieces.drain(..);
        pieces.for_each(|piece| self.pool.give(piece.batch));
        plan.clear();
        let _ = self.recycled_plans.try_send(plan);
    }
}

#[test]
fn the_second_million_rows_are_decoded_and_planned_with_fewer_than_a_hundred_allocations() {
    let (mut decode, mut plan, ends) = threads();
    let cold = ends.million(&mut decode, &mut plan, 0);
    let warm = ends.million(&mut decode, &mut plan, MILLION);
    assert!(cold[0] >= GROUP as u64 && cold[1] > 0, "{cold:?}");
    assert!(warm.iter().all(|count| *count < 100), "{warm:?}");
}
