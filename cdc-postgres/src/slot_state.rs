//! What the server says of the slot before the stream starts.

use cdc_core::{Action, Error, Kind, Result};

use crate::error::PgError;
use crate::lsn::Lsn;
use crate::walsender::WalSender;
use crate::wire::literal;
use crate::wire::{Row, ServerVersion};

/// The remedy when the log no longer fits the target.
pub(crate) const SEED_AGAIN: &str =
    "seed the target again: `cdc-sync cleanup`, then `cdc-sync run --truncate-target`";

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotState {
    name: String,
    /// `None` for a physical slot
    pub(crate) plugin: Option<String>,
    database: Option<String>,
    pub(crate) active_pid: Option<i32>,
    /// `None` until the slot's creation has ended
    pub(crate) confirmed_flush: Option<Lsn>,
    /// PostgreSQL 13 and later
    wal_status: Option<String>,
    /// PostgreSQL 17 and later
    invalidation_reason: Option<String>,
}

impl SlotState {
    /// Reads the row; `None` when there is no slot of this name.
    pub(crate) async fn read(sender: &mut WalSender, slot: &str) -> Result<Option<SlotState>, PgError> {
        let sql = query(sender.server_version(), slot);
        let results = sender.command(&sql).await?;
        let row = results.first().and_then(|result| result.rows.first());
        row.map(|row| SlotState::of(slot, row)).transpose()
    }

    fn of(slot: &str, row: &Row) -> Result<SlotState, PgError> {
        let text = |column| Ok::<_, PgError>(row.text(column)?.map(str::to_owned));
        let wrong = || PgError::protocol(format!("pg_replication_slots has odd values for slot {slot}"));
        let pid = row.text(2)?.map(str::parse).transpose().map_err(|_| wrong())?;
        let lsn = row.text(3)?.map(str::parse).transpose().map_err(|_| wrong())?;
        Ok(SlotState {
            name: slot.to_owned(),
            plugin: text(0)?,
            database: text(1)?,
            active_pid: pid,
            confirmed_flush: lsn,
            wal_status: text(4)?,
            invalidation_reason: text(5)?,
        })
    }

    /// Whether the stream can start at `from`: otherwise the server would start elsewhere and say nothing.
    pub(crate) fn expect_usable(&self, database: &str, from: Lsn) -> Result<()> {
        let lost = |message: String| Err(position_lost(&self.name, message));
        if self.plugin.as_deref() != Some("pgoutput") || self.database.as_deref() != Some(database) {
            return lost(format!(
                "it is a slot of plugin {} for database {}, not of pgoutput for {database}",
                self.plugin.as_deref().unwrap_or("none (physical)"),
                self.database.as_deref().unwrap_or("none"),
            ));
        }
        if self.wal_status.as_deref() == Some("lost") || self.invalidation_reason.is_some() {
            return lost(format!(
                "the server has invalidated it ({}): the WAL after the checkpoint is gone",
                self.invalidation_reason
                    .as_deref()
                    .unwrap_or("wal_status is lost"),
            ));
        }
        match self.confirmed_flush {
            None => lost("its creation has not ended".into()),
            Some(confirmed) if confirmed > from => lost(format!(
                "the slot is ahead of the checkpoint: it is confirmed up to {confirmed}, the checkpoint is at \
                 {from}, and what lies between cannot be read again",
            )),
            Some(_) => Ok(()),
        }
    }

    /// There is no such slot.
    pub(crate) fn missing(slot: &str) -> Error {
        position_lost(slot, "it does not exist on the source any more".into())
    }

    /// Somebody else reads the slot.
    pub(crate) fn in_use(&self, pid: i32) -> Error {
        Error::new(
            Kind::Fenced,
            format!("the session with PID {pid} on the source uses it"),
        )
        .action(Action::Retry)
        .object(format!("slot {}", self.name))
        .remedy(format!(
            "end that reader, or on the source: SELECT pg_terminate_backend({pid})"
        ))
    }

    /// Ends the session `pid` if it still reads the slot and carries our name; whether it did.
    pub(crate) async fn end_walsender(
        &self,
        sender: &mut WalSender,
        pid: i32,
        application_name: &str,
    ) -> Result<bool, PgError> {
        // One statement, so that the PID cannot have passed to another session in between.
        let sql = format!(
            "SELECT pg_catalog.pg_terminate_backend(s.active_pid) FROM pg_catalog.pg_replication_slots s \
             JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
             WHERE s.slot_name = {} AND s.active_pid = {pid} AND a.application_name = {}",
            literal(&self.name),
            literal(application_name)
        );
        let results = sender.command(&sql).await?;
        let row = results.first().and_then(|result| result.rows.first());
        Ok(row.map(|row| row.text(0)).transpose()?.flatten() == Some("t"))
    }
}

fn query(version: ServerVersion, slot: &str) -> String {
    let since = |major, column| if version.major() >= major { column } else { "NULL" };
    format!(
        "SELECT plugin, database, active_pid, confirmed_flush_lsn, {}, {} \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
        since(13, "wal_status"),
        since(17, "invalidation_reason"),
        literal(slot)
    )
}

fn position_lost(slot: &str, message: String) -> Error {
    Error::new(Kind::PositionLost, message)
        .object(format!("slot {slot}"))
        .remedy(SEED_AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable() -> SlotState {
        SlotState {
            name: "s".into(),
            plugin: Some("pgoutput".into()),
            database: Some("d".into()),
            active_pid: None,
            confirmed_flush: Some(Lsn(0x20)),
            wal_status: Some("reserved".into()),
            invalidation_reason: None,
        }
    }

    #[test]
    fn a_slot_behind_or_at_the_checkpoint_is_usable() {
        assert!(usable().expect_usable("d", Lsn(0x20)).is_ok());
        assert!(usable().expect_usable("d", Lsn(0x30)).is_ok());
    }

    #[test]
    fn every_other_slot_is_refused_with_the_reason() {
        let mut lost = usable();
        lost.wal_status = Some("lost".into());
        let mut invalidated = usable();
        invalidated.invalidation_reason = Some("idle_timeout".into());
        let mut unfinished = usable();
        unfinished.confirmed_flush = None;
        let mut physical = usable();
        physical.plugin = None;
        for (slot, from, reason) in [
            (usable(), 0x1F, "ahead of the checkpoint"),
            (lost, 0x20, "wal_status is lost"),
            (invalidated, 0x20, "idle_timeout"),
            (unfinished, 0x20, "creation has not ended"),
            (physical, 0x20, "none (physical)"),
        ] {
            let error = slot.expect_usable("d", Lsn(from)).unwrap_err();
            assert_eq!(error.kind(), Kind::PositionLost);
            assert!(error.to_string().contains(reason), "{error}");
            assert!(error.remedy_text().is_some());
        }
        assert!(usable().expect_usable("other", Lsn(0x20)).is_err());
    }

    #[test]
    fn columns_are_asked_for_where_they_exist() {
        let sql = |version| query(ServerVersion(version), "s'1");
        assert!(sql(120_022).contains("confirmed_flush_lsn, NULL, NULL FROM"));
        assert!(sql(160_000).contains("wal_status, NULL FROM"));
        assert!(sql(170_000).contains("wal_status, invalidation_reason FROM"));
        assert!(sql(170_000).ends_with("slot_name = 's''1'"));
    }
}
