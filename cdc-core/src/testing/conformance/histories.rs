//! Whole histories through planner and sink, compared with the oracle.

use std::sync::Arc;

use super::{STREAM, SinkHarness, checkpoint};
use crate::batch::{Batch, Op};
use crate::error::{Action, Error, Kind, Result};
use crate::model::{ChangeCounts, TableRole, TxnKind};
use crate::plan::{ApplyPlan, Piece, PlanMode, Planner, Step, TargetCatalog, TxnGroup};
use crate::sink::{CommitOutcome, Sink};
use crate::testing::{
    AuditEntry, CellFormat, History, Rng, SourceTxn, apply_event, batch_of, net_window, push_change,
};

/// What applying a history took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HistoryRun {
    /// plans applied
    pub plans: u64,
    /// row changes applied
    pub applied: u64,
    /// of these, merged into a later one
    pub coalesced: u64,
    /// plans that a constraint objected to and that were redone in order
    pub redone: u64,
}

/// Applies a history's log in groups with random borders, also within transactions, and compares the target
/// with changes applied one by one whenever it is committed. `tamper` may spoil plans, to see that it is
/// noticed.
///
/// # Errors
/// What differs, or what failed.
pub async fn apply_log(
    harness: &mut dyn SinkHarness,
    history: &History,
    seed: u64,
    tamper: &mut (dyn FnMut(&mut ApplyPlan) + Send),
) -> Result<HistoryRun> {
    let mut rng = Rng::new(seed);
    let batches = batches(history, &harness.format(), &mut rng)?;
    let mut oracle = history.target.clone();
    let mut run = Run::start(harness, history).await?;
    let mut finished = 0;
    for group in groups(&batches, &mut rng) {
        let last = last_record_ends(&group);
        finished += ended(&group);
        apply_one_by_one(&mut oracle, &group)?;
        let mode = if rng.percent(10) {
            PlanMode::Ordered
        } else {
            PlanMode::Net
        };
        run.apply(group, mode, tamper).await?;
        if last {
            run.commit().await?;
            let contents = harness.contents().await?;
            if contents != oracle.contents() {
                return Err(differs(format!(
                    "after {finished} transactions\n  one by one {:?}\n  planned    {contents:?}",
                    oracle.contents()
                )));
            }
            history.compare(&contents, finished).map_err(differs)?;
        }
    }
    if let Some(audit) = harness.audit().await? {
        let seen = oracle.audit().get(history.target.audit().len()..);
        compare_audits(seen.unwrap_or_default(), &audit)?;
    }
    run.check_counts(history)?;
    Ok(run.run)
}

/// Applies a history as net windows with random borders, and compares the target with the source at each.
///
/// # Errors
/// What differs, or what failed.
pub async fn apply_windows(
    harness: &mut dyn SinkHarness,
    history: &History,
    seed: u64,
) -> Result<HistoryRun> {
    let mut rng = Rng::new(seed);
    let format = harness.format();
    let schemas = history.source.schemas(&format);
    let mut run = Run::start(harness, history).await?;
    let mut from = 0;
    for (number, txn) in history.source.txns().iter().enumerate() {
        let is_last = number + 1 == history.source.txns().len();
        if !(is_last || rng.percent(50)) {
            continue;
        }
        if let Some(window) = net_window(&history.source, from, txn.offset, &mut rng) {
            let batch = Arc::new(batch_of(&[window], &schemas, &format)?);
            let group = group_of(&batch, 0..1);
            run.apply(group, PlanMode::Net, &mut |_| {}).await?;
            run.commit().await?;
        }
        from = txn.offset;
        history
            .compare(&harness.contents().await?, number + 1)
            .map_err(differs)?;
    }
    Ok(run.run)
}

/// Triggers must have seen what they see when changes are applied one by one.
fn compare_audits(expected: &[AuditEntry], found: &[AuditEntry]) -> Result<()> {
    let same = expected.iter().zip(found).take_while(|(one, other)| one == other);
    let first = same.count();
    if first == expected.len() && first == found.len() {
        return Ok(());
    }
    Err(differs(format!(
        "triggers saw something else from change {first} on\n  one by one {}\n  planned    {}",
        expected.get(first).map_or("nothing".into(), ToString::to_string),
        found.get(first).map_or("nothing".into(), ToString::to_string),
    )))
}

