//! Named steps, run one after the other, with their times and a sign of life every minute.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// CI takes silence for a hang.
const SIGN_OF_LIFE: Duration = Duration::from_secs(55);

/// What the test programs of a step said in their `test result` lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TestCount {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl TestCount {
    fn add(&mut self, other: TestCount) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Reads `test result: ok. 12 passed; 0 failed; 1 ignored; …`; `None` for any other line.
    fn parse(line: &str) -> Option<TestCount> {
        let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
        let of = |word: &str| {
            counts
                .split(';')
                .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
        };
        Some(TestCount {
            passed: of("passed")?,
            failed: of("failed")?,
            ignored: of("ignored")?,
        })
    }
}

/// The steps run so far.
pub(crate) struct Steps {
    begun: Instant,
    done: Vec<(String, Duration)>,
    tests: TestCount,
}

impl Steps {
    pub(crate) fn new() -> Steps {
        Steps {
            begun: Instant::now(),
            done: Vec::new(),
            tests: TestCount::default(),
        }
    }

    /// Runs a step that is code of ours.
    pub(crate) fn run(&mut self, name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
        let tests = Arc::new(AtomicU64::new(0));
        self.timed(name, &tests, step)
    }

    /// Runs a step that is a command.
    pub(crate) fn command(&mut self, name: &str, command: &mut Command) -> Result<()> {
        self.run(name, || {
            let status = command
                .status()
                .with_context(|| format!("cannot run {command:?}"))?;
            ensure!(status.success(), "{} ended with {status}", shown(command));
            Ok(())
        })
    }

    /// Runs a step that is `cargo test`, and fails when fewer than `at_least` tests ran: a filter or a feature
    /// that matches nothing must not pass for success.
    pub(crate) fn tests(&mut self, name: &str, at_least: u64, command: &mut Command) -> Result<()> {
        let seen = Arc::new(AtomicU64::new(0));
        let mut count = TestCount::default();
        let result = self.timed(name, &seen, || {
            let mut child = command
                .stdout(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot run {}", shown(command)))?;
            let stdout = child
                .stdout
                .take()
                .context("the command has no standard output")?;
            for line in BufReader::new(stdout).split(b'\n') {
                let line = line.context("cannot read the command's output")?;
                let line = String::from_utf8_lossy(&line);
                println!("{line}");
                count.add(TestCount::parse(&line).unwrap_or_default());
                if line.starts_with("test ") && line.ends_with("... ok") {
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            }
            let status = child.wait().context("cannot wait for the command")?;
            ensure!(status.success(), "{} ended with {status}", shown(command));
            let passed = count.passed;
            ensure!(
                passed >= at_least,
                "{} ran {passed} tests, not {at_least}",
                shown(command)
            );
            Ok(())
        });
        self.tests.add(count);
        result
    }

    /// Runs several commands like those of [`Steps::tests`] at a time, the first ones first, and prints the output of
    /// each when it has ended. All run to their end, so that one run shows all that is wrong.
    pub(crate) fn tests_at_once(&mut self, name: &str, at_once: usize, commands: Vec<Command>) -> Result<()> {
        let seen = Arc::new(AtomicU64::new(0));
        let count = Mutex::new(TestCount::default());
        let failed = Mutex::new(Vec::new());
        let queue = Mutex::new(commands.into_iter());
        let lock = |error| anyhow!("another test command panicked: {error}");
        let work = || -> Result<()> {
            loop {
                let Some(mut command) = queue.lock().map_err(|e| lock(e.to_string()))?.next() else {
                    return Ok(());
                };
                let output = command
                    .output()
                    .with_context(|| format!("cannot run {}", shown(&command)))?;
                let text = String::from_utf8_lossy(&output.stdout);
                let mut told = std::io::stdout().lock();
                write!(told, "{}{text}", String::from_utf8_lossy(&output.stderr))?;
                drop(told);
                let mut passed = 0;
                for result in text.lines().filter_map(TestCount::parse) {
                    passed += result.passed;
                    count.lock().map_err(|e| lock(e.to_string()))?.add(result);
                }
                seen.fetch_add(passed, Ordering::Relaxed);
                if !output.status.success() || passed == 0 {
                    let why = format!(
                        "{} ended with {}, {passed} passed",
                        shown(&command),
                        output.status
                    );
                    failed.lock().map_err(|e| lock(e.to_string()))?.push(why);
                }
            }
        };
        let result = self.timed(name, &seen, || {
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
                let ends = workers.into_iter().map(|worker| worker.join());
                ends.collect::<Vec<_>>()
                    .into_iter()
                    .try_for_each(|end| end.unwrap_or_else(|_| bail!("a test command panicked")))
            })?;
            let failed = failed.lock().map_err(|e| lock(e.to_string()))?;
            ensure!(failed.is_empty(), "{}", failed.join("\n"));
            Ok(())
        });
        self.tests.add(*count.lock().map_err(|e| lock(e.to_string()))?);
        result
    }

