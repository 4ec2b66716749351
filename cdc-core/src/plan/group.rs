//! A group: the source transactions, or the part of one, that become one step of a target transaction.

use std::ops::Range;
use std::sync::Arc;

use crate::batch::{Batch, ChangeEvent};

/// Consecutive transactions of one batch.
#[derive(Debug, Clone)]
pub struct Piece {
    /// the batch
    pub batch: Arc<Batch>,
    /// transaction records taken from it
    pub txns: Range<usize>,
    /// rows taken from it: those of the transaction records
    pub rows: Range<usize>,
}

/// What is applied together, in order.
#[derive(Debug, Clone, Default)]
pub struct TxnGroup {
    /// the pieces, in commit order
    pub pieces: Vec<Piece>,
}

impl TxnGroup {
    /// Rows in the group.
    pub fn row_count(&self) -> usize {
        self.pieces.iter().map(|piece| piece.rows.len()).sum()
    }

    /// The change that a piece's batch holds at row `row`.
    pub fn event(&self, piece: usize, row: usize) -> Option<ChangeEvent<'_>> {
        self.pieces.get(piece).and_then(|piece| piece.batch.event(row))
    }
}
