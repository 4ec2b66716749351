//! The workload's own account of what it committed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::schema::{TABLES, Table};
use crate::table::TableName;

/// Row changes of one table, counted as logical decoding sends them: a changed key is one update, a move
/// between partitions is a delete in one and an insert in the other, a cascaded delete is a delete, a
/// TRUNCATE is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Inserted rows.
    pub inserts: u64,
    /// Updated rows.
    pub updates: u64,
    /// Deleted rows.
    pub deletes: u64,
    /// TRUNCATEs of the table.
    pub truncates: u64,
}

impl Changes {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.inserts + self.updates + self.deletes + self.truncates
    }

    fn add(&mut self, other: &Changes) {
        self.inserts += other.inserts;
        self.updates += other.updates;
        self.deletes += other.deletes;
        self.truncates += other.truncates;
    }
}

/// What the workload has committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Committed transactions with at least one row change.
    pub transactions: u64,
    /// Committed transactions that happened to hit no row.
    pub empty: u64,
    /// Transactions that the workload rolled back on purpose.
    pub rolled_back: u64,
    /// Transactions that the server refused for a conflict with another writer: deadlock, unique key, foreign
    /// key, lock timeout.
    pub refused: u64,
    /// Connections lost and replaced.
    pub reconnects: u64,
    /// Changes by table; only tables with changes.
    pub tables: BTreeMap<TableName, Changes>,
    /// Time since the start.
    pub elapsed: Duration,
}

impl Totals {
    /// The row changes of all tables.
    pub fn changes(&self) -> u64 {
        self.tables.values().map(Changes::total).sum()
    }

    /// The changes of one table, zeros if there were none.
    pub fn table(&self, schema: &str, name: &str) -> Changes {
        let key = TableName {
            schema: schema.to_owned(),
            name: name.to_owned(),
        };
        self.tables.get(&key).copied().unwrap_or_default()
    }
}

/// What a statement's row count means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing is counted: transaction control, locks, statements that a savepoint takes back.
    None,
    Insert(Table),
    Update(Table),
    /// Also for a `SELECT … FOR UPDATE` of rows that a cascade is certain to delete after it.
    Delete(Table),
    /// Rows that move between partitions.
    Move(Table, Table),
    Truncate(Table),
}

/// One writer's counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) transactions: u64,
    pub(super) empty: u64,
    pub(super) rolled_back: u64,
    pub(super) refused: u64,
    pub(super) reconnects: u64,
    tables: [Changes; TABLES.len()],
}

impl Tally {
    /// Books a committed transaction: each effect with the row count of its statement.
    pub(super) fn commit(&mut self, effects: impl IntoIterator<Item = (Effect, u64)>) {
        let mut changes = 0;
        for (effect, rows) in effects {
            let mut book = |table: Table, change: Changes| {
                changes += change.total();
                self.tables[table as usize].add(&change);
            };
            match effect {
                Effect::None => {}
                Effect::Insert(t) => book(
                    t,
                    Changes {
                        inserts: rows,
                        ..Changes::default()
                    },
                ),
                Effect::Update(t) => book(
                    t,
                    Changes {
                        updates: rows,
                        ..Changes::default()
                    },
                ),
                Effect::Delete(t) => book(
                    t,
                    Changes {
                        deletes: rows,
                        ..Changes::default()
                    },
                ),
                Effect::Move(from, to) => {
                    book(
                        from,
                        Changes {
                            deletes: rows,
                            ..Changes::default()
                        },
                    );
                    book(
                        to,
                        Changes {
                            inserts: rows,
                            ..Changes::default()
                        },
                    );
                }
                // The server tells no row count for it.
                Effect::Truncate(t) => book(
                    t,
                    Changes {
                        truncates: 1,
                        ..Changes::default()
                    },
                ),
            }
        }
        if changes == 0 {
            self.empty += 1;
        } else {
            self.transactions += 1;
        }
    }

    pub(super) fn add_to(&self, totals: &mut Totals) {
        totals.transactions += self.transactions;
        totals.empty += self.empty;
        totals.rolled_back += self.rolled_back;
        totals.refused += self.refused;
        totals.reconnects += self.reconnects;
        for ((schema, name), changes) in TABLES.iter().zip(&self.tables) {
            if changes.total() > 0 {
                let key = TableName {
                    schema: (*schema).to_owned(),
                    name: (*name).to_owned(),
                };
                totals.tables.entry(key).or_default().add(changes);
            }
        }
    }
}
