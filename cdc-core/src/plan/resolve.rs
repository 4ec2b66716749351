//! From a source's table version to the target table it is applied to: columns by name, the key that locates
//! rows, and whether the table's changes may be merged. Kept across plans until source or target change.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::facts::{TargetCatalog, TargetTable};
use super::types::PlannedTable;
use crate::error::{Error, Kind, Result};
use crate::model::{Identity, TableName, TableSchema};

/// What a table's facts allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mergeability {
    /// The net change of each key can be found.
    Keyed,
    /// Keys cannot be told apart by their bytes, or do not identify one row. Inserts still commute.
    InsertsOnly,
    /// Sets were found to violate a constraint halfway: the table's own order is kept.
    Ordered,
    /// A trigger or foreign key sees the order, also between tables.
    OrderVisible,
}

/// A planned table with what the planner derives from it.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) planned: Arc<PlannedTable>,
    pub(super) merge: Mergeability,
    /// columns an update may set: written ones outside the locator
    pub(super) settable: Vec<usize>,
    /// whether the target has a column to write that the source does not send: an insert would reset it
    pub(super) target_has_more: bool,
    /// whether the catalog marks the table as one whose sets violate constraints
    pub(super) marked_ordered: bool,
    /// whether a policy decides its conflicts. What becomes of a change then depends on what the target has at that
    /// moment, so that changes of one key are merged only where no conflict could tell the difference.
    pub(super) decides: bool,
}

#[derive(Debug)]
struct Entry {
    resolved: Arc<Resolved>,
    /// the source's handle seen last, to recognise it without comparing shapes
    handle: Arc<TableSchema>,
    /// the plan that last used the table, and its number there
    plan: u64,
    number: usize,
}

/// How a table relates to the plan being made.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// It has a number in the plan already.
    Placed(usize),
    /// It is to be added.
    New,
    /// It is to be added, and another shape of the same table is in the plan: what came before must be
    /// applied before.
    NewShape,
}

/// Resolved tables by name.
#[derive(Debug)]
pub(super) struct Resolver {
    catalog: Arc<TargetCatalog>,
    generation: u64,
    /// Looked up for every table of every piece: with the standard hasher that was a sixth of a plan of 1,000 tables.
    entries: HashMap<TableName, Entry, RandomState>,
    plan: u64,
}

impl Resolver {
    pub(super) fn new(catalog: Arc<TargetCatalog>) -> Self {
        Self {
            generation: catalog.generation(),
            catalog,
            entries: HashMap::default(),
            plan: 0,
        }
    }

    /// Starts a plan: numbers of the last one no longer count, nor does anything derived from former facts.
    pub(super) fn start_plan(&mut self) {
        self.plan += 1;
        let generation = self.catalog.generation();
        if generation != self.generation {
            self.generation = generation;
            self.entries.clear();
        }
    }

    /// Where `source` stands in the current plan.
    pub(super) fn placement(&self, source: &Arc<TableSchema>) -> Placement {
        match self.entries.get(&source.name) {
            Some(entry) if entry.plan == self.plan => {
                if Arc::ptr_eq(&entry.handle, source) || entry.handle.same_shape(source) {
                    Placement::Placed(entry.number)
                } else {
                    Placement::NewShape
                }
            }
            _ => Placement::New,
        }
    }

    /// Resolves `source` and notes that it has `number` in the current plan.
    pub(super) fn place(&mut self, source: &Arc<TableSchema>, number: usize) -> Result<Arc<Resolved>> {
        if let Some(entry) = self.entries.get_mut(&source.name)
            && (Arc::ptr_eq(&entry.handle, source) || entry.handle.same_shape(source))
        {
            entry.handle = Arc::clone(source);
            entry.plan = self.plan;
            entry.number = number;
            return Ok(Arc::clone(&entry.resolved));
        }
        let (target, ordered) = self.catalog.get(&source.name).ok_or_else(|| {
            Error::new(Kind::Schema, "the target has no such table")
                .object(format!("table {}", source.name))
                .remedy("create it on the target with the source's columns, or exclude it from the job")
        })?;
        let resolved = Arc::new(resolve(source, target, ordered)?);
        self.entries.insert(
            source.name.clone(),
            Entry {
                resolved: Arc::clone(&resolved),
                handle: Arc::clone(source),
                plan: self.plan,
                number,
            },
        );
        Ok(resolved)
    }
}

