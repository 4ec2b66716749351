//! The schema, copied with PostgreSQL's own `pg_dump` and `pg_restore`: they know every object of every version.
//!
//! `pg_restore` prints the statements; we run them on one connection, so that each error names its statement.
//! Three decisions:
//! - *Owners and rights* are taken over where the target has the role and lets us; what it refuses is named in one
//!   warning (`check` reports missing roles before). Leaving all of them out would open nothing, but lock the
//!   application out after the cutover.
//! - *Tablespaces* are not: they are places on a server's disks, and the target has its own.
//! - *Publications and subscriptions* are not: they would replicate once more.

mod alterations;
mod columns;
mod places;
mod restore;
pub(crate) mod script;
mod selection;
mod tools;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cdc_core::engine::{SchemaDump, SchemaPhase, SiteIdentity};
use cdc_core::{Error, Kind, Result, TableName, TableSelection};
use tempfile::NamedTempFile;
use tokio::process::Command;

use crate::catalog::{USER_RELATION, major_of, qualified};
use crate::clients::Clients;
use crate::config::{Config, LIBPQ_VARIABLES};
use crate::lock::LOCK_TIMEOUT;
use crate::session::during;
use crate::wire::ServerVersion;
pub(crate) use alterations::{alterations, renamed};
use restore::Stage;

/// The statements of a schema's script.
#[cfg(any(test, feature = "testing"))]
pub fn schema_statements(script: &str) -> Vec<&str> {
    let statements = script::statements(script).into_iter();
    statements.map(|statement| statement.text()).collect()
}

/// The product in a [`SchemaDump`].
const PRODUCT: &str = "PostgreSQL";

/// What a [`SchemaDump`] of ours holds.
#[derive(Debug)]
struct Archive {
    /// `pg_dump`'s custom format; readable by us alone, removed with this value
    file: NamedTempFile,
    pg_restore: PathBuf,
    /// foreign keys to tables left out, by their OID on the source
    without: Vec<u32>,
    /// materialized views that hold rows on the source
    materialized: Vec<TableName>,
    /// the target has a part of it
    completes: bool,
}

/// Dumps the schema of the database, without the tables that `selection` leaves out.
pub(crate) async fn dump(
    clients: &Clients,
    version: ServerVersion,
    selection: &TableSelection,
    present: Option<&TableSelection>,
    target: &SiteIdentity,
    tools_dir: Option<&Path>,
) -> Result<SchemaDump> {
    let target_major = major_of(target).ok_or_else(|| {
        Error::new(
            Kind::Config,
            format!("a schema of PostgreSQL cannot be created on {}", target.product),
        )
        .remedy("create the tables on the target yourself")
    })?;
    let tools = tools::find(tools_dir, version.major().max(target_major)).await?;
    let client = clients.lend(&[("lock_timeout", LOCK_TIMEOUT)]).await?;
    let left_out = selection::left_out(&client, selection, present).await?;
    let materialized = populated(&client).await?;
    let file = NamedTempFile::new()
        .map_err(|error| Error::new(Kind::Local, "cannot create a temporary file").caused_by(error))?;
    let mut command = Command::new(&tools.pg_dump);
    command
        .args([
            "--format=custom",
            "--schema-only",
            "--encoding=UTF8",
            "--no-password",
        ])
        .args([
            "--no-publications",
            "--no-subscriptions",
            "--exclude-schema=cdc_sync",
        ])
        .arg("--lock-wait-timeout=5000")
        .arg("--file")
        .arg(file.path());
    for table in &left_out.relations {
        // In pg_dump's patterns, too, double quotes take every character as it is.
        command.arg(format!("--exclude-table={}", qualified(table)));
    }
    use_login(&mut command, clients.config());
    tracing::info!(pg_dump = %tools.pg_dump.display(), version = %tools.version, "dumping the schema");
    run(command, "pg_dump").await?;
    Ok(SchemaDump {
        product: PRODUCT,
        archive: Box::new(Archive {
            file,
            pg_restore: tools.pg_restore,
            without: left_out.foreign_keys,
            materialized,
            completes: present.is_some(),
        }),
    })
}

/// Creates one part of a dumped schema: before the data in one transaction, after it statement by statement, so that
/// it can be taken up again where it ended. Materialized views are filled last.
pub(crate) async fn create(config: &Config, dump: &SchemaDump, phase: SchemaPhase) -> Result<()> {
    let archive = dump
        .archive
        .downcast_ref::<Archive>()
        .filter(|_| dump.product == PRODUCT)
        .ok_or_else(|| {
            Error::new(
                Kind::Config,
                format!(
                    "a schema dumped from {} cannot be created on PostgreSQL",
                    dump.product
                ),
            )
            .remedy("create the tables on the target yourself")
        })?;
    let script = archive.script(phase).await?;
    let statements = script::statements(&script);
    match phase {
        SchemaPhase::BeforeData => restore::before_data(config, &statements, archive.completes).await,
        SchemaPhase::AfterData => restore::after_data(config, &statements, Stage::WithinTables).await,
        SchemaPhase::AfterCatchUp => {
            restore::after_data(config, &statements, Stage::Rest).await?;
            restore::refresh(config, &archive.materialized).await
        }
    }
}

