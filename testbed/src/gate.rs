//! A gate in a database: statements that pass it wait while a test keeps it shut. What a test does meanwhile happens
//! amid the statement, however long it takes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};

use anyhow::{Context, Result, ensure};

use crate::PgCluster;

/// The key of the advisory lock.
const KEY: i64 = 0x6761_7465;

/// A gate that is shut; it opens when this value goes.
#[derive(Debug)]
pub struct Gate {
    psql: Child,
    stdin: Option<ChildStdin>,
}

impl Gate {
    /// The expression that passes the gate, for statements and triggers.
    pub fn pass() -> String {
        format!("pg_catalog.pg_advisory_xact_lock_shared({KEY})")
    }

    /// A function and a trigger by which the COMMIT of every transaction that inserts into `table` passes the gate,
    /// whatever its session's role.
    pub fn at_commit(table: &str) -> String {
        format!(
            "CREATE OR REPLACE FUNCTION public.pass_gate() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM {}; RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER pass_gate AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION public.pass_gate();
             ALTER TABLE {table} ENABLE ALWAYS TRIGGER pass_gate;",
            Self::pass()
        )
    }

    /// Shuts the gate of a database.
    pub fn shut(cluster: &PgCluster, database: &str) -> Result<Gate> {
        let mut psql = cluster
            .psql(database)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run psql")?;
        let stdin = psql.stdin.take().context("psql has no standard input")?;
        let stdout = psql.stdout.take().context("psql has no standard output")?;
        let mut gate = Gate {
            psql,
            stdin: Some(stdin),
        };
        if let Some(stdin) = &mut gate.stdin {
            writeln!(stdin, "SELECT 'shut' FROM pg_advisory_lock({KEY});")?;
            stdin.flush()?;
        }
        let mut answer = String::new();
        BufReader::new(stdout).read_line(&mut answer)?;
        ensure!(answer.trim() == "shut", "psql answered {answer:?}");
        Ok(gate)
    }

    /// How many sessions of the database wait at the gate.
    pub fn waiting(cluster: &PgCluster, database: &str) -> Result<usize> {
        let sql = format!(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objsubid = 1 \
             AND classid = 0 AND objid = {KEY} \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        );
        cluster
            .sql(database, &sql)?
            .parse()
            .context("a count is a number")
    }

    /// Lets everything pass.
    pub fn open(self) {}
}

impl Drop for Gate {
    fn drop(&mut self) {
        // The end of its input ends psql, and its session with it.
        drop(self.stdin.take());
        let _ = self.psql.wait();
    }
}
