//! The whole pipeline between a source and a target in memory, with faults on both sides: whatever breaks
//! where, the target ends as the source is, every change applied once and counted once.

mod durable;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_core::error::{Action, Kind};
use cdc_core::model::{ChangeCounts, Position, SourceIdentity, TxnKind};
use cdc_core::pipeline::{Control, PipelineConfig, Session, StreamStats, run_session};
use cdc_core::plan::TargetCatalog;
use cdc_core::source::StreamStart;
use cdc_core::testing::{
    CellFormat, Fault, History, HistoryOptions, MemoryLog, MemorySink, MemoryTarget, Rng, SourceChange,
    SourceFault, apply_event, batch_of, random_actions,
};
use cdc_core::{Checkpoint, Sink};

const STREAM: &str = "pipeline";
const DEADLINE: Duration = Duration::from_secs(120);

fn first_checkpoint() -> Checkpoint {
    Checkpoint {
        stream: STREAM.into(),
        source: SourceIdentity {
            system: "memory".into(),
            database: "memory".into(),
            timeline: String::new(),
            slot: String::new(),
        },
        position: Position::new("0"),
        commit_time_micros: 0,
        groups: 0,
        transactions: 0,
        changes: ChangeCounts::default(),
    }
}

/// One stream and everything around it.
struct Stream {
    log: MemoryLog,
    target: MemoryTarget,
    catalog: Arc<TargetCatalog>,
    control: Arc<Control>,
    stats: Arc<StreamStats>,
    group_rows: usize,
    /// a quarter of the memory budget
    group_bytes: usize,
    restarts: u64,
}

impl Stream {
    fn new(history: &History, kind: TxnKind, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let format = if rng.percent(50) {
            CellFormat::text()
        } else {
            CellFormat::canonical()
        };
        let target = MemoryTarget::new(history.target.clone(), seed);
        target.start_stream(first_checkpoint());
        let catalog = target.catalog();
        history
            .marked_ordered
            .iter()
            .for_each(|name| catalog.set_ordered(name));
        Self {
            log: MemoryLog::new(history.source.clone(), kind, format, seed),
            target,
            catalog,
            control: Arc::new(Control::new()),
            stats: Arc::new(StreamStats::default()),
            group_rows: 1 + rng.below(30),
            group_bytes: 1 << (4 + rng.below(16)),
            restarts: 0,
        }
    }

    fn inject(&self, rng: &mut Rng) {
        let nth = |rng: &mut Rng| rng.below(12) as u64;
        for action in [Action::Reconnect, Action::Retry] {
            let (kind, nth) = (Kind::Unreachable, nth(rng));
            self.target.inject(Fault::Apply { nth, kind, action });
        }
        for committed in [true, false] {
            let nth = nth(rng);
            self.target.inject(Fault::CommitUnknown { nth, committed });
        }
        self.target.inject(Fault::Commit { nth: nth(rng) });
        self.target.inject(Fault::Begin { nth: nth(rng) });
        for _ in 0..2 {
            let after_frames = rng.below(200) as u64;
            self.log.inject(SourceFault::Disconnect { after_frames });
        }
        self.log.inject(SourceFault::Open);
    }

    /// Runs sessions until everything is applied, each from the target's checkpoint.
    fn run(&mut self) {
        let end = Position::new(self.log.database(|source| source.log_end()).to_string());
        let (target, control) = (self.target.clone(), Arc::clone(&self.control));
        let watcher = std::thread::spawn(move || {
            let begun = Instant::now();
            let reached = || {
                target
                    .checkpoint(STREAM)
                    .is_some_and(|stored| stored.position == end)
            };
            while !reached() && begun.elapsed() < DEADLINE {
                std::thread::sleep(Duration::from_millis(2));
            }
            control.stop(Duration::from_secs(10));
            assert!(
                reached(),
                "the stream did not come to its end: {:?}",
                target.checkpoint(STREAM)
            );
        });
        loop {
            match self.session() {
                Ok(()) => break,
                Err(error) => {
                    let mends = matches!(error.what_to_do(), Action::Retry | Action::Reconnect);
                    assert!(mends, "{error:?}");
                    self.restarts += 1;
                }
            }
            assert!(self.restarts < 100, "restarts for ever");
        }
        watcher.join().expect("the stream ends");
    }

    fn session(&self) -> cdc_core::Result<()> {
        self.session_with(|sink| Box::new(sink))
    }

