//! What is looked after while the stream runs: the fence, a verify's barrier, the lag in bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_core::engine::Fence;
use cdc_core::{Action, Result};

use super::RunContext;
use super::backoff::Backoff;

/// How often a waiting verify is looked for.
const BARRIER_EVERY: Duration = Duration::from_millis(200);
/// How often the fence is checked and progress shown.
const FENCE_EVERY: Duration = Duration::from_secs(1);

/// Watches until dropped; ends only with an error that has to stop the stream.
pub(super) async fn watch(context: Arc<RunContext>, mut fence: Box<dyn Fence>) -> Result<()> {
    let mut backoff = Backoff::new(Duration::from_secs(15));
    let mut fence_checked: Option<Instant> = None;
    loop {
        match look(&context, &mut *fence, &mut fence_checked).await {
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
