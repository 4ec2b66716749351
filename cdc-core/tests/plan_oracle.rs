//! A plan applied must leave what the changes one by one leave: random tables, keys, facts, histories, group
//! borders and modes against the model.

use cdc_core::plan::{ApplyPlan, Step};
use cdc_core::testing::conformance::{HistoryRun, MemorySinkHarness, apply_log, apply_windows};
use cdc_core::testing::{Action, CellFormat, History, HistoryOptions, Rng, random_actions};
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
