//! Committing: with what was applied before, or a few changes at once with their COMMIT.

use std::time::{Duration, Instant};

use cdc_core::plan::ApplyPlan;
use cdc_core::{Action, Checkpoint, CommitOutcome, Error, Result, failpoint};

use super::feed::feed;
use super::flight::{Failure, Flight, Halt, Subject};
use super::{Opening, PgSink, Progress, lost_connection, not_connected, session};
use crate::error::Kind as PgKind;
use crate::state::explained;
use crate::wire::Format;

/// After a group that could not be committed at once how long none is tried, at first and at most: what is the matter may
/// be the same for the next, and each is sent twice.
const AT_ONCE_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(64)];

impl PgSink {
    /// Sends a plan with its transaction around it, COMMIT included, in one flight. A statement that fails has the
    /// server skip the others up to the end of the flight.
    pub(super) async fn apply_and_commit(
        &mut self,
        plan: &ApplyPlan,
        checkpoint: &Checkpoint,
        soon: bool,
    ) -> Result<Option<CommitOutcome>> {
        if self.progress != Progress::None {
            return Err(Error::bug(
                "a group is committed at once inside a target transaction",
            ));
        }
        if self.not_at_once.is_some_and(|(until, _)| Instant::now() < until) {
            return Ok(None);
        }
        self.begin_transaction().await?;
        let ready = self.make_ready(plan).await;
        if ready.is_err() || !self.end_can_be_awaited() {
            self.rollback_transaction().await?;
            // A session that is lost is made anew from the checkpoint.
            return match ready {
                Err(error) if error.what_to_do() == Action::Reconnect => Err(self.not_ready(error).await),
                _ => Ok(None),
            };
        }
        let connection = self.connection.as_mut().ok_or_else(not_connected)?;
        let mut flight = Flight::to_commit(connection).await?;
        self.doubt.begin();
        let mut opening = Opening {
            stream: &self.stream,
            epoch: &self.epoch,
            role: self.role,
            progress: &mut self.progress,
        };
        let mut fed = opening.send(&mut flight).await;
        if fed.is_ok() {
            fed = feed(&mut flight, plan, &mut self.tables, &mut self.buffers, self.role).await;
        }
        #[cfg(feature = "failpoints")]
        flight.flush().await;
        failpoint!("sink.applied", error);
        failpoint!("sink.before-commit", error);
        if fed.is_ok() {
            fed = feed_commit(&mut flight, checkpoint, soon);
        }
        #[cfg(feature = "failpoints")]
        flight.flush().await;
        failpoint!("sink.sent");
        let failure = match flight.finish(fed).await {
            Ok(_) => {
                failpoint!("sink.committed");
                self.tables.settle(true);
                self.progress = Progress::None;
                self.doubt.committed(soon);
                self.not_at_once = None;
                return Ok(Some(CommitOutcome::Done));
            }
            Err(failure) => failure,
        };
        self.tables.settle(false);
        if lost_connection(&failure) {
            return self.lost_in_commit(failure).map(Some);
        }
        self.doubt.end();
        tracing::debug!(?failure, "not committed at once");
        let [first, most] = AT_ONCE_AGAIN;
        let pause = self.not_at_once.map_or(first, |(_, last)| most.min(last * 2));
        self.not_at_once = Some((Instant::now() + pause, pause));
        self.rollback_transaction().await?;
        Ok(None)
    }

    pub(super) async fn commit_transaction(
        &mut self,
        checkpoint: &Checkpoint,
        soon: bool,
    ) -> Result<CommitOutcome> {
        if self.progress == Progress::None {
            return Err(Error::bug("a commit outside a target transaction"));
        }
        if self.progress == Progress::Asked && !self.end_can_be_awaited() {
            self.open_alone().await?;
        }
        failpoint!("sink.before-commit", error);
        let connection = self.connection.as_mut().ok_or_else(not_connected)?;
        let mut flight = Flight::to_commit(connection).await?;
        self.doubt.begin();
        let mut opening = Opening {
            stream: &self.stream,
            epoch: &self.epoch,
            role: self.role,
            progress: &mut self.progress,
        };
        let mut fed = opening.send_if_asked(&mut flight);
        if fed.is_ok() {
            fed = feed_commit(&mut flight, checkpoint, soon);
        }
        #[cfg(feature = "failpoints")]
        flight.flush().await;
        failpoint!("sink.sent");
        let failure = match flight.finish(fed).await {
            Ok(_) => {
                failpoint!("sink.committed");
                self.progress = Progress::None;
                self.doubt.committed(soon);
                return Ok(CommitOutcome::Done);
            }
            Err(failure) => failure,
        };
        if lost_connection(&failure) {
            return self.lost_in_commit(failure);
        }
        self.doubt.end();
        let error = match failure {
            Failure::Server { error, .. } => explained(error, &self.stream),
            Failure::Own(error) => error,
            Failure::Count { .. } | Failure::Overtaken(_) => Error::bug("rows were counted of a commit"),
        };
        Err(match self.rollback_transaction().await {
            Ok(()) => error,
            Err(lost) => lost,
        })
    }