    fn timed(&mut self, name: &str, tests: &Arc<AtomicU64>, step: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("=== {name} ({} since the start)", human(self.begun.elapsed()));
        let begun = Instant::now();
        let (done, waiting) = channel::<()>();
        let (label, seen) = (name.to_owned(), tests.clone());
        let ticker = std::thread::spawn(move || {
            while waiting.recv_timeout(SIGN_OF_LIFE) == Err(RecvTimeoutError::Timeout) {
                let tests = match seen.load(Ordering::Relaxed) {
                    0 => String::new(),
                    passed => format!(", {passed} tests passed"),
                };
                println!("... {label}: running for {}{tests}", human(begun.elapsed()));
            }
        });
        let result = step();
        drop(done);
        let _ = ticker.join();
        let outcome = if result.is_ok() { "done" } else { "FAILED" };
        println!("=== {name}: {outcome} in {}", human(begun.elapsed()));
        self.done.push((format!("{name}: {outcome}"), begun.elapsed()));
        result.with_context(|| format!("step \"{name}\" failed"))
    }

    /// Prints the steps with their times, and last a line like cargo's own with the tests of all steps.
    pub(crate) fn summary(&self, ok: bool) {
        println!();
        for (step, time) in &self.done {
            println!("{step:<32} {:>10}", human(*time));
        }
        println!("{:<32} {:>10}", "all", human(self.begun.elapsed()));
        println!();
        let TestCount {
            passed,
            failed,
            ignored,
        } = self.tests;
        println!(
            "test result: {}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out; \
             finished in {:.2}s",
            if ok { "ok" } else { "FAILED" },
            self.begun.elapsed().as_secs_f64()
        );
        // The line must be out before an exit code tells the same.
        let _ = std::io::stdout().flush();
    }
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    if let Some(name) = words.first_mut().filter(|name| name.ends_with("/cargo")) {
        *name = "cargo".to_owned();
    }
    words.join(" ")
}

fn human(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_result_lines_of_cargo() {
        let line =
            "test result: ok. 12 passed; 3 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.43s";
        assert_eq!(
            TestCount::parse(line),
            Some(TestCount {
                passed: 12,
                failed: 3,
                ignored: 1
            })
        );
        assert_eq!(TestCount::parse("test result::tests::parse ... ok"), None);
        assert_eq!(TestCount::parse("running 3 tests"), None);
    }

    #[test]
    fn all_of_several_commands_run_and_each_has_to_pass() {
        let said = |line: &str| {
            let mut command = Command::new("echo");
            command.arg(line);
            command
        };
        let passed = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        let mut steps = Steps::new();
        steps
            .tests_at_once("all", 2, (0..5).map(|_| said(passed)).collect())
            .unwrap();
        assert_eq!(steps.tests.passed, 10);
        let mixed = vec![said("running 0 tests"), Command::new("false"), said(passed)];
        let error = steps.tests_at_once("some", 1, mixed).unwrap_err();
        assert_eq!(format!("{error:?}").matches("ended with").count(), 2, "{error:?}");
        assert_eq!(steps.tests.passed, 12);
    }

    #[test]
    fn a_step_that_runs_too_few_tests_fails() {
        let mut steps = Steps::new();
        let mut command = Command::new("echo");
        assert!(steps.tests("nothing", 1, command.arg("running 0 tests")).is_err());
        let mut command = Command::new("echo");
        let line = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        steps.tests("two", 1, command.arg(line)).unwrap();
        assert_eq!(steps.tests.passed, 2);
        assert!(steps.command("exit code", &mut Command::new("false")).is_err());
    }
}