    /// One session from the target's checkpoint, whose sink may be wrapped.
    fn session_with(
        &self,
        wrap: impl FnOnce(MemorySink) -> Box<dyn Sink> + Send + 'static,
    ) -> cdc_core::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        // As at a start: the fence first, then the checkpoint.
        let epoch = runtime.block_on(self.target.raise_epoch(STREAM))?;
        let checkpoint = self.target.checkpoint(STREAM).expect("a started stream");
        let target = self.target.clone();
        run_session(Session {
            source: Box::new(self.log.source()),
            start: StreamStart {
                from: checkpoint.position.clone(),
                stream: STREAM.into(),
                selection: Default::default(),
                seeded_to: Default::default(),
                aside: Default::default(),
                peer: None,
            },
            sink: Box::new(move |_| Ok(wrap(target.sink(STREAM, epoch)))),
            lane: None,
            checkpoint,
            catalog: Arc::clone(&self.catalog),
            config: PipelineConfig {
                group_rows: self.group_rows,
                group_bytes: self.group_bytes,
            },
            control: Arc::clone(&self.control),
            stats: Arc::clone(&self.stats),
            conflicts: None,
        })
        .map(drop)
    }

    fn checkpoint(&self) -> Checkpoint {
        self.target.checkpoint(STREAM).expect("a started stream")
    }
}

fn history(seed: u64, options: HistoryOptions) -> History {
    let mut rng = Rng::new(seed);
    let txns = random_actions(&mut rng, 60, 10);
    History::new(seed, options, &txns)
}

fn user_changes(history: &History) -> u64 {
    let changes = history.source.txns().iter().flat_map(|txn| &txn.changes);
    changes
        .map(|change| match change {
            SourceChange::Row { .. } => 1,
            SourceChange::Truncate(tables) => tables.len() as u64,
            SourceChange::Message => 0,
        })
        .sum()
}

/// Runs `seeds` streams at once: they mostly wait.
fn each(seeds: std::ops::Range<u64>, run: impl Fn(u64) + Sync) {
    let run = &run;
    std::thread::scope(|scope| {
        let threads: Vec<_> = seeds.map(|seed| (seed, scope.spawn(move || run(seed)))).collect();
        for (seed, thread) in threads {
            assert!(thread.join().is_ok(), "seed {seed}");
        }
    });
}

#[test]
fn a_log_is_applied_exactly_once_through_faults() {
    each(0..24, |seed| {
        let history = history(seed, HistoryOptions::ALL);
        let mut stream = Stream::new(&history, TxnKind::Log, seed);
        stream.inject(&mut Rng::new(seed));
        stream.run();
        assert!(stream.restarts > 0);

        let mut oracle = history.target.clone();
        let format = CellFormat::text();
        let batch =
            batch_of(history.source.txns(), &history.source.schemas(&format), &format).expect("a batch");
        for row in 0..batch.rows().len() {
            let event = batch.event(row).expect("a row");
            apply_event(&mut oracle, &event).expect("a valid history");
        }
        assert_eq!(stream.target.contents(), oracle.contents());
        assert_eq!(stream.target.audit(), oracle.audit());
        let last = history.source.txns().len();
        history
            .compare(&stream.target.contents(), last)
            .expect("as the source");

        let stored = stream.checkpoint();
        assert_eq!(stored.transactions, last as u64);
        assert_eq!(
            stored.changes.read,
            user_changes(&history),
            "{:?}",
            stored.changes
        );
        assert_eq!(stored.changes.applied, stored.changes.read);
        assert!(stored.changes.balanced());
        assert_eq!(stream.log.confirmed(), stored.position, "the source may forget");
    });
}

fn windows_through_faults(seeds: std::ops::Range<u64>, options: HistoryOptions, whole: bool) {
    each(seeds, |seed| {
        let history = history(seed, options);
        let mut stream = Stream::new(&history, TxnKind::NetWindow, seed);
        if whole {
            stream.group_rows = 10_000;
            stream.group_bytes = 1 << 20;
        }
        stream.inject(&mut Rng::new(seed));
        stream.run();
        let last = history.source.txns().len();
        history
            .compare(&stream.target.contents(), last)
            .expect("as the source");
        assert!(stream.checkpoint().changes.balanced());
    });
}

#[test]
fn net_windows_are_applied_through_faults() {
    windows_through_faults(0..12, HistoryOptions::WINDOWS, true);
}

/// Rows that exchange unique values need the whole window in one plan; all else can do with parts.
#[test]
fn net_windows_in_parts_are_applied_through_faults() {
    let options = HistoryOptions {
        second_unique: false,
        ..HistoryOptions::WINDOWS
    };
    windows_through_faults(100..112, options, false);
}

#[test]
fn a_takeover_fences_the_older_instance() {
    let history = history(7, HistoryOptions::ALL);
    let stream = Stream::new(&history, TxnKind::Log, 7);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let epoch = runtime
        .block_on(stream.target.raise_epoch(STREAM))
        .expect("an epoch");
    let mut old = stream.target.sink(STREAM, epoch);
    runtime.block_on(old.begin()).expect("the epoch is current");
    runtime.block_on(old.rollback()).expect("nothing is lost");
    runtime
        .block_on(stream.target.raise_epoch(STREAM))
        .expect("an epoch");
    let error = runtime.block_on(old.begin()).err();
    assert_eq!(error.map(|error| error.kind()), Some(Kind::Fenced));
}