fn differs(what: String) -> Error {
    Error::new(Kind::Unverifiable, what)
}

/// A history under way.
struct Run {
    planner: Planner,
    catalog: Arc<TargetCatalog>,
    sink: Box<dyn Sink>,
    open: bool,
    groups: u64,
    run: HistoryRun,
}

impl Run {
    async fn start(harness: &mut dyn SinkHarness, history: &History) -> Result<Self> {
        let first = checkpoint("0", 0, ChangeCounts::default());
        let catalog = harness.prepare(&history.target, &first).await?;
        history
            .marked_ordered
            .iter()
            .for_each(|name| catalog.set_ordered(name));
        let epoch = harness.raise_epoch(STREAM).await?;
        Ok(Self {
            planner: Planner::new(Arc::clone(&catalog)),
            catalog,
            sink: harness.sink(STREAM, epoch).await?,
            open: false,
            groups: 0,
            run: HistoryRun::default(),
        })
    }

    /// Plans and applies a group; what a constraint objects to is redone in order, as the pipeline does.
    async fn apply(
        &mut self,
        group: TxnGroup,
        mode: PlanMode,
        tamper: &mut (dyn FnMut(&mut ApplyPlan) + Send),
    ) -> Result<()> {
        if !self.open {
            self.sink.begin().await?;
            self.open = true;
        }
        let mut plan = self.planner.compile(group, mode)?;
        check_accounting(&plan)?;
        tamper(&mut plan);
        if let Err(error) = self.sink.apply(&plan).await {
            if error.what_to_do() != Action::Conflict {
                return Err(error);
            }
            let names = plan.tables.iter().map(|table| &table.source.name);
            names
                .filter(|name| error.object_name() == Some(name.to_string().as_str()))
                .for_each(|name| self.catalog.set_ordered(name));
            self.run.redone += 1;
            plan = self.planner.compile(plan.group, PlanMode::Ordered)?;
            check_accounting(&plan)?;
            tamper(&mut plan);
            self.sink.apply(&plan).await?;
        }
        self.run.plans += 1;
        self.run.applied += plan.applied;
        self.run.coalesced += plan.coalesced;
        Ok(())
    }

    async fn commit(&mut self) -> Result<()> {
        let position = self.run.plans.to_string();
        self.groups += 1;
        let next = checkpoint(&position, self.groups, ChangeCounts::default());
        // What is committed soon is seen at once as well.
        let outcome = match self.groups % 2 {
            0 => self.sink.commit(&next).await?,
            _ => self.sink.commit_soon(&next).await?,
        };
        self.open = false;
        match outcome {
            CommitOutcome::Done => Ok(()),
            CommitOutcome::Unknown => Err(differs("the commit's answer was lost".into())),
        }
    }

    fn check_counts(&self, history: &History) -> Result<()> {
        let schemas = history.source.schemas(&CellFormat::text());
        let read: u64 = history
            .source
            .txns()
            .iter()
            .map(|txn| crate::testing::change::counts(&txn.changes, &schemas).read)
            .sum();
        if self.run.applied != read {
            return Err(differs(format!("{read} changes read, {:?}", self.run)));
        }
        Ok(())
    }
}

/// Checks what a plan says of itself against its steps.
fn check_accounting(plan: &ApplyPlan) -> Result<()> {
    let mut changes = 0;
    let mut key_changes = 0;
    for (number, piece) in plan.group.pieces.iter().enumerate() {
        for row in piece.rows.clone() {
            let Some(event) = plan.group.event(number, row) else {
                return Err(Error::bug("a group without the row that it names"));
            };
            changes += match (event.op(), event.truncation(), event.table()) {
                (_, Some(truncation), _) => truncation.tables.len() as u64,
                (Op::Message, ..) => 0,
                (_, _, table) => u64::from(table.is_some_and(|table| table.role == TableRole::User)),
            };
            key_changes += u64::from(event.op() == Op::Update && event.has_before());
        }
    }
    let operations: u64 = plan
        .steps
        .iter()
        .map(|step| match step {
            Step::Net(net) => net.operations(),
            Step::Ordered(rows) => rows.len() as u64,
            Step::Truncate { tables, .. } => tables.len() as u64,
        })
        .sum();
    let is_window = plan.group.pieces.iter().any(|piece| {
        let txns = piece.batch.txns();
        txns.iter().any(|txn| txn.kind == TxnKind::NetWindow)
    });
    let balanced = if is_window {
        plan.coalesced <= plan.applied
    } else {
        let emitted = plan.applied - plan.coalesced;
        emitted <= operations && operations <= emitted + key_changes
    };
    if plan.applied != changes || !balanced {
        return Err(differs(format!(
            "{changes} changes, {operations} operations, but the plan says applied {} coalesced {}",
            plan.applied, plan.coalesced
        )));
    }
    Ok(())
}

