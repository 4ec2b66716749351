//! The server itself: version, role in replication, settings that logical decoding needs.

use cdc_core::Result;
use cdc_core::engine::{Finding, JobNames, Severity, Side};
use tokio_postgres::types::Type;

use super::{Findings, Session, few};
use crate::session::during;
use crate::wire::ServerVersion;

/// The oldest server that speaks pgoutput.
const OLDEST_SOURCE: u32 = 10;
/// The oldest server that cdc-sync is tested with, on either side.
const OLDEST_TESTED: u32 = 12;
/// The newest one.
const NEWEST_TESTED: u32 = 18;

/// `PG-VERSION`, `PG-COLUMN-LIST-BUG`.
pub(super) fn version(session: &Session, found: &mut Findings) {
    judge_version(session.version, found);
}

fn judge_version(version: ServerVersion, found: &mut Findings) {
    let id = "PG-VERSION";
    let object = format!("PostgreSQL {version}");
    let oldest = if found.side == Side::Source {
        OLDEST_SOURCE
    } else {
        OLDEST_TESTED
    };
    let major = version.major();
    if major < oldest {
        let message = format!("too old: the oldest that works here is {oldest}");
        found.add((id, Severity::Fail), object, message, "use a newer server");
    } else if major < OLDEST_TESTED {
        found.add(
            (id, Severity::Warn),
            object,
            format!(
                "not tested: tests begin with {OLDEST_TESTED}. Before it, floating-point numbers have another text \
                 form, so that verify reports differences that are none"
            ),
            "try the migration on a copy first",
        );
    } else if major > NEWEST_TESTED {
        let message = format!("not tested: tests end with {NEWEST_TESTED}");
        found.add((id, Severity::Warn), object, message, "use the newest cdc-sync");
    }
    if found.side == Side::Source && (150_000..150_002).contains(&version.0) {
        found.add(
            ("PG-COLUMN-LIST-BUG", Severity::Warn),
            format!("PostgreSQL {version}"),
            "15.0 and 15.1 send more columns than a publication with column lists names",
            "update to the newest minor version of 15",
        );
    }
}

/// `PG-STANDBY`.
pub(super) fn standby(session: &Session, found: &mut Findings) {
    judge_standby(session.version, session.in_recovery, found);
}

fn judge_standby(version: ServerVersion, in_recovery: bool, found: &mut Findings) {
    if !in_recovery {
        return;
    }
    let (severity, message) = if version.major() >= 16 {
        (
            Severity::Warn,
            "the source is a standby: its log can be read, but publication, heartbeat and marker are written to the \
             primary",
        )
    } else {
        (
            Severity::Fail,
            "the source is a standby, whose log can be decoded since PostgreSQL 16 only",
        )
    };
    found.add(
        ("PG-STANDBY", severity),
        "pg_is_in_recovery",
        message,
        "give the primary's URL as --source",
    );
}

#[derive(Debug, Clone)]
struct Settings {
    wal_level: String,
    max_slots: i64,
    slots: i64,
    max_senders: i64,
    senders: i64,
    /// `None` where there is no such setting
    keep_size: Option<String>,
    /// `None` where there is no such setting
    idle_timeout: Option<String>,
    /// the job's own slot exists, and a session streams from it
    own_slot: Option<bool>,
}

/// `PG-WAL-LEVEL`, `PG-SLOTS-FREE`, `PG-WALSENDERS-FREE`, `PG-MAX-SLOT-WAL-KEEP-SIZE`, `PG-IDLE-SLOT-TIMEOUT`.
pub(super) async fn settings(session: &Session, names: &JobNames) -> Result<Vec<Finding>> {
    let row = session
        .client
        .query_typed_one(
            "SELECT current_setting('wal_level'), current_setting('max_replication_slots')::int8, \
                    (SELECT count(*) FROM pg_replication_slots), current_setting('max_wal_senders')::int8, \
                    (SELECT count(*) FROM pg_stat_replication), current_setting('max_slot_wal_keep_size', true), \
                    current_setting('idle_replication_slot_timeout', true), \
                    (SELECT active FROM pg_replication_slots WHERE slot_name = $1)",
            &[(&names.slot, Type::TEXT)],
        )
        .await
        .map_err(during("reading the server's settings"))?;
    let settings = Settings {
        wal_level: row.get(0),
        max_slots: row.get(1),
        slots: row.get(2),
        max_senders: row.get(3),
        senders: row.get(4),
        keep_size: row.get(5),
        idle_timeout: row.get(6),
        own_slot: row.get(7),
    };
    let mut found = Findings::new(Side::Source);
    judge_settings(&settings, &mut found);
    judge_limits(&settings, &mut found);
    Ok(found.list)
}

