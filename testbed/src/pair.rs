//! Blue and green with the binary under test between them.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::provision::postgres_tools;
use crate::{PgCluster, Process, compare, process};

/// Ten times and more what a verb usually takes.
pub const LIMIT: Duration = Duration::from_secs(480);

/// The superuser of every cluster.
const SUPERUSER: &str = "postgres";
/// The roles of a job that logs in as no superuser, on blue and on green.
const PLAIN: [&str; 2] = ["cdc_source", "cdc_target"];

/// Two clusters, each with a database [`Pair::DATABASE`].
pub struct Pair {
    /// The source.
    pub blue: PgCluster,
    /// The target.
    pub green: PgCluster,
    /// who the binary logs in as
    roles: [&'static str; 2],
}

impl Pair {
    /// The database on either side.
    pub const DATABASE: &'static str = "app";

    /// Starts servers of these major versions, their databases empty.
    pub fn start(old: u16, new: u16) -> Result<Pair> {
        let start = |major| {
            let cluster = PgCluster::builder(major).start()?;
            cluster.create_database(Self::DATABASE)?;
            Ok::<_, anyhow::Error>(cluster)
        };
        Ok(Pair::of(start(old)?, start(new)?))
    }

    /// A pair of clusters that have the database.
    pub fn of(blue: PgCluster, green: PgCluster) -> Pair {
        Pair {
            blue,
            green,
            roles: [SUPERUSER; 2],
        }
    }

    /// Has the binary log in as roles that may do what `check --print-grants` says a job needs, and nothing else: called
    /// when blue has its tables, and once more after it got others. The right to set `session_replication_role` is
    /// withheld, as it is by every server before 15: triggers fire on green and foreign keys are checked.
    pub fn use_plain_roles(&mut self) -> Result<()> {
        let clusters = [&self.blue, &self.green];
        for (cluster, role) in clusters.into_iter().zip(PLAIN) {
            let create = format!(
                "DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
            );
            cluster.sql(Self::DATABASE, &create)?;
        }
        self.roles = PLAIN;
        let printed = self.verb(&["check", "--print-grants"], 0)?;
        let script = |side: &str| -> Result<String> {
            let statements = printed["grants"][side].as_array().context("no list of grants")?;
            let statements = statements.iter().filter_map(|statement| statement.as_str());
            let granted = statements.filter(|statement| !statement.contains("ON PARAMETER"));
            Ok(granted.collect::<Vec<_>>().join("\n"))
        };
        self.on_blue(&script("source")?)?;
        self.on_green(&script("target")?)?;
        Ok(())
    }

    /// The role on green that the binary logs in as.
    pub fn role_on_green(&self) -> &str {
        self.roles[1]
    }

    /// Runs a script on blue.
    pub fn on_blue(&self, script: &str) -> Result<String> {
        self.blue.sql(Self::DATABASE, script)
    }

    /// Runs a script on green.
    pub fn on_green(&self, script: &str) -> Result<String> {
        self.green.sql(Self::DATABASE, script)
    }

    /// The superuser's URLs of blue and green.
    pub fn urls(&self) -> [String; 2] {
        [&self.blue, &self.green].map(|cluster| cluster.url(Self::DATABASE))
    }

    /// The URLs that the binary is given.
    pub fn job_urls(&self) -> [String; 2] {
        let [blue, green] = self.urls();
        let as_role =
            |url: String, role: &str| url.replacen(&format!("//{SUPERUSER}@"), &format!("//{role}@"), 1);
        [as_role(blue, self.roles[0]), as_role(green, self.roles[1])]
    }

    /// A command of the binary for this pair, which asks nothing and prints JSON.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let [source, target] = self.job_urls();
        Self::command_between([&source, &target], arguments)
    }

    fn command_between([source, target]: [&str; 2], arguments: &[&str]) -> Result<Command> {
        let mut command = process::cdc_sync()?;
        command.args(arguments).args(["--yes", "--json"]);
        command.args(["--source", source, "--target", target]);
        if arguments.first() == Some(&"run") {
            command.arg("--pg-bin").arg(postgres_tools()?.bin);
        }
        Ok(command)
    }

    /// Starts a verb.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Process> {
        Process::spawn(self.command(arguments)?)
    }

    /// Starts a verb that reaches green by another URL, such as that of a proxy.
    pub fn spawn_to(&self, target: &str, arguments: &[&str]) -> Result<Process> {
        let [source, _] = self.job_urls();
        self.spawn_between([&source, target], arguments)
    }

    /// Starts a verb that reaches blue and green by these URLs.
    pub fn spawn_between(&self, urls: [&str; 2], arguments: &[&str]) -> Result<Process> {
        Process::spawn(Self::command_between(urls, arguments)?)
    }

    /// Runs a verb to its end and returns its JSON.
    ///
    /// # Panics
    /// With the verb's output, when it ends with another code than `code` or prints no JSON.
    pub fn verb(&self, arguments: &[&str], code: i32) -> Result<serde_json::Value> {
        let finished = Process::run(self.command(arguments)?, LIMIT)?;
        assert_eq!(
            finished.code(),
            Some(code),
            "cdc-sync {arguments:?}\n{}\n{}",
            finished.stdout,
            finished.stderr
        );
        serde_json::from_str(&finished.stdout)
            .with_context(|| format!("cdc-sync {arguments:?} printed {}", finished.stdout))
    }

    /// Compares both databases by [`compare::databases`] and by `verify`.
    ///
    /// # Panics
    /// When either finds a difference.
    pub fn assert_equal(&self) -> Result<()> {
        let [blue, green] = self.urls();
        let differences = compare::databases(&blue, &green)?;
        assert!(
            differences.is_empty(),
            "{} tables differ, first: {}",
            differences.len(),
            differences[0]
        );
        let report = self.verb(&["verify"], 0)?;
        assert_eq!(report["differences"], 0, "{report}");
        Ok(())
    }
}
