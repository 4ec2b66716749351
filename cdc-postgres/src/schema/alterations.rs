//! The statements that bring a peer's tables into the shape of this database's, after DDL here.
//!
//! The log has no DDL. What was done is told from what is there: a table that the job's publication has and the job has not
//! was renamed, because only tables of the job are put into it; a column is known by its place; see [`super::places`].

use std::collections::HashMap;

use cdc_core::engine::{Alteration, JobNames, RenamedTable, TableInfo};
use cdc_core::{Result, TableName, TableSelection};
use tokio_postgres::Client;

use super::columns::{self, add_columns};
use super::places::{Fate, fates};
use crate::catalog::{inspect, qualified};
use crate::publication;
use crate::rounding;
use crate::wire::session::{identifier, literal};

/// Which tables of the job's publication were not in it when it began with `tables`.
pub(crate) async fn renamed(
    client: &Client,
    names: &JobNames,
    tables: &[TableName],
) -> Result<Vec<RenamedTable>> {
    let there = publication::tables(client, &names.slot).await?;
    Ok(paired(&there, tables))
}

/// Pairs what is published and not of the job with tables of the job that are published no more: one of the same name in
/// another schema, or the only one that is left.
fn paired(published: &[TableName], tables: &[TableName]) -> Vec<RenamedTable> {
    let new = published.iter().filter(|table| !tables.contains(table));
    let mut new: Vec<&TableName> = new.collect();
    let mut gone: Vec<&TableName> = tables.iter().filter(|table| !published.contains(table)).collect();
    let mut found = Vec::new();
    new.retain(|now| {
        let same: Vec<usize> = (0..gone.len())
            .filter(|place| gone.get(*place).is_some_and(|was| was.name == now.name))
            .collect();
        let &[place] = same.as_slice() else {
            return true;
        };
        let was = vec![gone.remove(place).clone()];
        found.push(RenamedTable {
            now: (*now).clone(),
            was,
        });
        false
    });
    let was: Vec<TableName> = gone.into_iter().cloned().collect();
    if !was.is_empty() {
        found.extend(new.into_iter().map(|now| RenamedTable {
            now: now.clone(),
            was: was.clone(),
        }));
    }
    found
}

/// The statements for `tables` of a peer.
pub(crate) async fn alterations(
    client: &Client,
    names: &JobNames,
    tables: &[TableInfo],
) -> Result<Vec<Alteration>> {
    let here = inspect(client, &TableSelection::default()).await?;
    let known: Vec<TableName> = tables.iter().map(|table| table.name.clone()).collect();
    let mut found = Vec::new();
    let mut called: HashMap<TableName, TableName> = HashMap::new();
    for RenamedTable { now, was } in renamed(client, names, &known).await? {
        let texts: Vec<String> = was
            .iter()
            .map(|was| rename_table(&names.job, was, &now))
            .collect();
        if let [was] = was.as_slice() {
            called.insert(was.clone(), now.clone());
        }
        found.push(Alteration {
            table: now,
            statement: texts.join(" or, whichever it was, "),
        });
    }
    for peer in tables {
        let name = called.get(&peer.name).unwrap_or(&peer.name);
        if let Some(here) = here.iter().find(|here| here.name == *name) {
            let statements = of_columns(client, here, peer).await?;
            found.extend(statements.into_iter().map(|statement| Alteration {
                table: peer.name.clone(),
                statement,
            }));
        }
    }
    Ok(found)
}

/// Renames a table and what the job has noted under its name.
fn rename_table(job: &str, was: &TableName, now: &TableName) -> String {
    let mut statements = Vec::new();
    if was.name != now.name {
        statements.push(format!(
            "ALTER TABLE {} RENAME TO {};",
            qualified(was),
            identifier(&now.name)
        ));
    }
    if was.schema != now.schema {
        let moved = TableName::new(was.schema.as_str(), now.name.as_str());
        statements.push(format!(
            "CREATE SCHEMA IF NOT EXISTS {0}; ALTER TABLE {1} SET SCHEMA {0};",
            identifier(&now.schema),
            qualified(&moved)
        ));
    }
    statements.push(format!(
        "UPDATE cdc_sync.seed SET schema_name = {}, table_name = {} WHERE stream = {} AND schema_name = {} \
         AND table_name = {};",
        literal(&now.schema),
        literal(&now.name),
        literal(job),
        literal(&was.schema),
        literal(&was.name)
    ));
    statements.join(" ")
}

