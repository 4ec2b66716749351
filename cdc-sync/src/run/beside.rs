//! Copying tables anew, or for the first time, while the rest of the job goes on: what `resync` asks for.
//!
//! Tables that are set aside are left out by the job's stream. A second one beside it copies and follows them, as a job
//! of its own with slot, publication and checkpoint. When it has caught up, the job's stream is made to stand still
//! between two sessions, and the second one passes one more marker: it is then ahead of the first by a little. Its position
//! is stored as that from which on the job's stream applies to these tables, in the transaction that ends its checkpoint.
//!
//! ```text
//! set aside ─▶ left out by the stream ─▶ copied and followed beside it ─▶ given back ─▶ foreign keys, triggers ─▶ tidied up
//! ```
//!
//! Every arrow is durable on the target, so a kill anywhere is resumed by running again.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cdc_core::engine::{JobNames, Occupancy, Side};
use cdc_core::pipeline::{Control, StatsSnapshot, StreamStats};
use cdc_core::{Result, TableName, TableSelection, failpoint};
use tokio::sync::MutexGuard;

use super::backoff::Backoff;
use super::follow::{Following, complete_schema, follow, not_stopping, pass_marker};
use super::prepare::{dump_schema, list};
use super::retry::{passes, persist};
use super::tables::widened;
use super::{Reporter, RunContext, SeedProgress, SeedSummary, seed_all};
use crate::job;

/// How often the stream beside looks whether the job is to stop.
const TICK: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How often the log tells how far the copy is.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Whose turn it is with a stream: a session's, or that of whoever needs it to stand still between two sessions.
#[derive(Debug, Default)]
pub(super) struct Turn(tokio::sync::Mutex<()>);

impl Turn {
    /// Waits for the turn, in the order of asking.
    pub(super) async fn take(&self) -> MutexGuard<'_, ()> {
        self.0.lock().await
    }
}

/// Looks after the tables of a job that are set aside.
pub(super) struct Beside<'a> {
    context: &'a Arc<RunContext>,
    epoch: i64,
    following: &'a Following,
    /// of the stream beside the job's
    names: JobNames,
    /// nothing is left of an earlier one
    tidy: bool,
    backoff: Backoff,
}

impl<'a> Beside<'a> {
    pub(super) fn new(context: &'a Arc<RunContext>, epoch: i64, following: &'a Following) -> Self {
        Self {
            context,
            epoch,
            following,
            names: job::beside(&context.names),
            tidy: false,
            backoff: Backoff::new(LONGEST_PAUSE),
        }
    }

    /// Does what is to be done for tables that are set aside; `false` when there was nothing to do. Whatever time mends
    /// is taken up again from what is stored.
    pub(super) async fn attend(&mut self) -> Result<bool> {
        match self.step().await {
            Err(error) if passes(&error) => {
                let pause = self.backoff.pause();
                tracing::warn!(%error, ?pause, "copying beside the stream was interrupted and is taken up again");
                tokio::time::sleep(pause).await;
                Ok(true)
            }
            done => {
                self.backoff.reset();
                done
            }
        }
    }

    /// The next step from what is stored; `false` when there was none to do.
    async fn step(&mut self) -> Result<bool> {
        let RunContext { target, names, .. } = &**self.context;
        let looking = "looking for tables that are set aside";
        let aside = persist(self.context, looking, || target.aside(&names.job)).await?;
        if aside.is_empty() && self.tidy {
            return Ok(false);
        }
        let state = persist(self.context, looking, || target.stream_state(&self.names.job)).await?;
        let begun: Vec<TableName> = state.seed.iter().map(|seed| seed.table.clone()).collect();
        match state.checkpoint {
            Some(_) => self.bring_back(begun).await?,
            None if begun.is_empty() && aside.is_empty() => {
                self.tidy = true;
                return Ok(false);
            }
            None if begun.is_empty() => self.bring_back(self.alike(aside).await?).await?,
            None => self.tidy_up(&begun, state.schema_pending).await?,
        }
        self.tidy = false;
        Ok(true)
    }

    /// Those of the tables that the target has, or else all: a schema is either compared or copied.
    async fn alike(&self, tables: Vec<TableName>) -> Result<Vec<TableName>> {
        let target = &self.context.target;
        let found = persist(self.context, "looking at the target's tables", || {
            target.occupancy(&tables)
        })
        .await?;
        let there = found
            .into_iter()
            .filter(|(_, found)| *found != Occupancy::Missing);
        let there: Vec<TableName> = there.map(|(table, _)| table).collect();
        Ok(if there.is_empty() { tables } else { there })
    }

    /// The job's tables that the source has. All of them, those that are set aside included: how they are published follows
    /// from what they are together.
    async fn of_job_and_there(&self) -> Result<Vec<TableName>> {
        let RunContext {
            source,
            target,
            names,
            selection,
            ..
        } = &**self.context;
        let reading = "reading the job's tables";
        let state = persist(self.context, reading, || target.stream_state(&names.job)).await?;
        let selection = widened(selection, &state.seed);
        let there = persist(self.context, reading, || source.inspect(&selection)).await?;
        let of_job = there.into_iter().map(|table| table.name);
        Ok(of_job
            .filter(|name| state.seed.iter().any(|seed| seed.table == *name))
            .collect())
    }

