//! Statements on their way: a pipeline together with what each statement is about and how many rows it must hit.

use std::collections::VecDeque;

use cdc_core::Error;
use cdc_core::plan::Image;
use cdc_core::sink::Applied;

use crate::error::PgError;
use crate::wire::{Completion, Connection, Format, Pipeline, PipelineError, Stage};

/// Answers are looked at after this many statements.
const LOOK_AFTER: u64 = 64;

/// What a statement does to rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Insert,
    Update,
    Delete,
    Upsert,
}

/// What a statement is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject {
    /// the transaction itself
    Session,
    /// the fence of the epoch
    Fence,
    /// the checkpoint
    Checkpoint,
    /// a set of rows of the plan's table of this number
    Set { table: usize, effect: Effect },
    /// one row
    Row(RowSubject),
    /// the plan's step of this number, a TRUNCATE
    Truncate { step: usize },
}

/// The row a statement is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowSubject {
    /// number of the table in the plan
    pub(super) table: usize,
    pub(super) effect: Effect,
    /// the image that has its key
    pub(super) key: Image,
    /// a member of a net set, whose order against the other members is ours
    pub(super) of_set: bool,
    /// number of the prepared statement
    pub(super) statement: usize,
}

/// Why no more statements are added.
#[derive(Debug)]
pub(super) enum Halt {
    /// The pipeline knows why.
    Server(PgError),
    /// A statement hit another number of rows than it had to; the flight knows which.
    Count,
    /// What is to be sent cannot be made.
    Own(Error),
}

impl From<PgError> for Halt {
    fn from(error: PgError) -> Halt {
        Halt::Server(error)
    }
}

impl From<Error> for Halt {
    fn from(error: Error) -> Halt {
        Halt::Own(error)
    }
}

/// Why a flight failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server refused a statement or the connection broke.
    Server {
        subject: Option<Subject>,
        stage: Stage,
        error: PgError,
    },
    /// A statement hit another number of rows than it had to.
    Count {
        subject: Subject,
        expected: u64,
        affected: u64,
    },
    /// A statement that decides about conflicts let changes through that did not arrive.
    Overtaken(Subject),
    /// What is to be sent cannot be made.
    Own(Error),
}

#[derive(Debug, Clone, Copy)]
struct Awaited {
    subject: Subject,
    /// rows it must hit
    expected: Option<u64>,
    /// it decides conflicts: its row of numbers tells what became of its `expected` changes
    deciding: bool,
}

/// A pipeline under way.
#[derive(Debug)]
pub(super) struct Flight<'c> {
    pipeline: Pipeline<'c>,
    log: Log,
    /// whether it goes through to the COMMIT, before anyone has looked at how many rows its statements hit
    to_commit: bool,
}

/// What was sent and what came of it.
#[derive(Debug, Default)]
struct Log {
    /// statements whose completion has not been looked at, the first is number `looked_at`
    awaited: VecDeque<Awaited>,
    looked_at: u64,
    applied: Applied,
    /// a statement that decides conflicts whose numbers do not add up
    raced: Option<Subject>,
    miscount: Option<(Subject, u64, u64)>,
}

impl<'c> Flight<'c> {
    pub(super) async fn begin(connection: &'c mut Connection) -> Result<Flight<'c>, PgError> {
        Ok(Flight {
            pipeline: connection.pipeline().await?,
            log: Log::default(),
            to_commit: false,
        })
    }

    /// One that ends with the COMMIT: its statements must themselves fail when they hit another number of rows than they
    /// have to.
    pub(super) async fn to_commit(connection: &'c mut Connection) -> Result<Flight<'c>, PgError> {
        let mut flight = Flight::begin(connection).await?;
        flight.to_commit = true;
        Ok(flight)
    }

    /// Whether it is [such a one](Flight::to_commit).
    pub(super) fn goes_to_commit(&self) -> bool {
        self.to_commit
    }

    /// Sends what has been added, for a failpoint that says so.
    #[cfg(feature = "failpoints")]
    pub(super) async fn flush(&mut self) {
        // Why it failed is told in the end.
        let _ = self.pipeline.flush().await;
    }

    fn must_count_itself(&self, expected: Option<u64>) -> Result<(), Halt> {
        if self.to_commit && expected.is_some() {
            return Err(Error::bug("rows are counted behind a COMMIT").into());
        }
        Ok(())
    }

    /// Adds a statement that is used once.
    pub(super) async fn once(&mut self, sql: &str, subject: Subject) -> Result<(), Halt> {
        self.log.expect(subject, None);
        self.pipeline.execute(sql).await?;
        Ok(())
    }

    /// Prepares a statement.
    pub(super) async fn prepare(&mut self, name: &str, sql: &str) -> Result<(), Halt> {
        self.pipeline.parse(name, sql, &[]).await?;
        Ok(())
    }

    /// Adds a run of a prepared statement with all values in one format; [`Flight::flow`] is to follow.
    pub(super) fn run<'v>(
        &mut self,
        name: &str,
        format: Format,
        values: impl IntoIterator<Item = Option<&'v [u8]>>,
        subject: Subject,
        expected: Option<u64>,
    ) -> Result<(), Halt> {
        self.must_count_itself(expected)?;
        self.log.expect(subject, expected);
        self.pipeline.push_execute(name, &[format], values)?;
        if self.pipeline.len().is_multiple_of(LOOK_AFTER) {
            self.look()?;
        }
        Ok(())
    }

    /// Adds a run of a prepared statement that decides about conflicts of `changes` changes.
    pub(super) fn run_deciding<'v>(
        &mut self,
        name: &str,
        format: Format,
        values: impl IntoIterator<Item = Option<&'v [u8]>>,
        subject: Subject,
        changes: u64,
    ) -> Result<(), Halt> {
        self.run(name, format, values, subject, Some(changes))?;
        if let Some(awaited) = self.log.awaited.back_mut() {
            awaited.deciding = true;
        }
        Ok(())
    }

