//! Executing a plan on a model as a server would: each set is one statement that meets its rows in an order of
//! the server's choosing, uniqueness checked row by row.

use super::model::{ModelDatabase, ModelValue, RowId, Violation};
use super::oracle::value_of;
use super::rng::Rng;
use crate::batch::{ChangeEvent, Datum, Op};
use crate::error::{Action, Error, Kind, Result};
use crate::model::{TableName, TxnKind};
use crate::plan::{ApplyPlan, Image, NetTable, OrderedRow, PlannedTable, Step};

/// Executes all steps; the number of rows changed.
pub(super) fn execute(db: &mut ModelDatabase, plan: &ApplyPlan, rng: &mut Rng) -> Result<u64> {
    let mut rows = 0;
    for step in &plan.steps {
        rows += match step {
            Step::Net(net) => Sets::new(plan, net, rng)?.run(db)?,
            Step::Ordered(ordered) => {
                for row in ordered {
                    run_ordered(db, plan, *row)?;
                }
                ordered.len() as u64
            }
            Step::Truncate { tables, .. } => {
                let names = tables
                    .iter()
                    .map(|number| planned(plan, *number).map(|table| table.source.name.clone()))
                    .collect::<Result<Vec<TableName>>>()?;
                db.statement(|db| db.truncate(&names)).map_err(in_order)?;
                0
            }
        };
    }
    Ok(rows)
}

fn planned(plan: &ApplyPlan, number: usize) -> Result<&PlannedTable> {
    plan.tables
        .get(number)
        .map(|table| &**table)
        .ok_or_else(|| Error::bug("a plan without the table that it names"))
}

/// The sets of one table.
struct Sets<'a> {
    plan: &'a ApplyPlan,
    net: &'a NetTable,
    table: &'a PlannedTable,
    rng: &'a mut Rng,
}

impl<'a> Sets<'a> {
    fn new(plan: &'a ApplyPlan, net: &'a NetTable, rng: &'a mut Rng) -> Result<Self> {
        Ok(Self {
            plan,
            net,
            table: planned(plan, net.table)?,
            rng,
        })
    }

    fn run(&mut self, db: &mut ModelDatabase) -> Result<u64> {
        let net = self.net;
        self.delete(db, &net.deletes, true)?;
        self.delete(db, &net.deletes_if_present, false)?;
        for set in &net.updates {
            self.update(db, &set.columns, &set.rows)?;
        }
        self.insert(db, &net.inserts)?;
        self.upsert(db, &net.upserts)?;
        Ok(net.operations())
    }

    fn shuffled<T: Clone>(&mut self, items: &[T]) -> Vec<T> {
        let mut items = items.to_vec();
        self.rng.shuffle(&mut items);
        items
    }

    fn delete(&mut self, db: &mut ModelDatabase, images: &[Image], must_exist: bool) -> Result<()> {
        let table = &self.table.source.name;
        let images = self.shuffled(images);
        set_statement(db, |db| {
            for image in images {
                match self.locate(db, image)? {
                    Some(id) => db.delete(table, id)?,
                    None if must_exist => return Err(missing(table)),
                    None => {}
                }
            }
            Ok(())
        })
    }

    fn update(&mut self, db: &mut ModelDatabase, columns: &[usize], rows: &[(Image, Image)]) -> Result<()> {
        let table = &self.table.source.name;
        let rows = self.shuffled(rows);
        set_statement(db, |db| {
            for (key, image) in rows {
                let id = self.locate(db, key)?.ok_or_else(|| missing(table))?;
                let values = self.values(image, columns)?;
                db.update(table, id, &values)?;
            }
            Ok(())
        })
    }

    fn insert(&mut self, db: &mut ModelDatabase, images: &[Image]) -> Result<()> {
        let images = self.shuffled(images);
        set_statement(db, |db| {
            for image in images {
                let values = self.values(image, &self.table.written)?;
                db.insert(&self.table.source.name, &values)?;
            }
            Ok(())
        })
    }

    fn upsert(&mut self, db: &mut ModelDatabase, images: &[Image]) -> Result<()> {
        let table = &self.table.source.name;
        let images = self.shuffled(images);
        set_statement(db, |db| {
            for image in images {
                let values = self.values(image, &self.table.written)?;
                match self.locate(db, image)? {
                    Some(id) => db.update(table, id, &values)?,
                    None => db.insert(table, &values).map(drop)?,
                }
            }
            Ok(())
        })
    }

