//! Plans in words, for the planner's tests.

use std::sync::Arc;

use cdc_core::batch::{Datum, Op};
use cdc_core::error::Result;
use cdc_core::model::{TableSchema, TxnKind};
use cdc_core::plan::{ApplyPlan, Image, NetTable, Piece, PlanMode, Planner, Step, TargetCatalog, TxnGroup};
use cdc_core::testing::{CellFormat, OldImage, SourceCell, SourceChange, SourceTable, SourceTxn, batch_of};

/// `-` is NULL, `=` unchanged, `?` absent, `+x` a patch, all else a value.
pub(crate) fn cells(texts: &[&str]) -> Vec<SourceCell> {
    texts
        .iter()
        .map(|text| match *text {
            "-" => SourceCell::Null,
            "=" => SourceCell::Unchanged,
            "?" => SourceCell::Absent,
            text => match text.strip_prefix('+') {
                Some(suffix) => SourceCell::Patch(suffix.as_bytes().to_vec()),
                None => SourceCell::Value(text.as_bytes().to_vec()),
            },
        })
        .collect()
}

fn row(op: Op, before: Option<(&[&str], bool)>, after: Option<&[&str]>) -> SourceChange {
    SourceChange::Row {
        table: 0,
        op,
        before: before.map(|(texts, full)| OldImage {
            cells: cells(texts),
            full,
        }),
        after: after.map(cells),
    }
}

/// The same change of table number `number`.
pub(crate) fn of_table(number: usize, change: SourceChange) -> SourceChange {
    match change {
        SourceChange::Row {
            op, before, after, ..
        } => SourceChange::Row {
            table: number,
            op,
            before,
            after,
        },
        other => other,
    }
}

pub(crate) fn insert(after: &[&str]) -> SourceChange {
    row(Op::Insert, None, Some(after))
}

pub(crate) fn update(after: &[&str]) -> SourceChange {
    row(Op::Update, None, Some(after))
}

/// An update with the old identity.
pub(crate) fn update_from(before: &[&str], after: &[&str]) -> SourceChange {
    row(Op::Update, Some((before, false)), Some(after))
}

/// An update with the whole old row.
pub(crate) fn update_full(before: &[&str], after: &[&str]) -> SourceChange {
    row(Op::Update, Some((before, true)), Some(after))
}

pub(crate) fn delete(before: &[&str]) -> SourceChange {
    row(Op::Delete, Some((before, false)), None)
}

pub(crate) fn delete_full(before: &[&str]) -> SourceChange {
    row(Op::Delete, Some((before, true)), None)
}

pub(crate) fn upsert(after: &[&str]) -> SourceChange {
    row(Op::Upsert, None, Some(after))
}

/// A group of these changes, each list a transaction in a batch and piece of its own.
pub(crate) fn group(tables: &[Arc<TableSchema>], kind: TxnKind, txns: &[&[SourceChange]]) -> TxnGroup {
    let pieces = txns.iter().enumerate().map(|(number, changes)| {
        let txn = SourceTxn {
            offset: number as u64 + 1,
            kind,
            commit_time_micros: 0,
            changes: changes.to_vec(),
        };
        let batch = batch_of(&[txn], tables, &CellFormat::text()).expect("a batch");
        batch.verify().expect("a sound batch");
        Piece {
            txns: 0..1,
            rows: 0..batch.rows().len(),
            batch: Arc::new(batch),
        }
    });
    TxnGroup {
        pieces: pieces.collect(),
    }
}

/// Source tables and the planner for the target that is like them.
pub(crate) struct Plans {
    pub(crate) schemas: Vec<Arc<TableSchema>>,
    pub(crate) catalog: Arc<TargetCatalog>,
    pub(crate) planner: Planner,
}

impl Plans {
    pub(crate) fn of(tables: &[SourceTable]) -> Self {
        let facts = tables.iter().map(|table| table.spec.facts(false)).collect();
        Self::onto(tables, TargetCatalog::new(facts))
    }

