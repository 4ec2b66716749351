//! The net change of each key of one table.
//!
//! Every key that the group touches has an entry with a state. A change moves it on:
//!
//! | state ╲ change | insert | update | delete | upsert |
//! |---|---|---|---|---|
//! | untouched | inserted | updated | deleted ¹ | upserted |
//! | inserted | – | inserted ² | gone | inserted ² |
//! | updated | – | updated ² | deleted | updated ² |
//! | deleted | replaced | – | – | replaced |
//! | replaced | – | replaced ² | deleted | replaced ² |
//! | gone | inserted | – | – | inserted |
//! | upserted | – | upserted ² | deleted if present | upserted ² |
//! | deleted if present | – | – | – ¹ | upserted ³ |
//!
//! ¹ Within a net window a delete does not promise that the row exists: deleted if present, also twice.
//! ² The images are merged cell by cell: the later cell where it is known, else the earlier.
//! ³ Unless the target has columns that the source does not send: the delete would reset them.
//! – No log holds such a pair. The table's changes are then applied in source order, where the target says
//! what is wrong.
//!
//! Where a policy decides conflicts, nothing is merged: what becomes of a change depends on what became of the one
//! before.
//!
//! An update that changes the key is a delete of the old and an insert of the new one. No key is copied: an
//! entry refers to the cells of the change that touched the key first.

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;
use std::hash::{BuildHasher, Hasher};

use super::group::TxnGroup;
use super::resolve::Resolved;
use super::types::{Image, MergedCell, RowRef};
use crate::batch::{Batch, Cell, CellState, NO_IMAGE, Op, RowChange};
use crate::model::Identity;

/// Entries kept allocated between plans; more is given back, so that one huge group does not pin memory.
const RETAINED_ENTRIES: usize = 1 << 17;

/// What a group does to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Untouched,
    Inserted,
    Updated,
    Deleted,
    DeletedIfPresent,
    Replaced,
    Gone,
    Upserted,
}

/// Where an image's cells are: the piece whose batch holds them, and the first of them.
#[derive(Debug, Clone, Copy)]
struct CellsAt {
    piece: u32,
    first: u32,
}

/// A key and what became of it.
#[derive(Debug)]
pub(super) struct Entry {
    hash: u64,
    key_cells: CellsAt,
    /// locates the row on the target
    pub(super) key: Image,
    /// the row as it is to be, where the state says that there is one
    pub(super) image: Image,
    pub(super) state: State,
    /// whether `image` is known to hold every written column
    pub(super) complete: bool,
}

/// A change with what is needed to read it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change<'a> {
    pub(super) group: &'a TxnGroup,
    pub(super) batch: &'a Batch,
    pub(super) row: &'a RowChange,
    pub(super) at: RowRef,
    /// whether it belongs to a net window
    pub(super) window: bool,
}

/// That the table's changes cannot be merged and are to be applied in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotMergeable;

type Merge<T = ()> = std::result::Result<T, NotMergeable>;

/// The keys of one table, in the order in which the group first touches them.
#[derive(Debug, Default)]
pub(super) struct KeyedTable {
    index: HashTable<u32>,
    pub(super) entries: Vec<Entry>,
    /// updates that became a delete and an insert
    pub(super) key_changes: u64,
}

impl KeyedTable {
    pub(super) fn clear(&mut self) {
        if self.entries.capacity() > RETAINED_ENTRIES {
            *self = Self::default();
        }
        self.index.clear();
        self.entries.clear();
        self.key_changes = 0;
    }

    /// Merges one change.
    pub(super) fn merge(
        &mut self,
        table: &Resolved,
        change: Change<'_>,
        merged: &mut Vec<MergedCell>,
        hasher: &RandomState,
    ) -> Merge {
        match change.row.op {
            Op::Insert => {
                change.after_is_complete(table)?;
                let slot = self.new_key(table, change, hasher)?;
                self.first_change(table, slot)?.insert(Image::After(change.at))
            }
            Op::Upsert => {
                change.after_is_complete(table)?;
                let slot = self.new_key(table, change, hasher)?;
                self.entry(slot)?
                    .upsert(Image::After(change.at), table.target_has_more)
            }
            Op::Update => self.update(table, change, merged, hasher),
            Op::Delete => {
                let slot = self.old_key(table, change, hasher)?;
                let entry = self.first_change(table, slot)?;
                entry.delete(change.window)?;
                if entry.state == State::DeletedIfPresent {
                    entry.key = Image::Identity(change.at);
                }
                Ok(())
            }
            Op::Truncate | Op::Message => Err(NotMergeable),
        }
    }

