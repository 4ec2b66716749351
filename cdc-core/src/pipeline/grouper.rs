//! Gathers batches into groups of whole source transactions, or of a part of one that is too large.
//!
//! A transaction that is applied in parts has a target transaction of its own: others would be rolled back with it when a
//! later part is refused, and it with what follows it.

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
    /// whether the group goes on with a transaction whose beginning has been cut
    continued: bool,
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
            continued: false,
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
        Ok(if self.group.pieces.is_empty() {
            Gathered::Nothing
        } else if self.full() {
            Gathered::Full
        } else if self.open && self.beginning_of_rest().is_none() {
            Gathered::Incomplete
        } else {
            Gathered::Some
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
                self.sealed |= txn.kind.is_alone() || std::mem::take(&mut self.continued);
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

    /// Puts what is to be applied next in the place of a former group, whose memory is used again: the whole transactions, and
    /// part of another only by itself. Whether its last transaction has ended.
    pub fn cut(&mut self, group: &mut TxnGroup) -> bool {
        let rest = self.beginning_of_rest();
        group.pieces.clear();
        std::mem::swap(&mut self.group, group);
        (self.rows, self.bytes, self.sealed) = (0, 0, false);
        let Some((number, txn)) = rest else {
            self.continued = self.open;
            return !self.open;
        };
        let last = &mut group.pieces[number];
        let row = last.batch.txns()[txn].rows.start as usize;
        let begun = Piece {
            batch: Arc::clone(&last.batch),
            txns: txn..last.txns.end,
            rows: row..last.rows.end,
        };
        (last.txns.end, last.rows.end) = (txn, row);
        let kept = std::iter::once(begun).chain(group.pieces.drain(number + 1..));
        self.group.pieces.extend(kept);
        group.pieces.pop_if(|piece| piece.txns.is_empty());
        for piece in &self.group.pieces {
            self.rows += piece.rows.len();
            self.bytes += piece.batch.footprint();
        }
        true
    }

    /// Where the transaction that has not ended begins, if whole ones come before it in the group: the number of a piece and
    /// of a transaction record.
    fn beginning_of_rest(&self) -> Option<(usize, usize)> {
        if !self.open {
            return None;
        }
        let pieces = self.group.pieces.iter().enumerate();
        let begins = pieces.rev().find_map(|(number, piece)| {
            let txns = piece.batch.txns();
            let begins = piece.txns.clone().rev().find(|txn| txns[*txn].first)?;
            Some((number, begins))
        })?;
        let whole = begins > (0, self.group.pieces.first()?.txns.start);
        whole.then_some(begins)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Op;
    use crate::model::{TxnId, TxnKind, TxnRecord, TxnSeq};
    use crate::pipeline::allocations::{Nowhere, schema};
    use crate::testing::Rng;

    /// What is followed of a transaction record: transaction, rows, whether it begins and ends there.
    type Part = (u64, usize, bool, bool);

    /// Every fifth has been applied ahead.
    fn kind(number: u64) -> TxnKind {
        if number % 5 == 4 {
            TxnKind::Ahead
        } else {
            TxnKind::Log
        }
    }

    fn record((number, _, first, last): Part) -> TxnRecord {
        TxnRecord {
            seq: TxnSeq(number),
            kind: kind(number),
            first,
            last,
            ..TxnRecord::new(TxnId::new(&[]).unwrap())
        }
    }

    fn batch(parts: &[Part]) -> Arc<Batch> {
        let mut batch = Batch::new();
        let table = batch.add_table(&schema()).unwrap();
        for part in parts {
            batch.begin(record(*part));
            for _ in 0..part.1 {
                let mut image = batch.image();
                image.null().null();
                let image = image.finish();
                batch.push(Op::Insert, table, None, false, Some(image));
            }
        }
        Arc::new(batch)
    }

    fn parts(group: &TxnGroup) -> Vec<Part> {
        let of_piece = |piece: &Piece| {
            let txns = &piece.batch.txns()[piece.txns.clone()];
            let (first, last) = (&txns[0].rows, &txns[txns.len() - 1].rows);
            assert_eq!(piece.rows, first.start as usize..last.end as usize);
            let part = |txn: &TxnRecord| (txn.seq.0, txn.rows.len(), txn.first, txn.last);
            txns.iter().map(part).collect::<Vec<Part>>()
        };
        group.pieces.iter().flat_map(of_piece).collect()
    }

    /// Transactions of random sizes, cut into batches anywhere.
    fn stream(rng: &mut Rng) -> Vec<Vec<Part>> {
        let mut batches = vec![Vec::new()];
        for number in 0..1 + rng.below(30) as u64 {
            let most = if rng.percent(20) { 60 } else { 6 };
            let (mut rows, mut first) = (rng.below(most), true);
            if kind(number) == TxnKind::Ahead {
                batches.last_mut().unwrap().push((number, 0, true, true));
                continue;
            }
            loop {
                let part = rng.below(rows + 1);
                let last = part == rows && rng.percent(80);
                batches.last_mut().unwrap().push((number, part, first, last));
                (rows, first) = (rows - part, false);
                if last {
                    break;
                }
                batches.push(Vec::new());
            }
            if rng.percent(30) {
                batches.push(Vec::new());
            }
        }
        batches
    }

    #[test]
    fn a_group_has_whole_transactions_or_a_part_of_one_that_is_too_large() {
        let (mut in_parts, mut split) = (0, 0);
        for seed in 0..2_000 {
            let mut rng = Rng::new(seed);
            let batches = stream(&mut rng);
            let limits = GroupLimits {
                rows: 1 + rng.below(20),
                bytes: if rng.percent(50) {
                    usize::MAX
                } else {
                    batch(&batches[0]).footprint() * (1 + rng.below(6))
                },
            };
            let reaches = |pieces: &[Piece], rows: usize| {
                let bytes: usize = pieces.iter().map(|piece| piece.batch.footprint()).sum();
                rows >= limits.rows || bytes >= limits.bytes
            };
            let mut grouper = Grouper::new(limits, Box::new(Nowhere));
            let (mut taken, mut group) = (Vec::new(), TxnGroup::default());
            for parts_of_batch in &batches {
                grouper.add(batch(parts_of_batch));
                loop {
                    let gathered = grouper.gather(None).unwrap();
                    // A rest that is waited for must have room.
                    assert!(gathered != Gathered::Incomplete || !reaches(&grouper.group.pieces, 0));
                    // As the plan thread does, which need not take what may still grow.
                    let cut = gathered == Gathered::Full || (gathered == Gathered::Some && rng.percent(30));
                    if !cut {
                        break;
                    }
                    let ended = grouper.cut(&mut group);
                    let parts = parts(&group);
                    let (first, last) = (parts[0], parts[parts.len() - 1]);
                    let rows: usize = parts.iter().map(|part| part.1).sum();
                    assert_eq!(ended, last.3, "seed {seed}");
                    let is_alone = parts.iter().any(|part| kind(part.0) == TxnKind::Ahead);
                    assert!(!is_alone || parts.len() == 1, "seed {seed}: {parts:?}");
                    if first.2 && last.3 {
                        split += u32::from(!grouper.group.pieces.is_empty());
                    } else {
                        in_parts += 1;
                        assert!(
                            parts.iter().all(|part| part.0 == first.0),
                            "seed {seed}: {parts:?}"
                        );
                        assert!(last.3 || reaches(&group.pieces, rows), "seed {seed}: {parts:?}");
                    }
                    let before = &group.pieces[..group.pieces.len() - 1];
                    assert!(!reaches(before, rows - last.1), "seed {seed}: {parts:?}");
                    taken.extend(parts);
                }
            }
            while grouper.gather(None).unwrap() != Gathered::Nothing {
                assert!(grouper.cut(&mut group));
                taken.extend(parts(&group));
            }
            assert_eq!(taken, batches.concat(), "seed {seed}");
        }
        assert!(in_parts > 1_000 && split > 1_000, "{in_parts} {split}");
    }
}
