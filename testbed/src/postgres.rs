//! Throw-away PostgreSQL clusters of any provisioned version.
//!
//! A cluster lives in its own folder and on its own port, and dies with the value that owns it, or with the
//! process when that is killed. Each is made by `initdb`: a copied template would be faster by half a second,
//! but all copies would carry one system identifier, the very thing by which replication tells servers apart.

mod builder;
mod client;
mod probe;
mod tls;

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

pub use builder::{Builder, PasswordAuth};
pub use client::connect;
pub use tls::{ServerCertificate, TlsFiles};

use crate::port::Port;
use crate::proc::{Stat, children, send, wait_until};
use crate::provision::{ServerInstall, ServerUser, postgres_tools};
use crate::table::quote_identifier;
use crate::watchdog::Watchdog;

/// The password of the superuser in a cluster with [`Builder::password_auth`]. Distinct enough to be searched
/// for in logs and messages where it must not appear.
pub const PASSWORD: &str = "s3cret-of-the-testbed";

/// Crash recovery after a heavy workload on a loaded machine is the slowest start there is.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// A fast shutdown writes a checkpoint and waits for walsenders to send everything.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);

/// How a server is told to stop (the manual's "Shutting Down the Server").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for every session to end by itself.
    Smart,
    /// Ends the sessions, writes a checkpoint.
    Fast,
    /// Stops at once; the next start recovers from WAL.
    Immediate,
}

/// A running (or stopped, to be started again) PostgreSQL cluster.
pub struct PgCluster {
    install: ServerInstall,
    user: Option<ServerUser>,
    port: Port,
    password: bool,
    tls: Option<TlsFiles>,
    /// Data, sockets and log; `None` only while a cluster is left running for good.
    folder: Option<TempDir>,
    root: PathBuf,
    postmaster: Option<Child>,
    /// `None` only as for `folder`.
    watchdog: Option<Watchdog>,
}

/// What is left of a cluster that outlives its process; see [`PgCluster::leave_running`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftRunning {
    /// The process to end when done.
    pub pid: u32,
    /// The folder to remove after that.
    pub folder: PathBuf,
}

impl PgCluster {
    /// Describes a cluster of a major version; [`Builder::start`] starts it.
    pub fn builder(major: u16) -> Builder {
        Builder::new(major)
    }

    /// The major version, such as 12.
    pub fn major(&self) -> u16 {
        self.install.major
    }

    /// The exact version, such as `12.22`.
    pub fn version(&self) -> &str {
        &self.install.version
    }

