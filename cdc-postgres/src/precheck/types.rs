//! Types and collations of the source's columns that the target must know, and enums that must have the same labels.

use std::collections::{BTreeMap, BTreeSet};

use cdc_core::Result;
use cdc_core::engine::Severity;

use super::{Findings, Session, few, tables};
use crate::column_types::BASE_TYPE;
use crate::session::during;
use crate::wire::session::literal;

/// A column of a selected table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Column {
    /// as `format_type` prints it
    pub(super) type_name: String,
    /// the same with domains taken off
    pub(super) base: String,
    /// its type, or its elements', when the server brings it
    pub(super) builtin: Option<String>,
    /// its collation, when the server brings it and it is not the default
    pub(super) collation: Option<String>,
}

/// What a database has of types and collations.
#[derive(Debug, Clone, Default)]
pub(super) struct Types {
    /// columns of the selected tables that are not generated, by `schema.table.column`
    pub(super) columns: BTreeMap<String, Column>,
    /// types and collations that the server brings
    pub(super) builtin: BTreeSet<String>,
    pub(super) collations: BTreeSet<String>,
    /// enums by their quoted names, labels in order
    pub(super) enums: BTreeMap<String, Vec<String>>,
}

pub(super) async fn read(session: &Session, relations: &[tables::Relation]) -> Result<Types> {
    Ok(Types {
        columns: columns(session, relations).await?,
        builtin: names(
            session,
            "SELECT typname::text FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace",
        )
        .await?,
        collations: names(
            session,
            "SELECT collname::text FROM pg_collation WHERE collnamespace = 'pg_catalog'::regnamespace \
             AND collencoding IN (-1, (SELECT encoding FROM pg_database WHERE datname = current_database()))",
        )
        .await?,
        enums: enums(session).await?,
    })
}