    /// Sends what has been added once it is worth a write.
    pub(super) async fn flow(&mut self) -> Result<(), Halt> {
        self.pipeline.flow().await?;
        Ok(())
    }

    /// Starts a COPY of `rows` rows.
    pub(super) async fn copy(&mut self, sql: &str, subject: Subject, rows: u64) -> Result<(), Halt> {
        self.must_count_itself(Some(rows))?;
        self.log.expect(subject, Some(rows));
        self.pipeline.copy_in(sql).await?;
        Ok(())
    }

    /// Adds data to the COPY.
    pub(super) async fn copy_data(&mut self, data: &[u8]) -> Result<(), Halt> {
        self.pipeline.copy_data(data).await?;
        Ok(())
    }

    /// Ends the COPY.
    pub(super) async fn copy_done(&mut self) -> Result<(), Halt> {
        self.pipeline.copy_done().await?;
        Ok(())
    }

    /// Looks at the completions that have arrived.
    fn look(&mut self) -> Result<(), Halt> {
        self.log.note(&self.pipeline.take_completions());
        if self.log.miscount.is_some() {
            Err(Halt::Count)
        } else {
            Ok(())
        }
    }

    /// Waits for everything that was sent; returns how many rows it hit. `fed` is how the adding of statements ended.
    pub(super) async fn finish(self, fed: Result<(), Halt>) -> Result<Applied, Failure> {
        let Flight {
            mut pipeline,
            mut log,
            ..
        } = self;
        log.note(&pipeline.take_completions());
        match pipeline.finish().await {
            Ok(completions) => log.note(&completions),
            // A row that was missed earlier says more than what came of it.
            Err(failure) if log.miscount.is_none() => return Err(log.failed(failure)),
            Err(_) => {}
        }
        if let Some((subject, expected, affected)) = log.miscount {
            return Err(Failure::Count {
                subject,
                expected,
                affected,
            });
        }
        match fed {
            Ok(()) => match log.raced {
                None => Ok(log.applied),
                Some(subject) => Err(Failure::Overtaken(subject)),
            },
            Err(Halt::Own(error)) => Err(Failure::Own(error)),
            Err(Halt::Server(error)) => Err(Failure::Own(error.into())),
            Err(Halt::Count) => Err(Failure::Own(Error::bug("a miscount that is none"))),
        }
    }
}

impl Log {
    fn expect(&mut self, subject: Subject, expected: Option<u64>) {
        self.awaited.push_back(Awaited {
            subject,
            expected,
            deciding: false,
        });
    }

    fn note(&mut self, completions: &[Completion]) {
        for completion in completions {
            self.looked_at += 1;
            let Some(awaited) = self.awaited.pop_front() else {
                return;
            };
            if awaited.deciding {
                self.note_decisions(&awaited, completion);
                continue;
            }
            if let Subject::Set { .. } | Subject::Row(_) = awaited.subject {
                self.applied.rows += completion.affected;
            }
            if let Some(expected) = awaited.expected
                && completion.affected != expected
            {
                self.miscount
                    .get_or_insert((awaited.subject, expected, completion.affected));
            }
        }
    }

    fn note_decisions(&mut self, awaited: &Awaited, completion: &Completion) {
        let number = |column| {
            let row = completion.rows.first()?;
            std::str::from_utf8(row.get(column)?).ok()?.parse::<u64>().ok()
        };
        let numbers = (number(0), number(1), number(2), number(3));
        if let (Some(green), Some(none), Some(both), Some(acted)) = numbers
            && Some(green + none + both + acted) == awaited.expected
        {
            self.applied.rows += acted;
            self.applied.superseded += green;
            self.applied.dead_lettered += none;
        } else {
            self.raced.get_or_insert(awaited.subject);
        }
    }

    fn failed(&self, failure: PipelineError) -> Failure {
        let place = usize::try_from(failure.index.saturating_sub(self.looked_at)).ok();
        Failure::Server {
            subject: place
                .and_then(|place| self.awaited.get(place))
                .map(|awaited| awaited.subject),
            stage: failure.stage,
            error: failure.error,
        }
    }
}
