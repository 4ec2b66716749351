//! What a running stream tells about itself: counters, positions and lags, read by status, metrics and logs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use serde::Serialize;

use super::lag::LagHistogram;
use crate::batch::OpCounts;
use crate::error::{Error, Kind};
use crate::model::{ChangeCounts, Position};

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// connecting, checking, taking the fence
    #[default]
    Starting,
    /// copying the initial data
    Seeding,
    /// applying what gathered meanwhile
    CatchingUp,
    /// following: the newest heartbeat has arrived
    Synced,
    /// waiting for a server to come back
    Waiting,
    /// standing still for a verify
    Held,
    /// ended
    Stopped,
}

/// The numbers of one stream at one moment.
#[derive(Debug, Clone, Default)]
pub struct StatsSnapshot {
    /// where the stream stands
    pub phase: Phase,
    /// the accounting over the life of the stream, as of the last commit
    pub changes: ChangeCounts,
    /// source transactions applied over the life of the stream
    pub transactions: u64,
    /// groups committed over the life of the stream
    pub groups: u64,
    /// bytes of the log decoded in this run
    pub decoded_bytes: u64,
    /// changes decoded in this run, before they are applied, by operation
    pub decoded: OpCounts,
    /// position committed on the target
    pub applied: Option<Position>,
    /// source commit time of the newest applied transaction, microseconds since 1970-01-01 UTC
    pub applied_commit_micros: i64,
    /// when the newest group was committed
    pub last_commit: Option<Instant>,
    /// heartbeat written on the source until seen committed on the target, one clock
    pub heartbeat: LagHistogram,
    /// target commit time minus source commit time, two clocks
    pub commit_latency: LagHistogram,
    /// duration of target transactions, begin to committed
    pub apply_time: LagHistogram,
    /// rows a group
    pub last_group_rows: u64,
    /// times the stream was restarted after a fault
    pub restarts: u64,
    /// those faults, and those of the steps around the stream that were tried again, by kind
    pub faults: BTreeMap<Kind, u64>,
    /// tables found to need ordered apply, by violations of set statements
    pub ordered_fallbacks: u64,
    /// the newest fault, for people
    pub last_error: Option<String>,
    /// what keeps tables that are set aside from coming back, while the stream goes on without them
    pub setback: Option<Setback>,
}

/// Why a copy beside the stream failed, by the newest attempt.
#[derive(Debug, Clone)]
pub struct Setback {
    /// what it met
    pub error: Arc<Error>,
    /// log that the source holds back for the next attempt; `None` where it is not known
    pub retained_bytes: Option<u64>,
    /// when
    pub at: SystemTime,
}

impl StatsSnapshot {
    /// Notes a fault that is met by trying again.
    pub fn fault(&mut self, error: &Error) {
        *self.faults.entry(error.kind()).or_default() += 1;
        self.last_error = Some(error.to_string());
    }
}

/// The shared, updatable form of [`StatsSnapshot`].
#[derive(Debug, Default)]
pub struct StreamStats(Mutex<StatsSnapshot>);

impl StreamStats {
    /// A copy of the numbers.
    pub fn snapshot(&self) -> StatsSnapshot {
        self.lock().clone()
    }

    /// Changes the numbers; called once a batch or group, never once a row.
    pub fn update(&self, change: impl FnOnce(&mut StatsSnapshot)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, StatsSnapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
