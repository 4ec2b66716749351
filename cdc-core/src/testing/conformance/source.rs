//! The suite for sources.

use super::reading::{Reading, signals, text};
use crate::BoxFuture;
use crate::error::Result;
use crate::model::{Position, TableName};
use crate::source::{Source, StreamStart};
use crate::testing::{
    ColumnSpec, Contents, ModelDatabase, ModelRow, SourceDatabase, SourceTable, Statement, TableSpec,
};

/// A source database that the suite may use at will.
pub trait SourceHarness: Send {
    /// Replaces everything there is by these tables, empty; returns where a stream of them starts.
    fn prepare<'a>(&'a mut self, tables: &'a [SourceTable]) -> BoxFuture<'a, StreamStart>;

    /// Executes and commits a transaction.
    fn commit<'a>(&'a mut self, statements: &'a [Statement]) -> BoxFuture<'a, ()>;

    /// Makes the log advance by something that no selected table sees.
    fn idle(&mut self) -> BoxFuture<'_, ()>;

    /// A connection, not yet open. An earlier one may still be releasing the stream: wait for it.
    fn source(&mut self) -> BoxFuture<'_, Box<dyn Source>>;

    /// The position up to which the server holds the stream's work for done.
    fn confirmed(&mut self) -> BoxFuture<'_, Position>;
}

/// Executes and commits a transaction on a model.
pub(super) fn execute(
    source: &mut SourceDatabase,
    statements: &[Statement],
) -> Result<(), crate::testing::Violation> {
    for statement in statements {
        source.execute(statement)?;
    }
    source.commit(1);
    Ok(())
}

/// Runs every test of the suite.
///
/// # Errors
/// When the harness or the source fails where it must not.
///
/// # Panics
/// When the source does not keep its contract.
pub async fn source_suite(harness: &mut dyn SourceHarness) -> Result<()> {
    every_position_resumes_exactly(harness).await?;
    idle_positions_come_and_resume(harness).await?;
    confirmed_never_moves_back(harness).await
}

fn tables() -> Vec<SourceTable> {
    let items = TableSpec::new(
        TableName::new("conformance", "source_items"),
        vec![
            ColumnSpec::int("id").not_null(),
            ColumnSpec::text("part").not_null(),
            ColumnSpec::text("note"),
        ],
    )
    .primary_key([0, 1]);
    vec![SourceTable::new(items), signals()]
}

fn item(id: u32, part: &str, note: Option<&str>) -> ModelRow {
    vec![text(id), text(part), note.and_then(text)]
}

fn key(id: u32, part: &str) -> Vec<(usize, Option<Vec<u8>>)> {
    vec![(0, text(id)), (1, text(part))]
}

fn insert(id: u32, part: &str, note: Option<&str>) -> Statement {
    Statement::Insert {
        table: 0,
        row: item(id, part, note),
    }
}

fn signal(id: u32) -> Vec<Statement> {
    super::reading::signal(1, id)
}

/// Transactions with every kind of statement; the last is a signal.
fn workload() -> Vec<Vec<Statement>> {
    let long = "long ".repeat(2000);
    vec![
        vec![insert(1, "a", Some("one")), insert(2, "b", None)],
        vec![insert(3, "c", Some(&long)), insert(4, "d", Some("'\\\t\n\"ü"))],
        vec![
            Statement::Update {
                table: 0,
                key: key(1, "a"),
                set: vec![(2, text("changed"))],
            },
            Statement::Update {
                table: 0,
                key: key(2, "b"),
                set: vec![(1, text("moved"))],
            },
        ],
        vec![
            insert(5, "e", Some("short-lived")),
            Statement::Delete {
                table: 0,
                key: key(5, "e"),
            },
        ],
        vec![Statement::Delete {
            table: 0,
            key: key(3, "c"),
        }],
        vec![Statement::Update {
            table: 0,
            key: key(4, "d"),
            set: vec![(2, None)],
        }],
        signal(1),
    ]
}

fn empty() -> ModelDatabase {
    ModelDatabase::new(tables().into_iter().map(|table| table.spec), false)
}

async fn run(harness: &mut dyn SourceHarness, transactions: &[Vec<Statement>]) -> Result<()> {
    for statements in transactions {
        harness.commit(statements).await?;
    }
    Ok(())
}

/// What the source holds after a workload.
fn expected(transactions: &[Vec<Statement>]) -> Contents {
    let mut source = SourceDatabase::new(tables());
    for statements in transactions {
        execute(&mut source, statements).expect("the suite's own workload is valid");
    }
    source.model().contents()
}

async fn every_position_resumes_exactly(harness: &mut dyn SourceHarness) -> Result<()> {
    let start = harness.prepare(&tables()).await?;
    run(harness, &workload()).await?;
    let mut first = Reading::start(harness, &start, empty()).await?;
    first.until(|reading| reading.has_signal(1)).await?;
    assert_eq!(first.model.contents(), expected(&workload()));
    first.source.close().await?;
    drop(first.source);
    assert!(!first.borders.is_empty());
    for (number, (position, model)) in first.borders.iter().enumerate() {
        let is_last = number + 1 == first.borders.len();
        if is_last {
            // Nothing is left to be read but what comes now.
            harness.commit(&signal(2)).await?;
        }
        let from = StreamStart {
            from: position.clone(),
            ..start.clone()
        };
        let mut rest = Reading::start(harness, &from, model.clone()).await?;
        let wanted = if is_last { 2 } else { 1 };
        rest.until(|reading| reading.has_signal(wanted)).await?;
        rest.source.close().await?;
        let mut transactions = workload();
        if is_last {
            transactions.push(signal(2));
        }
        assert_eq!(
            rest.model.contents(),
            expected(&transactions),
            "resumed at {position}, after {number} transactions"
        );
    }
    Ok(())
}

async fn idle_positions_come_and_resume(harness: &mut dyn SourceHarness) -> Result<()> {
    let start = harness.prepare(&tables()).await?;
    run(harness, &[signal(1)]).await?;
    harness.idle().await?;
    let mut reading = Reading::start(harness, &start, empty()).await?;
    // A log may tell positions before the transaction too, and let it be followed by empty ones.
    reading
        .until(|reading| reading.is_beyond_signal(1) && !reading.idle.is_empty())
        .await?;
    let position = reading.tracker.position();
    reading.source.close().await?;
    run(harness, &[signal(2)]).await?;
    let from = StreamStart {
        from: position,
        ..start
    };
    let mut rest = Reading::start(harness, &from, reading.model.clone()).await?;
    rest.until(|reading| reading.has_signal(2)).await?;
    rest.source.close().await
}

async fn confirmed_never_moves_back(harness: &mut dyn SourceHarness) -> Result<()> {
    let start = harness.prepare(&tables()).await?;
    run(harness, &[signal(1), signal(2)]).await?;
    let mut reading = Reading::start(harness, &start, empty()).await?;
    reading.until(|reading| reading.has_signal(2)).await?;
    reading.source.confirm(None).await?;
    let last = reading.tracker.position();
    reading.source.confirm(Some(&last)).await?;
    reading.source.confirm(Some(&last)).await?;
    reading.source.confirm(Some(&start.from)).await?;
    reading.source.confirm(None).await?;
    reading.source.close().await?;
    drop(reading);
    assert_eq!(harness.confirmed().await?, last);
    Ok(())
}
