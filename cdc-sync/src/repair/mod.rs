//! Bringing the target's rows to the source's where a comparison finds that they differ.
//!
//! The comparison ([`Repair::survey`]) says which rows to look at. They are written later ([`Repair::write`]), and the
//! stream may have mended or changed them by then: so a running instance stands still, the rows are read again on both
//! sides at the same position, and only what still differs is written. The target keeps the stream away from each
//! transaction that writes, and refuses one whose position has passed ([`cdc_core::repair`]).

mod parts;
mod report;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cdc_core::engine::{JobNames, Site};
use cdc_core::repair::{Asked, Mended, Mender};
use cdc_core::{Error, Kind, Result, TableName, TableSelection};
use tokio::time::{Instant, timeout, timeout_at};

use crate::verify::{self, Aligner, Differences, Differing, Progress, VerifyOptions, VerifyReport};
use parts::Part;

pub use report::{RepairReport, RepairedTable};

/// How long a running instance stands still for writing before it may go on for a while.
const HOLD: Duration = Duration::from_secs(5);
/// How often in a row the stream may move on before anything was written.
const ATTEMPTS: usize = 5;

/// A repair of a job's tables.
#[derive(Clone, Copy)]
pub struct Repair<'a> {
    /// what the rows are brought to
    pub source: &'a Arc<dyn Site>,
    /// where they are written
    pub target: &'a Arc<dyn Site>,
    /// the job
    pub names: &'a JobNames,
    /// its tables
    pub selection: &'a TableSelection,
    /// how to compare
    pub options: &'a VerifyOptions,
    /// who is told how it goes
    pub progress: &'a (dyn Fn(Progress<'_>) + Send + Sync),
}

impl std::fmt::Debug for Repair<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repair").field("names", self.names).finish()
    }
}

/// What differs before anything is written.
#[derive(Debug)]
pub struct Survey {
    /// as `verify` has it
    pub report: VerifyReport,
    differing: BTreeMap<TableName, Differing>,
}

/// What was written, table by table, and why a table was left as it is.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub(crate) mended: BTreeMap<TableName, Mended>,
    pub(crate) refused: BTreeMap<TableName, String>,
}

impl Repair<'_> {
    fn aligner(&self) -> Aligner<'_> {
        Aligner {
            source: self.source.as_ref(),
            target: self.target,
            names: self.names,
            selection: self.selection,
            options: self.options,
            progress: self.progress,
        }
    }

    /// Finds every row that differs.
    ///
    /// # Errors
    /// As [`crate::verify::verify`].
    pub async fn survey(&self) -> Result<Survey> {
        let found = Differences::default();
        let report = verify::compare(&self.aligner(), None, Some(&found)).await?;
        Ok(Survey {
            report,
            differing: found.into_tables(),
        })
    }

    /// Writes what still differs of the rows of `survey`. Each transaction holds a few rows; what was written stays
    /// when a later one fails, and a repetition finds the rest.
    ///
    /// # Errors
    /// [`Kind::Deadline`], [`Kind::Unverifiable`] when the stream cannot be made to stand still, [`Kind::Fenced`] when
    /// another repair is running, and what the sites report. A table that refuses a row is no error: it is in the
    /// outcome.
    pub async fn write(&self, survey: &Survey) -> Result<Outcome> {
        let work = self.write_all(survey);
        match self.options.deadline {
            None => work.await,
            Some(deadline) => timeout_at(deadline, work).await.unwrap_or_else(|_| {
                Err(Error::new(
                    Kind::Deadline,
                    "the time limit passed before all rows were repaired",
                )
                .remedy("repair again for the rest, with a longer --timeout"))
            }),
        }
    }

    async fn write_all(&self, survey: &Survey) -> Result<Outcome> {
        let tables = self.target.target_tables(self.selection).await?;
        let sizes = self.source.inspect(self.selection).await?;
        let mut work = Work {
            repair: *self,
            parts: parts::divide(&survey.differing, &tables, &sizes),
            mender: None,
            outcome: Outcome::default(),
            looked: 0,
            rows: survey.differing.values().map(Differing::rows).sum(),
        };
        let mut idle = 0;
        while !work.parts.is_empty() {
            let before = work.parts.len();
            work.while_standing().await?;
            idle = if work.parts.len() < before { 0 } else { idle + 1 };
            if idle >= ATTEMPTS {
                return Err(Error::new(
                    Kind::Unverifiable,
                    "the stream does not stand still for the repair",
                )
                .object(self.names.job.clone())
                .remedy("leave the job running or stopped while a repair writes"));
            }
        }
        Ok(work.outcome)
    }

    /// Compares the tables of `survey` again that differed, and adds up what was done.
    ///
    /// # Errors
    /// As [`crate::verify::verify`].
    pub async fn compare_again(&self, survey: &Survey, outcome: &Outcome) -> Result<RepairReport> {
        let differed = survey
            .report
            .tables
            .iter()
            .filter(|table| table.differences() > 0);
        let differed: BTreeSet<TableName> = differed.map(|table| table.name.clone()).collect();
        let after = verify::compare(&self.aligner(), Some(&differed), None).await?;
        Ok(RepairReport::done(&survey.report, outcome, &after))
    }
}

