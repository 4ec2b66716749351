//! Emptying tables of the target, whatever foreign keys refer to them.
//!
//! TRUNCATE takes no table that another refers to which is not emptied by the same statement, even when that one has no
//! rows and whatever the session's role. Rows of such a table are deleted instead.

use std::collections::HashSet;

use cdc_core::{Error, Result, TableName};
use tokio_postgres::{Client, Transaction};

use crate::catalog::{RelationKind, kinds, qualified};
use crate::session::{Pool, during};
use crate::sink::SessionRole;

/// Of the tables `$1` those that cannot be truncated together with the others: those that a table outside refers to,
/// and then those that they refer to themselves.
const REFERRED_FROM_OUTSIDE: &str = "WITH RECURSIVE listed AS ( \
         SELECT t.name, t.name::regclass::oid AS oid FROM unnest($1::text[]) t (name)), \
     inside AS (SELECT oid FROM listed UNION SELECT p.relid FROM listed l, pg_partition_tree(l.oid) p), \
     referred AS ( \
         SELECT k.confrelid FROM pg_constraint k JOIN inside i ON i.oid = k.confrelid \
         WHERE k.contype = 'f' AND k.conrelid NOT IN (SELECT oid FROM inside) \
         UNION SELECT k.confrelid FROM referred r JOIN pg_constraint k ON k.conrelid = r.confrelid \
         JOIN inside i ON i.oid = k.confrelid WHERE k.contype = 'f') \
     SELECT l.name FROM listed l WHERE l.oid IN (SELECT confrelid FROM referred) \
         OR EXISTS (SELECT FROM pg_partition_tree(l.oid) p WHERE p.relid IN (SELECT confrelid FROM referred))";

/// Empties `tables`, in one transaction: foreign keys between them do not matter.
pub(crate) async fn all(client: &Client, loaders: &Pool, tables: &[TableName]) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    let kinds = kinds(client, tables).await?;
    let names: Vec<String> = tables.iter().map(qualified).collect();
    let rows = client
        .query(REFERRED_FROM_OUTSIDE, &[&names])
        .await
        .map_err(during("looking for foreign keys"))?;
    let referred: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
    let named = |truncated: bool| -> Vec<String> {
        let tables = tables.iter().zip(&names);
        let tables = tables.filter(|(_, name)| referred.contains(*name) != truncated);
        tables
            .map(|(table, name)| format!("{}{name}", only(kinds.get(table))))
            .collect()
    };
    let (truncated, deleted) = (named(true), named(false));
    let mut statements = Vec::new();
    if !truncated.is_empty() {
        statements.push(format!("TRUNCATE TABLE {}", truncated.join(", ")));
    }
    statements.extend(delete_together(&deleted));
    let mut connection = loaders.take().await?;
    // Sent as one, they are one transaction.
    connection
        .simple_query(&statements.join("; "))
        .await
        .map_err(|error| Error::from(error.during("emptying the tables of the target")))?;
    loaders.put(connection);
    Ok(())
}

fn only(kind: Option<&RelationKind>) -> &'static str {
    kind.copied().unwrap_or(RelationKind::Table).only()
}

/// One statement: foreign keys are checked at its end, when the rows that refer to each other are all gone.
fn delete_together(tables: &[String]) -> Option<String> {
    let (last, others) = tables.split_last()?;
    let parts: Vec<String> = others
        .iter()
        .enumerate()
        .map(|(number, table)| format!("d{number} AS (DELETE FROM {table})"))
        .collect();
    let with = if parts.is_empty() {
        String::new()
    } else {
        format!("WITH {} ", parts.join(", "))
    };
    Some(format!("{with}DELETE FROM {last}"))
}

/// Empties a table in a transaction that does more. Where foreign keys are checked, rows that refer to it must be gone.
pub(crate) async fn one(transaction: &Transaction<'_>, table: &TableName, role: SessionRole) -> Result<()> {
    let name = qualified(table);
    let sql = "SELECT c.relkind = 'p', EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = c.oid \
               AND conrelid <> confrelid) FROM pg_class c WHERE c.oid = $1::text::regclass";
    let row = transaction
        .query_one(sql, &[&name])
        .await
        .map_err(during("looking for foreign keys"))?;
    let only = if row.get(0) { "" } else { "ONLY " };
    let statement = match (row.get(1), role) {
        (false, _) => format!("TRUNCATE {only}{name}"),
        (true, SessionRole::Origin) => format!("DELETE FROM {only}{name}"),
        (true, SessionRole::Replica) => format!(
            "SET LOCAL session_replication_role = replica; DELETE FROM {only}{name}; \
             SET LOCAL session_replication_role TO DEFAULT"
        ),
    };
    transaction
        .batch_execute(&statement)
        .await
        .map_err(during("emptying a table for its seed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_refer_to_each_other_go_in_one_statement() {
        let tables = |names: &[&str]| {
            delete_together(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(tables(&[]), None);
        assert_eq!(tables(&["a"]).unwrap(), "DELETE FROM a");
        assert_eq!(
            tables(&["a", "b", "c"]).unwrap(),
            "WITH d0 AS (DELETE FROM a), d1 AS (DELETE FROM b) DELETE FROM c"
        );
    }
}
