//! Which subtransactions were rolled back, by the server's own record.

use std::collections::HashSet;

use cdc_core::{Action, Error, Kind, Result};
use tokio_postgres::types::Type;

use crate::config::Config;
use crate::lsn::Lsn;
use crate::session::{connect, during};

/// How many are asked about at once.
const AT_ONCE: usize = 50_000;

/// A transaction id has 32 bits; of the 64 that the function takes, the upper ones are those by which it is nearest to the
/// next id. What has not ended counts as not rolled back: a subtransaction that was has ended before its transaction.
const ASK: &str = "SELECT asked.xid FROM unnest($1::int8[]) asked (xid), \
     (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8 AS xid) next, \
     LATERAL (SELECT (next.xid - asked.xid) & 4294967295 AS back) distance \
     WHERE pg_xact_status((next.xid - back + CASE WHEN back > 2147483647 THEN 4294967296 ELSE 0 END)::text::xid8) = 'aborted'";

/// Whether the server that is asked has the log up to $1. Of several hosts another one may answer than the one that streams:
/// what a standby has not replayed yet would count as not rolled back.
const KNOWS: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END \
     >= $1::text::pg_lsn";

/// Those of `subtransactions` that were rolled back, of a transaction that `ends` there.
///
/// # Errors
/// To be tried again, when the server that answers does not know of the transaction's end.
pub(super) async fn among(config: Config, subtransactions: Vec<u32>, ends: Lsn) -> Result<HashSet<u32>> {
    let client = connect(&config, &[]).await?;
    let knows = client
        .query_typed(KNOWS, &[(&ends.to_string(), Type::TEXT)])
        .await
        .map_err(during("asking whether the server knows of a transaction's end"))?;
    // Null where it is a standby that has replayed nothing.
    if !knows
        .iter()
        .any(|row| row.get::<_, Option<bool>>(0) == Some(true))
    {
        let what = "the server that was asked which subtransactions were rolled back has not come to the end of their transaction";
        return Err(Error::new(Kind::Unreachable, format!("{what}, {ends}"))
            .remedy("let the source's URL lead to the server that streams: by target_session_attrs, or without its other hosts")
            .action(Action::Reconnect));
    }
    let mut found = HashSet::new();
    for some in subtransactions.chunks(AT_ONCE) {
        let asked: Vec<i64> = some.iter().map(|xid| i64::from(*xid)).collect();
        let rows = client
            .query_typed(ASK, &[(&asked, Type::INT8_ARRAY)])
            .await
            .map_err(during("asking which subtransactions were rolled back"))?;
        found.extend(rows.iter().map(|row| row.get::<_, i64>(0) as u32));
    }
    Ok(found)
}

/// Those of `subtransactions` that were rolled back, of a transaction that `ends` there: for tests.
///
/// # Errors
/// To be tried again, when the server that answers does not know of the transaction's end.
#[cfg(any(test, feature = "testing"))]
pub async fn rolled_back_among(config: Config, subtransactions: Vec<u32>, ends: Lsn) -> Result<HashSet<u32>> {
    among(config, subtransactions, ends).await
}
