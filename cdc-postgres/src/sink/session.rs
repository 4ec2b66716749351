//! The session that applies: triggers and foreign keys off where allowed, index plans pinned.

use cdc_core::Result;
use tokio_postgres::Client;

use super::origin::{self, Place};
use crate::config::Config;
use crate::error::PgError;
use crate::session::{during, try_replica_role};
use crate::wire::{Connection, Purpose};

const SETTINGS: &[(&str, &str)] = &[
    // Set statements join a list of keys with a table. Statistics are stale right after a seed and during a large
    // transaction, when a scan of the table would look cheap; with a key's index at hand a nested loop over it is
    // never far off. Tables without a usable index are scanned all the same. Compiling such a plan, which looks
    // very expensive then, would be a waste.
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
    // A policy that hides rows would make updates and deletes miss them: fail instead.
    ("row_security", "off"),
    // The server learns within a minute that our machine is gone, and lets go of our transaction's locks.
    ("tcp_keepalives_idle", "20"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "4"),
];

/// What is applied ahead waits for nobody who may in turn wait for it: not long enough for the server to look for a
/// deadlock, of which it might make the stream the victim.
const LANE_GIVES_WAY: (&str, &str) = ("lock_timeout", "500ms");

/// The names of the statements around every group.
pub(super) const BEGIN: &str = "begin";
pub(super) const DEFER: &str = "defer";
pub(super) const FENCE: &str = "fence";
pub(super) const CHECKPOINT: &str = "checkpoint";
pub(super) const SOON: &str = "soon";
pub(super) const COMMIT: &str = "commit";

const FIXED: [(&str, &str); 6] = [
    // The isolation that waiting for the fence needs: what is found after the wait must be the newest row.
    (BEGIN, "BEGIN ISOLATION LEVEL READ COMMITTED"),
    // For sessions in which constraints are checked: what a statement of the source did to several rows comes row by
    // row, between which a constraint need not hold.
    (DEFER, "SET CONSTRAINTS ALL DEFERRED"),
    (FENCE, "SELECT cdc_sync.hold_fence($1::text, $2::int8)"),
    // The COMMIT that follows is answered before it is durable.
    (SOON, "SET LOCAL synchronous_commit = off"),
    (
        CHECKPOINT,
        "SELECT cdc_sync.store_checkpoint($1::text, $2::text, $3::text, $4::text, $5::text, $6::text, $7::int8, \
         $8::int8, $9::int8, $10::int8, $11::int8, $12::int8, $13::int8, $14::int8, $15::int8, $16::int8, $17::int8)",
    ),
    (COMMIT, "COMMIT"),
];

/// Opens an applying session of `stream` under `epoch`, and tells its role.
pub(super) async fn open(
    config: &Config,
    stream: &str,
    epoch: &str,
    place: Place,
) -> Result<(Connection, SessionRole)> {
    let settings = match place {
        Place::Stream => SETTINGS.to_vec(),
        Place::Lane => [SETTINGS, &[LANE_GIVES_WAY]].concat(),
    };
    let mut connection = Connection::connect(config, &Purpose::Sql, &settings).await?;
    let role = if try_replica_role(&mut connection).await? {
        SessionRole::Replica
    } else {
        SessionRole::Origin
    };
    origin::take(&mut connection, stream, epoch, place).await?;
    prepare_fixed(&mut connection).await?;
    Ok((connection, role))
}

/// Forgets all prepared statements but those around every group.
pub(super) async fn start_over(connection: &mut Connection) -> Result<(), PgError> {
    connection.simple_query("DEALLOCATE ALL").await?;
    prepare_fixed(connection).await
}

async fn prepare_fixed(connection: &mut Connection) -> Result<(), PgError> {
    let mut pipeline = connection.pipeline().await?;
    for (name, sql) in FIXED {
        pipeline.parse(name, sql, &[]).await?;
    }
    pipeline.finish().await?;
    Ok(())
}

/// Whether an applying session has triggers and foreign keys off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionRole {
    /// `session_replication_role = replica`
    Replica,
    /// The role may not set it: triggers fire and foreign keys are checked.
    Origin,
}

/// Finds out which role an applying session of this login has.
pub(crate) async fn replica_role(client: &Client) -> Result<SessionRole> {
    // Outside a transaction block a local setting ends with the statement.
    let asked = "SELECT set_config('session_replication_role', 'replica', true)";
    match client.batch_execute(asked).await {
        Ok(()) => Ok(SessionRole::Replica),
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE) => {
            Ok(SessionRole::Origin)
        }
        Err(error) => Err(during("asking for session_replication_role")(error)),
    }
}
