//! A plan applied must leave what the changes one by one leave: random tables, keys, facts, histories, group
//! borders and modes against the model.

use std::sync::Arc;

use cdc_core::Batch;
use cdc_core::plan::{ApplyPlan, Piece, PlanMode, Planner, Step, TxnGroup};
use cdc_core::testing::conformance::{HistoryRun, MemorySinkHarness, apply_log, apply_windows};
use cdc_core::testing::{
    Action, CellFormat, History, HistoryOptions, MemoryTarget, Rng, SourceTxn, batch_of, net_window,
    random_actions,
};
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, RngSeed};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(future)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(2),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "proptest-regressions/plan_oracle.txt",
        ))),
        ..ProptestConfig::default()
    }
}

fn action() -> impl Strategy<Value = Action> {
    any::<(u8, u8, u8, u32)>().prop_map(|(kind, table, row, value)| Action {
        kind,
        table,
        row,
        value,
    })
}

fn transactions() -> impl Strategy<Value = Vec<Vec<Action>>> {
    prop::collection::vec(prop::collection::vec(action(), 1..12), 1..14)
}

fn format_of(seed: u64) -> CellFormat {
    if seed.is_multiple_of(3) {
        CellFormat::canonical()
    } else {
        CellFormat::text()
    }
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn plans_do_what_the_changes_do_one_by_one(seed in any::<u64>(), txns in transactions()) {
        let history = History::new(seed, HistoryOptions::ALL, &txns);
        let mut harness = MemorySinkHarness::new(format_of(seed), seed);
        let run = block_on(apply_log(&mut harness, &history, seed, &mut |_| {}));
        prop_assert!(run.is_ok(), "{:?}", run.err());
    }
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn net_windows_reach_the_state_at_their_end(seed in any::<u64>(), txns in transactions()) {
        let history = History::new(seed, HistoryOptions::WINDOWS, &txns);
        let mut harness = MemorySinkHarness::new(format_of(seed), seed);
        let run = block_on(apply_windows(&mut harness, &history, seed));
        prop_assert!(run.is_ok(), "{:?}", run.err());
    }
}

/// Applies seeded histories with plans spoilt by `tamper`; how often that was noticed, and what was done.
fn noticed(seeds: u64, tamper: impl Fn(&mut ApplyPlan) -> bool + Sync) -> (u64, u64, HistoryRun) {
    let (mut tampered, mut caught, mut total) = (0, 0, HistoryRun::default());
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let txns = random_actions(&mut rng, 12, 8);
        let history = History::new(seed, HistoryOptions::ALL, &txns);
        let mut harness = MemorySinkHarness::new(CellFormat::text(), seed);
        let mut did = false;
        let run = block_on(apply_log(&mut harness, &history, seed, &mut |plan| {
            did |= tamper(plan)
        }));
        tampered += u64::from(did);
        match run {
            Ok(run) => {
                total.plans += run.plans;
                total.applied += run.applied;
                total.coalesced += run.coalesced;
                total.redone += run.redone;
            }
            Err(_) if did => caught += 1,
            Err(error) => panic!("seed {seed}: {error:?}"),
        }
    }
    (tampered, caught, total)
}

#[test]
fn histories_exercise_merging_and_falling_back() {
    let (_, _, run) = noticed(150, |_| false);
    assert!(run.coalesced * 10 > run.applied, "{run:?}");
    assert!(run.redone > 5, "{run:?}");
}

/// A planner that is wrong in one of these ways is caught by the oracle, so one that is not caught is right.
#[test]
fn wrong_plans_are_noticed() {
    type Tamper = fn(&mut ApplyPlan) -> bool;
    let drop_step: Tamper = |plan| plan.steps.pop().is_some();
    let drop_delete: Tamper = |plan| nets(plan).any(|net| net.deletes.pop().is_some());
    let drop_insert: Tamper = |plan| nets(plan).any(|net| net.inserts.pop().is_some());
    let drop_column: Tamper = |plan| {
        nets(plan)
            .flat_map(|net| &mut net.updates)
            .any(|set| set.columns.len() > 1 && set.columns.pop().is_some())
    };
    // The first update's cells instead of the merged ones: "last change wins" for whole rows.
    let unmerge: Tamper = |plan| {
        let merged = std::mem::take(&mut plan.merged);
        let any = !merged.is_empty();
        plan.merged = merged.iter().rev().copied().collect();
        any
    };
    let swap_ordered: Tamper = |plan| {
        plan.steps.iter_mut().any(|step| match step {
            Step::Ordered(rows) if rows.len() > 1 => {
                rows.reverse();
                true
            }
            _ => false,
        })
    };
    for (name, tamper) in [
        ("drop a step", drop_step),
        ("drop a delete", drop_delete),
        ("drop an insert", drop_insert),
        ("drop a column of an update", drop_column),
        ("confuse merged cells", unmerge),
        ("reverse ordered rows", swap_ordered),
    ] {
        let (tampered, caught, _) = noticed(100, tamper);
        assert!(
            tampered > 5,
            "{name}: only {tampered} histories had something to spoil"
        );
        assert!(caught * 4 > tampered, "{name}: noticed in {caught} of {tampered}");
    }
}

fn nets(plan: &mut ApplyPlan) -> impl Iterator<Item = &mut cdc_core::plan::NetTable> {
    plan.steps.iter_mut().filter_map(|step| match step {
        Step::Net(net) => Some(net),
        _ => None,
    })
}

