//! A plan that fails in order as well is split, transaction by transaction and row by row, so that everything before the
//! culprit is applied and the culprit is named.

use std::sync::Arc;

use super::super::internal::internal_rows;
use super::ApplyStage;
use crate::conflict::{Conflict, Policy};
use crate::error::{Action, Error, Kind, Result};
use crate::plan::{ApplyPlan, PlanMode, PlannedTable, Step, TargetTable, TxnGroup};
use crate::sink::Applied;

impl ApplyStage {
    /// The error of a group that cannot be planned, once everything before its cause is applied.
    pub(super) fn refused(&mut self, group: &TxnGroup, error: Error) -> Result<Error> {
        if !splittable(&error) {
            return Ok(error);
        }
        let fresh = self.open.is_none();
        if fresh {
            self.begin()?;
        }
        Ok(match self.one_by_one(group, fresh, false, error) {
            Ok(()) => Error::bug("a group that cannot be planned was applied"),
            Err(error) => error,
        })
    }

    /// Applies a group that failed as a whole: transaction by transaction up to the one that fails, and of that row by
    /// row. A conflict that the embedding program is asked about may be decided there; everything else is the error to
    /// stop with. `fresh` says that the target transaction holds nothing but this group.
    pub(super) fn one_by_one(
        &mut self,
        group: &TxnGroup,
        fresh: bool,
        at_boundary: bool,
        error: Error,
    ) -> Result<()> {
        if !fresh {
            return self.row_by_row(group, at_boundary, error);
        }
        self.rollback()?;
        let mut decided = false;
        for (number, piece) in group.pieces.iter().enumerate() {
            for index in piece.txns.clone() {
                let Some(txn) = piece.batch.txns().get(index) else {
                    continue;
                };
                let mut part = piece.clone();
                part.txns = index..index + 1;
                part.rows = txn.rows.start as usize..txn.rows.end as usize;
                let single = TxnGroup { pieces: vec![part] };
                match self.apply_single(&single, txn.last) {
                    Ok(()) => {}
                    Err(error) if splittable(&error) => {
                        tracing::debug!(piece = number, txn = index, "culprit transaction found");
                        self.row_by_row(&single, txn.last, error)?;
                        decided = true;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if decided {
            return Ok(());
        }
        // Alone, every transaction went through: what objected has gone. Start again from the checkpoint.
        Err(error.action(Action::Retry))
    }

    fn apply_single(&mut self, group: &TxnGroup, last: bool) -> Result<()> {
        if self.open.is_none() {
            self.begin()?;
        }
        let mut plan = self.planner.compile(group.clone(), PlanMode::Ordered)?;
        let applied = self.try_plan(&mut plan)?;
        self.account(&plan, applied, &internal_rows(group)?)?;
        if last { self.commit() } else { Ok(()) }
    }

    /// Applies the rows of a group one by one: the error of the one that fails says more than the group's `error`.
    fn row_by_row(&mut self, group: &TxnGroup, last: bool, error: Error) -> Result<()> {
        let at = format!("the transaction after {}", self.tracker.position());
        let plan = self.planner.compile(group.clone(), PlanMode::Ordered);
        let mut plan = plan.map_err(|error| error.at(&at))?;
        let steps = std::mem::take(&mut plan.steps);
        let mut sum = Applied::default();
        let mut decided = false;
        for step in steps {
            let singles: Vec<Step> = match step {
                Step::Ordered(rows) => rows.iter().map(|row| Step::Ordered(vec![*row])).collect(),
                other => vec![other],
            };
            for single in singles {
                let mut one = plan.clone();
                one.steps = vec![single];
                let applied = match self.try_plan(&mut one) {
                    Ok(applied) => applied,
                    Err(error) => {
                        decided = true;
                        self.decide(one, error).map_err(|error| error.at(&at))?
                    }
                };
                sum.superseded += applied.superseded;
                sum.dead_lettered += applied.dead_lettered;
            }
        }
        if !decided {
            // What objected has gone. Start again from the checkpoint.
            return Err(error.action(Action::Retry).at(&at));
        }
        self.account(&plan, sum, &internal_rows(group)?)?;
        if last { self.commit() } else { Ok(()) }
    }

    /// Asks the embedding program about a row that met a conflict, and applies the row as it says.
    fn decide(&mut self, mut one: ApplyPlan, error: Error) -> Result<Applied> {
        let Some(handler) = self.conflicts.clone().filter(|_| error.kind() == Kind::Conflict) else {
            return Err(error);
        };
        let policy = match one.steps.as_slice() {
            [Step::Ordered(rows)] => rows.first().and_then(|row| {
                let table = one.tables.get(row.table)?;
                let conflict = Conflict {
                    table: &table.target.name,
                    error: &error,
                    change: one.event(row.row)?,
                };
                let asks = table.target.policy == Policy::Ask;
                asks.then(|| (row.table, handler.decide(&conflict)))
            }),
            _ => None,
        };
        let Some((number, policy)) = policy.filter(|(_, policy)| policy.decides()) else {
            return Err(error);
        };
        if let Some(table) = one.tables.get_mut(number) {
            let target = TargetTable {
                policy,
                ..TargetTable::clone(&table.target)
            };
            *table = Arc::new(PlannedTable {
                target: Arc::new(target),
                ..PlannedTable::clone(table)
            });
        }
        self.try_plan(&mut one)
    }
}

/// Whether smaller pieces can tell which row is to blame.
pub(super) fn splittable(error: &Error) -> bool {
    error.what_to_do() == Action::Conflict
        || (error.what_to_do() == Action::Stop
            && matches!(error.kind(), Kind::Conflict | Kind::Data | Kind::Schema))
}
