//! The apply thread: plans into target transactions, the checkpoint inside, and what to do when one fails.
//!
//! A plan that a constraint objects to is redone in order; one that still fails is split, transaction by
//! transaction and row by row, so that everything before the culprit is applied and the culprit is named.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::runtime::Runtime;

use super::ahead::Lane;
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
use crate::model::{ChangeCounts, Position, TxnRecord};
use crate::plan::{ApplyPlan, PlanMode, PlannedTable, Planner, Step, TargetCatalog, TargetTable, TxnGroup};
use crate::sink::{Applied, Checkpoint, CommitOutcome, Sink};
use crate::source::PositionTracker;

/// How often an idle position is stored, at most.
const IDLE_STORE: Duration = Duration::from_secs(10);
/// How often a statement under way looks whether the time for stopping is over.
const ABORT_TICK: Duration = Duration::from_millis(250);
/// How long the lane may take to give up what it has.
const LANE_GIVES_UP: Duration = Duration::from_secs(5);
/// How long what is committed may not be durable yet, or to the end of the target transaction that is open by then. Until
/// it is, it is not confirmed to the source.
const DURABLE_EVERY: Duration = Duration::from_millis(200);
/// Groups of up to this many changes are applied and committed in one go. With more a round trip is a small part of the
/// time, but over a long line, and what must be tried another way has cost more.
const AT_ONCE: u64 = 256;
/// The same where rows go one by one.
const AT_ONCE_IN_ORDER: u64 = 32;
/// A heartbeat at most this old means that the stream is synced.
const SYNCED_WITHIN: Duration = Duration::from_secs(2);

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
    pub(super) recycled_batches: Sender<Arc<Batch>>,
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

    /// Commits the newest idle position, and makes durable what is committed, so that both may be confirmed.
    fn settle(&mut self) -> Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        if let Some(position) = self.idle.take() {
            self.tracker.advance(&position)?;
        }
        if self.tracker.position() == self.checkpoint.position && !self.undurable {
            return Ok(());
        }
        self.idle_stored = Instant::now();
        self.begin()?;
        failpoint!("idle.before-store", error);
        self.commit_durably()?;
        failpoint!("idle.stored", error);
        Ok(())
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

    /// Applies and commits a small group in one go, where the sink can; otherwise nothing has happened.
    fn apply_at_once(&mut self, plan: &ApplyPlan, internal: &InternalRows) -> Result<bool> {
        // What a policy decides has to be known before the checkpoint is written.
        let in_order = plan.steps.iter().any(|step| matches!(step, Step::Ordered(_)));
        let most = if in_order { AT_ONCE_IN_ORDER } else { AT_ONCE };
        if plan.is_empty() || plan.applied > most || plan.decides() {
            return Ok(false);
        }
        let mut tracker = self.tracker.fork();
        let mut open = OpenTxn::new(&self.checkpoint);
        open.account(plan, Applied::default(), internal, &mut *tracker)?;
        open.checkpoint.position = tracker.position();
        open.checkpoint.groups += 1;
        let soon = self.may_commit_soon(&open);
        let Self {
            runtime,
            sink,
            control,
            ..
        } = self;
        let outcome = run(runtime, control, sink.apply_at_once(plan, &open.checkpoint, soon))?;
        let Some(outcome) = outcome else {
            return Ok(false);
        };
        self.tracker = tracker;
        self.undurable |= soon;
        self.committed(outcome, open)?;
        if !soon {
            self.is_durable();
        }
        Ok(true)
    }

    fn recycle(&self, mut plan: Box<ApplyPlan>) {
        for mut piece in plan.group.pieces.drain(..) {
            // One that reaches into the next group is handed back with that.
            if let Some(batch) = Arc::get_mut(&mut piece.batch) {
                batch.clear();
                let _ = self.recycled_batches.try_send(piece.batch);
            }
        }
        plan.clear();
        let _ = self.recycled_plans.try_send(plan);
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

    /// Commits, and waits until it is durable only now and then: a busy stream has many commits in the time of one wait.
    fn commit(&mut self) -> Result<()> {
        if !self.open.as_ref().is_some_and(|open| self.may_commit_soon(open)) {
            return self.commit_durably();
        }
        self.undurable = true;
        self.commit_as(|sink, checkpoint| sink.commit_soon(checkpoint))
    }

    /// Whether the commit need not wait until it is durable.
    fn may_commit_soon(&self, open: &OpenTxn) -> bool {
        // Whoever waits for a marker acts on what is there.
        let marks = !open.internal.markers.is_empty();
        !marks && !self.control.stopping() && self.durable_since.elapsed() < DURABLE_EVERY
    }

    /// Commits, and with it makes durable what was committed before.
    fn commit_durably(&mut self) -> Result<()> {
        self.commit_as(|sink, checkpoint| sink.commit(checkpoint))?;
        self.is_durable();
        Ok(())
    }

    /// What is committed is durable.
    fn is_durable(&mut self) {
        self.durable.set(self.checkpoint.position.clone());
        self.durable_since = Instant::now();
        self.undurable = false;
    }

    fn commit_as(
        &mut self,
        commit: impl for<'s> FnOnce(&'s mut dyn Sink, &'s Checkpoint) -> BoxFuture<'s, CommitOutcome>,
    ) -> Result<()> {
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
        let outcome = run(runtime, control, commit(&mut **sink, &open.checkpoint))?;
        self.committed(outcome, open)
    }

    /// Has the lane commit a transaction that it has applied ahead of its commit.
    fn commit_ahead(&mut self, txn: &TxnRecord) -> Result<()> {
        let Some(lane) = self.lane.as_ref().filter(|_| self.open.is_none()) else {
            return Err(Error::bug(
                "a transaction comes as applied that nobody has applied",
            ));
        };
        self.tracker.fold(txn)?;
        let mut checkpoint = self.checkpoint.clone();
        checkpoint.position = self.tracker.position();
        checkpoint.groups += 1;
        checkpoint.transactions += 1;
        checkpoint.commit_time_micros = txn.commit_time_micros;
        checkpoint.changes += txn.counts;
        let committed = lane
            .commit(checkpoint, &self.control)
            .inspect_err(|_| self.control.spare_lane())?;
        let open = OpenTxn {
            began: committed.began,
            checkpoint: committed.checkpoint,
            commit_times: vec![txn.commit_time_micros],
            rows: committed.sums.rows,
            internal: committed.sums.internal,
        };
        self.committed(committed.outcome, open)?;
        self.is_durable();
        Ok(())
    }

    /// Notes what is committed.
    fn committed(&mut self, outcome: CommitOutcome, open: OpenTxn) -> Result<()> {
        if outcome == CommitOutcome::Unknown {
            return Err(Error::new(
                Kind::Unreachable,
                "the answer to COMMIT was lost; the checkpoint will tell",
            )
            .action(Action::Reconnect)
            .at(&open.checkpoint.position));
        }
        self.checkpoint = open.checkpoint.clone();
        if let Some(lane) = &self.lane {
            lane.signals.reach(open.checkpoint.position.clone());
        }
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
        self.account(&plan, applied, &internal_rows(group)?)?;
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
        self.account(&plan, sum, &internal_rows(group)?)?;
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

/// Whether smaller pieces can tell which row is to blame.
fn splittable(error: &Error) -> bool {
    error.what_to_do() == Action::Conflict
        || (error.what_to_do() == Action::Stop
            && matches!(error.kind(), Kind::Conflict | Kind::Data | Kind::Schema))
}