/// A history's log in batches of a few transactions each.
fn log_batches(history: &History, format: &CellFormat, rng: &mut Rng) -> Vec<Arc<Batch>> {
    let schemas = history.source.schemas(format);
    let mut batches = Vec::new();
    let mut rest = history.source.txns();
    while !rest.is_empty() {
        let (some, others) = rest.split_at(rest.len().min(1 + rng.below(4)));
        batches.push(Arc::new(batch_of(some, &schemas, format).expect("a batch")));
        rest = others;
    }
    batches
}

/// Groups of all kinds: some of the log's transactions, a net window, and both together, which no planner accepts.
fn any_groups(history: &History, rng: &mut Rng) -> Vec<TxnGroup> {
    let format = CellFormat::text();
    let batches = log_batches(history, &format, rng);
    let whole = |batch: &Arc<Batch>| Piece {
        batch: Arc::clone(batch),
        txns: 0..batch.txns().len(),
        rows: 0..batch.rows().len(),
    };
    let last = history
        .source
        .txns()
        .last()
        .map_or(0, |txn: &SourceTxn| txn.offset);
    let window = net_window(&history.source, 0, last, rng);
    let schemas = history.source.schemas(&format);
    let window = window.map(|txn| whole(&Arc::new(batch_of(&[txn], &schemas, &format).expect("a batch"))));
    (0..8)
        .map(|_| {
            let from = rng.below(batches.len());
            let pieces = batches.iter().skip(from).take(rng.below(4)).map(whole);
            match (&window, rng.below(5)) {
                (Some(window), 0) => TxnGroup {
                    pieces: vec![window.clone()],
                },
                (Some(window), 1) => TxnGroup {
                    pieces: pieces.chain([window.clone()]).collect(),
                },
                _ => TxnGroup {
                    pieces: pieces.collect(),
                },
            }
        })
        .collect()
}

/// All that a plan says. Its batches are told by their addresses.
fn said(plan: &ApplyPlan) -> String {
    let pieces = plan.group.pieces.iter();
    let pieces: Vec<_> = pieces
        .map(|piece| (Arc::as_ptr(&piece.batch), &piece.txns, &piece.rows))
        .collect();
    let counts = (plan.applied, plan.coalesced);
    format!(
        "{:?}",
        (
            pieces,
            &plan.tables,
            &plan.steps,
            &plan.merged,
            counts,
            &plan.labels
        )
    )
}

/// Whether every group is planned in the memory of the one before as it is planned afresh.
fn compare_recycled(history: &History, seed: u64) -> Result<(), TestCaseError> {
    let mut rng = Rng::new(seed);
    let catalog = MemoryTarget::new(history.target.clone(), seed).catalog();
    history
        .marked_ordered
        .iter()
        .for_each(|name| catalog.set_ordered(name));
    let mut afresh = Planner::new(Arc::clone(&catalog));
    let (mut again, mut plan) = (Planner::new(catalog), ApplyPlan::default());
    for group in any_groups(history, &mut rng) {
        let mode = if rng.percent(30) {
            PlanMode::Ordered
        } else {
            PlanMode::Net
        };
        // As the apply thread leaves it: cleared, or about to be redone in order.
        if rng.percent(50) {
            plan.clear();
            prop_assert_eq!(said(&plan), said(&ApplyPlan::default()));
        }
        plan.labels.push(vec!["of the plan before".into()]);
        plan.group.pieces.clear();
        plan.group.pieces.extend_from_slice(&group.pieces);
        match (afresh.compile(group, mode), again.compile_into(&mut plan, mode)) {
            (Ok(fresh), Ok(())) => prop_assert_eq!(said(&plan), said(&fresh)),
            (Err(fresh), Err(error)) => prop_assert_eq!(error.to_string(), fresh.to_string()),
            (fresh, recycled) => prop_assert!(false, "{:?} but {:?}", recycled, fresh),
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn a_plan_in_used_memory_is_the_plan(seed in any::<u64>(), txns in transactions()) {
        compare_recycled(&History::new(seed, HistoryOptions::ALL, &txns), seed)?;
        compare_recycled(&History::new(seed, HistoryOptions::WINDOWS, &txns), seed)?;
    }
}

#[test]
fn a_cleared_plan_keeps_neither_batches_nor_tables() {
    let mut rng = Rng::new(3);
    let history = History::new(3, HistoryOptions::ALL, &random_actions(&mut rng, 20, 8));
    let batches = log_batches(&history, &CellFormat::text(), &mut rng);
    let mut planner = Planner::new(MemoryTarget::new(history.target.clone(), 3).catalog());
    let pieces = batches.iter().map(|batch| Piece {
        batch: Arc::clone(batch),
        txns: 0..batch.txns().len(),
        rows: 0..batch.rows().len(),
    });
    let group = TxnGroup {
        pieces: pieces.collect(),
    };
    let mut plan = planner.compile(group, PlanMode::Net).expect("a plan");
    let planned = plan.tables.clone();
    drop(planner);
    assert!(!planned.is_empty() && batches.iter().all(|batch| Arc::strong_count(batch) == 2));
    plan.clear();
    assert!(batches.iter().all(|batch| Arc::strong_count(batch) == 1));
    assert!(planned.iter().all(|table| Arc::strong_count(table) == 1));
}
