//! What a database is and what tables it has, read from its catalog.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use cdc_core::engine::{ColumnInfo, Occupancy, Partitions, SiteIdentity, TableInfo};
use cdc_core::{Error, Kind, Result, TableName, TableSelection, failpoint};
use tokio_postgres::Client;

use crate::lock::{self, InTheWay};
use crate::session::during;
use crate::wire::ServerVersion;
use crate::wire::identifier;

/// The schema that cdc-sync keeps its own tables in, on either side. Never replicated.
pub(crate) const OWN_SCHEMA: &str = "cdc_sync";

/// The condition on `pg_class c` and `pg_namespace n` that a relation is a user's own: not the system's, not ours,
/// not a member of an extension (which `CREATE EXTENSION` makes on the target). Temporary and unlogged relations
/// are not in the log (PostgreSQL manual, "Logical Replication Restrictions").
pub(crate) const USER_RELATION: &str = "n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'cdc_sync') \
     AND c.relpersistence = 'p' \
     AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = 'pg_class'::regclass AND x.objid = c.oid \
                     AND x.deptype = 'e')";

/// The condition on `pg_index i` that a row's columns tell whether it violates the unique index: enforced at once, of all
/// rows, on columns as they are, under their collation, NULLs being distinct (15 and later know others).
pub(crate) const FORESEEABLE: &str = "(i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL \
     AND NOT COALESCE((to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false) \
     AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[], i.indcollation::oid[]) AS p (attnum, collation_oid) \
         JOIN pg_attribute x ON x.attrelid = i.indrelid AND x.attnum = p.attnum \
         WHERE p.collation_oid NOT IN (0, x.attcollation)))";

/// `table` as it stands in a statement.
pub(crate) fn qualified(table: &TableName) -> String {
    format!("{}.{}", identifier(&table.schema), identifier(&table.name))
}

/// The columns as they stand in a statement.
pub(crate) fn column_list(columns: &[String]) -> String {
    columns
        .iter()
        .map(|column| identifier(column))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Who the server is, and its version.
///
/// The timeline is that of the WAL being written; on a standby, of the WAL being replayed.
pub(crate) async fn identity(client: &Client) -> Result<(SiteIdentity, ServerVersion)> {
    let row = client
        .query_typed_one(
            "SELECT (SELECT system_identifier::text FROM pg_control_system()), current_database()::text, \
                    current_setting('server_version_num')::int4, \
                    CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id::int8 FROM pg_control_checkpoint()) \
                    ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int8 END",
            &[],
        )
        .await
        .map_err(during("reading the identity of the server"))?;
    let version = ServerVersion(row.get::<_, i32>(2).unsigned_abs());
    let identity = SiteIdentity {
        product: format!("PostgreSQL {version}"),
        system: row.get(0),
        database: row.get(1),
        timeline: row.get::<_, i64>(3).to_string(),
    };
    Ok((identity, version))
}

/// The major version in [`SiteIdentity::product`], when the product is PostgreSQL.
pub(crate) fn major_of(identity: &SiteIdentity) -> Option<u32> {
    let version = identity.product.strip_prefix("PostgreSQL ")?;
    ServerVersion::parse(version).map(ServerVersion::major)
}

/// The condition on `pg_class c` that a relation is a table of its own. Partitioned tables hold no rows of their own.
pub(crate) fn own_table(partitions: Partitions) -> &'static str {
    match partitions {
        Partitions::Leaves => "c.relkind = 'r'",
        Partitions::Root => "c.relkind IN ('r', 'p') AND NOT c.relispartition",
    }
}

/// `pg_class c` and, if it is partitioned, all of its partitions. An array, because the planner takes a function for a
/// thousand rows and would read all of `pg_class` anew for each `c`: an array it looks up by the index.
pub(crate) const MEMBERS: &str = "CASE c.relkind WHEN 'p' \
     THEN ARRAY(SELECT p.relid::oid FROM pg_partition_tree(c.oid) p) ELSE ARRAY[c.oid] END";

