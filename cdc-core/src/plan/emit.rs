//! From the keys' states to the sets of a step.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::coalesce::{Entry, State, cell_of, is_known};
use super::compile::PlanMode;
use super::group::TxnGroup;
use super::resolve::{Mergeability, Resolved};
use super::spare::Spare;
use super::types::{Image, MergedCell, NetTable, OrderedRow, Step};
use crate::batch::Cell;
use crate::model::TableName;

/// Groups updates by the columns they set, as bit masks over [`Resolved::settable`].
#[derive(Debug, Default)]
pub(super) struct UpdateGrouping {
    /// the masks of the sets so far, one after the other
    masks: Vec<u64>,
    probe: Vec<u64>,
    last: usize,
}

impl UpdateGrouping {
    fn start(&mut self) {
        self.masks.clear();
        self.last = 0;
    }

    /// The number of the set for an update that sets `columns` of which `is_set` holds; `None` when there are
    /// none. A number equal to the count so far is a new set.
    fn number(&mut self, columns: &[usize], is_set: impl Fn(usize) -> bool) -> Option<usize> {
        let words = columns.len().div_ceil(64);
        self.probe.clear();
        self.probe.resize(words, 0);
        for (bit, column) in columns.iter().enumerate() {
            if is_set(*column)
                && let Some(word) = self.probe.get_mut(bit / 64)
            {
                *word |= 1 << (bit % 64);
            }
        }
        if self.probe.iter().all(|word| *word == 0) {
            return None;
        }
        // Neighbouring updates mostly come from the same statement.
        let mask_of = |number: usize| self.masks.get(number * words..(number + 1) * words);
        if mask_of(self.last) == Some(self.probe.as_slice()) {
            return Some(self.last);
        }
        let found = self
            .masks
            .chunks_exact(words)
            .position(|mask| mask == self.probe.as_slice());
        self.last = found.unwrap_or(self.masks.len() / words);
        if found.is_none() {
            self.masks.extend_from_slice(&self.probe);
        }
        Some(self.last)
    }
}

/// The net sets of a table's keys.
pub(super) fn net_table(
    number: usize,
    table: &Resolved,
    entries: &[Entry],
    group: &TxnGroup,
    merged: &[MergedCell],
    grouping: &mut UpdateGrouping,
    spare: &mut Spare,
) -> NetTable {
    let mut net = sized(spare.net(number), entries);
    grouping.start();
    for entry in entries {
        match entry.state {
            State::Inserted => net.inserts.push(entry.image),
            State::Upserted => net.upserts.push(entry.image),
            State::Deleted => net.deletes.push(entry.key),
            State::DeletedIfPresent => net.deletes_if_present.push(entry.key),
            State::Replaced => {
                net.deletes.push(entry.key);
                net.inserts.push(entry.image);
            }
            State::Updated => {
                let known =
                    |column| entry.complete || is_known(image_cell(group, merged, entry.image, column));
                if let Some(set) = grouping.number(&table.settable, known) {
                    push_update(&mut net, set, table, entry, known, spare);
                }
            }
            State::Untouched | State::Gone => {}
        }
    }
    net
}

fn push_update(
    net: &mut NetTable,
    number: usize,
    table: &Resolved,
    entry: &Entry,
    known: impl Fn(usize) -> bool,
    spare: &mut Spare,
) {
    if number == net.updates.len() {
        let mut set = spare.updates();
        let settable = table.settable.iter().copied();
        set.columns.extend(settable.filter(|column| known(*column)));
        net.updates.push(set);
    }
    if let Some(set) = net.updates.get_mut(number) {
        set.rows.push((entry.key, entry.image));
    }
}

/// Makes room in the sets for what the entries will put there.
fn sized(mut net: NetTable, entries: &[Entry]) -> NetTable {
    let count = |wanted: &[State]| {
        entries
            .iter()
            .filter(|entry| wanted.contains(&entry.state))
            .count()
    };
    net.deletes.reserve(count(&[State::Deleted, State::Replaced]));
    net.inserts.reserve(count(&[State::Inserted, State::Replaced]));
    net
}

fn image_cell(group: &TxnGroup, merged: &[MergedCell], image: Image, column: usize) -> Cell {
    match image {
        Image::Merged(first) => merged
            .get(first as usize + column)
            .map_or(Cell::ABSENT, |found| found.cell),
        _ => cell_of(group, image, column).cell,
    }
}

