//! The order in which rows are written, and how many at a time.
//!
//! Where the target checks foreign keys, a row is removed after those that refer to it and comes before them. So all
//! that is surplus goes first, tables that refer before those they refer to; then the rest in the opposite order.

use std::collections::{BTreeMap, HashMap, VecDeque};

use cdc_core::TableName;
use cdc_core::engine::TableInfo;
use cdc_core::plan::TargetTable;
use cdc_core::repair::TextRow;

use crate::verify::Differing;

/// Rows of a transaction at most.
const MOST_ROWS: usize = 500;
/// What the rows of a transaction should take at most, by the table's mean.
const MOST_BYTES: u64 = 8 << 20;

/// Rows of a table that are looked at and written in one transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) differing: &'a Differing,
    pub(super) rows: &'a [TextRow],
}

/// Divides the rows, in the order in which they are written.
pub(super) fn divide<'a>(
    differing: &'a BTreeMap<TableName, Differing>,
    tables: &[TargetTable],
    sizes: &[TableInfo],
) -> VecDeque<Part<'a>> {
    let depths = depths(tables);
    let mut ordered: Vec<&Differing> = differing.values().collect();
    ordered.sort_by_key(|one| depths.get(&one.plan.table).copied().unwrap_or(0));
    let rows_of: HashMap<&TableName, usize> = sizes.iter().map(|table| (&table.name, rows(table))).collect();
    let mut parts = VecDeque::new();
    let mut add = |one: &'a Differing, rows: &'a [TextRow]| {
        let at_once = rows_of.get(&one.plan.table).copied().unwrap_or(MOST_ROWS);
        parts.extend(rows.chunks(at_once).map(|rows| Part { differing: one, rows }));
    };
    for one in ordered.iter().rev() {
        add(one, &one.extra);
    }
    for one in &ordered {
        add(one, &one.different);
        add(one, &one.missing);
    }
    parts
}

/// How many rows of a table are taken at once.
fn rows(table: &TableInfo) -> usize {
    // What was never counted is estimated as no row.
    if table.bytes <= MOST_BYTES {
        return MOST_ROWS;
    }
    let mean = table.bytes / table.estimated_rows.max(1);
    let fit = MOST_BYTES / mean.max(1);
    usize::try_from(fit).unwrap_or(MOST_ROWS).clamp(1, MOST_ROWS)
}

/// How many tables a table refers to one through the other; tables that refer to each other are as deep as found first.
fn depths(tables: &[TargetTable]) -> HashMap<TableName, usize> {
    let mut depths: HashMap<TableName, usize> = tables.iter().map(|table| (table.name.clone(), 0)).collect();
    // A chain is no longer than there are tables; with a circle the rounds end all the same.
    for _ in 0..tables.len() {
        let mut settled = true;
        for table in tables {
            let others = table.references.iter().filter(|other| **other != table.name);
            let deepest = others
                .filter_map(|other| depths.get(other))
                .max()
                .map_or(0, |depth| depth + 1);
            if let Some(depth) = depths.get_mut(&table.name)
                && *depth < deepest
                && deepest <= tables.len()
            {
                *depth = deepest;
                settled = false;
            }
        }
        if settled {
            break;
        }
    }
    depths
}

#[cfg(test)]
mod tests {
    use cdc_core::conflict::Policy;

    use super::*;

    fn table(name: &str, references: &[&str]) -> TargetTable {
        TargetTable {
            name: TableName::new("s", name),
            columns: Vec::new(),
            keys: Vec::new(),
            unique_constraints: 0,
            policy: Policy::Stop,
            order_visible: true,
            cascaded: false,
            sees_others: false,
            acts_on_others: false,
            partitioned: false,
            references: references.iter().map(|name| TableName::new("s", *name)).collect(),
        }
    }

    #[test]
    fn what_is_referred_to_comes_first() {
        let tables = [
            table("line", &["order", "item"]),
            table("order", &["customer", "order"]),
            table("customer", &[]),
            table("item", &["elsewhere"]),
        ];
        let depths = depths(&tables);
        let depth = |name: &str| depths[&TableName::new("s", name)];
        assert_eq!(
            [depth("customer"), depth("item"), depth("order"), depth("line")],
            [0, 0, 1, 2]
        );
    }

    #[test]
    fn a_circle_ends() {
        let depths = depths(&[table("a", &["b"]), table("b", &["a"]), table("c", &["b"])]);
        assert_eq!(depths.len(), 3);
    }

    #[test]
    fn wide_rows_go_a_few_at_a_time() {
        let sized = |bytes, estimated_rows| {
            rows(&TableInfo {
                name: TableName::new("s", "t"),
                columns: Vec::new(),
                primary_key: Vec::new(),
                unique_keys: Vec::new(),
                opaque_constraints: Vec::new(),
                fixed_columns: Vec::new(),
                leaves_out_values: false,
                identity: String::new(),
                has_identity: true,
                estimated_rows,
                bytes,
            })
        };
        assert_eq!(sized(8192, 0), MOST_ROWS);
        assert_eq!(sized(1 << 30, 1 << 20), MOST_ROWS);
        assert_eq!(sized(1 << 30, 1 << 10), 8);
        assert_eq!(sized(1 << 40, 1), 1);
    }
}
