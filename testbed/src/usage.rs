//! CPU time and memory of processes, looked at in `/proc` while they run: servers tell neither for a session.

use std::collections::HashMap;
use std::fs;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::proc::{Stat, children};

/// Time between two looks: what a process does between the last one and its end is not seen.
const EVERY: Duration = Duration::from_millis(100);

/// What one process used while it was watched.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// CPU time in seconds, of all threads, in user space and in the kernel.
    pub cpu: f64,
    /// Largest resident size in bytes since the process began.
    pub peak: u64,
}

/// Watches the direct children of some processes, those that begin meanwhile as well, until it is asked for what it saw.
pub struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<Vec<HashMap<u32, Seen>>>,
}

/// A process at its first look and at its last.
struct Seen {
    first: u64,
    last: u64,
    peak: u64,
}

impl Watch {
    /// Begins; `parents` by their pids.
    pub fn start(parents: Vec<u32>) -> Watch {
        let (stop, stopped) = channel();
        let mut seen: Vec<HashMap<u32, Seen>> = parents.iter().map(|_| HashMap::new()).collect();
        // Those there already count from here on, those that begin later from their beginning.
        for (parent, seen) in parents.iter().zip(&mut seen) {
            look(*parent, |stat| stat.ticks, seen);
        }
        let thread = std::thread::spawn(move || {
            loop {
                let goes_on = stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout);
                for (parent, seen) in parents.iter().zip(&mut seen) {
                    look(*parent, |_| 0, seen);
                }
                if !goes_on {
                    return seen;
                }
            }
        });
        Watch { stop, thread }
    }

    /// Ends; of each parent the child that used most CPU time.
    pub fn busiest(self) -> Vec<Used> {
        drop(self.stop);
        let seen = self.thread.join().unwrap_or_default();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let busiest = |children: &HashMap<u32, Seen>| {
            let used = children.values().map(|child| Used {
                cpu: (child.last - child.first) as f64 / ticks,
                peak: child.peak,
            });
            used.max_by(|a, b| a.cpu.total_cmp(&b.cpu)).unwrap_or_default()
        };
        seen.iter().map(busiest).collect()
    }
}

/// Looks at the children of `parent`; `first` is what one counts from that was not seen before.
fn look(parent: u32, first: impl Fn(&Stat) -> u64, seen: &mut HashMap<u32, Seen>) {
    for pid in children(parent) {
        let Some(stat) = Stat::of(pid) else {
            continue;
        };
        let child = seen.entry(pid).or_insert(Seen {
            first: first(&stat),
            last: 0,
            peak: 0,
        });
        child.last = child.last.max(stat.ticks);
        child.peak = child.peak.max(peak(pid).unwrap_or(0));
    }
}

/// Largest resident size of a process that runs, in bytes.
pub fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::wait_until;

    #[test]
    fn tells_what_a_child_used() {
        let watch = Watch::start(vec![std::process::id()]);
        let busy = "while :; do :; done";
        let mut child = std::process::Command::new("sh")
            .args(["-c", busy])
            .spawn()
            .unwrap();
        let ticks = || Stat::of(child.id()).map_or(0, |stat| stat.ticks);
        assert!(wait_until(Duration::from_secs(60), || ticks() >= 20));
        let resident = peak(child.id());
        assert!(resident.is_some_and(|bytes| bytes > 100 << 10), "{resident:?}");
        let used = watch.busiest();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            used.len() == 1 && used[0].cpu > 0.0 && used[0].peak > 0,
            "{used:?}"
        );
    }
}
