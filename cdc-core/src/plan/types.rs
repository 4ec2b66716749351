//! The plan a sink executes: steps in order, each a table's net sets, ordered rows, or a truncation.

use std::sync::Arc;

use super::facts::TargetTable;
use super::group::TxnGroup;
use super::spare::{RETAINED_ROWS, Spare};
use crate::batch::{Batch, Cell, ChangeEvent, Datum, Truncation};
use crate::model::TableSchema;

/// A row within a plan: piece of the group and row of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRef {
    /// number of the piece in [`TxnGroup::pieces`]
    pub piece: u32,
    /// number of the row in the piece's batch
    pub row: u32,
}

/// A whole row image: one cell per source column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// The new image of a change as it came.
    After(RowRef),
    /// The image that identifies the old row of a change: its old image, or the new one when none was sent.
    Identity(RowRef),
    /// Cells merged from several changes: the first of them in [`ApplyPlan::merged`].
    Merged(u32),
}

/// A cell of another batch of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergedCell {
    /// number of the piece in [`TxnGroup::pieces`]
    pub piece: u32,
    /// the cell in that piece's batch
    pub cell: Cell,
}

/// A source table version together with the target table it is applied to. The planner hands out the same `Arc`
/// until one of the two changes, so that sinks can keep prepared statements by its address.
#[derive(Debug, Clone)]
pub struct PlannedTable {
    /// the source's version
    pub source: Arc<TableSchema>,
    /// the target's facts
    pub target: Arc<TargetTable>,
    /// for each source column, the target column of that name
    pub columns: Vec<usize>,
    /// source columns that statements write, in source order: all but those whose target column is generated
    pub written: Vec<usize>,
    /// source columns that locate a row: a key of the target, else the source's identity columns, else all.
    /// Only a key can hold a generated column, which is then compared but never written.
    pub locator: Vec<usize>,
    /// whether [`PlannedTable::locator`] is a unique key of the target, so that at most one row can match
    pub locator_is_unique: bool,
}

/// Updates of one table that set the same columns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpdateSet {
    /// source columns to set, at least one, never one of the locator
    pub columns: Vec<usize>,
    /// rows: the image that locates and the image that gives the values
    pub rows: Vec<(Image, Image)>,
}

/// The net changes of one table, to be executed as the fields are listed: deletes, updates, inserts, upserts.
/// Keys are distinct within a set, so the order within it does not matter; a key both deleted and inserted is a
/// row replaced as a whole. Images of inserts and upserts know every column of [`PlannedTable::written`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetTable {
    /// number of the table in [`ApplyPlan::tables`]
    pub table: usize,
    /// rows to delete that must exist, by the image that locates them
    pub deletes: Vec<Image>,
    /// rows to delete if they exist
    pub deletes_if_present: Vec<Image>,
    /// rows to update that must exist
    pub updates: Vec<UpdateSet>,
    /// rows to insert that must not exist
    pub inserts: Vec<Image>,
    /// rows to insert or overwrite
    pub upserts: Vec<Image>,
}

impl NetTable {
    /// Rows in all sets together.
    pub fn operations(&self) -> u64 {
        let updates: usize = self.updates.iter().map(|set| set.rows.len()).sum();
        (self.deletes.len()
            + self.deletes_if_present.len()
            + updates
            + self.inserts.len()
            + self.upserts.len()) as u64
    }
}

/// A change applied by a statement of its own. A delete that belongs to a transaction of kind
/// [`crate::model::TxnKind::NetWindow`] removes the row if it exists; any other must find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderedRow {
    /// number of the table in [`ApplyPlan::tables`]
    pub table: usize,
    /// the change
    pub row: RowRef,
}

/// One step of a plan; steps are executed in order.
#[derive(Debug, Clone)]
pub enum Step {
    /// Net sets of one table.
    Net(NetTable),
    /// Changes one by one in the given order.
    Ordered(Vec<OrderedRow>),
    /// TRUNCATE of these tables (numbers in [`ApplyPlan::tables`]) in one statement.
    Truncate {
        /// the tables
        tables: Vec<usize>,
        /// the source's statement
        truncation: Truncation,
    },
}

/// What a sink is asked to do within one target transaction.
#[derive(Debug, Clone, Default)]
pub struct ApplyPlan {
    /// the changes, which images and rows refer to
    pub group: TxnGroup,
    /// the tables touched
    pub tables: Vec<Arc<PlannedTable>>,
    /// the steps
    pub steps: Vec<Step>,
    /// cells of merged images
    pub merged: Vec<MergedCell>,
    /// row changes of user tables in the group; a TRUNCATE counts one for each of its tables
    pub applied: u64,
    /// of these, merged into a later change or without any effect: the excess over the operations in the
    /// steps, where the delete and the insert that a key change becomes count as one
    pub coalesced: u64,
    /// for each piece the identities of its batch's transactions, for people; see [`ApplyPlan::label`]
    pub labels: Vec<Vec<String>>,
    /// what the steps of former plans in this memory consisted of
    pub(super) spare: Spare,
}

impl ApplyPlan {
    /// Empties the plan and lets go of its batches. Its memory, up to a limit, stays with it for
    /// [`Planner::compile_into`](super::Planner::compile_into).
    pub fn clear(&mut self) {
        empty(&mut self.group.pieces);
        self.clear_changes();
    }

    /// Empties all but the group.
    pub(super) fn clear_changes(&mut self) {
        let Self {
            group: _,
            tables,
            steps,
            merged,
            applied,
            coalesced,
            labels,
            spare,
        } = self;
        spare.take_apart(steps);
        empty(steps);
        empty(tables);
        empty(merged);
        empty(labels);
        *applied = 0;
        *coalesced = 0;
    }

    /// Whether a conflict policy decides about changes of a table.
    pub fn decides(&self) -> bool {
        self.tables.iter().any(|table| table.target.policy.decides())
    }

    /// The identity of a row's transaction for people, to be logged with a conflict; empty unless the plan
    /// [decides](ApplyPlan::decides).
    pub fn label(&self, row: RowRef) -> &str {
        let txn = self
            .batch(row.piece)
            .and_then(|batch| batch.rows.get(row.row as usize))
            .map(|row| row.txn as usize);
        txn.zip(self.labels.get(row.piece as usize))
            .and_then(|(txn, labels)| labels.get(txn))
            .map_or("", String::as_str)
    }

    /// Whether there is nothing to do on the target.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The batch of a piece.
    pub fn batch(&self, piece: u32) -> Option<&Batch> {
        self.group.pieces.get(piece as usize).map(|piece| &*piece.batch)
    }

    /// The change of a row.
    pub fn event(&self, row: RowRef) -> Option<ChangeEvent<'_>> {
        self.batch(row.piece)?.event(row.row as usize)
    }

    /// Source column `column` of an image; [`Datum::Absent`] where the image does not say.
    #[inline]
    pub fn datum(&self, image: Image, column: usize) -> Datum<'_> {
        let found = match image {
            Image::After(row) => self.event(row).map(|event| event.after(column)),
            Image::Identity(row) => self.event(row).map(|event| event.identity(column)),
            Image::Merged(first) => self
                .merged
                .get(first as usize + column)
                .and_then(|merged| self.batch(merged.piece).map(|batch| batch.datum(merged.cell))),
        };
        found.unwrap_or(Datum::Absent)
    }
}

/// Empties a vector, which keeps no more memory than others may.
fn empty<T>(vector: &mut Vec<T>) {
    vector.clear();
    vector.shrink_to(RETAINED_ROWS);
}
