//! Who else works on a database: other slots, publications and subscriptions, triggers on DDL, scheduled jobs, and
//! sessions that take up connections.

use cdc_core::Result;
use cdc_core::engine::{Finding, JobNames, Severity, Side};
use tokio_postgres::types::Type;

use super::{Findings, Session, few};
use crate::session::during;
use crate::wire::session::{identifier, literal};

/// `PG-SLOT-INACTIVE`. Slots that nobody reads hold back the log of the whole server.
pub(super) async fn slots(session: &Session, side: Side, names: &JobNames) -> Result<Vec<Finding>> {
    let end = if session.in_recovery {
        "pg_last_wal_replay_lsn()"
    } else {
        "pg_current_wal_lsn()"
    };
    let statement = format!(
        "SELECT slot_name::text, pg_size_pretty(GREATEST(pg_wal_lsn_diff({end}, restart_lsn), 0)) \
         FROM pg_replication_slots WHERE NOT active AND NOT temporary AND restart_lsn IS NOT NULL \
              AND slot_name <> $1 ORDER BY restart_lsn LIMIT 50"
    );
    let rows = session
        .client
        .query_typed(&statement, &[(&names.slot, Type::TEXT)])
        .await
        .map_err(during("looking for other replication slots"))?;
    let mut found = Findings::new(side);
    for row in rows {
        let (slot, retained): (String, String) = (row.get(0), row.get(1));
        let whose = if slot.starts_with("cdc_sync_") {
            "another job of cdc-sync"
        } else {
            "another program"
        };
        found.add(
            ("PG-SLOT-INACTIVE", Severity::Warn),
            format!("replication slot {slot}"),
            format!("of {whose}, is read by nobody and holds back {retained} of the log"),
            format!(
                "start its reader, or: SELECT pg_drop_replication_slot({});",
                literal(&slot)
            ),
        );
    }
    Ok(found.list)
}

/// `PG-PUBLICATION-ALL-TABLES`.
pub(super) async fn publications(session: &Session, names: &JobNames) -> Result<Vec<Finding>> {
    let rows = session
        .client
        .query_typed(
            "SELECT pubname::text FROM pg_publication WHERE puballtables AND pubname <> $1 ORDER BY 1",
            &[(&names.slot, Type::TEXT)],
        )
        .await
        .map_err(during("looking for other publications"))?;
    let mut found = Findings::new(Side::Source);
    for row in rows {
        let publication: String = row.get(0);
        found.add(
            ("PG-PUBLICATION-ALL-TABLES", Severity::Warn),
            format!("publication {publication}"),
            "is FOR ALL TABLES: its subscribers will be sent the changes of cdc_sync.heartbeat and cdc_sync.marker, \
             and a subscription without these tables stops",
            "where it is subscribed to: CREATE SCHEMA cdc_sync; and the tables of `cdc-sync init` for the source",
        );
    }
    Ok(found.list)
}

/// `PG-SUBSCRIPTION`.
pub(super) async fn subscriptions(session: &Session) -> Result<Vec<Finding>> {
    let rows = session
        .client
        .query_typed(
            "SELECT subname::text FROM pg_subscription WHERE subenabled \
                    AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1",
            &[],
        )
        .await
        .map_err(during("looking for subscriptions"))?;
    let mut found = Findings::new(Side::Target);
    for row in rows {
        let subscription: String = row.get(0);
        found.add(
            ("PG-SUBSCRIPTION", Severity::Warn),
            format!("subscription {subscription}"),
            "writes to the target too: rows that both bring are there twice, or stop one of them",
            format!("ALTER SUBSCRIPTION {} DISABLE;", identifier(&subscription)),
        );
    }
    Ok(found.list)
}

/// `PG-EVENT-TRIGGER`.
pub(super) async fn event_triggers(session: &Session, side: Side) -> Result<Vec<Finding>> {
    let rows = session
        .client
        .query_typed(
            "SELECT evtname::text, evtevent::text FROM pg_event_trigger WHERE evtenabled <> 'D' \
             AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = 'pg_event_trigger'::regclass \
                             AND x.objid = pg_event_trigger.oid AND x.deptype = 'e') ORDER BY 1",
            &[],
        )
        .await
        .map_err(during("looking for event triggers"))?;
    let effect = if side == Side::Target {
        "fires while the schema is created, and may refuse or change it"
    } else {
        "fires when schema cdc_sync and the publication are made, and may refuse it"
    };
    let mut found = Findings::new(side);
    for row in rows {
        let (trigger, event): (String, String) = (row.get(0), row.get(1));
        found.add(
            ("PG-EVENT-TRIGGER", Severity::Warn),
            format!("event trigger {trigger}"),
            format!("on {event}: {effect}"),
            format!(
                "see what it does, or as a superuser: ALTER EVENT TRIGGER {} DISABLE;",
                identifier(&trigger)
            ),
        );
    }
    Ok(found.list)
}