    fn update(
        &mut self,
        table: &Resolved,
        change: Change<'_>,
        merged: &mut Vec<MergedCell>,
        hasher: &RandomState,
    ) -> Merge {
        let known = change.known_after(table);
        if known == Known::Patched {
            return Err(NotMergeable);
        }
        let slot = self.old_key(table, change, hasher)?;
        if change.changes_key(table) {
            if table.decides {
                return Err(NotMergeable);
            }
            return self.change_key(table, change, known, slot, merged, hasher);
        }
        let entry = self.first_change(table, slot)?;
        match entry.state {
            State::Untouched => {
                entry.state = State::Updated;
                entry.image = Image::After(change.at);
                entry.complete = known == Known::All;
            }
            State::Inserted | State::Updated | State::Replaced | State::Upserted => {
                if known == Known::All {
                    entry.image = Image::After(change.at);
                    entry.complete = true;
                } else {
                    entry.image = change.merge_onto(entry.image, table, merged)?;
                }
            }
            State::Deleted | State::DeletedIfPresent | State::Gone => return Err(NotMergeable),
        }
        Ok(())
    }

    /// A row that moves to another key: gone at the old, new at the other.
    fn change_key(
        &mut self,
        table: &Resolved,
        change: Change<'_>,
        known: Known,
        old: usize,
        merged: &mut Vec<MergedCell>,
        hasher: &RandomState,
    ) -> Merge {
        // An insert would give those columns their defaults, the update keeps them.
        if table.target_has_more {
            return Err(NotMergeable);
        }
        let entry = self.entry(old)?;
        let image = if known == Known::All {
            Image::After(change.at)
        } else {
            let earlier = entry.has_image().then_some(entry.image);
            change.complete_from(earlier, table, merged)?
        };
        entry.delete(false)?;
        let new = self.new_key(table, change, hasher)?;
        self.key_changes += 1;
        self.entry(new)?.insert(image)
    }

    /// The entry of a key, which must be untouched where a policy decides what becomes of the change.
    fn first_change(&mut self, table: &Resolved, slot: usize) -> Merge<&mut Entry> {
        let entry = self.entry(slot)?;
        if table.decides && entry.state != State::Untouched {
            return Err(NotMergeable);
        }
        Ok(entry)
    }

    fn entry(&mut self, slot: usize) -> Merge<&mut Entry> {
        self.entries.get_mut(slot).ok_or(NotMergeable)
    }

    /// The entry of the key that the row had before the change.
    fn old_key(&mut self, table: &Resolved, change: Change<'_>, hasher: &RandomState) -> Merge<usize> {
        // The locator may be a key that is no identity of the source: only a full old image has it for certain.
        if table.planned.source.identity != Identity::Key && !change.row.full_before {
            return Err(NotMergeable);
        }
        self.slot(
            table,
            change,
            Image::Identity(change.at),
            change.identity(),
            hasher,
        )
    }

    /// The entry of the key that the row has after the change.
    fn new_key(&mut self, table: &Resolved, change: Change<'_>, hasher: &RandomState) -> Merge<usize> {
        self.slot(table, change, Image::After(change.at), change.row.after, hasher)
    }

    fn slot(
        &mut self,
        table: &Resolved,
        change: Change<'_>,
        key: Image,
        first: u32,
        hasher: &RandomState,
    ) -> Merge<usize> {
        let locator = table.planned.locator.as_slice();
        let hash = hash_key(change.batch, first, locator, hasher).ok_or(NotMergeable)?;
        let key_cells = CellsAt {
            piece: change.at.piece,
            first,
        };
        let entries = &mut self.entries;
        let same = |number: &u32| {
            entries.get(*number as usize).is_some_and(|entry| {
                entry.hash == hash && same_key(change.group, entry.key_cells, key_cells, locator)
            })
        };
        let rehash = |number: &u32| entries.get(*number as usize).map_or(0, |entry| entry.hash);
        match self.index.entry(hash, same, rehash) {
            Slot::Occupied(found) => Ok(*found.get() as usize),
            Slot::Vacant(free) => {
                let number = entries.len();
                free.insert(u32::try_from(number).map_err(|_| NotMergeable)?);
                entries.push(Entry {
                    hash,
                    key_cells,
                    key,
                    image: key,
                    state: State::Untouched,
                    complete: false,
                });
                Ok(number)
            }
        }
    }
}

