//! What planning must know of the target's tables.

use std::collections::HashMap;

use cdc_core::conflict::Policy;
use cdc_core::engine::Partitions;
use cdc_core::plan::{TargetColumn, TargetTable, UniqueKey};
use cdc_core::{Result, TableName, TableSelection};
use tokio_postgres::Client;

use crate::catalog::{USER_RELATION, own_table};
use crate::column_types::TYPE_FACTS;
use crate::session::during;
use crate::sink::{SessionRole, replica_role};

/// Types whose text form is the same exactly when the values are equal. Not among them: numeric (1.0 and 1.00),
/// floating point (0 and -0), interval, json and jsonb, times with zone, and everything from extensions. Text
/// types belong here only under a deterministic collation; `bpchar` only with a length, to which its text is padded.
const BYTE_COMPARABLE: &str = "(16, 17, 18, 19, 20, 21, 23, 25, 26, 1042, 1043, 1082, 1114, 1184, 2950)";

/// Reads the facts of the selected tables.
pub(crate) async fn target_tables(client: &Client, selection: &TableSelection) -> Result<Vec<TargetTable>> {
    let role = replica_role(client).await?;
    let mut tables = read_tables(client, role, selection.partitions).await?;
    tables.retain(|_, table| selection.selects(&table.name));
    read_columns(client, &mut tables).await?;
    read_keys(client, &mut tables).await?;
    read_references(client, &mut tables).await?;
    Ok(tables.into_values().collect())
}

type Tables = HashMap<u32, TargetTable>;

async fn read_tables(client: &Client, role: SessionRole, partitions: Partitions) -> Result<Tables> {
    let own_table = own_table(partitions);
    // tgenabled and ev_enabled: O acts in origin sessions, R in replica ones, A always, D never. Foreign keys are
    // checked by internal triggers, which are O; those that recheck a deferred unique constraint see no order.
    let (firing, checked) = match role {
        SessionRole::Replica => ("('R', 'A')", false),
        SessionRole::Origin => ("('O', 'A')", true),
    };
    // A constraint trigger has a constraint of its own, which is of kind t.
    let fires = |constraints: &str| {
        format!(
            "EXISTS (SELECT FROM (SELECT c.oid \
                          UNION SELECT p.relid FROM pg_partition_tree(c.oid) p WHERE c.relkind = 'p') x \
                     JOIN pg_trigger t ON t.tgrelid = x.oid WHERE t.tgenabled IN {firing} \
                     AND NOT EXISTS (SELECT FROM pg_constraint k \
                                     WHERE k.oid = t.tgconstraint AND k.contype IN ({constraints}))) \
             OR EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_enabled IN {firing})"
        )
    };
    let (order_visible, sees_others) = (fires("'p', 'u', 'x'"), fires("'p', 'u', 'x', 'f'"));
    let sql = format!(
        "SELECT c.oid, n.nspname::text, c.relname::text, {order_visible}, \
         (SELECT count(*) FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion)), \
         {checked} AND EXISTS (SELECT FROM pg_constraint k WHERE k.contype = 'f' AND k.conrelid = c.oid \
                               AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))), \
         c.relkind = 'p', {sees_others}, \
         {checked} AND EXISTS (SELECT FROM pg_constraint k WHERE k.contype = 'f' AND k.confrelid = c.oid \
                               AND k.confdeltype IN ('c', 'n', 'd')) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE {own_table} AND c.relpersistence <> 't' AND {USER_RELATION}"
    );
    let rows = client
        .query(&sql, &[])
        .await
        .map_err(during("reading the target's tables"))?;
    let table = |row: &tokio_postgres::Row| TargetTable {
        name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        columns: Vec::new(),
        keys: Vec::new(),
        unique_constraints: usize::try_from(row.get::<_, i64>(4)).unwrap_or(usize::MAX),
        policy: Policy::Stop,
        order_visible: row.get(3),
        cascaded: row.get(5),
        partitioned: row.get(6),
        sees_others: row.get(7),
        acts_on_others: row.get(8),
        references: Vec::new(),
    };
    Ok(rows.iter().map(|row| (row.get(0), table(row))).collect())
}

