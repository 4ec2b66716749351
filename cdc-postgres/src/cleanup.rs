//! Dropping what a job made on either side, and nothing else.
//!
//! First everything is looked up, then what was found is dropped: a dry run does only the first, and a second run, or
//! one after a run that was cut short, drops what is still there. What other jobs use stays and is named.

use std::time::Duration;

use cdc_core::engine::{CleanupReport, JobNames, Side};
use cdc_core::{Error, Kind, Result, failpoint};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::catalog::OWN_SCHEMA;
use crate::clients::Clients;
use crate::session::during;
use crate::sink::origin;
use crate::state::FUNCTIONS;
use crate::wire::identifier;
use crate::wire::session::literal;

/// Whoever waits for a lock makes others wait behind it.
const SETTINGS: &[(&str, &str)] = &[("lock_timeout", "5s")];
/// How long a slot may still look used after its client has left.
const RELEASE: Duration = Duration::from_secs(5);
/// Our tables on a source; all others in our schema belong to a target.
const SOURCE_TABLES: &[&str] = &["heartbeat", "marker"];

/// Drops what `names` made in the role `side`; with `dry_run` only says what it would drop.
pub(crate) async fn cleanup(
    clients: &Clients,
    side: Side,
    names: &JobNames,
    dry_run: bool,
) -> Result<CleanupReport> {
    let mut client = clients.lend(SETTINGS).await?;
    let mut plan = Plan::default();
    if side != Side::Target {
        plan.slot = find_slot(&client, &names.slot, &mut plan.stays).await?;
        plan.publication = find_publication(&client, &names.slot, &mut plan.stays).await?;
    }
    if side != Side::Source {
        plan.origins = find_origins(&client, &names.job).await?;
    }
    find_state(&client, side, names, &mut plan).await?;
    if !dry_run {
        plan.carry_out(&mut client, &names.job).await?;
    }
    Ok(plan.report())
}

/// The job's replication origins, if this role may drop them: without the right to make one it has made none.
async fn find_origins(client: &Client, stream: &str) -> Result<Vec<String>> {
    let sql = format!(
        "{} AND has_function_privilege('pg_replication_origin_drop(text)', 'EXECUTE')",
        origin::of_job(stream)
    );
    let found = client.query_typed(&sql, &[]).await;
    let found = found.map_err(during("looking for the replication origin"))?;
    Ok(found.iter().map(|row| row.get(0)).collect())
}

/// What there is to drop.
#[derive(Debug, Default)]
struct Plan {
    slot: Option<String>,
    publication: Option<String>,
    origins: Vec<String>,
    tables: Vec<StateTable>,
    /// functions of the state, with their arguments
    functions: Vec<String>,
    /// no other job uses the tables and functions
    drop_tables: bool,
    /// nothing else is in our schema
    drop_schema: bool,
    stays: Vec<String>,
}

/// A table of ours.
#[derive(Debug)]
struct StateTable {
    oid: u32,
    name: String,
    /// its rows name a stream
    has_stream: bool,
    /// rows of the job's stream
    own_rows: i64,
}

impl StateTable {
    fn qualified(&self) -> String {
        format!("{OWN_SCHEMA}.{}", identifier(&self.name))
    }
}

