//! SQL through `psql`, for tasks that need a handful of statements and no driver.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::provision::ToolsInstall;

/// A database reached with `psql`.
pub(crate) struct Psql<'a> {
    tools: &'a ToolsInstall,
    url: String,
}

impl<'a> Psql<'a> {
    pub(crate) fn new(tools: &'a ToolsInstall, url: impl Into<String>) -> Self {
        Self {
            tools,
            url: url.into(),
        }
    }

    fn command(&self) -> Command {
        let mut command = self.tools.command("psql");
        command
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url])
            .stdin(Stdio::null());
        command
    }

    /// Runs statements, each in its own transaction unless they say otherwise; returns what they print.
    pub(crate) fn run(&self, sql: &str) -> Result<String> {
        let output = self
            .command()
            .args(["-c", sql])
            .output()
            .context("psql does not start")?;
        ensure!(
            output.status.success(),
            "{sql}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs a script.
    pub(crate) fn file(&self, script: &Path) -> Result<()> {
        let output = self
            .command()
            .arg("-f")
            .arg(script)
            .output()
            .context("psql does not start")?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Of every table of `public` its name, its number of rows and a sum over them.
    pub(crate) fn content(&self) -> Result<String> {
        let tables =
            self.run("SELECT relname FROM pg_stat_user_tables WHERE schemaname = 'public' ORDER BY 1")?;
        let each: Vec<String> = tables
            .lines()
            .map(|table| {
                format!(
                    "SELECT '{table}', count(*), sum(hashtextextended(rows::text, 0)::numeric) FROM {table} rows"
                )
            })
            .collect();
        self.run(&format!("{} ORDER BY 1", each.join(" UNION ALL ")))
    }

    /// Waits, within one session of the server, until `condition` holds: the wait costs no process starts.
    pub(crate) fn wait_inside(&self, condition: &str, limit: Duration) -> Result<()> {
        let seconds = limit.as_secs();
        self.run(&format!(
            "DO $$ BEGIN WHILE NOT ({condition}) LOOP \
             IF clock_timestamp() > now() + interval '{seconds} s' THEN RAISE 'not within {seconds} s'; END IF; \
             PERFORM pg_sleep(0.01); END LOOP; END $$"
        ))
        .map(drop)
    }
}
