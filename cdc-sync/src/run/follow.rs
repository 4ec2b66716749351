//! Following: sessions on a thread of their own, watched from here, until stopped or caught up.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cdc_core::engine::{Fence, SchemaDump, SchemaPhase, SequenceAdvance};
use cdc_core::pipeline::{Control, Phase};
use cdc_core::{Error, Kind, Result};
use tokio::time::timeout;

use super::beside::{Attended, Beside};
use super::facts::TargetFacts;
use super::retry::{in_time, persist};
use super::tables::JobTables;
use super::{RunContext, Unfinished, heartbeat, prepare, supervise, watch};

/// How often stop requests are looked at.
const TICK: Duration = Duration::from_millis(20);

/// How often tables that were set aside are looked for.
const BESIDE_EVERY: Duration = Duration::from_secs(1);

/// What following achieved.
#[derive(Debug, Default)]
pub(super) struct Followed {
    pub(super) sequences: Vec<SequenceAdvance>,
    pub(super) caught_up: bool,
}

/// What following and working towards a goal share.
pub(super) struct Following {
    pub(super) tables: JobTables,
    pub(super) facts: TargetFacts,
}

impl Following {
    pub(super) fn new(tables: JobTables) -> Arc<Self> {
        Arc::new(Self {
            tables,
            facts: TargetFacts::default(),
        })
    }
}

/// Follows the source until stopped, or until `goal` is reached; `None` when it was not.
pub(super) async fn follow<T>(
    context: &Arc<RunContext>,
    fence: Box<dyn Fence>,
    following: &Arc<Following>,
    goal: impl Future<Output = Result<T>>,
) -> Result<Option<T>> {
    let epoch = fence.epoch();
    context.stats.update(|stats| stats.phase = Phase::CatchingUp);
    let sessions = {
        let (context, following) = (Arc::clone(context), Arc::clone(following));
        tokio::task::spawn_blocking(move || supervise::supervise(&context, &following, epoch))
    };
    let watching = tokio::spawn(watch::watch(Arc::clone(context), fence, Arc::clone(following)));
    let beating = context
        .settings
        .heartbeat
        .map(|every| tokio::spawn(heartbeat::beat(Arc::clone(context), every)));
    let ended = steer(context, sessions, watching, goal).await;
    if let Some(beating) = beating {
        beating.abort();
    }
    context.stats.update(|stats| stats.phase = Phase::Stopped);
    ended
}

type Task = tokio::task::JoinHandle<Result<()>>;

/// Works towards the goal while the sessions run; whatever ends, the others end too before this returns.
async fn steer<T>(
    context: &RunContext,
    mut sessions: Task,
    mut watching: Task,
    goal: impl Future<Output = Result<T>>,
) -> Result<Option<T>> {
    let patience = context.settings.shutdown_timeout;
    let mut goal = std::pin::pin!(goal);
    let (first_end, session_end) = tokio::select! {
        ended = &mut sessions => {
            context.control.stop(patience);
            // What it began ends in good order if it can; every step of it can be taken up again.
            let _ = timeout(patience, &mut goal).await;
            (Ok(None), flatten(ended))
        }
        ended = &mut watching => {
            context.control.stop(patience);
            let _ = timeout(patience, &mut goal).await;
            (flatten(ended).map(|()| None), flatten(sessions.await))
        }
        reached = &mut goal => {
            let stopped = context.control.stopping();
            context.control.stop(patience);
            let reached = match reached {
                Err(error) if stopped && error.kind() == Kind::Interrupted => Ok(None),
                reached => reached.map(Some),
            };
            (reached, flatten(sessions.await))
        }
    };
    watching.abort();
    // A session that stopped for the operator says why; what came after it is only the consequence.
    session_end?;
    first_end
}

fn flatten(joined: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    joined.unwrap_or_else(|error| Err(Error::bug("a task of the run panicked").caused_by(error)))
}

/// What is to be done beside following: of a schema that is `unfinished`, statistics of its tables are gathered, and foreign
/// keys and triggers are added once every table's snapshot is passed. Returns when nothing is left: never, for a plain `run`.
pub(super) async fn goal(
    context: &Arc<RunContext>,
    epoch: i64,
    following: &Following,
    unfinished: Option<Unfinished>,
) -> Result<Followed> {
    let (source, target) = (&context.source, &context.target);
    if let Some(Unfinished { schema, filled }) = unfinished {
        // Plans on the tables as they were when empty would be the application's after the switch. Ours do not depend on them.
        let statistics = prepare::analyze(context, &filled);
        tokio::try_join!(statistics, pass_marker(context, "schema"))?;
        complete_schema(context, epoch, &schema, (context, following)).await?;
        context.reporter.note("foreign keys and triggers are in place");
    }
    let mut beside = Beside::new(context, epoch, following);
    loop {
        match beside.attend().await? {
            Attended::Idle if context.settings.until_caught_up => break,
            Attended::Failed(error) if context.settings.until_caught_up => {
                // All others are as far as they would be without it.
                pass_marker(context, "without-aside").await?;
                return Err(error);
            }
            _ => {}
        }
        not_stopping(&context.control)?;
        tokio::time::sleep(BESIDE_EVERY).await;
    }
    pass_marker(context, "caught-up").await?;
    // Whoever hears "caught up" may switch over: a table that came later must not be missed then.
    let tables = &following.tables;
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

/// Adds what waits until all tables agree. It is known to the stream that applies to the tables, that of `followed`, before
/// it counts as complete: a trigger that must see every change does from then on.
pub(super) async fn complete_schema(
    context: &RunContext,
    epoch: i64,
    schema: &SchemaDump,
    (followed, following): (&RunContext, &Following),
) -> Result<()> {
    let target = &context.target;
    persist(context, "adding foreign keys and triggers", || {
        target.create_schema(schema, SchemaPhase::AfterCatchUp)
    })
    .await?;
    let facts = &following.facts;
    persist(context, "reading the target's tables", || facts.read(followed)).await?;
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
pub(super) async fn pass_marker(context: &RunContext, purpose: &str) -> Result<()> {
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
            not_stopping(&context.control)?;
            let _ = timeout(TICK, context.control.any_marker(&written)).await;
        }
    }
}

/// An error when a stop was asked for.
pub(super) fn not_stopping(control: &Control) -> Result<()> {
    if control.stopping() {
        return Err(Error::new(
            Kind::Interrupted,
            "stopped; the next run takes it up again",
        ));
    }
    Ok(())
}

fn marker_id(purpose: &str, number: usize) -> String {
    let micros = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_micros());
    format!("{purpose}-{micros}-{}-{number}", std::process::id())
}
