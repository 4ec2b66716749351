//! Whole pipelines from a source in memory to a real target: log transactions and net windows, whose connections
//! break, each applied exactly once.

use std::sync::Arc;
use std::time::Duration;

use cdc_core::error::Action;
use cdc_core::model::{ChangeCounts, Position, TxnKind};
use cdc_core::pipeline::{Control, PipelineConfig, Session, StreamStats, run_session};
use cdc_core::plan::{ApplyPlan, TargetCatalog};
use cdc_core::sink::Applied;
use cdc_core::source::StreamStart;
use cdc_core::testing::conformance::SinkHarness;
use cdc_core::testing::{
    CellFormat, History, HistoryOptions, MemoryLog, Rng, SourceChange, SourceFault, apply_event, batch_of,
    random_actions,
};
use cdc_core::{BoxFuture, Checkpoint, CommitOutcome, Result, Sink, SourceIdentity};
use tokio::runtime::Runtime;

use crate::histories::OPTIONS;
use crate::servers::{cluster, runtime, within_deadline};
use crate::sink_harness::{Login, PgSinkHarness, pg_text};

const STREAM: &str = "session";

/// A sink that stops the stream once it has committed the last position.
struct StopsAtEnd {
    sink: Box<dyn Sink>,
    end: Position,
    control: Arc<Control>,
}

impl StopsAtEnd {
    fn stop_at_end(&self, committed: &Checkpoint) {
        if committed.position == self.end {
            self.control.stop(Duration::from_secs(60));
        }
    }
}

impl Sink for StopsAtEnd {
    fn begin(&mut self) -> BoxFuture<'_, ()> {
        self.sink.begin()
    }

    fn apply<'a>(&'a mut self, plan: &'a ApplyPlan) -> BoxFuture<'a, Applied> {
        self.sink.apply(plan)
    }

    fn commit<'a>(&'a mut self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, CommitOutcome> {
        Box::pin(async {
            let outcome = self.sink.commit(checkpoint).await?;
            self.stop_at_end(checkpoint);
            Ok(outcome)
        })
    }

    fn commit_soon<'a>(&'a mut self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, CommitOutcome> {
        Box::pin(async {
            let outcome = self.sink.commit_soon(checkpoint).await?;
            self.stop_at_end(checkpoint);
            Ok(outcome)
        })
    }

    fn apply_at_once<'a>(
        &'a mut self,
        plan: &'a ApplyPlan,
        checkpoint: &'a Checkpoint,
        soon: bool,
    ) -> BoxFuture<'a, Option<CommitOutcome>> {
        Box::pin(async move {
            let outcome = self.sink.apply_at_once(plan, checkpoint, soon).await?;
            if outcome.is_some() {
                self.stop_at_end(checkpoint);
            }
            Ok(outcome)
        })
    }

    fn rollback(&mut self) -> BoxFuture<'_, ()> {
        self.sink.rollback()
    }
}

/// One stream and both its ends.
struct Stream<'h> {
    runtime: &'h Runtime,
    harness: &'h mut PgSinkHarness,
    log: MemoryLog,
    catalog: Arc<TargetCatalog>,
    control: Arc<Control>,
    group_rows: usize,
}

impl<'h> Stream<'h> {
    fn new(
        runtime: &'h Runtime,
        harness: &'h mut PgSinkHarness,
        history: &History,
        kind: TxnKind,
        seed: u64,
    ) -> Self {
        let mut rng = Rng::new(seed);
        let format = if rng.percent(50) {
            pg_text()
        } else {
            CellFormat::canonical()
        };
        let catalog = within_deadline(runtime, harness.prepare(&history.target, &first_checkpoint()));
        let catalog = catalog.expect("a prepared target");
        let marked = &history.marked_ordered;
        marked.iter().for_each(|name| catalog.set_ordered(name));
        let log = MemoryLog::new(history.source.clone(), kind, format, seed);
        for _ in 0..2 {
            log.inject(SourceFault::Disconnect {
                after_frames: rng.below(150) as u64,
            });
        }
        log.inject(SourceFault::Open);
        Self {
            runtime,
            harness,
            log,
            catalog,
            control: Arc::new(Control::new()),
            group_rows: match kind {
                TxnKind::Log | TxnKind::Ahead => 1 + rng.below(30),
                // Rows that exchange unique values need the whole window in one plan.
                TxnKind::NetWindow => 10_000,
            },
        }
    }