fn apply_one_by_one(oracle: &mut crate::testing::ModelDatabase, group: &TxnGroup) -> Result<()> {
    for (number, piece) in group.pieces.iter().enumerate() {
        for row in piece.rows.clone() {
            if let Some(event) = group.event(number, row) {
                apply_event(oracle, &event)
                    .map_err(|violation| Error::bug(format!("the oracle: {violation}")))?;
            }
        }
    }
    oracle.commit();
    Ok(())
}

/// A history's log as batches that end anywhere, also within transactions.
fn batches(history: &History, format: &CellFormat, rng: &mut Rng) -> Result<Vec<Arc<Batch>>> {
    let schemas = history.source.schemas(format);
    let mut batches = Vec::new();
    let mut batch = Batch::new();
    let continue_in =
        |batch: &mut Batch, txn: &SourceTxn, first: bool| txn.record(first).map(|record| batch.begin(record));
    for txn in history.source.txns() {
        continue_in(&mut batch, txn, true)?;
        for change in &txn.changes {
            if rng.percent(8) {
                batches.push(Arc::new(std::mem::take(&mut batch)));
                continue_in(&mut batch, txn, false)?;
            }
            push_change(&mut batch, &schemas, format, change)?;
        }
        if let Some(open) = batch.open_txn() {
            open.last = true;
        }
        if rng.percent(30) {
            batches.push(Arc::new(std::mem::take(&mut batch)));
        }
    }
    batches.push(Arc::new(batch));
    batches.iter().try_for_each(|batch| batch.verify())?;
    Ok(batches)
}

/// Consecutive transaction records in groups that end anywhere.
fn groups(batches: &[Arc<Batch>], rng: &mut Rng) -> Vec<TxnGroup> {
    let percent = [5, 30, 70, 100].get(rng.below(4)).copied().unwrap_or(30);
    let mut groups = Vec::new();
    let mut group = TxnGroup::default();
    for batch in batches {
        let mut start = 0;
        for number in 0..batch.txns().len() {
            if rng.percent(percent) {
                group.pieces.extend(group_of(batch, start..number + 1).pieces);
                groups.push(std::mem::take(&mut group));
                start = number + 1;
            }
        }
        if start < batch.txns().len() {
            group
                .pieces
                .extend(group_of(batch, start..batch.txns().len()).pieces);
        }
    }
    groups.push(group);
    groups.retain(|group| !group.pieces.is_empty());
    groups
}

fn group_of(batch: &Arc<Batch>, txns: std::ops::Range<usize>) -> TxnGroup {
    let records = batch.txns().get(txns.clone()).unwrap_or_default();
    let start = records.first().map_or(0, |txn| txn.rows.start as usize);
    let end = records.last().map_or(0, |txn| txn.rows.end as usize);
    TxnGroup {
        pieces: vec![Piece {
            batch: Arc::clone(batch),
            txns,
            rows: start..end,
        }],
    }
}

fn ended(group: &TxnGroup) -> usize {
    let pieces = group.pieces.iter();
    pieces
        .flat_map(|piece| piece.batch.txns().get(piece.txns.clone()).unwrap_or_default())
        .filter(|txn| txn.last)
        .count()
}

fn last_record_ends(group: &TxnGroup) -> bool {
    let piece = group.pieces.last();
    let record = piece.and_then(|piece| piece.batch.txns().get(piece.txns.clone()));
    record
        .and_then(|records| records.last())
        .is_some_and(|txn| txn.last)
}
