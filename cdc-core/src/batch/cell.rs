//! A cell: where a value's bytes are, or why there are none. Eight bytes.

const NULL: u32 = u32::MAX;
const UNCHANGED: u32 = u32::MAX - 1;
const ABSENT: u32 = u32::MAX - 2;
const PATCH_BIT: u32 = 1 << 31;

/// One column of one row image, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    off: u32,
    len: u32,
}

/// What a [`Cell`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellState {
    /// SQL NULL.
    Null,
    /// The source did not send the value because it did not change (PostgreSQL: unchanged TOAST).
    Unchanged,
    /// The source's image does not contain the column (minimal row image, non-key column of a key image).
    Absent,
    /// Bytes of the slab; `patch` when they are a difference to the old value (JSON diff).
    Bytes {
        /// offset in the slab
        off: u32,
        /// length in bytes
        len: u32,
        /// whether the bytes are a difference
        patch: bool,
    },
}

impl Cell {
    /// SQL NULL.
    pub const NULL: Self = Self { off: 0, len: NULL };
    /// Not sent because unchanged.
    pub const UNCHANGED: Self = Self {
        off: 0,
        len: UNCHANGED,
    };
    /// Not part of the image.
    pub const ABSENT: Self = Self { off: 0, len: ABSENT };

    /// Bytes of the slab. `off` must be below 2 GiB, which the batch sees to.
    #[inline]
    pub fn bytes(off: u32, len: u32) -> Self {
        Self { off, len }
    }

    /// A difference to the old value.
    pub(crate) fn patch(off: u32, len: u32) -> Self {
        Self {
            off: off | PATCH_BIT,
            len,
        }
    }

    /// What the cell says.
    #[inline]
    pub fn state(self) -> CellState {
        match self.len {
            // Most have bytes: one comparison for these.
            len if len < ABSENT => CellState::Bytes {
                off: self.off & !PATCH_BIT,
                len,
                patch: self.off & PATCH_BIT != 0,
            },
            NULL => CellState::Null,
            UNCHANGED => CellState::Unchanged,
            _ => CellState::Absent,
        }
    }
}