    /// Runs sessions until everything is applied, each from the target's checkpoint; how many broke.
    fn run(&mut self) -> u32 {
        let mut broken = 0;
        while let Err(error) = self.session() {
            let mends = matches!(error.what_to_do(), Action::Retry | Action::Reconnect);
            assert!(mends, "{error:?}");
            broken += 1;
            assert!(broken < 100, "restarts for ever");
        }
        broken
    }

    fn session(&self) -> Result<()> {
        // As at a start: the fence first, then the checkpoint.
        let epoch = within_deadline(self.runtime, self.harness.raise_epoch(STREAM))?;
        let sink = within_deadline(self.runtime, self.harness.sink(STREAM, epoch))?;
        let checkpoint = self.checkpoint();
        let sink = StopsAtEnd {
            sink,
            end: self.end(),
            control: Arc::clone(&self.control),
        };
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
            sink: Box::new(move |_| Ok(Box::new(sink))),
            lane: None,
            checkpoint,
            catalog: Arc::clone(&self.catalog),
            config: PipelineConfig {
                group_rows: self.group_rows,
                group_bytes: 1 << 20,
            },
            control: Arc::clone(&self.control),
            stats: Arc::new(StreamStats::default()),
            conflicts: None,
        })
        .map(drop)
    }

    fn end(&self) -> Position {
        Position::new(self.log.database(|source| source.log_end()).to_string())
    }

    fn checkpoint(&self) -> Checkpoint {
        let stored = within_deadline(self.runtime, self.harness.checkpoint(STREAM));
        stored.expect("a readable target").expect("a started stream")
    }

    /// Compares the target with the source and the accounting with the changes.
    fn expect_all(&self, history: &History) {
        let contents = within_deadline(self.runtime, self.harness.contents()).expect("a readable target");
        let last = history.source.txns().len();
        history.compare(&contents, last).expect("as the source");
        let stored = self.checkpoint();
        assert_eq!(stored.position, self.end());
        assert!(stored.changes.balanced(), "{:?}", stored.changes);
        assert_eq!(stored.changes.applied, stored.changes.read);
    }
}

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

fn history(seed: u64, options: HistoryOptions) -> History {
    let txns = random_actions(&mut Rng::new(seed), 30, 10);
    History::new(seed, options, &txns)
}

/// Runs `seeds` streams on each server.
fn each(database: &str, seeds: u64, run: impl Fn(&Runtime, &mut PgSinkHarness, u64)) {
    for major in [12, 18] {
        let runtime = runtime();
        let open = PgSinkHarness::open(cluster(major), database, Login::Superuser);
        let mut harness = within_deadline(&runtime, open);
        (0..seeds).for_each(|seed| run(&runtime, &mut harness, seed));
    }
}

#[test]
fn a_log_from_memory_is_applied_exactly_once() {
    each("log_sessions", 8, |runtime, harness, seed| {
        let history = history(seed, OPTIONS);
        let mut stream = Stream::new(runtime, harness, &history, TxnKind::Log, seed);
        assert!(stream.run() > 0, "seed {seed}: nothing broke");
        stream.expect_all(&history);
        let mut oracle = history.target.clone();
        let format = CellFormat::text();
        let batch = batch_of(history.source.txns(), &history.source.schemas(&format), &format);
        let batch = batch.expect("a batch");
        for row in 0..batch.rows().len() {
            let event = batch.event(row).expect("a row");
            apply_event(&mut oracle, &event).expect("a valid history");
        }
        let contents = within_deadline(runtime, stream.harness.contents());
        assert_eq!(contents.expect("a readable target"), oracle.contents());
        let audit = within_deadline(runtime, stream.harness.audit()).expect("a readable target");
        let loaded = history.target.audit().len();
        assert_eq!(audit.as_deref(), oracle.audit().get(loaded..));
        let stored = stream.checkpoint();
        assert_eq!(stored.transactions, history.source.txns().len() as u64);
        assert_eq!(stored.changes.read, user_changes(&history));
        assert_eq!(stream.log.confirmed(), stored.position, "the source may forget");
    });
}

#[test]
fn net_windows_from_memory_are_applied() {
    each("window_sessions", 5, |runtime, harness, seed| {
        let history = history(seed, HistoryOptions::WINDOWS);
        let mut stream = Stream::new(runtime, harness, &history, TxnKind::NetWindow, seed);
        assert!(stream.run() > 0, "seed {seed}: nothing broke");
        stream.expect_all(&history);
    });
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
