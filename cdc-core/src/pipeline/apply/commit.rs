//! Committing, with the checkpoint inside: at the end of a group, at once with a small one, or what the lane holds.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::super::internal::InternalRows;
use super::super::stats::Phase;
use super::{ApplyStage, DURABLE_EVERY, OpenTxn, run};
use crate::BoxFuture;
use crate::error::{Action, Error, Kind, Result};
use crate::failpoint;
use crate::model::TxnRecord;
use crate::plan::{ApplyPlan, Step};
use crate::sink::{Applied, Checkpoint, CommitOutcome, Sink};

/// Groups of up to this many changes are applied and committed in one go. With more a round trip is a small part of the
/// time, but over a long line, and what must be tried another way has cost more.
const AT_ONCE: u64 = 256;
/// The same where rows go one by one.
const AT_ONCE_IN_ORDER: u64 = 32;
/// A heartbeat at most this old means that the stream is synced.
const SYNCED_WITHIN: Duration = Duration::from_secs(2);

impl ApplyStage {
    /// Applies and commits a small group in one go, where the sink can; otherwise nothing has happened.
    pub(super) fn apply_at_once(&mut self, plan: &ApplyPlan, internal: &InternalRows) -> Result<bool> {
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

    /// Commits, and waits until it is durable only now and then: a busy stream has many commits in the time of one wait.
    pub(super) fn commit(&mut self) -> Result<()> {
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
    pub(super) fn commit_ahead(&mut self, txn: &TxnRecord) -> Result<()> {
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

    /// Commits the newest idle position, and makes durable what is committed, so that both may be confirmed.
    pub(super) fn settle(&mut self) -> Result<()> {
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
}
