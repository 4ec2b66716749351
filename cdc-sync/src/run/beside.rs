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

use cdc_core::engine::{JobNames, Occupancy, SeedPhase, SeedTable, Side};
use cdc_core::pipeline::{Control, SessionTurn, StatsSnapshot, StreamStats};
use cdc_core::{Error, Kind, Result, TableName, TableSelection, failpoint};

use super::backoff::Backoff;
use super::follow::{Following, complete_schema, follow, not_stopping, pass_marker};
use super::prepare::{self, dump_schema, list};
use super::retry::{passes, persist};
use super::setback::{Setbacks, is_of_job};
use super::tables::{expect_not_renamed, widened};
use super::{Reporter, RunContext, SeedProgress, SeedSummary, retention, seed_all};
use crate::job;

/// How often the stream beside looks whether the job is to stop.
const TICK: Duration = Duration::from_millis(20);
/// What is being done when a side is asked where the copy stands.
const LOOKING: &str = "looking for tables that are set aside";
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How often the log tells how far the copy is.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What there was to do for tables that are set aside.
#[derive(Debug)]
pub(super) enum Attended {
    /// none is
    Idle,
    /// a step was done, or waits for its time
    Busy,
    /// an attempt failed in a way that time alone does not mend
    Failed(Error),
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
    /// the position was lost since the last step that got through
    lost: bool,
    backoff: Backoff,
    setbacks: Setbacks,
}

impl<'a> Beside<'a> {
    pub(super) fn new(context: &'a Arc<RunContext>, epoch: i64, following: &'a Following) -> Self {
        Self {
            context,
            epoch,
            following,
            names: job::beside(&context.names),
            tidy: false,
            lost: false,
            backoff: Backoff::new(LONGEST_PAUSE),
            setbacks: Setbacks::default(),
        }
    }

    /// Does what is to be done for tables that are set aside, and decides about every error that it meets: what is of the
    /// whole job ends it, all others leave the job's stream alone and are taken up again from what is stored.
    pub(super) async fn attend(&mut self) -> Result<Attended> {
        let aside = self.aside().await?;
        if self.setbacks.pauses(&aside) {
            return Ok(Attended::Busy);
        }
        let error = match self.step(aside.clone()).await {
            Ok(attended) => {
                self.backoff.reset();
                self.lost = false;
                self.setbacks.end(self.context);
                return Ok(attended);
            }
            Err(error) => error,
        };
        if is_of_job(self.context, &error) {
            return Err(error);
        }
        if passes(&error) {
            let pause = self.backoff.pause();
            tracing::warn!(%error, ?pause, "copying beside the stream was interrupted and is taken up again");
            tokio::time::sleep(pause).await;
            return Ok(Attended::Busy);
        }
        let retained = self.context.source.retention(&self.names).await;
        let retained = retained.ok().flatten().map(|kept| kept.retained_bytes);
        let limit = self.context.settings.max_retained_wal;
        let exceeded = limit.is_some_and(|limit| retained.is_some_and(|bytes| bytes >= limit));
        let lost = error.kind() == Kind::PositionLost;
        if exceeded || lost {
            tracing::warn!(%error, retained, "the copy beside the stream is given up and begins anew");
            match self.begin_anew().await {
                Ok(()) if lost && !std::mem::replace(&mut self.lost, true) => return Ok(Attended::Busy),
                Ok(()) => {}
                Err(worse) if is_of_job(self.context, &worse) => return Err(worse),
                Err(worse) => tracing::warn!(error = %worse, "what the copy had is not removed yet"),
            }
        }
        let error = self.setbacks.add(self.context, aside, error, retained).await;
        Ok(Attended::Failed(error))
    }

    async fn aside(&self) -> Result<Vec<TableName>> {
        let RunContext { target, names, .. } = &**self.context;
        persist(self.context, LOOKING, || target.aside(&names.job)).await
    }

