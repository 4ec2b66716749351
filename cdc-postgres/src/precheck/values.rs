//! Columns whose values another server cannot take, or can only take under conditions.

use std::collections::BTreeMap;

use cdc_core::Result;
use cdc_core::engine::{Finding, Severity, Side};

use super::tables::Relation;
use super::{Findings, Session, few};
use crate::session::during;

/// Types whose input function takes nothing: the server itself makes their values.
const WITHOUT_INPUT: &str = "('pg_node_tree', 'pg_ndistinct', 'pg_dependencies', 'pg_mcv_list', 'gtsvector', \
     'pg_brin_bloom_summary', 'pg_brin_minmax_multi_summary')";

/// Types whose values are OIDs of catalog rows and are printed as the names of those (PostgreSQL manual, "Object
/// Identifier Types"; `pg_upgrade` refuses most of them for that reason).
const NAMES_OF_OBJECTS: &str = "('regproc', 'regprocedure', 'regoper', 'regoperator', 'regclass', 'regtype', \
     'regconfig', 'regdictionary', 'regrole', 'regnamespace', 'regcollation', 'aclitem')";

/// What is the matter with the values of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trait {
    WithoutInput,
    NamesOfObjects,
}

/// `PG-TYPE-NO-INPUT`, `PG-TYPE-OBJECT-NAMES`.
pub(super) async fn judge(session: &Session, relations: &[Relation]) -> Result<Vec<Finding>> {
    let mut tables: BTreeMap<(String, Trait), Vec<String>> = BTreeMap::new();
    for (table, column, what) in read(session, relations).await? {
        tables.entry((table, what)).or_default().push(column);
    }
    let mut found = Findings::new(Side::Source);
    for ((table, what), columns) in tables {
        let (id, message, remedy) = match what {
            Trait::WithoutInput => (
                "PG-TYPE-NO-INPUT",
                "PostgreSQL prints values of their types and reads none: a row that has one stops the job",
                "leave the table out (--exclude), or keep the text instead: ALTER TABLE … ALTER COLUMN … TYPE text",
            ),
            Trait::NamesOfObjects => (
                "PG-TYPE-OBJECT-NAMES",
                "values of their types are carried by the name of the object they denote: a row stops the job whose \
                 object is not on the target when it arrives (indexes and views are made after the copy), and the \
                 number that is left of a dropped one may denote another object there",
                "see that the objects are on the target before the job begins, or leave the table out (--exclude)",
            ),
        };
        let message = format!("columns {}: {message}", few(&columns));
        found.add((id, Severity::Warn), format!("table {table}"), message, remedy);
    }
    Ok(found.list)
}

/// Table, column and what is the matter with it, also where a domain, an array, a range or a composite type holds such
/// values.
async fn read(session: &Session, relations: &[Relation]) -> Result<Vec<(String, String, Trait)>> {
    let (schemas, names): (Vec<&str>, Vec<&str>) = relations
        .iter()
        .filter(|relation| relation.is_table())
        .map(|relation| (relation.name.schema.as_str(), relation.name.name.as_str()))
        .unzip();
    let statement = format!(
        "WITH RECURSIVE made_of (rel, att, type) AS ( \
             SELECT c.oid, a.attnum, a.atttypid FROM unnest($1::text[], $2::text[]) AS s (schema, name) \
             JOIN pg_namespace n ON n.nspname = s.schema \
             JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = s.name \
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
             WHERE a.attgenerated = '' \
             UNION SELECT m.rel, m.att, p.type FROM made_of m JOIN pg_type t ON t.oid = m.type \
             CROSS JOIN LATERAL (SELECT t.typbasetype UNION ALL SELECT t.typelem \
                 UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid \
                 UNION ALL SELECT f.atttypid FROM pg_attribute f WHERE f.attrelid = t.typrelid \
                     AND f.attnum > 0 AND NOT f.attisdropped) p (type) WHERE p.type <> 0) \
         SELECT DISTINCT concat_ws('.', n.nspname, c.relname), a.attname::text, t.typname IN {NAMES_OF_OBJECTS}, a.attnum \
         FROM made_of m JOIN pg_type t ON t.oid = m.type JOIN pg_class c ON c.oid = m.rel \
         JOIN pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_attribute a ON a.attrelid = m.rel AND a.attnum = m.att \
         WHERE t.typname IN {WITHOUT_INPUT} AND t.typnamespace = 'pg_catalog'::regnamespace \
            OR t.typname IN {NAMES_OF_OBJECTS} AND t.typnamespace = 'pg_catalog'::regnamespace \
            OR t.typname = 'ghstore' ORDER BY 1, 4"
    );
    let rows = session
        .client
        .query(&statement, &[&schemas, &names])
        .await
        .map_err(during("reading the types of the columns"))?;
    let what = |names: bool| {
        if names {
            Trait::NamesOfObjects
        } else {
            Trait::WithoutInput
        }
    };
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get(1), what(row.get(2))))
        .collect())
}
