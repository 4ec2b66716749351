//! The suite for sinks.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::{STREAM, checkpoint};
use crate::BoxFuture;
use crate::batch::Op;
use crate::error::{Action, Error, Kind, Result};
use crate::model::{ChangeCounts, TableName, TxnKind};
use crate::plan::{ApplyPlan, Piece, PlanMode, Planner, TargetCatalog, TxnGroup};
use crate::sink::{Checkpoint, CommitOutcome, Sink};
use crate::testing::{
    AuditEntry, CellFormat, ColumnSpec, Contents, ModelDatabase, ModelRow, OldImage, SourceCell,
    SourceChange, SourceTable, SourceTxn, TableSpec, batch_of,
};

/// A target that the suite may use at will.
pub trait SinkHarness: Send {
    /// Replaces everything there is by the tables and rows of `db` and `first`, the first checkpoint of its
    /// stream; returns the facts that planning needs.
    fn prepare<'a>(
        &'a mut self,
        db: &'a ModelDatabase,
        first: &'a Checkpoint,
    ) -> BoxFuture<'a, Arc<TargetCatalog>>;

    /// The format of the cells that sinks are given: the target's own, or [`CellFormat::canonical`] to test
    /// the way of other engines' changes.
    fn format(&self) -> CellFormat;

    /// Takes the stream over, as a starting instance does, and returns the new epoch.
    fn raise_epoch<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, i64>;

    /// A sink with a connection of its own.
    fn sink<'a>(&'a self, stream: &'a str, epoch: i64) -> BoxFuture<'a, Box<dyn Sink>>;

    /// The stream's committed checkpoint.
    fn checkpoint<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Option<Checkpoint>>;

    /// All rows of the tables of [`SinkHarness::prepare`], columns in their order, values as text.
    fn contents(&self) -> BoxFuture<'_, Contents>;

    /// What triggers saw since [`SinkHarness::prepare`], where the harness can tell.
    fn audit(&self) -> BoxFuture<'_, Option<Vec<AuditEntry>>> {
        Box::pin(async { Ok(None) })
    }
}

/// Runs every test of the suite.
///
/// # Errors
/// When the harness or the sink fails where it must not.
///
/// # Panics
/// When the sink does not keep its contract.
pub async fn sink_suite(harness: &mut dyn SinkHarness) -> Result<()> {
    data_and_checkpoint_commit_together(harness).await?;
    rollback_and_drop_leave_nothing(harness).await?;
    a_transaction_takes_several_plans(harness).await?;
    an_error_undoes_its_plan_alone(harness).await?;
    a_set_that_a_constraint_refuses_names_its_table(harness).await?;
    redelivery_is_noticed(harness).await?;
    truncate_empties(harness).await?;
    windows_need_no_existing_rows(harness).await?;
    a_checkpoint_must_exist(harness).await?;
    a_checkpoint_follows_the_one_before(harness).await?;
    the_fence_keeps_old_epochs_out(harness).await?;
    taking_over_waits_for_the_open_transaction(harness).await
}

/// The suite's one table, and what is needed to plan changes of it.
struct Stage {
    table: SourceTable,
    planner: Planner,
    format: CellFormat,
    sink: Box<dyn Sink>,
    epoch: i64,
    groups: u64,
}

fn items() -> TableSpec {
    let columns = vec![
        ColumnSpec::int("id").not_null(),
        ColumnSpec::int("code").not_null(),
        ColumnSpec::text("note"),
    ];
    TableSpec::new(TableName::new("conformance", "items"), columns)
        .primary_key([0])
        .unique([1])
}

fn row(id: u32, code: u32, note: &str) -> ModelRow {
    vec![
        Some(id.to_string().into_bytes()),
        Some(code.to_string().into_bytes()),
        Some(note.as_bytes().to_vec()),
    ]
}

fn cells(row: &ModelRow) -> Vec<SourceCell> {
    row.iter()
        .map(|value| value.clone().map_or(SourceCell::Null, SourceCell::Value))
        .collect()
}

fn change(op: Op, before: Option<SourceCell>, after: Option<Vec<SourceCell>>) -> SourceChange {
    SourceChange::Row {
        table: 0,
        op,
        before: before.map(|id| OldImage {
            cells: vec![id, SourceCell::Absent, SourceCell::Absent],
            full: false,
        }),
        after,
    }
}

fn insert(row: &ModelRow) -> SourceChange {
    change(Op::Insert, None, Some(cells(row)))
}

fn update(row: &ModelRow) -> SourceChange {
    change(Op::Update, None, Some(cells(row)))
}

fn upsert(row: &ModelRow) -> SourceChange {
    change(Op::Upsert, None, Some(cells(row)))
}

