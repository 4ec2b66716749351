//! The cells of all images, one after the other.

use super::Cell;

/// Cells that keep their memory when they are cleared, and what was last written there: an image gets its room without
/// that being blanked first, which would cost a tenth of decoding a row of ten columns.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    /// all that there is memory for
    room: Vec<Cell>,
    used: usize,
}

impl Cells {
    /// How many there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// How many there is memory for.
    pub(crate) fn capacity(&self) -> usize {
        self.room.capacity()
    }

    /// All of them.
    pub(crate) fn as_slice(&self) -> &[Cell] {
        self.room.get(..self.used).unwrap_or_default()
    }

    /// The cell at `index`.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<Cell> {
        if index >= self.used {
            return None;
        }
        self.room.get(index).copied()
    }

    /// Adds `count` cells for the caller to fill: they hold anything.
    #[inline(always)]
    pub(crate) fn add(&mut self, count: usize) -> &mut [Cell] {
        let start = self.used;
        let end = start + count;
        if end > self.room.len() {
            self.grow(count);
        }
        self.used = end;
        self.room.get_mut(start..end).unwrap_or_default()
    }

    #[cold]
    fn grow(&mut self, count: usize) {
        self.room.reserve(count);
        self.room.resize(self.room.capacity(), Cell::ABSENT);
    }

    /// Adds one.
    pub(crate) fn push(&mut self, cell: Cell) {
        self.add(1).fill(cell);
    }

    /// Forgets those from `start` on.
    pub(crate) fn truncate(&mut self, start: usize) {
        self.used = self.used.min(start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_forgotten_is_out_of_reach() {
        let mut cells = Cells::default();
        cells.add(3).fill(Cell::NULL);
        cells.push(Cell::UNCHANGED);
        assert_eq!(
            cells.as_slice(),
            [Cell::NULL, Cell::NULL, Cell::NULL, Cell::UNCHANGED]
        );
        cells.truncate(2);
        assert_eq!(
            (cells.len(), cells.get(1), cells.get(2)),
            (2, Some(Cell::NULL), None)
        );
        cells.truncate(3);
        assert_eq!(cells.len(), 2, "nothing is brought back");
        assert_eq!(cells.add(5000).len(), 5000);
        assert_eq!(cells.as_slice().len(), 5002);
    }
}
