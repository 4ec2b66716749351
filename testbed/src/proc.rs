//! Processes: signals, and what `/proc` tells about them: identity beyond the pid, children, CPU time.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// Sends a signal.
pub(crate) fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("not a pid")?;
    kill_process(pid, signal).with_context(|| format!("cannot send {signal:?} to process {pid:?}"))
}

/// Waits until `done` holds, looking every few milliseconds; false when `timeout` passes first.
pub(crate) fn wait_until(timeout: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One line of `/proc/PID/stat`, as far as it is of use here.
pub(crate) struct Stat {
    state: String,
    /// CPU time of all its threads, in clock ticks.
    pub(crate) ticks: u64,
    /// Start time in clock ticks since boot: together with the pid it names one process for ever.
    pub(crate) start: u64,
}

impl Stat {
    /// Reads it; `None` when there is no such process.
    pub(crate) fn of(pid: u32) -> Option<Stat> {
        let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program name in parentheses and may itself hold blanks and parentheses;
        // `state` is the third field, hence index 0 of what follows.
        let mut fields = line.get(line.rfind(')')? + 1..)?.split_whitespace();
        let state = fields.next()?.to_owned();
        let user: u64 = fields.nth(10)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        let start = fields.nth(6)?.parse().ok()?;
        Some(Stat {
            state,
            ticks: user + system,
            start,
        })
    }

    /// Whether the process still runs: a zombie only waits for its parent.
    pub(crate) fn runs(&self) -> bool {
        !matches!(self.state.as_str(), "Z" | "X")
    }

    /// Whether a signal has stopped it.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state == "T"
    }
}

/// The pids of the direct children of a process, from what the kernel keeps of each of its threads (proc(5),
/// `/proc/pid/task/tid/children`): a look at every process there is would cost a core a tenth of its time in a bench.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else {
        return Vec::new();
    };
    let of_thread = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).ok();
    threads
        .filter_map(|thread| of_thread(thread.ok()?))
        .flat_map(|pids| pids.split_whitespace().map(str::parse).collect::<Vec<_>>())
        .filter_map(Result::ok)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_a_child_and_its_start_time() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(children(std::process::id()).contains(&child.id()));
        let stat = Stat::of(child.id()).unwrap();
        assert!(stat.runs() && stat.start >= Stat::of(std::process::id()).unwrap().start);
        child.kill().unwrap();
        assert!(wait_until(Duration::from_secs(60), || Stat::of(child.id())
            .is_some_and(|s| !s.runs())));
        child.wait().unwrap();
        assert!(Stat::of(child.id()).is_none());
    }
}
