//! A program under test as a child process: its output in files, signals, and waits with a deadline.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::proc::{send, wait_until};
use crate::watchdog::Watchdog;

/// A command that runs the `cdc-sync` binary which `CDC_SYNC_BIN` names, with nothing of the caller's own
/// connection settings: `PG*` and `CDC_SYNC_*` variables are removed.
pub fn cdc_sync() -> Result<Command> {
    command_of("CDC_SYNC_BIN")
}

/// The same for the binary with named failpoints, which `CDC_SYNC_FAILPOINTS_BIN` names.
pub fn cdc_sync_with_failpoints() -> Result<Command> {
    command_of("CDC_SYNC_FAILPOINTS_BIN")
}

/// The binary that an environment variable names.
pub fn binary(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .with_context(|| {
            format!(
                "{variable} must name the cdc-sync binary to test; `cargo xtask test` builds it and sets it"
            )
        })?;
    ensure!(
        path.is_file(),
        "{variable} names {}, which is no file",
        path.display()
    );
    Ok(path)
}

fn command_of(variable: &str) -> Result<Command> {
    let mut command = Command::new(binary(variable)?);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("PG") || text.starts_with("CDC_SYNC_") {
            command.env_remove(&name);
        }
    }
    Ok(command)
}

/// A running (or ended) child. It is killed when dropped, and when this process dies.
pub struct Process {
    child: Child,
    name: String,
    output: TempDir,
    watchdog: Watchdog,
}

/// A process that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// The exit code; `None` after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl Process {
    /// Starts the command, with no standard input and out of the terminal's reach.
    pub fn spawn(mut command: Command) -> Result<Process> {
        let name = Path::new(command.get_program()).display().to_string();
        let output = tempfile::Builder::new().prefix("cdc-sync-process-").tempdir()?;
        let watchdog = Watchdog::start(output.path())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(output.path().join("stdout"))?)
            .stderr(File::create(output.path().join("stderr"))?)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = child.id();
        // Built first, so that a failure of the next line kills the child.
        let mut process = Process {
            child,
            name,
            output,
            watchdog,
        };
        process.watchdog.guard(pid, "KILL")?;
        Ok(process)
    }

    /// Runs the command to its end.
    ///
    /// # Errors
    /// When it takes longer than `timeout`; it is killed then, and the error has its last output.
    pub fn run(command: Command, timeout: Duration) -> Result<Finished> {
        let mut process = Process::spawn(command)?;
        process.wait_timeout(timeout)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has written to standard output until now.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// What it has written to standard error until now.
    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    /// Kills it with SIGKILL and waits for its end. No error if it has ended already.
    pub fn kill9(&mut self) -> Result<ExitStatus> {
        self.child
            .kill()
            .with_context(|| format!("cannot kill {}", self.name))?;
        self.child
            .wait()
            .with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Sends SIGTERM.
    pub fn sigterm(&self) -> Result<()> {
        send(self.pid(), Signal::TERM)
    }

    /// Sends SIGINT.
    pub fn sigint(&self) -> Result<()> {
        send(self.pid(), Signal::INT)
    }

    /// Stops it with SIGSTOP, as if the machine had frozen, until [`Process::resume`].
    pub fn suspend(&self) -> Result<()> {
        send(self.pid(), Signal::STOP)
    }

    /// Lets a suspended process go on.
    pub fn resume(&self) -> Result<()> {
        send(self.pid(), Signal::CONT)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `timeout`; the error has its last output.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Finished> {
        if !wait_until(timeout, || !matches!(self.child.try_wait(), Ok(None))) {
            bail!("{} still runs after {timeout:?}{}", self.name, self.last_output());
        }
        let status = self
            .child
            .wait()
            .with_context(|| format!("cannot wait for {}", self.name))?;
        Ok(Finished {
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
        })
    }

    /// Waits until its standard output or standard error holds `text`.
    ///
    /// # Errors
    /// When it ends without, or `timeout` passes; the error has its last output.
    pub fn wait_for(&mut self, text: &str, timeout: Duration) -> Result<()> {
        let mut ended = false;
        let mut found = false;
        wait_until(timeout, || {
            // In this order: what it wrote before it ended is seen.
            ended = !matches!(self.child.try_wait(), Ok(None));
            found = self.stdout().contains(text) || self.stderr().contains(text);
            found || ended
        });
        let why = if ended { "ended" } else { "ran for the whole time" };
        ensure!(
            found,
            "{} {why} and never wrote {text:?} ({timeout:?}){}",
            self.name,
            self.last_output()
        );
        Ok(())
    }

    fn read(&self, stream: &str) -> String {
        // The folder is ours and lives as long as we do.
        let bytes = fs::read(self.output.path().join(stream)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn last_output(&self) -> String {
        let tail = |text: String| {
            let lines: Vec<&str> = text.lines().collect();
            lines
                .get(lines.len().saturating_sub(20)..)
                .unwrap_or_default()
                .join("\n")
        };
        format!(
            "\nstdout:\n{}\nstderr:\n{}",
            tail(self.stdout()),
            tail(self.stderr())
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn captures_output_and_code() {
        let finished = Process::run(shell("echo out; echo err >&2; exit 7"), LONG).unwrap();
        assert_eq!(
            (
                finished.code(),
                finished.stdout.as_str(),
                finished.stderr.as_str()
            ),
            (Some(7), "out\n", "err\n")
        );
    }

    #[test]
    fn signals_reach_it() {
        let mut process = Process::spawn(shell(
            "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done",
        ))
        .unwrap();
        process.wait_for("ready", LONG).unwrap();
        process.sigterm().unwrap();
        assert_eq!(process.wait_timeout(LONG).unwrap().code(), Some(5));
        let mut process = Process::spawn(shell("exec sleep 600")).unwrap();
        assert!(process.wait_timeout(Duration::from_millis(50)).is_err() && process.is_running());
        assert_eq!(process.kill9().unwrap().code(), None);
    }

    #[test]
    fn a_text_that_never_comes_is_an_error() {
        let error = Process::spawn(shell("echo other"))
            .unwrap()
            .wait_for("ready", LONG)
            .unwrap_err();
        assert!(
            format!("{error:#}").contains("ended and never wrote \"ready\""),
            "{error:#}"
        );
    }
}
