//! Random histories applied to real servers: a plan applied must leave what the changes one by one leave.

use std::cell::RefCell;

use cdc_core::plan::{ApplyPlan, Step};
use cdc_core::testing::conformance::{apply_log, apply_windows};
use cdc_core::testing::{Action, CellFormat, History, HistoryOptions, Rng, random_actions};
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, RngSeed, TestRunner};
use tokio::runtime::Runtime;

use crate::servers::{cluster, runtime, within_deadline};
use crate::sink_harness::{PgSinkHarness, pg_text};

/// What a difference means is known to the source that sends it, and PostgreSQL sends none.
pub(crate) const OPTIONS: HistoryOptions = HistoryOptions {
    patches: false,
    ..HistoryOptions::ALL
};

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(2),
        // A case takes a tenth of a second.
        max_shrink_iters: 500,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "proptest-regressions/conformance.txt",
        ))),
        ..ProptestConfig::default()
    })
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

/// Targets on the oldest and the newest server, each for one case at a time.
struct Targets {
    runtime: Runtime,
    harnesses: RefCell<[PgSinkHarness; 2]>,
}

impl Targets {
    fn open(database: &str) -> Targets {
        let runtime = runtime();
        let harnesses = within_deadline(&runtime, async {
            [
                PgSinkHarness::open(cluster(12), database, pg_text()).await,
                PgSinkHarness::open(cluster(18), database, pg_text()).await,
            ]
        });
        Targets {
            runtime,
            harnesses: RefCell::new(harnesses),
        }
    }

    /// Runs a case on the server and with the format that its seed chooses.
    fn run<T>(&self, seed: u64, case: impl AsyncFnOnce(&mut PgSinkHarness) -> T) -> T {
        let mut harnesses = self.harnesses.borrow_mut();
        let harness = &mut harnesses[(seed % 2) as usize];
        harness.give(if seed / 2 % 2 == 0 {
            pg_text()
        } else {
            CellFormat::canonical()
        });
        within_deadline(&self.runtime, case(harness))
    }
}

#[test]
fn plans_do_what_the_changes_do_one_by_one() {
    let targets = Targets::open("histories");
    let done = runner(100).run(&(any::<u64>(), transactions()), |(seed, txns)| {
        let history = History::new(seed, OPTIONS, &txns);
        let run = targets.run(seed, async |harness| {
            apply_log(harness, &history, seed, &mut |_| {}).await
        });
        prop_assert!(run.is_ok(), "{:?}", run.err());
        Ok(())
    });
    done.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn net_windows_reach_the_state_at_their_end() {
    let targets = Targets::open("windows");
    let done = runner(50).run(&(any::<u64>(), transactions()), |(seed, txns)| {
        let history = History::new(seed, HistoryOptions::WINDOWS, &txns);
        let run = targets.run(seed, async |harness| apply_windows(harness, &history, seed).await);
        prop_assert!(run.is_ok(), "{:?}", run.err());
        Ok(())
    });
    done.unwrap_or_else(|failure| panic!("{failure}"));
}

/// A planner that forgets what belongs together is caught here as it is by the model.
#[test]
fn wrong_plans_are_noticed() {
    let targets = Targets::open("wrong");
    let (mut spoilt, mut caught) = (0, 0);
    for seed in 0..20 {
        let txns = random_actions(&mut Rng::new(seed), 12, 8);
        let history = History::new(seed, OPTIONS, &txns);
        let mut did = false;
        let mut forget_an_insert = |plan: &mut ApplyPlan| {
            did |= plan.steps.iter_mut().any(|step| match step {
                Step::Net(net) => net.inserts.pop().is_some(),
                _ => false,
            });
        };
        let run = targets.run(seed, async |harness| {
            apply_log(harness, &history, seed, &mut forget_an_insert).await
        });
        spoilt += u32::from(did);
        match run {
            Err(_) if did => caught += 1,
            Err(error) => panic!("seed {seed}: {error:?}"),
            Ok(_) => {}
        }
    }
    assert!(spoilt > 5, "only {spoilt} histories had something to spoil");
    assert!(caught * 4 > spoilt * 3, "noticed in {caught} of {spoilt}");
}
