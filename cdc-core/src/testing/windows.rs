//! Net windows: what change tracking says of a range of a log.

use std::collections::{BTreeMap, BTreeSet};

use super::capture::SourceDatabase;
use super::change::{OldImage, SourceCell, SourceChange, SourceTxn};
use super::model::{Contents, ModelRow, ModelValue};
use super::rng::Rng;
use crate::batch::Op;
use crate::model::TxnKind;

type Key = Vec<ModelValue>;

/// The net change of every primary key that transactions after `from` and up to `to` touched: the row as it is
/// at `to`, or its delete. Deletes first, otherwise in no order, so that parts of a window can be applied one
/// after the other. `None` when nothing was touched, or there is no transaction at `to`.
/// Tables without primary key are left out.
pub fn net_window(source: &SourceDatabase, from: u64, to: u64, rng: &mut Rng) -> Option<SourceTxn> {
    let last = source.txns().iter().rposition(|txn| txn.offset <= to)?;
    let end = source.state(last + 1)?;
    let commit_time_micros = source.txns().get(last)?.commit_time_micros;
    let mut touched: BTreeMap<usize, BTreeSet<Key>> = BTreeMap::new();
    for (number, txn) in source.txns().iter().enumerate() {
        if txn.offset > from && txn.offset <= to {
            for change in &txn.changes {
                note(source, change, source.state(number)?, &mut touched);
            }
        }
    }
    let mut changes: Vec<SourceChange> = touched
        .iter()
        .flat_map(|(table, keys)| keys.iter().map(|key| net_change(source, *table, key, end)))
        .collect();
    if changes.is_empty() {
        return None;
    }
    rng.shuffle(&mut changes);
    changes.sort_by_key(|change| !matches!(change, SourceChange::Row { op: Op::Delete, .. }));
    Some(SourceTxn {
        offset: source.txns().get(last)?.offset,
        kind: TxnKind::NetWindow,
        commit_time_micros,
        changes,
    })
}

fn primary_key(source: &SourceDatabase, table: usize) -> &[usize] {
    source
        .tables()
        .get(table)
        .map_or(&[], |table| table.spec.primary_columns())
}

/// Adds the keys that a change touches; `before` is the state before its transaction.
fn note(
    source: &SourceDatabase,
    change: &SourceChange,
    before: &Contents,
    touched: &mut BTreeMap<usize, BTreeSet<Key>>,
) {
    match change {
        SourceChange::Row {
            table,
            before: old,
            after: new,
            ..
        } => {
            let key = primary_key(source, *table);
            if key.is_empty() {
                return;
            }
            let keys = touched.entry(*table).or_default();
            let old = old.as_ref().map(|image| image.cells.as_slice());
            keys.extend(old.and_then(|cells| key_of(key, cells, None)));
            keys.extend(new.as_deref().and_then(|cells| key_of(key, cells, old)));
        }
        SourceChange::Truncate(tables) => {
            for table in tables {
                let key = primary_key(source, *table);
                let name = source.tables().get(*table).map(|table| &table.spec.name);
                let rows = name.and_then(|name| before.get(name));
                if !key.is_empty() {
                    let keys = touched.entry(*table).or_default();
                    keys.extend(rows.into_iter().flatten().map(|row| pick(key, row)));
                }
            }
        }
        SourceChange::Message => {}
    }
}

/// The key in an image; what it leaves out is as in the old one.
fn key_of(key: &[usize], cells: &[SourceCell], old: Option<&[SourceCell]>) -> Option<Key> {
    key.iter()
        .map(|column| match cells.get(*column)? {
            SourceCell::Value(text) => Some(Some(text.clone())),
            SourceCell::Null => Some(None),
            SourceCell::Unchanged | SourceCell::Absent | SourceCell::Patch(_) => match old?.get(*column)? {
                SourceCell::Value(text) => Some(Some(text.clone())),
                _ => None,
            },
        })
        .collect()
}

fn pick(key: &[usize], row: &ModelRow) -> Key {
    key.iter()
        .map(|column| row.get(*column).cloned().flatten())
        .collect()
}

fn net_change(source: &SourceDatabase, table: usize, key: &Key, end: &Contents) -> SourceChange {
    let columns = primary_key(source, table);
    let spec = source.tables().get(table).map(|table| &table.spec);
    let rows = spec.and_then(|spec| end.get(&spec.name));
    let row = rows.into_iter().flatten().find(|row| pick(columns, row) == *key);
    let cell = |value: &ModelValue| value.clone().map_or(SourceCell::Null, SourceCell::Value);
    match row {
        Some(row) => SourceChange::Row {
            table,
            op: Op::Upsert,
            before: None,
            after: Some(row.iter().map(cell).collect()),
        },
        None => {
            let width = spec.map_or(0, |spec| spec.columns.len());
            let mut cells = vec![SourceCell::Absent; width];
            for (column, value) in columns.iter().zip(key) {
                if let Some(slot) = cells.get_mut(*column) {
                    *slot = cell(value);
                }
            }
            SourceChange::Row {
                table,
                op: Op::Delete,
                before: Some(OldImage { cells, full: false }),
                after: None,
            }
        }
    }
}