/// One table's part of a net window.
pub(super) struct WindowPart<'a> {
    pub(super) number: usize,
    pub(super) table: &'a Resolved,
    pub(super) entries: &'a [Entry],
    pub(super) mode: PlanMode,
}

impl WindowPart<'_> {
    /// Whether to delete every changed row and then insert: the way out where upserts row by row pass through
    /// states that a unique constraint refuses. Not where it would reset columns that only the target has, or
    /// take a parent away from children that stay.
    fn deletes_all_changed(&self) -> bool {
        (self.table.marked_ordered || self.mode == PlanMode::Ordered)
            && !self.table.target_has_more
            && self.table.merge != Mergeability::OrderVisible
    }

    fn in_state(&self, state: State) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.state == state)
    }

    /// The step that removes rows; every table's comes before any table's [`WindowPart::upserts`].
    pub(super) fn deletes(&self) -> Option<Step> {
        let removed = self.in_state(State::DeletedIfPresent).map(|entry| entry.key);
        if self.deletes_all_changed() {
            let written = self.in_state(State::Upserted).map(|entry| entry.key);
            let deletes_if_present: Vec<Image> = removed.chain(written).collect();
            return self.net(NetTable {
                deletes_if_present,
                ..NetTable::default()
            });
        }
        match self.mode {
            PlanMode::Ordered => self.ordered(removed),
            PlanMode::Net => self.net(NetTable {
                deletes_if_present: removed.collect(),
                ..NetTable::default()
            }),
        }
    }

    /// The step that writes rows.
    pub(super) fn upserts(&self) -> Option<Step> {
        let written = self.in_state(State::Upserted).map(|entry| entry.image);
        if self.deletes_all_changed() {
            return self.net(NetTable {
                inserts: written.collect(),
                ..NetTable::default()
            });
        }
        match self.mode {
            PlanMode::Ordered => self.ordered(written),
            PlanMode::Net => self.net(NetTable {
                upserts: written.collect(),
                ..NetTable::default()
            }),
        }
    }

    fn net(&self, net: NetTable) -> Option<Step> {
        let table = self.number;
        (net.operations() > 0).then_some(Step::Net(NetTable { table, ..net }))
    }

    fn ordered(&self, images: impl Iterator<Item = Image>) -> Option<Step> {
        let rows: Vec<OrderedRow> = images
            .filter_map(|image| match image {
                Image::After(row) | Image::Identity(row) => Some(OrderedRow {
                    table: self.number,
                    row,
                }),
                // Nothing in a window is merged.
                Image::Merged(_) => None,
            })
            .collect();
        (!rows.is_empty()).then_some(Step::Ordered(rows))
    }
}

/// The tables of a window, those that refer to others before those they refer to; otherwise, and within a
/// cycle, as given.
pub(super) fn children_first(tables: &[(usize, Arc<Resolved>)]) -> Vec<usize> {
    let place: HashMap<&TableName, usize> = tables
        .iter()
        .enumerate()
        .map(|(place, (_, table))| (&table.planned.target.name, place))
        .collect();
    let parents: Vec<BTreeSet<usize>> = tables
        .iter()
        .enumerate()
        .map(|(place_of_child, (_, table))| {
            let references = table.planned.target.references.iter();
            references
                .filter_map(|name| place.get(name).copied())
                .filter(|parent| *parent != place_of_child)
                .collect()
        })
        .collect();
    let mut children = vec![0_usize; tables.len()];
    for parent in parents.iter().flatten() {
        if let Some(count) = children.get_mut(*parent) {
            *count += 1;
        }
    }
    let mut left: BTreeSet<usize> = (0..tables.len()).collect();
    let is_free = |children: &[usize], at: usize| children.get(at).is_some_and(|count| *count == 0);
    let mut free: BTreeSet<usize> = left
        .iter()
        .copied()
        .filter(|at| is_free(&children, *at))
        .collect();
    let mut order = Vec::with_capacity(tables.len());
    while let Some(next) = free.pop_first().or_else(|| left.first().copied()) {
        left.remove(&next);
        order.extend(tables.get(next).map(|(number, _)| *number));
        for parent in parents.get(next).into_iter().flatten() {
            if let Some(count) = children.get_mut(*parent) {
                *count = count.saturating_sub(1);
            }
            if left.contains(parent) && is_free(&children, *parent) {
                free.insert(*parent);
            }
        }
    }
    order
}