fn delete(id: u32) -> SourceChange {
    change(
        Op::Delete,
        Some(SourceCell::Value(id.to_string().into_bytes())),
        None,
    )
}

impl Stage {
    /// A target with these rows, a stream, and a sink of the current epoch.
    async fn new(harness: &mut dyn SinkHarness, rows: &[ModelRow]) -> Result<Self> {
        let table = SourceTable::new(items());
        let mut db = ModelDatabase::new([table.spec.clone()], false);
        for row in rows {
            let values: Vec<_> = row.iter().cloned().enumerate().collect();
            db.insert(&table.spec.name, &values)
                .map_err(|violation| Error::bug(violation.to_string()))?;
        }
        db.commit();
        let catalog = harness
            .prepare(&db, &checkpoint("0", 0, ChangeCounts::default()))
            .await?;
        let epoch = harness.raise_epoch(STREAM).await?;
        Ok(Self {
            table,
            planner: Planner::new(catalog),
            format: harness.format(),
            sink: harness.sink(STREAM, epoch).await?,
            epoch,
            groups: 0,
        })
    }

    fn plan(&mut self, kind: TxnKind, mode: PlanMode, changes: &[SourceChange]) -> Result<ApplyPlan> {
        let txn = SourceTxn {
            offset: 1,
            kind,
            commit_time_micros: 1,
            changes: changes.to_vec(),
        };
        let batch = batch_of(&[txn], &[self.table.schema(&self.format)], &self.format)?;
        let piece = Piece {
            txns: 0..1,
            rows: 0..batch.rows().len(),
            batch: Arc::new(batch),
        };
        self.planner.compile(TxnGroup { pieces: vec![piece] }, mode)
    }

    fn net(&mut self, changes: &[SourceChange]) -> Result<ApplyPlan> {
        self.plan(TxnKind::Log, PlanMode::Net, changes)
    }

    /// Tries to apply and commit as an instance that another one has taken over from.
    async fn expect_fenced(&mut self) -> Result<()> {
        let late = self.net(&[insert(&row(99, 99, "too late"))])?;
        for plan in [Some(&late), None] {
            let error = self.try_late(plan).await.err();
            self.sink.rollback().await?;
            assert_eq!(
                error.as_ref().map(Error::kind),
                Some(Kind::Fenced),
                "an older epoch: {error:?}"
            );
        }
        Ok(())
    }

    async fn try_late(&mut self, plan: Option<&ApplyPlan>) -> Result<()> {
        self.sink.begin().await?;
        if let Some(plan) = plan {
            self.sink.apply(plan).await?;
        }
        self.commit("too late").await
    }

    async fn commit(&mut self, position: &str) -> Result<()> {
        let counts = ChangeCounts {
            read: 5,
            applied: 5,
            coalesced: 2,
            ..ChangeCounts::default()
        };
        let next = checkpoint(position, self.groups + 1, counts);
        assert_eq!(self.sink.commit(&next).await?, CommitOutcome::Done);
        self.groups += 1;
        Ok(())
    }
}

async fn expect(harness: &dyn SinkHarness, position: &str, rows: &[ModelRow]) -> Result<()> {
    let mut rows = rows.to_vec();
    rows.sort();
    let mut found = harness
        .contents()
        .await?
        .remove(&items().name)
        .unwrap_or_default();
    found.sort();
    assert_eq!(found, rows, "rows of the target");
    let stored = harness.checkpoint(STREAM).await?;
    assert_eq!(
        stored.as_ref().map(|stored| stored.position.as_str()),
        Some(position)
    );
    Ok(())
}

async fn data_and_checkpoint_commit_together(harness: &mut dyn SinkHarness) -> Result<()> {
    let mut stage = Stage::new(harness, &[row(1, 1, "one"), row(2, 2, "two")]).await?;
    for (mode, from) in [(PlanMode::Net, 10), (PlanMode::Ordered, 20)] {
        let changes = [
            insert(&row(from, from, "new")),
            update(&row(1, 1, &format!("by {from}"))),
            insert(&row(from + 1, from + 1, "gone at once")),
            delete(from + 1),
        ];
        let plan = stage.plan(TxnKind::Log, mode, &changes)?;
        stage.sink.begin().await?;
        stage.sink.apply(&plan).await?;
        stage.commit(&from.to_string()).await?;
    }
    let rows = [
        row(1, 1, "by 20"),
        row(2, 2, "two"),
        row(10, 10, "new"),
        row(20, 20, "new"),
    ];
    expect(harness, "20", &rows).await?;
    let stored = harness.checkpoint(STREAM).await?.map(|stored| stored.changes);
    assert_eq!(
        stored.map(|counts| (counts.read, counts.applied, counts.coalesced)),
        Some((5, 5, 2)),
        "the accounting is stored with the data"
    );
    Ok(())
}