    /// The TCP port on 127.0.0.1; it stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The folder of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.root
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.root.join("data")
    }

    /// The superuser's URL of a database over TCP, with the password if the cluster asks for one.
    pub fn url(&self, database: &str) -> String {
        self.url_at(self.port(), database)
    }

    /// As [`PgCluster::url`], by another port: that of a proxy in front of the cluster.
    pub fn url_at(&self, port: u16, database: &str) -> String {
        let login = if self.password {
            format!("postgres:{PASSWORD}")
        } else {
            "postgres".to_owned()
        };
        format!("postgres://{login}@127.0.0.1:{port}/{}", percent_encode(database))
    }

    /// The certificates of a cluster with [`Builder::ssl`].
    pub fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    /// Everything the server has logged.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(self.log_path()).context("cannot read the server log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Runs SQL with `psql` as superuser over the Unix socket (which asks for no password) and returns the
    /// result rows, unaligned: columns separated by `|`, rows by line ends. Stops at the first error.
    pub fn sql(&self, database: &str, script: &str) -> Result<String> {
        let mut psql = self
            .psql(database)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run psql")?;
        // On its own thread: a script longer than the pipe would block against psql's own output.
        let mut stdin = psql.stdin.take().context("psql has no standard input")?;
        let script = script.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(script.as_bytes()));
        let output = psql.wait_with_output().context("cannot wait for psql")?;
        // psql that stops at an error leaves the rest unread: its own message is the one to show.
        let written = writer.join();
        ensure!(
            output.status.success(),
            "psql on {database} of PostgreSQL {}: {}",
            self.version(),
            String::from_utf8_lossy(&output.stderr)
        );
        ensure!(
            matches!(written, Ok(Ok(()))),
            "psql did not read the whole script"
        );
        Ok(String::from_utf8(output.stdout)
            .context("psql printed something that is not UTF-8")?
            .trim_end()
            .to_owned())
    }

    /// `psql` as superuser over the Unix socket, reading its standard input.
    pub(crate) fn psql(&self, database: &str) -> Result<Command> {
        let mut psql = postgres_tools()?.command("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .args(["-U", "postgres", "-d", database, "-h"])
            .arg(self.socket_dir())
            .args(["-p", &self.port().to_string(), "-f", "-"]);
        Ok(psql)
    }

    /// Makes a standby the primary of a new timeline.
    pub fn promote(&self) -> Result<()> {
        let promoted = self.sql("postgres", "SELECT pg_promote()")?;
        ensure!(promoted == "t", "the standby was not promoted in time");
        Ok(())
    }

    /// Creates a database.
    pub fn create_database(&self, name: &str) -> Result<()> {
        self.sql("postgres", &format!("CREATE DATABASE {}", quote_identifier(name)))
            .map(drop)
    }

    /// The server's first process, the parent of its others, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.postmaster.as_ref().map(Child::id)
    }

    /// Whether the server process runs.
    pub fn is_running(&mut self) -> bool {
        self.postmaster
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Stops the server and waits until it is gone.
    ///
    /// # Errors
    /// When it does not run, or still does after two minutes (a smart stop with a session left open).
    pub fn stop(&mut self, mode: StopMode) -> Result<()> {
        let signal = match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        };
        let Some(postmaster) = &mut self.postmaster else {
            bail!("the server is stopped already")
        };
        send(postmaster.id(), signal)?;
        let gone = wait_until(STOP_TIMEOUT, || !matches!(postmaster.try_wait(), Ok(None)));
        ensure!(
            gone,
            "PostgreSQL {} still runs {STOP_TIMEOUT:?} after a {mode:?} stop:\n{}",
            self.install.version,
            self.log_tail()
        );
        self.postmaster = None;
        Ok(())
    }

    /// Kills the postmaster and all its processes with SIGKILL, as a power cut does to them.
    pub fn crash(&mut self) -> Result<()> {
        let Some(mut postmaster) = self.postmaster.take() else {
            bail!("the server is stopped already")
        };
        let pid = postmaster.id();
        // Stopped first, so that no process starts between the look at the children and their end.
        send(pid, Signal::STOP)?;
        let backends = children(pid);
        for backend in &backends {
            // It may have ended by itself.
            let _ = send(*backend, Signal::KILL);
        }
        send(pid, Signal::KILL)?;
        postmaster.wait().context("cannot wait for the postmaster")?;
        // A new postmaster refuses to start while a backend of the old one is attached to shared memory.
        let gone = wait_until(STOP_TIMEOUT, || {
            backends
                .iter()
                .all(|pid| Stat::of(*pid).is_none_or(|stat| !stat.runs()))
        });
        ensure!(gone, "processes of the crashed server are still there");
        Ok(())
    }

    /// Has durable commits wait for a synchronous standby, which there is not: without end, in every session but those with
    /// `synchronous_commit` at `local` or `off`. Returns when they do.
    pub fn hold_durable_commits(&self) -> Result<()> {
        self.sql(
            "postgres",
            "ALTER SYSTEM SET synchronous_standby_names = 'nobody'",
        )?;
        self.sql("postgres", "SELECT pg_reload_conf()")?;
        // Sessions have the setting before the process that turns it on.
        let probe = "SELECT pg_logical_emit_message(true, 'probe', '')";
        let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
                      WHERE wait_event = 'SyncRep' AND query LIKE '%''probe''%'";
        std::thread::scope(|scope| {
            let mut held = Ok(false);
            let deadline = Instant::now() + START_TIMEOUT;
            while matches!(held, Ok(false)) && Instant::now() < deadline {
                let probing = scope.spawn(|| self.sql("postgres", probe));
                while !probing.is_finished() && Instant::now() < deadline {
                    held = self.sql("postgres", cancel).map(|held| held != "0");
                    if !matches!(held, Ok(false)) {
                        break;
                    }
                }
            }
            ensure!(held?, "commits do not wait for a standby");
            Ok(())
        })
    }

    /// Ends [`PgCluster::hold_durable_commits`].
    pub fn release_durable_commits(&self) -> Result<()> {
        self.sql("postgres", "ALTER SYSTEM RESET synchronous_standby_names")?;
        self.sql("postgres", "SELECT pg_reload_conf()")?;
        Ok(())
    }

    /// Freezes the process that writes the log behind commits which do not wait for it (`synchronous_commit = off`), up
    /// to the end of the server. What was committed so, and no other commit has made durable, is lost by
    /// [`PgCluster::crash`].
    pub fn freeze_wal_writer(&self) -> Result<()> {
        let mut frozen = Ok(false);
        wait_until(START_TIMEOUT, || {
            frozen = self.freeze_if_asleep();
            !matches!(frozen, Ok(false))
        });
        ensure!(frozen?, "the WAL writer is never asleep");
        Ok(())
    }

    /// Amid a write it would hold a lock that every commit needs.
    fn freeze_if_asleep(&self) -> Result<bool> {
        let look =
            "SELECT pid, coalesce(wait_event, '') FROM pg_stat_activity WHERE backend_type = 'walwriter'";
        let asleep = || -> Result<Option<u32>> {
            let row = self.sql("postgres", look)?;
            let (pid, wait) = row.split_once('|').context("there is no WAL writer")?;
            Ok((wait == "WalWriterMain").then_some(pid.parse()?))
        };
        let Some(pid) = asleep()? else {
            return Ok(false);
        };
        send(pid, Signal::STOP)?;
        let is_frozen = Stat::of(pid).is_some_and(|stat| stat.is_stopped()) && asleep()?.is_some();
        if !is_frozen {
            send(pid, Signal::CONT)?;
        }
        Ok(is_frozen)
    }

    /// Starts a stopped or crashed server again, on the same port and data.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(!self.is_running(), "the server runs");
        self.launch()
    }

    /// Leaves the server and its folder behind when this process ends: nothing cleans up any more.
    pub fn leave_running(mut self) -> Result<LeftRunning> {
        let Some(postmaster) = self.postmaster.take() else {
            bail!("the server is stopped")
        };
        self.watchdog = None;
        if let Some(folder) = self.folder.take() {
            let _ = folder.keep();
        }
        Ok(LeftRunning {
            pid: postmaster.id(),
            folder: self.root.clone(),
        })
    }

    fn log_path(&self) -> PathBuf {
        self.root.join("log")
    }

    fn log_tail(&self) -> String {
        let log = self.log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines
            .get(lines.len().saturating_sub(30)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// Starts the postmaster and waits until it takes connections.
    fn launch(&mut self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .context("cannot open the server log")?;
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(self.data_dir())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().context("cannot start postgres")?;
        let pid = child.id();
        let postmaster = self.postmaster.insert(child);
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.guard(pid, "QUIT")?;
        }
        let port = self.port.number();
        let mut exited = false;
        let ready = wait_until(START_TIMEOUT, || {
            exited = !matches!(postmaster.try_wait(), Ok(None));
            exited || probe::accepts_connections(port)
        });
        if ready && !exited {
            return Ok(());
        }
        if exited {
            self.postmaster = None;
        }
        let what = if exited {
            "ended while starting"
        } else {
            "takes no connections"
        };
        bail!("PostgreSQL {} {what}:\n{}", self.version(), self.log_tail())
    }

    /// A server program, to run as the server user, away from the caller's environment and terminal.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.install.bin.join(program));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .env("TZ", "UTC");
        command
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .process_group(0);
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }
}

impl fmt::Debug for PgCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgCluster")
            .field("version", &self.install.version)
            .field("port", &self.port())
            .field("folder", &self.root)
            .finish_non_exhaustive()
    }
}

impl Drop for PgCluster {
    fn drop(&mut self) {
        if let Some(mut postmaster) = self.postmaster.take() {
            let _ = send(postmaster.id(), Signal::QUIT);
            if !wait_until(Duration::from_secs(10), || {
                !matches!(postmaster.try_wait(), Ok(None))
            }) {
                let _ = postmaster.kill();
                let _ = postmaster.wait();
            }
        }
    }
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
