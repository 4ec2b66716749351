//! Planning: decoded batches to groups and net sets, and net sets to what goes to the target. Rows and bytes are those that went in.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use cdc_benches::{Corpus, target};
use cdc_core::Batch;
use cdc_core::plan::{ApplyPlan, Piece, PlanMode, Planner, TxnGroup};
use cdc_core::source::Decoder;
use cdc_postgres::NetBytes;
use criterion::{Criterion, Throughput};

/// Rows of a group, as the pipeline cuts them.
const GROUP_ROWS: usize = 50_000;

/// The stream in groups of whole transactions or parts of one, as the pipeline makes them.
fn groups(corpus: &Corpus) -> (Vec<Arc<Batch>>, Vec<TxnGroup>) {
    let mut decoder = corpus.decoder();
    let mut batches = Vec::new();
    for mut chunk in corpus.chunks() {
        let mut batch = Batch::new();
        decoder.decode(&mut chunk, &mut batch).unwrap();
        batches.push(Arc::new(batch));
    }
    let (mut groups, mut group) = (Vec::new(), TxnGroup::default());
    for batch in &batches {
        group.pieces.push(Piece {
            batch: Arc::clone(batch),
            txns: 0..batch.txns().len(),
            rows: 0..batch.rows().len(),
        });
        if group.row_count() >= GROUP_ROWS {
            groups.push(std::mem::take(&mut group));
        }
    }
    groups.push(group);
    (batches, groups)
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for corpus in Corpus::all() {
        let (batches, groups) = groups(&corpus);
        let catalog = target::catalog(batches.iter().map(|batch| &**batch));
        let mut group = criterion.benchmark_group(format!("plan/{}", corpus.name));
        group
            .throughput(Throughput::ElementsAndBytes {
                elements: corpus.rows,
                bytes: corpus.bytes,
            })
            .sample_size(10)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(3));
        for (name, mode) in [("net", PlanMode::Net), ("ordered", PlanMode::Ordered)] {
            let mut planner = Planner::new(Arc::clone(&catalog));
            group.bench_function(name, |b| {
                b.iter(|| {
                    for group in &groups {
                        let plan = planner.compile(group.clone(), mode).unwrap();
                        assert_eq!(black_box(plan).applied, group.row_count() as u64);
                    }
                });
            });
        }
        let mut planner = Planner::new(Arc::clone(&catalog));
        let plans: Vec<ApplyPlan> = groups
            .iter()
            .map(|group| planner.compile(group.clone(), PlanMode::Net).unwrap())
            .collect();
        let mut rendered = NetBytes::default();
        let mut render = || -> u64 { plans.iter().map(|plan| rendered.of(plan).unwrap()).sum() };
        // A stream whose keys change is applied in order, without sets.
        if render() > 0 {
            group.bench_function("to COPY and arrays", |b| b.iter(|| black_box(render())));
        }
        group.finish();
    }
    criterion.final_summary();
}
