//! The transaction that is being decoded.

use cdc_core::engine::SiteIdentity;
use cdc_core::model::{ChangeCounts, TxnKind};
use cdc_core::{Batch, Error, Kind, Result, TxnId, TxnRecord, TxnSeq};

use super::message::{Begin, Origin};
use crate::lsn::Lsn;
use crate::sink::CameFrom;

/// From PostgreSQL's epoch (2000-01-01 UTC) back to the Unix epoch, in µs.
const PG_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A transaction whose Commit has not come yet.
#[derive(Clone, Debug)]
pub(super) struct OpenTransaction {
    pub(super) commit_lsn: Lsn,
    commit_time_micros: i64,
    origin: Option<Box<str>>,
    seen: Option<TxnId>,
    /// It is on the target already: nothing of it is handed out.
    pub(super) redelivered: bool,
    /// The stream of the same job in the other direction has applied it here: it comes from the target.
    pub(super) looped: bool,
    /// logical messages that came before it outside any transaction
    pub(super) internal_before: u64,
    /// whether a part of it has been handed out
    begun: bool,
    /// whether it has a record in the current batch
    recorded: bool,
}

impl OpenTransaction {
    /// `from` is the position the stream was opened at, which lies between transactions: what has committed below
    /// it ends at or below it.
    #[inline]
    pub(super) fn begin(begin: &Begin, from: Lsn) -> Result<OpenTransaction> {
        let Some(commit_time_micros) = begin.commit_time.checked_add(PG_EPOCH_MICROS) else {
            return Err(out_of_range(begin.commit_time));
        };
        Ok(OpenTransaction {
            commit_lsn: begin.final_lsn,
            commit_time_micros,
            origin: None,
            seen: None,
            redelivered: begin.final_lsn < from,
            looped: false,
            internal_before: 0,
            begun: false,
            recorded: false,
        })
    }

    /// Takes up where the transaction came from. A transaction may carry several; it was first written at the first.
    pub(super) fn set_origin(
        &mut self,
        origin: &Origin<'_>,
        stream: &str,
        peer: Option<&SiteIdentity>,
    ) -> Result<()> {
        if self.origin.is_some() {
            return Ok(());
        }
        self.origin = Some(origin.name.into());
        if let Some(came) = CameFrom::parse(origin.name) {
            self.looped = came.is_loop(stream, peer);
            self.seen = Some(TxnId::new(&origin.commit_lsn.0.to_be_bytes())?);
        }
        Ok(())
    }

    /// What is decoded from here on goes to another batch.
    pub(super) fn next_batch(&mut self) {
        self.recorded = false;
    }

    /// What is counted in the current batch.
    #[inline]
    pub(super) fn counts<'b>(&mut self, batch: &'b mut Batch) -> Result<&'b mut ChangeCounts> {
        Ok(&mut self.record(batch)?.counts)
    }

    /// The transaction's record in `batch`. It is made when something has to be said of the transaction and not by
    /// its Begin message, so that it has the origin, whose message may come with the next chunk.
    #[inline]
    pub(super) fn record<'b>(&mut self, batch: &'b mut Batch) -> Result<&'b mut TxnRecord> {
        if !self.recorded {
            self.begin_record(batch)?;
        }
        batch.open_txn().ok_or_else(no_record)
    }

    #[inline(never)]
    fn begin_record(&mut self, batch: &mut Batch) -> Result<()> {
        batch.begin(self.next_record()?);
        Ok(())
    }

    #[inline]
    fn next_record(&mut self) -> Result<TxnRecord> {
        let first = !std::mem::replace(&mut self.begun, true);
        self.recorded = true;
        Ok(TxnRecord {
            id: transaction_id(self.commit_lsn, Lsn::ZERO)?,
            seq: TxnSeq::default(),
            kind: TxnKind::Log,
            commit_time_micros: self.commit_time_micros,
            time_precision_micros: 1,
            origin: self.origin.clone(),
            seen: self.seen,
            rows: 0..0,
            first,
            last: false,
            counts: ChangeCounts {
                internal: std::mem::take(&mut self.internal_before),
                ..ChangeCounts::default()
            },
        })
    }
}

#[cold]
fn no_record() -> Error {
    Error::bug("an open transaction has no record in its batch")
}

#[cold]
fn out_of_range(commit_time: i64) -> Error {
    let message = format!("the commit time {commit_time} µs is out of range");
    Error::new(Kind::Protocol, message)
}

/// A transaction's identity: the LSN of its commit record and the first byte after it, 16 bytes big-endian. Before
/// the Commit message the end is not known and 0.
#[inline]
pub(super) fn transaction_id(commit_lsn: Lsn, end_lsn: Lsn) -> Result<TxnId> {
    let mut bytes = [0; 16];
    let (commit, end) = bytes.split_at_mut(8);
    commit.copy_from_slice(&commit_lsn.0.to_be_bytes());
    end.copy_from_slice(&end_lsn.0.to_be_bytes());
    TxnId::new(&bytes)
}

/// Commit LSN and end LSN of a transaction's identity.
pub(crate) fn transaction_lsns(id: &TxnId) -> Result<(Lsn, Lsn)> {
    let lsn = |bytes: &[u8; 8]| Lsn(u64::from_be_bytes(*bytes));
    match id.as_bytes().as_chunks() {
        ([commit, end], []) => Ok((lsn(commit), lsn(end))),
        _ => Err(Error::bug(format!(
            "transaction identity {id:?} is not one of PostgreSQL's"
        ))),
    }
}
