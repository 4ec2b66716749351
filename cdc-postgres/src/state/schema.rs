//! Creating schema `cdc_sync` on the target.

use cdc_core::sink::CHECKPOINT_FORMAT;
use cdc_core::{Error, Kind, Result, failpoint};
use tokio_postgres::Client;

use crate::error::{PgError, SqlState};
use crate::session::during;

/// Serialises concurrent first runs: CREATE … IF NOT EXISTS races against itself.
const LOCK: i64 = 0x6364_635f_7379_6e63;

/// Tables and functions. The functions raise in class `CS`, which PostgreSQL does not use.
///
/// The checkpoint is a new row each time, under its own number, and the one before is deleted by its number. To update
/// one row in place would be simpler, but while a long snapshot is open on the target (a verify, a dump) no version of
/// it can be removed, and each update would have to walk past all that were made since.
const OBJECTS: &str = "
CREATE SCHEMA IF NOT EXISTS cdc_sync;
CREATE TABLE IF NOT EXISTS cdc_sync.format (version integer NOT NULL);
CREATE TABLE IF NOT EXISTS cdc_sync.fence (
    stream text PRIMARY KEY, epoch bigint NOT NULL, owner text NOT NULL, raised_at timestamptz NOT NULL);
CREATE TABLE IF NOT EXISTS cdc_sync.stream (
    stream text PRIMARY KEY, schema_pending boolean NOT NULL, started_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS cdc_sync.slot_intent (
    stream text PRIMARY KEY, slot text NOT NULL, source_system text NOT NULL, source_database text NOT NULL,
    stored_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS cdc_sync.checkpoint (
    stream text NOT NULL, groups bigint NOT NULL, source_system text NOT NULL, source_database text NOT NULL,
    timeline text NOT NULL, slot text NOT NULL, position text NOT NULL, commit_time_micros bigint NOT NULL,
    transactions bigint NOT NULL, read bigint NOT NULL, applied bigint NOT NULL, coalesced bigint NOT NULL,
    looped bigint NOT NULL, filtered bigint NOT NULL, superseded bigint NOT NULL, dead_lettered bigint NOT NULL,
    internal bigint NOT NULL, stored_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (stream, groups));
CREATE TABLE IF NOT EXISTS cdc_sync.seed (
    stream text NOT NULL, schema_name text NOT NULL, table_name text NOT NULL, phase text NOT NULL,
    position text NOT NULL, rows bigint NOT NULL, bytes bigint NOT NULL,
    PRIMARY KEY (stream, schema_name, table_name));
CREATE TABLE IF NOT EXISTS cdc_sync.barrier (
    stream text PRIMARY KEY, wanted text NOT NULL, requester integer NOT NULL, requester_start timestamptz NOT NULL,
    reached text);
CREATE TABLE IF NOT EXISTS cdc_sync.status (
    stream text PRIMARY KEY, published_at timestamptz NOT NULL, status text NOT NULL);
CREATE TABLE IF NOT EXISTS cdc_sync.conflict_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    stream text NOT NULL, position text NOT NULL, schema_name text NOT NULL, table_name text NOT NULL,
    key jsonb NOT NULL, op text NOT NULL, kind text NOT NULL, policy text NOT NULL, winner text NOT NULL,
    blue jsonb, green jsonb, state text NOT NULL);
CREATE TABLE IF NOT EXISTS cdc_sync.history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    stream text NOT NULL, kind text NOT NULL, exit integer, config text, facts jsonb NOT NULL);
CREATE OR REPLACE FUNCTION cdc_sync.hold_fence(of_stream text, own_epoch bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE current_epoch bigint;
BEGIN
    SELECT f.epoch INTO current_epoch FROM cdc_sync.fence f WHERE f.stream = of_stream FOR SHARE;
    IF current_epoch IS DISTINCT FROM own_epoch THEN
        RAISE EXCEPTION 'stream % is held by epoch %, ours is %', of_stream, current_epoch, own_epoch
            USING ERRCODE = 'CS001';
    END IF;
END $$;
CREATE OR REPLACE FUNCTION cdc_sync.store_checkpoint(
    of_stream text, its_system text, its_database text, its_timeline text, its_slot text, new_position text,
    new_commit_time bigint, new_groups bigint, new_transactions bigint, n_read bigint, n_applied bigint,
    n_coalesced bigint, n_looped bigint, n_filtered bigint, n_superseded bigint, n_dead_lettered bigint,
    n_internal bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    DELETE FROM cdc_sync.checkpoint c WHERE c.stream = of_stream AND c.groups = new_groups - 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the checkpoint of stream % does not stand at group %', of_stream, new_groups - 1
            USING ERRCODE = 'CS002';
    END IF;
    INSERT INTO cdc_sync.checkpoint VALUES (of_stream, new_groups, its_system, its_database, its_timeline, its_slot,
        new_position, new_commit_time, new_transactions, n_read, n_applied, n_coalesced, n_looped, n_filtered,
        n_superseded, n_dead_lettered, n_internal);
END $$;
CREATE OR REPLACE FUNCTION cdc_sync.undecided(kind text, of_table text, key jsonb, reason text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    RAISE EXCEPTION '%: %', kind, reason
        USING ERRCODE = 'CS003', TABLE = of_table, DETAIL = (SELECT string_agg(c || '=' || coalesce(v, 'NULL'), ', ')
            FROM jsonb_each_text(key) AS k (c, v));
END $$;
";

/// The functions among them.
pub(crate) const FUNCTIONS: &[&str] = &["hold_fence", "store_checkpoint", "undecided"];

/// Raised by `hold_fence`: the epoch is another one now.
pub(crate) const FENCE_LOST: &str = "CS001";
/// Raised by `store_checkpoint`: the checkpoint that was to be followed is not there.
const CHECKPOINT_GONE: &str = "CS002";

/// Raised by `undecided`: a policy cannot tell who wins a conflict.
pub(crate) const UNDECIDED: &str = "CS003";

/// An error of the server, explained where our functions raised it.
pub(crate) fn explained(error: PgError, stream: &str) -> Error {
    let remedy = match error.sqlstate.as_ref().map(SqlState::as_str) {
        Some(FENCE_LOST) => "another instance applies this job now, and only one may",
        Some(CHECKPOINT_GONE) => {
            "another instance or a cleanup was at the job's state: start again to read it anew"
        }
        _ => return Error::from(error),
    };
    let mut explained = Error::new(Kind::Fenced, error.message.clone())
        .object(format!("job {stream}"))
        .remedy(remedy);
    if let Some(code) = error.sqlstate {
        explained = explained.code(code.as_str());
    }
    explained
}

/// The statements that create what is stored on the target, for people to review.
pub(crate) fn statements() -> Vec<String> {
    let (tables, functions) = OBJECTS.split_once("CREATE OR REPLACE").unwrap_or((OBJECTS, ""));
    let tables = tables
        .split_inclusive(';')
        .map(|statement| statement.trim().to_owned());
    let functions = functions
        .split("CREATE OR REPLACE")
        .map(|body| format!("CREATE OR REPLACE {}", body.trim()));
    tables
        .filter(|statement| !statement.is_empty())
        .chain(functions)
        .collect()
}

/// Creates what is missing; safe under concurrent callers.
pub(crate) async fn prepare(client: &Client) -> Result<()> {
    refuse_newer(client).await?;
    // With everything in place no right to create is needed.
    if complete(client).await? {
        return Ok(());
    }
    let script = format!(
        "BEGIN; SELECT pg_advisory_xact_lock({LOCK}); SET LOCAL client_min_messages = warning; {OBJECTS}
         INSERT INTO cdc_sync.format SELECT {CHECKPOINT_FORMAT} WHERE NOT EXISTS (SELECT FROM cdc_sync.format);
         COMMIT"
    );
    if let Err(error) = client.batch_execute(&script).await {
        // The failed transaction must not swallow what comes next; if even this fails, the error stands.
        let _ = client.batch_execute("ROLLBACK").await;
        return Err(during("creating schema cdc_sync on the target")(error)
            .remedy("grant CREATE on the target database to the role of cdc-sync"));
    }
    failpoint!("state.created");
    Ok(())
}

/// A format written by a newer cdc-sync is not touched.
pub(crate) async fn refuse_newer(client: &Client) -> Result<()> {
    let exists = "SELECT to_regclass('cdc_sync.format') IS NOT NULL";
    let row = client
        .query_one(exists, &[])
        .await
        .map_err(during("looking for schema cdc_sync"))?;
    if !row.get::<_, bool>(0) {
        return Ok(());
    }
    let newest = "SELECT coalesce(max(version), 0) FROM cdc_sync.format";
    let row = client
        .query_one(newest, &[])
        .await
        .map_err(during("reading the format of schema cdc_sync"))?;
    let version: i32 = row.get(0);
    if version <= CHECKPOINT_FORMAT {
        return Ok(());
    }
    Err(Error::new(
        Kind::Check,
        format!(
            "the target's checkpoints have format {version}, this cdc-sync knows up to {CHECKPOINT_FORMAT}"
        ),
    )
    .object("schema cdc_sync on the target")
    .remedy("use the newer cdc-sync that wrote it, or `cleanup` with that version first"))
}

/// Whether nothing is missing: a schema that an older version prepared lacks what came since.
async fn complete(client: &Client) -> Result<bool> {
    let sql = "SELECT to_regclass('cdc_sync.history') IS NOT NULL";
    let row = client
        .query_one(sql, &[])
        .await
        .map_err(during("looking for schema cdc_sync"))?;
    Ok(row.get::<_, bool>(0) && exists(client).await?)
}

/// Whether schema `cdc_sync` has been prepared. It is in one transaction, so a table and the last function
/// stand for all.
pub(crate) async fn exists(client: &Client) -> Result<bool> {
    let sql = "SELECT to_regclass('cdc_sync.conflict_log') IS NOT NULL AND EXISTS \
               (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
               WHERE n.nspname = 'cdc_sync' AND p.proname = 'undecided')";
    let row = client
        .query_one(sql, &[])
        .await
        .map_err(during("looking for schema cdc_sync"))?;
    Ok(row.get(0))
}