async fn read_columns(client: &Client, tables: &mut Tables) -> Result<()> {
    let sql = format!(
        "WITH RECURSIVE rels (oid) AS (SELECT unnest($1::oid[])), {TYPE_FACTS} \
         SELECT a.attrelid, a.attname::text, f.cast_name, a.attgenerated <> '', \
         (f.typtype = 'e' OR f.base IN {BYTE_COMPARABLE}) AND (f.base <> 1042 OR a.atttypmod > 0) \
         AND coalesce(l.collisdeterministic, true), f.equals IS NOT NULL \
         FROM rels r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped \
         JOIN type_facts f ON f.oid = a.atttypid LEFT JOIN pg_collation l ON l.oid = a.attcollation \
         ORDER BY a.attrelid, a.attnum"
    );
    let oids: Vec<u32> = tables.keys().copied().collect();
    let rows = client
        .query(&sql, &[&oids])
        .await
        .map_err(during("reading the target's columns"))?;
    for row in rows {
        if let Some(table) = tables.get_mut(&row.get(0)) {
            table.columns.push(TargetColumn {
                name: row.get(1),
                type_name: row.get(2),
                generated: row.get(3),
                byte_comparable: row.get(4),
                has_equality: row.get(5),
            });
        }
    }
    Ok(())
}

async fn read_keys(client: &Client, tables: &mut Tables) -> Result<()> {
    // A deferrable constraint does not hold within a transaction. Under another collation than the column's, the index
    // takes other values for equal than a comparison of the column does.
    let sql = "SELECT i.indrelid, i.indisprimary, k.names \
               FROM pg_index i CROSS JOIN LATERAL ( \
                   SELECT array_agg(a.attname::text ORDER BY p.place) AS names, bool_and(a.attnotnull) AS not_null, \
                          bool_and(i.indcollation[p.place - 1] IN (0, a.attcollation)) AS same_collation \
                   FROM unnest(i.indkey::int2[]) WITH ORDINALITY p (attnum, place) \
                   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = p.attnum \
                   WHERE p.place <= i.indnkeyatts) k \
               WHERE i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL \
               AND i.indrelid = ANY ($1) AND k.not_null AND k.same_collation \
               ORDER BY i.indrelid, NOT i.indisprimary, i.indnkeyatts, i.indexrelid";
    let oids: Vec<u32> = tables.keys().copied().collect();
    let rows = client
        .query(sql, &[&oids])
        .await
        .map_err(during("reading the target's keys"))?;
    for row in rows {
        if let Some(table) = tables.get_mut(&row.get(0)) {
            let names: Vec<String> = row.get(2);
            let columns: Option<Vec<usize>> = names.iter().map(|name| table.column(name)).collect();
            table.keys.extend(columns.map(|columns| UniqueKey {
                columns,
                primary: row.get(1),
            }));
        }
    }
    Ok(())
}

async fn read_references(client: &Client, tables: &mut Tables) -> Result<()> {
    let sql = "SELECT DISTINCT c.conrelid, n.nspname::text, r.relname::text FROM pg_constraint c \
               JOIN pg_class r ON r.oid = c.confrelid JOIN pg_namespace n ON n.oid = r.relnamespace \
               WHERE c.contype = 'f' AND c.conrelid = ANY ($1)";
    let oids: Vec<u32> = tables.keys().copied().collect();
    let rows = client
        .query(sql, &[&oids])
        .await
        .map_err(during("reading the target's foreign keys"))?;
    for row in rows {
        if let Some(table) = tables.get_mut(&row.get(0)) {
            table
                .references
                .push(TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)));
        }
    }
    Ok(())
}
