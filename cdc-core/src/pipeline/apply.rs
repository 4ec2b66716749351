//! The apply thread: plans into target transactions, the checkpoint inside, and what to do when one fails.
//!
//! A plan that a constraint objects to is redone in order; one that still fails is split, transaction by
//! transaction and row by row, so that everything before the culprit is applied and the culprit is named.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::runtime::Runtime;

use super::control::Control;
use super::internal::{InternalRows, internal_rows};
use super::plan::Work;
use super::session::Durable;
use super::stats::{Phase, StreamStats};
use crate::BoxFuture;
use crate::batch::Batch;
use crate::conflict::{Conflict, ConflictHandler, Policy};
use crate::error::{Action, Error, Kind, Result};
use crate::failpoint;
use crate::model::Position;
use crate::plan::{ApplyPlan, PlanMode, PlannedTable, Planner, Step, TargetCatalog, TargetTable, TxnGroup};
use crate::sink::{Applied, Checkpoint, CommitOutcome, Sink};
use crate::source::PositionTracker;

/// How often an idle position is stored, at most.
const IDLE_STORE: Duration = Duration::from_secs(10);
/// How often a statement under way looks whether the time for stopping is over.
const ABORT_TICK: Duration = Duration::from_millis(250);
/// A heartbeat at most this old means that the stream is synced.
const SYNCED_WITHIN: Duration = Duration::from_secs(2);

pub(super) struct ApplyStage {
    pub(super) sink: Box<dyn Sink>,
    pub(super) runtime: Runtime,
    pub(super) planner: Planner,
    pub(super) catalog: Arc<TargetCatalog>,
    /// the newest checkpoint that is durable on the target
    pub(super) checkpoint: Checkpoint,
    pub(super) tracker: Box<dyn PositionTracker>,
    pub(super) work: Receiver<Work>,
    pub(super) free: Sender<()>,
    pub(super) recycled_batches: Sender<Arc<Batch>>,
    pub(super) recycled_plans: Sender<Box<ApplyPlan>>,
    pub(super) durable: Arc<Durable>,
    pub(super) control: Arc<Control>,
    pub(super) stats: Arc<StreamStats>,
    pub(super) conflicts: Option<Arc<dyn ConflictHandler>>,
    pub(super) open: Option<OpenTxn>,
    pub(super) idle: Option<Position>,
    pub(super) idle_stored: Instant,
}

/// What the open target transaction will add to the checkpoint when it commits.
pub(super) struct OpenTxn {
    began: Instant,
    checkpoint: Checkpoint,
    commit_times: Vec<i64>,
    rows: u64,
    internal: InternalRows,
}

impl ApplyStage {
    pub(super) fn run(mut self) -> Result<()> {
        let ended = self.work_until_done();
        if self.open.take().is_some() {
            let Self { runtime, sink, .. } = &mut self;
            // The connection may be what failed; the server rolls back when it closes.
            let _ = runtime.block_on(async { tokio::time::timeout(ABORT_TICK * 4, sink.rollback()).await });
        }
        ended
    }

