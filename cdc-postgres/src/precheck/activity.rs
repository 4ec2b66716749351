//! Who works on the source now: transactions that hold back a slot, and the clients that a cutover will move.

use cdc_core::Result;
use cdc_core::engine::{Finding, JobNames, Severity, Side};
use tokio_postgres::types::Type;

use super::{Findings, Session};
use crate::session::during;

#[derive(Debug, Clone)]
struct Prepared {
    gid: String,
    owner: String,
    database: String,
    seconds: i64,
}

/// `PG-PREPARED-XACT`. A slot is made when every transaction that writes, anywhere in the cluster, has ended; a
/// prepared one has no session that could end.
pub(super) async fn prepared(session: &Session, names: &JobNames) -> Result<Vec<Finding>> {
    let rows = session
        .client
        .query_typed(
            "SELECT gid, owner::text, database::text, \
                    GREATEST(extract(epoch FROM clock_timestamp() - prepared), 0)::int8, \
                    EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1) \
             FROM pg_prepared_xacts ORDER BY prepared LIMIT 50",
            &[(&names.slot, Type::TEXT)],
        )
        .await
        .map_err(during("looking for prepared transactions"))?;
    let mut found = Findings::new(Side::Source);
    for row in rows {
        let prepared = Prepared {
            gid: row.get(0),
            owner: row.get(1),
            database: row.get(2),
            seconds: row.get(3),
        };
        judge_prepared(&prepared, row.get(4), &mut found);
    }
    Ok(found.list)
}

fn judge_prepared(prepared: &Prepared, slot_exists: bool, found: &mut Findings) {
    let (severity, effect) = if slot_exists {
        (
            Severity::Warn,
            "while it is open, no verify can take its snapshot, and the log is kept",
        )
    } else {
        (Severity::Fail, "while it is open, the slot cannot be made")
    };
    let Prepared {
        gid,
        owner,
        database,
        seconds,
    } = prepared;
    let quoted = gid.replace('\'', "''");
    found.add(
        ("PG-PREPARED-XACT", severity),
        format!("prepared transaction {gid}"),
        format!("of {owner} in database {database}, open for {seconds} s: {effect}"),
        format!("in that database: COMMIT PREPARED '{quoted}'; or ROLLBACK PREPARED '{quoted}';"),
    );
}

/// Age from which a transaction that has written is worth a word. The slot waits for it, so that a job which begins now
/// does so too.
const LONG_SECONDS: i64 = 10;

#[derive(Debug, Clone, Default)]
struct Activity {
    /// process, and who it is
    long: Vec<(i32, String)>,
    /// groups of clients with their numbers
    clients: Vec<String>,
    /// sessions whose details this role may not see
    hidden: i64,
}

/// `PG-LONG-TRANSACTION`, `PG-CLIENTS`.
pub(super) async fn sessions(session: &Session) -> Result<Vec<Finding>> {
    let long = session
        .client
        .query_typed(
            "SELECT pid, format('%s, application %L, %s, open for %s s', usename, application_name, state, \
                    extract(epoch FROM clock_timestamp() - xact_start)::int8) \
             FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() \
                  AND xact_start < clock_timestamp() - make_interval(secs => $1) \
             ORDER BY xact_start LIMIT 50",
            &[(&(LONG_SECONDS as f64), Type::FLOAT8)],
        )
        .await
        .map_err(during("looking for long transactions"))?;
    let clients = session
        .client
        .query_typed(
            "SELECT format('%s of %s, application %L, from %s', count(*), usename, application_name, \
                    COALESCE(host(client_addr), 'the socket')) \
             FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' \
                  AND application_name <> current_setting('application_name') \
             GROUP BY usename, application_name, client_addr ORDER BY count(*) DESC, 1 LIMIT 200",
            &[],
        )
        .await
        .map_err(during("looking for connected clients"))?;
    let hidden = session
        .client
        .query_typed_one(
            "SELECT count(*) FROM pg_stat_activity WHERE query = '<insufficient privilege>'",
            &[],
        )
        .await
        .map_err(during("looking for connected clients"))?;
    let activity = Activity {
        long: long.iter().map(|row| (row.get(0), row.get(1))).collect(),
        clients: clients.iter().map(|row| row.get(0)).collect(),
        hidden: hidden.get(0),
    };
    let mut found = Findings::new(Side::Source);
    judge_activity(&activity, &session.database, &mut found);
    Ok(found.list)
}

fn judge_activity(activity: &Activity, database: &str, found: &mut Findings) {
    for (pid, who) in &activity.long {
        found.add(
            ("PG-LONG-TRANSACTION", Severity::Warn),
            format!("process {pid}"),
            format!(
                "a transaction that has written ({who}): a slot, and a verify's snapshot, wait for its end"
            ),
            format!("let it finish, or: SELECT pg_terminate_backend({pid});"),
        );
    }
    if !activity.clients.is_empty() {
        found.add(
            ("PG-CLIENTS", Severity::Info),
            format!("database {database}"),
            // All of them: each has to be told where to go.
            format!("clients that will have to move: {}", activity.clients.join("; ")),
            "plan how each of them learns of the new database",
        );
    }
    if activity.hidden > 0 {
        found.add(
            ("PG-NOT-CHECKED", Severity::Info),
            "sessions",
            format!(
                "{} sessions of other roles cannot be looked at: long transactions may be among them",
                activity.hidden
            ),
            "GRANT pg_monitor TO the role of the URL, or run check as a superuser",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_transactions_keep_a_slot_from_being_made() {
        let prepared = Prepared {
            gid: "it's".into(),
            owner: "o".into(),
            database: "d".into(),
            seconds: 5,
        };
        let mut found = Findings::new(Side::Source);
        judge_prepared(&prepared, false, &mut found);
        judge_prepared(&prepared, true, &mut found);
        assert_eq!(found.list[0].severity, Severity::Fail);
        assert!(found.list[0].remedy.contains("ROLLBACK PREPARED 'it''s'"));
        assert_eq!(found.list[1].severity, Severity::Warn);
    }

    #[test]
    fn sessions_are_named() {
        let mut found = Findings::new(Side::Source);
        judge_activity(&Activity::default(), "app", &mut found);
        assert!(found.list.is_empty());
        let activity = Activity {
            long: vec![(42, "u".into())],
            clients: vec!["3 of web".into()],
            hidden: 2,
        };
        judge_activity(&activity, "app", &mut found);
        let ids: Vec<_> = found.list.iter().map(|finding| finding.id).collect();
        assert_eq!(ids, ["PG-LONG-TRANSACTION", "PG-CLIENTS", "PG-NOT-CHECKED"]);
        assert!(found.list[0].object.contains("42") && found.list[0].remedy.contains("(42)"));
    }
}
