//! The tables of a job are those that were selected when it began: what no longer fits them stops it, because a table
//! that is left out or comes in later would silently miss changes.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use cdc_core::engine::{JobNames, RenamedTable, SeedTable};
use cdc_core::{Error, Kind, Result, Site, TableName, TableSelection};

use super::RunContext;
use super::prepare::list;

/// The tables of the job, by the seed list on the target.
#[derive(Debug)]
pub(super) struct JobTables {
    tables: Mutex<BTreeSet<TableName>>,
    /// missing on the source, warned about
    missing: Mutex<BTreeSet<TableName>>,
}

/// The selection of a job whose tables are `seed`: what was selected at its start, and what came in later.
pub(super) fn widened(selection: &TableSelection, seed: &[SeedTable]) -> TableSelection {
    let mut widened = selection.clone();
    for SeedTable { table, .. } in seed {
        if !widened.include.is_empty() && !selection.selects(table) {
            widened.include.push(table.to_string());
        }
    }
    widened
}

/// Which tables of the job do not come whole through its stream any more, and why. What is set aside is brought back with
/// a copy, whatever it missed; it is asked for before and after, because it may be given back meanwhile.
pub(crate) async fn unpublished(
    source: &dyn Site,
    target: &dyn Site,
    names: &JobNames,
    tables: &[TableName],
) -> Result<Vec<(TableName, String)>> {
    let mut aside = target.aside(&names.job).await?;
    let mut found = source.unpublished(names, tables).await?;
    if !found.is_empty() {
        aside.extend(target.aside(&names.job).await?);
        found.retain(|(table, _)| !aside.contains(table));
    }
    Ok(found)
}

fn expect_published(unpublished: &[(TableName, String)]) -> Result<()> {
    let Some((_, why)) = unpublished.first() else {
        return Ok(());
    };
    let tables: Vec<TableName> = unpublished.iter().map(|(table, _)| table.clone()).collect();
    Err(Error::new(
        Kind::Schema,
        format!(
            "changes of {} tables do not come through the stream any more: {why}",
            tables.len()
        ),
    )
    .object(list(&tables))
    .remedy(UNPUBLISHED_REMEDY))
}

/// What to do about tables whose changes are missed.
pub(crate) const UNPUBLISHED_REMEDY: &str = "what they missed is nowhere: undo what was done to the publication if it was altered, then \
     `cdc-sync resync --table NAME` for each that may have changed since, and run again";

impl JobTables {
    pub(super) fn new(seed: &[SeedTable]) -> Self {
        Self {
            tables: Mutex::new(seed.iter().map(|table| table.table.clone()).collect()),
            missing: Mutex::default(),
        }
    }