/// The statements for the columns of one table, which the source calls `here.name`.
async fn of_columns(client: &Client, here: &TableInfo, peer: &TableInfo) -> Result<Vec<String>> {
    let has = |table: &TableInfo, name: &str| table.columns.iter().any(|column| column.name == name);
    let mut added: Vec<&str> = Vec::new();
    added.extend(here.columns.iter().map(|column| column.name.as_str()));
    added.retain(|name| !has(peer, name));
    let table = format!("ALTER TABLE {}", qualified(&here.name));
    let mut found = Vec::new();
    let mut renamed: HashMap<String, String> = HashMap::new();
    if peer.columns.iter().any(|column| !has(here, &column.name)) {
        let names: Vec<String> = peer.columns.iter().map(|column| column.name.clone()).collect();
        for (was, fate) in fates(&columns::places(client, &here.name).await?, &names) {
            let was_quoted = identifier(&was);
            match fate {
                Fate::Renamed(now) => {
                    let name = identifier(&now);
                    found.push(format!(
                        "{table} RENAME COLUMN {was_quoted} TO {name}; /* if {was_quoted} is the target's own column, add \
                         {name} instead */"
                    ));
                    added.retain(|name| *name != now);
                    renamed.insert(was, now);
                }
                // Whether the source ever had it is not known.
                Fate::Dropped => found.push(format!(
                    "{table} DROP COLUMN {was_quoted}; /* not if it is the target's own */"
                )),
                Fate::Unknown => {
                    let choices: Vec<String> = added.iter().map(|name| identifier(name)).collect();
                    found.push(format!(
                        "(column {was_quoted} was either dropped or renamed to {}: first {table} DROP COLUMN \
                         {was_quoted}; or {table} RENAME COLUMN {was_quoted} TO …; and then add only the others)",
                        choices.join(" or ")
                    ));
                }
            }
        }
    }
    let missing: Vec<(TableName, String)> = added
        .iter()
        .map(|name| (here.name.clone(), (*name).to_owned()))
        .collect();
    found.extend(add_columns(client, &missing).await?);
    found.extend(retyped(client, here, peer, &renamed).await?);
    Ok(found)
}

/// `ALTER COLUMN … TYPE` for each column whose type on the peer does not hold what it holds here.
async fn retyped(
    client: &Client,
    here: &TableInfo,
    peer: &TableInfo,
    renamed: &HashMap<String, String>,
) -> Result<Vec<String>> {
    let mut narrow = Vec::new();
    for column in &peer.columns {
        let name = renamed.get(&column.name).unwrap_or(&column.name);
        let now = here.columns.iter().find(|known| known.name == *name);
        if let Some(now) =
            now.filter(|now| !now.generated && !rounding::holds(&now.type_name, &column.type_name))
        {
            narrow.push(now.name.as_str());
        }
    }
    if narrow.is_empty() {
        return Ok(Vec::new());
    }
    let types = columns::types(client, &here.name).await?;
    let table = qualified(&here.name);
    let statement = |name: &str| {
        let declared = types.get(name)?;
        let (column, of) = (identifier(name), declared.split(" COLLATE ").next()?);
        Some(format!(
            "ALTER TABLE {table} ALTER COLUMN {column} TYPE {declared} USING {column}::{of};"
        ))
    };
    Ok(narrow.into_iter().filter_map(statement).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<TableName> {
        let table = |name: &&str| {
            let (schema, table) = name.split_once('.').unwrap();
            TableName::new(schema, table)
        };
        names.iter().map(table).collect()
    }

    fn told(published: &[&str], tables: &[&str]) -> Vec<String> {
        let found = paired(&names(published), &names(tables));
        let text = |one: &RenamedTable| {
            let was: Vec<String> = one.was.iter().map(ToString::to_string).collect();
            format!("{} was {}", one.now, was.join(" or "))
        };
        found.iter().map(text).collect()
    }

    #[test]
    fn what_is_published_and_not_of_the_job_was_renamed() {
        assert!(told(&["s.a", "s.b"], &["s.a", "s.b"]).is_empty());
        // Dropped: nothing is published in its place. Published by someone else: nothing is missing.
        assert!(told(&["s.a"], &["s.a", "s.b"]).is_empty());
        assert!(told(&["s.a", "s.b"], &["s.a"]).is_empty());
        assert_eq!(told(&["s.a", "s.c"], &["s.a", "s.b"]), ["s.c was s.b"]);
        assert_eq!(
            told(&["t.b", "s.c"], &["s.a", "s.b"]),
            ["t.b was s.b", "s.c was s.a"]
        );
        assert_eq!(
            told(&["s.c", "s.d"], &["s.a", "s.b"]),
            ["s.c was s.a or s.b", "s.d was s.a or s.b"]
        );
    }

    #[test]
    fn a_table_moves_with_what_is_noted_of_it() {
        let [was, now] = [TableName::new("s", "a"), TableName::new("T", "b")];
        assert_eq!(
            rename_table("j", &was, &now),
            "ALTER TABLE \"s\".\"a\" RENAME TO \"b\"; CREATE SCHEMA IF NOT EXISTS \"T\"; \
             ALTER TABLE \"s\".\"b\" SET SCHEMA \"T\"; UPDATE cdc_sync.seed SET schema_name = 'T', \
             table_name = 'b' WHERE stream = 'j' AND schema_name = 's' AND table_name = 'a';"
        );
    }
}
