//! The engine-neutral core of cdc-sync.
//!
//! A change travels `source → decoder → batch → plan → sink → checkpoint`; the modules follow that path:
//!
//! - [`model`]: names, schemas, types, values, positions, transaction records
//! - [`batch`]: the slab of decoded changes that moves between threads
//! - [`source`]: what an engine provides to read its log ([`Source`], [`Decoder`])
//! - [`plan`]: grouping whole source transactions and planning them as net sets or ordered statements
//! - [`sink`]: what an engine provides to apply a plan ([`Sink`], [`Checkpoint`])
//! - [`seed`]: the consistent initial copy
//! - [`conflict`]: what meets a target that is not as the log makes it, and who wins
//! - [`compare`]: rows of two sites in one order, for comparing them
//! - [`repair`]: writing the source's rows where they were found to differ
//! - [`engine`]: how a database is reached and inspected ([`Engine`], [`Site`])
//! - [`ahead`]: handing out a transaction before it has committed
//! - [`spill`]: what has to be set aside for a while and is too large for memory
//! - [`pipeline`]: the threads between a source and a sink
//! - [`error`]: one error type, with what to do about it
//! - `testing` (feature `testing`): databases in memory, random histories, and the suites that every source and
//!   sink runs
//!
//! Nothing here does network I/O, and nothing here names a database product.

pub mod ahead;
pub mod batch;
pub mod capture;
pub mod compare;
pub mod conflict;
pub mod engine;
pub mod error;
#[cfg(feature = "failpoints")]
pub mod failpoints;
pub mod model;
pub mod pipeline;
pub mod plan;
pub mod repair;
pub mod seed;
pub mod sink;
pub mod source;
pub mod spill;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use batch::{Batch, Cell, ChangeEvent, Datum, Op};
pub use engine::{Engine, Site, TableSelection};
pub use error::{Action, Error, Kind, Result};
pub use model::{
    ColumnSchema, DataType, Encoding, Position, SourceIdentity, TableName, TableSchema, TxnId, TxnRecord,
    TxnSeq, Value,
};
pub use sink::{Checkpoint, CommitOutcome, Sink};
pub use source::{Decoder, RawChunk, Source};

/// A boxed, `Send` future: the erased form in which engines return asynchronous work, boxed once a chunk or
/// batch and never once a row.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Marks a step at which a test can have the process die (see `docs/testing.md`). With `, error` also one that can
/// fail there: only where an error could come from outside as well, or its handling would be tested with what never
/// happens.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        let _ = $crate::failpoints::pass($name);
    };
    ($name:literal, error) => {
        $crate::failpoints::pass($name)?
    };
}

/// Marks a step at which a test can have the process die; this build leaves nothing of it.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! failpoint {
    ($name:literal $(, error)?) => {};
}
