//! Applying plans: one target transaction a group, the fence first, the checkpoint last.
//!
//! ```text
//! begin    nothing is sent yet
//! apply    BEGIN · hold_fence · sets, COPY, statements    one flight
//! apply    SAVEPOINT · …                                  one flight for each further part
//! commit   store_checkpoint · COMMIT                      one flight, with BEGIN and fence where nothing was applied
//! at once  all of it, for a few changes                   one flight, whose statements fail unless they hit what is meant
//! ```
//!
//! A flight is a pipeline that ends in one Sync: nothing in it waits for an answer, however many statements it has.

mod commit;
mod decided;
mod fault;
mod feed;
mod flight;
mod net;
pub(crate) mod origin;
mod policy;
mod render;
mod rows;
mod session;
mod sql;
mod suppressed;
mod tables;
mod values;

pub(crate) use origin::CameFrom;
use origin::Place;
pub(crate) use session::{SessionRole, replica_role};

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_core::plan::ApplyPlan;
use cdc_core::sink::Applied;
use cdc_core::{Action, BoxFuture, Checkpoint, CommitOutcome, Error, Kind, Result, Sink, failpoint};

use tokio::time::timeout;

use crate::config::Config;
use crate::state::doubt::{Doubt, Doubts};
use crate::wire::{Connection, Format, Stage, TransactionStatus};
use feed::feed;
use flight::{Failure, Flight, Halt, Subject};
use net::Buffers;
#[cfg(any(test, feature = "testing"))]
pub use net::NetBytes;
use suppressed::{Suspects, overtaken};

pub(crate) use suppressed::suppressors;
use tables::Tables;

/// Where the target transaction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// There is none.
    None,
    /// It was asked for; the next flight opens it.
    Asked,
    /// It is open.
    Open {
        /// plans it holds
        plans: u64,
        /// whether there is a savepoint
        savepoint: bool,
    },
}

/// Why a plan that was sent is not applied.
#[derive(Debug)]
enum Flown {
    /// Changes that a policy let through did not arrive.
    Overtaken(Subject),
    Failed(Error),
}

impl From<Error> for Flown {
    fn from(error: Error) -> Flown {
        Flown::Failed(error)
    }
}

/// How long what was abandoned may take to end.
const ABANDON: Duration = Duration::from_secs(1);
/// Whether any session waits for a lock that this one holds.
const WAITED_FOR: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks AS l WHERE NOT l.granted \
    AND pg_catalog.pg_backend_pid() = ANY (pg_catalog.pg_blocking_pids(l.pid)))";
/// `lock_not_available`
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Applies a stream to one database.
#[derive(Debug)]
pub(crate) struct PgSink {
    config: Config,
    stream: String,
    epoch: String,
    /// which of the job's origins it has
    place: Place,
    connection: Option<Connection>,
    role: SessionRole,
    tables: Tables,
    buffers: Buffers,
    progress: Progress,
    doubt: Doubt,
    /// until when no group is committed at once, and how long that is
    not_at_once: Option<(Instant, Duration)>,
}

impl PgSink {
    /// A sink for `stream` under the fence's `epoch`. Connects when it begins, on the runtime it is used on.
    pub(crate) fn new(config: Config, stream: &str, epoch: i64, doubts: Arc<Doubts>) -> Self {
        Self {
            config,
            stream: stream.to_owned(),
            epoch: epoch.to_string(),
            place: Place::Stream,
            connection: None,
            role: SessionRole::Origin,
            tables: Tables::new(&Arc::from(stream)),
            buffers: Buffers::default(),
            progress: Progress::None,
            doubt: Doubt::new(doubts, stream),
            not_at_once: None,
        }
    }

    /// Makes it the one that applies ahead of the stream.
    pub(crate) fn ahead(mut self) -> Self {
        self.place = Place::Lane;
        self
    }

    async fn begin_transaction(&mut self) -> Result<()> {
        if self.progress != Progress::None {
            return Err(Error::bug("a target transaction is begun while one is open"));
        }
        // A transaction that an operation left open, dropped in its middle, goes with its connection.
        self.connection.take_if(|connection| !connection.is_idle());
        if self.connection.is_none() {
            let (connection, role) =
                session::open(&self.config, &self.stream, &self.epoch, self.place).await?;
            self.doubt.by(connection.backend().cloned());
            (self.connection, self.role) = (Some(connection), role);
            self.tables.forget();
        }
        self.progress = Progress::Asked;
        failpoint!("sink.begun", error);
        Ok(())
    }

    async fn apply_plan(&mut self, plan: &ApplyPlan) -> Result<Applied> {
        if self.progress == Progress::None {
            return Err(Error::bug("a plan is applied outside a target transaction"));
        }
        if let Err(error) = self.make_ready(plan).await {
            return Err(self.not_ready(error).await);
        }
        let flown = match self.fly(plan, None).await {
            Err(Flown::Overtaken(subject)) => self.fly_alone(plan, subject).await,
            Err(Flown::Failed(error)) => Err(self.undo(error).await),
            Ok(applied) => Ok(applied),
        };
        if let (Ok(_), Progress::Open { plans, .. }) = (&flown, &mut self.progress) {
            *plans += 1;
        }
        flown
    }

