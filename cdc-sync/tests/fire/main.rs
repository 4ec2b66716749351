//! What may happen to a migration from outside, and that nothing of it loses or repeats a row: death at each step,
//! connections cut and frozen, servers that stop, disks that fill, slots that go.

mod copied;
mod failover;
mod failpoints;
mod held;
mod lane;
mod outages;
mod slots;
mod wire;

use std::process::Command;
use std::sync::OnceLock;

use testbed::pair::LIMIT;
use testbed::{Pair, Process};

/// The servers that lanes share: the oldest and the newest.
fn servers() -> &'static Pair {
    static SERVERS: OnceLock<Pair> = OnceLock::new();
    SERVERS.get_or_init(|| Pair::start(12, 18).expect("two servers"))
}

/// Runs a verb to its end; returns its JSON.
fn finish(command: Command, code: i32) -> serde_json::Value {
    report(Process::spawn(command).expect("it starts"), code)
}

/// Waits for the end of a verb; returns its JSON.
fn report(mut running: Process, code: i32) -> serde_json::Value {
    let ended = running.wait_timeout(LIMIT).expect("it ends");
    assert_eq!(ended.code(), Some(code), "{}\n{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).expect("it prints JSON")
}
