//! Tables that the job leaves out, though they hold rows of their own or are tied to those that it carries.

use cdc_core::engine::{Finding, Severity, Side};
use cdc_core::{Result, TableName, TableSelection};

use super::{Findings, Session, few};
use crate::catalog::{USER_RELATION, qualified};
use crate::session::during;
use crate::wire::session::identifier;

/// `PG-EXTENSION-TABLE`. A table that belongs to an extension is made and filled with it; what was written to it since, or
/// a table that was only attached to the extension, nobody carries.
pub(super) async fn of_extensions(session: &Session) -> Result<Vec<Finding>> {
    let rows = session
        .client
        .query_typed(
            "SELECT n.nspname::text, c.relname::text, e.extname::text \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e' \
             JOIN pg_extension e ON e.oid = d.refobjid \
             WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' \
                   AND n.nspname NOT IN ('information_schema', 'cdc_sync') AND pg_relation_size(c.oid) > 0 \
             ORDER BY 1, 2",
            &[],
        )
        .await
        .map_err(during("looking for tables of extensions"))?;
    let mut found = Findings::new(Side::Source);
    for row in &rows {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let extension: String = row.get(2);
        found.add(
            ("PG-EXTENSION-TABLE", Severity::Warn),
            format!("table {table}"),
            format!("belongs to extension {extension} and holds rows: it is not replicated"),
            format!(
                "if CREATE EXTENSION fills it, nothing; a table of your own: ALTER EXTENSION {} DROP TABLE {}; else carry \
                 its rows by hand",
                identifier(&extension),
                qualified(&table)
            ),
        );
    }
    Ok(found.list)
}

/// `PG-FK-LEFT-OUT`. Rows are applied without looking at foreign keys: what refers to them, or they refer to, has to come
/// from the same source.
pub(super) async fn foreign_keys(session: &Session, selection: &TableSelection) -> Result<Vec<Finding>> {
    let rows = session
        .client
        .query_typed(
            &format!(
                "SELECT n.nspname::text, c.relname::text, m.nspname::text, r.relname::text, f.conname::text \
                 FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid \
                 JOIN pg_namespace n ON n.oid = c.relnamespace \
                 JOIN pg_class r ON r.oid = f.confrelid JOIN pg_namespace m ON m.oid = r.relnamespace \
                 WHERE f.contype = 'f' AND c.relkind = 'r' AND r.relkind = 'r' AND {USER_RELATION} ORDER BY 1, 2, 5"
            ),
            &[],
        )
        .await
        .map_err(during("looking for foreign keys"))?;
    let mut found = Findings::new(Side::Target);
    let mut apart = Vec::new();
    for row in &rows {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let refers = TableName::new(row.get::<_, String>(2), row.get::<_, String>(3));
        if selection.selects(&table) != selection.selects(&refers) {
            apart.push(format!("{table} ({}) to {refers}", row.get::<_, String>(4)));
        }
    }
    if !apart.is_empty() {
        found.add(
            ("PG-FK-LEFT-OUT", Severity::Warn),
            format!("{} foreign keys", apart.len()),
            format!(
                "lead from or to a table that the job leaves out: {}; rows are applied without checking them and without \
                 their cascades, so that they may come to be violated",
                few(&apart)
            ),
            "select both tables, or drop the foreign key on the target until it has taken over",
        );
    }
    Ok(found.list)
}
