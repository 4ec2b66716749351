//! Comparing source and target row by row, exactly, also while both are written.
//!
//! [`verify`] opens two views of the same moment (`align`), decides for each selected table how
//! it can be compared (`tables`), and merges the two ordered streams of rows of each table (`merge`). What it
//! finds is a [`VerifyReport`]. It knows no database product: all it needs is a
//! [`Site`] on either end.

mod align;
mod differences;
mod gap;
mod merge;
mod report;
mod standstill;
mod tables;
#[cfg(test)]
mod testing;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cdc_core::compare::RowText;
use cdc_core::engine::{CompareView, JobNames, OrderedRows, Site};
use cdc_core::{Error, Kind, Result, TableName, TableSelection};
use futures_util::{StreamExt, TryStreamExt};
use tokio::time::Instant;

pub use report::{Alignment, DifferenceKind, NAMED_KEYS, RowKey, TableReport, VerifyReport};

pub(crate) use align::{Aligner, REMEDY};
pub(crate) use differences::{Differences, Differing};
pub(crate) use standstill::Standstill;

use align::Views;
use merge::TablePlan;

/// How to compare.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// tables compared at the same time; at least one
    pub parallel: usize,
    /// when to give up with [`Kind::Deadline`]
    pub deadline: Option<Instant>,
    /// how long a running instance may be made to stand still
    pub max_standstill: Duration,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            parallel: 2,
            deadline: None,
            max_standstill: Duration::from_secs(60),
        }
    }
}

/// What a verify is doing, for showing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// The views are not open yet.
    Waiting {
        /// what it waits for
        what: &'a str,
    },
    /// Rows of a table are being compared.
    Comparing {
        /// the table
        table: &'a TableName,
        /// rows compared
        rows: u64,
    },
    /// A table is done.
    Compared {
        /// what was found
        table: &'a TableReport,
        /// tables done, this one included
        done: usize,
        /// tables in all
        of: usize,
    },
    /// Rows of a table are being brought to what the source has.
    Repairing {
        /// the table
        table: &'a TableName,
        /// rows looked at again, over all tables
        rows: u64,
        /// rows to look at again in all
        of: u64,
    },
}

/// Compares the selected tables of `source` and `target`.
///
/// A running instance of the job stands still for a moment and goes on before rows are compared. Without one the
/// target is compared where its checkpoint stands; tables with changes in the log that are not applied yet are
/// unverifiable. Both sides are only read, apart from the request to the instance.
///
/// # Errors
/// [`Kind::Deadline`] when `options.deadline` passes, [`Kind::Unverifiable`] when no two views of the same moment
/// can be had, [`Kind::Config`] when no table is selected, and whatever the sites report. The failure of a single
/// table is no error: it is in the report.
pub async fn verify(
    source: &Arc<dyn Site>,
    target: &Arc<dyn Site>,
    names: &JobNames,
    selection: &TableSelection,
    options: &VerifyOptions,
    progress: &(dyn Fn(Progress<'_>) + Send + Sync),
) -> Result<VerifyReport> {
    let aligner = Aligner {
        source: source.as_ref(),
        target,
        names,
        selection,
        options,
        progress,
    };
    compare(&aligner, None, None).await
}

/// Compares the selected tables, or `only` some of them, and notes in `found` which rows differ.
pub(crate) async fn compare(
    aligner: &Aligner<'_>,
    only: Option<&BTreeSet<TableName>>,
    found: Option<&Differences>,
) -> Result<VerifyReport> {
    let Aligner {
        options, progress, ..
    } = aligner;
    // The deadline is kept step by step and not around the whole: a running instance is let go when it passes.
    let (mut planned, mut tables) = before(options.deadline, plan(aligner)).await?;
    if let Some(only) = only {
        planned.retain(|plan| only.contains(&plan.table));
        tables.retain(|table| only.contains(&table.name));
    }
    let views = aligner.views().await?;
    planned.retain(|plan| match views.pending.get(&plan.table) {
        _ if views.aside.contains(&plan.table) => {
            tables.push(TableReport::unverifiable(
                plan.table.clone(),
                format!("it is being copied anew; {}", align::ASIDE_REMEDY),
            ));
            false
        }
        Some(changes) => {
            tables.push(TableReport::unverifiable(
                plan.table.clone(),
                not_applied(*changes),
            ));
            false
        }
        None => true,
    });
    let position = views.source.position().cloned();
    let comparison = Comparison {
        views: &views,
        found,
        progress: *progress,
    };
    let compared = comparison.tables(planned, options.parallel, tables.len());
    tables.extend(before(options.deadline, compared).await?);
    Ok(VerifyReport::new(views.alignment, position, views.notes, tables))
}

async fn plan(aligner: &Aligner<'_>) -> Result<tables::Plans> {
    let Aligner {
        source,
        target,
        selection,
        names,
        ..
    } = aligner;
    let state = target.stream_state(&names.job).await?;
    let of_job = state.seed.into_iter().map(|seed| seed.table).collect();
    tables::plan(*source, target.as_ref(), selection, &of_job).await
}

/// Why a table cannot be compared that the stream has changes for.
pub(crate) fn not_applied(changes: u64) -> String {
    format!("{changes} changes are not applied yet; {REMEDY}")
}

/// Gives `work` until `deadline`.
async fn before<T>(deadline: Option<Instant>, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(deadline) = deadline else {
        return work.await;
    };
    tokio::time::timeout_at(deadline, work).await.unwrap_or_else(|_| {
        Err(Error::new(
            Kind::Deadline,
            "the time limit passed before the comparison was complete",
        )
        .remedy("allow more with --timeout, or compare fewer tables at a time with --table"))
    })
}

/// Two views, and who is told what is found in them.
#[derive(Clone, Copy)]
struct Comparison<'a> {
    views: &'a Views,
    found: Option<&'a Differences>,
    progress: &'a (dyn Fn(Progress<'_>) + Send + Sync),
}