fn resolve(source: &Arc<TableSchema>, target: Arc<TargetTable>, marked_ordered: bool) -> Result<Resolved> {
    let columns = source
        .columns
        .iter()
        .map(|column| {
            target.column(&column.name).ok_or_else(|| {
                Error::new(
                    Kind::Schema,
                    "the target's table lacks a column that the source sends",
                )
                .object(format!("table {}, column {}", source.name, column.name))
                .remedy(
                    "add the column to the target's table. If the source has no column of this name any more, it was \
                     renamed or dropped since: give the target's column this name, run again, and change it when the \
                     stream stops at the later name",
                )
            })
        })
        .collect::<Result<Vec<usize>>>()?;
    let is_generated = |column: usize| target.columns.get(column).is_some_and(|c| c.generated);
    let written: Vec<usize> = (0..columns.len())
        .filter(|index| columns.get(*index).is_some_and(|column| !is_generated(*column)))
        .collect();
    let target_has_more =
        (0..target.columns.len()).any(|column| !is_generated(column) && !columns.contains(&column));
    let (locator, locator_is_unique) = locator(source, &target, &columns);
    let comparable = locator_is_unique
        && locator.iter().all(|index| {
            columns
                .get(*index)
                .and_then(|column| target.columns.get(*column))
                .is_some_and(|column| column.byte_comparable)
        });
    let decides = target.policy.decides();
    if decides {
        expect_decidable(source, &target, locator_is_unique)?;
    }
    // A row in the way by another unique key may be gone by the end of the set: only the order tells.
    let needs_order = decides && (target.unique_constraints > 1 || !comparable);
    let merge = if target.order_visible {
        Mergeability::OrderVisible
    } else if marked_ordered || needs_order {
        Mergeability::Ordered
    } else if comparable {
        Mergeability::Keyed
    } else {
        Mergeability::InsertsOnly
    };
    let settable = written
        .iter()
        .copied()
        .filter(|column| !locator.contains(column))
        .collect();
    Ok(Resolved {
        planned: Arc::new(PlannedTable {
            source: Arc::clone(source),
            target,
            columns,
            written,
            locator,
            locator_is_unique,
        }),
        merge,
        settable,
        target_has_more,
        marked_ordered,
        decides,
    })
}

/// Whether a policy can decide about the table's rows.
fn expect_decidable(source: &TableSchema, target: &TargetTable, locator_is_unique: bool) -> Result<()> {
    let policy = target.policy.name();
    let (message, remedy) = if !locator_is_unique {
        (
            format!("policy {policy} needs a key of the target that the source's changes carry"),
            "give the target's table the source's primary key, or leave the policy at stop",
        )
    } else if target.partitioned {
        (
            format!("policy {policy} decides about rows of single tables, not of a partitioned one"),
            "leave the policy at stop, or replicate the partitions each for itself",
        )
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Schema, message)
        .object(format!("table {}", source.name))
        .remedy(remedy))
}

/// The source columns that locate a row, and whether they are a key of the target: the first key of the target
/// that the source's old images can be relied on to carry.
fn locator(source: &TableSchema, target: &TargetTable, columns: &[usize]) -> (Vec<usize>, bool) {
    let carried = |index: &usize| match source.identity {
        Identity::Key => source.columns.get(*index).is_some_and(|column| column.identity),
        // A full old image has every column; without identity only inserts come, which have every column too.
        Identity::Full | Identity::Nothing => true,
    };
    let keys = target.keys.iter().filter(|key| key.primary);
    let key = keys
        .chain(target.keys.iter().filter(|key| !key.primary))
        .filter(|key| !key.columns.is_empty())
        .find_map(|key| {
            key.columns
                .iter()
                .map(|wanted| columns.iter().position(|column| column == wanted).filter(carried))
                .collect::<Option<Vec<usize>>>()
        });
    match key {
        Some(key) => (key, true),
        // A generated column follows from the others, and its values need not be the source's.
        None => {
            let generated = |index: &usize| {
                let column = columns.get(*index).and_then(|column| target.columns.get(*column));
                column.is_some_and(|column| column.generated)
            };
            let all = (0..columns.len()).filter(carried);
            (all.filter(|index| !generated(index)).collect(), false)
        }
    }
}
