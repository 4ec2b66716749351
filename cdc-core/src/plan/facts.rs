//! What planning must know of the target's tables: keys, constraints, triggers. Always the target's own facts,
//! never the source's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::conflict::Policy;
use crate::model::TableName;

/// One column of a target table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetColumn {
    /// name
    pub name: String,
    /// the product's name of the type without modifiers, fit for a cast
    pub type_name: String,
    /// whether the server computes it and refuses values
    pub generated: bool,
    /// whether equality of values of its type is equality of their bytes in the source's text form
    pub byte_comparable: bool,
    /// whether its type has an equality operator at all
    pub has_equality: bool,
}

/// A unique constraint or index that can locate rows: not partial, not on expressions, valid, columns NOT NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueKey {
    /// its columns, numbers into [`TargetTable::columns`]
    pub columns: Vec<usize>,
    /// whether it is the primary key
    pub primary: bool,
}

/// Facts about one target table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetTable {
    /// name
    pub name: TableName,
    /// columns in order
    pub columns: Vec<TargetColumn>,
    /// keys that can locate rows, primary key first
    pub keys: Vec<UniqueKey>,
    /// unique and exclusion constraints of any kind, the primary key included
    pub unique_constraints: usize,
    /// whether a trigger or rule would fire for our session, or a foreign key from or to this table be checked:
    /// order is visible
    pub order_visible: bool,
    /// whether a trigger or rule would fire for our session: it may read or write any table
    pub sees_others: bool,
    /// whether an action of its foreign keys (CASCADE, SET NULL) takes place on the target too: a row may be gone, or
    /// have its new key, before the source's own change of it comes
    pub cascaded: bool,
    /// whether an action of a foreign key that refers to it takes place on the target: with a row of it go rows of others
    pub acts_on_others: bool,
    /// whether its rows lie in partitions, which are no tables of the job
    pub partitioned: bool,
    /// who wins a conflict
    pub policy: Policy,
    /// tables that its foreign keys refer to, whether or not our session checks them: the order in which net
    /// windows delete and upsert
    pub references: Vec<TableName>,
}

impl TargetTable {
    /// The place of the column called `name`.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

/// The target's tables as last read, shared by plan and apply threads.
#[derive(Debug, Default)]
pub struct TargetCatalog {
    tables: RwLock<HashMap<TableName, Entry>>,
    generation: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    table: Arc<TargetTable>,
    ordered: bool,
}

impl TargetCatalog {
    /// A catalog of these tables.
    pub fn new(tables: Vec<TargetTable>) -> Self {
        let catalog = Self::default();
        catalog.replace(tables);
        catalog
    }

    /// Replaces all facts after the target's catalog changed; what was learned about order is kept.
    pub fn replace(&self, tables: Vec<TargetTable>) {
        let mut held = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let ordered: Vec<TableName> = held
            .iter()
            .filter(|(_, entry)| entry.ordered)
            .map(|(name, _)| name.clone())
            .collect();
        *held = tables
            .into_iter()
            .map(|table| {
                let ordered = ordered.contains(&table.name);
                (
                    table.name.clone(),
                    Entry {
                        table: Arc::new(table),
                        ordered,
                    },
                )
            })
            .collect();
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Counts the times the facts changed; whoever derives something from them looks here whether it still
    /// holds.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The facts of a table and whether it is to be applied in order.
    pub fn get(&self, name: &TableName) -> Option<(Arc<TargetTable>, bool)> {
        let held = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        held.get(name)
            .map(|entry| (Arc::clone(&entry.table), entry.ordered))
    }

    /// Remembers that set statements on this table meet unique violations.
    pub fn set_ordered(&self, name: &TableName) {
        let mut held = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = held.get_mut(name) {
            entry.ordered = true;
        }
        self.generation.fetch_add(1, Ordering::Release);
    }
}
