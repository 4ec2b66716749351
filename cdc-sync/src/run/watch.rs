//! What is looked after while the stream runs: the fence, a verify's barrier, the lag in bytes, new tables.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_core::engine::Fence;
use cdc_core::{Action, Kind, Result};

use super::RunContext;
use super::backoff::Backoff;
use super::follow::Following;
use super::tables::JobTables;

/// How often a waiting verify is looked for.
const BARRIER_EVERY: Duration = Duration::from_millis(200);
/// How often the fence is checked and progress shown.
const FENCE_EVERY: Duration = Duration::from_secs(1);
/// How often the source is asked for tables that the job does not have: noticed within a minute.
const TABLES_EVERY: Duration = Duration::from_secs(50);

/// Watches until dropped; ends only with an error that has to stop the stream.
pub(super) async fn watch(
    context: Arc<RunContext>,
    fence: Box<dyn Fence>,
    following: Arc<Following>,
) -> Result<()> {
    tokio::select! {
        ended = watch_stream(&context, fence) => ended,
        ended = watch_tables(&context, &following.tables) => ended,
    }
}

async fn watch_stream(context: &RunContext, mut fence: Box<dyn Fence>) -> Result<()> {
    let mut backoff = Backoff::new(Duration::from_secs(15));
    let mut fence_checked: Option<Instant> = None;
    loop {
        match look(context, &mut *fence, &mut fence_checked).await {
            Ok(()) => {
                backoff.reset();
                tokio::time::sleep(BARRIER_EVERY).await;
            }
            Err(error) if error.what_to_do() == Action::Stop => return Err(error),
            // An outage is the sessions' business; watching resumes when it is over.
            Err(error) => {
                tracing::debug!(%error, "watching interrupted");
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

/// On its own: the list of tables of a large catalog takes a while, and the fence must not wait for it.
async fn watch_tables(context: &RunContext, tables: &JobTables) -> Result<()> {
    loop {
        tokio::time::sleep(TABLES_EVERY).await;
        match tables.look(context).await {
            Ok(()) => {}
            Err(error) if error.what_to_do() == Action::Stop && error.kind() == Kind::Schema => {
                return Err(error);
            }
            Err(error) => tracing::warn!(%error, "cannot look for new tables on the source"),
        }
    }
}

async fn look(
    context: &RunContext,
    fence: &mut dyn Fence,
    fence_checked: &mut Option<Instant>,
) -> Result<()> {
    let stream = &context.names.job;
    let barrier = context.target.barrier(stream).await?;
    context.control.gate.set(barrier);
    if let Some((barrier, position)) = context.control.gate.reached() {
        context
            .target
            .barrier_reached(stream, &barrier, &position)
            .await?;
    }
    if fence_checked.is_none_or(|at| at.elapsed() >= FENCE_EVERY) {
        *fence_checked = Some(Instant::now());
        fence.check().await?;
        let stats = context.stats.snapshot();
        let lag_bytes = match &stats.applied {
            Some(applied) => context
                .source
                .log_end(Some(applied))
                .await
                .ok()
                .map(|(_, bytes)| bytes),
            None => None,
        };
        context.reporter.stream(&stats, lag_bytes);
    }
    Ok(())
}