/// The selected tables, each leaf partition or each partitioned table as one.
///
/// A deferrable primary key identifies no row in the log, nor does one whose index is not valid
/// (`RelationGetIndexList` in the server's `relcache.c`).
pub(crate) async fn inspect(client: &Client, selection: &TableSelection) -> Result<Vec<TableInfo>> {
    let own_table = own_table(selection.partitions);
    let statement = format!(
        "SELECT n.nspname::text, c.relname::text, c.relreplident::text, s.rows, s.bytes, a.names, a.types, a.not_null, a.generated, \
                COALESCE(pk.columns, '{{}}'), \
                CASE c.relreplident WHEN 'f' THEN true WHEN 'n' THEN false \
                ELSE EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate \
                     AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END) END, \
                a.has_default, COALESCE(uk.keys, '{{}}'), COALESCE(uk.columns, '{{}}'), \
                ARRAY(SELECT x.relname::text FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid \
                      WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion) AND NOT {FORESEEABLE} ORDER BY 1), \
                ARRAY(SELECT t.attname::text FROM pg_attribute t WHERE t.attrelid = c.oid AND t.attidentity = 'a' \
                      AND NOT t.attisdropped ORDER BY t.attnum), \
                c.reltoastrelid <> 0 \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         CROSS JOIN LATERAL ( \
             SELECT sum(GREATEST(m.reltuples, 0))::float8 AS rows, sum(pg_table_size(m.oid))::int8 AS bytes \
             FROM pg_class m WHERE m.oid = ANY ({MEMBERS}) \
                 AND (m.relkind = 'r' OR c.relkind = 'p' AND m.oid <> c.oid)) s \
         CROSS JOIN LATERAL ( \
             SELECT COALESCE(array_agg(t.attname::text ORDER BY t.attnum), '{{}}') AS names, \
                    COALESCE(array_agg(format_type(t.atttypid, t.atttypmod) ORDER BY t.attnum), '{{}}') AS types, \
                    COALESCE(array_agg(t.attnotnull ORDER BY t.attnum), '{{}}') AS not_null, \
                    COALESCE(array_agg(t.attgenerated <> '' ORDER BY t.attnum), '{{}}') AS generated, \
                    COALESCE(array_agg(t.atthasdef OR t.attidentity <> '' OR y.typdefault IS NOT NULL \
                             ORDER BY t.attnum), '{{}}') AS has_default \
             FROM pg_attribute t JOIN pg_type y ON y.oid = t.atttypid \
             WHERE t.attrelid = c.oid AND t.attnum > 0 AND NOT t.attisdropped) a \
         LEFT JOIN LATERAL ( \
             SELECT array_agg(t.attname::text ORDER BY k.place) AS columns \
             FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY k (attnum, place) \
             JOIN pg_attribute t ON t.attrelid = i.indrelid AND t.attnum = k.attnum \
             WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts) pk ON true \
         LEFT JOIN LATERAL ( \
             SELECT array_agg(i.indexrelid::int8 ORDER BY i.indexrelid, k.place) AS keys, \
                    array_agg(t.attname::text ORDER BY i.indexrelid, k.place) AS columns \
             FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY k (attnum, place) \
             JOIN pg_attribute t ON t.attrelid = i.indrelid AND t.attnum = k.attnum \
             WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL \
                   AND i.indexprs IS NULL AND k.place <= i.indnkeyatts) uk ON true \
         WHERE {own_table} AND {USER_RELATION} ORDER BY 1, 2"
    );
    // A table's size is read under a lock, which VACUUM FULL and most of ALTER TABLE exclude.
    let in_the_way = InTheWay {
        tables: None,
        modes: &["AccessExclusiveLock"],
    };
    let read = || client.query_typed(&statement, &[]);
    let rows = lock::patiently(client, "reading the list of tables", None, in_the_way, read).await?;
    let tables = rows.iter().map(table_info);
    Ok(tables.filter(|table| selection.selects(&table.name)).collect())
}

/// Columns of several keys, each with the number of its key, equal numbers beside each other.
fn by_key(keys: &[i64], columns: Vec<String>) -> Vec<Vec<String>> {
    let mut found: Vec<Vec<String>> = Vec::new();
    let mut last = None;
    for (key, column) in keys.iter().zip(columns) {
        match found.last_mut() {
            Some(columns) if last == Some(key) => columns.push(column),
            _ => found.push(vec![column]),
        }
        last = Some(key);
    }
    found
}