    /// Tries a plan again of which changes did not arrive, with nobody else writing, where something of the target may
    /// have kept them back.
    async fn fly_alone(&mut self, plan: &ApplyPlan, subject: Subject) -> Result<Applied> {
        let connection = self.connection.as_mut().ok_or_else(not_connected)?;
        let suspects = match Suspects::find(connection, plan, subject).await {
            Ok(Some(suspects)) => suspects,
            Ok(None) => return Err(self.undo(overtaken()).await),
            Err(error) => return Err(self.undo(error).await),
        };
        // As after an error that stops, the target transaction stays, without the plan.
        let undone = self.undo(suspects.blamed(plan, subject)).await;
        if self.progress == Progress::None {
            return Err(undone);
        }
        let error = match self.fly(plan, Some(&suspects.lock())).await {
            Ok(applied) => return Ok(applied),
            Err(Flown::Overtaken(subject)) => suspects.blamed(plan, subject),
            Err(Flown::Failed(error)) if error.server_code() == Some(LOCK_NOT_AVAILABLE) => overtaken(),
            Err(Flown::Failed(error)) => error,
        };
        Err(self.undo(error).await)
    }

    /// Learns what the plan's statements must know of the target.
    async fn make_ready(&mut self, plan: &ApplyPlan) -> Result<()> {
        let connection = self.connection.as_mut().ok_or_else(not_connected)?;
        if self.tables.crowded() && self.progress == Progress::Asked {
            session::start_over(connection).await?;
            self.tables.forget();
        }
        self.tables.learn(plan, connection).await
    }

    /// Nothing of the plan has been sent, so there is nothing to undo: a savepoint is the plan's before, which was
    /// right. But a statement that the server refused has failed the transaction with all that it holds.
    async fn not_ready(&mut self, error: Error) -> Error {
        let Some(connection) = self.connection.as_mut() else {
            self.progress = Progress::None;
            return error;
        };
        if error.what_to_do() == Action::Reconnect {
            self.drop_connection();
            return error;
        }
        let is_open = matches!(self.progress, Progress::Open { .. });
        if !is_open || connection.transaction_status() != TransactionStatus::Failed {
            return error;
        }
        match self.rollback_transaction().await {
            Ok(()) => match error.what_to_do() {
                Action::Conflict | Action::Stop => error.action(Action::Retry),
                _ => error,
            },
            Err(lost) => lost,
        }
    }

    /// Sends a plan, behind the statement `first` if there is one.
    async fn fly(&mut self, plan: &ApplyPlan, first: Option<&str>) -> Result<Applied, Flown> {
        let connection = self.connection.as_mut().ok_or_else(not_connected)?;
        let mut flight = Flight::begin(connection).await.map_err(Error::from)?;
        let mut opening = Opening {
            stream: &self.stream,
            epoch: &self.epoch,
            role: self.role,
            progress: &mut self.progress,
        };
        let opened = match (opening.send(&mut flight).await, first) {
            (Ok(()), Some(first)) => flight.once(first, Subject::Session).await,
            (opened, _) => opened,
        };
        let fed = match opened {
            Ok(()) => feed(&mut flight, plan, &mut self.tables, &mut self.buffers, self.role).await,
            halted => halted,
        };
        match flight.finish(fed).await {
            Ok(applied) => {
                self.tables.settle(true);
                failpoint!("sink.applied", error);
                Ok(applied)
            }
            Err(Failure::Overtaken(subject)) => {
                self.tables.settle(true);
                Err(Flown::Overtaken(subject))
            }
            Err(failure) => {
                let lost = lost_connection(&failure);
                let error = fault::explain(failure, plan, &self.tables, &self.stream);
                self.tables.settle(false);
                if lost {
                    self.drop_connection();
                }
                Err(Flown::Failed(error))
            }
        }
    }

    /// Undoes a plan that failed. The error is the one to report; it may be another when the connection is lost.
    async fn undo(&mut self, error: Error) -> Error {
        let stays =
            matches!(error.what_to_do(), Action::Conflict | Action::Stop) && error.kind() != Kind::Fenced;
        let (sql, after) = match self.progress {
            Progress::Open {
                plans,
                savepoint: true,
            } if stays && plans > 0 => ("ROLLBACK TO SAVEPOINT plan", self.progress),
            Progress::None => return error,
            _ if stays => ("ROLLBACK", Progress::Asked),
            _ => ("ROLLBACK", Progress::None),
        };
        let Some(connection) = &mut self.connection else {
            self.progress = Progress::None;
            return error;
        };
        match connection.simple_query(sql).await {
            Ok(_) => {
                self.progress = after;
                error
            }
            Err(lost) => {
                self.drop_connection();
                tracing::debug!(%error, "the plan failed before the connection was lost");
                Error::from(lost).context("rolling back")
            }
        }
    }

