//! Following: sessions on a thread of their own, watched from here, until stopped or caught up.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cdc_core::engine::{Fence, SchemaDump, SchemaPhase, SequenceAdvance};
use cdc_core::pipeline::Phase;
use cdc_core::{Action, Error, Kind, Result, TableName};

use super::backoff::Backoff;
use super::{RunContext, heartbeat, supervise, watch};

/// How often markers and stop requests are looked at.
const TICK: Duration = Duration::from_millis(20);

/// What following achieved.
#[derive(Debug, Default)]
pub(super) struct Followed {
    pub(super) sequences: Vec<SequenceAdvance>,
    pub(super) caught_up: bool,
}

/// Follows the source. With `schema`, adds foreign keys and triggers once every table's snapshot is passed.
pub(super) async fn follow(
    context: &Arc<RunContext>,
    fence: Box<dyn Fence>,
    schema: Option<SchemaDump>,
) -> Result<Followed> {
    let epoch = fence.epoch();
    context.stats.update(|stats| stats.phase = Phase::CatchingUp);
    let sessions = {
        let context = Arc::clone(context);
        tokio::task::spawn_blocking(move || supervise::supervise(&context, epoch))
    };
    let watching = tokio::spawn(watch::watch(Arc::clone(context), fence));
    let beating = context
        .settings
        .heartbeat
        .map(|every| tokio::spawn(heartbeat::beat(Arc::clone(context), every)));
    let ended = steer(context, epoch, schema, sessions, watching).await;
    if let Some(beating) = beating {
        beating.abort();
    }
    context.stats.update(|stats| stats.phase = Phase::Stopped);
    ended
}

type Task = tokio::task::JoinHandle<Result<()>>;

/// Works towards the goal while the sessions run; whatever ends, the sessions end too before this returns.
async fn steer(
    context: &Arc<RunContext>,
    epoch: i64,
    schema: Option<SchemaDump>,
    mut sessions: Task,
    mut watching: Task,
) -> Result<Followed> {
    let mut followed = Followed::default();
    let first_end = tokio::select! {
        ended = &mut sessions => {
            watching.abort();
            return flatten(ended).map(|()| followed);
        }
        ended = &mut watching => flatten(ended),
        reached = goal(context, epoch, schema, &mut followed) => reached,
    };
    context.control.stop(context.settings.shutdown_timeout);
    let session_end = flatten(sessions.await);
    watching.abort();
    // A session that stopped for the operator says why; what came after it is only the consequence.
    session_end?;
    first_end?;
    Ok(followed)
}

fn flatten(joined: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    joined.unwrap_or_else(|error| Err(Error::bug("a task of the run panicked").caused_by(error)))
}

/// Returns when there is nothing left to do: never, for a plain `run`.
async fn goal(
    context: &RunContext,
    epoch: i64,
    schema: Option<SchemaDump>,
    followed: &mut Followed,
) -> Result<()> {
    if let Some(schema) = schema {
        pass_marker(context, "schema").await?;
        let (source, target) = (&context.source, &context.target);
        target.create_schema(&schema, SchemaPhase::AfterCatchUp).await?;
        let tables: Vec<TableName> = source
            .inspect(&context.selection)
            .await?
            .into_iter()
            .map(|table| table.name)
            .collect();
        target.analyze(&tables).await?;
        target.finish_schema(&context.names.job, epoch).await?;
        context
            .reporter
            .note("foreign keys, triggers and statistics are in place");
    }
    if !context.settings.until_caught_up {
        return std::future::pending().await;
    }
    pass_marker(context, "caught-up").await?;
    let sequences = context.source.sequences().await?;
    followed.sequences = context
        .target
        .advance_sequences(&sequences, context.settings.sequence_buffer)
        .await?;
    followed.caught_up = true;
    Ok(())
}

/// Writes a marker on the source and waits until its transaction is on the target.
async fn pass_marker(context: &RunContext, purpose: &str) -> Result<()> {
    let micros = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_micros());
    let id = format!("{purpose}-{micros}-{}", std::process::id());
    let mut backoff = Backoff::new(Duration::from_secs(5));
    while let Err(error) = context.source.mark(&context.names, &id).await {
        if error.what_to_do() == Action::Stop {
            return Err(error);
        }
        tracing::warn!(%error, "marker cannot be written on the source");
        tokio::time::sleep(backoff.pause()).await;
        in_time(context)?;
    }
    while !context.control.marker_reached(&id) {
        in_time(context)?;
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}

fn in_time(context: &RunContext) -> Result<()> {
    if context
        .settings
        .deadline
        .is_none_or(|deadline| Instant::now() < deadline)
    {
        return Ok(());
    }
    Err(Error::new(
        Kind::Deadline,
        "the time limit passed before the target had caught up; everything so far is kept",
    )
    .remedy("run again with a longer --timeout: it resumes where it stands"))
}