fn table_info(row: &tokio_postgres::Row) -> TableInfo {
    let identity: String = row.get(2);
    let (names, types): (Vec<String>, Vec<String>) = (row.get(5), row.get(6));
    let (not_null, generated): (Vec<bool>, Vec<bool>) = (row.get(7), row.get(8));
    let has_default: Vec<bool> = row.get(11);
    let flags = not_null.into_iter().zip(generated).zip(has_default);
    let columns = names.into_iter().zip(types).zip(flags);
    TableInfo {
        name: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        columns: columns
            .map(
                |((name, type_name), ((not_null, generated), has_default))| ColumnInfo {
                    name,
                    type_name,
                    not_null,
                    has_default,
                    generated,
                },
            )
            .collect(),
        primary_key: row.get(9),
        unique_keys: by_key(&row.get::<_, Vec<i64>>(12), row.get(13)),
        opaque_constraints: row.get(14),
        fixed_columns: row.get(15),
        // A table has one where its rows can be so long that values are stored out of line.
        leaves_out_values: row.get(16),
        identity: match identity.as_str() {
            "f" => "full",
            "n" => "nothing",
            "i" => "index",
            _ => "default",
        }
        .to_owned(),
        has_identity: row.get(10),
        // A float holds `reltuples` exactly as the catalog does (float4); the cast saturates.
        estimated_rows: row.get::<_, Option<f64>>(3).unwrap_or(0.0) as u64,
        // NULL when the table was dropped meanwhile.
        bytes: row.get::<_, Option<i64>>(4).map_or(0, i64::unsigned_abs),
    }
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RelationKind {
    /// an ordinary table
    Table,
    /// a partitioned table
    Partitioned,
}

impl RelationKind {
    /// The word before a table's name that keeps a statement from its inheritance children, which are tables of
    /// their own here. A partitioned table has no rows but those of its partitions.
    pub(crate) fn only(self) -> &'static str {
        match self {
            RelationKind::Table => "ONLY ",
            RelationKind::Partitioned => "",
        }
    }
}

/// What each of `tables` is; those that do not exist are not in the map.
pub(crate) async fn kinds(client: &Client, tables: &[TableName]) -> Result<HashMap<TableName, RelationKind>> {
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let rows = client
        .query(
            "SELECT t.schema, t.name, c.relkind::text \
             FROM unnest($1::text[], $2::text[]) AS t (schema, name) \
             JOIN pg_namespace n ON n.nspname = t.schema \
             JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name",
            &[&schemas, &names],
        )
        .await
        .map_err(during("looking up tables"))?;
    let mut kinds = HashMap::with_capacity(rows.len());
    for row in rows {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let kind = match row.get::<_, &str>(2) {
            "r" => RelationKind::Table,
            "p" => RelationKind::Partitioned,
            other => return Err(not_a_table(&table, other)),
        };
        kinds.insert(table, kind);
    }
    Ok(kinds)
}

/// What a relation is that is no table.
fn called(relkind: &str) -> &'static str {
    match relkind {
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        "S" => "a sequence",
        "c" => "a composite type",
        _ => "an index",
    }
}

/// What the relation is that is called `pattern`, if it is none that [`inspect`] finds for any selection.
pub(crate) async fn never_replicated(client: &Client, pattern: &str) -> Result<Option<String>> {
    let sql = format!(
        "SELECT c.relkind::text, c.relpersistence::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE $1::text IN (c.relname::text, n.nspname::text || '.' || c.relname::text) AND NOT (c.relkind IN ('r', 'p') AND {USER_RELATION}) \
         ORDER BY n.nspname LIMIT 1"
    );
    let row = client
        .query_opt(&sql, &[&pattern])
        .await
        .map_err(during("looking what has this name"))?;
    Ok(row.map(|row| {
        let what = match (row.get(0), row.get(1)) {
            ("r" | "p", "u") => "an unlogged table, which is not in the log",
            ("r" | "p", "t") => "a temporary table, which is not in the log",
            ("r" | "p", _) => "a table of the system, of an extension or of cdc-sync itself",
            (relkind, _) => called(relkind),
        };
        what.to_owned()
    }))
}

fn not_a_table(table: &TableName, relkind: &str) -> Error {
    let what = called(relkind);
    Error::new(
        Kind::Schema,
        format!("there is {what} of this name where a table is needed"),
    )
    .object(format!("table {table}"))
    .remedy(format!(
        "rename it, or leave the table out with --exclude '{table}'"
    ))
}

