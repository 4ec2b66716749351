//! What every source and every sink must do, whatever the database behind it.
//!
//! A database product implements [`SinkHarness`] or [`SourceHarness`] for a test server and runs
//! [`sink_suite`] or [`source_suite`], and [`apply_log`], [`apply_windows`] or [`read_history`] with as many
//! histories as it likes. The suites panic with what they found; they set no deadlines, which belong around them.

mod histories;
mod memory;
mod reading;
mod sink;
mod source;

pub use histories::{HistoryRun, apply_log, apply_windows};
pub use memory::MemorySinkHarness;
pub use reading::{HistoryRead, read_history};
pub use sink::{SinkHarness, sink_suite};
pub use source::{SourceHarness, source_suite};

use crate::model::{ChangeCounts, Position, SourceIdentity};
use crate::sink::Checkpoint;

/// The stream that the suites apply.
const STREAM: &str = "conformance";

/// The checkpoint at `position` after `groups` groups.
fn checkpoint(position: &str, groups: u64, changes: ChangeCounts) -> Checkpoint {
    Checkpoint {
        stream: STREAM.into(),
        source: SourceIdentity {
            system: "a system".into(),
            database: "a database".into(),
            timeline: "1".into(),
            slot: "a slot".into(),
        },
        position: Position::new(position),
        commit_time_micros: 0,
        groups,
        transactions: 0,
        changes,
    }
}
