//! What a target must let us do while rows are applied.

use cdc_core::engine::{Finding, Severity, Side};
use cdc_core::{Result, TableName, TableSelection};
use tokio_postgres::types::Type;

use super::{Findings, Session};
use crate::catalog::qualified;
use crate::session::during;
use crate::wire::session::identifier;

/// What marks our changes with an origin, and takes it away again.
pub(super) const ORIGIN_FUNCTIONS: [&str; 4] = [
    "pg_catalog.pg_replication_origin_create(text)",
    "pg_catalog.pg_replication_origin_oid(text)",
    "pg_catalog.pg_replication_origin_session_setup(text)",
    "pg_catalog.pg_replication_origin_drop(text)",
];

/// `PG-TARGET-READ-ONLY`.
pub(super) fn read_only(session: &Session, found: &mut Findings) {
    judge_read_only(session.in_recovery, session.read_only, &session.database, found);
}

fn judge_read_only(in_recovery: bool, read_only: bool, database: &str, found: &mut Findings) {
    let id = ("PG-TARGET-READ-ONLY", Severity::Fail);
    if in_recovery {
        found.add(
            id,
            "pg_is_in_recovery",
            "the target is a standby",
            "give the primary's URL as --target",
        );
    } else if read_only {
        found.add(
            id,
            "default_transaction_read_only",
            "is on: transactions cannot write",
            format!(
                "ALTER DATABASE {} RESET default_transaction_read_only; or where else it is set (role, server)",
                identifier(database)
            ),
        );
    }
}

/// `PG-TARGET-REPLICA-ROLE`. Whether it can be set is tried: managed services have rules of their own for it.
pub(super) async fn replica_role(session: &Session) -> Result<Vec<Finding>> {
    let tried = session
        .client
        .batch_execute("BEGIN; SET LOCAL session_replication_role = replica; ROLLBACK")
        .await;
    let mut found = Findings::new(Side::Target);
    if let Err(error) = tried {
        let denied = error.code().is_some_and(|code| code.code() == "42501");
        let error = during("trying session_replication_role")(error);
        session
            .client
            .batch_execute("ROLLBACK")
            .await
            .map_err(during("ending the trial of session_replication_role"))?;
        if !denied {
            return Err(error);
        }
        judge_replica_role(&session.role, &mut found);
    }
    Ok(found.list)
}

fn judge_replica_role(role: &str, found: &mut Findings) {
    let quoted = identifier(role);
    found.add(
        ("PG-TARGET-REPLICA-ROLE", Severity::Warn),
        format!("role {role}"),
        "may not set session_replication_role: triggers fire and foreign keys are checked while changes are applied, \
         which is slower, and what triggers write is written twice",
        format!("PostgreSQL 15 and later: GRANT SET ON PARAMETER session_replication_role TO {quoted}; before: use a \
                 superuser"),
    );
}

/// `PG-TARGET-ORIGIN`. Before 14 the functions ask for a superuser, whatever was granted.
pub(super) async fn origin(session: &Session) -> Result<Vec<Finding>> {
    let row = session
        .client
        .query_typed_one(
            "SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) \
                 OR (current_setting('server_version_num')::int >= 140000 AND (SELECT bool_and(has_function_privilege(f, \
                 'EXECUTE')) FROM unnest($1::text[]) AS f)), \
             COALESCE(current_setting('max_active_replication_origins', true), \
                 current_setting('max_replication_slots'))::int >= 2",
            &[(&ORIGIN_FUNCTIONS.as_slice(), Type::TEXT_ARRAY)],
        )
        .await
        .map_err(during("looking whether replication origins can be used"))?;
    let mut found = Findings::new(Side::Target);
    judge_origin(&session.role, row.get(0), row.get(1), &mut found);
    Ok(found.list)
}

