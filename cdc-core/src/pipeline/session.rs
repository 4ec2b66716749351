//! One session of a stream: four threads from an opened source to a sink, until stopped or broken.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::bounded;
use tokio::runtime::{Builder, Runtime};

use super::ahead::LaneStage;
use super::apply::ApplyStage;
use super::budget::Budget;
use super::control::Control;
use super::decode::DecodeStage;
use super::grouper::{GroupLimits, Grouper};
use super::plan::PlanStage;
use super::pool::BatchPool;
use super::read::ReadStage;
use super::stats::StreamStats;
use crate::ahead;
use crate::conflict::ConflictHandler;
use crate::error::{Error, Kind, Result};
use crate::model::Position;
use crate::plan::{Planner, TargetCatalog};
use crate::sink::{Checkpoint, Sink};
use crate::source::{Source, StreamStart};

/// Chunks under way between source and decoder.
pub(super) const CHUNKS: usize = 8;
/// Batches under way between decoder and planner: with chunks of 256 KiB, 8 MiB.
pub(super) const BATCHES: usize = 32;

/// Plans under way between planner and sink: one being applied, one ready for it.
pub(super) const PLANS: usize = 2;

/// The memory budget in groups: one being applied, one planned, one gathered, and what is decoded meanwhile.
pub(super) const BUDGET_GROUPS: usize = 4;

/// Limits of a pipeline. What is under way, and the batches that are kept beside it to be filled again, is bounded by four
/// times `group_bytes` plus one chunk, which is one frame of the log when that is large. Emptied chunks come on top, nine of
/// at most 1 MiB.
#[derive(Debug, Clone, Copy)]
pub struct PipelineConfig {
    /// rows after which a group is applied
    pub group_rows: usize,
    /// bytes of memory (of values, cells, records of rows and of transactions) after which a group is applied
    pub group_bytes: usize,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        Self {
            group_rows: 50_000,
            group_bytes: 16 << 20,
        }
    }
}

/// Makes a sink on the runtime that will drive its connection: a socket belongs to the runtime it was opened
/// on.
pub type SinkMaker = Box<dyn FnOnce(&Runtime) -> Result<Box<dyn Sink>> + Send>;

/// What a session needs.
pub struct Session {
    /// the source, not yet opened
    pub source: Box<dyn Source>,
    /// where it starts
    pub start: StreamStart,
    /// makes the sink
    pub sink: SinkMaker,
    /// makes another one for what is applied ahead of its commit, where that is wanted
    pub lane: Option<SinkMaker>,
    /// the checkpoint as read from the target, durable there
    pub checkpoint: Checkpoint,
    /// the target's tables
    pub catalog: Arc<TargetCatalog>,
    /// limits
    pub config: PipelineConfig,
    /// how the outside steers the stream
    pub control: Arc<Control>,
    /// what the outside sees of it
    pub stats: Arc<StreamStats>,
    /// who is asked about conflicts of tables under [`Policy::Ask`](crate::conflict::Policy::Ask)
    pub conflicts: Option<Arc<dyn ConflictHandler>>,
}

/// How a session ended without an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEnd {
    /// the position durable on the target
    pub position: Option<Position>,
}

/// The newest position durable on the target, told by the apply thread to the source thread.
#[derive(Debug, Default)]
pub(super) struct Durable(Mutex<(u64, Option<Position>)>);

