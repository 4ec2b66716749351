//! The oracle: changes applied one by one, each by the source's own identity, with no planning at all.

use super::model::{ModelDatabase, ModelValue, RowId, Violation};
use super::text::{MODEL_TEXT, render};
use crate::batch::{ChangeEvent, Datum, Op};
use crate::model::{Identity, TableName, TableRole, TableSchema, TxnKind};

/// Applies one change as a statement of its own. Changes of heartbeat and marker tables and messages do
/// nothing.
///
/// # Errors
/// What the database objects to.
pub fn apply_event(db: &mut ModelDatabase, event: &ChangeEvent<'_>) -> Result<(), Violation> {
    if let Some(truncation) = event.truncation() {
        let users = truncation
            .tables
            .iter()
            .filter(|table| table.role == TableRole::User);
        let names: Vec<TableName> = users.map(|table| table.name.clone()).collect();
        return db.statement(|db| db.truncate(&names));
    }
    let Some(schema) = event.table().filter(|schema| schema.role == TableRole::User) else {
        return Ok(());
    };
    let columns = target_columns(db, schema)?;
    db.statement(|db| apply_row(db, event, schema, &columns))
}

/// For each source column, the target column and whether it can be written.
fn target_columns(db: &ModelDatabase, schema: &TableSchema) -> Result<Vec<(usize, bool)>, Violation> {
    let spec = db
        .spec(&schema.name)
        .ok_or_else(|| Violation::Unsupported(format!("{}: no such table", schema.name)))?;
    schema
        .columns
        .iter()
        .map(|column| {
            let found = spec.columns.iter().position(|c| c.name == column.name);
            found
                .map(|index| {
                    let generated = spec
                        .columns
                        .get(index)
                        .is_some_and(|c| c.generated_from.is_some());
                    (index, !generated)
                })
                .ok_or_else(|| Violation::Unsupported(format!("no column {}", column.name)))
        })
        .collect()
}

fn apply_row(
    db: &mut ModelDatabase,
    event: &ChangeEvent<'_>,
    schema: &TableSchema,
    columns: &[(usize, bool)],
) -> Result<(), Violation> {
    let table = &schema.name;
    let is_window = event.txn().is_some_and(|txn| txn.kind == TxnKind::NetWindow);
    match event.op() {
        Op::Insert => {
            let values = written(event, schema, columns, None)?;
            db.insert(table, &values).map(drop)
        }
        Op::Update => {
            let id = located(db, event, schema, columns)?.ok_or_else(|| missing(table))?;
            let old = db.row(table, id).cloned();
            let values = written(event, schema, columns, old.as_ref())?;
            db.update(table, id, &values)
        }
        Op::Delete => match located(db, event, schema, columns)? {
            Some(id) => db.delete(table, id),
            None if is_window => Ok(()),
            None => Err(missing(table)),
        },
        Op::Upsert => match located(db, event, schema, columns)? {
            Some(id) => {
                let old = db.row(table, id).cloned();
                let values = written(event, schema, columns, old.as_ref())?;
                db.update(table, id, &values)
            }
            None => {
                let values = written(event, schema, columns, None)?;
                db.insert(table, &values).map(drop)
            }
        },
        Op::Truncate | Op::Message => Ok(()),
    }
}

/// The row that the change's identity names; the first of several equal ones.
fn located(
    db: &ModelDatabase,
    event: &ChangeEvent<'_>,
    schema: &TableSchema,
    columns: &[(usize, bool)],
) -> Result<Option<RowId>, Violation> {
    let mut wanted = Vec::new();
    for (index, (target, writable)) in columns.iter().enumerate() {
        // What the target computes follows from the other columns and need not be what the source has.
        if !writable {
            continue;
        }
        let is_identity = schema.columns.get(index).is_some_and(|column| column.identity);
        match schema.identity {
            Identity::Key if !is_identity => continue,
            Identity::Key | Identity::Full => {}
            Identity::Nothing => return Err(Violation::Unsupported("no identity".into())),
        }
        match value_of(event.identity(index), schema, index, None)? {
            Some(value) => wanted.push((*target, value)),
            None => return Err(Violation::Unsupported("an identity column is unknown".into())),
        }
    }
    Ok(db.find(&schema.name, &wanted).first().copied())
}

/// The values that the new image gives to columns that can be written.
fn written(
    event: &ChangeEvent<'_>,
    schema: &TableSchema,
    columns: &[(usize, bool)],
    old: Option<&Vec<ModelValue>>,
) -> Result<Vec<(usize, ModelValue)>, Violation> {
    let mut values = Vec::new();
    for (index, (target, writable)) in columns.iter().enumerate() {
        let before = old.and_then(|row| row.get(*target));
        if *writable && let Some(value) = value_of(event.after(index), schema, index, before)? {
            values.push((*target, value));
        }
    }
    Ok(values)
}

/// The value that a cell gives; `None` where it gives none.
pub(super) fn value_of(
    datum: Datum<'_>,
    schema: &TableSchema,
    column: usize,
    before: Option<&ModelValue>,
) -> Result<Option<ModelValue>, Violation> {
    let unsupported = |what: String| Violation::Unsupported(format!("{}: {what}", schema.name));
    match datum {
        Datum::Null => Ok(Some(None)),
        Datum::Unchanged | Datum::Absent => Ok(None),
        Datum::Patch(suffix) => {
            let old = before
                .cloned()
                .flatten()
                .ok_or_else(|| unsupported("a patch without an old value".into()))?;
            Ok(Some(Some([old.as_slice(), suffix].concat())))
        }
        Datum::Bytes(bytes) => {
            let described = schema
                .columns
                .get(column)
                .ok_or_else(|| unsupported(format!("no column {column}")))?;
            // The models' own text passes through; all else goes by way of its typed value.
            if described.encoding == MODEL_TEXT {
                return Ok(Some(Some(bytes.to_vec())));
            }
            let value = schema
                .reader
                .value(described, bytes)
                .and_then(|value| render(&value))
                .map_err(|error| unsupported(error.to_string()))?;
            Ok(Some(value))
        }
    }
}

fn missing(table: &TableName) -> Violation {
    Violation::Missing { table: table.clone() }
}
