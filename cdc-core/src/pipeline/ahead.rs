//! The lane: a thread with a connection of its own that applies a transaction while it still runs on the source.
//!
//! See [`crate::ahead`] for what it is given. It leaves everything that is not plain to the apply thread, by giving the
//! transaction up: conflicts, what a policy decides, tables that have changed, subtransactions, any error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tokio::runtime::Runtime;

use super::apply::counted;
use super::budget::Budget;
use super::control::Control;
use super::decode::RETAINED_CHUNK_BYTES;
use super::grouper::GroupLimits;
use super::internal::{InternalRows, internal_rows};
use super::pool::BatchPool;
use super::stats::StreamStats;
use crate::BoxFuture;
use crate::ahead::{DecoderMaker, Outcome, SharedSpill, Taken, Task};
use crate::batch::OpCounts;
use crate::error::{Action, Error, Kind, Result};
use crate::failpoint;
use crate::model::{ChangeCounts, Position};
use crate::plan::{ApplyPlan, Piece, PlanMode, Planner};
use crate::sink::{Checkpoint, CommitOutcome, Sink};
use crate::source::{Decoder, PositionTracker, RawChunk};

/// How often a wait looks whether the transaction is to be given up.
const TICK: Duration = Duration::from_millis(50);
/// How long a transaction on the target is held open for a source that sends nothing more of it: its locks and its
/// snapshot are in others' way.
const IDLE: Duration = Duration::from_secs(10);
/// How often the target is asked whether others wait for what is locked.
const WAY: Duration = Duration::from_secs(1);
/// How long the target may take to roll back: a sink gives it a second.
const ROLL_BACK: Duration = Duration::from_secs(5);

/// What the apply thread tells the lane, and what it wants to know of it.
#[derive(Debug, Default)]
pub(super) struct Signals {
    state: Mutex<State>,
    changed: Condvar,
    give_up: AtomicBool,
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// how far the stream is committed on the target; none until it is connected there
    reached: Option<Position>,
    /// whether the lane has a transaction open there
    open: bool,
}

impl Signals {
    /// The stream is committed up to here.
    pub(super) fn reach(&self, position: Position) {
        self.lock().reached = Some(position);
        self.changed.notify_all();
    }

    /// Whether the lane has a transaction open.
    pub(super) fn is_open(&self) -> bool {
        self.lock().open
    }

    /// Has the lane give up what it has, and take nothing more.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Has the lane give up what it has, and waits until it has done so or for `limit`.
    pub(super) fn give_up(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while state.open && Instant::now() < deadline {
            self.give_up.store(true, Ordering::SeqCst);
            state = self.wait(state);
        }
    }

