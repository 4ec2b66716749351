//! Heartbeats and markers: rows that cdc-sync wrote on the source for itself.

use crate::error::Result;
use crate::model::{TableRole, Value};
use crate::plan::TxnGroup;

/// What a group carries besides user data.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct InternalRows {
    /// heartbeats, in order
    pub(super) beats: Vec<i64>,
    /// marker ids, in order
    pub(super) markers: Vec<String>,
}

/// Reads the heartbeats and markers of a group. Costs nothing for batches without such tables.
pub(super) fn internal_rows(group: &TxnGroup) -> Result<InternalRows> {
    let mut found = InternalRows::default();
    for piece in &group.pieces {
        if piece
            .batch
            .tables()
            .iter()
            .all(|table| table.role == TableRole::User)
        {
            continue;
        }
        for row in piece.rows.clone() {
            let Some(event) = piece.batch.event(row) else {
                continue;
            };
            let Some(table) = event.table() else { continue };
            if !event.has_after() {
                continue;
            }
            match table.role {
                TableRole::User => {}
                TableRole::Heartbeat => {
                    if let Some(column) = table.column("beat")
                        && let Value::Int(beat) = event.value(column)?
                    {
                        found.beats.push(beat);
                    }
                }
                TableRole::Marker => {
                    if let Some(column) = table.column("id")
                        && let Value::Text(id) = event.value(column)?
                    {
                        found.markers.push(id.to_owned());
                    }
                }
            }
        }
    }
    Ok(found)
}
