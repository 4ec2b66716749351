//! Decoding `pgoutput`: ours into a batch, and other published decoders on the same bytes. What each found is compared
//! before anything is timed.
//!
//! Ours also takes the frames apart and looks after relations and transactions; the others are given single messages.

mod peers;
mod walker;

use std::hint::black_box;
use std::time::Duration;

use cdc_benches::{Corpus, Totals};
use cdc_core::source::Decoder;
use cdc_core::{Batch, RawChunk};
use criterion::{BatchSize, BenchmarkGroup, Criterion, SamplingMode, Throughput, measurement::WallTime};

/// Batches that are filled in turn, as they circulate between the threads of the pipeline.
const BATCHES: usize = 4;

/// Ours, with what is used again from one pass to the next.
struct Ours {
    batches: Vec<Batch>,
}

impl Ours {
    fn new() -> Ours {
        Ours {
            batches: (0..BATCHES).map(|_| Batch::new()).collect(),
        }
    }

    /// Decodes all of it and hands every batch to `look`. Chunks become parts of batches: each pass needs its own.
    fn decode(&mut self, corpus: &Corpus, chunks: &mut [RawChunk], mut look: impl FnMut(&Batch)) {
        let mut decoder = corpus.decoder();
        for (index, chunk) in chunks.iter_mut().enumerate() {
            let batch = &mut self.batches[index % BATCHES];
            batch.clear();
            decoder.decode(chunk, batch).unwrap();
            look(batch);
        }
    }

    fn totals(&mut self, corpus: &Corpus, chunks: &mut [RawChunk]) -> Totals {
        let mut totals = Totals::default();
        self.decode(corpus, chunks, |batch| totals.add_batch(batch));
        totals
    }
}

/// Everything that decodes, by name.
type Decode = fn(&Corpus) -> Totals;

const PEERS: [(&str, Decode); 6] = [
    ("elefant-client", peers::elefant_client),
    ("pgsync-postgres", peers::pgsync_postgres),
    ("pg_walstream-parser", peers::pg_walstream_parser),
    ("pg_walstream-events", peers::pg_walstream_events),
    ("pgoutput", peers::pgoutput),
    ("walker", walker::walk),
];

fn configured<'a>(c: &'a mut Criterion, corpus: &Corpus) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(format!("decode/{}", corpus.name));
    group
        .throughput(Throughput::ElementsAndBytes {
            elements: corpus.rows,
            bytes: corpus.bytes,
        })
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    group
}

fn bench(c: &mut Criterion, corpus: &Corpus) {
    let mut ours = Ours::new();
    let wanted = ours.totals(corpus, &mut corpus.chunks());
    for (name, decode) in PEERS {
        assert_eq!(
            decode(corpus),
            wanted,
            "{name} finds something else in {}",
            corpus.name
        );
    }
    let mut group = configured(c, corpus);
    group.bench_function("cdc-sync", |b| {
        let pass = |chunks: &mut Vec<RawChunk>| black_box(ours.totals(corpus, chunks));
        b.iter_batched_ref(|| corpus.chunks(), pass, BatchSize::PerIteration);
    });
    group.bench_function("cdc-sync-discarded", |b| {
        let pass = |chunks: &mut Vec<RawChunk>| ours.decode(corpus, chunks, |batch| _ = black_box(batch));
        b.iter_batched_ref(|| corpus.chunks(), pass, BatchSize::PerIteration);
    });
    for (name, decode) in PEERS {
        group.bench_function(name, |b| b.iter(|| black_box(decode(corpus))));
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for corpus in Corpus::all() {
        bench(&mut criterion, &corpus);
    }
    criterion.final_summary();
}
