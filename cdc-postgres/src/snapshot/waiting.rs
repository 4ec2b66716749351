//! While a slot is being made, the server waits for every transaction that writes to end: saying for whom, and not
//! leaving the server waiting when we give up.

use std::convert::Infallible;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::error::PgError;
use crate::walsender::{CreateSlot, CreatedSlot, WalSender};
use crate::wire::CancelToken;

/// How often the reason for waiting is said.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Creates a slot on `walsender`; `client` is another connection to the same server, by which to look.
pub(crate) async fn create_slot(
    client: &Client,
    walsender: &mut WalSender,
    slot: &CreateSlot<'_>,
) -> Result<CreatedSlot, PgError> {
    let abandoned = CancelOnDrop(Some(walsender.cancel_token()));
    let pid = walsender.backend_pid();
    let created = tokio::select! {
        created = walsender.create_logical_slot(slot) => created,
        never = report(client, pid, slot.name) => match never {},
    };
    abandoned.disarm();
    created
}

/// Says every few seconds for whom session `pid` waits.
async fn report(client: &Client, pid: i32, slot: &str) -> Infallible {
    let start = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        let seconds = start.elapsed().as_secs();
        match blockers(client, pid).await {
            Ok(blockers) => tracing::warn!(
                slot,
                seconds,
                "the source makes the slot; it waits for {blockers}"
            ),
            Err(error) => tracing::debug!(slot, "cannot tell for whom the slot waits: {error}"),
        }
    }
}

async fn blockers(client: &Client, pid: i32) -> Result<String, tokio_postgres::Error> {
    // Process 0 stands for a prepared transaction.
    let rows = client
        .query_typed(
            "SELECT CASE WHEN b.pid = 0 THEN 'a prepared transaction (see pg_prepared_xacts)' \
                    ELSE format('process %s (user %s%s, %s, transaction open for %s s)', b.pid, a.usename, \
                         COALESCE(', ' || NULLIF(a.application_name, ''), ''), a.state, \
                         extract(epoch FROM clock_timestamp() - a.xact_start)::int8) END \
             FROM (SELECT DISTINCT unnest(pg_blocking_pids($1)) AS pid) b \
             LEFT JOIN pg_stat_activity a ON a.pid = b.pid ORDER BY a.xact_start",
            &[(&pid, Type::INT4)],
        )
        .await?;
    if rows.is_empty() {
        let row = client.query_typed_one("SELECT pg_is_in_recovery()", &[]).await?;
        return Ok(if row.get(0) {
            "word from the primary: run SELECT pg_log_standby_snapshot() there".to_owned()
        } else {
            "running transactions to be noted in the log".to_owned()
        });
    }
    let blockers: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(blockers.join(", "))
}

/// Cancels the command when the future that waits for it is dropped: the server does not notice that a client has
/// left while it waits for a transaction.
#[derive(Debug)]
struct CancelOnDrop(Option<CancelToken>);

impl CancelOnDrop {
    /// The command has ended.
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let (Some(token), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { token.cancel().await });
        }
    }
}