async fn columns(session: &Session, relations: &[tables::Relation]) -> Result<BTreeMap<String, Column>> {
    let (schemas, names): (Vec<&str>, Vec<&str>) = relations
        .iter()
        .map(|relation| (relation.name.schema.as_str(), relation.name.name.as_str()))
        .unzip();
    let rows = session
        .client
        .query(
            &format!("SELECT concat_ws('.', n.nspname, c.relname, a.attname), format_type(a.atttypid, a.atttypmod), \
                    (SELECT COALESCE(e.typname, t.typname)::text FROM pg_type t \
                     LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A' \
                     WHERE t.oid = a.atttypid AND t.typnamespace = 'pg_catalog'::regnamespace), \
                    (SELECT l.collname::text FROM pg_collation l WHERE l.oid = a.attcollation \
                     AND l.collnamespace = 'pg_catalog'::regnamespace AND l.collname <> 'default'), {BASE_TYPE} \
             FROM unnest($1::text[], $2::text[]) AS s (a, b) JOIN pg_namespace n ON n.nspname = s.a \
             JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = s.b \
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
             WHERE a.attgenerated = ''"),
            &[&schemas, &names],
        )
        .await
        .map_err(during("reading the types of the columns"))?;
    let column = |row: &tokio_postgres::Row| Column {
        type_name: row.get(1),
        builtin: row.get(2),
        collation: row.get(3),
        base: row.get(4),
    };
    Ok(rows.iter().map(|row| (row.get(0), column(row))).collect())
}

async fn names(session: &Session, query: &str) -> Result<BTreeSet<String>> {
    let rows = session
        .client
        .query_typed(query, &[])
        .await
        .map_err(during("reading the types of the server"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn enums(session: &Session) -> Result<BTreeMap<String, Vec<String>>> {
    let rows = session
        .client
        .query_typed(
            "SELECT format('%I.%I', n.nspname, t.typname), array_agg(e.enumlabel::text ORDER BY e.enumsortorder) \
             FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid JOIN pg_namespace n ON n.oid = t.typnamespace \
             GROUP BY 1",
            &[],
        )
        .await
        .map_err(during("reading the labels of the enums"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// `PG-TYPE-MISSING`, `PG-COLLATION-MISSING`: of columns that the target is yet to get. `PG-ENUM-LABELS`: of enums that
/// both have.
pub(super) fn judge(source: &Types, target: &Types, found: &mut Findings) {
    let lacking = |of: &dyn Fn(&Column) -> Option<&String>, known: &BTreeSet<String>| {
        let mut columns: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, column) in &source.columns {
            if let Some(needed) = of(column).filter(|needed| !known.contains(*needed))
                && !target.columns.contains_key(name)
            {
                columns.entry(needed.clone()).or_default().push(name.clone());
            }
        }
        columns
    };
    for (needed, columns) in lacking(&|column| column.builtin.as_ref(), &target.builtin) {
        found.add(
            ("PG-TYPE-MISSING", Severity::Fail),
            format!("type {needed}"),
            format!("the target's version does not have it: {}", few(&columns)),
            "use a newer target, or create these tables on the target with another type (text takes any value)",
        );
    }
    for (needed, columns) in lacking(&|column| column.collation.as_ref(), &target.collations) {
        found.add(
            ("PG-COLLATION-MISSING", Severity::Fail),
            format!("collation {needed}"),
            format!("the target does not have it: {}", few(&columns)),
            "install the locale on the target's machine, then: SELECT pg_import_system_collations('pg_catalog');",
        );
    }
    for (name, from) in &source.enums {
        if let Some(to) = target.enums.get(name) {
            judge_enum(name, from, to, found);
        }
    }
}

fn judge_enum(name: &str, from: &[String], to: &[String], found: &mut Findings) {
    let missing: Vec<String> = from.iter().filter(|label| !to.contains(label)).cloned().collect();
    if !missing.is_empty() {
        let add = |label: &String| format!("ALTER TYPE {name} ADD VALUE {};", literal(label));
        found.add(
            ("PG-ENUM-LABELS", Severity::Warn),
            format!("enum {name}"),
            format!(
                "the target lacks labels; a row that has one stops the job: {}",
                few(&missing)
            ),
            missing.iter().map(add).collect::<Vec<_>>().join(" "),
        );
        return;
    }
    // Labels that only the target has come in no row.
    if !to.iter().filter(|label| from.contains(label)).eq(from) {
        found.add(
            ("PG-ENUM-LABELS", Severity::Warn),
            format!("enum {name}"),
            "its labels are in another order on the target: they sort and compare differently",
            "drop the target's objects that use the enum and let cdc-sync copy the schema, or make the enum anew in the \
             source's order",
        );
    }
}

#[cfg(test)]
mod tests {
    use cdc_core::engine::Side;

    use super::*;

    fn labels(text: &str) -> Vec<String> {
        text.chars().map(String::from).collect()
    }

    #[test]
    fn enums_must_have_the_labels_in_their_order() {
        let judged = |from: &str, to: &str| {
            let mut found = Findings::new(Side::Both);
            judge_enum("s.e", &labels(from), &labels(to), &mut found);
            found
                .list
                .first()
                .map(|finding| (finding.severity, finding.remedy.clone()))
        };
        assert_eq!(judged("abc", "abc"), None);
        assert_eq!(judged("abc", "axbc"), None);
        assert_eq!(judged("abc", "acb").unwrap().0, Severity::Warn);
        let (severity, remedy) = judged("ab'", "a").unwrap();
        assert_eq!(severity, Severity::Warn);
        assert_eq!(
            remedy,
            "ALTER TYPE s.e ADD VALUE 'b'; ALTER TYPE s.e ADD VALUE '''';"
        );
    }

    #[test]
    fn what_the_server_must_bring_is_asked_for_new_columns_only() {
        let column = Column {
            base: "xid8".into(),
            type_name: "xid8".into(),
            builtin: Some("xid8".into()),
            collation: Some("de-x-icu".into()),
        };
        let source = Types {
            columns: BTreeMap::from([("s.t.c".to_owned(), column.clone())]),
            ..Types::default()
        };
        let judged = |target: &Types| {
            let mut found = Findings::new(Side::Both);
            judge(&source, target, &mut found);
            found.list.iter().map(|finding| finding.id).collect::<Vec<_>>()
        };
        let mut target = Types::default();
        assert_eq!(judged(&target), ["PG-TYPE-MISSING", "PG-COLLATION-MISSING"]);
        target.columns.insert("s.t.c".into(), column);
        assert!(judged(&target).is_empty());
        let target = Types {
            builtin: BTreeSet::from(["xid8".to_owned()]),
            collations: BTreeSet::from(["de-x-icu".to_owned()]),
            ..Types::default()
        };
        assert!(judged(&target).is_empty());
    }
}