    fn set_open(&self, open: bool) {
        self.lock().open = open;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let waited = self.changed.wait_timeout(state, TICK);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// What the lane adds to the checkpoint with a transaction.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) changes: ChangeCounts,
    pub(super) internal: InternalRows,
    pub(super) rows: u64,
    decoded: OpCounts,
    decoded_bytes: u64,
}

/// Asks the lane to commit what it has ready, with this checkpoint and its own sums.
struct Request {
    checkpoint: Checkpoint,
    answer: Sender<Result<Committed>>,
}

/// What the lane has committed.
pub(super) struct Committed {
    pub(super) outcome: CommitOutcome,
    pub(super) checkpoint: Checkpoint,
    pub(super) sums: Sums,
    pub(super) began: Instant,
}

/// The apply thread's end of the lane.
pub(super) struct Lane {
    requests: Sender<Request>,
    pub(super) signals: Arc<Signals>,
}

impl Lane {
    /// Has the lane commit the transaction that it has ready; `checkpoint` is without what the lane counted.
    pub(super) fn commit(&self, checkpoint: Checkpoint, control: &Control) -> Result<Committed> {
        let (answer, answered) = bounded(1);
        let request = Request { checkpoint, answer };
        self.requests.send(request).map_err(|_| given_up())?;
        loop {
            match answered.recv_timeout(TICK) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Disconnected) => return Err(given_up()),
                Err(RecvTimeoutError::Timeout) if control.expired() => return Err(interrupted()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// The lane's end of what it shares with the apply thread.
pub(super) struct Asked {
    requests: Receiver<Request>,
    signals: Arc<Signals>,
}

/// What connects the apply thread with the lane.
pub(super) fn connect() -> (Lane, Asked) {
    let (asks, requests) = bounded(1);
    let signals = Arc::new(Signals::default());
    let lane = Lane {
        requests: asks,
        signals: Arc::clone(&signals),
    };
    (lane, Asked { requests, signals })
}

pub(super) struct LaneStage {
    pub(super) sink: Box<dyn Sink>,
    pub(super) runtime: Runtime,
    pub(super) planner: Planner,
    pub(super) decoders: DecoderMaker,
    pub(super) tracker: Box<dyn PositionTracker>,
    pub(super) limits: GroupLimits,
    pub(super) taken: Taken,
    pub(super) asked: Asked,
    pub(super) control: Arc<Control>,
    pub(super) pool: Arc<BatchPool>,
    pub(super) budget: Arc<Budget>,
    pub(super) stats: Arc<StreamStats>,
    /// when the target was last asked whether the open transaction is in the way
    pub(super) way: Instant,
    /// where a session begins that follows one which failed beside the lane: nothing is applied ahead until something is
    /// committed, so that it comes further than that one did
    pub(super) spared: Option<Position>,
}

impl LaneStage {
    pub(super) fn run(mut self) -> Result<()> {
        while let Ok(task) = self.taken.tasks.recv() {
            // Anything else is about a transaction that was given up.
            if let Task::Begin {
                number,
                opening,
                frames,
            } = task
            {
                self.transaction(number, opening, &frames);
            }
        }
        Ok(())
    }

    fn transaction(&mut self, number: u64, opening: Vec<u8>, frames: &SharedSpill) {
        let began = Instant::now();
        self.asked.signals.give_up.store(false, Ordering::SeqCst);
        self.asked.signals.set_open(true);
        let outcome = match self.begin(opening, frames) {
            Ok(Some(sums)) => {
                let _ = self.taken.outcome.send((number, Outcome::Ready));
                return self.wait_for_commit(sums, began);
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        self.roll_back();
        if let Err(error) = outcome {
            tracing::info!(%error, "a transaction is not applied ahead of its commit");
            let _ = self.taken.outcome.send((number, Outcome::GivenUp));
        }
    }

    fn begin(&mut self, opening: Vec<u8>, frames: &SharedSpill) -> Result<Option<Sums>> {
        if let Some(start) = &self.spared {
            if self
                .asked
                .signals
                .lock()
                .reached
                .as_ref()
                .is_none_or(|reached| reached == start)
            {
                return Err(Error::new(
                    Kind::Resource,
                    "one was under way when the session before this one failed",
                ));
            }
            self.spared = None;
        }
        self.apply(opening, frames)
    }

    /// Applies a transaction as it comes; `None` when the source takes it back.
    fn apply(&mut self, opening: Vec<u8>, frames: &SharedSpill) -> Result<Option<Sums>> {
        let mut part = Part::new((self.decoders)(), opening);
        let mut began = false;
        for segment in 0.. {
            let (after, ended) = match self.next_task()? {
                Task::More(after) => (after, false),
                Task::End(after) => (after, true),
                Task::Drop => return Ok(None),
                Task::Begin { .. } => {
                    return Err(Error::bug(
                        "a transaction is handed out before the end of another",
                    ));
                }
            };
            self.wait_for_stream(&after)?;
            let more = frames.lock().read(segment, &mut part.chunk.bytes)?;
            if more == ended {
                return Err(Error::new(Kind::Resource, "a part of it was taken back"));
            }
            self.decode(&mut part)?;
            if part.rows >= self.limits.rows || part.bytes >= self.limits.bytes || ended {
                if !std::mem::replace(&mut began, true) {
                    let Self {
                        runtime,
                        sink,
                        asked,
                        control,
                        ..
                    } = self;
                    drive(runtime, || unwanted(control, &asked.signals), sink.begin())?;
                }
                self.apply_part(&mut part)?;
                failpoint!("ahead.applied", error);
            }
            if ended {
                break;
            }
        }
        Ok(Some(part.sums))
    }

    fn next_task(&mut self) -> Result<Task> {
        let since = Instant::now();
        loop {
            match self.taken.tasks.recv_timeout(TICK) {
                Ok(task) => return Ok(task),
                Err(RecvTimeoutError::Disconnected) => return Err(given_up()),
                Err(RecvTimeoutError::Timeout) if since.elapsed() >= IDLE => {
                    return Err(Error::new(Kind::Resource, "it has sent nothing for long"));
                }
                Err(RecvTimeoutError::Timeout) => self.expect_wanted(unwanted)?,
            }
        }
    }

    /// Waits until what the next part depends on is committed on the target.
    fn wait_for_stream(&mut self, after: &Position) -> Result<()> {
        let mut known = None;
        loop {
            self.expect_wanted(unwanted)?;
            let state = self.asked.signals.lock();
            if state.reached == known {
                drop(self.asked.signals.wait(state));
                continue;
            }
            known.clone_from(&state.reached);
            drop(state);
            if let Some(newest) = &known {
                self.tracker.advance(newest)?;
                if self.tracker.has_reached(after)? {
                    return Ok(());
                }
            }
        }
    }

    /// An error when what is applied is to be given up by `wanted`, or keeps others from what they want of the target.
    fn expect_wanted(&mut self, wanted: fn(&Control, &Signals) -> Result<()>) -> Result<()> {
        let Self {
            runtime,
            sink,
            asked,
            control,
            way,
            ..
        } = self;
        wanted(control, &asked.signals)?;
        if way.elapsed() < WAY {
            return Ok(());
        }
        *way = Instant::now();
        if drive(runtime, || wanted(control, &asked.signals), sink.is_in_the_way())? {
            return Err(Error::new(Kind::Resource, "others wait for what it has locked"));
        }
        Ok(())
    }

    fn decode(&mut self, part: &mut Part) -> Result<()> {
        let mut shared = self.pool.take();
        let batch = Arc::get_mut(&mut shared)
            .ok_or_else(|| Error::bug("a batch that was emptied is read by someone"))?;
        let read = part.chunk.bytes.len() as u64;
        part.decoder.decode(&mut part.chunk, batch)?;
        // What waits to be filled again is not counted: it must not keep the memory of a large frame.
        part.chunk.bytes.clear();
        part.chunk.bytes.shrink_to(RETAINED_CHUNK_BYTES);
        batch.hold(self.budget.charge(batch.footprint()));
        self.pool.fit();
        if cfg!(debug_assertions) {
            batch.verify()?;
        }
        part.sums.decoded_bytes += read;
        part.sums.decoded.add(&OpCounts::of(batch.rows()));
        part.rows += batch.rows().len();
        part.bytes += batch.footprint();
        let (txns, rows) = (0..batch.txns().len(), 0..batch.rows().len());
        part.plan.group.pieces.push(Piece {
            batch: shared,
            txns,
            rows,
        });
        Ok(())
    }

    fn apply_part(&mut self, part: &mut Part) -> Result<()> {
        (part.rows, part.bytes) = (0, 0);
        let plan = &mut part.plan;
        let internal = internal_rows(&plan.group)?;
        self.planner.compile_into(plan, PlanMode::Net)?;
        if plan.decides() {
            // What a policy notes of a change names the transaction by its commit, which is not known yet.
            return Err(Error::new(Kind::Conflict, "a policy decides about a table"));
        }
        let Self {
            runtime,
            sink,
            asked,
            control,
            ..
        } = self;
        let applied = if plan.is_empty() {
            Default::default()
        } else {
            drive(runtime, || unwanted(control, &asked.signals), sink.apply(plan))?
        };
        part.sums.changes += counted(plan, applied)?;
        part.sums.rows += plan.applied;
        part.sums.internal.beats.extend(internal.beats);
        part.sums.internal.markers.extend(internal.markers);
        for piece in plan.group.pieces.drain(..) {
            self.pool.give(piece.batch);
        }
        plan.clear();
        Ok(())
    }

    /// Keeps what is ready until the stream has come to its commit.
    fn wait_for_commit(&mut self, sums: Sums, began: Instant) {
        let mut ready = true;
        let request = loop {
            match self.asked.requests.recv_timeout(TICK) {
                Ok(request) => break Some(request),
                Err(RecvTimeoutError::Disconnected) => break None,
                // Not for who wants the stream held: this one may have committed before that, and then the request is on its
                // way. Where the stream stands still before it, the apply thread has it given up.
                Err(RecvTimeoutError::Timeout) if ready && self.expect_wanted(given_up_for).is_err() => {
                    self.roll_back();
                    ready = false;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        match request {
            Some(request) if ready => {
                let answer = self.commit(request.checkpoint, sums, began);
                self.asked.signals.set_open(false);
                let _ = request.answer.send(answer);
            }
            Some(request) => drop(request.answer.send(Err(given_up()))),
            None if ready => self.roll_back(),
            None => {}
        }
    }

    fn commit(&mut self, mut checkpoint: Checkpoint, sums: Sums, began: Instant) -> Result<Committed> {
        checkpoint.changes += sums.changes;
        failpoint!("ahead.before-commit", error);
        let Self {
            runtime,
            sink,
            control,
            ..
        } = self;
        let outcome = drive(runtime, || is_late(control), sink.commit(&checkpoint))?;
        failpoint!("ahead.committed");
        // What is given up is decoded once more where it comes again, and counted there.
        self.stats.update(|stats| {
            stats.decoded_bytes += sums.decoded_bytes;
            stats.decoded.add(&sums.decoded);
        });
        Ok(Committed {
            outcome,
            checkpoint,
            sums,
            began,
        })
    }

    fn roll_back(&mut self) {
        let Self { runtime, sink, .. } = self;
        // The connection may be what failed; the server rolls back when it closes.
        let _ = runtime.block_on(async { tokio::time::timeout(ROLL_BACK, sink.abandon()).await });
        self.asked.signals.set_open(false);
    }
}

/// What is decoded of a transaction and not applied yet.
struct Part {
    decoder: Box<dyn Decoder>,
    chunk: RawChunk,
    plan: ApplyPlan,
    rows: usize,
    bytes: usize,
    /// of what is applied
    sums: Sums,
}

impl Part {
    fn new(decoder: Box<dyn Decoder>, opening: Vec<u8>) -> Self {
        Self {
            decoder,
            chunk: RawChunk::new(opening),
            plan: ApplyPlan::default(),
            rows: 0,
            bytes: 0,
            sums: Sums::default(),
        }
    }
}

/// Runs one operation of the sink until it is done, or `stop` is an error.
fn drive<T>(runtime: &Runtime, stop: impl Fn() -> Result<()>, mut operation: BoxFuture<'_, T>) -> Result<T> {
    runtime.block_on(async {
        loop {
            match tokio::time::timeout(TICK, &mut operation).await {
                Ok(done) => return done,
                Err(_) => stop()?,
            }
        }
    })
}

/// An error when what is applied in part is to be given up.
fn unwanted(control: &Control, signals: &Signals) -> Result<()> {
    // Whoever holds the stream compares and repairs rows on the target: nothing may be in the way.
    if control.gate.wanted().is_some() {
        return Err(given_up());
    }
    given_up_for(control, signals)
}

/// An error when the apply thread wants it given up.
fn given_up_for(control: &Control, signals: &Signals) -> Result<()> {
    let flags = [&signals.give_up, &signals.ended];
    if flags.iter().any(|flag| flag.load(Ordering::SeqCst)) {
        return Err(given_up());
    }
    is_late(control)
}

fn is_late(control: &Control) -> Result<()> {
    if control.expired() {
        return Err(interrupted());
    }
    Ok(())
}

fn given_up() -> Error {
    let what = "what was applied ahead of its commit was given up; it is applied again";
    Error::new(Kind::Resource, what).action(Action::Retry)
}

fn interrupted() -> Error {
    Error::new(
        Kind::Interrupted,
        "the time for stopping is over; work in flight is rolled back",
    )
}
