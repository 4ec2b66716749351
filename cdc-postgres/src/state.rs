//! Schema `cdc_sync` on the target: what a stream stores there, and the right to apply it.
//!
//! ```text
//! fence       one row a stream: the epoch every target transaction checks under a shared row lock
//! stream      one row a stream: what is to be done for it besides applying
//! slot_intent one row a stream whose slot is about to be created: what a first run that was cut short left is its own
//! checkpoint  one row a stream: position and accounting, written in the data's own transaction
//! seed        one row a table: how far its initial copy has come, and its snapshot's position
//! conflict_log one row a conflict that a policy decided
//! barrier     a verify's request to stand still, and the answer
//! history     one row an event: when the stream began, its runs, what verifies and repairs found
//! status      what the running instance tells about itself
//! ```

pub(crate) mod aside;
pub(crate) mod barrier;
pub(crate) mod checkpoint;
pub(crate) mod conflicts;
pub(crate) mod doubt;
pub(crate) mod fence;
pub(crate) mod history;
pub(crate) mod intent;
mod schema;

pub(crate) use schema::{FENCE_LOST, FUNCTIONS, UNDECIDED, explained, prepare, statements};
