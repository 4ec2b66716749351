//! What the source must hold before its slot is made: our two tables and the publication.
//!
//! The publication precedes the slot: a slot decodes old log with the catalog of that time, in which a publication
//! made later does not exist.

use std::collections::HashMap;

use cdc_core::engine::JobNames;
use cdc_core::{Error, Kind, Result, TableName, failpoint};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::catalog::{self, OWN_SCHEMA, RelationKind, qualified};
use crate::lock::{self, InTheWay};
use crate::session::during;
use crate::wire::ServerVersion;
use crate::wire::identifier;

/// What excludes SHARE UPDATE EXCLUSIVE.
const EXCLUDING: &[&str] = &[
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
];
/// Tables added in one transaction: each is locked (SHARE UPDATE EXCLUSIVE, which reads and writes do not notice)
/// until its end.
const CHUNK: usize = 100;

/// Each table and the statement that makes it.
const OWN_TABLES: &[(&str, &str)] = &[
    (
        "heartbeat",
        "CREATE TABLE cdc_sync.heartbeat (stream text PRIMARY KEY, beat bigint NOT NULL, at timestamptz NOT NULL)",
    ),
    (
        "marker",
        "CREATE TABLE cdc_sync.marker (stream text, id text, at timestamptz NOT NULL, PRIMARY KEY (stream, id))",
    ),
];

/// Our tables on the source.
pub(crate) fn own_tables() -> impl Iterator<Item = TableName> {
    OWN_TABLES
        .iter()
        .map(|(name, _)| TableName::new(OWN_SCHEMA, *name))
}

/// The lock that keeps two jobs from making the same objects at the same time.
const ADVISORY_LOCK: i64 = 0x6364_635f_7379_6e63;

/// Makes our tables and the publication, or completes them. `tables` are ordinary tables and leaf partitions, or
/// partitioned tables in place of theirs.
pub(crate) async fn prepare_source(
    client: &Client,
    version: ServerVersion,
    names: &JobNames,
    tables: &[TableName],
) -> Result<()> {
    create_own_tables(client).await?;
    failpoint!("source.tables-created", error);
    let wanted: Vec<TableName> = own_tables().chain(tables.iter().cloned()).collect();
    let publication = names.slot.as_str();
    let via_root = has_roots(client, tables).await?;
    if via_root && !has_via_root(version) {
        return Err(no_roots(version));
    }
    match options(client, version, publication, via_root).await? {
        None => {
            let (first, rest) = wanted.split_at(wanted.len().min(CHUNK));
            let statement = format!(
                "CREATE PUBLICATION {} FOR TABLE {} WITH ({})",
                identifier(publication),
                table_list(first),
                wanted_options(version, via_root)
            );
            execute(client, &statement, first, publication).await?;
            failpoint!("publication.created", error);
            add_tables(client, publication, rest).await
        }
        Some(existing) => {
            if !existing.as_wanted {
                let statement = format!(
                    "ALTER PUBLICATION {} SET ({})",
                    identifier(publication),
                    wanted_options(version, via_root)
                );
                execute(client, &statement, &[], publication).await?;
            }
            if existing.all_tables {
                return Ok(());
            }
            let published = published(client, version, publication).await?;
            refuse_partial(publication, &wanted, &published)?;
            let missing: Vec<TableName> = wanted
                .into_iter()
                .filter(|table| !published.contains_key(table))
                .collect();
            add_tables(client, publication, &missing).await
        }
    }
}

/// The statements that make our tables where they are missing.
pub(crate) fn own_statements() -> Vec<String> {
    let schema = "-- Heartbeats and markers, by which the lag is measured and a point in the stream is found.\n\
                  CREATE SCHEMA IF NOT EXISTS cdc_sync;";
    let tables = OWN_TABLES
        .iter()
        .map(|(_, create)| format!("{};", if_not_exists(create)));
    std::iter::once(schema.to_owned()).chain(tables).collect()
}

/// The statements that [`prepare_source`] runs on a source without any of it, for people to review.
pub(crate) async fn statements(
    client: &Client,
    version: ServerVersion,
    names: &JobNames,
    tables: &[TableName],
) -> Result<Vec<String>> {
    let via_root = has_roots(client, tables).await?;
    let mut statements = own_statements();
    let wanted: Vec<TableName> = own_tables().chain(tables.iter().cloned()).collect();
    statements.push(format!(
        "-- The slot of the same name is made by `run`, which reads the initial copy from its snapshot.\n\
         CREATE PUBLICATION {} FOR TABLE {} WITH ({});",
        identifier(&names.slot),
        table_list(&wanted),
        wanted_options(version, via_root)
    ));
    Ok(statements)
}

