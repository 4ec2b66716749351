//! The memory budget of a session: bytes under way between source and target, and the limit at which the source
//! is not read any further.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what is under way.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
        })
    }

    /// Counts `bytes` until what is returned is dropped.
    pub(super) fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Charge {
            budget: Arc::clone(self),
            bytes,
        }
    }

    /// Whether there is room for so many bytes beside what is under way.
    pub(super) fn leaves(&self, bytes: usize) -> bool {
        self.used.load(Ordering::Relaxed).saturating_add(bytes) <= self.limit
    }

    /// Whether nothing more should be taken in. One piece of any size is always let in, or a row larger than the
    /// budget would never arrive.
    pub(super) fn exhausted(&self) -> bool {
        self.used.load(Ordering::Relaxed) >= self.limit
    }
}

/// A share of a budget, held by what occupies the memory.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_exhausted_while_it_is_held() {
        let budget = Budget::new(100);
        let first = budget.charge(60);
        assert!(!budget.exhausted());
        let second = budget.charge(1_000);
        assert!(budget.exhausted());
        drop(second);
        assert!(!budget.exhausted());
        drop(first);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