/// Which of `tables` exist, and of these which hold rows.
pub(crate) async fn occupancy(client: &Client, tables: &[TableName]) -> Result<Vec<(TableName, Occupancy)>> {
    let kinds = kinds(client, tables).await?;
    let mut found = Vec::with_capacity(tables.len());
    for chunk in tables.chunks(100) {
        let probes: Vec<String> = chunk
            .iter()
            .enumerate()
            .filter_map(|(place, table)| Some((place, table, kinds.get(table)?)))
            .map(|(place, table, kind)| {
                let (only, table) = (kind.only(), qualified(table));
                format!("SELECT {place}, EXISTS (SELECT FROM {only}{table})")
            })
            .collect();
        let mut states = vec![Occupancy::Missing; chunk.len()];
        if !probes.is_empty() {
            let rows = client
                .query_typed(&probes.join(" UNION ALL "), &[])
                .await
                .map_err(during("looking whether tables hold rows"))?;
            for row in rows {
                let place = usize::try_from(row.get::<_, i32>(0)).unwrap_or(usize::MAX);
                if let Some(state) = states.get_mut(place) {
                    *state = if row.get(1) {
                        Occupancy::Rows
                    } else {
                        Occupancy::Empty
                    };
                }
            }
        }
        found.extend(chunk.iter().cloned().zip(states));
    }
    Ok(found)
}

/// Gathers statistics of `tables`, the largest first, with one client or two at a time. Of a partition the whole
/// partitioned table is analyzed: its own statistics, which the planner needs as well, are gathered by no background
/// process.
pub(crate) async fn analyze(first: &Client, second: Option<&Client>, tables: &[TableName]) -> Result<()> {
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let rows = first
        .query(
            "SELECT n.nspname::text, c.relname::text \
             FROM unnest($1::text[], $2::text[]) AS t (schema, name) \
             JOIN pg_namespace tn ON tn.nspname = t.schema \
             JOIN pg_class tc ON tc.relnamespace = tn.oid AND tc.relname = t.name AND tc.relkind IN ('r', 'p') \
             JOIN pg_class c ON c.oid = COALESCE(pg_partition_root(tc.oid)::oid, tc.oid) \
             JOIN pg_namespace n ON n.oid = c.relnamespace GROUP BY 1, 2 \
             ORDER BY sum(pg_relation_size(tc.oid)) DESC, 1, 2",
            &[&schemas, &names],
        )
        .await
        .map_err(during("looking up tables"))?;
    let next = AtomicUsize::new(0);
    let analyze = async |client: Option<&Client>| {
        let Some(client) = client else { return Ok(()) };
        while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            client
                .batch_execute(&format!("ANALYZE {}", qualified(&table)))
                .await
                .map_err(during("gathering statistics"))
                .map_err(|error| error.object(format!("table {table}")))?;
        }
        Ok::<(), Error>(())
    };
    tokio::try_join!(analyze(Some(first)), analyze(second))?;
    failpoint!("statistics.gathered", error);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_gathered_by_their_key() {
        let columns = ["a", "b", "a"].map(String::from).to_vec();
        assert_eq!(by_key(&[7, 7, 9], columns), [vec!["a", "b"], vec!["a"]]);
        assert!(by_key(&[], Vec::new()).is_empty());
    }

    #[test]
    fn names_are_quoted_part_by_part() {
        let table = TableName::new("My \"Schema\"", "a.b");
        assert_eq!(
            qualified(&table),
            r#""My ""Schema""".""a.b""#.replace(r#""".""a"#, r#"""."a"#)
        );
        assert_eq!(column_list(&["a".into(), "B c".into()]), r#""a", "B c""#);
        assert_eq!(column_list(&[]), "");
    }

    #[test]
    fn the_major_version_is_read_from_the_product() {
        let identity = |product: &str| SiteIdentity {
            product: product.into(),
            system: String::new(),
            database: String::new(),
            timeline: String::new(),
        };
        assert_eq!(major_of(&identity("PostgreSQL 16.14")), Some(16));
        assert_eq!(major_of(&identity("MariaDB 11.8")), None);
    }
}
