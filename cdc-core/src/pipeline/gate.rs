//! The gate: holds a stream still at an exact point, so that a verify can look at both sides.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::engine::Barrier;
use crate::model::Position;

/// Set by whoever wants the stream to stand still, obeyed by the plan thread, answered by the apply thread.
#[derive(Debug, Default)]
pub struct Gate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    wanted: Option<Barrier>,
    reached: Option<(Barrier, Position)>,
}

impl Gate {
    /// Asks the stream to stand still, or with `None` to go on.
    pub fn set(&self, barrier: Option<Barrier>) {
        let mut state = self.lock();
        if state.wanted != barrier {
            state.wanted = barrier;
            state.reached = None;
        }
    }

    /// What is asked.
    pub fn wanted(&self) -> Option<Barrier> {
        self.lock().wanted.clone()
    }

    /// The position at which the stream stands still for the current request.
    pub fn reached(&self) -> Option<(Barrier, Position)> {
        self.lock().reached.clone()
    }

    /// Answers `barrier`, unless it has been withdrawn.
    pub(crate) fn answer(&self, barrier: Barrier, position: Position) {
        let mut state = self.lock();
        if state.wanted.as_ref() == Some(&barrier) {
            state.reached = Some((barrier, position));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
