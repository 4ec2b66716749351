//! Which of a job's tables refer to which, where the target checks it while rows come in: the order of the copy, and
//! what has no order.

use std::collections::{BTreeMap, BTreeSet};

use cdc_core::TableName;
use cdc_core::plan::TargetTable;

/// The foreign keys between the tables of a job that the target checks for our session.
#[derive(Debug, Default)]
pub(crate) struct References {
    parents: BTreeMap<TableName, BTreeSet<TableName>>,
}

impl References {
    /// Those among `tables`. Where our session checks none, there are none.
    pub(crate) fn of(tables: &[TargetTable]) -> Self {
        let names: BTreeSet<&TableName> = tables.iter().map(|table| &table.name).collect();
        let parents = tables
            .iter()
            .filter(|table| table.order_visible && !table.references.is_empty())
            .map(|table| {
                let known = table.references.iter().filter(|parent| names.contains(parent));
                (table.name.clone(), known.cloned().collect())
            })
            .collect();
        Self { parents }
    }

    /// Whether rows of the table refer to others of it, so that it must be copied as a whole.
    pub(crate) fn to_itself(&self, table: &TableName) -> bool {
        self.parents
            .get(table)
            .is_some_and(|parents| parents.contains(table))
    }

    /// Whether all tables that `table` refers to, itself aside, are as `complete` says.
    pub(crate) fn met(&self, table: &TableName, complete: impl Fn(&TableName) -> bool) -> bool {
        let parents = self.parents.get(table).into_iter().flatten();
        parents.filter(|parent| *parent != table).all(complete)
    }

    /// The tables that refer to one of `tables`, also by way of others, and are not among them.
    pub(crate) fn referring(&self, tables: &BTreeSet<TableName>) -> BTreeSet<TableName> {
        let mut found = BTreeSet::new();
        loop {
            let hit = |parent: &TableName| tables.contains(parent) || found.contains(parent);
            let more: Vec<TableName> = self
                .parents
                .iter()
                .filter(|(table, parents)| !hit(table) && parents.iter().any(hit))
                .map(|(table, _)| table.clone())
                .collect();
            if more.is_empty() {
                return found;
            }
            found.extend(more);
        }
    }

    /// The tables that hang together with others, in groups that do not.
    pub(crate) fn families(&self) -> Vec<BTreeSet<TableName>> {
        let mut families: Vec<BTreeSet<TableName>> = Vec::new();
        for (table, parents) in &self.parents {
            let mut family: BTreeSet<TableName> = parents.iter().chain([table]).cloned().collect();
            families.retain(|other| {
                let apart = family.is_disjoint(other);
                if !apart {
                    family.extend(other.iter().cloned());
                }
                apart
            });
            families.push(family);
        }
        families.retain(|family| family.len() > 1);
        families
    }

    /// The tables that cannot be brought into an order: each refers, by way of others, to itself.
    pub(crate) fn circular(&self) -> BTreeSet<TableName> {
        let mut left: BTreeSet<&TableName> = self.parents.keys().collect();
        // First those that refer to nothing that is left, then those that nothing left refers to.
        loop {
            let before = left.len();
            let free = |table: &TableName, left: &BTreeSet<&TableName>| {
                self.met(table, |parent| !left.contains(parent))
            };
            let referred = |table: &TableName, left: &BTreeSet<&TableName>| {
                left.iter().any(|child| {
                    *child != table
                        && self
                            .parents
                            .get(*child)
                            .is_some_and(|parents| parents.contains(table))
                })
            };
            let kept = left
                .iter()
                .filter(|table| !free(table, &left) && referred(table, &left))
                .copied()
                .collect();
            left = kept;
            if left.len() == before {
                return left.into_iter().cloned().collect();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cdc_core::conflict::Policy;

    use super::*;

    fn name(name: &str) -> TableName {
        TableName::new("s", name)
    }

    fn table(name_of: &str, parents: &[&str], checked: bool) -> TargetTable {
        TargetTable {
            name: name(name_of),
            columns: Vec::new(),
            keys: Vec::new(),
            unique_constraints: 0,
            order_visible: checked,
            cascaded: false,
            sees_others: false,
            acts_on_others: false,
            partitioned: false,
            policy: Policy::Stop,
            references: parents.iter().map(|parent| name(parent)).collect(),
        }
    }

    #[test]
    fn a_table_waits_for_those_it_refers_to() {
        let references = References::of(&[
            table("a", &[], true),
            table("b", &["a", "b", "elsewhere"], true),
            table("free", &["a"], false),
        ]);
        let waits = |table: &str| !references.met(&name(table), |_| false);
        assert!(!waits("a") && waits("b") && !waits("free"));
        assert!(references.met(&name("b"), |parent| *parent == name("a")));
        assert!(references.to_itself(&name("b")) && !references.to_itself(&name("a")));
        assert!(references.circular().is_empty());
    }

    #[test]
    fn what_refers_to_a_table_is_found_through_others() {
        let references = References::of(&[
            table("a", &["a"], true),
            table("b", &["a"], true),
            table("c", &["b"], true),
            table("free", &["a"], false),
            table("other", &[], true),
        ]);
        let of = |names: &[&str]| references.referring(&names.iter().copied().map(name).collect());
        assert_eq!(of(&["a"]), BTreeSet::from(["b", "c"].map(name)));
        assert_eq!(of(&["a", "b"]), BTreeSet::from([name("c")]));
        assert!(of(&["c", "other"]).is_empty());
    }

    #[test]
    fn families_are_what_hangs_together() {
        let references = References::of(&[
            table("a", &[], true),
            table("b", &["a"], true),
            table("c", &["d"], true),
            table("d", &["b"], true),
            table("self", &["self"], true),
            table("x", &["y"], true),
            table("y", &[], true),
        ]);
        let sizes: BTreeSet<usize> = references.families().iter().map(BTreeSet::len).collect();
        assert_eq!((references.families().len(), sizes), (2, BTreeSet::from([2, 4])));
    }

    #[test]
    fn only_the_circle_is_circular() {
        let references = References::of(&[
            table("parent", &[], true),
            table("one", &["two", "parent"], true),
            table("two", &["three"], true),
            table("three", &["one"], true),
            table("child", &["one"], true),
        ]);
        let circle = ["one", "two", "three"].map(name);
        assert_eq!(references.circular(), BTreeSet::from(circle));
    }
}