    fn work_until_done(&mut self) -> Result<()> {
        let _ = self.free.try_send(());
        loop {
            match self.work.recv_timeout(ABORT_TICK) {
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
                    self.store_idle()?;
                    self.control
                        .gate
                        .answer(barrier, self.checkpoint.position.clone());
                    self.stats.update(|stats| stats.phase = Phase::Held);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.stats
                        .update(|stats| stats.phase = self.phase_now(stats.phase));
                }
                Err(RecvTimeoutError::Disconnected) => return self.store_idle(),
            }
            if self.control.expired() {
                return Err(Error::new(
                    Kind::Interrupted,
                    "the time for stopping is over; work in flight is rolled back",
                ));
            }
            if self.idle_stored.elapsed() >= IDLE_STORE {
                self.store_idle()?;
            }
        }
    }

    /// Commits the newest idle position, so that it may be confirmed.
    fn store_idle(&mut self) -> Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        let Some(position) = self.idle.take() else {
            return Ok(());
        };
        self.tracker.advance(&position)?;
        if self.tracker.position() == self.checkpoint.position {
            return Ok(());
        }
        self.idle_stored = Instant::now();
        self.begin()?;
        failpoint!("idle.before-store", error);
        self.commit()?;
        failpoint!("idle.stored", error);
        Ok(())
    }

    fn apply(&mut self, mut plan: Box<ApplyPlan>, internal: InternalRows, at_boundary: bool) -> Result<()> {
        self.idle = None;
        let fresh = self.open.is_none();
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
        self.account(&plan, applied, internal)?;
        if at_boundary {
            self.commit()?;
        }
        for mut piece in plan.group.pieces.drain(..) {
            // One that reaches into the next group is handed back with that.
            if let Some(batch) = Arc::get_mut(&mut piece.batch) {
                batch.clear();
                let _ = self.recycled_batches.try_send(piece.batch);
            }
        }
        plan.clear();
        let _ = self.recycled_plans.try_send(plan);
        Ok(())
    }

    /// The error of a group that cannot be planned, once everything before its cause is applied.
    fn refused(&mut self, group: &TxnGroup, error: Error) -> Result<Error> {
        if !splittable(&error) {
            return Ok(error);
        }
        let fresh = self.open.is_none();
        if fresh {
            self.begin()?;
        }
        Ok(match self.one_by_one(group, fresh, false, error) {
            Ok(()) => Error::bug("a group that cannot be planned was applied"),
            Err(error) => error,
        })
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
        self.open = Some(OpenTxn {
            began: Instant::now(),
            checkpoint: self.checkpoint.clone(),
            commit_times: Vec::new(),
            rows: 0,
            internal: InternalRows::default(),
        });
        Ok(())
    }

    /// Adds what a plan did to the checkpoint of the open transaction.
    fn account(&mut self, plan: &ApplyPlan, applied: Applied, internal: InternalRows) -> Result<()> {
        let Some(open) = &mut self.open else {
            return Err(Error::bug("accounting outside a target transaction"));
        };
        let before = open.checkpoint.changes;
        for piece in &plan.group.pieces {
            for txn in piece.batch.txns().get(piece.txns.clone()).unwrap_or_default() {
                open.checkpoint.changes += txn.counts;
                if txn.last {
                    self.tracker.fold(txn)?;
                    open.checkpoint.transactions += 1;
                    open.checkpoint.commit_time_micros = txn.commit_time_micros;
                    open.commit_times.push(txn.commit_time_micros);
                }
            }
        }
        let changes = &mut open.checkpoint.changes;
        changes.applied += plan
            .applied
            .saturating_sub(applied.superseded + applied.dead_lettered);
        changes.superseded += applied.superseded;
        changes.dead_lettered += applied.dead_lettered;
        changes.coalesced += plan.coalesced;
        if before.balanced() && !open.checkpoint.changes.balanced() {
            return Err(Error::bug(format!(
                "the accounting broke: {:?}",
                open.checkpoint.changes
            )));
        }
        open.rows += plan.applied;
        open.internal.beats.extend(internal.beats);
        open.internal.markers.extend(internal.markers);
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else {
            return Err(Error::bug("commit outside a target transaction"));
        };
        open.checkpoint.position = self.tracker.position();
        open.checkpoint.groups += 1;
        let Self {
            runtime,
            sink,
            control,
            ..
        } = self;
        match run(runtime, control, sink.commit(&open.checkpoint))? {
            CommitOutcome::Done => {}
            CommitOutcome::Unknown => {
                return Err(Error::new(
                    Kind::Unreachable,
                    "the answer to COMMIT was lost; the checkpoint will tell",
                )
                .action(Action::Reconnect)
                .at(&open.checkpoint.position));
            }
        }
        self.checkpoint = open.checkpoint.clone();
        self.durable.set(open.checkpoint.position.clone());
        self.report(&open);
        open.internal
            .markers
            .into_iter()
            .for_each(|id| self.control.marker_arrived(id));
        Ok(())
    }

    fn report(&self, open: &OpenTxn) {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_micros() as i64);
        let beats: Vec<u64> = open
            .internal
            .beats
            .iter()
            .filter_map(|beat| self.control.beat_arrived(*beat))
            .map(|lag| lag.as_micros() as u64)
            .collect();
        self.stats.update(|stats| {
            stats.changes = open.checkpoint.changes;
            stats.transactions = open.checkpoint.transactions;
            stats.groups = open.checkpoint.groups;
            stats.applied = Some(open.checkpoint.position.clone());
            stats.applied_commit_micros = open.checkpoint.commit_time_micros;
            stats.last_commit = Some(Instant::now());
            stats.last_group_rows = open.rows;
            stats.apply_time.record(open.began.elapsed().as_micros() as u64);
            open.commit_times.iter().for_each(|at| {
                stats
                    .commit_latency
                    .record(wall.saturating_sub(*at).max(0) as u64)
            });
            for lag in &beats {
                stats.heartbeat.record(*lag);
            }
            // What was waited out is over.
            stats.last_error = None;
            stats.phase = match self.phase_now(stats.phase) {
                Phase::Waiting => Phase::CatchingUp,
                phase => phase,
            };
            if let Some(lag) = beats.last() {
                let synced = Duration::from_micros(*lag) <= SYNCED_WITHIN;
                stats.phase = if synced { Phase::Synced } else { Phase::CatchingUp };
            }
        });
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

    /// Applies a group that failed as a whole: transaction by transaction up to the one that fails, and of that row by
    /// row. A conflict that the embedding program is asked about may be decided there; everything else is the error to
    /// stop with. `fresh` says that the target transaction holds nothing but this group.
    fn one_by_one(&mut self, group: &TxnGroup, fresh: bool, at_boundary: bool, error: Error) -> Result<()> {
        if !fresh {
            return self.row_by_row(group, at_boundary, error);
        }
        self.rollback()?;
        let mut decided = false;
        for (number, piece) in group.pieces.iter().enumerate() {
            for index in piece.txns.clone() {
                let Some(txn) = piece.batch.txns().get(index) else {
                    continue;
                };
                let mut part = piece.clone();
                part.txns = index..index + 1;
                part.rows = txn.rows.start as usize..txn.rows.end as usize;
                let single = TxnGroup { pieces: vec![part] };
                match self.apply_single(&single, txn.last) {
                    Ok(()) => {}
                    Err(error) if splittable(&error) => {
                        tracing::debug!(piece = number, txn = index, "culprit transaction found");
                        self.row_by_row(&single, txn.last, error)?;
                        decided = true;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if decided {
            return Ok(());
        }
        // Alone, every transaction went through: what objected has gone. Start again from the checkpoint.
        Err(error.action(Action::Retry))
    }

    fn apply_single(&mut self, group: &TxnGroup, last: bool) -> Result<()> {
        if self.open.is_none() {
            self.begin()?;
        }
        let mut plan = self.planner.compile(group.clone(), PlanMode::Ordered)?;
        let applied = self.try_plan(&mut plan)?;
        self.account(&plan, applied, internal_rows(group)?)?;
        if last { self.commit() } else { Ok(()) }
    }

    /// Applies the rows of a group one by one: the error of the one that fails says more than the group's `error`.
    fn row_by_row(&mut self, group: &TxnGroup, last: bool, error: Error) -> Result<()> {
        let at = format!("the transaction after {}", self.tracker.position());
        let plan = self.planner.compile(group.clone(), PlanMode::Ordered);
        let mut plan = plan.map_err(|error| error.at(&at))?;
        let steps = std::mem::take(&mut plan.steps);
        let mut sum = Applied::default();
        let mut decided = false;
        for step in steps {
            let singles: Vec<Step> = match step {
                Step::Ordered(rows) => rows.iter().map(|row| Step::Ordered(vec![*row])).collect(),
                other => vec![other],
            };
            for single in singles {
                let mut one = plan.clone();
                one.steps = vec![single];
                let applied = match self.try_plan(&mut one) {
                    Ok(applied) => applied,
                    Err(error) => {
                        decided = true;
                        self.decide(one, error).map_err(|error| error.at(&at))?
                    }
                };
                sum.superseded += applied.superseded;
                sum.dead_lettered += applied.dead_lettered;
            }
        }
        if !decided {
            // What objected has gone. Start again from the checkpoint.
            return Err(error.action(Action::Retry).at(&at));
        }
        self.account(&plan, sum, internal_rows(group)?)?;
        if last { self.commit() } else { Ok(()) }
    }

    /// Asks the embedding program about a row that met a conflict, and applies the row as it says.
    fn decide(&mut self, mut one: ApplyPlan, error: Error) -> Result<Applied> {
        let Some(handler) = self.conflicts.clone().filter(|_| error.kind() == Kind::Conflict) else {
            return Err(error);
        };
        let policy = match one.steps.as_slice() {
            [Step::Ordered(rows)] => rows.first().and_then(|row| {
                let table = one.tables.get(row.table)?;
                let conflict = Conflict {
                    table: &table.target.name,
                    error: &error,
                    change: one.event(row.row)?,
                };
                let asks = table.target.policy == Policy::Ask;
                asks.then(|| (row.table, handler.decide(&conflict)))
            }),
            _ => None,
        };
        let Some((number, policy)) = policy.filter(|(_, policy)| policy.decides()) else {
            return Err(error);
        };
        if let Some(table) = one.tables.get_mut(number) {
            let target = TargetTable {
                policy,
                ..TargetTable::clone(&table.target)
            };
            *table = Arc::new(PlannedTable {
                target: Arc::new(target),
                ..PlannedTable::clone(table)
            });
        }
        self.try_plan(&mut one)
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

/// Whether a plan of net sets is worth trying again in order.
fn redo_in_order(error: &Error) -> bool {
    error.what_to_do() == Action::Conflict || splittable(error)
}

/// Whether smaller pieces can tell which row is to blame.
fn splittable(error: &Error) -> bool {
    error.what_to_do() == Action::Conflict
        || (error.what_to_do() == Action::Stop
            && matches!(error.kind(), Kind::Conflict | Kind::Data | Kind::Schema))
}
