//! From batches to what the target is told: grouping whole source transactions, then planning a group as net
//! sets per table where the order is invisible and as ordered statements otherwise.

mod coalesce;
mod compile;
mod emit;
mod facts;
mod group;
mod resolve;
mod spare;
mod types;

pub use compile::{PlanMode, Planner};
pub use facts::{TargetCatalog, TargetColumn, TargetTable, UniqueKey};
pub use group::{Piece, TxnGroup};
pub use types::{ApplyPlan, Image, MergedCell, NetTable, OrderedRow, PlannedTable, RowRef, Step, UpdateSet};
