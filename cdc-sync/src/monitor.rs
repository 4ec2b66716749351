//! The running instance as others see it: gathers what it knows, publishes it for `status` in other processes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cdc_core::Site;
use cdc_core::engine::JobNames;
use cdc_core::pipeline::{Phase, StatsSnapshot, StreamStats};

use crate::run::SeedProgress;
use crate::status::{Facts, Published, Slot, TableCounts};

/// How often a change of state is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often the status row is written while the state stays.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);
/// How often the source is asked what it retains.
const RETENTION_EVERY: Duration = Duration::from_secs(2);
/// How often the target is asked for conflicts, which it counts one by one.
const CONFLICTS_EVERY: Duration = Duration::from_secs(10);
/// A database that does not answer within this is asked again later.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Shared by the run, its HTTP endpoints and its publisher.
#[derive(Debug)]
pub struct Monitor {
    names: JobNames,
    stats: Arc<StreamStats>,
    seen: Mutex<Seen>,
    /// whether the job is this instance's: only its holder speaks for it
    holds: AtomicBool,
}

/// What was last seen of the databases.
#[derive(Debug, Clone, Default)]
struct Seen {
    slot: Option<Slot>,
    lag_bytes: Option<u64>,
    source_position: Option<String>,
    seed: SeedTotals,
    conflicts: BTreeMap<String, u64>,
    open_conflicts: u64,
}

/// The seed in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SeedTotals {
    /// tables by state
    pub tables: TableCounts,
    /// rows copied
    pub rows: u64,
    /// rows to copy, as the source estimates
    pub estimated_rows: u64,
    /// bytes copied
    pub bytes: u64,
}

impl From<&SeedProgress> for SeedTotals {
    fn from(progress: &SeedProgress) -> Self {
        let tables = &progress.tables;
        Self {
            tables: TableCounts::of(tables.iter().map(|table| table.phase)),
            rows: tables.iter().map(|table| table.rows).sum(),
            estimated_rows: tables.iter().map(|table| table.estimated_rows).sum(),
            bytes: tables.iter().map(|table| table.bytes).sum(),
        }
    }
}

/// Everything the endpoints tell, at one moment.
#[derive(Debug, Clone)]
pub struct Observation {
    /// the job's facts
    pub facts: Facts,
    /// the stream's numbers
    pub stats: StatsSnapshot,
    /// the seed's numbers
    pub seed: SeedTotals,
}

impl Monitor {
    /// A monitor of the stream whose numbers are `stats`.
    pub fn new(names: JobNames, stats: Arc<StreamStats>) -> Self {
        Self {
            names,
            stats,
            seen: Mutex::default(),
            holds: AtomicBool::new(false),
        }
    }

    /// The job's id.
    pub fn job(&self) -> &str {
        &self.names.job
    }

    /// Takes over whether this instance holds the job.
    pub fn saw_hold(&self, holds: bool) {
        self.holds.store(holds, Ordering::SeqCst);
    }

    /// Takes over the seed's progress.
    pub fn saw_seed(&self, progress: &SeedProgress) {
        let mut seen = self.seen();
        seen.seed = SeedTotals::from(progress);
        if let Some(retention) = &progress.retention {
            seen.slot = Some(retention.clone().into());
        }
    }

    /// Takes over the lag in bytes.
    pub fn saw_lag(&self, bytes: Option<u64>) {
        self.seen().lag_bytes = bytes;
    }

    /// Takes over the conflicts by kind, and how many changes wait for the operator.
    pub fn saw_conflicts(&self, conflicts: BTreeMap<String, u64>, open: u64) {
        let mut seen = self.seen();
        seen.conflicts = conflicts;
        seen.open_conflicts = open;
    }

    /// What is known now; asks nobody.
    pub fn observe(&self) -> Observation {
        let stats = self.stats.snapshot();
        let seen = self.seen().clone();
        let mut facts = Facts {
            job: self.names.job.clone(),
            published: Some(Published::from(&stats)),
            holder: Some(format!("process {}", std::process::id())),
            tables: seen.seed.tables,
            slot: seen.slot,
            changes: stats.changes,
            transactions: stats.transactions,
            commit_micros: stats.applied_commit_micros,
            conflicts: seen.conflicts,
            open_conflicts: seen.open_conflicts,
            lag_bytes: seen.lag_bytes,
            ..Facts::default()
        };
        facts.position.source = seen.source_position;
        facts.position.applied = stats.applied.as_ref().map(ToString::to_string);
        Observation {
            facts,
            stats,
            seed: seen.seed,
        }
    }

