//! Planning: decoded batches to groups and net sets (or rows in order), and net sets to what goes to the target. Rows and bytes are
//! those that went in. Statements for rows in order are timed against a server only (`cargo xtask bench-crossover`).

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use cdc_benches::{Corpus, target};
use cdc_core::Batch;
use cdc_core::pipeline::{Gathered, GroupLimits, Grouper, PipelineConfig};
use cdc_core::plan::{ApplyPlan, PlanMode, Planner};
use cdc_core::source::Decoder;
use cdc_postgres::NetBytes;
use criterion::{Criterion, Throughput};

fn decoded(corpus: &Corpus) -> Vec<Arc<Batch>> {
    let mut decoder = corpus.decoder();
    let batch = |mut chunk| {
        let mut batch = Batch::new();
        decoder.decode(&mut chunk, &mut batch).unwrap();
        Arc::new(batch)
    };
    corpus.chunks().into_iter().map(batch).collect()
}

/// Groups the batches as the pipeline does while the target is busy, and plans each group.
fn plan(
    corpus: &Corpus,
    batches: &[Arc<Batch>],
    planner: &mut Planner,
    mode: PlanMode,
    mut each: impl FnMut(&mut ApplyPlan),
) {
    let config = PipelineConfig::default();
    let limits = GroupLimits {
        rows: config.group_rows,
        bytes: config.group_bytes,
    };
    let mut grouper = Grouper::new(limits, corpus.decoder().tracker());
    for batch in batches {
        grouper.add(Arc::clone(batch));
    }
    let mut plan = ApplyPlan::default();
    while grouper.gather(None).unwrap() != Gathered::Nothing {
        grouper.cut(&mut plan.group);
        planner.compile_into(&mut plan, mode).unwrap();
        each(&mut plan);
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for corpus in Corpus::all() {
        let batches = decoded(&corpus);
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
                    let mut applied = 0;
                    plan(&corpus, &batches, &mut planner, mode, |plan| {
                        applied += black_box(plan).applied
                    });
                    assert_eq!(applied, corpus.rows);
                });
            });
        }
        let (mut planner, mut plans) = (Planner::new(Arc::clone(&catalog)), Vec::new());
        plan(&corpus, &batches, &mut planner, PlanMode::Net, |plan| {
            plans.push(std::mem::take(plan));
        });
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
