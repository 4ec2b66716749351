//! Batches to be filled again: a group's worth of memory goes round instead of being allocated for each.

use std::sync::{Arc, Mutex, PoisonError};

use crate::batch::Batch;

/// Cleared batches that nobody reads. What was given back last is filled next, so that of many no more are touched than
/// are under way at a time, and those that grew are the ones that are used.
#[derive(Debug)]
pub(super) struct BatchPool {
    /// capacity in bytes beyond which a batch is dropped
    limit: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    batches: Vec<Arc<Batch>>,
    capacity: usize,
}

impl BatchPool {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            kept: Mutex::default(),
        })
    }

    /// A cleared batch, or a new one.
    pub(super) fn take(&self) -> Arc<Batch> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(batch) = kept.batches.pop() else {
            return Arc::default();
        };
        kept.capacity -= batch.capacity();
        batch
    }

    /// Clears a batch and keeps it, unless someone reads it still or enough is kept.
    pub(super) fn give(&self, mut shared: Arc<Batch>) {
        let Some(batch) = Arc::get_mut(&mut shared) else {
            return;
        };
        batch.clear();
        let capacity = batch.capacity();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.capacity + capacity <= self.limit {
            kept.capacity += capacity;
            kept.batches.push(shared);
        }
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
        let pool = BatchPool::new(10_000);
        pool.give(filled(1_000));
        pool.give(filled(2_000));
        let taken = pool.take();
        assert!(taken.capacity() >= 2_000 && taken.bytes() == 0);
        assert!(pool.take().capacity() < 2_000);
        assert_eq!(pool.take().capacity(), 0);
    }

    #[test]
    fn no_more_is_kept_than_is_allowed() {
        let pool = BatchPool::new(5_000);
        for _ in 0..10 {
            pool.give(filled(2_000));
        }
        let kept = std::iter::repeat_with(|| pool.take()).take_while(|batch| batch.capacity() > 0);
        assert_eq!(kept.count(), 2);
        pool.give(filled(4_000));
        assert!(pool.take().capacity() >= 4_000, "taken ones do not count");
    }

    #[test]
    fn one_that_is_read_by_someone_is_not_kept() {
        let pool = BatchPool::new(5_000);
        let batch = filled(2_000);
        pool.give(Arc::clone(&batch));
        assert_eq!(pool.take().capacity(), 0);
        assert_eq!(batch.bytes(), 2_000);
    }
}
