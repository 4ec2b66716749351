//! Following: sessions on a thread of their own, watched from here, until stopped or caught up.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cdc_core::engine::{Fence, SchemaDump, SchemaPhase, SequenceAdvance};
use cdc_core::pipeline::Phase;
use cdc_core::{Error, Result};

use super::facts::TargetFacts;
use super::retry::{in_time, persist};
use super::tables::JobTables;
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
    tables: JobTables,
    schema: Option<SchemaDump>,
) -> Result<Followed> {
    let tables = Arc::new(tables);
    let epoch = fence.epoch();
    context.stats.update(|stats| stats.phase = Phase::CatchingUp);
    let facts = Arc::new(TargetFacts::default());
    let sessions = {
        let (context, facts) = (Arc::clone(context), Arc::clone(&facts));
        tokio::task::spawn_blocking(move || supervise::supervise(&context, &facts, epoch))
    };
    let watching = tokio::spawn(watch::watch(Arc::clone(context), fence, Arc::clone(&tables)));
    let beating = context
        .settings
        .heartbeat
        .map(|every| tokio::spawn(heartbeat::beat(Arc::clone(context), every)));
    let goal = goal(context, epoch, &tables, &facts, schema);
    let ended = steer(context, sessions, watching, goal).await;
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
    mut sessions: Task,
    mut watching: Task,
    goal: impl Future<Output = Result<Followed>>,
) -> Result<Followed> {
    let first_end = tokio::select! {
        ended = &mut sessions => {
            watching.abort();
            return flatten(ended).map(|()| Followed::default());
        }
        ended = &mut watching => flatten(ended).map(|()| Followed::default()),
        reached = goal => reached,
    };
    context.control.stop(context.settings.shutdown_timeout);
    let session_end = flatten(sessions.await);
    watching.abort();
    // A session that stopped for the operator says why; what came after it is only the consequence.
    session_end?;
    first_end
}

fn flatten(joined: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    joined.unwrap_or_else(|error| Err(Error::bug("a task of the run panicked").caused_by(error)))
}

/// Returns when there is nothing left to do: never, for a plain `run`.
async fn goal(
    context: &RunContext,
    epoch: i64,
    tables: &JobTables,
    facts: &TargetFacts,
    schema: Option<SchemaDump>,
) -> Result<Followed> {
    let (source, target) = (&context.source, &context.target);
    if let Some(schema) = schema {
        pass_marker(context, "schema").await?;
        complete_schema(context, epoch, &schema).await?;
        persist(context, "reading the target's tables", || facts.read(context)).await?;
        context.reporter.note("foreign keys and triggers are in place");
    }
    if !context.settings.until_caught_up {
        return std::future::pending().await;
    }
    pass_marker(context, "caught-up").await?;
    // Whoever hears "caught up" may switch over: a table that came later must not be missed then.
    persist(context, "comparing the tables", || tables.look_at_end(context)).await?;
    let sequences = persist(context, "reading the sequences", || source.sequences()).await?;
    let buffer = context.settings.sequence_buffer;
    let sequences = persist(context, "setting the sequences", || {
        target.advance_sequences(&sequences, buffer)
    })
    .await?;
    Ok(Followed {
        sequences,
        caught_up: true,
    })
}

/// Adds what waits until all tables agree.
async fn complete_schema(context: &RunContext, epoch: i64, schema: &SchemaDump) -> Result<()> {
    let target = &context.target;
    persist(context, "adding foreign keys and triggers", || {
        target.create_schema(schema, SchemaPhase::AfterCatchUp)
    })
    .await?;
    persist(context, "storing that the schema is complete", || {
        target.finish_schema(&context.names.job, epoch)
    })
    .await
}

/// Writes a marker on the source and waits until its transaction is on the target.
///
/// The answer to the COMMIT of a marker's transaction may be lost: it is on the target then, and the stream, which
/// resumes after it, does not bring it again. So each time the stream was restarted another marker is written, and
/// any of them will do.
async fn pass_marker(context: &RunContext, purpose: &str) -> Result<()> {
    let mut written = Vec::new();
    loop {
        let restarts = context.stats.snapshot().restarts;
        let id = marker_id(purpose, written.len());
        persist(context, "writing a marker", || {
            context.source.mark(&context.names, &id)
        })
        .await?;
        written.push(id);
        while context.stats.snapshot().restarts == restarts {
            if written.iter().any(|id| context.control.marker_reached(id)) {
                return Ok(());
            }
            in_time(context.settings.deadline)?;
            tokio::time::sleep(TICK).await;
        }
    }
}

fn marker_id(purpose: &str, number: usize) -> String {
    let micros = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_micros());
    format!("{purpose}-{micros}-{}-{number}", std::process::id())
}
