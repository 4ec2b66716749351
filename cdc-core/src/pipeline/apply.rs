//! The apply thread: plans into target transactions, the checkpoint inside, and what to do when one fails.
//!
//! A plan that a constraint objects to is redone in order; of one that still fails the culprit is looked for.

mod commit;
mod culprit;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::runtime::Runtime;

use super::ahead::Lane;
use super::control::Control;
use super::internal::InternalRows;
use super::plan::Work;
use super::pool::BatchPool;
use super::session::Durable;
use super::stats::{Phase, StreamStats};
use crate::BoxFuture;
use crate::conflict::ConflictHandler;
use crate::error::{Action, Error, Kind, Result};
use crate::model::{ChangeCounts, Position};
use crate::plan::{ApplyPlan, PlanMode, Planner, TargetCatalog};
use crate::sink::{Applied, Checkpoint, Sink};
use crate::source::PositionTracker;
use culprit::splittable;

/// How often an idle position is stored, at most.
const IDLE_STORE: Duration = Duration::from_secs(10);
/// How often a statement under way looks whether the time for stopping is over.
const ABORT_TICK: Duration = Duration::from_millis(250);
/// How long the lane may take to give up what it has.
const LANE_GIVES_UP: Duration = Duration::from_secs(5);
/// How long what is committed may not be durable yet, or to the end of the target transaction that is open by then. Until
/// it is, it is not confirmed to the source.
const DURABLE_EVERY: Duration = Duration::from_millis(200);

pub(super) struct ApplyStage {
    pub(super) sink: Box<dyn Sink>,
    pub(super) runtime: Runtime,
    pub(super) planner: Planner,
    pub(super) catalog: Arc<TargetCatalog>,
    /// the newest checkpoint that is committed on the target
    pub(super) checkpoint: Checkpoint,
    pub(super) tracker: Box<dyn PositionTracker>,
    pub(super) work: Receiver<Work>,
    pub(super) free: Sender<()>,
    pub(super) pool: Arc<BatchPool>,
    pub(super) recycled_plans: Sender<Box<ApplyPlan>>,
    pub(super) durable: Arc<Durable>,
    pub(super) control: Arc<Control>,
    pub(super) stats: Arc<StreamStats>,
    pub(super) conflicts: Option<Arc<dyn ConflictHandler>>,
    pub(super) open: Option<OpenTxn>,
    pub(super) idle: Option<Position>,
    pub(super) idle_stored: Instant,
    /// what applies transactions before they have committed, where the source hands such out
    pub(super) lane: Option<Lane>,
    /// when everything that was committed was last durable
    pub(super) durable_since: Instant,
    /// whether something that is committed is not durable yet
    pub(super) undurable: bool,
}

/// What the open target transaction will add to the checkpoint when it commits.
pub(super) struct OpenTxn {
    began: Instant,
    checkpoint: Checkpoint,
    commit_times: Vec<i64>,
    rows: u64,
    internal: InternalRows,
}

impl OpenTxn {
    /// One that follows `checkpoint` and holds nothing yet.
    fn new(checkpoint: &Checkpoint) -> OpenTxn {
        OpenTxn {
            began: Instant::now(),
            checkpoint: checkpoint.clone(),
            commit_times: Vec::new(),
            rows: 0,
            internal: InternalRows::default(),
        }
    }

    /// Adds what a plan did.
    fn account(
        &mut self,
        plan: &ApplyPlan,
        applied: Applied,
        internal: &InternalRows,
        tracker: &mut dyn PositionTracker,
    ) -> Result<()> {
        for piece in &plan.group.pieces {
            for txn in piece.batch.txns().get(piece.txns.clone()).unwrap_or_default() {
                if txn.last {
                    tracker.fold(txn)?;
                    self.checkpoint.transactions += 1;
                    self.checkpoint.commit_time_micros = txn.commit_time_micros;
                    self.commit_times.push(txn.commit_time_micros);
                }
            }
        }
        self.checkpoint.changes += counted(plan, applied)?;
        self.rows += plan.applied;
        self.internal.beats.extend(&internal.beats);
        self.internal.markers.extend_from_slice(&internal.markers);
        Ok(())
    }
}