fn judge_origin(role: &str, may: bool, room: bool, found: &mut Findings) {
    let (what, remedy) = match (may, room) {
        (true, true) => return,
        (false, _) => (
            "may not use replication origins",
            format!(
                "PostgreSQL 14 and later: GRANT EXECUTE ON FUNCTION {} TO {}; before: use a superuser",
                ORIGIN_FUNCTIONS.join(", "),
                identifier(role)
            ),
        ),
        (true, false) => (
            "finds a server without room for the job's two replication origins",
            "raise max_active_replication_origins (before PostgreSQL 18: max_replication_slots)".to_owned(),
        ),
    };
    found.add(
        ("PG-TARGET-ORIGIN", Severity::Warn),
        format!("role {role}"),
        format!(
            "{what}: what this job applies is not marked, so a stream back would return it to the source (loops cannot be \
             recognised). One direction alone does not need it"
        ),
        remedy,
    );
}

/// `PG-TRIGGERS-ALWAYS`.
pub(super) async fn triggers(session: &Session, selection: &TableSelection) -> Result<Vec<Finding>> {
    let rows = session
        .client
        .query_typed(
            "SELECT n.nspname::text, c.relname::text, t.tgname::text, t.tgenabled = 'A' \
             FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE NOT t.tgisinternal AND t.tgenabled IN ('A', 'R') AND n.nspname <> 'cdc_sync' ORDER BY 1, 2, 3",
            &[],
        )
        .await
        .map_err(during("looking for triggers"))?;
    let mut found = Findings::new(Side::Target);
    for row in rows {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        if selection.selects(&table) {
            judge_trigger(&table, row.get(2), row.get(3), &mut found);
        }
    }
    Ok(found.list)
}

fn judge_trigger(table: &TableName, trigger: &str, always: bool, found: &mut Findings) {
    let mode = if always { "ALWAYS" } else { "REPLICA" };
    found.add(
        ("PG-TRIGGERS-ALWAYS", Severity::Warn),
        format!("trigger {trigger} on {table}"),
        format!("is enabled {mode}: it fires for replicated rows too, and what it writes is written twice"),
        format!(
            "ALTER TABLE {} ENABLE TRIGGER {};",
            qualified(table),
            identifier(trigger)
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_must_be_writable() {
        let judged = |in_recovery, read_only| {
            let mut found = Findings::new(Side::Target);
            judge_read_only(in_recovery, read_only, "app", &mut found);
            found
                .list
                .into_iter()
                .map(|finding| (finding.id, finding.object))
                .collect::<Vec<_>>()
        };
        assert!(judged(false, false).is_empty());
        assert_eq!(
            judged(true, true),
            [("PG-TARGET-READ-ONLY", "pg_is_in_recovery".to_owned())]
        );
        assert_eq!(
            judged(false, true),
            [("PG-TARGET-READ-ONLY", "default_transaction_read_only".to_owned())]
        );
    }

    #[test]
    fn an_origin_needs_the_right_and_room() {
        let judged = |may, room| {
            let mut found = Findings::new(Side::Target);
            judge_origin("r-1", may, room, &mut found);
            found.list.pop().map(|finding| (finding.id, finding.remedy))
        };
        assert_eq!(judged(true, true), None);
        let (id, remedy) = judged(false, true).unwrap();
        assert_eq!(id, "PG-TARGET-ORIGIN");
        assert!(remedy.contains("pg_replication_origin_oid(text)") && remedy.contains("\"r-1\""));
        let (id, remedy) = judged(true, false).unwrap();
        assert_eq!(id, "PG-TARGET-ORIGIN");
        assert!(remedy.contains("max_replication_slots"));
    }

    #[test]
    fn remedies_quote_names() {
        let mut found = Findings::new(Side::Target);
        judge_trigger(&TableName::new("s", "T"), "a\"b", true, &mut found);
        judge_trigger(&TableName::new("s", "T"), "r", false, &mut found);
        judge_replica_role("r-1", &mut found);
        assert_eq!(
            found.list[0].remedy,
            "ALTER TABLE \"s\".\"T\" ENABLE TRIGGER \"a\"\"b\";"
        );
        assert!(found.list[0].message.contains("ALWAYS") && found.list[1].message.contains("REPLICA"));
        assert!(found.list[2].remedy.contains("\"r-1\""));
    }
}