    /// Refuses a selection that leaves out tables of the job.
    pub(super) fn expect_selected(&self, selection: &TableSelection) -> Result<()> {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out: Vec<TableName> = tables
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
            "give the --table and --exclude that the job began with, and those that `resync` added; for other tables \
             `cdc-sync cleanup` and seed again, or begin another job with --job NAME",
        ))
    }

    /// Compares the job's tables with those that are selected on the source now. One that was renamed is passed over: the
    /// stream brings what was done under its old name, and stops by itself at what was done under the new one.
    ///
    /// # Errors
    /// [`Kind::Schema`] when a table is there that the job does not have.
    pub(super) async fn look(&self, context: &RunContext) -> Result<()> {
        let (mut found, renamed) = self.ask(context).await?;
        expect_renamed_selected(&renamed, &context.selection)?;
        found.retain(|table| !renamed.iter().any(|renamed| renamed.now == *table));
        self.compare(&found)?;
        self.expect_published(context, &found).await
    }

    /// Refuses to go on when a table has a name now that is not selected: for each session, which could not tell.
    pub(super) async fn expect_names(&self, context: &RunContext) -> Result<()> {
        if context.selection.include.is_empty() && context.selection.exclude.is_empty() {
            return Ok(());
        }
        let (_, renamed) = self.ask(context).await?;
        expect_renamed_selected(&renamed, &context.selection)
    }

    /// The same as [`JobTables::look`] when the stream has brought all that was done until now.
    ///
    /// # Errors
    /// Also [`Kind::Schema`] when a table was renamed.
    pub(super) async fn look_at_end(&self, context: &RunContext) -> Result<()> {
        let (found, renamed) = self.ask(context).await?;
        expect_renamed_selected(&renamed, &context.selection)?;
        expect_not_renamed(renamed.iter())?;
        self.compare(&found)?;
        self.expect_published(context, &found).await
    }

    /// The selected tables of the source, and those of the job that have another name there now.
    async fn ask(&self, context: &RunContext) -> Result<(Vec<TableName>, Vec<RenamedTable>)> {
        let RunContext { source, names, .. } = context;
        let found = source.inspect(&context.selection).await?;
        let found: Vec<TableName> = found.into_iter().map(|table| table.name).collect();
        if !self.new_among(&found).is_empty() {
            // `resync` brings tables in while the job runs.
            let state = context.target.stream_state(&names.job).await?;
            let came_in = state.seed.into_iter().map(|table| table.table);
            self.tables
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(came_in);
        }
        let tables: Vec<TableName> = {
            let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
            tables.iter().cloned().collect()
        };
        let renamed = if tables.iter().all(|table| found.contains(table)) {
            Vec::new()
        } else {
            source.renamed(names, &tables).await?
        };
        Ok((found, renamed))
    }

    async fn expect_published(&self, context: &RunContext, found: &[TableName]) -> Result<()> {
        let RunContext {
            source,
            target,
            names,
            ..
        } = context;
        let unpublished = unpublished(&**source, &**target, names, found).await?;
        expect_published(&unpublished)
    }

    fn new_among(&self, found: &[TableName]) -> Vec<TableName> {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let new = found.iter().filter(|table| !tables.contains(table));
        new.cloned().collect()
    }

    fn compare(&self, found: &[TableName]) -> Result<()> {
        self.warn_of_missing(found);
        let new = self.new_among(found);
        if new.is_empty() {
            return Ok(());
        }
        let flags: Vec<String> = new.iter().map(|table| format!("--table '{table}'")).collect();
        Err(Error::new(
            Kind::Schema,
            format!(
                "{} tables of the source are selected and not part of this job, which began without them: their \
                 rows are not replicated",
                new.len()
            ),
        )
        .object(list(&new))
        .remedy(format!(
            "to have them: `cdc-sync resync {}`, then run again, which copies them while the others are followed. To go \
             on without them: run with --exclude for each",
            flags.join(" ")
        )))
    }

    fn warn_of_missing(&self, found: &[TableName]) {
        let mut warned = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        for table in tables.iter().filter(|table| !found.contains(table)) {
            if warned.insert(table.clone()) {
                tracing::warn!(%table, "the table is gone from the source; on the target it stays as it is");
            }
        }
    }
}

/// Refuses a table that is not called on the target as on the source.
pub(super) fn expect_not_renamed<'a>(mut renamed: impl Iterator<Item = &'a RenamedTable>) -> Result<()> {
    let Some(RenamedTable { now, was }) = renamed.next() else {
        return Ok(());
    };
    Err(Error::new(
        Kind::Schema,
        format!("the table is called {now} on the source now"),
    )
    .object(list(was))
    .remedy("rename it on the target"))
}

/// Under a name that is not selected a table's changes would be left out.
fn expect_renamed_selected(renamed: &[RenamedTable], selection: &TableSelection) -> Result<()> {
    let left_out = renamed.iter().find(|renamed| !selection.selects(&renamed.now));
    match left_out {
        None => Ok(()),
        Some(RenamedTable { now, was }) => Err(Error::new(
            Kind::Schema,
            format!("the table is called {now} on the source now, which is not selected: its changes would be left out"),
        )
        .object(list(was))
        .remedy(format!(
            "run with --table '{now}' besides the others (without an --exclude of it): the stream then stops where the \
             name changes and says what to run on the target"
        ))),
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
    fn a_table_must_be_selected_under_its_new_name() {
        let renamed = [RenamedTable {
            now: TableName::new("public", "b"),
            was: names(&["a"]),
        }];
        expect_renamed_selected(&renamed, &TableSelection::default()).unwrap();
        let narrow = TableSelection {
            include: vec!["public.a".into()],
            exclude: Vec::new(),
            ..TableSelection::default()
        };
        expect_renamed_selected(&[], &narrow).unwrap();
        let error = expect_renamed_selected(&renamed, &narrow).unwrap_err();
        assert_eq!(
            (error.kind(), error.object_name()),
            (Kind::Schema, Some("public.a"))
        );
        assert!(error.remedy_text().unwrap().contains("--table 'public.b'"));
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
