//! The pipeline with all its threads, from frames in memory to a sink that takes plans and does nothing: what is left of
//! the speed of its parts when they are put together.

use std::sync::Arc;
use std::time::Duration;

use cdc_benches::{Corpus, target};
use cdc_core::pipeline::{Control, PipelineConfig, Session, StreamStats, run_session};
use cdc_core::plan::ApplyPlan;
use cdc_core::sink::Applied;
use cdc_core::source::StreamStart;
use cdc_core::{
    Batch, BoxFuture, Checkpoint, CommitOutcome, Decoder, Position, RawChunk, Result, Sink, Source,
    SourceIdentity,
};
use cdc_postgres::pgoutput::PgDecoder;
use criterion::{BatchSize, Criterion, Throughput};

/// Hands out chunks as fast as they are taken, then asks for the end.
struct Chunks {
    decoder: Option<PgDecoder>,
    rest: std::vec::IntoIter<RawChunk>,
    control: Arc<Control>,
}

impl Source for Chunks {
    fn open<'a>(&'a mut self, _start: &'a StreamStart) -> BoxFuture<'a, Box<dyn Decoder>> {
        Box::pin(async {
            let decoder = self.decoder.take().expect("a stream that is opened once");
            Ok(Box::new(decoder) as Box<dyn Decoder>)
        })
    }

    fn read<'a>(&'a mut self, chunk: &'a mut RawChunk) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            match self.rest.next() {
                Some(next) => *chunk = next,
                None => self.control.stop(Duration::from_secs(60)),
            }
            Ok(())
        })
    }

    fn confirm<'a>(&'a mut self, _durable: Option<&'a Position>) -> BoxFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn close(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// Takes every plan.
struct Discard;

impl Sink for Discard {
    fn begin(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn apply<'a>(&'a mut self, plan: &'a ApplyPlan) -> BoxFuture<'a, Applied> {
        Box::pin(async move {
            Ok(Applied {
                rows: plan.applied,
                ..Applied::default()
            })
        })
    }

    fn commit<'a>(&'a mut self, _checkpoint: &'a Checkpoint) -> BoxFuture<'a, CommitOutcome> {
        Box::pin(async { Ok(CommitOutcome::Done) })
    }

    fn rollback(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// A session that ends with the stream, and the statistics to look at afterwards.
fn session(corpus: &Corpus, catalog: &Arc<cdc_core::plan::TargetCatalog>) -> (Session, Arc<StreamStats>) {
    let (control, stats) = (Arc::new(Control::new()), Arc::new(StreamStats::default()));
    let position = corpus.from().clone();
    let session = Session {
        source: Box::new(Chunks {
            decoder: Some(corpus.decoder()),
            rest: corpus.chunks().into_iter(),
            control: Arc::clone(&control),
        }),
        start: StreamStart {
            from: position.clone(),
            stream: "bench".into(),
            selection: Default::default(),
            seeded_to: Default::default(),
            aside: Default::default(),
            peer: None,
        },
        sink: Box::new(|_| Ok(Box::new(Discard))),
        lane: None,
        checkpoint: Checkpoint {
            stream: "bench".into(),
            source: SourceIdentity {
                system: "bench".into(),
                database: "bench".into(),
                timeline: String::new(),
                slot: "bench".into(),
            },
            position,
            commit_time_micros: 0,
            groups: 0,
            transactions: 0,
            changes: Default::default(),
        },
        catalog: Arc::clone(catalog),
        config: PipelineConfig::default(),
        control,
        stats: Arc::clone(&stats),
        conflicts: None,
    };
    (session, stats)
}

fn tables(corpus: &Corpus) -> Result<Arc<cdc_core::plan::TargetCatalog>> {
    let (mut decoder, mut batch) = (corpus.decoder(), Batch::new());
    for mut chunk in corpus.chunks() {
        decoder.decode(&mut chunk, &mut batch)?;
    }
    Ok(target::catalog([&batch]))
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("pipeline");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    // Starting and ending a session takes longer than a short recording.
    for corpus in Corpus::all().into_iter().filter(|corpus| corpus.rows >= 100_000) {
        let catalog = tables(&corpus).unwrap();
        group.throughput(Throughput::ElementsAndBytes {
            elements: corpus.rows,
            bytes: corpus.bytes,
        });
        group.bench_function(corpus.name, |b| {
            b.iter_batched(
                || session(&corpus, &catalog),
                |(session, stats)| {
                    run_session(session).unwrap();
                    assert_eq!(stats.snapshot().changes.applied, corpus.rows);
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    criterion.final_summary();
}
