//! Row records: one change, 16 bytes.

use std::sync::Arc;

use crate::model::TableSchema;

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// A new row.
    Insert,
    /// A changed row.
    Update,
    /// A removed row.
    Delete,
    /// A row that is to be as given, whether or not it existed (net changes).
    Upsert,
    /// Emptied tables; see [`Truncation`].
    Truncate,
    /// A logical message of the source, applied to nothing.
    Message,
}

impl Op {
    /// Every operation, in the order of its number.
    pub const ALL: [Self; 6] = [
        Self::Insert,
        Self::Update,
        Self::Delete,
        Self::Upsert,
        Self::Truncate,
        Self::Message,
    ];

    /// Its name in output: lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Upsert => "upsert",
            Self::Truncate => "truncate",
            Self::Message => "message",
        }
    }
}

/// How many changes of each operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpCounts([u64; Op::ALL.len()]);

impl OpCounts {
    /// Counts the operations of `rows`.
    pub fn of(rows: &[RowChange]) -> Self {
        let mut counts = Self::default();
        for row in rows {
            counts.0[row.op as usize] += 1;
        }
        counts
    }

    /// Adds the counts of another.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum += more;
        }
    }

    /// Each operation with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Op, u64)> {
        Op::ALL.into_iter().zip(self.0)
    }
}

/// The index that says "no image".
pub const NO_IMAGE: u32 = u32::MAX;

/// One change as stored; read it through [`super::ChangeEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowChange {
    pub(crate) op: Op,
    pub(crate) full_before: bool,
    pub(crate) table: u16,
    pub(crate) before: u32,
    pub(crate) after: u32,
    pub(crate) txn: u32,
}

impl RowChange {
    /// What the change does.
    pub fn op(&self) -> Op {
        self.op
    }

    /// The number of its table in the batch.
    pub fn table(&self) -> usize {
        usize::from(self.table)
    }

    /// The number of its transaction record in the batch.
    pub fn txn(&self) -> usize {
        self.txn as usize
    }

    /// The number of its truncation in the batch, for [`Op::Truncate`].
    pub fn truncation(&self) -> usize {
        self.before as usize
    }
}

/// A TRUNCATE of one or more tables in one statement.
#[derive(Debug, Clone)]
pub struct Truncation {
    /// the tables
    pub tables: Vec<Arc<TableSchema>>,
    /// whether dependants were truncated too (they are listed)
    pub cascade: bool,
    /// whether owned sequences were restarted
    pub restart_identity: bool,
}