impl Comparison<'_> {
    async fn tables(
        self,
        planned: Vec<TablePlan>,
        parallel: usize,
        settled: usize,
    ) -> Result<Vec<TableReport>> {
        let of = planned.len() + settled;
        let done = std::sync::atomic::AtomicUsize::new(settled);
        futures_util::stream::iter(planned)
            .map(|plan| {
                let done = &done;
                async move {
                    let report = self.table(&plan).await?;
                    let done = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
                    (self.progress)(Progress::Compared {
                        table: &report,
                        done,
                        of,
                    });
                    Ok(report)
                }
            })
            .buffer_unordered(parallel.max(1))
            .try_collect()
            .await
    }

    /// Compares one table. What keeps it from being compared becomes part of its report; only a lost connection ends
    /// the whole, because no other table would fare better.
    async fn table(self, plan: &TablePlan) -> Result<TableReport> {
        let mut report = TableReport::new(plan.table.clone());
        if let Err(error) = self.open_and_compare(plan, &mut report).await {
            if error.kind() == Kind::Unreachable {
                return Err(error);
            }
            if let Some(found) = self.found {
                found.forget(&plan.table);
            }
            report.unverifiable = Some(match error.remedy_text() {
                Some(remedy) => format!("{error}; {remedy}"),
                None => error.to_string(),
            });
        }
        Ok(report)
    }

    async fn open_and_compare(self, plan: &TablePlan, report: &mut TableReport) -> Result<()> {
        let (source, target) = futures_util::future::try_join(
            open_rows(self.views.source.as_ref(), "source", plan),
            open_rows(self.views.target.as_ref(), "target", plan),
        )
        .await?;
        let shown = |rows| {
            (self.progress)(Progress::Comparing {
                table: &plan.table,
                rows,
            })
        };
        let found = |kind, row: RowText<'_>| match self.found {
            Some(found) => found.note(plan, kind, row),
            None => Ok(()),
        };
        merge::compare(plan, source, target, report, &shown, &found).await
    }
}

async fn open_rows(view: &dyn CompareView, side: &str, plan: &TablePlan) -> Result<Box<dyn OrderedRows>> {
    let rows = view.rows(&plan.table, &plan.columns, &plan.key).await;
    rows.map_err(|error| error.context(format!("on the {side}")))
}