impl ApplyStage {
    pub(super) fn run(mut self) -> Result<()> {
        let ended = self.admit_lane().and_then(|()| self.work_until_done());
        if ended.is_err() && self.lane.as_ref().is_some_and(|lane| lane.signals.is_open()) {
            // It may be what was in the way.
            self.control.spare_lane();
        }
        if self.open.take().is_some() {
            let Self { runtime, sink, .. } = &mut self;
            // The connection may be what failed; the server rolls back when it closes.
            let _ = runtime.block_on(async { tokio::time::timeout(ABORT_TICK * 4, sink.rollback()).await });
        }
        ended
    }

    /// Lets the lane connect once this thread has: what the target has one of (the last free origin, the last free
    /// connection) is the stream's.
    fn admit_lane(&mut self) -> Result<()> {
        if self.lane.is_some() {
            self.begin()?;
            self.rollback()?;
        }
        if let Some(lane) = &self.lane {
            lane.signals.reach(self.checkpoint.position.clone());
        }
        Ok(())
    }

    fn work_until_done(&mut self) -> Result<()> {
        let _ = self.free.try_send(());
        loop {
            match self.work.recv_timeout(self.patience()) {
                Ok(Work::Plan {
                    plan,
                    internal,
                    at_boundary,
                }) => {
                    let _ = self.free.try_send(());
                    self.apply(plan, internal, at_boundary)?;
                }
                Ok(Work::Refused { group, error }) => return Err(self.refused(&group, error)?),
                Ok(Work::Idle(position)) => self.idle = Some(position),
                Ok(Work::Held(barrier)) => {
                    self.settle()?;
                    if let Some(lane) = &self.lane {
                        lane.signals.give_up(LANE_GIVES_UP);
                    }
                    self.control
                        .gate
                        .answer(barrier, self.checkpoint.position.clone());
                    self.stats.update(|stats| stats.phase = Phase::Held);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.stats
                        .update(|stats| stats.phase = self.phase_now(stats.phase));
                }
                Err(RecvTimeoutError::Disconnected) => return self.settle(),
            }
            if self.control.expired() {
                return Err(Error::new(
                    Kind::Interrupted,
                    "the time for stopping is over; work in flight is rolled back",
                ));
            }
            let is_late = self.undurable && self.durable_since.elapsed() >= DURABLE_EVERY;
            if is_late || (self.idle.is_some() && self.idle_stored.elapsed() >= IDLE_STORE) {
                self.settle()?;
            }
        }
    }

    /// How long to wait for work: no longer than what is committed may be without being durable.
    fn patience(&self) -> Duration {
        if self.undurable && self.open.is_none() {
            return DURABLE_EVERY.saturating_sub(self.durable_since.elapsed());
        }
        ABORT_TICK
    }

