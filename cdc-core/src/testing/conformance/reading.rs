//! Reading a source into a model, and whole histories from it.

use super::SourceHarness;
use crate::batch::Batch;
use crate::error::{Error, Kind, Result};
use crate::model::{Position, TableName};
use crate::source::{Decoder, PositionTracker, RawChunk, Source, StreamStart};
use crate::testing::{
    ColumnSpec, Contents, History, ModelDatabase, ModelValue, SourceTable, Statement, TableSpec, apply_event,
};

/// The table whose rows tell how far a source has been read.
pub(super) fn signals() -> SourceTable {
    let name = TableName::new("conformance", "source_signals");
    SourceTable::new(TableSpec::new(name, vec![ColumnSpec::int("id").not_null()]).primary_key([0]))
}

/// A transaction that sets a signal, `table` being the number of the [`signals`].
pub(super) fn signal(table: usize, id: u32) -> Vec<Statement> {
    vec![Statement::Insert {
        table,
        row: vec![text(id)],
    }]
}

pub(super) fn text(value: impl ToString) -> ModelValue {
    Some(value.to_string().into_bytes())
}

/// A stream being read, with a model that its transactions are applied to.
pub(super) struct Reading {
    pub(super) source: Box<dyn Source>,
    decoder: Box<dyn Decoder>,
    pub(super) tracker: Box<dyn PositionTracker>,
    pub(super) model: ModelDatabase,
    pub(super) idle: Vec<Position>,
    /// row changes that the decoder counted
    changes: u64,
    /// whether the newest transaction has not ended
    open: bool,
    /// after every transaction: position and contents
    pub(super) borders: Vec<(Position, ModelDatabase)>,
}

impl Reading {
    pub(super) async fn start(
        harness: &mut dyn SourceHarness,
        start: &StreamStart,
        model: ModelDatabase,
    ) -> Result<Self> {
        let mut source = harness.source().await?;
        let decoder = source.open(start).await?;
        Ok(Self {
            tracker: decoder.tracker(),
            decoder,
            source,
            model,
            idle: Vec::new(),
            changes: 0,
            open: false,
            borders: Vec::new(),
        })
    }

    /// Reads on until `done` says so and the transaction at hand has ended.
    pub(super) async fn until(&mut self, done: impl Fn(&Self) -> bool) -> Result<()> {
        while self.open || !done(self) {
            let mut chunk = RawChunk::default();
            self.source.read(&mut chunk).await?;
            let mut batch = Batch::new();
            self.decoder.decode(&mut chunk, &mut batch)?;
            batch.verify()?;
            self.take(&batch)?;
        }
        Ok(())
    }

    fn take(&mut self, batch: &Batch) -> Result<()> {
        for txn in batch.txns() {
            let rows = txn.rows.start as usize..txn.rows.end as usize;
            for event in rows.filter_map(|row| batch.event(row)) {
                apply_event(&mut self.model, &event)
                    .map_err(|violation| Error::bug(format!("a change that cannot be: {violation}")))?;
            }
            self.changes += txn.counts.read;
            self.open = !txn.last;
            if txn.last {
                self.tracker.fold(txn)?;
                self.borders.push((self.tracker.position(), self.model.clone()));
            }
        }
        if let Some(idle) = batch.idle() {
            self.tracker.advance(idle)?;
            self.idle.push(idle.clone());
        }
        Ok(())
    }

    pub(super) fn has_signal(&self, id: u32) -> bool {
        has_signal(&self.model, id)
    }

    /// Whether the position has moved on from the transaction that brought a signal.
    pub(super) fn is_beyond_signal(&self, id: u32) -> bool {
        let mut borders = self.borders.iter();
        let brought = borders.find(|(_, model)| has_signal(model, id));
        brought.is_some_and(|(position, _)| *position != self.tracker.position())
    }
}

fn has_signal(model: &ModelDatabase, id: u32) -> bool {
    !model.find(&signals().spec.name, &[(0, text(id))]).is_empty()
}

/// What reading a history brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HistoryRead {
    /// states of the source in which the stream never was
    pub skipped: usize,
    /// row changes that the decoder counted, of initial rows and signals too
    pub changes: u64,
}

/// Executes a history on a source, first its initial rows, and reads it: after every transaction the stream must
/// have come to a state that the source was in, never to an earlier one, and at last to the last.
///
/// # Errors
/// Where it came to instead, or what failed.
pub async fn read_history(harness: &mut dyn SourceHarness, history: &History) -> Result<HistoryRead> {
    let source = &history.source;
    let mut tables = source.tables().to_vec();
    tables.push(signals());
    let start = harness.prepare(&tables).await?;
    harness.commit(&initial_rows(history)).await?;
    for statements in source.statements() {
        harness.commit(statements).await?;
    }
    harness.commit(&signal(tables.len() - 1, 1)).await?;

    // Within a net window rows exchange unique values in any order.
    let specs = tables.into_iter().map(|table| {
        let mut spec = table.spec;
        spec.keys.retain(|key| key.primary);
        spec
    });
    let model = ModelDatabase::new(specs, false);
    let nothing = without_signals(&model);
    let mut reading = Reading::start(harness, &start, model).await?;
    reading.until(|reading| reading.has_signal(1)).await?;
    reading.source.close().await?;
    let mut read = HistoryRead {
        changes: reading.changes,
        skipped: 0,
    };
    let (mut at, mut stands) = (0, nothing);
    for (position, model) in &reading.borders {
        let contents = without_signals(model);
        // Also before the first rows: servers tell of transactions that changed nothing here, such as an autovacuum's.
        if contents == stands {
            continue;
        }
        let from = at;
        while source.state(at).is_some_and(|state| *state != contents) {
            read.skipped += usize::from(source.state(at) != Some(&stands));
            at += 1;
        }
        if source.state(at).is_none() {
            return Err(differs(from, source.state(from), &contents).at(position));
        }
        stands = contents;
    }
    let last = source.txns().len();
    match source.state(last) {
        Some(state) if *state == stands => Ok(read),
        state => Err(differs(last, state, &stands)),
    }
}

fn differs(txns: usize, state: Option<&Contents>, read: &Contents) -> Error {
    let what = format!("after {txns} transactions or more\n  source {state:?}\n  read   {read:?}");
    Error::new(Kind::Unverifiable, what)
}

fn without_signals(model: &ModelDatabase) -> Contents {
    let mut contents = model.contents();
    contents.remove(&signals().spec.name);
    contents
}

/// Inserts, parents first: tables refer to earlier ones only.
fn initial_rows(history: &History) -> Vec<Statement> {
    let tables = history.source.tables().iter().enumerate();
    let rows = tables.flat_map(|(table, described)| {
        let state = history.source.state(0);
        let rows = state.and_then(|state| state.get(&described.spec.name));
        rows.into_iter().flatten().map(move |row| Statement::Insert {
            table,
            row: row.clone(),
        })
    });
    rows.collect()
}