    pub(crate) fn onto(tables: &[SourceTable], catalog: TargetCatalog) -> Self {
        let catalog = Arc::new(catalog);
        Self {
            schemas: tables
                .iter()
                .map(|table| table.schema(&CellFormat::text()))
                .collect(),
            planner: Planner::new(Arc::clone(&catalog)),
            catalog,
        }
    }

    pub(crate) fn plan(
        &mut self,
        kind: TxnKind,
        mode: PlanMode,
        txns: &[&[SourceChange]],
    ) -> Result<ApplyPlan> {
        self.planner.compile(group(&self.schemas, kind, txns), mode)
    }

    /// The net plan of log transactions, in words.
    pub(crate) fn net(&mut self, txns: &[&[SourceChange]]) -> Vec<String> {
        let plan = self.plan(TxnKind::Log, PlanMode::Net, txns).expect("a plan");
        words(&plan)
    }

    /// The plan of a net window, in words.
    pub(crate) fn window(&mut self, mode: PlanMode, changes: &[SourceChange]) -> Vec<String> {
        let plan = self.plan(TxnKind::NetWindow, mode, &[changes]).expect("a plan");
        words(&plan)
    }
}

/// One line a set or step.
pub(crate) fn words(plan: &ApplyPlan) -> Vec<String> {
    let name = |number: usize| plan.tables[number].source.name.name.clone();
    let mut lines = Vec::new();
    for step in &plan.steps {
        match step {
            Step::Net(net) => lines.extend(net_words(plan, net, &name(net.table))),
            Step::Ordered(rows) => {
                let rows: Vec<String> = rows
                    .iter()
                    .map(|row| {
                        let event = plan.event(row.row).expect("a row of the group");
                        format!("{:?} {}", event.op(), name(row.table)).to_lowercase()
                    })
                    .collect();
                lines.push(format!("ordered: {}", rows.join(", ")));
            }
            Step::Truncate { tables, .. } => {
                let tables: Vec<String> = tables.iter().map(|table| name(*table)).collect();
                lines.push(format!("truncate {}", tables.join(", ")));
            }
        }
    }
    lines
}

fn net_words(plan: &ApplyPlan, net: &NetTable, name: &str) -> Vec<String> {
    let table = &plan.tables[net.table];
    let image = |image: Image, columns: &[usize]| {
        let cells = columns.iter().map(|column| match plan.datum(image, *column) {
            Datum::Null => "-".to_owned(),
            Datum::Unchanged => "=".to_owned(),
            Datum::Absent => "?".to_owned(),
            Datum::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Datum::Patch(bytes) => format!("+{}", String::from_utf8_lossy(bytes)),
        });
        cells.collect::<Vec<_>>().join(" ")
    };
    let set = |verb: &str, images: &[Image], columns: &[usize]| {
        let rows: Vec<String> = images.iter().map(|found| image(*found, columns)).collect();
        (!rows.is_empty()).then(|| format!("{verb} {name}: {}", rows.join(", ")))
    };
    let mut lines = Vec::new();
    lines.extend(set("delete", &net.deletes, &table.locator));
    lines.extend(set("delete-if", &net.deletes_if_present, &table.locator));
    for update in &net.updates {
        let columns = update
            .columns
            .iter()
            .map(|column| table.source.columns[*column].name.as_str());
        let rows = update.rows.iter().map(|(key, values)| {
            format!(
                "{} = {}",
                image(*key, &table.locator),
                image(*values, &update.columns)
            )
        });
        lines.push(format!(
            "update {name} ({}): {}",
            columns.collect::<Vec<_>>().join(" "),
            rows.collect::<Vec<_>>().join(", ")
        ));
    }
    lines.extend(set("insert", &net.inserts, &table.written));
    lines.extend(set("upsert", &net.upserts, &table.written));
    lines
}
