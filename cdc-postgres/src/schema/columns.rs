//! The statements that give another database columns of this one, and the types of its columns.

use std::collections::HashMap;

use cdc_core::{Result, TableName};
use tokio_postgres::Client;

use crate::session::during;

/// One statement a column, in the order asked for; a column that is gone has none.
///
/// `ADD COLUMN … DEFAULT` with a constant writes no row: the server keeps the value that earlier rows are read with
/// (`attmissingval`), and no change of them is in the log. So the statement gives the rows that are on the target by
/// now the same value, whatever the default has become since. A default that is computed for each row rewrites the
/// table, of which nothing is in the log either.
pub(super) async fn add_columns(client: &Client, columns: &[(TableName, String)]) -> Result<Vec<String>> {
    let schemas: Vec<&str> = columns.iter().map(|(table, _)| table.schema.as_str()).collect();
    let tables: Vec<&str> = columns.iter().map(|(table, _)| table.name.as_str()).collect();
    let names: Vec<&str> = columns.iter().map(|(_, column)| column.as_str()).collect();
    let rows = client
        .query(
            "SELECT format('ALTER TABLE %I.%I ADD COLUMN %I %s', n.nspname, c.relname, a.attname, \
                        format_type(a.atttypid, a.atttypmod)) \
                    || COALESCE((SELECT format(' COLLATE %I.%I', s.nspname, l.collname) FROM pg_collation l \
                        JOIN pg_namespace s ON s.oid = l.collnamespace \
                        WHERE l.oid = a.attcollation AND a.attcollation <> t.typcollation), '') \
                    || CASE WHEN a.attgenerated <> '' THEN format(' GENERATED ALWAYS AS (%s)%s', \
                                pg_get_expr(d.adbin, d.adrelid), CASE a.attgenerated WHEN 's' THEN ' STORED' ELSE '' END) \
                        WHEN a.atthasmissing AND t.typelem = 0 THEN \
                            format(' DEFAULT %L', (a.attmissingval::text::text[])[1]) \
                            || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END \
                        ELSE '' END || ';' \
                    || CASE WHEN d.adbin IS NOT NULL AND a.attgenerated = '' THEN \
                        format(' ALTER TABLE %I.%I ALTER COLUMN %I SET DEFAULT %s;', n.nspname, c.relname, a.attname, \
                            pg_get_expr(d.adbin, d.adrelid)) ELSE '' END \
                    || CASE WHEN a.attgenerated = '' AND (d.adbin IS NOT NULL OR a.attnotnull) \
                        AND NOT (a.atthasmissing AND t.typelem = 0) THEN ' /* rows that were there before may have values \
                        in it that are not in the log: verify, or seed the table again */' ELSE '' END \
             FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS w (s, t, c, place) \
             JOIN pg_namespace n ON n.nspname = w.s JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t \
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = w.c AND NOT a.attisdropped \
             JOIN pg_type t ON t.oid = a.atttypid \
             LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum ORDER BY w.place",
            &[&schemas, &tables, &names],
        )
        .await
        .map_err(during("reading the definitions of columns"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What the types of `table`'s columns are when written down, collations included, by the columns' names.
pub(super) async fn types(client: &Client, table: &TableName) -> Result<HashMap<String, String>> {
    let rows = client
        .query(
            "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod) \
                    || COALESCE((SELECT format(' COLLATE %I.%I', s.nspname, l.collname) FROM pg_collation l \
                        JOIN pg_namespace s ON s.oid = l.collnamespace \
                        WHERE l.oid = a.attcollation AND a.attcollation <> t.typcollation), '') \
             FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid \
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
             JOIN pg_type t ON t.oid = a.atttypid WHERE n.nspname = $1 AND c.relname = $2",
            &[&table.schema, &table.name],
        )
        .await
        .map_err(during("reading the types of columns"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The places of `table`'s columns in the order in which they were made; `None` for one that was dropped.
pub(super) async fn places(client: &Client, table: &TableName) -> Result<Vec<Option<String>>> {
    let rows = client
        .query(
            "SELECT CASE WHEN a.attisdropped THEN NULL ELSE a.attname::text END \
             FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid \
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 \
             WHERE n.nspname = $1 AND c.relname = $2 ORDER BY a.attnum",
            &[&table.schema, &table.name],
        )
        .await
        .map_err(during("reading the places of columns"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
