//! The heartbeat: a row written on the source, seen committed on the target, both timed by one clock here.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::RunContext;

/// How long a heartbeat may take to write before the attempt is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes heartbeats until dropped. A source that cannot be written to is warned about once and tried again:
/// replication does not depend on heartbeats.
pub(super) async fn beat(context: Arc<RunContext>, every: Duration) {
    // Numbers continue across restarts without being stored: microseconds never repeat.
    let mut number = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |now| now.as_micros() as i64);
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        ticks.tick().await;
        number += 1;
        context.control.beat_sent(number);
        match tokio::time::timeout(WRITE_TIMEOUT, context.source.beat(&context.names, number)).await {
            Ok(Ok(())) => failing = false,
            failed => {
                context.control.forget_beats();
                if !failing {
                    failing = true;
                    let error = failed.map_or_else(
                        |_| "timed out".to_owned(),
                        |r| r.err().map_or_else(String::new, |e| e.to_string()),
                    );
                    tracing::warn!(%error, "heartbeat cannot be written on the source; lag is not measured");
                }
            }
        }
    }
}