    /// Everything went out at once, so the server may have come to the COMMIT; and a session that is ended while it
    /// waits for a synchronous standby has committed already.
    fn lost_in_commit(&mut self, failure: Failure) -> Result<CommitOutcome> {
        self.drop_connection();
        self.doubt.remains();
        match failure {
            // It would be answered in the same way again.
            Failure::Server { error, .. } if matches!(error.kind, PgKind::Protocol | PgKind::Limit) => {
                Err(Error::from(error).context("committing"))
            }
            failure => {
                tracing::warn!(?failure, "the answer to COMMIT is lost");
                Ok(CommitOutcome::Unknown)
            }
        }
    }

    /// Whether [`Doubts::settle`] can wait for the session's end, before which a flight may still arrive.
    fn end_can_be_awaited(&self) -> bool {
        self.connection
            .as_ref()
            .is_some_and(|connection| connection.backend().is_some())
    }

    /// Opens a target transaction without data, and waits until it holds the fence. Sent in one flight with its
    /// COMMIT, it could still be on its way when the connection breaks: whoever waits for the doubtful COMMIT would
    /// find the fence free, and the checkpoint would move under the session that has read it. Where the end of a session
    /// can be awaited this does no harm.
    async fn open_alone(&mut self) -> Result<()> {
        let connection = self.connection.as_mut().ok_or_else(not_connected)?;
        let mut flight = Flight::begin(connection).await?;
        let mut opening = Opening {
            stream: &self.stream,
            epoch: &self.epoch,
            role: self.role,
            progress: &mut self.progress,
        };
        let fed = opening.send(&mut flight).await;
        let Err(failure) = flight.finish(fed).await else {
            return Ok(());
        };
        let lost = lost_connection(&failure);
        let error = match failure {
            Failure::Server { error, .. } => explained(error, &self.stream),
            Failure::Own(error) => error,
            Failure::Count { .. } | Failure::Overtaken(_) => Error::bug("rows were counted of a beginning"),
        };
        if lost {
            self.drop_connection();
            return Err(error);
        }
        Err(match self.rollback_transaction().await {
            Ok(()) => error,
            Err(lost) => lost,
        })
    }
}

fn feed_commit(flight: &mut Flight<'_>, checkpoint: &Checkpoint, soon: bool) -> Result<(), Halt> {
    let (source, changes) = (&checkpoint.source, &checkpoint.changes);
    let numbers = [
        checkpoint.groups,
        checkpoint.transactions,
        changes.read,
        changes.applied,
        changes.coalesced,
        changes.looped,
        changes.filtered,
        changes.superseded,
        changes.dead_lettered,
        changes.internal,
    ]
    .map(|number| number.to_string());
    let time = checkpoint.commit_time_micros.to_string();
    let texts = [
        &checkpoint.stream,
        &source.system,
        &source.database,
        &source.timeline,
        &source.slot,
        checkpoint.position.as_str(),
        &time,
    ];
    let values = texts.into_iter().chain(numbers.iter().map(String::as_str));
    let values = values.map(|value| Some(value.as_bytes()));
    flight.run(
        session::CHECKPOINT,
        Format::Text,
        values,
        Subject::Checkpoint,
        None,
    )?;
    if soon {
        flight.run(session::SOON, Format::Text, [], Subject::Session, None)?;
    }
    flight.run(session::COMMIT, Format::Text, [], Subject::Session, None)
}