    /// The next step from what is stored.
    async fn step(&mut self, aside: Vec<TableName>) -> Result<Attended> {
        if aside.is_empty() && self.tidy {
            return Ok(Attended::Idle);
        }
        let target = &self.context.target;
        let state = persist(self.context, LOOKING, || target.stream_state(&self.names.job)).await?;
        let begun: Vec<TableName> = state.seed.iter().map(|seed| seed.table.clone()).collect();
        let given_back = state.checkpoint.is_none() && !begun.is_empty();
        let aside = self.without_gone(aside, given_back).await?;
        self.tidy = aside.is_empty() && !given_back;
        if self.tidy {
            return Ok(Attended::Idle);
        }
        if given_back {
            self.tidy_up(&begun, state.schema_pending).await?;
        } else if begun.is_empty() {
            let alike = self.alike(aside, state.schema_pending).await?;
            self.bring_back(alike).await?;
        } else if self.is_outdated(&begun, aside, state.schema_pending).await? {
            self.begin_anew().await?;
        } else {
            self.bring_back(begun).await?;
        }
        Ok(Attended::Busy)
    }

    /// The tables that the source has.
    async fn there(&self, tables: &[TableName]) -> Result<Vec<TableName>> {
        let RunContext {
            source, selection, ..
        } = &**self.context;
        if tables.is_empty() {
            return Ok(Vec::new());
        }
        let selection = only(tables.iter().cloned(), selection);
        let there = persist(self.context, LOOKING, || source.inspect(&selection)).await?;
        Ok(there.into_iter().map(|table| table.name).collect())
    }

    /// Gives up those of the tables that are gone from the source, and returns the others. With `given_back` the stream
    /// beside has ended, and is to be tidied up.
    async fn without_gone(&self, aside: Vec<TableName>, given_back: bool) -> Result<Vec<TableName>> {
        let there = self.there(&aside).await?;
        let (there, gone): (Vec<TableName>, Vec<TableName>) =
            aside.into_iter().partition(|table| there.contains(table));
        if gone.is_empty() {
            return Ok(there);
        }
        let RunContext {
            source,
            target,
            names,
            ..
        } = &**self.context;
        let all = self.of_job().await?;
        let renamed = persist(self.context, LOOKING, || source.renamed(names, &all)).await?;
        expect_not_renamed(
            renamed
                .iter()
                .filter(|renamed| renamed.was.iter().any(|was| gone.contains(was))),
        )?;
        for table in &gone {
            tracing::warn!(%table, "the table, which was set aside, is gone from the source; on the target it stays as it is");
        }
        if there.is_empty() && !given_back {
            self.remove().await?;
        }
        persist(self.context, "giving up tables that are gone", || {
            target.give_up_aside(&names.job, self.epoch, &gone)
        })
        .await?;
        Ok(there)
    }

    /// Those of the tables that the target has, or else all: a schema is either compared or copied. While a copied one is
    /// not complete, those that are empty: it is theirs.
    async fn alike(&self, tables: Vec<TableName>, schema_pending: bool) -> Result<Vec<TableName>> {
        let target = &self.context.target;
        let found = persist(self.context, "looking at the target's tables", || {
            target.occupancy(&tables)
        })
        .await?;
        let there = found.into_iter().filter(|(_, found)| match found {
            Occupancy::Missing => false,
            Occupancy::Empty => true,
            Occupancy::Rows => !schema_pending,
        });
        let there: Vec<TableName> = there.map(|(table, _)| table).collect();
        Ok(if there.is_empty() { tables } else { there })
    }

    /// Whether what is set aside is not what the copy began with: a table is gone, or another came that belongs with
    /// them. Where the schema is copied too, that one waits.
    async fn is_outdated(
        &self,
        begun: &[TableName],
        aside: Vec<TableName>,
        schema_pending: bool,
    ) -> Result<bool> {
        if begun.iter().any(|table| !aside.contains(table)) {
            return Ok(true);
        }
        if schema_pending || aside.len() == begun.len() {
            return Ok(false);
        }
        let alike = self.alike(aside, schema_pending).await?;
        Ok(alike.iter().any(|table| !begun.contains(table)))
    }

