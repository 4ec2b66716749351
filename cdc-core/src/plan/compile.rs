//! Planning a group: one pass over its rows, table by table into net changes or lists of ordered rows, flushed
//! as steps at each barrier.
//!
//! Order is given up only where nobody can see it. A table's changes become net sets when a unique key of the
//! target locates its rows, equality of that key is equality of bytes, no trigger or foreign key watches, and
//! sets have not been found to violate its constraints. Inserts alone need no key: they commute. Everything
//! else is applied in source order: tables on their own, those with triggers or foreign keys all together.
//! A TRUNCATE and a new shape of a table are barriers between segments, and so is a trigger's row beside tables whose order
//! is given up.

use std::sync::Arc;

use foldhash::fast::RandomState;

use super::coalesce::{Change, KeyedTable, NotMergeable};
use super::emit::{UpdateGrouping, WindowPart, children_first, net_table};
use super::facts::TargetCatalog;
use super::group::TxnGroup;
use super::resolve::{Mergeability, Placement, Resolved, Resolver};
use super::types::{ApplyPlan, Image, OrderedRow, RowRef, Step};
use crate::batch::{Batch, Op, RowChange};
use crate::error::{Error, Kind, Result};
use crate::model::{TableRole, TableSchema, TxnKind};

/// Whether a plan may give up order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanMode {
    /// Net sets where the order is invisible.
    Net,
    /// Every change by itself, in source order. A net window has no order: there, where a row alone could
    /// meet a unique violation, all changed rows of a table are deleted and then inserted.
    Ordered,
}

/// Plans groups for one target. Keeps resolved tables and buffers from plan to plan.
#[derive(Debug)]
pub struct Planner {
    resolver: Resolver,
    hasher: RandomState,
    scratch: Scratch,
    /// the tables of the plan being made, by their numbers there
    resolved: Vec<Arc<Resolved>>,
}

/// No table of the plan: not looked up yet.
const UNPLACED: u32 = u32::MAX;
/// No table of the plan: a heartbeat or marker table.
const INTERNAL: u32 = u32::MAX - 1;

#[derive(Debug, Default)]
struct Scratch {
    /// per piece and table of its batch, the number in the plan
    numbers: Vec<u32>,
    /// where each piece's numbers start
    starts: Vec<usize>,
    work: Vec<Work>,
    /// tables with changes since the last barrier, in order of appearance
    touched: Vec<usize>,
    /// ordered rows of tables whose mutual order is visible
    shared: Vec<OrderedRow>,
    grouping: UpdateGrouping,
}

/// Where a table's changes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Route {
    Keyed,
    InsertsOnly,
    Ordered,
    #[default]
    Shared,
}

/// One table's changes since the last barrier.
#[derive(Debug, Default)]
struct Work {
    route: Route,
    touched: bool,
    changes: u64,
    keyed: KeyedTable,
    inserts: Vec<Image>,
    ordered: Vec<OrderedRow>,
}

impl Planner {
    /// A planner for the tables of `catalog`, which it consults again whenever it changes.
    pub fn new(catalog: Arc<TargetCatalog>) -> Self {
        Self {
            resolver: Resolver::new(catalog),
            hasher: RandomState::default(),
            scratch: Scratch::default(),
            resolved: Vec::new(),
        }
    }

    /// Plans a group. A group of a [`TxnKind::NetWindow`] transaction holds nothing else.
    ///
    /// # Errors
    /// [`Kind::Schema`] when the target lacks a table or column, or a net window touches a table without a
    /// usable key; [`Kind::Bug`] when the group breaks the rules of its kind.
    pub fn compile(&mut self, group: TxnGroup, mode: PlanMode) -> Result<ApplyPlan> {
        let mut plan = ApplyPlan {
            group,
            ..ApplyPlan::default()
        };
        self.compile_into(&mut plan, mode)?;
        Ok(plan)
    }

    /// Plans the group that `plan` holds, as [`Planner::compile`] does. Whatever else it holds is replaced, and its
    /// memory used again.
    ///
    /// # Errors
    /// Those of [`Planner::compile`]; the plan is then not to be applied, but still holds the group.
    pub fn compile_into(&mut self, plan: &mut ApplyPlan, mode: PlanMode) -> Result<()> {
        plan.clear_changes();
        let group = std::mem::take(&mut plan.group);
        let planned = self.pass(&group, mode, plan);
        plan.group = group;
        planned
    }

    fn pass(&mut self, group: &TxnGroup, mode: PlanMode, plan: &mut ApplyPlan) -> Result<()> {
        self.resolver.start_plan();
        self.scratch.start(group);
        self.resolved.clear();
        Pass {
            window: is_window(group)?,
            mode,
            group,
            resolver: &mut self.resolver,
            hasher: &self.hasher,
            scratch: &mut self.scratch,
            resolved: &mut self.resolved,
            segment: (0, 0),
            held: Held::default(),
            plan,
        }
        .run()
    }
}