    fn locate(&self, db: &ModelDatabase, image: Image) -> Result<Option<RowId>, Violation> {
        if !self.table.locator_is_unique {
            return Err(Violation::Unsupported("net changes without a unique key".into()));
        }
        locate(db, self.table, |column| self.plan.datum(image, column))
    }

    /// The values of columns that the image must know.
    fn values(&self, image: Image, columns: &[usize]) -> Result<Vec<(usize, ModelValue)>, Violation> {
        columns
            .iter()
            .map(|column| {
                let value = value_of(self.plan.datum(image, *column), &self.table.source, *column, None)?;
                let target = self.table.columns.get(*column).copied();
                value
                    .and_then(|value| target.map(|target| (target, value)))
                    .ok_or_else(|| Violation::Unsupported(format!("a set lacks column {column}")))
            })
            .collect()
    }
}

fn run_ordered(db: &mut ModelDatabase, plan: &ApplyPlan, row: OrderedRow) -> Result<()> {
    let table = planned(plan, row.table)?;
    let event = plan
        .event(row.row)
        .ok_or_else(|| Error::bug("a plan without the row that it names"))?;
    db.statement(|db| run_row(db, table, &event)).map_err(in_order)
}

fn run_row(db: &mut ModelDatabase, table: &PlannedTable, event: &ChangeEvent<'_>) -> Result<(), Violation> {
    let name = &table.source.name;
    let present = |db: &ModelDatabase| locate(db, table, |column| event.identity(column));
    match event.op() {
        Op::Insert => db.insert(name, &known(table, event, None)?).map(drop),
        Op::Update => {
            let id = present(db)?.ok_or_else(|| missing(name))?;
            let old = db.row(name, id).cloned();
            db.update(name, id, &known(table, event, old.as_deref())?)
        }
        Op::Delete => match present(db)? {
            Some(id) => db.delete(name, id),
            None if event.txn().is_some_and(|txn| txn.kind == TxnKind::NetWindow) => Ok(()),
            None => Err(missing(name)),
        },
        Op::Upsert => match present(db)? {
            Some(id) => db.update(name, id, &known(table, event, None)?),
            None => db.insert(name, &known(table, event, None)?).map(drop),
        },
        Op::Truncate | Op::Message => Err(Violation::Unsupported("no change of a row".into())),
    }
}

/// The first row that the locator names, NULL equal to NULL.
fn locate<'a>(
    db: &ModelDatabase,
    table: &PlannedTable,
    datum: impl Fn(usize) -> Datum<'a>,
) -> Result<Option<RowId>, Violation> {
    let wanted = table
        .locator
        .iter()
        .map(|column| {
            let value = value_of(datum(*column), &table.source, *column, None)?;
            let target = table.columns.get(*column).copied();
            value
                .and_then(|value| target.map(|target| (target, value)))
                .ok_or_else(|| Violation::Unsupported(format!("the locator lacks column {column}")))
        })
        .collect::<Result<Vec<_>, Violation>>()?;
    Ok(db.find(&table.source.name, &wanted).first().copied())
}

/// The written columns that the new image knows.
fn known(
    table: &PlannedTable,
    event: &ChangeEvent<'_>,
    old: Option<&[ModelValue]>,
) -> Result<Vec<(usize, ModelValue)>, Violation> {
    let mut values = Vec::new();
    for column in &table.written {
        let Some(target) = table.columns.get(*column).copied() else {
            continue;
        };
        let before = old.and_then(|row| row.get(target));
        if let Some(value) = value_of(event.after(*column), &table.source, *column, before)? {
            values.push((target, value));
        }
    }
    Ok(values)
}

fn set_statement(
    db: &mut ModelDatabase,
    run: impl FnOnce(&mut ModelDatabase) -> Result<(), Violation>,
) -> Result<()> {
    db.statement(run).map_err(|violation| match violation {
        Violation::Unique { .. } | Violation::ForeignKey { .. } => {
            in_order(violation).action(Action::Conflict)
        }
        other => in_order(other),
    })
}

/// The error for a violation that order cannot mend. Names the table and nothing else as its object, by which
/// the pipeline finds it in the plan.
fn in_order(violation: Violation) -> Error {
    let message = violation.to_string();
    match violation {
        Violation::Unique { table, .. } | Violation::Missing { table } => {
            Error::new(Kind::Conflict, message).object(table.to_string())
        }
        Violation::ForeignKey { table } | Violation::NotNull { table, .. } => {
            Error::new(Kind::Data, message).object(table.to_string())
        }
        Violation::Unsupported(_) => Error::bug(message),
    }
}

fn missing(table: &TableName) -> Violation {
    Violation::Missing { table: table.clone() }
}
