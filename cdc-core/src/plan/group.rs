//! A group: the source transactions, or the part of one, that become one step of a target transaction.

use std::ops::Range;
use std::sync::Arc;

use crate::batch::{Batch, ChangeEvent};
use crate::model::{TxnKind, TxnRecord};

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
    /// The transaction that was applied ahead of its commit, if this is the group of one.
    pub fn ahead(&self) -> Option<&TxnRecord> {
        let piece = self.pieces.first()?;
        let txn = piece.batch.txns().get(piece.txns.start)?;
        (txn.kind == TxnKind::Ahead).then_some(txn)
    }

    /// The change that a piece's batch holds at row `row`.
    pub fn event(&self, piece: usize, row: usize) -> Option<ChangeEvent<'_>> {
        self.pieces.get(piece).and_then(|piece| piece.batch.event(row))
    }
}