    /// Has the copy begin from the start, with all tables that are set aside then. Of one that has ended only goes what it
    /// had on the source.
    async fn begin_anew(&self) -> Result<()> {
        let RunContext {
            source,
            target,
            settings,
            ..
        } = &**self.context;
        let stream = &self.names.job;
        let fence = target.take_fence(stream, settings.takeover_timeout).await?;
        let epoch = fence.epoch();
        let state = persist(self.context, LOOKING, || target.stream_state(stream)).await?;
        persist(self.context, "removing what the copy had on the source", || {
            source.cleanup(Side::Source, &self.names, false)
        })
        .await?;
        if state.checkpoint.is_none() {
            return Ok(());
        }
        if state.schema_pending {
            // By being empty they are known for those whose schema is to be completed.
            self.empty(epoch, state.seed).await?;
        }
        persist(self.context, "forgetting how far the copy has come", || {
            target.begin_anew(stream, epoch)
        })
        .await
    }

    /// Empties those of the tables that hold rows.
    async fn empty(&self, epoch: i64, seed: Vec<SeedTable>) -> Result<()> {
        let target = &self.context.target;
        let tables: Vec<TableName> = seed.iter().map(|seed| seed.table.clone()).collect();
        let found = persist(self.context, "looking at the target's tables", || {
            target.occupancy(&tables)
        })
        .await?;
        let filled = |seed: &SeedTable| found.contains(&(seed.table.clone(), Occupancy::Rows));
        for mut seed in seed.into_iter().filter(filled) {
            seed.phase = SeedPhase::Copying;
            persist(self.context, "emptying a table", || {
                target.store_seed(&self.names.job, epoch, &seed)
            })
            .await?;
        }
        Ok(())
    }

    /// The tables of the job.
    async fn of_job(&self) -> Result<Vec<TableName>> {
        let RunContext { target, names, .. } = &**self.context;
        let state = persist(self.context, LOOKING, || target.stream_state(&names.job)).await?;
        Ok(state.seed.into_iter().map(|seed| seed.table).collect())
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
        drop(control.between_sessions().await);
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
    async fn follow_beside(&self, beside: &Arc<RunContext>) -> Result<Option<SessionTurn<'_>>> {
        let RunContext { target, settings, .. } = &**self.context;
        let fence = target
            .take_fence(&self.names.job, settings.takeover_timeout)
            .await?;
        let seeded = seed_all(beside, fence.epoch()).await?;
        if let Some(unfinished) = &seeded.unfinished {
            retention::watched(beside, prepare::analyze(beside, &unfinished.filled)).await?;
        }
        let SeedSummary {
            rows, bytes, seconds, ..
        } = seeded.summary;
        tracing::info!(rows, bytes, seconds, "copied beside the stream");
        let meeting = async {
            pass_marker(beside, "near").await?;
            let standing_still = self.context.control.between_sessions().await;
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
        let RunContext { target, settings, .. } = &**self.context;
        let there = self.there(tables).await?;
        if schema_pending && !there.is_empty() {
            // The job's stream has passed the position at which the tables were given back when it has passed this.
            pass_marker(self.context, "given-back").await?;
            let fence = target
                .take_fence(&self.names.job, settings.takeover_timeout)
                .await?;
            let beside = self.own_context(&there).await?;
            let dump = dump_schema(&beside).await?;
            let followed = (&**self.context, self.following);
            complete_schema(&beside, fence.epoch(), &dump, followed).await?;
        }
        self.remove().await?;
        failpoint!("beside.tidied-up", error);
        let reporter = &self.context.reporter;
        reporter.note(&format!(
            "{} copied anew and followed with the others",
            list(tables)
        ));
        Ok(())
    }

    /// Removes what the stream beside has on both sides.
    async fn remove(&self) -> Result<()> {
        let RunContext { source, target, .. } = &**self.context;
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