/// `PG-CRON-JOBS`. Its table is there only in the database that pg_cron is set up in.
pub(super) async fn cron_jobs(session: &Session, side: Side) -> Result<Vec<Finding>> {
    let exists = session
        .client
        .query_typed_one("SELECT to_regclass('cron.job') IS NOT NULL", &[])
        .await
        .map_err(during("looking for pg_cron"))?;
    let mut found = Findings::new(side);
    if !exists.get::<_, bool>(0) {
        return Ok(found.list);
    }
    let rows = session
        .client
        .query_typed(
            "SELECT format('job %s (%s)', jobid, schedule) FROM cron.job \
             WHERE active AND database = current_database() ORDER BY jobid",
            &[],
        )
        .await
        .map_err(during("reading the jobs of pg_cron"))?;
    let jobs: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if jobs.is_empty() {
        return Ok(found.list);
    }
    let (severity, effect, remedy) = if side == Side::Target {
        (
            Severity::Warn,
            "what they write on the target comes on top of what is replicated",
            "SELECT cron.alter_job(jobid, active := false) FROM cron.job; until the target takes over",
        )
    } else {
        (
            Severity::Info,
            "they are not replicated",
            "when the target takes over: SELECT cron.schedule(…) there for each of them, and unschedule them here",
        )
    };
    found.add(
        ("PG-CRON-JOBS", severity),
        format!("{} jobs of pg_cron", jobs.len()),
        format!("{effect}: {}", few(&jobs)),
        remedy,
    );
    Ok(found.list)
}

/// Connections that a job has open at its busiest: reader, applier, heartbeat, and the parts of the copy.
const CONNECTIONS: i64 = 10;

/// `PG-CONNECTIONS-FREE`. The narrowest of the limits of server, database and role counts.
pub(super) async fn connections(session: &Session, side: Side) -> Result<Vec<Finding>> {
    let rows = session
        .client
        .query_typed(
            "WITH used AS (SELECT datname, usename FROM pg_stat_activity WHERE backend_type = 'client backend' \
                           AND pid <> pg_backend_pid()) \
             SELECT 'max_connections', current_setting('max_connections')::int8 \
                    - current_setting('superuser_reserved_connections')::int8, (SELECT count(*) FROM used) \
             UNION ALL SELECT 'connection limit of database ' || datname, datconnlimit::int8, \
                    (SELECT count(*) FROM used u WHERE u.datname = d.datname) \
             FROM pg_database d WHERE datname = current_database() AND datconnlimit >= 0 \
             UNION ALL SELECT 'connection limit of role ' || rolname, rolconnlimit::int8, \
                    (SELECT count(*) FROM used u WHERE u.usename = r.rolname) \
             FROM pg_roles r WHERE rolname = current_user AND rolconnlimit >= 0",
            &[],
        )
        .await
        .map_err(during("counting connections"))?;
    let mut found = Findings::new(side);
    for row in rows {
        let (limit, of, used): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        judge_connections(&limit, of, used, &mut found);
    }
    Ok(found.list)
}

fn judge_connections(limit: &str, of: i64, used: i64, found: &mut Findings) {
    let free = (of - used).max(0);
    if free < CONNECTIONS {
        found.add(
            ("PG-CONNECTIONS-FREE", Severity::Warn),
            limit.to_owned(),
            format!("{used} of {of} connections are in use; a job opens up to {CONNECTIONS}, fewer with a smaller --parallel"),
            "raise the limit, or close what is not needed: ALTER SYSTEM SET max_connections = …; and restart, ALTER \
             DATABASE … or ALTER ROLE … CONNECTION LIMIT …;",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_needs_room_for_its_connections() {
        let judged = |of, used| {
            let mut found = Findings::new(Side::Source);
            judge_connections("max_connections", of, used, &mut found);
            found.list.len()
        };
        assert_eq!(judged(97, 97 - CONNECTIONS), 0);
        assert_eq!(judged(97, 98 - CONNECTIONS), 1);
        assert_eq!(judged(3, 9), 1);
    }
}