impl Entry {
    fn has_image(&self) -> bool {
        matches!(
            self.state,
            State::Inserted | State::Updated | State::Replaced | State::Upserted
        )
    }

    /// Puts a complete image at a key that must be free.
    fn insert(&mut self, image: Image) -> Merge {
        self.state = match self.state {
            State::Untouched | State::Gone => State::Inserted,
            State::Deleted => State::Replaced,
            _ => return Err(NotMergeable),
        };
        self.set(image);
        Ok(())
    }

    /// Puts a complete image at a key, whatever is there.
    fn upsert(&mut self, image: Image, target_has_more: bool) -> Merge {
        self.state = match self.state {
            State::Untouched | State::Upserted => State::Upserted,
            State::Inserted | State::Gone => State::Inserted,
            State::Updated => State::Updated,
            State::Deleted | State::Replaced => State::Replaced,
            State::DeletedIfPresent if !target_has_more => State::Upserted,
            State::DeletedIfPresent => return Err(NotMergeable),
        };
        self.set(image);
        Ok(())
    }

    fn set(&mut self, image: Image) {
        self.image = image;
        self.complete = true;
    }

    fn delete(&mut self, window: bool) -> Merge {
        self.state = match self.state {
            State::Untouched | State::DeletedIfPresent if window => State::DeletedIfPresent,
            State::Untouched | State::Updated | State::Replaced => State::Deleted,
            State::Inserted => State::Gone,
            State::Upserted => State::DeletedIfPresent,
            State::Deleted | State::DeletedIfPresent | State::Gone => return Err(NotMergeable),
        };
        Ok(())
    }
}

/// What an image says about the columns that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    All,
    Some,
    /// A cell is a difference to a value that the group need not hold.
    Patched,
}

impl Change<'_> {
    /// The first cell of the image that identifies the old row.
    fn identity(&self) -> u32 {
        if self.row.before == NO_IMAGE {
            self.row.after
        } else {
            self.row.before
        }
    }

    fn known_after(&self, table: &Resolved) -> Known {
        let mut known = Known::All;
        for column in &table.planned.written {
            match cell(self.batch, self.row.after, *column).state() {
                CellState::Null | CellState::Bytes { patch: false, .. } => {}
                CellState::Bytes { patch: true, .. } => return Known::Patched,
                CellState::Unchanged | CellState::Absent => known = Known::Some,
            }
        }
        known
    }

    pub(super) fn after_is_complete(&self, table: &Resolved) -> Merge {
        match self.known_after(table) {
            Known::All => Ok(()),
            Known::Some | Known::Patched => Err(NotMergeable),
        }
    }

    fn changes_key(&self, table: &Resolved) -> bool {
        self.row.before != NO_IMAGE
            && table.planned.locator.iter().any(|column| {
                let after = cell(self.batch, self.row.after, *column);
                match after.state() {
                    CellState::Unchanged | CellState::Absent => false,
                    _ => {
                        let before = cell(self.batch, self.row.before, *column);
                        self.batch.datum(after) != self.batch.datum(before)
                    }
                }
            })
    }

    fn after(&self, column: usize) -> MergedCell {
        MergedCell {
            piece: self.at.piece,
            cell: cell(self.batch, self.row.after, column),
        }
    }

    /// The new image laid over `earlier`. A merged image belongs to one entry alone, so it is overwritten.
    fn merge_onto(&self, earlier: Image, table: &Resolved, merged: &mut Vec<MergedCell>) -> Merge<Image> {
        let columns = table.planned.source.columns.len();
        let first = match earlier {
            Image::Merged(first) => first,
            Image::After(_) | Image::Identity(_) => {
                let first = u32::try_from(merged.len()).map_err(|_| NotMergeable)?;
                let cells = (0..columns).map(|column| cell_of(self.group, earlier, column));
                merged.extend(cells);
                first
            }
        };
        let target = merged
            .get_mut(first as usize..first as usize + columns)
            .ok_or(NotMergeable)?;
        for (column, slot) in target.iter_mut().enumerate() {
            let later = self.after(column);
            if is_known(later.cell) {
                *slot = later;
            }
        }
        Ok(Image::Merged(first))
    }

    /// The new image with what it lacks taken from `earlier`, the image of the old key in this group, or from
    /// the old image of the change itself; complete or not at all.
    fn complete_from(
        &self,
        earlier: Option<Image>,
        table: &Resolved,
        merged: &mut Vec<MergedCell>,
    ) -> Merge<Image> {
        let source = &table.planned.source;
        let start = merged.len();
        let first = u32::try_from(start).map_err(|_| NotMergeable)?;
        for (column, schema) in source.columns.iter().enumerate() {
            let before = || MergedCell {
                piece: self.at.piece,
                cell: match self.row.full_before || schema.identity {
                    true => cell(self.batch, self.row.before, column),
                    false => Cell::ABSENT,
                },
            };
            let found = [
                Some(self.after(column)),
                earlier.map(|image| match image {
                    Image::Merged(first) => merged
                        .get(first as usize + column)
                        .copied()
                        .unwrap_or_else(before),
                    _ => cell_of(self.group, image, column),
                }),
                Some(before()),
            ]
            .into_iter()
            .flatten()
            .find(|candidate| is_known(candidate.cell));
            merged.push(found.unwrap_or_else(|| self.after(column)));
        }
        let complete = table.planned.written.iter().all(|column| {
            merged
                .get(start + column)
                .is_some_and(|candidate| is_known(candidate.cell))
        });
        if complete {
            Ok(Image::Merged(first))
        } else {
            Err(NotMergeable)
        }
    }
}