    async fn rollback_transaction(&mut self) -> Result<()> {
        let open = matches!(self.progress, Progress::Open { .. });
        self.progress = Progress::None;
        let Some(connection) = self.connection.as_mut().filter(|_| open) else {
            return Ok(());
        };
        if let Err(error) = connection.simple_query("ROLLBACK").await {
            self.drop_connection();
            return Err(error.into());
        }
        Ok(())
    }

    async fn abandon_transaction(&mut self) -> Result<()> {
        self.progress = Progress::None;
        let Some(mut connection) = self.connection.take() else {
            return Ok(());
        };
        let is_settled = connection.is_settled();
        let ended = timeout(ABANDON, async {
            if !is_settled {
                connection.cancel().await?;
            }
            if !connection.is_idle() {
                connection.simple_query("ROLLBACK").await?;
            }
            Ok::<_, Error>(())
        });
        let ended = ended.await.unwrap_or_else(|_| Err(not_connected()));
        // What of a flight reached the server before it was dropped is not known, nor which statements it has prepared.
        self.connection = Some(connection).filter(|_| is_settled && ended.is_ok());
        ended
    }

    async fn is_waited_for(&mut self) -> Result<bool> {
        let Some(connection) = self.connection.as_mut() else {
            return Ok(false);
        };
        if connection.transaction_status() != TransactionStatus::InTransaction {
            return Ok(false);
        }
        match connection.single_value(WAITED_FOR).await {
            Ok(answer) => Ok(answer.as_deref() == Some("t")),
            Err(error) => {
                self.drop_connection();
                Err(error.into())
            }
        }
    }

    fn drop_connection(&mut self) {
        self.connection = None;
        self.progress = Progress::None;
    }
}

fn not_connected() -> Error {
    Error::new(Kind::Unreachable, "the connection to the target is lost").action(Action::Reconnect)
}

fn lost_connection(failure: &Failure) -> bool {
    match failure {
        Failure::Server { stage, error, .. } => *stage == Stage::Connection || error.is_fatal(),
        Failure::Count { .. } | Failure::Overtaken(_) | Failure::Own(_) => false,
    }
}

/// Opens the target transaction, or makes a savepoint in one that holds something already.
struct Opening<'s> {
    stream: &'s str,
    epoch: &'s str,
    role: SessionRole,
    progress: &'s mut Progress,
}

impl Opening<'_> {
    async fn send(&mut self, flight: &mut Flight<'_>) -> Result<(), Halt> {
        self.send_if_asked(flight)?;
        if let Progress::Open { plans, savepoint } = self.progress
            && *plans > 0
        {
            // Released only now: whether the plan before is right is known after its flight has ended.
            if std::mem::replace(savepoint, true) {
                flight.once("RELEASE SAVEPOINT plan", Subject::Session).await?;
            }
            flight.once("SAVEPOINT plan", Subject::Session).await?;
        }
        Ok(())
    }

    fn send_if_asked(&mut self, flight: &mut Flight<'_>) -> Result<(), Halt> {
        if *self.progress != Progress::Asked {
            return Ok(());
        }
        *self.progress = Progress::Open {
            plans: 0,
            savepoint: false,
        };
        flight.run(session::BEGIN, Format::Text, [], Subject::Session, None)?;
        if self.role == SessionRole::Origin {
            flight.run(session::DEFER, Format::Text, [], Subject::Session, None)?;
        }
        let values = [self.stream, self.epoch].map(|value| Some(value.as_bytes()));
        flight.run(session::FENCE, Format::Text, values, Subject::Fence, None)
    }
}

impl Sink for PgSink {
    fn begin(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(self.begin_transaction())
    }

    fn apply<'a>(&'a mut self, plan: &'a ApplyPlan) -> BoxFuture<'a, Applied> {
        Box::pin(self.apply_plan(plan))
    }

    fn commit<'a>(&'a mut self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, CommitOutcome> {
        Box::pin(self.commit_transaction(checkpoint, false))
    }

    fn commit_soon<'a>(&'a mut self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, CommitOutcome> {
        Box::pin(self.commit_transaction(checkpoint, true))
    }

    fn apply_at_once<'a>(
        &'a mut self,
        plan: &'a ApplyPlan,
        checkpoint: &'a Checkpoint,
        soon: bool,
    ) -> BoxFuture<'a, Option<CommitOutcome>> {
        Box::pin(self.apply_and_commit(plan, checkpoint, soon))
    }

    fn rollback(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(self.rollback_transaction())
    }

    fn abandon(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(self.abandon_transaction())
    }

    fn is_in_the_way(&mut self) -> BoxFuture<'_, bool> {
        Box::pin(self.is_waited_for())
    }
}
