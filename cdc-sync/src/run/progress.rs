//! What a run shows while it works; how it looks is the command line's business.

use std::time::Instant;

use cdc_core::TableName;
use cdc_core::engine::{Retention, SeedPhase};
use cdc_core::pipeline::StatsSnapshot;

/// Receives progress. Called from one thread: ten times a second while copying, once a second while following.
pub trait Reporter: Send + Sync {
    /// The seed's progress.
    fn seed(&self, progress: &SeedProgress);

    /// The stream's numbers, with the bytes of log that are not applied yet.
    fn stream(&self, stats: &StatsSnapshot, lag_bytes: Option<u64>);

    /// Whether this instance holds the job: `true` once it has taken the fence, `false` when another took it over.
    /// What it says of itself before or after would be taken for the other's words.
    fn holds(&self, _holds: bool) {}

    /// Something the operator should read once.
    fn note(&self, message: &str);
}

/// The seed at one moment.
#[derive(Debug, Clone)]
pub struct SeedProgress {
    /// the tables, in the order they are copied
    pub tables: Vec<TableProgress>,
    /// when the seed began
    pub began: Instant,
    /// what the source holds back for us meanwhile
    pub retention: Option<Retention>,
}

/// One table of a [`SeedProgress`].
#[derive(Debug, Clone)]
pub struct TableProgress {
    /// the table
    pub table: TableName,
    /// how far it has come
    pub phase: SeedPhase,
    /// rows as the source estimates them
    pub estimated_rows: u64,
    /// bytes on the source's disk
    pub disk_bytes: u64,
    /// rows of finished parts
    pub rows: u64,
    /// bytes copied so far
    pub bytes: u64,
    /// parts finished and planned
    pub parts: (usize, usize),
}