async fn rollback_and_drop_leave_nothing(harness: &mut dyn SinkHarness) -> Result<()> {
    let start = [row(1, 1, "one")];
    let mut stage = Stage::new(harness, &start).await?;
    let plan = stage.net(&[insert(&row(2, 2, "two")), delete(1)])?;
    stage.sink.rollback().await?;
    stage.sink.begin().await?;
    stage.sink.apply(&plan).await?;
    stage.sink.rollback().await?;
    expect(harness, "0", &start).await?;
    stage.sink.begin().await?;
    stage.sink.apply(&plan).await?;
    let epoch = stage.epoch;
    drop(stage);
    let mut next = harness.sink(STREAM, epoch).await?;
    next.begin().await?;
    next.rollback().await?;
    expect(harness, "0", &start).await
}

async fn a_transaction_takes_several_plans(harness: &mut dyn SinkHarness) -> Result<()> {
    let mut stage = Stage::new(harness, &[]).await?;
    stage.sink.begin().await?;
    for changes in [
        vec![insert(&row(1, 1, "one"))],
        vec![update(&row(1, 1, "uno")), insert(&row(2, 2, "two"))],
        vec![delete(2)],
    ] {
        let plan = stage.net(&changes)?;
        stage.sink.apply(&plan).await?;
    }
    stage.commit("3").await?;
    expect(harness, "3", &[row(1, 1, "uno")]).await
}

async fn an_error_undoes_its_plan_alone(harness: &mut dyn SinkHarness) -> Result<()> {
    let mut stage = Stage::new(harness, &[row(1, 1, "one")]).await?;
    stage.sink.begin().await?;
    let good = stage.net(&[insert(&row(2, 2, "two"))])?;
    stage.sink.apply(&good).await?;
    for (mode, what) in [
        (PlanMode::Net, delete(9)),
        (PlanMode::Ordered, delete(9)),
        (PlanMode::Net, update(&row(9, 9, "nobody"))),
        (PlanMode::Ordered, update(&row(9, 9, "nobody"))),
        (PlanMode::Ordered, insert(&row(1, 8, "a second one"))),
    ] {
        let bad = stage.plan(TxnKind::Log, mode, &[insert(&row(3, 3, "three")), what.clone()])?;
        let error = stage.sink.apply(&bad).await.err();
        assert_eq!(
            error.as_ref().map(Error::kind),
            Some(Kind::Conflict),
            "{mode:?} {what:?}: {error:?}"
        );
    }
    let good = stage.net(&[update(&row(2, 2, "still here"))])?;
    stage.sink.apply(&good).await?;
    stage.commit("1").await?;
    expect(harness, "1", &[row(1, 1, "one"), row(2, 2, "still here")]).await
}

async fn a_set_that_a_constraint_refuses_names_its_table(harness: &mut dyn SinkHarness) -> Result<()> {
    let mut stage = Stage::new(harness, &[row(1, 1, "one"), row(2, 2, "two")]).await?;
    let swap = [
        update(&row(1, 99, "one")),
        update(&row(2, 1, "two")),
        update(&row(1, 2, "one")),
    ];
    stage.sink.begin().await?;
    // Whether a server checks each row or the whole statement is its own affair; what it refuses it must name.
    let net = stage.net(&swap)?;
    if let Err(error) = stage.sink.apply(&net).await {
        assert_eq!(error.what_to_do(), Action::Conflict, "{error:?}");
        assert_eq!(error.object_name(), Some(items().name.to_string().as_str()));
        let ordered = stage.plan(TxnKind::Log, PlanMode::Ordered, &swap)?;
        stage.sink.apply(&ordered).await?;
    }
    let taken = stage.net(&[insert(&row(3, 1, "taken"))])?;
    let error = stage.sink.apply(&taken).await.err();
    assert_eq!(error.map(|error| error.what_to_do()), Some(Action::Conflict));
    stage.commit("1").await?;
    expect(harness, "1", &[row(1, 2, "one"), row(2, 1, "two")]).await
}

async fn redelivery_is_noticed(harness: &mut dyn SinkHarness) -> Result<()> {
    let mut stage = Stage::new(harness, &[row(1, 1, "one")]).await?;
    let changes = [insert(&row(2, 2, "two")), delete(1)];
    let plan = stage.net(&changes)?;
    stage.sink.begin().await?;
    stage.sink.apply(&plan).await?;
    stage.commit("1").await?;
    stage.sink.begin().await?;
    assert!(stage.sink.apply(&plan).await.is_err(), "applied twice");
    let ordered = stage.plan(TxnKind::Log, PlanMode::Ordered, &changes)?;
    let error = stage.sink.apply(&ordered).await.err();
    assert_eq!(error.map(|error| error.kind()), Some(Kind::Conflict));
    stage.sink.rollback().await?;
    expect(harness, "1", &[row(2, 2, "two")]).await
}

