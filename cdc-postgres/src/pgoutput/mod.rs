//! The `pgoutput` plugin's messages, and their way into a [`cdc_core::Batch`].
//!
//! ```text
//! frame ─▶ Message (borrowed) ─▶ relation cache ─▶ one copy of the tuple into the slab, cells point into it
//! ```
//!
//! Layouts: PostgreSQL manual, "Logical Replication Message Formats". All integers are big-endian; nothing is read
//! beyond the frame, and no count is trusted before the bytes for it are seen to be there.

mod cursor;
mod decode;
#[cfg(any(test, feature = "testing"))]
pub mod encode;
mod message;
mod relation;
#[cfg(test)]
mod tests;
mod transaction;
mod tuple;

pub use cursor::{Flaw, Malformed};
pub use decode::PgDecoder;
pub use message::{
    Begin, Column, Commit, LogicalMessage, Message, Origin, ProtocolVersion, Relation, RowChange, Truncate,
    TypeName,
};
pub(crate) use transaction::transaction_lsns;
