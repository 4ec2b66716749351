//! Keeps sessions of the stream going: every fault that time can mend leads to a new session from the
//! checkpoint on the target.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_core::engine::SeedPhase;
use cdc_core::pipeline::{Phase, Session, run_session};
use cdc_core::source::StreamStart;
use cdc_core::{Action, Error, Kind, Result};

use super::RunContext;
use super::backoff::Backoff;
use super::follow::Following;
use super::tables::widened;

/// Faults of the kind that a quick retry mends (deadlocks) before they count as permanent.
const QUICK_RETRIES: u32 = 100;
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Runs sessions until the stream is stopped or a fault needs the operator, each in its turn. Blocks: call it on a
/// thread of its own.
pub(super) fn supervise(context: &RunContext, following: &Following, epoch: i64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Local, "cannot start an I/O runtime").caused_by(error))?;
    let mut backoff = Backoff::new(LONGEST_PAUSE);
    let mut retries = 0;
    loop {
        let groups = context.stats.snapshot().groups;
        let Some(turn) = runtime.block_on(context.control.begin_session()) else {
            return Ok(());
        };
        let ended = runtime
            .block_on(open(context, following, epoch))
            .and_then(run_session);
        drop(turn);
        let error = match ended {
            Ok(_) if context.control.stopping() => return Ok(()),
            Ok(_) => continue,
            Err(error) => error,
        };
        if context.control.stopping()
            && (error.kind() == Kind::Interrupted || error.what_to_do() != Action::Stop)
        {
            return Ok(());
        }
        if context.stats.snapshot().groups > groups {
            backoff.reset();
            retries = 0;
        }
        retries += 1;
        if is_permanent(&error, retries) {
            return Err(error.action(Action::Stop));
        }
        context.control.forget_beats();
        context.stats.update(|stats| {
            stats.phase = Phase::Waiting;
            stats.restarts += 1;
            stats.fault(&error);
        });
        let pause = backoff.pause();
        tracing::warn!(%error, ?pause, "stream interrupted; it resumes from the checkpoint");
        let until = Instant::now() + pause;
        while Instant::now() < until && !context.control.stopping() {
            std::thread::sleep(Duration::from_millis(20).min(pause));
        }
        if context.control.stopping() {
            return Ok(());
        }
    }
}

/// Whether another session would meet the same. A conflict that comes this far was redone in order and row by row.
fn is_permanent(error: &Error, retries: u32) -> bool {
    match error.what_to_do() {
        Action::Stop | Action::Conflict => true,
        Action::Retry => retries > QUICK_RETRIES,
        Action::Reconnect | Action::Wait => false,
    }
}

/// Reads where the stream stands and makes the connections of one session.
async fn open(context: &RunContext, following: &Following, epoch: i64) -> Result<Session> {
    let RunContext {
        source,
        target,
        names,
        selection,
        ..
    } = context;
    let state = target.stream_state(&names.job).await?;
    let mut checkpoint = state.checkpoint.ok_or_else(|| {
        Error::new(Kind::PositionLost, "the checkpoint is gone from the target")
            .object(format!("job {}", names.job))
            .remedy("was `cleanup` run, or the target restored? seed again with run --truncate-target")
    })?;
    checkpoint.source = source.resume(&checkpoint).await?;
    let selection = widened(selection, &state.seed);
    let aside = state.seed.iter().filter(|table| table.phase == SeedPhase::Aside);
    let aside: HashSet<_> = aside.map(|table| table.table.clone()).collect();
    let seeded_to: HashMap<_, _> = state
        .seed
        .into_iter()
        .filter(|table| table.position != checkpoint.position)
        .map(|table| (table.table, table.position))
        .collect();
    following.tables.expect_names(context).await?;
    let facts = &following.facts;
    facts.read(context).await?;
    let (sink_target, stream) = (Arc::clone(target), names.job.clone());
    let (lane_target, lane_stream) = (Arc::clone(target), names.job.clone());
    Ok(Session {
        source: source.source(names, &checkpoint.source)?,
        start: StreamStart {
            from: checkpoint.position.clone(),
            stream: names.job.clone(),
            selection,
            seeded_to,
            aside,
            peer: Some(target.identity().clone()),
        },
        sink: Box::new(move |runtime| runtime.block_on(sink_target.sink(&stream, epoch))),
        lane: Some(Box::new(move |runtime| {
            runtime.block_on(lane_target.lane(&lane_stream, epoch))
        })),
        checkpoint,
        catalog: facts.catalog(),
        config: context.settings.pipeline,
        control: Arc::clone(&context.control),
        stats: Arc::clone(&context.stats),
        conflicts: context.conflicts.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_ends_the_stream_and_an_outage_does_not() {
        let permanent = |action, retries| {
            let error = Error::new(Kind::Data, "violates foreign key constraint").action(action);
            is_permanent(&error, retries)
        };
        assert!(permanent(Action::Conflict, 1) && permanent(Action::Stop, 1));
        assert!(!permanent(Action::Retry, QUICK_RETRIES) && permanent(Action::Retry, QUICK_RETRIES + 1));
        assert!(!permanent(Action::Reconnect, 1_000) && !permanent(Action::Wait, 1_000));
    }
}
