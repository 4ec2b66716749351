//! Databases in memory, random histories, and the suites that every source and sink has to pass.
//!
//! ```text
//! History ─▶ SourceDatabase ─▶ MemoryLog ─Source─▶ pipeline ─Sink─▶ MemoryTarget
//!                 │ state after every transaction                       │ contents
//!                 └───────────────────── equal? ────────────────────────┘
//! ```
//!
//! - [`TableSpec`], [`CellFormat`]: tables described once for models, schemas and target facts
//! - [`ModelDatabase`]: rows under constraints, with undo; [`apply_event`] is the oracle that applies changes
//!   one by one
//! - [`SourceDatabase`]: executes statements on a model and captures what a log would say
//! - [`History`]: seeded random tables and transactions
//! - [`MemoryTarget`], [`MemorySink`]: a target that executes plans, with faults
//! - [`LaneModel`]: what a source hands out before it has committed
//! - [`MemoryLog`], [`MemorySource`]: a source of log transactions or net windows, with faults
//! - [`conformance`]: the suites

mod capture;
mod change;
pub mod conformance;
mod execute;
mod history;
mod lane;
mod memory_sink;
mod memory_source;
mod model;
mod oracle;
mod rng;
mod schema;
mod text;
mod windows;

pub use capture::{Capture, OldImages, Savepoint, SourceDatabase, SourceTable, Statement};
pub use change::{OldImage, SourceCell, SourceChange, SourceTxn, batch_of, push_change};
pub use history::{Action, History, HistoryOptions, random_actions};
pub use lane::LaneModel;
pub use memory_sink::{Fault, MemorySink, MemoryTarget};
pub use memory_source::{MemoryLog, MemorySource, SourceFault};
pub use model::{AuditEntry, Contents, ModelDatabase, ModelRow, ModelValue, RowId, Violation};
pub use oracle::apply_event;
pub use rng::Rng;
pub use schema::{CellFormat, ColumnSpec, ForeignKeySpec, KeySpec, TableSpec};
pub use windows::net_window;
