//! Changes that a policy let through and that did not arrive: overtaken by another session, or kept back by a trigger?
//!
//! The first passes when the group is applied again, the second never does. So where a trigger or rule could be to
//! blame, the plan is tried once more with nobody else writing to the table; what is missing then was kept back.

use cdc_core::plan::ApplyPlan;
use cdc_core::{Action, Error, Kind, Result, TableName};

use super::fault::{row_name, table_name};
use super::flight::{Effect, Subject};
use crate::catalog::qualified;
use crate::wire::{Connection, literal};

/// The error of a group that is to be applied again.
pub(super) fn overtaken() -> Error {
    Error::new(
        Kind::Conflict,
        "the target's rows were changed while a conflict policy decided about them",
    )
    .action(Action::Retry)
}

/// What might keep changes of a subject back, and where.
#[derive(Debug)]
pub(super) struct Suspects {
    table: TableName,
    /// triggers and rules for people
    names: String,
}

impl Suspects {
    /// Asks for the row triggers and rules that our role lets act on what the subject's statement does; `None` when
    /// there are none.
    pub(super) async fn find(
        connection: &mut Connection,
        plan: &ApplyPlan,
        subject: Subject,
    ) -> Result<Option<Suspects>> {
        let (table, effect) = match subject {
            Subject::Set { table, effect } => (table, effect),
            Subject::Row(row) => (row.table, row.effect),
            _ => return Ok(None),
        };
        let Some(target) = plan.tables.get(table).map(|table| &table.target) else {
            return Ok(None);
        };
        if !target.order_visible {
            return Ok(None);
        }
        let table = target.name.clone();
        let names = connection.single_value(&query(&table, effect)).await?;
        Ok(names.map(|names| Suspects { table, names }))
    }

    /// The statement that keeps other writers away, or fails at once where there are any.
    pub(super) fn lock(&self) -> String {
        format!(
            "LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE NOWAIT",
            qualified(&self.table)
        )
    }

    /// The error when the changes did not arrive although nobody else wrote.
    pub(super) fn blamed(&self, plan: &ApplyPlan, subject: Subject) -> Error {
        let object = match subject {
            Subject::Row(row) => row_name(plan, row),
            Subject::Set { table, .. } => table_name(plan, table),
            _ => self.table.to_string(),
        };
        Error::new(
            Kind::Data,
            format!("the target suppresses the change: {}", self.names),
        )
        .object(object)
        .remedy("disable it for the time of the replication, then run again")
    }
}

/// The row triggers and rules of a table that may keep back what our role writes there, for people.
pub(crate) async fn suppressors(connection: &mut Connection, table: &TableName) -> Result<Option<String>> {
    let mut names = Vec::new();
    for effect in [Effect::Update, Effect::Delete] {
        let found = connection.single_value(&query(table, effect)).await?;
        names.extend(found.filter(|found| !names.contains(found)));
    }
    Ok((!names.is_empty()).then(|| names.join(", ")))
}

/// A query for the names of row triggers BEFORE the effect and of rules that act in the session, on the table and its
/// partitions; NULL without any. An insert may become an update under a policy, and the reverse.
fn query(table: &TableName, effect: Effect) -> String {
    // pg_trigger.tgtype: row 1, before 2, insert 4, delete 8, update 16. pg_rewrite.ev_type: update 2, insert 3, delete 4.
    let (events, rules) = match effect {
        Effect::Delete => (8, "'4'"),
        Effect::Insert | Effect::Update | Effect::Upsert => (4 | 16, "'2', '3'"),
    };
    let acts = |enabled: &str| {
        format!(
            "({enabled} = 'A' OR {enabled} = CASE current_setting('session_replication_role') WHEN 'replica' THEN 'R' \
             ELSE 'O' END)"
        )
    };
    format!(
        "WITH rels AS (SELECT {0}::regclass AS oid UNION SELECT relid FROM pg_partition_tree({0}::regclass)) \
         SELECT string_agg(DISTINCT name, ', ' ORDER BY name) FROM ( \
             SELECT format('trigger %s', t.tgname) AS name FROM pg_trigger t JOIN rels ON rels.oid = t.tgrelid \
             WHERE NOT t.tgisinternal AND t.tgtype & 3 = 3 AND t.tgtype & {events} <> 0 AND {1} \
             UNION ALL SELECT format('rule %s', r.rulename) FROM pg_rewrite r JOIN rels ON rels.oid = r.ev_class \
             WHERE r.ev_type IN ({rules}) AND {2}) AS found",
        literal(&qualified(table)),
        acts("t.tgenabled"),
        acts("r.ev_enabled"),
    )
}