    fn apply(&mut self, mut plan: Box<ApplyPlan>, internal: InternalRows, at_boundary: bool) -> Result<()> {
        self.idle = None;
        if let Some(txn) = plan.group.ahead() {
            self.commit_ahead(txn)?;
            self.recycle(plan);
            return Ok(());
        }
        let fresh = self.open.is_none();
        if fresh && at_boundary && self.apply_at_once(&plan, &internal)? {
            self.recycle(plan);
            return Ok(());
        }
        if fresh {
            self.begin()?;
        }
        let applied = match self.try_plan(&mut plan) {
            Ok(applied) => applied,
            Err(error) if redo_in_order(&error) => {
                self.remember_order(&error, &plan);
                self.planner.compile_into(&mut plan, PlanMode::Ordered)?;
                match self.try_plan(&mut plan) {
                    Ok(applied) => applied,
                    Err(error) if splittable(&error) => {
                        return self.one_by_one(&plan.group, fresh, at_boundary, error);
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        self.account(&plan, applied, &internal)?;
        if at_boundary {
            self.commit()?;
        }
        self.recycle(plan);
        Ok(())
    }

    fn recycle(&self, mut plan: Box<ApplyPlan>) {
        for piece in plan.group.pieces.drain(..) {
            // One that reaches into the next group is kept when that is handed back.
            self.pool.give(piece.batch);
        }
        plan.clear();
        let _ = self.recycled_plans.try_send(plan);
    }

    fn try_plan(&mut self, plan: &mut ApplyPlan) -> Result<Applied> {
        if plan.is_empty() {
            return Ok(Applied::default());
        }
        if plan.decides() && plan.labels.is_empty() {
            let pieces = plan.group.pieces.iter();
            let labels = pieces.map(|piece| {
                let txns = piece.batch.txns().iter();
                txns.map(|txn| self.tracker.describe(txn)).collect()
            });
            plan.labels = labels.collect();
        }
        let applied = self.send_plan(plan);
        let Some(lane) = &self.lane else {
            return applied;
        };
        match applied {
            Err(error) if redo_in_order(&error) && lane.signals.is_open() => {
                tracing::debug!(%error, "tried again without what is applied ahead");
                lane.signals.give_up(LANE_GIVES_UP);
                self.send_plan(plan)
            }
            applied => applied,
        }
    }

    fn send_plan(&mut self, plan: &ApplyPlan) -> Result<Applied> {
        let Self {
            runtime,
            sink,
            control,
            ..
        } = self;
        run(runtime, control, sink.apply(plan))
    }

    fn begin(&mut self) -> Result<()> {
        let Self {
            runtime,
            sink,
            control,
            ..
        } = self;
        run(runtime, control, sink.begin())?;
        self.open = Some(OpenTxn::new(&self.checkpoint));
        Ok(())
    }

    /// Adds what a plan did to the checkpoint of the open transaction.
    fn account(&mut self, plan: &ApplyPlan, applied: Applied, internal: &InternalRows) -> Result<()> {
        let Some(open) = &mut self.open else {
            return Err(Error::bug("accounting outside a target transaction"));
        };
        open.account(plan, applied, internal, &mut *self.tracker)
    }

    /// A phase that has ended without a heartbeat to say so.
    fn phase_now(&self, phase: Phase) -> Phase {
        match phase {
            Phase::Held if self.control.gate.wanted().is_none() => Phase::CatchingUp,
            phase => phase,
        }
    }

    /// Remembers the table that objected to a set statement, so that it is planned in order from now on.
    fn remember_order(&self, error: &Error, plan: &ApplyPlan) {
        let tables = plan.tables.iter().map(|table| &table.source.name);
        if let Some(table) = tables
            .into_iter()
            .find(|name| error.object_name() == Some(&name.to_string()))
        {
            tracing::warn!(%table, %error, "set statement redone in order; the table is applied in order from now on");
            self.catalog.set_ordered(table);
            self.stats.update(|stats| stats.ordered_fallbacks += 1);
        }
    }

    fn rollback(&mut self) -> Result<()> {
        self.open = None;
        let Self {
            runtime,
            sink,
            control,
            ..
        } = self;
        run(runtime, control, sink.rollback())
    }
}

/// Runs one operation of the sink, giving up when the time for stopping is over: the dropped operation's
/// transaction is rolled back with its connection.
fn run<T>(runtime: &Runtime, control: &Control, mut operation: BoxFuture<'_, T>) -> Result<T> {
    runtime.block_on(async {
        loop {
            match tokio::time::timeout(ABORT_TICK, &mut operation).await {
                Ok(done) => return done,
                Err(_) if control.expired() => {
                    return Err(Error::new(
                        Kind::Interrupted,
                        "the time for stopping is over; work in flight is rolled back",
                    ));
                }
                Err(_) => {}
            }
        }
    })
}

/// What a plan that was applied adds to the accounting.
pub(super) fn counted(plan: &ApplyPlan, applied: Applied) -> Result<ChangeCounts> {
    let mut sum = ChangeCounts::default();
    for piece in &plan.group.pieces {
        for txn in piece.batch.txns().get(piece.txns.clone()).unwrap_or_default() {
            sum += txn.counts;
        }
    }
    sum.applied += plan
        .applied
        .saturating_sub(applied.superseded + applied.dead_lettered);
    sum.superseded += applied.superseded;
    sum.dead_lettered += applied.dead_lettered;
    sum.coalesced += plan.coalesced;
    if sum.balanced() {
        return Ok(sum);
    }
    Err(Error::bug(format!("the accounting broke: {sum:?}")))
}

/// Whether a plan of net sets is worth trying again in order.
fn redo_in_order(error: &Error) -> bool {
    error.what_to_do() == Action::Conflict || splittable(error)
}
