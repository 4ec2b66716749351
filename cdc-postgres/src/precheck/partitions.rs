//! Partitioned tables: whether both sides divide them alike, and what comes with replicating them as a whole.

use std::collections::BTreeMap;

use cdc_core::engine::{Finding, Partitions, Severity, Side};
use cdc_core::{Result, TableName, TableSelection};

use super::tables::Relation;
use super::{Findings, Session, few};
use crate::catalog::USER_RELATION;
use crate::publication::has_via_root;
use crate::session::during;

/// What rows a table takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    /// it is divided into partitions
    partitioned: bool,
    /// of a partition, its bounds and those of the partitions it is a part of; empty for any other table
    bounds: String,
}

/// Tables by name.
pub(super) type Shapes = BTreeMap<TableName, Shape>;

/// A default partition has the bounds that its siblings leave, which change with each that is made: not compared.
const SHAPES: &str = "WITH RECURSIVE up AS ( \
         SELECT c.oid AS leaf, c.oid AS at, '' COLLATE \"C\" AS bounds FROM pg_class c \
         WHERE c.relkind IN ('r', 'p') AND c.relispartition \
         UNION ALL SELECT u.leaf, i.inhparent, (u.bounds || pg_get_partkeydef(i.inhparent) || ' ' || \
             pg_get_expr(a.relpartbound, a.oid) || '; ') COLLATE \"C\" \
         FROM up u JOIN pg_inherits i ON i.inhrelid = u.at JOIN pg_class a ON a.oid = u.at) \
     SELECT n.nspname::text, c.relname::text, c.relkind = 'p', COALESCE(b.bounds, '') \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     LEFT JOIN (SELECT DISTINCT ON (leaf) leaf, bounds FROM up ORDER BY leaf, length(bounds) DESC) b ON b.leaf = c.oid \
     WHERE c.relkind IN ('r', 'p')";

/// The shapes of all tables.
pub(super) async fn read(session: &Session) -> Result<Shapes> {
    let statement = format!("{SHAPES} AND {USER_RELATION}");
    let rows = session
        .client
        .query_typed(&statement, &[])
        .await
        .map_err(during("reading how tables are partitioned"))?;
    let shape = |row: &tokio_postgres::Row| {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let shape = Shape {
            partitioned: row.get(2),
            bounds: row.get(3),
        };
        (name, shape)
    };
    Ok(rows.iter().map(shape).collect())
}

/// `PG-PARTITIONS-DIFFER`, for `tables` of the source that are replicated each for itself.
pub(super) fn judge<'a>(
    tables: impl Iterator<Item = &'a TableName>,
    source: &Shapes,
    target: &Shapes,
    found: &mut Findings,
) {
    let differ: Vec<String> = tables
        .filter(|table| {
            let (Some(from), Some(to)) = (source.get(table), target.get(table)) else {
                return false;
            };
            to.partitioned || (!to.bounds.is_empty() && to.bounds != from.bounds)
        })
        .map(ToString::to_string)
        .collect();
    if differ.is_empty() {
        return;
    }
    found.add(
        ("PG-PARTITIONS-DIFFER", Severity::Fail),
        format!("{} tables", differ.len()),
        format!(
            "the target divides rows into partitions otherwise than the source, and would refuse some: {}",
            few(&differ)
        ),
        "run with --partitions root, which replicates a partitioned table as one table; or divide the target's as the \
         source's",
    );
}

/// `PG-PARTITION-ROOT`: what is known when partitioned tables are replicated as a whole.
pub(super) fn roots(session: &Session, selection: &TableSelection, tables: &[Relation]) -> Vec<Finding> {
    let mut found = Findings::new(Side::Source);
    let roots: Vec<String> = tables
        .iter()
        .filter(|table| table.kind == 'p')
        .map(|table| table.name.to_string())
        .collect();
    if selection.partitions == Partitions::Leaves || roots.is_empty() {
        return found.list;
    }
    let object = format!("{} partitioned tables", roots.len());
    if has_via_root(session.version) {
        found.add(
            ("PG-PARTITION-ROOT", Severity::Warn),
            object,
            format!(
                "are replicated as one table each: a TRUNCATE of a single partition, and rows that come or go by ATTACH, \
                 DETACH or DROP of a partition, are not in the log and not replicated: {}",
                few(&roots)
            ),
            "while the job runs, delete rows instead, or do the same to the target's rows; verify finds the difference",
        );
    } else {
        found.add(
            ("PG-PARTITION-ROOT", Severity::Fail),
            object,
            format!(
                "PostgreSQL {} cannot publish a partitioned table as one table, 13 and later can: {}",
                session.version,
                few(&roots)
            ),
            "run with --partitions leaves, into a target that is divided as the source is",
        );
    }
    found.list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_takes_what_its_peer_takes() {
        let name = TableName::new("s", "t");
        let judged = |from: (bool, &str), to: (bool, &str)| {
            let shapes = |(partitioned, bounds): (bool, &str)| {
                let bounds = bounds.to_owned();
                Shapes::from([(name.clone(), Shape { partitioned, bounds })])
            };
            let mut found = Findings::new(Side::Both);
            judge([&name].into_iter(), &shapes(from), &shapes(to), &mut found);
            !found.list.is_empty()
        };
        assert!(!judged((false, "a"), (false, "a")) && !judged((false, "a"), (false, "")));
        assert!(judged((false, "a"), (false, "b")) && judged((false, ""), (false, "b")));
        assert!(judged((false, ""), (true, "")));
    }
}