impl Plan {
    /// The slot cannot be dropped in a transaction, and holds back the log: it goes first.
    async fn carry_out(&self, client: &mut Client, stream: &str) -> Result<()> {
        if let Some(slot) = &self.slot {
            client
                .query_typed("SELECT pg_drop_replication_slot($1)", &[(slot, Type::NAME)])
                .await
                .map_err(during("dropping the replication slot"))
                .map_err(|error| error.object(format!("replication slot {slot}")))?;
            failpoint!("cleanup.slot-dropped");
        }
        let transaction = client
            .transaction()
            .await
            .map_err(during("beginning to clean up"))?;
        for statement in self.statements() {
            let streams: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] = &[(&stream, Type::TEXT)];
            let parameters = if statement.contains("$1") { streams } else { &[] };
            transaction
                .execute_typed(&statement, parameters)
                .await
                .map_err(during(statement.as_str()))
                .map_err(explained)?;
            failpoint!("cleanup.one-dropped");
        }
        transaction.commit().await.map_err(during("ending the cleanup"))?;
        failpoint!("cleanup.side-done");
        Ok(())
    }

    fn statements(&self) -> Vec<String> {
        let mut statements = Vec::new();
        if let Some(publication) = &self.publication {
            statements.push(format!("DROP PUBLICATION IF EXISTS {}", identifier(publication)));
        }
        for origin in &self.origins {
            statements.push(format!("SELECT pg_replication_origin_drop({})", literal(origin)));
        }
        if self.drop_tables {
            // In one statement, so that references between them do not matter.
            let list: Vec<String> = self.tables.iter().map(StateTable::qualified).collect();
            if !list.is_empty() {
                statements.push(format!("DROP TABLE IF EXISTS {}", list.join(", ")));
            }
            let drops = self.functions.iter();
            statements.extend(drops.map(|function| format!("DROP FUNCTION IF EXISTS {function}")));
        } else {
            let own = self.tables.iter().filter(|table| table.own_rows > 0);
            statements
                .extend(own.map(|table| format!("DELETE FROM {} WHERE stream = $1", table.qualified())));
        }
        if self.drop_schema {
            statements.push(format!("DROP SCHEMA IF EXISTS {OWN_SCHEMA}"));
        }
        statements
    }

    fn report(self) -> CleanupReport {
        let mut dropped = Vec::new();
        dropped.extend(self.slot.map(|slot| format!("replication slot {slot}")));
        dropped.extend(
            self.publication
                .map(|publication| format!("publication {publication}")),
        );
        dropped.extend(
            self.origins
                .iter()
                .map(|origin| format!("replication origin {origin}")),
        );
        for StateTable { name, own_rows, .. } in self.tables {
            match (self.drop_tables, own_rows) {
                (true, 0) => dropped.push(format!("table {OWN_SCHEMA}.{name}")),
                (true, rows) => dropped.push(format!("table {OWN_SCHEMA}.{name} with {rows} rows")),
                (false, 0) => {}
                (false, rows) => dropped.push(format!("{rows} rows of table {OWN_SCHEMA}.{name}")),
            }
        }
        if self.drop_tables {
            dropped.extend(
                self.functions
                    .iter()
                    .map(|function| format!("function {function}")),
            );
        }
        if self.drop_schema {
            dropped.push(format!("schema {OWN_SCHEMA}"));
        }
        CleanupReport {
            dropped,
            stays: self.stays,
        }
    }
}

fn explained(error: Error) -> Error {
    let remedy = match error.kind() {
        Kind::Permission => "clean up as the role that ran the job, or as a superuser",
        _ => "remove what the message names, then clean up again",
    };
    error.remedy(remedy)
}

