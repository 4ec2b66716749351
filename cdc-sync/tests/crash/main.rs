//! The binary, killed with SIGKILL at seeded moments, between real servers: nothing lost, nothing twice, every
//! change accounted for.

mod fence;
mod kills;
mod pairs;

use std::process::Command;
use std::time::Duration;

use testbed::provision::postgres_tools;
use testbed::{PgCluster, Process};

const DATABASE: &str = "app";
/// Ten times and more what a step usually takes.
const LIMIT: Duration = Duration::from_secs(240);

/// Blue and green with an empty database each.
fn pair(old: u16, new: u16) -> (PgCluster, PgCluster) {
    let [blue, green] = [old, new].map(|major| {
        let cluster = PgCluster::builder(major).start().expect("a cluster");
        cluster.create_database(DATABASE).expect("a database");
        cluster
    });
    (blue, green)
}

/// A command of the binary for this pair.
fn cdc_sync(blue: &PgCluster, green: &PgCluster, arguments: &[&str]) -> Command {
    let mut command = testbed::process::cdc_sync().expect("CDC_SYNC_BIN names the binary");
    command.args(arguments).args(["--yes", "--json"]);
    command.args(["--source", &blue.url(DATABASE), "--target", &green.url(DATABASE)]);
    if arguments.first() == Some(&"run") {
        command
            .arg("--pg-bin")
            .arg(postgres_tools().expect("client programs").bin);
    }
    command
}

/// Runs a verb to its end and returns its JSON; panics with its output on another exit code.
fn verb(blue: &PgCluster, green: &PgCluster, arguments: &[&str], code: i32) -> serde_json::Value {
    let finished = Process::run(cdc_sync(blue, green, arguments), LIMIT).expect("the verb ends in time");
    assert_eq!(
        finished.code(),
        Some(code),
        "cdc-sync {arguments:?}\n{}\n{}",
        finished.stdout,
        finished.stderr
    );
    serde_json::from_str(&finished.stdout).expect("one JSON object")
}

/// Asserts that both databases hold the same rows, by an oracle of its own and by `verify`.
fn assert_equal(blue: &PgCluster, green: &PgCluster) {
    let differences =
        testbed::compare::databases(&blue.url(DATABASE), &green.url(DATABASE)).expect("both compare");
    assert!(
        differences.is_empty(),
        "{} tables differ, first: {}",
        differences.len(),
        differences[0]
    );
    let report = verb(blue, green, &["verify"], 0);
    assert_eq!(report["differences"], 0, "{report}");
}

/// Asserts the accounting: everything read has one outcome, and as much was read as was written.
fn assert_accounted(run: &serde_json::Value, written: u64) {
    let count = |key: &str| run["changes"][key].as_u64().expect(key);
    let outcomes: u64 = ["applied", "loop", "filtered", "superseded", "dead_lettered"]
        .map(count)
        .iter()
        .sum();
    assert_eq!(count("read"), outcomes, "{run}");
    assert_eq!(count("read"), written, "read against written: {run}");
}

/// Small, seeded, good enough to spread moments (Knuth's MMIX generator).
struct Moments(u64);

impl Moments {
    /// A duration between the two.
    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let share = (self.0 >> 33) as f64 / f64::from(1_u32 << 31);
        least + (most - least).mul_f64(share)
    }
}
