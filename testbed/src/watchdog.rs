//! Ends a child process and removes its folder when the process that owns them is gone, however it went.
//!
//! The usual tool for this, a parent-death signal, is bound to the *thread* that spawned the child; test
//! threads end long before their servers do. So a small shell waits on a pipe whose only writer is the owner:
//! the kernel closes it on every kind of death, SIGKILL included.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result};

use crate::proc::Stat;

/// Each line on standard input names the process to guard: pid, start time, first signal. The start time
/// makes sure that a later process that got the same pid is left alone.
const SCRIPT: &str = r#"
folder=$1
pid= start= signal=
while read -r a b c; do pid=$a start=$b signal=$c; done
runs() {
    [ -n "$pid" ] && read -r line 2>/dev/null <"/proc/$pid/stat" || return 1
    set -- ${line##*) }
    [ "$1" != Z ] && [ "${20}" = "$start" ]
}
if runs; then
    kill -"$signal" "$pid"
    n=0
    while runs && [ "$n" -lt 100 ]; do sleep 0.1; n=$((n + 1)); done
    runs && kill -KILL "$pid"
fi
rm -rf -- "$folder"
"#;

/// A waiting shell. Dropping it calls it off.
pub(crate) struct Watchdog {
    shell: Child,
    pipe: ChildStdin,
}

impl Watchdog {
    /// Starts to watch; `folder` is removed when this process dies without dropping the watchdog.
    pub(crate) fn start(folder: &Path) -> Result<Watchdog> {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "watchdog"])
            .arg(folder)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of the terminal's foreground group: Ctrl-C must reach the owner only.
            .process_group(0)
            .spawn()
            .context("cannot start the watchdog shell")?;
        let pipe = shell
            .stdin
            .take()
            .context("the watchdog shell has no standard input")?;
        Ok(Watchdog { shell, pipe })
    }

    /// Guards this process from now on, instead of the one named before. `signal` is a name such as `QUIT`;
    /// KILL follows 10 s later.
    pub(crate) fn guard(&mut self, pid: u32, signal: &str) -> Result<()> {
        let start = Stat::of(pid).map_or(0, |stat| stat.start);
        writeln!(self.pipe, "{pid} {start} {signal}").context("the watchdog shell is gone")
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Killed before the pipe closes, so that it cannot take our farewell for our death.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
