//! Transaction records: what is known of a source transaction apart from its rows.

use std::ops::{AddAssign, Range};

use serde::{Deserialize, Serialize};

use super::position::{TxnId, TxnSeq};

/// How a transaction's rows are to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxnKind {
    /// Ordered changes of a log. May be grouped with neighbours and, when large, applied in parts.
    Log,
    /// The net change of each key over a window of versions. Applied alone: deletes child to parent, then
    /// upserts parent to child, in one target transaction; never merged with another.
    NetWindow,
    /// Ordered changes of a log that were handed out before the commit ([`crate::ahead`]), and are applied but for it.
    /// The record says where they take effect; it has no rows and does not count them.
    Ahead,
}

impl TxnKind {
    /// Whether such a transaction is never grouped with another.
    pub fn is_alone(self) -> bool {
        match self {
            Self::Log => false,
            Self::NetWindow | Self::Ahead => true,
        }
    }
}

/// A source transaction, or the part of one that lies in a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct TxnRecord {
    /// its identity in the source's log
    pub id: TxnId,
    /// its order in this run; set by the pipeline, the same for all parts
    pub seq: TxnSeq,
    /// how its rows are to be understood
    pub kind: TxnKind,
    /// commit time at the source, microseconds since 1970-01-01 UTC
    pub commit_time_micros: i64,
    /// finest unit of the commit time, in microseconds (1 PostgreSQL, 1,000,000 for second-precise logs)
    pub time_precision_micros: u32,
    /// the node that first wrote it, when it was itself replicated to the source
    pub origin: Option<Box<str>>,
    /// the peer's log position up to which the source had applied when this committed; `None` when the log
    /// does not say
    pub seen: Option<TxnId>,
    /// its rows in the batch
    pub rows: Range<u32>,
    /// whether the transaction begins with these rows
    pub first: bool,
    /// whether the transaction ends with these rows
    pub last: bool,
    /// what the decoder counted for this part; `applied` and later outcomes are not its business
    pub counts: ChangeCounts,
}

impl TxnRecord {
    /// A whole transaction of a log, without rows so far; nothing but its identity is known of it.
    pub fn new(id: TxnId) -> Self {
        Self {
            id,
            seq: TxnSeq::default(),
            kind: TxnKind::Log,
            commit_time_micros: 0,
            time_precision_micros: 1,
            origin: None,
            seen: None,
            rows: 0..0,
            first: true,
            last: true,
            counts: ChangeCounts::default(),
        }
    }
}

/// The accounting of P3: `read = applied + loop + filtered + superseded + dead_lettered` over the life of a
/// stream. `coalesced` is the part of `applied` that was merged into a later change; `internal` counts
/// heartbeats, markers and messages, which are not in `read`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeCounts {
    /// row changes decoded
    pub read: u64,
    /// row changes whose effect is on the target
    pub applied: u64,
    /// of these, merged into a later change
    pub coalesced: u64,
    /// own changes that came back
    #[serde(rename = "loop")]
    pub looped: u64,
    /// not selected, or already contained in a table's seed
    pub filtered: u64,
    /// lost against a newer version under a policy
    pub superseded: u64,
    /// put aside under policy dead_letter
    pub dead_lettered: u64,
    /// heartbeats, markers, messages
    pub internal: u64,
}

impl ChangeCounts {
    /// Whether every change read has exactly one outcome.
    pub fn balanced(&self) -> bool {
        self.read == self.applied + self.looped + self.filtered + self.superseded + self.dead_lettered
    }
}

impl AddAssign for ChangeCounts {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.applied += other.applied;
        self.coalesced += other.coalesced;
        self.looped += other.looped;
        self.filtered += other.filtered;
        self.superseded += other.superseded;
        self.dead_lettered += other.dead_lettered;
        self.internal += other.internal;
    }
}
