//! The tables of a job are those that were selected when it began: what no longer fits them stops it, because a table
//! that is left out or comes in later would silently miss changes.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use cdc_core::engine::SeedTable;
use cdc_core::{Error, Kind, Result, TableName, TableSelection};

use super::RunContext;
use super::prepare::list;

/// The tables of the job, by the seed list on the target.
#[derive(Debug)]
pub(super) struct JobTables {
    tables: BTreeSet<TableName>,
    /// missing on the source, warned about
    missing: Mutex<BTreeSet<TableName>>,
}

impl JobTables {
    pub(super) fn new(seed: &[SeedTable]) -> Self {
        Self {
            tables: seed.iter().map(|table| table.table.clone()).collect(),
            missing: Mutex::default(),
        }
    }

    /// Refuses a selection that leaves out tables of the job.
    pub(super) fn expect_selected(&self, selection: &TableSelection) -> Result<()> {
        let left_out: Vec<TableName> = self
            .tables
            .iter()
            .filter(|table| !selection.selects(table))
            .cloned()
            .collect();
        if left_out.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Config,
            format!(
                "{} tables of this job are not selected any more: their changes would be lost",
                left_out.len()
            ),
        )
        .object(list(&left_out))
        .remedy(
            "give the --table and --exclude that the job began with; for other tables `cdc-sync cleanup` and seed \
             again, or begin another job with --job NAME",
        ))
    }

    /// Compares the job's tables with those that are selected on the source now.
    ///
    /// # Errors
    /// [`Kind::Schema`] when a table is there that the job does not have.
    pub(super) async fn look(&self, context: &RunContext) -> Result<()> {
        let found = context.source.inspect(&context.selection).await?;
        let found: Vec<TableName> = found.into_iter().map(|table| table.name).collect();
        self.compare(&found)
    }

    fn compare(&self, found: &[TableName]) -> Result<()> {
        self.warn_of_missing(found);
        let new: Vec<TableName> = found
            .iter()
            .filter(|table| !self.tables.contains(table))
            .cloned()
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Schema,
            format!(
                "{} tables of the source are selected and not part of this job, which began without them: their \
                 rows are not replicated",
                new.len()
            ),
        )
        .object(list(&new))
        .remedy(
            "to have them: `cdc-sync cleanup`, then `cdc-sync run --truncate-target` seeds again; a table cannot be \
             added to a job that has begun. To go on without them: run with --exclude for each",
        ))
    }

    fn warn_of_missing(&self, found: &[TableName]) {
        let mut warned = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        for table in self.tables.iter().filter(|table| !found.contains(table)) {
            if warned.insert(table.clone()) {
                tracing::warn!(%table, "the table is gone from the source; on the target it stays as it is");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cdc_core::Position;
    use cdc_core::engine::SeedPhase;

    use super::*;

    fn job(tables: &[&str]) -> JobTables {
        let seed: Vec<SeedTable> = tables
            .iter()
            .map(|table| SeedTable {
                table: TableName::new("public", *table),
                phase: SeedPhase::Live,
                position: Position::new("0/1"),
                rows: 0,
                bytes: 0,
            })
            .collect();
        JobTables::new(&seed)
    }

    fn names(tables: &[&str]) -> Vec<TableName> {
        tables
            .iter()
            .map(|table| TableName::new("public", *table))
            .collect()
    }

    #[test]
    fn a_selection_may_not_leave_out_what_the_job_has() {
        let job = job(&["a", "b"]);
        job.expect_selected(&TableSelection::default()).unwrap();
        let narrower = TableSelection {
            include: vec!["public.a".into()],
            ..TableSelection::default()
        };
        let error = job.expect_selected(&narrower).unwrap_err();
        assert_eq!(
            (error.kind(), error.object_name()),
            (Kind::Config, Some("public.b"))
        );
    }

    #[test]
    fn new_tables_stop_and_missing_ones_are_remembered() {
        let job = job(&["a", "b"]);
        job.compare(&names(&["a", "b"])).unwrap();
        job.compare(&names(&["a"])).unwrap();
        assert_eq!(job.missing.lock().unwrap().len(), 1);
        let error = job.compare(&names(&["a", "b", "c", "d"])).unwrap_err();
        assert_eq!(
            (error.kind(), error.object_name()),
            (Kind::Schema, Some("public.c, public.d"))
        );
    }
}
