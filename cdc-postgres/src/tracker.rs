//! Positions of a PostgreSQL source: the end LSN of the newest transaction.

use cdc_core::source::PositionTracker;
use cdc_core::{Error, Position, Result, TxnRecord};

use crate::error_map::position_lsn;
use crate::lsn::Lsn;
use crate::pgoutput::transaction_lsns;

/// Follows a stream. Its position is an LSN in text form: all transactions that end at or below it.
#[derive(Clone, Debug)]
pub struct PgTracker {
    reached: Lsn,
}

impl PgTracker {
    /// A tracker at `from`.
    pub fn new(from: Lsn) -> PgTracker {
        PgTracker { reached: from }
    }
}

impl PositionTracker for PgTracker {
    fn fold(&mut self, txn: &TxnRecord) -> Result<()> {
        let (commit_lsn, end_lsn) = transaction_lsns(&txn.id)?;
        if end_lsn <= commit_lsn {
            return Err(Error::bug("a transaction was folded before its end").at(commit_lsn));
        }
        self.reached = self.reached.max(end_lsn);
        Ok(())
    }

    fn advance(&mut self, idle: &Position) -> Result<()> {
        self.reached = self.reached.max(position_lsn(idle)?);
        Ok(())
    }

    fn position(&self) -> Position {
        Position::new(self.reached.to_string())
    }

    fn fork(&self) -> Box<dyn PositionTracker> {
        Box::new(self.clone())
    }

    /// A snapshot at consistent point P holds exactly the transactions whose commit record lies below P.
    fn is_after(&self, txn: &TxnRecord, snapshot: &Position) -> Result<bool> {
        let (commit_lsn, _) = transaction_lsns(&txn.id)?;
        Ok(commit_lsn >= position_lsn(snapshot)?)
    }

    /// The commit LSN: the end LSN is known only when the transaction has been read to its end.
    fn describe(&self, txn: &TxnRecord) -> String {
        match transaction_lsns(&txn.id) {
            Ok((commit_lsn, _)) => commit_lsn.to_string(),
            Err(_) => format!("{:?}", txn.id),
        }
    }

    fn has_reached(&self, snapshot: &Position) -> Result<bool> {
        Ok(self.reached >= position_lsn(snapshot)?)
    }
}

#[cfg(test)]
mod tests {
    use cdc_core::TxnId;

    use super::*;

    fn txn(commit: u64, end: u64) -> TxnRecord {
        TxnRecord::new(TxnId::new(&[commit.to_be_bytes(), end.to_be_bytes()].concat()).unwrap())
    }

    #[test]
    fn it_moves_to_the_end_of_transactions_and_never_back() {
        let mut tracker = PgTracker::new(Lsn(0x100));
        assert_eq!(tracker.position().as_str(), "0/100");
        tracker.fold(&txn(0x120, 0x150)).unwrap();
        assert_eq!(tracker.position().as_str(), "0/150");
        tracker.advance(&Position::new("0/140")).unwrap();
        assert_eq!(tracker.position().as_str(), "0/150");
        tracker.advance(&Position::new("1/0")).unwrap();
        assert_eq!(tracker.position().as_str(), "1/0");
        tracker.fold(&txn(0x120, 0x150)).unwrap();
        assert_eq!(tracker.position().as_str(), "1/0");
    }

    #[test]
    fn a_snapshot_holds_what_committed_below_it() {
        let tracker = PgTracker::new(Lsn(0x150));
        let snapshot = Position::new("0/150");
        assert!(!tracker.is_after(&txn(0x120, 0x150), &snapshot).unwrap());
        assert!(tracker.is_after(&txn(0x150, 0x180), &snapshot).unwrap());
        // The second half of a large transaction's parts is told by the first: its end is not known yet.
        assert!(!tracker.is_after(&txn(0x120, 0), &snapshot).unwrap());
        assert!(tracker.has_reached(&snapshot).unwrap());
        assert!(!tracker.has_reached(&Position::new("0/151")).unwrap());
    }

    #[test]
    fn what_is_not_postgresqls_is_refused() {
        let mut tracker = PgTracker::new(Lsn(1));
        assert!(tracker.fold(&txn(0x120, 0)).is_err());
        assert!(tracker.advance(&Position::new("mysql-bin.1:4")).is_err());
        let mut foreign = txn(1, 2);
        foreign.id = TxnId::new(b"gtid").unwrap();
        assert!(tracker.fold(&foreign).is_err());
    }
}