impl Archive {
    /// The statements of one section.
    async fn script(&self, phase: SchemaPhase) -> Result<String> {
        let section = match phase {
            SchemaPhase::BeforeData => "--section=pre-data",
            SchemaPhase::AfterData | SchemaPhase::AfterCatchUp => "--section=post-data",
        };
        let list = self.list().await?;
        let mut command = Command::new(&self.pg_restore);
        command.args([section, "--no-tablespaces", "--file=-"]);
        if let Some(list) = &list {
            command.arg("--use-list").arg(list.path());
        }
        command.arg(self.file.path());
        run(command, "pg_restore").await
    }

    /// The archive's table of contents without the foreign keys that have no target; `None` when all are wanted.
    async fn list(&self) -> Result<Option<NamedTempFile>> {
        if self.without.is_empty() {
            return Ok(None);
        }
        let mut command = Command::new(&self.pg_restore);
        command.arg("--list").arg(self.file.path());
        let contents = run(command, "pg_restore --list").await?;
        let local = |error| Error::new(Kind::Local, "cannot write a temporary file").caused_by(error);
        let mut list = NamedTempFile::new().map_err(local)?;
        for line in contents
            .lines()
            .filter(|line| !is_constraint(line, &self.without))
        {
            writeln!(list, "{line}").map_err(local)?;
        }
        list.flush().map_err(local)?;
        Ok(Some(list))
    }
}

/// Whether a line of the table of contents (`215; 2606 16390 FK CONSTRAINT …`: number, catalog, OID) is one of these
/// constraints.
fn is_constraint(line: &str, oids: &[u32]) -> bool {
    /// The OID of `pg_constraint`, the same on every server (`pg_constraint.h`).
    const PG_CONSTRAINT: &str = "2606";
    let Some((number, rest)) = line.split_once(';') else {
        return false;
    };
    let mut words = rest.split_ascii_whitespace();
    // Without a number the line is a remark.
    number.parse::<u32>().is_ok()
        && words.next() == Some(PG_CONSTRAINT)
        && words
            .next()
            .and_then(|oid| oid.parse().ok())
            .is_some_and(|oid| oids.contains(&oid))
}

async fn populated(client: &tokio_postgres::Client) -> Result<Vec<TableName>> {
    let statement = format!(
        "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'm' AND c.relispopulated AND {USER_RELATION} ORDER BY c.oid"
    );
    let rows = client
        .query_typed(&statement, &[])
        .await
        .map_err(during("reading the list of materialized views"))?;
    let name = |row: &tokio_postgres::Row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    Ok(rows.iter().map(name).collect())
}

/// The login goes by the environment: arguments can be seen by every user of the machine.
fn use_login(command: &mut Command, config: &Config) {
    for name in LIBPQ_VARIABLES {
        command.env_remove(name);
    }
    command.envs(config.to_libpq_env());
}

/// Runs a program to its end; returns what it printed.
async fn run(mut command: Command, name: &str) -> Result<String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| Error::new(Kind::Local, format!("cannot run {program}")).caused_by(error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines.len().saturating_sub(6);
        return Err(Error::new(
            Kind::Schema,
            format!(
                "{name} ended with {}: {}",
                output.status,
                lines.get(last..).unwrap_or_default().join(" / ")
            ),
        )
        .object(program));
    }
    String::from_utf8(output.stdout).map_err(|error| {
        Error::new(Kind::Schema, format!("{name} printed text that is not UTF-8")).caused_by(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_are_told_by_catalog_and_oid() {
        let oids = [16390];
        assert!(is_constraint(
            "215; 2606 16390 FK CONSTRAINT public a b_fkey me",
            &oids
        ));
        assert!(!is_constraint(
            "215; 2606 16391 FK CONSTRAINT public a b_fkey me",
            &oids
        ));
        assert!(!is_constraint("215; 1259 16390 TABLE public a me", &oids));
        assert!(!is_constraint("; 2606 16390", &oids));
        assert!(!is_constraint("", &oids));
    }

    #[tokio::test]
    async fn a_failing_program_is_named_with_its_last_words() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo first; echo 'pg_dump: error: aborting' >&2; exit 3"]);
        let error = run(command, "pg_dump").await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("exit status: 3: pg_dump: error: aborting"),
            "{error}"
        );
    }
}
