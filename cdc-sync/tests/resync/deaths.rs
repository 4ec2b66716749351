//! Death at each step of a copy beside the stream, under load; the next run takes it up.

use std::os::unix::process::ExitStatusExt;

use testbed::pair::LIMIT;
use testbed::provision::postgres_tools;
use testbed::workload::{Config, Fill, Workload, prepare};
use testbed::{Pair, Process, process};

use super::{assert_whole, until_caught_up};

/// Where processes die, in the order in which a copy comes by.
const DEATHS: &[&str] = &[
    "beside.left-out=kill",
    "slot.intended=kill",
    "slot.created=kill",
    "checkpoint.first=kill",
    "seed.mid-copy=kill",
    "seed.table-live=kill",
    "beside.standing-still=kill",
    "beside.before-giving-back=kill",
    "beside.given-back=kill",
    "cleanup.slot-dropped=kill",
    "beside.tidied-up=kill",
];

/// Errors that time mends, of which one copy can meet all.
const ERRORS: &str = "beside.left-out=error,beside.standing-still=error,beside.before-giving-back=error,\
                      beside.given-back=error,beside.tidied-up=error";

/// Runs the binary with failpoints until it dies, or meets an error and goes on to the end.
fn armed(pair: &Pair, points: &str) -> Process {
    let [source, target] = pair.urls();
    let mut command = process::cdc_sync_with_failpoints().expect("the binary with failpoints");
    command.args(["run", "--until-caught-up", "--yes", "--json"]);
    command.args(["--source", &source, "--target", &target]);
    command
        .arg("--pg-bin")
        .arg(postgres_tools().expect("the tools").bin);
    command.env("CDC_SYNC_FAILPOINTS", points);
    Process::spawn(command).expect("run starts")
}

/// A job whose blue is written to all the time.
struct Loaded {
    pair: Pair,
    loads: u64,
    written: u64,
}

impl Loaded {
    /// Spoils green, has it copied anew by runs that end as `ends` says, and asserts that nothing is lost or repeated.
    fn resync(&mut self, what: &str, ends: impl FnOnce(&Pair)) {
        let pair = &self.pair;
        pair.on_green("UPDATE shop.orders SET note = 'spoilt'; DELETE FROM shop.order_items")
            .expect("green is spoilt");
        let report = pair
            .verb(&["resync", "--table", "shop.order*"], 0)
            .expect("resync");
        assert_eq!(report["tables"].as_array().map(Vec::len), Some(2), "{report}");
        self.loads += 1;
        let config = Config {
            seed: self.loads,
            threads: 2,
            rate: 200.0,
            ..Config::default()
        };
        let load = Workload::start(&pair.urls()[0], &config).expect("the workload starts");
        ends(pair);
        until_caught_up(pair, &[]);
        self.written += load.stop().expect("the workload kept count").changes();
        let run = until_caught_up(pair, &[]);
        assert_eq!(
            run["changes"]["read"], self.written,
            "{what}: read against written"
        );
        assert_whole(pair, &run);
    }
}

fn dies(pair: &Pair, points: &str) {
    let ended = armed(pair, points).wait_timeout(LIMIT).expect("it ends");
    assert_eq!(ended.status.signal(), Some(9), "{points}: {}", ended.stderr);
}

#[test]
fn a_death_at_any_step_is_taken_up_by_the_next_run() {
    let pair = Pair::start(12, 18).expect("two servers");
    let fill = Fill {
        orders: 200,
        pgbench_scale: None,
    };
    prepare(&pair.urls()[0], fill).expect("blue is filled");
    until_caught_up(&pair, &[]);
    let mut job = Loaded {
        pair,
        loads: 0,
        written: 0,
    };
    job.resync("all deaths", |pair| {
        DEATHS.iter().for_each(|points| dies(pair, points))
    });
    job.resync("all errors", |pair| {
        let ended = armed(pair, ERRORS).wait_timeout(LIMIT).expect("it ends");
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
        for point in ERRORS.split(',').filter_map(|entry| entry.split('=').next()) {
            assert!(
                ended.stderr.contains(&format!("failpoint {point}")),
                "{point}: {}",
                ended.stderr
            );
        }
    });
    if testbed::runs_long_tier() {
        for points in DEATHS {
            job.resync(points, |pair| dies(pair, points));
        }
    }
}