fn judge_settings(settings: &Settings, found: &mut Findings) {
    if settings.wal_level != "logical" {
        found.add(
            ("PG-WAL-LEVEL", Severity::Fail),
            "wal_level",
            format!(
                "is {}: the log does not hold what logical decoding needs",
                settings.wal_level
            ),
            "ALTER SYSTEM SET wal_level = 'logical'; then restart the server",
        );
    }
    // -1 is without limit.
    if let Some(size) = settings.keep_size.as_deref().filter(|size| *size != "-1") {
        found.add(
            ("PG-MAX-SLOT-WAL-KEEP-SIZE", Severity::Warn),
            "max_slot_wal_keep_size",
            format!("is {size}: when more log than that is written before it is applied, the slot is lost and the \
                     job must be seeded again"),
            "ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf(); or make sure that it is more \
             than what is written during the seed",
        );
    }
    if let Some(time) = settings.idle_timeout.as_deref().filter(|time| *time != "0") {
        found.add(
            ("PG-IDLE-SLOT-TIMEOUT", Severity::Warn),
            "idle_replication_slot_timeout",
            format!("is {time}: when the job does not run for that long, the slot is lost"),
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        );
    }
}

/// A job needs its slot and a walsender for good, and one more of each while it seeds again or verifies.
fn judge_limits(settings: &Settings, found: &mut Findings) {
    let own_slots = i64::from(settings.own_slot.is_some());
    let own_senders = i64::from(settings.own_slot == Some(true));
    let limits = [
        (
            "PG-SLOTS-FREE",
            "max_replication_slots",
            "slots",
            settings.max_slots,
            settings.slots,
            own_slots,
        ),
        (
            "PG-WALSENDERS-FREE",
            "max_wal_senders",
            "walsenders",
            settings.max_senders,
            settings.senders,
            own_senders,
        ),
    ];
    for (id, setting, what, max, used, own) in limits {
        let free = max - used;
        let remedy = format!(
            "ALTER SYSTEM SET {setting} = {}; then restart the server",
            used - own + 4
        );
        let message = format!("{used} of {max} {what} are in use, {} of them by this job", own);
        if free + own < 1 {
            found.add(
                (id, Severity::Fail),
                setting,
                format!("{message}; the job needs one"),
                remedy,
            );
        } else if free + own < 2 {
            let message = format!("{message}; one more is needed while it verifies or seeds again");
            found.add((id, Severity::Warn), setting, message, remedy);
        }
    }
}

