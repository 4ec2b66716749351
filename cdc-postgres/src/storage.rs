//! Whether what a snapshot shows of a table is all there was: what locks a table and compares its storage.
//!
//! A rewriting ALTER TABLE and TRUNCATE leave nothing that an older snapshot could see (PostgreSQL manual, "Caveats" of
//! MVCC): the table would seem empty. VACUUM FULL and CLUSTER move rows to other blocks, so that ranges of blocks would
//! miss some. A partition that was attached later would bring its rows, and one that was detached take them.

use cdc_core::TableName;

use crate::catalog::{RelationKind, qualified};
use crate::error::PgError;
use crate::wire::{Connection, literal};

/// Whether there is a partitioned table of this name.
pub(crate) async fn kind(connection: &mut Connection, table: &TableName) -> Result<RelationKind, PgError> {
    let results = connection
        .simple_query(&format!(
            "SELECT c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = {} AND c.relname = {}",
            literal(&table.schema),
            literal(&table.name)
        ))
        .await?;
    let row = results.first().and_then(|result| result.rows.first());
    let found = row.map(|row| row.text(0)).transpose()?.flatten();
    Ok(match found {
        Some("p") => RelationKind::Partitioned,
        _ => RelationKind::Table,
    })
}

/// The table, with its partitions, cannot change its storage until the transaction ends.
pub(crate) fn lock(table: &TableName, kind: RelationKind) -> String {
    format!(
        "LOCK TABLE {}{} IN ACCESS SHARE MODE",
        kind.only(),
        qualified(table)
    )
}

/// Whether the storage of `pg_class c` is as in the snapshot: the catalog is read as of the snapshot,
/// `pg_relation_filenode` and `pg_partition_tree` as of now.
pub(crate) fn unchanged(kind: RelationKind) -> &'static str {
    match kind {
        RelationKind::Table => "c.relfilenode = pg_relation_filenode(c.oid)",
        RelationKind::Partitioned => {
            "(WITH RECURSIVE tree (oid) AS (SELECT c.oid UNION ALL \
                  SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid) \
              SELECT array_agg(t.oid ORDER BY t.oid) = (SELECT array_agg(p.relid::oid ORDER BY p.relid::oid) \
                         FROM pg_partition_tree(c.oid) p) \
                     AND bool_and(m.relkind <> 'r' OR m.relfilenode = pg_relation_filenode(m.oid)) \
              FROM tree t JOIN pg_class m ON m.oid = t.oid)"
        }
    }
}