    /// Asks the databases and publishes, until dropped. Faults are the stream's business, not ours: what cannot
    /// be asked or published now is tried again.
    pub async fn watch(&self, source: &Arc<dyn Site>, target: &Arc<dyn Site>) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut asked, mut published) = (None::<Instant>, None::<(Instant, Phase)>);
        let mut counted = None::<Instant>;
        loop {
            ticks.tick().await;
            if asked.is_none_or(|at| at.elapsed() >= RETENTION_EVERY) {
                asked = Some(Instant::now());
                tokio::join!(self.ask_source(source), self.ask_seed(target));
            }
            if counted.is_none_or(|at| at.elapsed() >= CONFLICTS_EVERY) {
                counted = Some(Instant::now());
                self.ask_conflicts(target).await;
            }
            let phase = self.stats.snapshot().phase;
            if published.is_none_or(|(at, then)| then != phase || at.elapsed() >= PUBLISH_EVERY) {
                published = Some((Instant::now(), phase));
                self.publish(target).await;
            }
        }
    }

    async fn ask_source(&self, source: &Arc<dyn Site>) {
        let retention = tokio::time::timeout(ANSWER_TIMEOUT, source.retention(&self.names)).await;
        if let Ok(Ok(Some(retention))) = retention {
            self.seen().slot = Some(retention.into());
        }
        if let Ok(Ok((end, _))) = tokio::time::timeout(ANSWER_TIMEOUT, source.log_end(None)).await {
            self.seen().source_position = Some(end.to_string());
        }
    }

    /// After a restart the seed is complete and nobody reports it: its numbers are read once.
    async fn ask_seed(&self, target: &Arc<dyn Site>) {
        if self.seen().seed != SeedTotals::default() {
            return;
        }
        let state = tokio::time::timeout(ANSWER_TIMEOUT, target.stream_state(&self.names.job)).await;
        let Ok(Ok(state)) = state else {
            return;
        };
        let tables = TableCounts::of(state.seed.iter().map(|table| table.phase));
        if tables.all_live() {
            self.seen().seed = SeedTotals {
                tables,
                rows: state.seed.iter().map(|table| table.rows).sum(),
                estimated_rows: 0,
                bytes: state.seed.iter().map(|table| table.bytes).sum(),
            };
        }
    }

    async fn ask_conflicts(&self, target: &Arc<dyn Site>) {
        let counts = async {
            tokio::try_join!(
                target.conflict_counts(self.job()),
                target.open_conflicts(self.job())
            )
        };
        if let Ok(Ok((conflicts, open))) = tokio::time::timeout(ANSWER_TIMEOUT, counts).await {
            self.saw_conflicts(conflicts, open);
        }
    }

    /// Stores the status row; says whether that worked. While another instance holds the job, the row is its own.
    pub async fn publish(&self, target: &Arc<dyn Site>) -> bool {
        if !self.holds.load(Ordering::SeqCst) {
            return false;
        }
        let published = Published::from(&self.stats.snapshot());
        let Ok(text) = serde_json::to_string(&published) else {
            return false;
        };
        let stored = tokio::time::timeout(ANSWER_TIMEOUT, target.publish_status(self.job(), &text)).await;
        match stored {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!(%error, "status not published");
                false
            }
            Err(_) => false,
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use cdc_core::TableName;
    use cdc_core::engine::SeedPhase;

    use super::*;
    use crate::run::TableProgress;

    #[test]
    fn an_observation_holds_what_was_reported() {
        let stats = Arc::new(StreamStats::default());
        let names = JobNames {
            job: "shop".into(),
            slot: "cdc_sync_shop".into(),
        };
        let monitor = Monitor::new(names, Arc::clone(&stats));
        let table = |phase| TableProgress {
            table: TableName::new("public", "t"),
            phase,
            estimated_rows: 100,
            disk_bytes: 1000,
            rows: 50,
            bytes: 500,
            parts: (1, 2),
        };
        let progress = SeedProgress {
            tables: vec![table(SeedPhase::Copying), table(SeedPhase::Todo)],
            began: Instant::now(),
            retention: None,
        };
        monitor.saw_seed(&progress);
        monitor.saw_lag(Some(7));
        stats.update(|stats| stats.transactions = 9);
        let seen = monitor.observe();
        assert_eq!(seen.seed.rows, 100);
        assert_eq!(
            seen.seed.tables,
            TableCounts {
                todo: 1,
                copying: 1,
                live: 0
            }
        );
        assert_eq!(seen.facts.lag_bytes, Some(7));
        assert_eq!(seen.facts.transactions, 9);
        assert_eq!(seen.facts.status("").state, "starting");
    }
}