fn is_window(group: &TxnGroup) -> Result<bool> {
    let mut kinds = group.pieces.iter().flat_map(|piece| {
        let txns = piece.batch.txns.get(piece.txns.clone());
        txns.unwrap_or_default().iter().map(|txn| txn.kind)
    });
    let first = kinds.next();
    if kinds.any(|kind| Some(kind) != first) {
        return Err(Error::bug("a group mixes kinds of transactions"));
    }
    Ok(first == Some(TxnKind::NetWindow))
}

impl Scratch {
    fn start(&mut self, group: &TxnGroup) {
        self.starts.clear();
        let mut total = 0;
        for piece in &group.pieces {
            self.starts.push(total);
            total += piece.batch.tables.len();
        }
        self.numbers.clear();
        self.numbers.resize(total, UNPLACED);
        // A former plan that failed leaves its changes behind.
        self.work.iter_mut().for_each(Work::clear);
        self.touched.clear();
        self.shared.clear();
    }

    fn number(&self, piece: usize, table: u16) -> Option<u32> {
        let start = self.starts.get(piece)?;
        self.numbers.get(start + usize::from(table)).copied()
    }

    fn set_number(&mut self, piece: usize, table: u16, number: u32) {
        if let Some(start) = self.starts.get(piece)
            && let Some(slot) = self.numbers.get_mut(start + usize::from(table))
        {
            *slot = number;
        }
    }

    /// Makes the tables of this and later pieces be looked up again.
    fn forget_numbers(&mut self, piece: usize) {
        let start = self.starts.get(piece).copied().unwrap_or(0);
        self.numbers
            .iter_mut()
            .skip(start)
            .for_each(|number| *number = UNPLACED);
    }
}

impl Work {
    fn clear(&mut self) {
        if self.touched {
            self.touched = false;
            self.changes = 0;
            self.keyed.clear();
            self.inserts.clear();
            self.ordered.clear();
        }
    }
}

/// The making of one plan.
struct Pass<'a> {
    group: &'a TxnGroup,
    mode: PlanMode,
    window: bool,
    resolver: &'a mut Resolver,
    hasher: &'a RandomState,
    scratch: &'a mut Scratch,
    resolved: &'a mut Vec<Arc<Resolved>>,
    /// piece and row after the last barrier
    segment: (usize, usize),
    /// what the segment holds
    held: Held,
    plan: &'a mut ApplyPlan,
}

/// Of which kinds the changes since the last barrier are. A trigger may look at any table, so that what came before its
/// row is applied before it and what came after it after it: no segment holds both.
#[derive(Debug, Default)]
struct Held {
    /// of tables whose order among others nobody sees
    apart: bool,
    /// of tables whose triggers see the others
    seeing: bool,
}

