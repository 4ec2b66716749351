//! Batches to be filled again: a group's worth of memory goes round instead of being allocated for each.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::budget::Budget;
use crate::batch::Batch;

/// A batch whose changes take less than this part of its memory is not kept: the memory is counted as long as it is under
/// way, and of a stream whose chunks have become small it would fill the budget with next to nothing.
const SLACK: usize = 4;
/// What any batch may have.
const SMALL: usize = 64 << 10;

/// Cleared batches that nobody reads. What was given back last is filled next, so that of many no more are touched than
/// are under way at a time, and those that grew are the ones that are used.
#[derive(Debug)]
pub(super) struct BatchPool {
    budget: Arc<Budget>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// the newest last
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
}

impl BatchPool {
    pub(super) fn new(budget: &Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            budget: Arc::clone(budget),
            kept: Mutex::default(),
        })
    }

    /// A cleared batch, or a new one.
    pub(super) fn take(&self) -> Arc<Batch> {
        let mut kept = self.lock();
        let Some(batch) = kept.batches.pop_back() else {
            return Arc::default();
        };
        kept.bytes -= batch.footprint();
        batch
    }

    /// Clears a batch and keeps it, unless someone reads it still, it is far too large for what it held
    /// or the budget leaves no room for it.
    pub(super) fn give(&self, mut shared: Arc<Batch>) {
        let Some(batch) = Arc::get_mut(&mut shared) else {
            return;
        };
        let filled = batch.filled();
        if filled > 0 && batch.footprint() > SMALL.max(filled * SLACK) {
            return;
        }
        batch.clear();
        let bytes = batch.footprint();
        let mut kept = self.lock();
        if self.budget.leaves(kept.bytes + bytes) {
            kept.bytes += bytes;
            kept.batches.push_back(shared);
        }
    }

    /// Gives up what the budget leaves no room for any more beside what is under way, the oldest first.
    pub(super) fn fit(&self) {
        let mut kept = self.lock();
        while !self.budget.leaves(kept.bytes) {
            let Some(batch) = kept.batches.pop_front() else {
                return;
            };
            kept.bytes -= batch.footprint();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(bytes: usize) -> Arc<Batch> {
        let mut batch = Batch::new();
        batch.append(&vec![0; bytes]).unwrap();
        Arc::new(batch)
    }

    #[test]
    fn what_was_given_back_last_is_taken_first_and_is_empty() {
        let pool = BatchPool::new(&Budget::new(10_000));
        pool.give(filled(1_000));
        pool.give(filled(2_000));
        let taken = pool.take();
        assert!(taken.footprint() >= 2_000 && taken.bytes() == 0);
        assert!(pool.take().footprint() < 2_000);
        assert_eq!(pool.take().footprint(), 0);
    }

    #[test]
    fn what_is_kept_and_what_is_under_way_are_within_the_budget() {
        let budget = Budget::new(9_000);
        let pool = BatchPool::new(&budget);
        let kept = || std::iter::repeat_with(|| pool.take()).take_while(|batch| batch.footprint() > 0);
        (0..10).for_each(|_| pool.give(filled(2_000)));
        assert_eq!(kept().count(), 4);
        let under_way = budget.charge(4_000);
        (0..10).for_each(|_| pool.give(filled(2_000)));
        assert_eq!(kept().count(), 2);
        drop(under_way);
        pool.give(filled(8_000));
        assert_eq!(kept().count(), 1, "taken ones do not count");
        (0..10).for_each(|_| pool.give(filled(2_000)));
        let _under_way = budget.charge(4_000);
        pool.fit();
        assert_eq!(kept().count(), 2, "what comes under way later counts, too");
        pool.give(filled(2_000));
        let _more = budget.charge(9_000);
        pool.fit();
        assert_eq!(kept().count(), 0);
    }

    #[test]
    fn one_that_is_far_too_large_is_not_kept() {
        let pool = BatchPool::new(&Budget::new(10_000_000));
        pool.give(filled(1_000_000));
        let mut shared = pool.take();
        assert!(shared.footprint() >= 1_000_000);
        Arc::get_mut(&mut shared).unwrap().append(&[0; 300_000]).unwrap();
        pool.give(shared);
        let mut shared = pool.take();
        assert!(shared.footprint() >= 1_000_000, "of a third is made use");
        Arc::get_mut(&mut shared).unwrap().append(&[0; 200_000]).unwrap();
        pool.give(shared);
        assert_eq!(pool.take().footprint(), 0);
    }

    #[test]
    fn one_that_is_read_by_someone_is_not_kept() {
        let pool = BatchPool::new(&Budget::new(5_000));
        let batch = filled(2_000);
        pool.give(Arc::clone(&batch));
        assert_eq!(pool.take().footprint(), 0);
        assert_eq!(batch.bytes(), 2_000);
    }
}
