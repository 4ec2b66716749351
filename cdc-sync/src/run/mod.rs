//! `run`: from an empty target to a followed one, resumable at every point.
//!
//! ```text
//! fence ─▶ no checkpoint? schema · publication · slot + snapshot · first checkpoint
//!       ─▶ tables not live? copy them (a restart copies unfinished tables whole, from a new snapshot)
//!       ─▶ indexes ─▶ follow; statistics ─▶ all snapshots passed? foreign keys, triggers ─▶ follow …
//! ```
//!
//! Every arrow is durable on the target before the next begins, so a kill anywhere is resumed by running again.

mod advice;
mod backoff;
mod beside;
mod facts;
mod follow;
mod heartbeat;
mod prepare;
mod progress;
mod retention;
mod retry;
mod seed;
mod setback;
mod supervise;
mod tables;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_core::conflict::{ConflictHandler, Policy, PolicyRules};
use cdc_core::engine::{Fence, JobNames, SchemaDump, SeedPhase, SeedTable, SequenceAdvance};
use cdc_core::pipeline::{Control, PipelineConfig, StatsSnapshot, StreamStats};
use cdc_core::{Kind, Position, Result, Site, TableName, TableSelection};

use follow::Following;
pub use progress::{Reporter, SeedProgress, TableProgress};
pub(crate) use retention::standing;
use tables::JobTables;
pub(crate) use tables::{UNPUBLISHED_REMEDY, unpublished};

use crate::check::expect_matched;

/// What `run` may be told.
#[derive(Debug, Clone)]
pub struct RunSettings {
    /// end after everything committed on the source before now is on the target and sequences are advanced
    pub until_caught_up: bool,
    /// empty target tables that hold rows instead of refusing
    pub truncate_target: bool,
    /// how long to wait for another instance to go
    pub takeover_timeout: Duration,
    /// how long work in flight may take after a stop
    pub shutdown_timeout: Duration,
    /// end with exit code 4 when the goal of `until_caught_up` is not reached by then
    pub deadline: Option<Instant>,
    /// connections that copy the seed
    pub seed_connections: usize,
    /// bytes of a table copied by one connection at a time
    pub seed_part_bytes: u64,
    /// retained log of the source, in bytes, at which the seed stops
    pub max_retained_wal: Option<u64>,
    /// limits of the pipeline
    pub pipeline: PipelineConfig,
    /// time between heartbeats; `None` writes none
    pub heartbeat: Option<Duration>,
    /// how many steps sequences are set ahead of the source
    pub sequence_buffer: u32,
    /// who wins conflicts on which tables
    pub conflicts: PolicyRules,
    /// where the product's own dump programs are
    pub tools_dir: Option<PathBuf>,
}

/// Everything `run` works with.
pub struct RunContext {
    /// blue
    pub source: Arc<dyn Site>,
    /// green
    pub target: Arc<dyn Site>,
    /// the job's names
    pub names: JobNames,
    /// which tables
    pub selection: TableSelection,
    /// tables that the target has already and another stream follows, when this one completes its schema
    pub present: Option<TableSelection>,
    /// what it was told
    pub settings: RunSettings,
    /// stop requests; the caller's signal handler calls [`Control::stop`]
    pub control: Arc<Control>,
    /// who decides conflicts of tables under policy `ask`; without one they stop the stream
    pub conflicts: Option<Arc<dyn ConflictHandler>>,
    /// live numbers for `/metrics` and the lag line
    pub stats: Arc<StreamStats>,
    /// where progress is shown
    pub reporter: Arc<dyn Reporter>,
}

/// What the seed of this process run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct SeedSummary {
    /// tables copied
    pub tables: u64,
    /// rows copied
    pub rows: u64,
    /// bytes copied
    pub bytes: u64,
    /// how long it took
    pub seconds: f64,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct RunOutcome {
    /// what was copied by this process
    pub seed: SeedSummary,
    /// the stream's numbers at the end
    pub stats: StatsSnapshot,
    /// newest position of the source's log, as last seen
    pub source_position: Option<Position>,
    /// sequences set, with `until_caught_up`
    pub sequences: Vec<SequenceAdvance>,
    /// whether the marker of `until_caught_up` was applied
    pub caught_up: bool,
}