fn if_not_exists(create: &str) -> String {
    create.replacen("CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1)
}

async fn create_own_tables(client: &Client) -> Result<()> {
    let row = client
        .query_typed_one(
            "SELECT to_regnamespace('cdc_sync') IS NOT NULL, \
                    ARRAY(SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace('cdc_sync'))",
            &[],
        )
        .await
        .map_err(during("looking for schema cdc_sync on the source"))?;
    let (schema, tables): (bool, Vec<String>) = (row.get(0), row.get(1));
    let mut statements = Vec::new();
    // Only what is missing: IF NOT EXISTS asks for the right to create even where there is nothing to create.
    if !schema {
        statements.push("CREATE SCHEMA IF NOT EXISTS cdc_sync".to_owned());
    }
    for (name, create) in OWN_TABLES {
        if !tables.iter().any(|table| table == name) {
            statements.push(if_not_exists(create));
        }
    }
    if statements.is_empty() {
        return Ok(());
    }
    let script = format!(
        "BEGIN; SELECT pg_advisory_xact_lock({ADVISORY_LOCK}); {}; COMMIT",
        statements.join("; ")
    );
    execute(client, &script, &[], OWN_SCHEMA).await
}

fn table_list(tables: &[TableName]) -> String {
    // ONLY: an inheritance child is published by its own name, if it is selected.
    tables
        .iter()
        .map(|table| format!("ONLY {}", qualified(table)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Everything is published, and partitions as themselves unless their root stands in the list.
fn wanted_options(version: ServerVersion, via_root: bool) -> String {
    let publish = "publish = 'insert, update, delete, truncate'";
    if has_via_root(version) {
        format!("{publish}, publish_via_partition_root = {via_root}")
    } else {
        publish.to_owned()
    }
}

/// Whether one of the tables is a partitioned one.
async fn has_roots(client: &Client, tables: &[TableName]) -> Result<bool> {
    let kinds = catalog::kinds(client, tables).await?;
    Ok(kinds.values().any(|kind| *kind == RelationKind::Partitioned))
}

fn no_roots(version: ServerVersion) -> Error {
    Error::new(
        Kind::Check,
        format!("PostgreSQL {version} cannot publish a partitioned table as one table; 13 and later can"),
    )
    .object("publish_via_partition_root")
    .remedy("replicate partition by partition (--partitions leaves), into a target that is divided as the source is")
}

pub(crate) fn has_via_root(version: ServerVersion) -> bool {
    version.major() >= 13
}

async fn add_tables(client: &Client, publication: &str, tables: &[TableName]) -> Result<()> {
    for chunk in tables.chunks(CHUNK) {
        let statement = format!(
            "ALTER PUBLICATION {} ADD TABLE {}",
            identifier(publication),
            table_list(chunk)
        );
        execute(client, &statement, chunk, publication).await?;
    }
    Ok(())
}

/// Whether a publication of this name exists.
pub(crate) async fn exists(client: &Client, publication: &str) -> Result<bool> {
    let row = client
        .query_typed_opt(
            "SELECT FROM pg_publication WHERE pubname = $1",
            &[(&publication, Type::TEXT)],
        )
        .await
        .map_err(during("looking for the publication"))?;
    Ok(row.is_some())
}

/// The users' tables that the publication lists by name.
pub(crate) async fn tables(client: &Client, publication: &str) -> Result<Vec<TableName>> {
    let rows = client
        .query_typed(
            "SELECT n.nspname::text, c.relname::text FROM pg_publication p \
             JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1 AND n.nspname <> 'cdc_sync' \
             ORDER BY 1, 2",
            &[(&publication, Type::TEXT)],
        )
        .await
        .map_err(during("reading the tables of the publication"))?;
    let table = |row: &tokio_postgres::Row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    Ok(rows.iter().map(table).collect())
}

struct Existing {
    all_tables: bool,
    as_wanted: bool,
}

async fn options(
    client: &Client,
    version: ServerVersion,
    publication: &str,
    via_root: bool,
) -> Result<Option<Existing>> {
    let published = if has_via_root(version) {
        "pubviaroot"
    } else {
        "false"
    };
    let statement = format!(
        "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate AND {published} = {via_root} \
         FROM pg_publication WHERE pubname = $1"
    );
    let row = client
        .query_typed_opt(&statement, &[(&publication, Type::TEXT)])
        .await
        .map_err(during("looking for the publication"))?;
    Ok(row.map(|row| Existing {
        all_tables: row.get(0),
        as_wanted: row.get(1),
    }))
}

/// The tables in the publication, and whether only some of their rows or columns are published.
async fn published(
    client: &Client,
    version: ServerVersion,
    publication: &str,
) -> Result<HashMap<TableName, bool>> {
    let partial = if version.major() >= 15 {
        "r.prqual IS NOT NULL OR r.prattrs IS NOT NULL"
    } else {
        "false"
    };
    let statement = format!(
        "SELECT n.nspname::text, c.relname::text, {partial} \
         FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
         JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE p.pubname = $1"
    );
    let rows = client
        .query_typed(&statement, &[(&publication, Type::TEXT)])
        .await
        .map_err(during("reading the tables of the publication"))?;
    let table = |row: &tokio_postgres::Row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    Ok(rows.iter().map(|row| (table(row), row.get(2))).collect())
}

/// Which of `tables` the job's publication does not send whole, and why. Its members are relations and not names: a
/// table that was made again, or that another one of its name stands for, is none.
pub(crate) async fn unpublished(
    client: &Client,
    version: ServerVersion,
    names: &JobNames,
    tables: &[TableName],
) -> Result<Vec<(TableName, String)>> {
    let publication = names.slot.as_str();
    let all = |why: String| Ok(tables.iter().map(|table| (table.clone(), why.clone())).collect());
    let row = client
        .query_typed_opt(
            "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication \
             WHERE pubname = $1",
            &[(&publication, Type::TEXT)],
        )
        .await
        .map_err(during("looking for the publication"))?;
    let Some(row) = row else {
        return all(format!("publication {publication} does not exist any more"));
    };
    if !row.get::<_, bool>(1) {
        return all(format!(
            "publication {publication} leaves out some kinds of changes (its option `publish`)"
        ));
    }
    if has_roots(client, tables).await? {
        let existing = options(client, version, publication, true).await?;
        if existing.is_some_and(|existing| !existing.as_wanted) {
            return all(format!(
                "publication {publication} sends partitions by themselves (its option `publish_via_partition_root`)"
            ));
        }
    }
    if row.get(0) {
        return Ok(Vec::new());
    }
    let published = published(client, version, publication).await?;
    let why = |table: &TableName| match published.get(table) {
        Some(false) => None,
        Some(true) => Some(format!(
            "publication {publication} sends only some of its rows or columns"
        )),
        None => Some(format!(
            "it is not in publication {publication}: made again under its name, or taken out"
        )),
    };
    Ok(tables
        .iter()
        .filter_map(|table| Some((table.clone(), why(table)?)))
        .collect())
}

fn refuse_partial(
    publication: &str,
    wanted: &[TableName],
    published: &HashMap<TableName, bool>,
) -> Result<()> {
    let Some(table) = wanted.iter().find(|table| published.get(table) == Some(&true)) else {
        return Ok(());
    };
    let (publication, quoted) = (identifier(publication), qualified(table));
    Err(Error::new(
        Kind::Check,
        format!("publication {publication} publishes only some rows or columns of the table"),
    )
    .object(format!("table {table}"))
    .remedy(format!(
        "ALTER PUBLICATION {publication} DROP TABLE {quoted}; then run again"
    )))
}

/// Runs a statement on blue, a few times when it meets a lock; then names who holds it.
async fn execute(client: &Client, statement: &str, tables: &[TableName], object: &str) -> Result<()> {
    let run = || async move {
        let done = client.batch_execute(statement).await;
        if done.is_err() {
            // The failed statement may stand between BEGIN and COMMIT.
            let _ = client.batch_execute("ROLLBACK").await;
        }
        done
    };
    let in_the_way = InTheWay {
        tables: Some(tables),
        modes: EXCLUDING,
    };
    lock::patiently(client, "preparing the source", Some(object), in_the_way, run)
        .await
        .map_err(|error| permission_remedy(error, object))
}

fn permission_remedy(error: Error, object: &str) -> Error {
    match (error.kind(), object) {
        (Kind::Permission, OWN_SCHEMA) => error.remedy(
            "GRANT CREATE ON DATABASE … TO the role of the source URL, or make the schema for it: \
             CREATE SCHEMA cdc_sync AUTHORIZATION …",
        ),
        (Kind::Permission, _) => error.remedy(
            "a publication needs CREATE on the database and ownership of its tables: grant the role of the source \
             URL membership in the tables' owner, or create the publication as the owner (cdc-sync init prints it)",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_listed_by_themselves_and_quoted() {
        let tables = [TableName::new("s", "a"), TableName::new("S", "b\"c")];
        assert_eq!(table_list(&tables), r#"ONLY "s"."a", ONLY "S"."b""c""#);
    }

    #[test]
    fn a_filtered_table_is_refused_by_name() {
        let table = TableName::new("public", "t");
        let published = HashMap::from([(table.clone(), true)]);
        let error = refuse_partial("p", &[table], &published).unwrap_err();
        assert!(error.to_string().contains("public.t"), "{error}");
        assert!(error.remedy_text().unwrap().contains("DROP TABLE"));
    }
}