impl Durable {
    pub(super) fn set(&self, position: Position) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.0 += 1;
        held.1 = Some(position);
    }

    /// The position and a number that changes with it.
    pub(super) fn get(&self) -> (u64, Option<Position>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Opens the source and runs the threads until the stream is stopped; blocks the caller.
///
/// # Errors
/// The first error of any thread. Its [`crate::Action`] says whether to start another session from the
/// checkpoint on the target.
pub fn run_session(session: Session) -> Result<SessionEnd> {
    let Session {
        mut source,
        start,
        sink,
        lane,
        checkpoint,
        catalog,
        config,
        control,
        stats,
        conflicts,
    } = session;
    let source_runtime = runtime()?;
    let sink_runtime = runtime()?;
    let sink = sink(&sink_runtime)?;
    let decoder = source_runtime.block_on(source.open(&start))?;
    // More than the one group that may be waiting for its rest holds, so that the rest can always come.
    let budget = Budget::new(config.group_bytes.saturating_mul(BUDGET_GROUPS));
    let pool = BatchPool::new(&budget);
    let durable = Arc::new(Durable::default());
    durable.set(checkpoint.position.clone());

    let limits = GroupLimits {
        rows: config.group_rows,
        bytes: config.group_bytes,
    };
    let lane = lane.and_then(|sink| {
        let (ahead, taken) = ahead::lane();
        let decoders = source.hand_out(ahead)?;
        Some((sink, decoders, taken))
    });
    let lane = lane.map(|(sink, decoders, taken)| {
        let runtime = runtime()?;
        let (lane, asked) = super::ahead::connect();
        let stage = LaneStage {
            sink: sink(&runtime)?,
            runtime,
            planner: Planner::new(Arc::clone(&catalog)),
            decoders,
            tracker: decoder.tracker(),
            limits,
            taken,
            asked,
            control: Arc::clone(&control),
            pool: Arc::clone(&pool),
            budget: Arc::clone(&budget),
            stats: Arc::clone(&stats),
            way: Instant::now(),
            spared: control.lane_is_spared().then(|| checkpoint.position.clone()),
        };
        Ok::<_, Error>((lane, stage))
    });
    let (lane, lane_stage) = lane.transpose()?.unzip();
    let signals = lane.as_ref().map(|lane| Arc::clone(&lane.signals));

    let (chunk_tx, chunk_rx) = bounded(CHUNKS);
    let (emptied_tx, emptied_rx) = bounded(CHUNKS);
    let (batch_tx, batch_rx) = bounded(BATCHES);
    let (recycled_plan_tx, recycled_plan_rx) = bounded(PLANS);
    let (work_tx, work_rx) = bounded(1);
    let (free_tx, free_rx) = bounded(1);
    let (apply_ended_tx, apply_ended_rx) = bounded(0);

    let mut plan = PlanStage {
        grouper: Grouper::new(limits, decoder.tracker()),
        planner: Planner::new(Arc::clone(&catalog)),
        batches: batch_rx,
        free: free_rx,
        work: work_tx,
        recycled: recycled_plan_rx,
        control: Arc::clone(&control),
    };
    let apply = ApplyStage {
        sink,
        runtime: sink_runtime,
        planner: Planner::new(Arc::clone(&catalog)),
        catalog,
        checkpoint,
        tracker: decoder.tracker(),
        work: work_rx,
        free: free_tx,
        pool: Arc::clone(&pool),
        recycled_plans: recycled_plan_tx,
        durable: Arc::clone(&durable),
        control: Arc::clone(&control),
        stats: Arc::clone(&stats),
        conflicts,
        open: None,
        idle: None,
        idle_stored: Instant::now(),
        lane,
        durable_since: Instant::now(),
        undurable: false,
    };
    let mut decode = DecodeStage {
        decoder,
        chunks: chunk_rx,
        emptied: emptied_tx,
        batches: batch_tx,
        pool,
        budget: Arc::clone(&budget),
        stats,
    };
    let read = ReadStage {
        source,
        runtime: source_runtime,
        chunks: chunk_tx,
        emptied: emptied_rx,
        apply_ended: apply_ended_rx,
        durable: Arc::clone(&durable),
        control,
        budget,
        last_confirm: Instant::now(),
        confirmed: 0,
    };

    let lane = lane_stage
        .map(|lane| spawn("cdc-lane", move || lane.run()))
        .transpose()?;
    let apply = spawn("cdc-apply", move || {
        let _ended = apply_ended_tx;
        apply.run()
    })?;
    let plan = spawn("cdc-plan", move || plan.run())?;
    let decode = spawn("cdc-decode", move || decode.run())?;
    let read = spawn("cdc-source", move || read.run())?;
    // A thread whose neighbour failed ends quietly, so the order only decides between two real failures.
    let ends = [join(apply), join(plan), join(decode), join(read)];
    // It may wait for a lock while nobody waits for it.
    signals.iter().for_each(|signals| signals.end());
    let lane = lane.map_or(Ok(()), join);
    ends.into_iter().chain([lane]).collect::<Result<()>>()?;
    Ok(SessionEnd {
        position: durable.get().1,
    })
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Local, "cannot start an I/O runtime").caused_by(error))
}

fn spawn(name: &str, body: impl FnOnce() -> Result<()> + Send + 'static) -> Result<JoinHandle<Result<()>>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(|error| Error::new(Kind::Local, format!("cannot start thread {name}")).caused_by(error))
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread
        .join()
        .unwrap_or_else(|_| Err(Error::bug("a pipeline thread panicked")))
}