/// Runs the job until it is stopped or, with [`RunSettings::until_caught_up`], until the goal is reached.
///
/// # Errors
/// What stops a job: see the exit codes. A stop request is not an error.
pub async fn run(context: Arc<RunContext>) -> Result<RunOutcome> {
    let RunContext {
        source,
        target,
        names,
        settings,
        ..
    } = &*context;
    target.prepare_state().await?;
    let fence = target.take_fence(&names.job, settings.takeover_timeout).await?;
    context.reporter.holds(true);
    let mut outcome = RunOutcome {
        seed: SeedSummary::default(),
        stats: StatsSnapshot::default(),
        source_position: None,
        sequences: Vec::new(),
        caught_up: false,
    };
    let worked = work(&context, fence, &mut outcome).await;
    if worked.as_ref().is_err_and(|error| error.kind() == Kind::Fenced) {
        context.reporter.holds(false);
    }
    let completed = match worked {
        Ok(completed) => completed,
        Err(error) => return Err(advice::advised(&context, error).await),
    };
    outcome.stats = context.stats.snapshot();
    if completed {
        // For the report only: a source that just went away does not undo a finished run.
        outcome.source_position = source.log_end(None).await.ok().map(|(position, _)| position);
    }
    Ok(outcome)
}

/// Says what [`run`] would refuse at its start, without changing anything on either side.
///
/// # Errors
/// As [`run`]: tables that do not fit or hold rows, another source, a lost position, a slot of another job.
pub async fn rehearse(context: &RunContext) -> Result<()> {
    prepare::rehearse(context).await
}

/// Tells which tables do not stop at a conflict.
fn announce_policies(rules: &PolicyRules, tables: &[SeedTable]) -> Result<()> {
    expect_matched(rules, tables.iter().map(|table| &table.table))?;
    for SeedTable { table, .. } in tables {
        let policy = rules.policy(table);
        if policy != Policy::Stop {
            tracing::info!(%table, policy = policy.name(), "conflict policy");
        }
    }
    Ok(())
}

/// Seeds what is not seeded, then follows; `false` when a stop ended the seed.
async fn work(context: &Arc<RunContext>, fence: Box<dyn Fence>, outcome: &mut RunOutcome) -> Result<bool> {
    let epoch = fence.epoch();
    let seeded = match seed_all(context, epoch).await {
        Ok(seeded) => seeded,
        Err(error) if error.kind() == Kind::Interrupted && context.control.stopping() => return Ok(false),
        Err(error) => return Err(error),
    };
    outcome.seed = seeded.summary;
    let following = Following::new(seeded.tables);
    let goal = follow::goal(context, epoch, &following, seeded.unfinished);
    let followed = follow::follow(context, fence, &following, goal).await?;
    if let Some(followed) = followed {
        outcome.sequences = followed.sequences;
        outcome.caught_up = followed.caught_up;
    }
    Ok(true)
}

/// A target whose schema was copied and is not complete. As long as that is so, the next run takes all of this up again.
struct Unfinished {
    /// what is still to be created when the stream has passed all snapshots
    schema: SchemaDump,
    /// the tables, which have no statistics yet
    filled: Vec<TableName>,
}

/// A job whose tables are all complete, each as of its own snapshot.
struct Seeded {
    tables: JobTables,
    unfinished: Option<Unfinished>,
    summary: SeedSummary,
}

/// Lays the job's ground if that is not done, and copies what is not copied.
async fn seed_all(context: &Arc<RunContext>, epoch: i64) -> Result<Seeded> {
    let prepared = prepare::prepare(context, epoch).await?;
    announce_policies(&context.settings.conflicts, &prepared.seed)?;
    let tables = JobTables::new(&prepared.seed);
    let unseeded: Vec<TableName> = prepared
        .seed
        .iter()
        .filter(|table| !matches!(table.phase, SeedPhase::Live | SeedPhase::Aside))
        .map(|table| table.table.clone())
        .collect();
    let summary = if unseeded.is_empty() {
        SeedSummary::default()
    } else {
        seed::seed(context, epoch, prepared.snapshot, prepared.seed).await?
    };
    let unfinished = if prepared.schema_pending {
        let indexed = prepare::create_indexes(context, prepared.dump);
        Some(retention::watched(context, indexed).await?)
    } else {
        // Nothing would remind the next run of them.
        retention::watched(context, prepare::analyze(context, &unseeded)).await?;
        None
    };
    Ok(Seeded {
        tables,
        unfinished,
        summary,
    })
}