impl Pass<'_> {
    fn run(&mut self) -> Result<()> {
        let group = self.group;
        for (number, piece) in group.pieces.iter().enumerate() {
            let rows = piece
                .batch
                .rows
                .get(piece.rows.clone())
                .ok_or_else(|| Error::bug("a group names rows that its batch does not hold"))?;
            for (index, row) in (piece.rows.start..).zip(rows) {
                match row.op {
                    Op::Message => {}
                    Op::Truncate => self.truncate(number, index, &piece.batch, row)?,
                    _ => self.change(number, index, &piece.batch, row)?,
                }
            }
        }
        self.flush((group.pieces.len(), 0));
        Ok(())
    }

    /// One row change.
    fn change(&mut self, piece: usize, index: usize, batch: &Batch, row: &RowChange) -> Result<()> {
        let Some(number) = self.table(piece, index, batch, row)? else {
            return Ok(());
        };
        if self.window && !matches!(row.op, Op::Upsert | Op::Delete) {
            return Err(self.broken_window(number, row));
        }
        self.part(number, (piece, index));
        let (Some(work), Some(table)) = (self.scratch.work.get_mut(number), self.resolved.get(number)) else {
            return Err(Error::bug("a planned table has no place to work in"));
        };
        self.plan.applied += 1;
        if !work.touched {
            work.touched = true;
            work.route = route(table, self.mode, self.window);
            self.scratch.touched.push(number);
        }
        work.changes += 1;
        let at = RowRef {
            piece: piece as u32,
            row: index as u32,
        };
        let change = Change {
            group: self.group,
            batch,
            row,
            at,
            window: self.window,
        };
        let merged = match work.route {
            Route::Keyed => work
                .keyed
                .merge(table, change, &mut self.plan.merged, self.hasher),
            Route::InsertsOnly if row.op == Op::Insert => change
                .after_is_complete(table)
                .map(|()| work.inserts.push(Image::After(at))),
            Route::InsertsOnly => Err(NotMergeable),
            Route::Ordered => {
                work.ordered.push(OrderedRow {
                    table: number,
                    row: at,
                });
                Ok(())
            }
            Route::Shared => {
                self.scratch.shared.push(OrderedRow {
                    table: number,
                    row: at,
                });
                Ok(())
            }
        };
        match merged {
            Ok(()) => Ok(()),
            Err(NotMergeable) if self.window => Err(self.broken_window(number, row)),
            Err(NotMergeable) => {
                self.fall_back(number, (piece, index));
                Ok(())
            }
        }
    }

    /// Begins a new segment where a trigger's sight begins or ends.
    fn part(&mut self, number: usize, at: (usize, usize)) {
        let Some(table) = self.resolved.get(number).filter(|_| !self.window) else {
            return;
        };
        let seeing = table.planned.target.sees_others;
        let apart = route(table, self.mode, self.window) != Route::Shared;
        if seeing && self.held.apart || apart && self.held.seeing {
            self.flush(at);
        }
        self.held.seeing |= seeing;
        self.held.apart |= apart;
    }

    /// The number of a row's table in the plan; `None` for heartbeat and marker rows.
    fn table(&mut self, piece: usize, index: usize, batch: &Batch, row: &RowChange) -> Result<Option<usize>> {
        match self.scratch.number(piece, row.table) {
            None => return Err(Error::bug("a row change without a table")),
            Some(UNPLACED) => {}
            Some(INTERNAL) => return Ok(None),
            Some(number) => return Ok(Some(number as usize)),
        }
        let source = batch
            .tables
            .get(usize::from(row.table))
            .ok_or_else(|| Error::bug("a row change without a table"))?;
        if source.role != TableRole::User {
            self.scratch.set_number(piece, row.table, INTERNAL);
            return Ok(None);
        }
        let number = self.place(source, (piece, index))?;
        self.scratch.set_number(piece, row.table, number as u32);
        Ok(Some(number))
    }

    /// Gives `source` its number in the plan. Rows of another shape of the same table are flushed first.
    fn place(&mut self, source: &Arc<TableSchema>, at: (usize, usize)) -> Result<usize> {
        match self.resolver.placement(source) {
            Placement::Placed(number) => return Ok(number),
            Placement::New => {}
            Placement::NewShape => {
                self.flush(at);
                self.scratch.forget_numbers(at.0);
            }
        }
        let number = self.resolved.len();
        let resolved = self.resolver.place(source, number)?;
        if self.window && !resolved.planned.locator_is_unique {
            return Err(Error::new(
                Kind::Schema,
                "net changes need a key of the target that consists of key columns of the source",
            )
            .object(format!("table {}", source.name))
            .remedy("give the target's table the source's primary key"));
        }
        if self.window && resolved.decides {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "policy {} needs a log of every change, and this source gives net changes",
                    resolved.planned.target.policy.name()
                ),
            )
            .object(format!("table {}", source.name))
            .remedy("leave the policy at stop"));
        }
        self.plan.tables.push(Arc::clone(&resolved.planned));
        self.resolved.push(resolved);
        if self.scratch.work.len() < self.resolved.len() {
            self.scratch.work.push(Work::default());
        }
        Ok(number)
    }

    fn truncate(&mut self, piece: usize, index: usize, batch: &Batch, row: &RowChange) -> Result<()> {
        let truncation = batch
            .truncations
            .get(row.truncation())
            .ok_or_else(|| Error::bug("a truncation that its batch does not hold"))?;
        self.flush((piece, index));
        let tables = truncation
            .tables
            .iter()
            .filter(|table| table.role == TableRole::User)
            .map(|table| self.place(table, (piece, index)))
            .collect::<Result<Vec<usize>>>()?;
        self.segment = (piece, index + 1);
        if !tables.is_empty() {
            self.plan.applied += tables.len() as u64;
            self.plan.steps.push(Step::Truncate {
                tables,
                truncation: truncation.clone(),
            });
        }
        Ok(())
    }

    fn broken_window(&self, number: usize, row: &RowChange) -> Error {
        let table = self.plan.tables.get(number);
        Error::bug(format!(
            "a net window holds a change ({:?}) that is neither a complete row to upsert nor a key to delete",
            row.op
        ))
        .object(table.map_or_else(String::new, |table| format!("table {}", table.source.name)))
    }

    /// Puts all of a table's changes since the last barrier, up to and including the row at `end`, into source
    /// order. Looks the rows up again, so that tables which never come here pay nothing for it.
    fn fall_back(&mut self, number: usize, end: (usize, usize)) {
        let Some(work) = self.scratch.work.get_mut(number) else {
            return;
        };
        let mut ordered = std::mem::take(&mut work.ordered);
        work.keyed.clear();
        work.inserts.clear();
        work.route = Route::Ordered;
        let pieces = self.group.pieces.iter().enumerate();
        for (piece_number, piece) in pieces.take(end.0 + 1).skip(self.segment.0) {
            let is_first = piece_number == self.segment.0;
            let is_last = piece_number == end.0;
            let start = if is_first {
                self.segment.1.max(piece.rows.start)
            } else {
                piece.rows.start
            };
            let end = if is_last { end.1 + 1 } else { piece.rows.end };
            let rows = piece.batch.rows.get(start..end).unwrap_or_default();
            for (index, row) in (start..).zip(rows) {
                let is_change = !matches!(row.op, Op::Truncate | Op::Message);
                if is_change && self.scratch.number(piece_number, row.table) == Some(number as u32) {
                    ordered.push(OrderedRow {
                        table: number,
                        row: RowRef {
                            piece: piece_number as u32,
                            row: index as u32,
                        },
                    });
                }
            }
        }
        if let Some(work) = self.scratch.work.get_mut(number) {
            work.ordered = ordered;
        }
    }

    /// Turns everything since the last barrier into steps; the next segment starts at `next`.
    fn flush(&mut self, next: (usize, usize)) {
        self.segment = next;
        self.held = Held::default();
        if self.window {
            self.flush_window();
        } else {
            self.flush_log();
        }
        let touched = std::mem::take(&mut self.scratch.touched);
        for number in &touched {
            if let Some(work) = self.scratch.work.get_mut(*number) {
                work.clear();
            }
        }
        self.scratch.touched = touched;
        self.scratch.touched.clear();
    }

    fn flush_log(&mut self) {
        let plan = &mut *self.plan;
        for number in &self.scratch.touched {
            let (Some(work), Some(table)) = (self.scratch.work.get_mut(*number), self.resolved.get(*number))
            else {
                continue;
            };
            let net = match work.route {
                Route::Shared => continue,
                Route::Ordered => {
                    let rows = std::mem::replace(&mut work.ordered, plan.spare.ordered());
                    plan.steps.push(Step::Ordered(rows));
                    continue;
                }
                Route::InsertsOnly => {
                    let mut net = plan.spare.net(*number);
                    std::mem::swap(&mut net.inserts, &mut work.inserts);
                    net
                }
                Route::Keyed => net_table(
                    *number,
                    table,
                    &work.keyed.entries,
                    self.group,
                    &plan.merged,
                    &mut self.scratch.grouping,
                    &mut plan.spare,
                ),
            };
            let operations = net.operations();
            let splits = work.keyed.key_changes;
            plan.coalesced += (work.changes + splits)
                .saturating_sub(operations)
                .min(work.changes);
            if operations > 0 {
                plan.steps.push(Step::Net(net));
            } else {
                plan.spare.keep(net);
            }
        }
        if !self.scratch.shared.is_empty() {
            let rows = std::mem::replace(&mut self.scratch.shared, plan.spare.ordered());
            plan.steps.push(Step::Ordered(rows));
        }
    }

    /// Deletes of all tables, children first, then upserts the other way round.
    fn flush_window(&mut self) {
        let tables: Vec<(usize, Arc<Resolved>)> = self
            .scratch
            .touched
            .iter()
            .filter_map(|number| Some((*number, Arc::clone(self.resolved.get(*number)?))))
            .collect();
        let parts: Vec<WindowPart<'_>> = children_first(&tables)
            .into_iter()
            .filter_map(|number| {
                Some(WindowPart {
                    number,
                    table: self.resolved.get(number)?,
                    entries: &self.scratch.work.get(number)?.keyed.entries,
                    mode: self.mode,
                })
            })
            .collect();
        let keys: usize = parts.iter().map(|part| part.entries.len()).sum();
        let changes: u64 = self
            .scratch
            .touched
            .iter()
            .filter_map(|number| self.scratch.work.get(*number))
            .map(|work| work.changes)
            .sum();
        self.plan.coalesced += changes.saturating_sub(keys as u64);
        let deletes = parts.iter().filter_map(WindowPart::deletes);
        let upserts = parts.iter().rev().filter_map(WindowPart::upserts);
        self.plan.steps.extend(deletes.chain(upserts));
    }
}

fn route(table: &Resolved, mode: PlanMode, window: bool) -> Route {
    // A window has one change a key and no order that could be kept.
    if window {
        return Route::Keyed;
    }
    match (mode, table.merge) {
        (PlanMode::Ordered, _) | (PlanMode::Net, Mergeability::OrderVisible) => Route::Shared,
        (PlanMode::Net, Mergeability::Keyed) => Route::Keyed,
        (PlanMode::Net, Mergeability::InsertsOnly) => Route::InsertsOnly,
        (PlanMode::Net, Mergeability::Ordered) => Route::Ordered,
    }
}