/// `PG-DATABASE-SETTINGS`. Values are not shown: an application may keep a secret in a setting of its own.
pub(super) async fn database_settings(session: &Session) -> Result<Vec<Finding>> {
    let rows = session
        .client
        .query_typed(
            "SELECT DISTINCT split_part(unnest(s.setconfig), '=', 1) FROM pg_db_role_setting s \
             JOIN pg_database d ON d.oid = s.setdatabase WHERE d.datname = current_database() ORDER BY 1",
            &[],
        )
        .await
        .map_err(during("reading the settings of the database"))?;
    let settings: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let mut found = Findings::new(Side::Source);
    if !settings.is_empty() {
        found.add(
            ("PG-DATABASE-SETTINGS", Severity::Info),
            format!("database {}", session.database),
            format!(
                "has settings of its own, which are not replicated: {}",
                few(&settings)
            ),
            "ALTER DATABASE … SET … on the target; `pg_dump --create --schema-only` prints them at its begin",
        );
    }
    Ok(found.list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(found: &Findings) -> Vec<(&'static str, Severity)> {
        found
            .list
            .iter()
            .map(|finding| (finding.id, finding.severity))
            .collect()
    }

    #[test]
    fn versions() {
        let judged = |side, version| {
            let mut found = Findings::new(side);
            judge_version(ServerVersion(version), &mut found);
            ids(&found)
        };
        use Severity::{Fail, Warn};
        assert_eq!(judged(Side::Source, 90_624), [("PG-VERSION", Fail)]);
        assert_eq!(judged(Side::Source, 100_023), [("PG-VERSION", Warn)]);
        assert_eq!(judged(Side::Target, 110_022), [("PG-VERSION", Fail)]);
        assert_eq!(judged(Side::Source, 190_000), [("PG-VERSION", Warn)]);
        assert_eq!(judged(Side::Source, 150_001), [("PG-COLUMN-LIST-BUG", Warn)]);
        for fine in [120_022, 150_002, 180_004] {
            assert!(judged(Side::Source, fine).is_empty() && judged(Side::Target, fine).is_empty());
        }
        assert!(judged(Side::Target, 150_001).is_empty());
    }

    #[test]
    fn standbys() {
        let judged = |version, in_recovery| {
            let mut found = Findings::new(Side::Source);
            judge_standby(ServerVersion(version), in_recovery, &mut found);
            ids(&found)
        };
        assert_eq!(judged(150_018, true), [("PG-STANDBY", Severity::Fail)]);
        assert_eq!(judged(160_000, true), [("PG-STANDBY", Severity::Warn)]);
        assert!(judged(120_000, false).is_empty());
    }

    #[test]
    fn settings_and_limits() {
        let fine = Settings {
            wal_level: "logical".into(),
            max_slots: 10,
            slots: 2,
            max_senders: 10,
            senders: 2,
            keep_size: Some("-1".into()),
            idle_timeout: Some("0".into()),
            own_slot: None,
        };
        let judged = |settings: Settings| {
            let mut found = Findings::new(Side::Source);
            judge_settings(&settings, &mut found);
            judge_limits(&settings, &mut found);
            ids(&found)
        };
        use Severity::{Fail, Warn};
        assert!(judged(fine.clone()).is_empty());
        assert!(
            judged(Settings {
                keep_size: None,
                idle_timeout: None,
                ..fine.clone()
            })
            .is_empty()
        );
        let replica = Settings {
            wal_level: "replica".into(),
            ..fine.clone()
        };
        assert_eq!(judged(replica), [("PG-WAL-LEVEL", Fail)]);
        let limited = Settings {
            keep_size: Some("10GB".into()),
            ..fine.clone()
        };
        assert_eq!(judged(limited), [("PG-MAX-SLOT-WAL-KEEP-SIZE", Warn)]);
        let idle = Settings {
            idle_timeout: Some("1h".into()),
            ..fine.clone()
        };
        assert_eq!(judged(idle), [("PG-IDLE-SLOT-TIMEOUT", Warn)]);
        let full = Settings {
            slots: 10,
            senders: 10,
            ..fine.clone()
        };
        assert_eq!(
            judged(full),
            [("PG-SLOTS-FREE", Fail), ("PG-WALSENDERS-FREE", Fail)]
        );
        let nearly = Settings {
            slots: 9,
            senders: 9,
            ..fine.clone()
        };
        assert_eq!(
            judged(nearly),
            [("PG-SLOTS-FREE", Warn), ("PG-WALSENDERS-FREE", Warn)]
        );
        // The job's own slot and walsender are not in its way.
        let running = Settings {
            slots: 10,
            senders: 10,
            own_slot: Some(true),
            ..fine.clone()
        };
        assert_eq!(
            judged(running),
            [("PG-SLOTS-FREE", Warn), ("PG-WALSENDERS-FREE", Warn)]
        );
        let stopped = Settings {
            slots: 10,
            own_slot: Some(false),
            ..fine
        };
        assert_eq!(judged(stopped), [("PG-SLOTS-FREE", Warn)]);
    }
}
