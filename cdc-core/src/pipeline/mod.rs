//! The threads between a source and a sink.
//!
//! ```text
//! socket ─read─▶ RawChunk ─decode─▶ Batch ─group─▶ TxnGroup ─plan─▶ ApplyPlan ─apply─▶ target transaction
//! [source thread]        [decode thread]      [plan thread]              [apply thread]     │
//!       └── confirm(position) ◀──────── newest position durable on the target ◀─────────────┘
//! ```
//!
//! Where the source hands out transactions that still run ([`crate::ahead`]), a fifth thread, the lane, applies one of them on
//! a connection of its own; it commits when the apply thread comes to it.
//!
//! [`run_session`] runs one connection of a stream until it is told to stop or something fails; whoever calls
//! it restarts it from the checkpoint. Invariants:
//!
//! - A target transaction ends only where a source transaction ends, and its checkpoint says exactly which.
//! - The source is told only positions whose checkpoint is durable: most groups are committed without waiting for that,
//!   and a commit that does wait follows five times a second. An idle position is stored before it is told.
//! - Every hop is a bounded channel; chunks, batches and plans go back to be filled again, so the steady state
//!   allocates neither per row nor per group.
//! - Back-pressure never silences us: the source thread confirms on a timer while its channel is full.
//! - Each thread ends when its input or output is gone; the first error is the session's.

mod ahead;
#[cfg(test)]
mod allocations;
mod apply;
mod budget;
mod control;
mod decode;
mod gate;
mod grouper;
mod internal;
mod lag;
mod plan;
mod pool;
mod read;
mod session;
mod stats;

pub(crate) use budget::Charge;
pub use control::{Control, SessionTurn};
pub use gate::Gate;
pub use grouper::{Gathered, GroupLimits, Grouper};
pub use lag::{LagHistogram, LagSummary};
pub use session::{PipelineConfig, Session, SessionEnd, SinkMaker, run_session};
pub use stats::{Phase, Setback, StatsSnapshot, StreamStats};