/// Whether a cell says what the value is.
pub(super) fn is_known(cell: Cell) -> bool {
    matches!(
        cell.state(),
        CellState::Null | CellState::Bytes { patch: false, .. }
    )
}

fn cell(batch: &Batch, first: u32, column: usize) -> Cell {
    if first == NO_IMAGE {
        return Cell::ABSENT;
    }
    batch.cells.get(first as usize + column).unwrap_or(Cell::ABSENT)
}

/// A cell of an image that is not merged.
pub(super) fn cell_of(group: &TxnGroup, image: Image, column: usize) -> MergedCell {
    let (at, identity) = match image {
        Image::After(at) => (at, false),
        Image::Identity(at) => (at, true),
        Image::Merged(_) => {
            return MergedCell {
                piece: 0,
                cell: Cell::ABSENT,
            };
        }
    };
    let found = group.pieces.get(at.piece as usize).and_then(|piece| {
        let row = piece.batch.rows.get(at.row as usize)?;
        let first = if identity && row.before != NO_IMAGE {
            row.before
        } else {
            row.after
        };
        Some(cell(&piece.batch, first, column))
    });
    MergedCell {
        piece: at.piece,
        cell: found.unwrap_or(Cell::ABSENT),
    }
}

/// The bytes of a key column; `None` for anything that does not identify a row by its bytes.
fn key_bytes(batch: &Batch, first: u32, column: usize) -> Option<&[u8]> {
    match cell(batch, first, column).state() {
        CellState::Bytes {
            off,
            len,
            patch: false,
        } => batch.slab.get(off as usize..off as usize + len as usize),
        _ => None,
    }
}

fn hash_key(batch: &Batch, first: u32, locator: &[usize], hasher: &RandomState) -> Option<u64> {
    let mut state = hasher.build_hasher();
    for column in locator {
        state.write(key_bytes(batch, first, *column)?);
    }
    Some(state.finish())
}

fn same_key(group: &TxnGroup, one: CellsAt, other: CellsAt, locator: &[usize]) -> bool {
    let batch = |at: CellsAt| group.pieces.get(at.piece as usize).map(|piece| &*piece.batch);
    let (Some(one_batch), Some(other_batch)) = (batch(one), batch(other)) else {
        return false;
    };
    locator.iter().all(|column| {
        key_bytes(one_batch, one.first, *column) == key_bytes(other_batch, other.first, *column)
    })
}
