//! Creating and dropping logical replication slots.

use super::{Fields, WalSender};
use crate::error::PgError;
use crate::lsn::Lsn;
use crate::wire::session::identifier;
use crate::wire::{Feature, ServerVersion};

/// What becomes of the snapshot that a new slot starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotSnapshot {
    /// Export it: other sessions can read exactly what the stream does not bring. It lives until this connection
    /// runs its next command or ends.
    Export,
    /// Do not keep it.
    None,
}

/// A slot to create, with the plugin `pgoutput`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateSlot<'a> {
    /// 1 to 63 of the characters `a`–`z`, `0`–`9` and `_`.
    pub name: &'a str,
    /// The slot is dropped when the connection ends.
    pub temporary: bool,
    /// What becomes of the snapshot.
    pub snapshot: SlotSnapshot,
    /// The slot is kept in step on standbys (PostgreSQL 17 and later).
    pub failover: bool,
}

impl CreateSlot<'_> {
    fn to_sql(&self, version: ServerVersion) -> Result<String, PgError> {
        let temporary = if self.temporary { " TEMPORARY" } else { "" };
        let head = format!(
            "CREATE_REPLICATION_SLOT {}{temporary} LOGICAL pgoutput",
            slot_name(self.name)?
        );
        if self.failover {
            version.require(Feature::FailoverSlots, "a failover slot")?;
        }
        if !version.has(Feature::SlotOptionList) {
            let snapshot = match self.snapshot {
                SlotSnapshot::Export => "EXPORT_SNAPSHOT",
                SlotSnapshot::None => "NOEXPORT_SNAPSHOT",
            };
            return Ok(format!("{head} {snapshot}"));
        }
        let snapshot = match self.snapshot {
            SlotSnapshot::Export => "export",
            SlotSnapshot::None => "nothing",
        };
        let failover = if self.failover { ", FAILOVER true" } else { "" };
        Ok(format!("{head} (SNAPSHOT '{snapshot}'{failover})"))
    }
}

/// A slot that was just created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Its name.
    pub slot: String,
    /// The stream brings every transaction that commits at or after this position, and none before.
    pub consistent_point: Lsn,
    /// For `SET TRANSACTION SNAPSHOT`, if one was exported.
    pub snapshot_name: Option<String>,
}

/// The name as an identifier of the replication grammar. Checked here, because the server's message for a bad name
/// would come after it has waited for a snapshot.
pub(super) fn slot_name(name: &str) -> Result<String, PgError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(allowed) {
        return Err(PgError::usage(format!(
            "{name:?} is not a slot name: 1 to 63 lower-case letters, digits and underscores"
        )));
    }
    Ok(identifier(name))
}

impl WalSender {
    /// Creates a slot.
    ///
    /// The server first waits for every transaction that is writing now to end, without a time limit. Meanwhile
    /// `pg_stat_activity` shows whom it waits for; to give up, use [`WalSender::cancel_token`].
    pub async fn create_logical_slot(&mut self, slot: &CreateSlot<'_>) -> Result<CreatedSlot, PgError> {
        let results = self.command(&slot.to_sql(self.server_version())?).await?;
        let fields = Fields::of(&results, "CREATE_REPLICATION_SLOT")?;
        let created = CreatedSlot {
            slot: fields.required("slot_name")?.to_owned(),
            consistent_point: fields.parsed("consistent_point")?,
            snapshot_name: fields
                .optional("snapshot_name")?
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
        };
        if slot.snapshot == SlotSnapshot::Export && created.snapshot_name.is_none() {
            return Err(PgError::protocol(
                "the server created the slot without the snapshot that was asked for",
            ));
        }
        Ok(created)
    }

    /// Drops a slot. With `wait`, first waits until no session uses it; without, a slot in use is an error.
    pub async fn drop_slot(&mut self, name: &str, wait: bool) -> Result<(), PgError> {
        let wait = if wait { " WAIT" } else { "" };
        self.command(&format!("DROP_REPLICATION_SLOT {}{wait}", slot_name(name)?))
            .await
            .map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_syntax_follows_the_version() {
        let slot = |temporary, snapshot, failover| CreateSlot {
            name: "s_1",
            temporary,
            snapshot,
            failover,
        };
        let sql = |version, slot: CreateSlot<'_>| slot.to_sql(ServerVersion(version)).unwrap();
        let head = "CREATE_REPLICATION_SLOT \"s_1\"";
        for version in [120_022, 140_001] {
            assert_eq!(
                sql(version, slot(false, SlotSnapshot::Export, false)),
                format!("{head} LOGICAL pgoutput EXPORT_SNAPSHOT")
            );
            assert_eq!(
                sql(version, slot(true, SlotSnapshot::None, false)),
                format!("{head} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT")
            );
        }
        assert_eq!(
            sql(150_000, slot(true, SlotSnapshot::Export, false)),
            format!("{head} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')")
        );
        assert_eq!(
            sql(170_000, slot(false, SlotSnapshot::None, true)),
            format!("{head} LOGICAL pgoutput (SNAPSHOT 'nothing', FAILOVER true)")
        );
        assert!(
            slot(false, SlotSnapshot::None, true)
                .to_sql(ServerVersion(160_000))
                .is_err()
        );
    }

    #[test]
    fn slot_names_are_checked() {
        assert!(slot_name("cdc_sync_0f").is_ok() && slot_name(&"a".repeat(63)).is_ok());
        for bad in ["", "A", "a-b", "a\"b", "ä", &"a".repeat(64)] {
            assert!(slot_name(bad).is_err(), "{bad}");
        }
    }
}