/// The slot, when it is the job's own and free.
async fn find_slot(client: &Client, slot: &str, stays: &mut Vec<String>) -> Result<Option<String>> {
    let object = format!("replication slot {slot}");
    let deadline = tokio::time::Instant::now() + RELEASE;
    loop {
        let row = client
            .query_typed_opt(
                "SELECT COALESCE(plugin::text, ''), COALESCE(database::text, ''), active_pid, \
                        database = current_database() \
                 FROM pg_replication_slots WHERE slot_name = $1",
                &[(&slot, Type::TEXT)],
            )
            .await
            .map_err(during("looking for the replication slot"))?;
        let Some(row) = row else { return Ok(None) };
        let (plugin, database): (String, String) = (row.get(0), row.get(1));
        if plugin != "pgoutput" || row.get::<_, Option<bool>>(3) != Some(true) {
            stays.push(format!(
                "{object}: not this job's (plugin {plugin:?}, database {database:?})"
            ));
            return Ok(None);
        }
        let Some(pid) = row.get::<_, Option<i32>>(2) else {
            return Ok(Some(slot.to_owned()));
        };
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::new(
                Kind::Fenced,
                format!("the slot is in use by process {pid} of the source"),
            )
            .object(object)
            .remedy(format!(
                "stop the job that reads it, or: SELECT pg_terminate_backend({pid}); then clean up again"
            )));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The publication, when the role may drop it.
async fn find_publication(client: &Client, name: &str, stays: &mut Vec<String>) -> Result<Option<String>> {
    let row = client
        .query_typed_opt(
            "SELECT pg_has_role(pubowner, 'USAGE'), pg_get_userbyid(pubowner)::text \
             FROM pg_publication WHERE pubname = $1",
            &[(&name, Type::TEXT)],
        )
        .await
        .map_err(during("looking for the publication"))?;
    let Some(row) = row else { return Ok(None) };
    if row.get(0) {
        return Ok(Some(name.to_owned()));
    }
    stays.push(format!(
        "publication {name}: made by {}, who alone can drop it",
        row.get::<_, String>(1)
    ));
    Ok(None)
}

/// Looks up the tables of our schema that belong to `side`, and who else uses them.
async fn find_state(client: &Client, side: Side, names: &JobNames, plan: &mut Plan) -> Result<()> {
    plan.tables = state_tables(client, side).await?;
    if side != Side::Source {
        plan.functions = state_functions(client).await?;
    }
    let mut users: Vec<String> = Vec::new();
    for table in plan.tables.iter_mut().filter(|table| table.has_stream) {
        let statement = format!(
            "SELECT stream::text, count(*) FROM {} GROUP BY stream",
            table.qualified()
        );
        let rows = client
            .query_typed(&statement, &[])
            .await
            .map_err(during("looking for the stream's rows"))
            .map_err(|error| error.object(format!("table {OWN_SCHEMA}.{}", table.name)))?;
        for row in rows {
            let stream: String = row.get::<_, Option<String>>(0).unwrap_or_default();
            if stream == names.job {
                table.own_rows = row.get(1);
            } else {
                users.push(format!("stream {stream}"));
            }
        }
    }
    if side != Side::Target {
        users.extend(other_publications(client, &names.slot).await?);
    }
    users.sort();
    users.dedup();
    if !users.is_empty() {
        plan.stays
            .push(format!("schema {OWN_SCHEMA}: used by {}", users.join(", ")));
        return Ok(());
    }
    plan.drop_tables = true;
    match schema_content(client, plan, side).await? {
        Some(content) if content.is_empty() => plan.drop_schema = true,
        Some(content) => plan.stays.push(format!("schema {OWN_SCHEMA}: holds {content}")),
        None => {}
    }
    Ok(())
}

async fn state_tables(client: &Client, side: Side) -> Result<Vec<StateTable>> {
    let rows = client
        .query_typed(
            "SELECT c.oid, c.relname::text, \
                    EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'stream' \
                            AND NOT a.attisdropped) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = 'cdc_sync' AND c.relkind = 'r' \
             ORDER BY EXISTS (SELECT FROM pg_constraint f WHERE f.confrelid = c.oid), c.relname",
            &[],
        )
        .await
        .map_err(during("looking for the tables of cdc-sync"))?;
    let tables = rows.iter().map(|row| StateTable {
        oid: row.get(0),
        name: row.get(1),
        has_stream: row.get(2),
        own_rows: 0,
    });
    let of_source = |table: &StateTable| SOURCE_TABLES.contains(&table.name.as_str());
    Ok(tables
        .filter(|table| match side {
            Side::Source => of_source(table),
            Side::Target => !of_source(table),
            Side::Both => true,
        })
        .collect())
}

/// The functions that applying uses.
async fn state_functions(client: &Client) -> Result<Vec<String>> {
    let rows = client
        .query_typed(
            "SELECT format('cdc_sync.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) FROM pg_proc p \
             JOIN pg_namespace n ON n.oid = p.pronamespace \
             WHERE n.nspname = 'cdc_sync' AND p.proname = ANY ($1) ORDER BY p.proname",
            &[(&FUNCTIONS, Type::TEXT_ARRAY)],
        )
        .await
        .map_err(during("looking for the functions of cdc-sync"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Publications of other jobs: one that has not written a heartbeat yet is known by nothing else.
async fn other_publications(client: &Client, own: &str) -> Result<Vec<String>> {
    let rows = client
        .query_typed(
            "SELECT p.pubname::text FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
             WHERE r.prrelid = to_regclass('cdc_sync.heartbeat') AND p.pubname <> $1",
            &[(&own, Type::TEXT)],
        )
        .await
        .map_err(during("looking for other publications"))?;
    Ok(rows
        .iter()
        .map(|row| format!("publication {}", row.get::<_, String>(0)))
        .collect())
}

/// What our schema holds beside what is dropped and what goes with it; `None` without the schema.
async fn schema_content(client: &Client, plan: &Plan, side: Side) -> Result<Option<String>> {
    let oids: Vec<u32> = plan.tables.iter().map(|table| table.oid).collect();
    let functions = if side == Side::Source { &[][..] } else { FUNCTIONS };
    let row = client
        .query_typed_opt(
            "SELECT COALESCE((SELECT string_agg(DISTINCT pg_describe_object(d.classid, d.objid, 0), ', ') \
                 FROM pg_depend d WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = n.oid \
                      AND NOT (d.classid = 'pg_class'::regclass AND d.objid = ANY ($1)) \
                      AND NOT (d.classid = 'pg_proc'::regclass AND EXISTS (SELECT FROM pg_proc p \
                               WHERE p.oid = d.objid AND p.proname = ANY ($2))) \
                      AND NOT EXISTS (SELECT FROM pg_depend o WHERE o.classid = d.classid AND o.objid = d.objid \
                               AND o.refclassid = 'pg_class'::regclass AND o.refobjid = ANY ($1) \
                               AND o.deptype IN ('a', 'i'))), '') \
             FROM pg_namespace n WHERE nspname = 'cdc_sync'",
            &[(&oids, Type::OID_ARRAY), (&functions, Type::TEXT_ARRAY)],
        )
        .await
        .map_err(during("looking for the schema of cdc-sync"))?;
    Ok(row.map(|row| row.get(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, own_rows: i64) -> StateTable {
        StateTable {
            oid: 1,
            name: name.into(),
            has_stream: true,
            own_rows,
        }
    }

    #[test]
    fn shared_tables_lose_the_streams_rows_only() {
        let plan = Plan {
            tables: vec![table("seed", 3), table("fence", 0)],
            stays: vec!["schema cdc_sync: used by stream b".into()],
            ..Plan::default()
        };
        assert_eq!(
            plan.statements(),
            ["DELETE FROM cdc_sync.\"seed\" WHERE stream = $1"]
        );
        assert_eq!(plan.report().dropped, ["3 rows of table cdc_sync.seed"]);
    }

    #[test]
    fn unused_tables_go_with_the_schema() {
        let plan = Plan {
            slot: Some("s".into()),
            publication: Some("P".into()),
            tables: vec![table("seed", 3), table("fence", 0)],
            functions: vec!["cdc_sync.f(text)".into()],
            drop_tables: true,
            drop_schema: true,
            ..Plan::default()
        };
        assert_eq!(
            plan.statements(),
            [
                "DROP PUBLICATION IF EXISTS \"P\"",
                "DROP TABLE IF EXISTS cdc_sync.\"seed\", cdc_sync.\"fence\"",
                "DROP FUNCTION IF EXISTS cdc_sync.f(text)",
                "DROP SCHEMA IF EXISTS cdc_sync"
            ]
        );
        assert_eq!(
            plan.report().dropped,
            [
                "replication slot s",
                "publication P",
                "table cdc_sync.seed with 3 rows",
                "table cdc_sync.fence",
                "function cdc_sync.f(text)",
                "schema cdc_sync"
            ]
        );
    }

    #[test]
    fn nothing_to_do_is_no_statement() {
        let plan = Plan {
            drop_tables: true,
            ..Plan::default()
        };
        assert!(plan.statements().is_empty() && plan.report().dropped.is_empty());
    }
}
