//! What an engine provides to apply plans: one target transaction a group, the checkpoint inside it.

use crate::BoxFuture;
use crate::model::{ChangeCounts, Position, SourceIdentity};
use crate::plan::ApplyPlan;

/// What is stored on the target in the data's own transaction. Written by the sink in
/// `cdc_sync.checkpoint`, one row a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// the stream's name
    pub stream: String,
    /// which log the position belongs to
    pub source: SourceIdentity,
    /// where to resume
    pub position: Position,
    /// commit time of the newest applied transaction, microseconds since 1970-01-01 UTC; 0 before the first
    pub commit_time_micros: i64,
    /// groups committed over the life of the stream
    pub groups: u64,
    /// source transactions applied over the life of the stream
    pub transactions: u64,
    /// the accounting over the life of the stream
    pub changes: ChangeCounts,
}

/// The version of the checkpoint's format. A newer one is refused.
pub const CHECKPOINT_FORMAT: i32 = 1;

/// How a commit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitOutcome {
    /// The target said that it is committed, and durable unless [`Sink::commit_soon`] was asked.
    Done,
    /// The answer was lost: only the checkpoint on the target knows.
    Unknown,
}

/// What applying one plan did, for the accounting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// rows inserted, updated, deleted on the target as the server counted them
    pub rows: u64,
    /// changes that lost against the target's row under a policy
    pub superseded: u64,
    /// changes that were put aside under policy dead_letter
    pub dead_lettered: u64,
}

/// One connection that applies a stream. Owned by the apply thread.
///
/// Contract: `begin`, then any number of `apply`, then `commit` or `rollback`. Every target transaction first
/// takes the shared fence lock of its epoch. Data and checkpoint become durable together or not at all.
pub trait Sink: Send {
    /// Opens a target transaction and takes the fence. A sink may send both with the first `apply` or
    /// `commit`, to save a round trip; then that call reports what this one would have.
    ///
    /// # Errors
    /// [`crate::Kind::Fenced`] when another instance has raised the epoch.
    fn begin(&mut self) -> BoxFuture<'_, ()>;

    /// Applies a plan within the open transaction, all or nothing: after an error with action
    /// [`crate::Action::Conflict`] or [`crate::Action::Stop`] the effects of this plan are undone and the
    /// transaction is as before the call; after any other error it is gone.
    ///
    /// # Errors
    /// [`crate::Action::Conflict`] when a constraint objected to a set statement, naming the table: the
    /// caller plans that table in order and tries again. [`crate::Kind::Conflict`] when a row to update or
    /// delete is missing or a row to insert exists; [`crate::Kind::Data`] when a value is refused.
    fn apply<'a>(&'a mut self, plan: &'a ApplyPlan) -> BoxFuture<'a, Applied>;

    /// Writes the checkpoint over that of the group before and commits. A write that does not find it, because
    /// there is none or it is of another group, is an error inside the transaction. What ended with
    /// [`CommitOutcome::Done`] is durable, with all that was committed before: it is confirmed to the source.
    ///
    /// # Errors
    /// When the transaction did not commit for certain; a doubtful end is [`CommitOutcome::Unknown`].
    fn commit<'a>(&'a mut self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, CommitOutcome>;

    /// As [`Sink::commit`], but the answer need not wait until the transaction is durable: a target that crashes may lose
    /// it, together with its checkpoint, and is sent it again. Nothing is confirmed to the source for it; a `commit` follows
    /// before long. Where none came any more, [`crate::Site::stream_state`] makes it durable before it tells of it.
    ///
    /// A sink that wraps another one passes it on, or every commit waits.
    ///
    /// # Errors
    /// As [`Sink::commit`].
    fn commit_soon<'a>(&'a mut self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, CommitOutcome> {
        self.commit(checkpoint)
    }

    /// Applies a plan as a target transaction of its own and commits it, all in one go: on a long line a group then takes one
    /// round trip instead of two. Every change has to arrive, as in a plan that no policy decides about. `soon` makes it
    /// a [`Sink::commit_soon`]. No transaction may be open.
    ///
    /// `None` says that it did not: nothing has happened, and `begin`, `apply` and `commit` will tell why not.
    ///
    /// A sink that wraps another one passes it on, or every group waits twice.
    ///
    /// # Errors
    /// As [`Sink::begin`], and when the connection is lost and the transaction did not commit for certain; a doubtful end
    /// is [`CommitOutcome::Unknown`].
    fn apply_at_once<'a>(
        &'a mut self,
        plan: &'a ApplyPlan,
        checkpoint: &'a Checkpoint,
        soon: bool,
    ) -> BoxFuture<'a, Option<CommitOutcome>> {
        let _ = (plan, checkpoint, soon);
        Box::pin(async { Ok(None) })
    }

    /// Gives up the open transaction; without one it does nothing.
    ///
    /// # Errors
    /// When the connection is lost; the transaction is gone all the same.
    fn rollback(&mut self) -> BoxFuture<'_, ()>;

    /// Gives up the open transaction though an operation may have been dropped in its middle: what the target still does
    /// for it is cancelled, and when it has not ended in a second its connection is closed, which ends it.
    ///
    /// A sink that wraps another one passes it on, or waits for what was dropped.
    ///
    /// # Errors
    /// As [`Sink::rollback`].
    fn abandon(&mut self) -> BoxFuture<'_, ()> {
        self.rollback()
    }

    /// Whether another session waits for what the open transaction has locked on the target. A target that cannot tell says
    /// no.
    ///
    /// # Errors
    /// When the connection is lost, and the transaction with it.
    fn is_in_the_way(&mut self) -> BoxFuture<'_, bool> {
        Box::pin(async { Ok(false) })
    }
}
