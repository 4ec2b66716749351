//! Blue comes first: what it holds back for us until the stream follows is shown, warned about and limited.

use std::time::{Duration, Instant};

use cdc_core::engine::{JobNames, Retention};
use cdc_core::{Error, Kind, Result};

use super::RunContext;
use crate::status::LOST;

/// How often the source is asked what it retains.
const EVERY: Duration = Duration::from_secs(2);

/// Looks at what the source retains, from the first checkpoint until the stream follows.
#[derive(Debug, Default)]
pub(super) struct RetentionWatch {
    asked: Option<Instant>,
    warned: bool,
    failing: bool,
}

impl RetentionWatch {
    /// What the source retains; `None` when it is not time to ask yet, or it could not be asked.
    ///
    /// # Errors
    /// When the limit is reached or the log is lost. A question that is not answered is no error: whatever depends
    /// on the source notices by itself when it is gone.
    pub(super) async fn look(&mut self, context: &RunContext) -> Result<Option<Retention>> {
        if self.asked.is_some_and(|at| at.elapsed() < EVERY) {
            return Ok(None);
        }
        self.asked = Some(Instant::now());
        let retention = match context.source.retention(&context.names).await {
            Ok(retention) => retention,
            Err(error) => {
                if !self.failing {
                    tracing::warn!(%error, "cannot ask the source what it retains");
                }
                self.failing = true;
                return Ok(None);
            }
        };
        self.failing = false;
        let kept = standing(&context.names, retention)?;
        if let Some(limit) = context.settings.max_retained_wal {
            within(&kept, limit, &mut self.warned, &context.names.slot)?;
        }
        Ok(Some(kept))
    }
}

/// Does `work` while watching what the source retains.
pub(super) async fn watched<T>(context: &RunContext, work: impl Future<Output = Result<T>>) -> Result<T> {
    let watching = async {
        let mut watch = RetentionWatch::default();
        loop {
            if let Err(error) = watch.look(context).await {
                return error;
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    tokio::select! {
        biased;
        done = work => done,
        error = watching => Err(error),
    }
}

/// The retention of a stream that has a checkpoint; an error when its log is cut or no longer kept for it.
pub(crate) fn standing(names: &JobNames, retention: Option<Retention>) -> Result<Retention> {
    let lost = |message: &str| {
        Err(Error::new(Kind::PositionLost, message)
            .object(format!("slot {}", names.slot))
            .remedy("seed the target again: `cdc-sync cleanup`, then `cdc-sync run --truncate-target`"))
    };
    match retention {
        None => lost("it does not exist on the source any more: the log after the checkpoint is gone"),
        Some(kept) if kept.status == LOST => {
            lost("the source has removed log that it still needed: the log after the checkpoint is gone")
        }
        Some(kept) => Ok(kept),
    }
}

/// Warns once at half of `limit`; an error at `limit`.
fn within(kept: &Retention, limit: u64, warned: &mut bool, slot: &str) -> Result<()> {
    if kept.retained_bytes >= limit {
        return Err(Error::new(
            Kind::Deadline,
            format!("the source retains {} bytes of log for the seed, the limit is {limit}", kept.retained_bytes),
        )
        .object(format!("slot {slot}"))
        .remedy("run again (finished tables stay) with a higher --max-retained-wal or more --parallel, or `cleanup` to release the log"));
    }
    if kept.retained_bytes >= limit / 2 && !*warned {
        *warned = true;
        tracing::warn!(
            slot,
            retained = kept.retained_bytes,
            limit,
            "retained log has passed half of its limit"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(retained_bytes: u64, status: &str) -> Retention {
        Retention {
            retained_bytes,
            safe_bytes: None,
            status: status.into(),
        }
    }

    #[test]
    fn the_limit_warns_at_half_and_then_stops() {
        let mut warned = false;
        within(&kept(49, "reserved"), 100, &mut warned, "s").unwrap();
        assert!(!warned);
        within(&kept(50, "reserved"), 100, &mut warned, "s").unwrap();
        assert!(warned);
        let error = within(&kept(100, "reserved"), 100, &mut warned, "s").unwrap_err();
        assert_eq!(error.kind(), Kind::Deadline);
    }

    #[test]
    fn a_slot_that_is_gone_or_cut_is_a_lost_position() {
        let names = JobNames {
            job: "j".into(),
            slot: "cdc_sync_j".into(),
        };
        assert!(standing(&names, Some(kept(1, "extended"))).is_ok());
        for found in [None, Some(kept(1, LOST))] {
            let error = standing(&names, found).unwrap_err();
            assert_eq!(error.kind(), Kind::PositionLost);
            assert_eq!(error.object_name(), Some("slot cdc_sync_j"));
        }
    }
}
