//! Steps outside the stream: what time can mend is tried again, everything else stops the job.

use std::time::{Duration, Instant};

use cdc_core::pipeline::{Control, StreamStats};
use cdc_core::{Action, Error, Kind, Result};

use super::RunContext;
use super::backoff::Backoff;

const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How often a pause looks whether it was cut short by a stop.
const TICK: Duration = Duration::from_millis(50);

/// Whether time alone can mend it. A constraint that objects once objects always: there is no plan here that
/// could be redone in another order.
pub(super) fn passes(error: &Error) -> bool {
    match error.what_to_do() {
        Action::Retry | Action::Reconnect | Action::Wait => true,
        Action::Conflict | Action::Stop => false,
    }
}

/// The error as the operator gets it. Outside the stream no conflict policy decides: what violates a constraint of
/// the target is the target's or the data's fault.
pub(super) fn for_operator(error: Error) -> Error {
    if error.kind() != Kind::Conflict {
        return error.action(Action::Stop);
    }
    let mut stopped = Error::new(Kind::Data, error.message());
    if let Some(object) = error.object_name() {
        stopped = stopped.object(object);
    }
    if let Some(code) = error.server_code() {
        stopped = stopped.code(code);
    }
    let remedy = "rows of the source violate a constraint of the target: mend the rows or drop the constraint, then \
                  run again";
    stopped
        .remedy(error.remedy_text().unwrap_or(remedy))
        .caused_by(error)
}

/// Runs `step`, which can be run again after any failure, until it is done, cannot be done, or a stop is asked for.
pub(super) async fn persist<T, S>(context: &RunContext, doing: &str, step: impl Fn() -> S + Send) -> Result<T>
where
    S: Future<Output = Result<T>>,
{
    let RunContext {
        control,
        stats,
        settings,
        ..
    } = context;
    attempts(control, stats, settings.deadline, doing, step).await
}

async fn attempts<T, S>(
    control: &Control,
    stats: &StreamStats,
    deadline: Option<Instant>,
    doing: &str,
    step: impl Fn() -> S + Send,
) -> Result<T>
where
    S: Future<Output = Result<T>>,
{
    let mut backoff = Backoff::new(LONGEST_PAUSE);
    loop {
        let error = match step().await {
            Ok(done) => return Ok(done),
            Err(error) if passes(&error) => error,
            Err(error) => return Err(for_operator(error)),
        };
        let pause = backoff.pause();
        tracing::warn!(%error, ?pause, "{doing} was interrupted and is tried again");
        stats.update(|stats| stats.fault(&error));
        let until = tokio::time::Instant::now() + pause;
        while tokio::time::Instant::now() < until && !control.stopping() {
            tokio::time::sleep(TICK.min(pause)).await;
        }
        if control.stopping() {
            return Err(Error::new(
                Kind::Interrupted,
                format!("stopped while {doing}; the next run takes it up again"),
            ));
        }
        in_time(deadline)?;
    }
}

/// An error when the time limit has passed.
pub(super) fn in_time(deadline: Option<Instant>) -> Result<()> {
    if deadline.is_none_or(|deadline| Instant::now() < deadline) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Deadline,
        "the time limit passed before the target had caught up; everything so far is kept",
    )
    .remedy("run again with a longer --timeout: it resumes where it stands"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn failure(kind: Kind, action: Action) -> Error {
        Error::new(kind, "refused")
            .action(action)
            .object("table s.t")
            .code("X")
    }

    /// Fails `failures` times in a way that has this action.
    async fn outcome(failures: u32, kind: Kind, action: Action, control: &Control) -> (Result<u32>, u32) {
        let calls = AtomicU32::new(0);
        let (calls_seen, stats) = (&calls, StreamStats::default());
        let done = attempts(control, &stats, None, "working", || async move {
            let call = calls_seen.fetch_add(1, Ordering::Relaxed);
            if call < failures {
                Err(failure(kind, action))
            } else {
                Ok(call)
            }
        })
        .await;
        (done, calls.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn what_time_mends_is_tried_until_it_is_done() {
        for action in [Action::Retry, Action::Reconnect, Action::Wait] {
            let (done, _) = outcome(7, Kind::Unreachable, action, &Control::new()).await;
            assert_eq!(done.unwrap(), 7, "{action:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_time_does_not_mend_stops_at_once() {
        for action in [Action::Conflict, Action::Stop] {
            let (done, calls) = outcome(7, Kind::Data, action, &Control::new()).await;
            let error = done.unwrap_err();
            assert_eq!(
                (error.kind(), error.what_to_do(), calls),
                (Kind::Data, Action::Stop, 1)
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_attempts() {
        let control = Control::new();
        control.stop(Duration::from_secs(1));
        let (done, calls) = outcome(7, Kind::Unreachable, Action::Reconnect, &control).await;
        assert_eq!((done.unwrap_err().kind(), calls), (Kind::Interrupted, 1));
    }

    #[test]
    fn a_conflict_without_a_policy_is_the_operators() {
        let error = for_operator(failure(Kind::Conflict, Action::Conflict));
        assert_eq!((error.kind(), error.what_to_do()), (Kind::Data, Action::Stop));
        assert_eq!(error.to_string(), "table s.t: refused (SQLSTATE X)");
        assert!(error.remedy_text().is_some());
    }
}
