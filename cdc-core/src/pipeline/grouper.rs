//! Gathers batches into groups of whole source transactions, or parts of one that is too large.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::batch::Batch;
use crate::engine::Barrier;
use crate::error::Result;
use crate::model::Position;
use crate::plan::{Piece, TxnGroup};
use crate::source::PositionTracker;

/// What the grouper can do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Gathered {
    /// Nothing is gathered.
    Nothing,
    /// Something is gathered that may be applied now or grow further.
    Some,
    /// A source transaction is gathered only in part and small: it waits for its rest.
    Incomplete,
    /// What is gathered has to be applied before more is added.
    Full,
}

/// When a group is full: as soon as it has so much, or more.
#[derive(Debug, Clone, Copy)]
pub struct GroupLimits {
    /// changed rows
    pub rows: usize,
    /// what its batches have in memory
    pub bytes: usize,
}

/// Holds what is decoded but not yet planned.
pub struct Grouper {
    limits: GroupLimits,
    group: TxnGroup,
    rows: usize,
    bytes: usize,
    /// whether the newest transaction taken has not ended
    open: bool,
    /// whether the group must not grow whatever its size (it holds, or is followed by, what stands alone)
    sealed: bool,
    /// batches not taken yet, with the next transaction to take
    waiting: VecDeque<(Arc<Batch>, usize)>,
    idle: Option<Position>,
    /// follows what has been taken, to know when a barrier is reached
    taken: Box<dyn PositionTracker>,
}

impl Grouper {
    /// Holds nothing yet. The tracker stands where the stream begins.
    pub fn new(limits: GroupLimits, tracker: Box<dyn PositionTracker>) -> Self {
        Self {
            limits,
            group: TxnGroup::default(),
            rows: 0,
            bytes: 0,
            open: false,
            sealed: false,
            waiting: VecDeque::new(),
            idle: None,
            taken: tracker,
        }
    }

    /// Adds a decoded batch.
    pub fn add(&mut self, batch: Arc<Batch>) {
        self.waiting.push_back((batch, 0));
    }

    /// Moves waiting transactions into the group as far as limits and barrier allow.
    ///
    /// # Errors
    /// When the tracker cannot place a transaction among those before it.
    pub fn gather(&mut self, barrier: Option<&Barrier>) -> Result<Gathered> {
        while let Some((batch, next)) = self.waiting.pop_front() {
            let end = self.take(&batch, next, barrier)?;
            if end < batch.txns().len() {
                self.waiting.push_front((batch, end));
                break;
            }
            if let Some(position) = batch.idle() {
                self.idle = Some(position.clone());
                self.taken.advance(position)?;
            }
        }
        Ok(match (self.group.pieces.is_empty(), self.full(), self.open) {
            (true, _, _) => Gathered::Nothing,
            (false, true, _) => Gathered::Full,
            (false, false, true) => Gathered::Incomplete,
            (false, false, false) => Gathered::Some,
        })
    }

    /// Takes transaction records of `batch` from number `next` on; returns the first one not taken.
    fn take(&mut self, batch: &Arc<Batch>, next: usize, barrier: Option<&Barrier>) -> Result<usize> {
        let mut end = next;
        for txn in batch.txns().iter().skip(next) {
            if self.full() {
                break;
            }
            if txn.first {
                let held = match barrier {
                    None => false,
                    Some(Barrier::Hold) => true,
                    Some(Barrier::HoldAt(position)) => self.taken.is_after(txn, position)?,
                };
                let alone = txn.kind.is_alone() && !(self.group.pieces.is_empty() && end == next);
                if held || alone {
                    self.sealed |= alone;
                    break;
                }
            }
            self.rows += txn.rows.len();
            self.open = !txn.last;
            if txn.last {
                self.taken.fold(txn)?;
                self.idle = None;
                self.sealed |= txn.kind.is_alone();
            }
            end += 1;
        }
        if end > next {
            let txns = batch.txns();
            let rows = txns[next].rows.start as usize..txns[end - 1].rows.end as usize;
            // All of it, also for a part: that much of the memory budget is held until the group is done. A group that
            // counted less could wait for its rest while the reader waits for the budget.
            self.bytes += batch.footprint();
            self.group.pieces.push(Piece {
                batch: Arc::clone(batch),
                txns: next..end,
                rows,
            });
        }
        Ok(end)
    }

    fn full(&self) -> bool {
        self.sealed || self.rows >= self.limits.rows || self.bytes >= self.limits.bytes
    }

    /// Puts the group in the place of a former one, whose memory is used again; whether its last transaction has ended.
    pub fn cut(&mut self, group: &mut TxnGroup) -> bool {
        group.pieces.clear();
        std::mem::swap(&mut self.group, group);
        self.rows = 0;
        self.bytes = 0;
        self.sealed = false;
        !self.open
    }

    /// Whether batches wait to be taken.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The newest idle position, once everything before it has been cut.
    pub fn take_idle(&mut self) -> Option<Position> {
        if self.group.pieces.is_empty() && !self.open {
            self.idle.take()
        } else {
            None
        }
    }

    /// Whether everything up to the barrier has been taken.
    ///
    /// # Errors
    /// When the tracker cannot place what comes next.
    pub fn has_reached(&self, barrier: &Barrier) -> Result<bool> {
        if self.open {
            return Ok(false);
        }
        match barrier {
            Barrier::Hold => Ok(true),
            Barrier::HoldAt(position) => {
                let next = self
                    .waiting
                    .front()
                    .and_then(|(batch, next)| batch.txns().get(*next));
                match next {
                    Some(txn) => self.taken.is_after(txn, position),
                    None => self.taken.has_reached(position),
                }
            }
        }
    }
}
