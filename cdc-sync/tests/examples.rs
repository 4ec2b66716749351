//! The examples, run as programs between two real servers.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use testbed::pair::LIMIT;
use testbed::provision::postgres_tools;
use testbed::workload::{Fill, prepare};
use testbed::{Pair, Process, compare};

/// Built beside the tests by `cargo xtask test`.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let built: PathBuf = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(
        built.is_file(),
        "{} is missing: cargo build --examples",
        built.display()
    );
    Command::new(built)
}

#[test]
fn embed_copies_and_follows() {
    let pair = Pair::start(13, 18).unwrap();
    let [source, target] = pair.urls();
    let fill = Fill {
        orders: 500,
        pgbench_scale: None,
    };
    prepare(&source, fill).unwrap();
    let run = || {
        let mut command = example("embed");
        command
            .args([&source, &target])
            .arg(postgres_tools().unwrap().bin);
        let ended = Process::run(command, LIMIT).unwrap();
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
        assert_eq!(compare::databases(&source, &target).unwrap(), []);
        ended.stdout
    };
    let first = run();
    assert!(!first.starts_with("0 rows copied"), "{first}");
    pair.on_blue("DELETE FROM shop.order_items").unwrap();
    let second = run();
    assert!(second.starts_with("0 rows copied"), "{second}");
}

#[test]
fn changes_prints_what_is_committed() {
    let pair = Pair::start(16, 16).unwrap();
    pair.on_blue("CREATE TABLE t (id int PRIMARY KEY, v float8)")
        .unwrap();
    let mut command = example("changes");
    command.args([&pair.urls()[0], "2"]);
    let mut running = Process::spawn(command).unwrap();
    let reads = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    let deadline = Instant::now() + LIMIT;
    while pair.on_blue(reads).unwrap() != "1" {
        assert!(
            running.is_running() && Instant::now() < deadline,
            "{}",
            running.stderr()
        );
    }
    pair.on_blue("INSERT INTO t VALUES (1, 0.5)").unwrap();
    pair.on_blue("DELETE FROM t").unwrap();
    let ended = running.wait_timeout(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let lines: Vec<serde_json::Value> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(
        lines
            .iter()
            .any(|line| line["op"] == "insert" && line["after"]["v"] == 0.5)
    );
    assert!(
        lines
            .iter()
            .any(|line| line["op"] == "delete" && line["key"]["id"] == 1)
    );
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)";
    assert_eq!(pair.on_blue(left).unwrap(), "0");
}
