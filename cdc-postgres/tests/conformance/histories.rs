//! Random histories applied to real servers: a plan applied must leave what the changes one by one leave.

use std::cell::RefCell;

use cdc_core::plan::{ApplyPlan, Step};
use cdc_core::testing::conformance::{HistoryRun, apply_log, apply_windows};
use cdc_core::testing::{Action, CellFormat, History, HistoryOptions, Rng, random_actions};
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, RngSeed, TestRunner};
use tokio::runtime::Runtime;

use crate::servers::{cluster, runtime, within_deadline};
use crate::sink_harness::{Login, PgSinkHarness, pg_text};

/// What a difference means is known to the source that sends it, and PostgreSQL sends none.
pub(crate) const OPTIONS: HistoryOptions = HistoryOptions {
    patches: false,
    ..HistoryOptions::ALL
};

/// All of them in the long tier, two of five otherwise.
fn cases(all: u32) -> u32 {
    if testbed::runs_long_tier() {
        all
    } else {
        all * 2 / 5
    }
}

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
    prop::collection::vec(prop::collection::vec(action(), 1..30), 1..12)
}

/// Targets of all kinds, each for one case at a time.
struct Targets {
    runtime: Runtime,
    harnesses: RefCell<Vec<PgSinkHarness>>,
}

impl Targets {
    fn open(name: &str, logins: &[Login]) -> Targets {
        let runtime = runtime();
        let harnesses = within_deadline(&runtime, async {
            let mut harnesses = Vec::new();
            for login in logins {
                for major in [12, 18] {
                    let database = format!("{name} by {login:?}");
                    harnesses.push(PgSinkHarness::open(cluster(major), &database, *login).await);
                }
            }
            harnesses
        });
        Targets {
            runtime,
            harnesses: RefCell::new(harnesses),
        }
    }

    /// Runs a case on the target and with the format that its seed chooses.
    fn run<T>(&self, seed: u64, case: impl AsyncFnOnce(&mut PgSinkHarness) -> T) -> T {
        let mut harnesses = self.harnesses.borrow_mut();
        let kinds = harnesses.len() as u64;
        let harness = &mut harnesses[(seed % kinds) as usize];
        harness.give(if (seed / kinds).is_multiple_of(2) {
            pg_text()
        } else {
            CellFormat::canonical()
        });
        within_deadline(&self.runtime, case(harness))
    }
}

/// How often plans take each of the ways that there are to the server.
#[derive(Debug, Default)]
struct Ways {
    single_rows: u32,
    copies: u32,
    deletes_in_sets: u32,
    updates_in_sets: u32,
    merged: u32,
    ordered: u32,
    truncates: u32,
}

impl Ways {
    fn count(&mut self, plan: &ApplyPlan) {
        // What the sink sends as a set, and what row by row.
        const SET: usize = 4;
        self.merged += u32::from(!plan.merged.is_empty());
        for step in &plan.steps {
            match step {
                Step::Net(net) => {
                    let updates = net.updates.iter().map(|set| set.rows.len());
                    let sizes = updates.clone().chain([net.inserts.len(), net.deletes.len()]);
                    self.single_rows += u32::from(sizes.clone().any(|rows| (1..SET).contains(&rows)));
                    self.copies += u32::from(net.inserts.len() >= SET);
                    self.deletes_in_sets += u32::from(net.deletes.len() >= SET);
                    self.updates_in_sets += u32::from(updates.clone().any(|rows| rows >= SET));
                }
                Step::Ordered(_) => self.ordered += 1,
                Step::Truncate { .. } => self.truncates += 1,
            }
        }
    }

    fn least(&self) -> u32 {
        let ways = [
            self.single_rows,
            self.copies,
            self.deletes_in_sets,
            self.updates_in_sets,
            self.merged,
            self.ordered,
            self.truncates,
        ];
        ways.into_iter().min().unwrap_or_default()
    }
}

#[test]
fn plans_do_what_the_changes_do_one_by_one() {
    let targets = Targets::open("histories", &[Login::Superuser, Login::Ordinary]);
    let (ways, runs) = (RefCell::new(Ways::default()), RefCell::new(HistoryRun::default()));
    let done = runner(cases(100)).run(&(any::<u64>(), transactions()), |(seed, txns)| {
        let history = History::new(seed, OPTIONS, &txns);
        let mut taken = ways.take();
        let run = targets.run(seed, async |harness| {
            apply_log(harness, &history, seed, &mut |plan| taken.count(plan)).await
        });
        ways.replace(taken);
        prop_assert!(run.is_ok(), "{:?}", run.err());
        runs.borrow_mut().redone += run.map_or(0, |run| run.redone);
        Ok(())
    });
    done.unwrap_or_else(|failure| panic!("{failure}"));
    let (ways, runs) = (ways.into_inner(), runs.into_inner());
    assert!(
        ways.least() > 0 && runs.redone > 0,
        "not all ways were taken: {ways:?} {runs:?}"
    );
}

#[test]
fn net_windows_reach_the_state_at_their_end() {
    // To an ordinary login foreign keys show the states in between, which a window does not order.
    let targets = Targets::open("windows", &[Login::Superuser]);
    let done = runner(cases(50)).run(&(any::<u64>(), transactions()), |(seed, txns)| {
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
    let targets = Targets::open("wrong", &[Login::Superuser]);
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
