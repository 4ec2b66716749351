//! What the log holds between the target's checkpoint and a snapshot of the source.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use cdc_core::engine::{JobNames, Site};
use cdc_core::model::TableRole;
use cdc_core::source::{PositionTracker, StreamStart};
use cdc_core::{
    Batch, Checkpoint, Decoder, Position, RawChunk, Result, Source, TableName, TableSelection, TxnRecord,
};

/// How often the server is told that we are alive while nothing comes.
const ALIVE: Duration = Duration::from_secs(2);

/// Which part of which stream's log is meant.
pub(super) struct Gap<'a> {
    pub(super) names: &'a JobNames,
    pub(super) selection: &'a TableSelection,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) seeded_to: HashMap<TableName, Position>,
}

/// Reads the log from the checkpoint to `end`, confirming nothing, and counts the changes of each selected table
/// that are contained in a snapshot at `end`.
pub(super) async fn pending_changes(
    source: &dyn Site,
    gap: Gap<'_>,
    end: &Position,
) -> Result<BTreeMap<TableName, u64>> {
    let mut log = source.source(gap.names, &gap.checkpoint.source)?;
    let start = StreamStart {
        from: gap.checkpoint.position.clone(),
        stream: gap.names.job.clone(),
        selection: gap.selection.clone(),
        seeded_to: gap.seeded_to,
        // They are not compared.
        aside: HashSet::new(),
        peer: None,
    };
    let mut decoder = log.open(&start).await?;
    let read = read_until(log.as_mut(), decoder.as_mut(), end).await;
    let closed = log.close().await;
    let pending = read?;
    closed?;
    Ok(pending)
}

async fn read_until(
    log: &mut dyn Source,
    decoder: &mut dyn Decoder,
    end: &Position,
) -> Result<BTreeMap<TableName, u64>> {
    let mut tracker = decoder.tracker();
    let mut chunk = RawChunk::default();
    let mut batch = Batch::new();
    let mut pending = Pending::default();
    while !tracker.has_reached(end)? {
        // Reading is cancel-safe, so that a silent log does not keep us from the timer.
        if let Ok(read) = tokio::time::timeout(ALIVE, log.read(&mut chunk)).await {
            read?;
            decoder.decode(&mut chunk, &mut batch)?;
            chunk.bytes.clear();
            pending.add(&batch, tracker.as_mut(), end)?;
            batch.clear();
        } else {
            log.confirm(None).await?;
        }
    }
    Ok(pending.tables)
}

/// Changes counted so far.
#[derive(Default)]
struct Pending {
    tables: BTreeMap<TableName, u64>,
    /// of the transaction that has not ended yet
    open: BTreeMap<TableName, u64>,
}

impl Pending {
    fn add(&mut self, batch: &Batch, tracker: &mut dyn PositionTracker, end: &Position) -> Result<()> {
        for txn in batch.txns() {
            self.add_rows(batch, txn);
            if txn.last {
                let open = std::mem::take(&mut self.open);
                if !tracker.is_after(txn, end)? {
                    open.into_iter()
                        .for_each(|(table, rows)| *self.tables.entry(table).or_default() += rows);
                }
                tracker.fold(txn)?;
            }
        }
        match batch.idle() {
            Some(idle) => tracker.advance(idle),
            None => Ok(()),
        }
    }

    fn add_rows(&mut self, batch: &Batch, txn: &TxnRecord) {
        for event in txn.rows.clone().filter_map(|row| batch.event(row as usize)) {
            let truncated = event.truncation().map(|truncation| truncation.tables.as_slice());
            let tables = truncated.unwrap_or_default().iter().chain(event.table());
            for table in tables.filter(|table| table.role == TableRole::User) {
                *self.open.entry(table.name.clone()).or_default() += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cdc_core::batch::Truncation;
    use cdc_core::model::{CanonicalReader, Identity, TableSchema};
    use cdc_core::{Op, TxnId};

    use super::*;

    /// Transactions are numbered by one byte; a snapshot contains those up to its number.
    struct Numbers(u8);

    fn number(position: &Position) -> u8 {
        position.as_str().parse().unwrap()
    }

    impl PositionTracker for Numbers {
        fn fold(&mut self, txn: &TxnRecord) -> Result<()> {
            self.0 = txn.id.as_bytes()[0];
            Ok(())
        }

        fn advance(&mut self, idle: &Position) -> Result<()> {
            self.0 = number(idle);
            Ok(())
        }

        fn position(&self) -> Position {
            Position::new(self.0.to_string())
        }

        fn fork(&self) -> Box<dyn PositionTracker> {
            Box::new(Self(self.0))
        }

        fn is_after(&self, txn: &TxnRecord, snapshot: &Position) -> Result<bool> {
            Ok(txn.id.as_bytes()[0] > number(snapshot))
        }

        fn has_reached(&self, snapshot: &Position) -> Result<bool> {
            Ok(self.0 >= number(snapshot))
        }
    }

    fn table(name: &str, role: TableRole) -> Arc<TableSchema> {
        Arc::new(TableSchema {
            name: TableName::new("s", name),
            columns: Vec::new(),
            identity: Identity::Key,
            role,
            reader: Arc::new(CanonicalReader),
        })
    }

    fn txn(id: u8, first: bool, last: bool) -> TxnRecord {
        TxnRecord {
            first,
            last,
            ..TxnRecord::new(TxnId::new(&[id]).unwrap())
        }
    }

    fn insert(batch: &mut Batch, table: &Arc<TableSchema>) {
        let number = batch.add_table(table).unwrap();
        let image = batch.next_cell();
        batch.push(Op::Insert, number, None, false, Some(image));
    }

    #[test]
    fn changes_up_to_the_snapshot_are_counted_by_table() {
        let (a, b) = (table("a", TableRole::User), table("b", TableRole::User));
        let heartbeat = table("heartbeat", TableRole::Heartbeat);
        let mut batch = Batch::new();
        batch.begin(txn(1, true, true));
        insert(&mut batch, &a);
        insert(&mut batch, &heartbeat);
        insert(&mut batch, &a);
        batch.begin(txn(2, true, false));
        batch.push_truncate(Truncation {
            tables: vec![b.clone(), a.clone()],
            cascade: false,
            restart_identity: false,
        });
        let (mut pending, mut tracker, end) = (Pending::default(), Numbers(0), Position::new("2"));
        pending.add(&batch, &mut tracker, &end).unwrap();
        assert_eq!(
            pending.tables,
            BTreeMap::from([(a.name.clone(), 2)]),
            "an open transaction may be after it"
        );
        assert!(!tracker.has_reached(&end).unwrap());

        batch.clear();
        batch.begin(txn(2, false, true));
        insert(&mut batch, &b);
        batch.begin(txn(3, true, true));
        insert(&mut batch, &b);
        pending.add(&batch, &mut tracker, &end).unwrap();
        assert_eq!(
            pending.tables,
            BTreeMap::from([(a.name.clone(), 3), (b.name.clone(), 2)])
        );
        assert!(tracker.has_reached(&end).unwrap());
    }

    #[test]
    fn an_idle_position_is_progress_without_changes() {
        let mut batch = Batch::new();
        batch.set_idle(Position::new("9"));
        let (mut pending, mut tracker) = (Pending::default(), Numbers(0));
        pending.add(&batch, &mut tracker, &Position::new("5")).unwrap();
        assert!(pending.tables.is_empty() && tracker.has_reached(&Position::new("5")).unwrap());
    }
}
