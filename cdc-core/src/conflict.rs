//! Conflicts: a change meets a target that is not as the source's log makes it, and a policy says who wins.
//!
//! The sides are named by site, never "local" and "remote": blue is the source, green the target, so that both ends of
//! a two-way replication come to the same winner from the same words.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::batch::ChangeEvent;
use crate::error::Error;
use crate::model::{Position, TableName};

/// What a change found on the target. The names are those of PostgreSQL 18's conflict statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConflictKind {
    /// The row to insert, or another one with a unique value of it, is there.
    InsertExists,
    /// The row to update is not there.
    UpdateMissing,
    /// A unique value that an update sets belongs to another row.
    UpdateExists,
    /// Rows in the way violate more than one unique constraint.
    MultipleUniqueConflicts,
    /// The row to delete is not there.
    DeleteMissing,
    /// The row to update has a newer version. Only with a version column.
    UpdateOriginDiffers,
    /// The row to delete has a newer version than the one that was deleted. Only with a version column.
    DeleteOriginDiffers,
}

impl ConflictKind {
    /// Its name in output and in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::InsertExists => "insert_exists",
            Self::UpdateMissing => "update_missing",
            Self::UpdateExists => "update_exists",
            Self::MultipleUniqueConflicts => "multiple_unique_conflicts",
            Self::DeleteMissing => "delete_missing",
            Self::UpdateOriginDiffers => "update_origin_differs",
            Self::DeleteOriginDiffers => "delete_origin_differs",
        }
    }
}

/// Who wins a conflict on a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Policy {
    /// Nobody: the stream stops and names the row.
    #[default]
    Stop,
    /// The change is applied; what is in its way goes.
    BlueWins,
    /// The target stays as it is.
    GreenWins,
    /// The row with the higher version; blue's when they are equal.
    Lww(VersionColumns),
    /// The target stays as it is, and the change is put aside for the operator.
    DeadLetter,
    /// A [`ConflictHandler`] of the embedding program is asked.
    Ask,
}

impl Policy {
    /// Its name in job files, output and the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::BlueWins => "blue_wins",
            Self::GreenWins => "green_wins",
            Self::Lww(_) => "lww",
            Self::DeadLetter => "dead_letter",
            Self::Ask => "ask",
        }
    }

    /// Whether statements decide conflicts by themselves; otherwise a conflict is an error of the statement.
    pub fn decides(&self) -> bool {
        !matches!(self, Self::Stop | Self::Ask)
    }
}

/// The columns whose values are a row's version, compared in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionColumns {
    /// a time or a number that grows with each change of the row
    pub version: String,
    /// which node made the change: decides between equal times
    pub node: Option<String>,
}

/// Which table has which policy: the first rule that matches, else [`Policy::Stop`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyRules(pub Vec<PolicyRule>);

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// tables, as [`crate::TableSelection`] has them
    pub pattern: String,
    /// what holds for them
    pub policy: Policy,
}

impl PolicyRules {
    /// The policy of a table.
    pub fn policy(&self, table: &TableName) -> Policy {
        let mut rules = self.0.iter();
        rules
            .find(|rule| crate::engine::matches_pattern(&rule.pattern, table))
            .map_or(Policy::Stop, |rule| rule.policy.clone())
    }
}

/// Which side a settled conflict went to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Winner {
    /// the change was applied
    Blue,
    /// the target's row stayed
    Green,
    /// both want the same: a row that was to be deleted is not there
    Both,
    /// nobody yet: put aside
    None,
}

/// A conflict as the target's log has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConflictRecord {
    /// its number
    pub id: i64,
    /// when it was met, by the target's clock, RFC 3339
    pub time: String,
    /// the table
    #[serde(serialize_with = "as_text")]
    pub table: TableName,
    /// the key of the change: column to text
    pub key: BTreeMap<String, Option<String>>,
    /// `insert`, `update` or `delete`
    pub op: String,
    /// [`ConflictKind::name`]
    pub kind: String,
    /// [`Policy::name`]
    pub policy: String,
    /// who won: `blue`, `green`, `both` or `none`
    pub winner: String,
    /// the source transaction
    #[serde(serialize_with = "as_text")]
    pub position: Position,
    /// what has become of one that was put aside: `open`, `retried`, `discarded`; `settled` for all others
    pub state: String,
    /// what the change carried, a JSON object
    #[serde(skip)]
    pub blue: Option<String>,
    /// what the target had in its way, a JSON object, or a list when it was several rows
    #[serde(skip)]
    pub green: Option<String>,
}

fn as_text<S: serde::Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// A conflict that an embedding program is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Conflict<'a> {
    /// the table
    pub table: &'a TableName,
    /// what happened, and to which row: its message begins with the kind's name
    pub error: &'a Error,
    /// the change
    pub change: ChangeEvent<'a>,
}

/// Decides conflicts of tables under [`Policy::Ask`]. Called on the apply thread: the stream waits for the answer.
/// Changes without conflicts never come here.
pub trait ConflictHandler: Send + Sync {
    /// The policy by which this one conflict is decided. [`Policy::Stop`] and [`Policy::Ask`] stop the stream.
    fn decide(&self, conflict: &Conflict<'_>) -> Policy;
}