    /// Copies and follows the tables beside the stream until they can be given back to it.
    async fn bring_back(&self, tables: Vec<TableName>) -> Result<()> {
        let RunContext {
            source,
            target,
            names,
            control,
            reporter,
            ..
        } = &**self.context;
        reporter.note(&format!("copying {} anew beside the stream", list(&tables)));
        // Sessions that begin from here on leave the tables out.
        control.renew_session();
        drop(self.following.turn.take().await);
        failpoint!("beside.left-out", error);
        let published = self.of_job_and_there().await?;
        persist(self.context, "publishing the tables", || {
            source.prepare_source(names, &published)
        })
        .await?;
        let beside = Arc::new(self.own_context(&tables).await?);
        let working = self.follow_beside(&beside);
        let stopping = async {
            while !control.stopping() {
                tokio::time::sleep(TICK).await;
            }
            beside.control.stop(self.context.settings.shutdown_timeout);
            std::future::pending::<Infallible>().await
        };
        let met = tokio::select! {
            met = working => met.map_err(|error| error.context("beside the stream"))?,
            never = stopping => match never {},
        };
        let Some(standing_still) = met else {
            return not_stopping(&beside.control);
        };
        persist(self.context, "giving tables back to the stream", || {
            target.take_back(&names.job, self.epoch, &self.names.job)
        })
        .await?;
        drop(standing_still);
        Ok(())
    }

    /// Seeds and follows as a job of its own; returns with the job's stream standing still, no further than this one has
    /// come, or `None` when it was stopped.
    async fn follow_beside(&self, beside: &Arc<RunContext>) -> Result<Option<MutexGuard<'_, ()>>> {
        let RunContext { target, settings, .. } = &**self.context;
        let fence = target
            .take_fence(&self.names.job, settings.takeover_timeout)
            .await?;
        let seeded = seed_all(beside, fence.epoch()).await?;
        let SeedSummary {
            rows, bytes, seconds, ..
        } = seeded.summary;
        tracing::info!(rows, bytes, seconds, "copied beside the stream");
        let meeting = async {
            pass_marker(beside, "near").await?;
            self.context.control.renew_session();
            let standing_still = self.following.turn.take().await;
            failpoint!("beside.standing-still", error);
            pass_marker(beside, "ahead").await?;
            Ok(standing_still)
        };
        follow(beside, fence, &Following::new(seeded.tables), meeting).await
    }

    /// What the stream beside works with: the job's databases and settings, and names, tables and numbers of its own.
    async fn own_context(&self, tables: &[TableName]) -> Result<RunContext> {
        let context = self.context;
        let state = persist(context, "reading the job's tables", || {
            context.target.stream_state(&context.names.job)
        })
        .await?;
        let live = state.seed.into_iter().map(|seed| seed.table);
        let present = only(live.filter(|table| !tables.contains(table)), &context.selection);
        let mut settings = context.settings.clone();
        settings.truncate_target = true;
        settings.heartbeat = None;
        Ok(RunContext {
            source: Arc::clone(&context.source),
            target: Arc::clone(&context.target),
            names: self.names.clone(),
            selection: only(tables.iter().cloned(), &context.selection),
            present: Some(present),
            settings,
            control: Arc::new(Control::new()),
            conflicts: context.conflicts.clone(),
            stats: Arc::new(StreamStats::default()),
            reporter: Arc::new(Told {
                reporter: Arc::clone(&context.reporter),
                at: Mutex::new(Instant::now()),
            }),
        })
    }

    /// Adds what waits until all tables agree, and removes what the stream beside had on both sides.
    async fn tidy_up(&self, tables: &[TableName], schema_pending: bool) -> Result<()> {
        let RunContext {
            source,
            target,
            settings,
            ..
        } = &**self.context;
        if schema_pending {
            // The job's stream has passed the position at which the tables were given back when it has passed this.
            pass_marker(self.context, "given-back").await?;
            let fence = target
                .take_fence(&self.names.job, settings.takeover_timeout)
                .await?;
            let beside = self.own_context(tables).await?;
            let dump = dump_schema(&beside).await?;
            let followed = (&**self.context, self.following);
            complete_schema(&beside, fence.epoch(), &dump, followed).await?;
        }
        persist(
            self.context,
            "removing what the copy needed on the source",
            || source.cleanup(Side::Source, &self.names, false),
        )
        .await?;
        persist(
            self.context,
            "removing what the copy needed on the target",
            || target.cleanup(Side::Target, &self.names, false),
        )
        .await?;
        failpoint!("beside.tidied-up", error);
        let reporter = &self.context.reporter;
        reporter.note(&format!(
            "{} copied anew and followed with the others",
            list(tables)
        ));
        Ok(())
    }
}

/// A selection of these tables, which may be none, of a job with the selection `of`.
fn only(tables: impl Iterator<Item = TableName>, of: &TableSelection) -> TableSelection {
    let include: Vec<String> = tables.map(|table| table.to_string()).collect();
    let exclude = if include.is_empty() {
        vec!["*".to_owned()]
    } else {
        Vec::new()
    };
    TableSelection {
        include,
        exclude,
        ..of.clone()
    }
}

/// Shows the copy beside the stream in the log: the numbers that are shown elsewhere are the job's.
struct Told {
    reporter: Arc<dyn Reporter>,
    at: Mutex<Instant>,
}

impl Reporter for Told {
    fn seed(&self, progress: &SeedProgress) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if at.elapsed() >= TOLD_EVERY {
            *at = Instant::now();
            let tables = &progress.tables;
            let rows: u64 = tables.iter().map(|table| table.rows).sum();
            let bytes: u64 = tables.iter().map(|table| table.bytes).sum();
            tracing::info!(rows, bytes, "copying beside the stream");
        }
    }

    fn stream(&self, _stats: &StatsSnapshot, _lag_bytes: Option<u64>) {}

    fn note(&self, message: &str) {
        self.reporter.note(message);
    }
}
