//! The log of conflicts: what policies decided, and what was put aside for the operator to decide.

mod retry;
mod row;

use std::collections::BTreeMap;

use cdc_core::conflict::ConflictRecord;
use cdc_core::{Error, Kind, Position, Result, TableName};
use tokio_postgres::{Client, Row};

use super::schema;
use crate::session::during;

pub(crate) use retry::{SETTINGS, retry};

/// The state of a change that waits for the operator.
const OPEN: &str = "open";

/// Conflicts of a stream, newest first.
pub(crate) async fn read(
    client: &Client,
    stream: &str,
    before: Option<i64>,
    limit: u32,
    open: bool,
) -> Result<Vec<ConflictRecord>> {
    if !schema::exists(client).await? {
        return Ok(Vec::new());
    }
    let sql = "SELECT id, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS time, schema_name, \
                      table_name, ARRAY(SELECT k.name FROM jsonb_each_text(c.key) k (name, value) ORDER BY k.name) AS names, \
                      ARRAY(SELECT k.value FROM jsonb_each_text(c.key) k (name, value) ORDER BY k.name) AS texts, \
                      op, kind, policy, winner, position, state, blue::text AS blue, green::text AS green \
               FROM cdc_sync.conflict_log c WHERE stream = $1 AND ($2::int8 IS NULL OR id < $2) \
               AND (NOT $3 OR state = 'open') ORDER BY id DESC LIMIT $4";
    let rows = client
        .query(sql, &[&stream, &before, &open, &i64::from(limit)])
        .await
        .map_err(during("reading the log of conflicts"))?;
    Ok(rows.iter().map(record).collect())
}

fn record(row: &Row) -> ConflictRecord {
    let names: Vec<String> = row.get("names");
    let texts: Vec<Option<String>> = row.get("texts");
    ConflictRecord {
        id: row.get("id"),
        time: row.get("time"),
        table: TableName::new(
            row.get::<_, String>("schema_name"),
            row.get::<_, String>("table_name"),
        ),
        key: names.into_iter().zip(texts).collect(),
        op: row.get("op"),
        kind: row.get("kind"),
        policy: row.get("policy"),
        winner: row.get("winner"),
        position: Position::new(row.get::<_, String>("position")),
        state: row.get("state"),
        blue: row.get("blue"),
        green: row.get("green"),
    }
}

/// How many conflicts of each kind the stream has met.
pub(crate) async fn counts(client: &Client, stream: &str) -> Result<BTreeMap<String, u64>> {
    if !schema::exists(client).await? {
        return Ok(BTreeMap::new());
    }
    let sql = "SELECT kind, count(*) FROM cdc_sync.conflict_log WHERE stream = $1 GROUP BY kind";
    let rows = client
        .query(sql, &[&stream])
        .await
        .map_err(during("counting conflicts"))?;
    let counted = rows.iter();
    Ok(counted
        .map(|row| (row.get(0), row.get::<_, i64>(1).unsigned_abs()))
        .collect())
}

/// How many changes wait for the operator.
pub(crate) async fn open(client: &Client, stream: &str) -> Result<u64> {
    if !schema::exists(client).await? {
        return Ok(0);
    }
    let sql = "SELECT count(*) FROM cdc_sync.conflict_log WHERE stream = $1 AND state = 'open'";
    let row = client
        .query_one(sql, &[&stream])
        .await
        .map_err(during("counting conflicts to be decided"))?;
    Ok(row.get::<_, i64>(0).unsigned_abs())
}

/// Gives up a change that was put aside.
pub(crate) async fn discard(client: &Client, stream: &str, id: i64) -> Result<()> {
    let doing = "discarding a change that was put aside";
    if !schema::exists(client).await? {
        return Err(not_open(id, None));
    }
    // In one statement, which other callers may share the connection with. The other state is only for the message.
    let sql = "WITH found AS (SELECT id, state FROM cdc_sync.conflict_log WHERE stream = $1 AND id = $2), \
               done AS (UPDATE cdc_sync.conflict_log c SET state = 'discarded' FROM found f \
                        WHERE c.id = f.id AND c.state = 'open' RETURNING c.id) \
               SELECT state, EXISTS (SELECT FROM done) FROM found";
    let row = client
        .query_opt(sql, &[&stream, &id])
        .await
        .map_err(during(doing))?;
    match row {
        Some(row) if row.get(1) => Ok(()),
        row => Err(not_open(id, row.map(|row| row.get(0)))),
    }
}

/// There is nothing to be decided under this number.
fn not_open(id: i64, state: Option<String>) -> Error {
    let message = match state {
        None => "the job has no conflict of this number".to_owned(),
        // Another caller was faster by the blink of an eye.
        Some(state) if state == OPEN => "it is being decided by someone else".to_owned(),
        Some(state) => format!("there is nothing to decide: its state is {state}"),
    };
    Error::new(Kind::Config, message)
        .object(format!("conflict {id}"))
        .remedy("`cdc-sync conflicts list --open` shows those that wait for a decision")
}
