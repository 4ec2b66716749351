//! What is set aside of large transactions: frames to segments with their checksums in a file, and back.

use std::hint::black_box;
use std::time::Duration;

use cdc_benches::Corpus;
use cdc_core::spill::Spill;
use criterion::{BatchSize, Criterion, Throughput};

fn filled(chunks: &[Vec<u8>]) -> Spill {
    let mut spill = Spill::create().unwrap();
    for chunk in chunks {
        spill.add(&[chunk]).unwrap();
    }
    spill
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let corpus = Corpus::wide(300_000);
    let chunks: Vec<Vec<u8>> = corpus.chunks().into_iter().map(|chunk| chunk.bytes).collect();
    let bytes: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
    // As the source adds them: frame by frame, of about this many bytes.
    let frame = (bytes / corpus.rows) as usize;
    let mut group = criterion.benchmark_group("spill/wide");
    group
        .throughput(Throughput::ElementsAndBytes {
            elements: corpus.rows,
            bytes,
        })
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    group.bench_function("write", |b| {
        b.iter_batched(
            || Spill::create().unwrap(),
            |mut spill| {
                for frame in chunks.iter().flat_map(|chunk| chunk.chunks(frame)) {
                    spill.add(&[frame]).unwrap();
                }
                assert_eq!(spill.length(), bytes);
                spill
            },
            BatchSize::PerIteration,
        );
    });
    let mut spill = filled(&chunks);
    let mut out = Vec::new();
    group.bench_function("read", |b| {
        b.iter(|| {
            let (mut read, mut more) = (0, true);
            for number in 0.. {
                if !std::mem::take(&mut more) {
                    break;
                }
                out.clear();
                more = spill.read(number, &mut out).unwrap();
                read += black_box(&out).len() as u64;
            }
            assert_eq!(read, bytes);
        });
    });
    group.finish();
    criterion.final_summary();
}