/// What is still to be written.
struct Work<'a> {
    repair: Repair<'a>,
    parts: VecDeque<Part<'a>>,
    mender: Option<Box<dyn Mender>>,
    outcome: Outcome,
    looked: u64,
    rows: usize,
}

impl Work<'_> {
    /// Writes as long as the stream stands where the source is read.
    async fn while_standing(&mut self) -> Result<()> {
        // Before the instance stands still, so that it does not wait for the connection as well.
        let mender = match self.mender.take() {
            Some(mender) => mender,
            None => self.repair.target.mender(&self.repair.names.job).await?,
        };
        self.mender = Some(mender);
        let aligner = self.repair.aligner();
        let standstill = aligner.standstill().await?;
        let until = standstill.holds_up().then(|| Instant::now() + HOLD);
        let written = self.parts(&standstill, until).await;
        // Whatever became of it, the instance goes on first.
        let released = standstill.release().await;
        written.and(released)
    }

    async fn parts(&mut self, standstill: &verify::Standstill, until: Option<Instant>) -> Result<()> {
        while let Some(part) = self.parts.pop_front() {
            let table = &part.differing.plan.table;
            if self.outcome.refused.contains_key(table) {
                continue;
            }
            if let Some(changes) = standstill.pending.get(table) {
                let reason = verify::not_applied(*changes);
                self.outcome.refused.insert(table.clone(), reason);
                continue;
            }
            match self.part(standstill, &part).await {
                Ok(Some(mended)) => {
                    *self.outcome.mended.entry(table.clone()).or_default() += mended;
                    self.looked += part.rows.len() as u64;
                    (self.repair.progress)(Progress::Repairing {
                        table,
                        rows: self.looked,
                        of: self.rows as u64,
                    });
                }
                Ok(None) => {
                    self.parts.push_front(part);
                    return Ok(());
                }
                Err(error) if ends_all(&error) => return Err(error),
                Err(error) => {
                    self.outcome.refused.insert(table.clone(), reason(&error));
                }
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One transaction; `None` when the stream has moved on.
    async fn part(&mut self, standstill: &verify::Standstill, part: &Part<'_>) -> Result<Option<Mended>> {
        let plan = &part.differing.plan;
        let asked = Asked {
            table: &plan.table,
            columns: &plan.columns,
            key: &plan.key,
            rows: part.rows,
        };
        let mut mender = match self.mender.take() {
            Some(mender) => mender,
            None => self.repair.target.mender(&self.repair.names.job).await?,
        };
        let work = async {
            let found = standstill.source.find(&asked).await;
            let found = found.map_err(|error| error.context("on the source"))?;
            mender.mend(&standstill.checkpoint, &asked, &found).await
        };
        let limit = self.repair.options.max_standstill;
        let mended = timeout(limit, work).await.unwrap_or_else(|_| {
            Err(Error::new(
                Kind::Resource,
                format!(
                    "{} rows could not be looked at and written while the stream stood still for {} s",
                    part.rows.len(),
                    limit.as_secs_f32()
                ),
            )
            .remedy("see what holds locks on the table; without an index on its key, copy it anew: `cdc-sync resync`"))
        });
        // After a timeout its connection is in the middle of something, and is given up.
        if mended.as_ref().is_ok() {
            self.mender = Some(mender);
        }
        mended
    }
}

/// Whether no other table would fare better.
fn ends_all(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::Unreachable | Kind::Login | Kind::Fenced | Kind::Bug
    )
}

fn reason(error: &Error) -> String {
    match error.remedy_text() {
        Some(remedy) => format!("{error}; {remedy}"),
        None => error.to_string(),
    }
}
