//! Handing out a transaction that still runs on the source, so that it is applied ahead of its commit.
//!
//! ```text
//! source   begin ─▶ more ─▶ … ─▶ end ·· waits for the outcome ·· the commit alone, or the whole transaction, to the decoder
//!            │        │             │              ▲
//! lane     begin    apply …      the rest ── ready or given up ·············· commits when the stream comes to it
//! ```
//!
//! The lane is a second connection to the target. It applies a part only when everything that committed before that part
//! was written is committed on the target: whatever the part depends on is there, and what is still to come of other
//! transactions cannot touch the same rows, since the source's locks kept it from them. It may give a transaction up at any
//! time before it is ready; therefore the source keeps all of it in a [`Spill`], which is also what the lane reads from.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::watch;

use crate::error::Result;
use crate::model::Position;
use crate::source::Decoder;
use crate::spill::Spill;

/// Makes a decoder for one transaction that is handed out.
pub type DecoderMaker = Box<dyn Fn() -> Box<dyn Decoder> + Send>;

/// What is set aside of a transaction: written by the source, read by both.
#[derive(Debug, Clone)]
pub struct SharedSpill(Arc<Mutex<Spill>>);

impl SharedSpill {
    /// An empty one.
    ///
    /// # Errors
    /// As [`Spill::create`].
    pub fn create() -> Result<Self> {
        Ok(Self(Arc::new(Mutex::new(Spill::create()?))))
    }

    /// The spill, for oneself alone.
    pub fn lock(&self) -> MutexGuard<'_, Spill> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the source tells the lane.
#[derive(Debug)]
pub(crate) enum Task {
    /// A transaction is handed out, by this number.
    Begin {
        number: u64,
        /// what the decoder is given before the first segment
        opening: Vec<u8>,
        frames: SharedSpill,
    },
    /// Its next segment is written; what it depends on has committed up to this position.
    More(Position),
    /// It has committed: the rest of it can be read.
    End(Position),
    /// It was rolled back, or is not to be applied here.
    Drop,
}

/// What became of the transaction with a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is all applied, and can be committed.
    Ready,
    /// It is not applied.
    GivenUp,
}

/// The source's end of the lane: one transaction at a time.
#[derive(Debug)]
pub struct Ahead {
    tasks: Sender<Task>,
    outcome: watch::Receiver<(u64, Outcome)>,
    /// of the newest transaction
    number: u64,
}

/// The lane's end.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) tasks: Receiver<Task>,
    pub(crate) outcome: watch::Sender<(u64, Outcome)>,
}

/// The two ends of a lane.
pub(crate) fn lane() -> (Ahead, Taken) {
    // What waits is a position for each segment that is on disk.
    let (tasks, taken) = crossbeam_channel::unbounded();
    let (told, outcome) = watch::channel((0, Outcome::GivenUp));
    let (ahead, taken) = (
        Ahead {
            tasks,
            outcome,
            number: 0,
        },
        Taken {
            tasks: taken,
            outcome: told,
        },
    );
    (ahead, taken)
}

impl Ahead {
    /// Hands out a transaction, of which `frames` hold nothing yet. `opening` is decoded before them.
    pub fn begin(&mut self, opening: Vec<u8>, frames: SharedSpill) {
        self.number += 1;
        let number = self.number;
        self.tell(Task::Begin {
            number,
            opening,
            frames,
        });
    }

    /// Another segment of its frames is written. It may be applied once the target has what committed up to `after`.
    pub fn more(&mut self, after: Position) {
        self.tell(Task::More(after));
    }

    /// It has committed, and its frames are complete. Now the source asks for the outcome.
    pub fn end(&mut self, after: Position) {
        self.tell(Task::End(after));
    }

    /// It is not to be applied; another one may follow.
    pub fn drop_it(&mut self) {
        self.tell(Task::Drop);
    }

    /// Whether the newest transaction was given up.
    pub fn is_given_up(&self) -> bool {
        *self.outcome.borrow() == (self.number, Outcome::GivenUp)
    }

    /// Waits until the newest transaction, which has ended, is ready (`true`) or given up. Cancel-safe.
    pub async fn is_ready(&mut self) -> bool {
        let number = self.number;
        let outcome = self.outcome.wait_for(|(of, _)| *of == number).await;
        // A lane that has ended applies nothing more.
        outcome.is_ok_and(|outcome| outcome.1 == Outcome::Ready)
    }

    fn tell(&self, task: Task) {
        // A lane that has ended is noticed when the outcome is asked for.
        let _ = self.tasks.send(task);
    }
}
