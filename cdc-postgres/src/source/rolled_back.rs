//! Which subtransactions were rolled back, by the server's own record.

use std::collections::HashSet;

use cdc_core::Result;

use crate::config::Config;
use crate::session::{connect, during};

/// How many are asked about at once.
const AT_ONCE: usize = 50_000;

/// A transaction id has 32 bits; of the 64 that the function takes, the upper ones are those by which it is nearest to the
/// next id. What has not ended counts as not rolled back: a subtransaction that was has ended before its transaction.
const ASK: &str = "SELECT asked.xid FROM unnest($1::int8[]) asked (xid), \
     (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8 AS xid) next, \
     LATERAL (SELECT (next.xid - asked.xid) & 4294967295 AS back) distance \
     WHERE pg_xact_status((next.xid - back + CASE WHEN back > 2147483647 THEN 4294967296 ELSE 0 END)::text::xid8) = 'aborted'";

/// Those of `subtransactions` that were rolled back.
pub(super) async fn among(config: Config, subtransactions: Vec<u32>) -> Result<HashSet<u32>> {
    let client = connect(&config, &[]).await?;
    let mut found = HashSet::new();
    for some in subtransactions.chunks(AT_ONCE) {
        let asked: Vec<i64> = some.iter().map(|xid| i64::from(*xid)).collect();
        let rows = client
            .query_typed(ASK, &[(&asked, tokio_postgres::types::Type::INT8_ARRAY)])
            .await
            .map_err(during("asking which subtransactions were rolled back"))?;
        found.extend(rows.iter().map(|row| row.get::<_, i64>(0) as u32));
    }
    Ok(found)
}