async fn truncate_empties(harness: &mut dyn SinkHarness) -> Result<()> {
    let mut stage = Stage::new(harness, &[row(1, 1, "one"), row(2, 2, "two")]).await?;
    let changes = [
        update(&row(1, 1, "in vain")),
        SourceChange::Truncate(vec![0]),
        insert(&row(1, 1, "anew")),
    ];
    let plan = stage.net(&changes)?;
    stage.sink.begin().await?;
    stage.sink.apply(&plan).await?;
    stage.commit("1").await?;
    expect(harness, "1", &[row(1, 1, "anew")]).await
}

async fn windows_need_no_existing_rows(harness: &mut dyn SinkHarness) -> Result<()> {
    let mut stage = Stage::new(harness, &[row(1, 1, "one"), row(2, 2, "two")]).await?;
    for mode in [PlanMode::Net, PlanMode::Ordered] {
        let changes = [
            upsert(&row(3, 3, "new or not")),
            delete(1),
            upsert(&row(2, 20, "overwritten")),
            delete(7),
        ];
        let plan = stage.plan(TxnKind::NetWindow, mode, &changes)?;
        stage.sink.begin().await?;
        stage.sink.apply(&plan).await?;
        stage.commit("1").await?;
        expect(
            harness,
            "1",
            &[row(2, 20, "overwritten"), row(3, 3, "new or not")],
        )
        .await?;
    }
    Ok(())
}

async fn a_checkpoint_must_exist(harness: &mut dyn SinkHarness) -> Result<()> {
    let mut stage = Stage::new(harness, &[]).await?;
    let plan = stage.net(&[insert(&row(1, 1, "one"))])?;
    stage.sink.begin().await?;
    stage.sink.apply(&plan).await?;
    let unknown = Checkpoint {
        stream: "another stream".into(),
        ..checkpoint("1", 1, ChangeCounts::default())
    };
    let outcome = stage.sink.commit(&unknown).await;
    assert!(outcome.is_err(), "a checkpoint that hits no row: {outcome:?}");
    stage.sink.rollback().await?;
    expect(harness, "0", &[]).await
}

async fn a_checkpoint_follows_the_one_before(harness: &mut dyn SinkHarness) -> Result<()> {
    let mut stage = Stage::new(harness, &[]).await?;
    let plan = stage.net(&[insert(&row(1, 1, "one"))])?;
    stage.sink.begin().await?;
    stage.sink.apply(&plan).await?;
    stage.commit("1").await?;
    let plan = stage.net(&[insert(&row(2, 2, "two"))])?;
    for groups in [0, 1, 3] {
        stage.sink.begin().await?;
        stage.sink.apply(&plan).await?;
        let next = checkpoint("2", groups, ChangeCounts::default());
        let outcome = stage.sink.commit(&next).await;
        assert!(outcome.is_err(), "group {groups} after group 1: {outcome:?}");
        stage.sink.rollback().await?;
    }
    expect(harness, "1", &[row(1, 1, "one")]).await
}

async fn the_fence_keeps_old_epochs_out(harness: &mut dyn SinkHarness) -> Result<()> {
    let mut stage = Stage::new(harness, &[]).await?;
    let newer = harness.raise_epoch(STREAM).await?;
    assert!(newer > stage.epoch, "epochs grow");
    stage.expect_fenced().await?;
    let mut sink = harness.sink(STREAM, newer).await?;
    let plan = stage.net(&[insert(&row(1, 1, "one"))])?;
    sink.begin().await?;
    sink.apply(&plan).await?;
    sink.rollback().await?;
    expect(harness, "0", &[]).await
}

async fn taking_over_waits_for_the_open_transaction(harness: &mut dyn SinkHarness) -> Result<()> {
    let mut stage = Stage::new(harness, &[]).await?;
    let plan = stage.net(&[insert(&row(1, 1, "one"))])?;
    stage.sink.begin().await?;
    stage.sink.apply(&plan).await?;
    let newer = {
        let mut raise = harness.raise_epoch(STREAM);
        let mut raised = None;
        let mut commit = Box::pin(stage.commit("1"));
        // The old instance's commit is under way while the new one takes over.
        let committed = poll_fn(|context| {
            if raised.is_none()
                && let Poll::Ready(epoch) = raise.as_mut().poll(context)
            {
                raised = Some(epoch);
            }
            commit.as_mut().poll(context)
        })
        .await;
        committed?;
        match raised {
            Some(epoch) => epoch?,
            None => raise.await?,
        }
    };
    expect(harness, "1", &[row(1, 1, "one")]).await?;
    assert!(newer > stage.epoch);
    stage.expect_fenced().await?;
    expect(harness, "1", &[row(1, 1, "one")]).await
}
