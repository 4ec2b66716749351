//! `tail`: changes as JSON lines, as the source's log tells them.

use cdc_core::batch::{Batch, ChangeEvent, Datum, Op};
use cdc_core::model::{ColumnSchema, Position, TableName, TableRole, TableSchema, TxnRecord, Value as Typed};
use cdc_core::source::PositionTracker;
use cdc_core::{Error, Kind, Result};
use serde::Serialize;
use serde_json::{Map, Value};

/// One line. Keys are stable.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// what happened
    pub op: &'static str,
    /// the table; `None` for transactions and messages
    pub table: Option<TableName>,
    /// the identity of the row as it was before the change
    pub key: Map<String, Value>,
    /// the old row, as far as the log tells it
    pub before: Option<Map<String, Value>>,
    /// the new row, as far as the log tells it
    pub after: Option<Map<String, Value>>,
    /// columns that did not change and whose value the log left out
    pub unchanged: Vec<String>,
    /// the transaction
    pub tx: Tx,
    /// where reading would go on after the transaction
    pub position: String,
}

/// The transaction of a line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tx {
    /// its number in this run, from 1
    pub seq: u64,
    /// its identity in the log
    pub id: String,
    /// when it was committed, microseconds since 1970-01-01 UTC
    pub commit_time: i64,
    /// the node that first wrote it, when the source is itself a replica
    pub origin: Option<String>,
}

/// How values are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// every value a string in the source's text form
    Text,
    /// numbers and booleans as JSON has them
    Typed,
}

/// Turns batches into lines.
pub struct Printer {
    tracker: Box<dyn PositionTracker>,
    view: View,
    limit: Option<u64>,
    until: Option<Position>,
    changes: u64,
    seq: u64,
    /// whether `begin` of the transaction under way was printed
    begun: bool,
    done: bool,
    /// after the last transaction whose lines were all handed out
    complete: Position,
}

impl Printer {
    /// Prints until `limit` changes are printed or `until` is reached, whichever comes first.
    pub fn new(
        tracker: Box<dyn PositionTracker>,
        view: View,
        limit: Option<u64>,
        until: Option<Position>,
    ) -> Self {
        Self {
            complete: tracker.position(),
            tracker,
            view,
            limit,
            until,
            changes: 0,
            seq: 0,
            begun: false,
            done: false,
        }
    }

    /// Whether the end is reached.
    pub fn done(&self) -> bool {
        self.done
    }

    /// The position after the last transaction of which every line was handed out. One that `limit` or an error
    /// cut short is read again from there.
    pub fn complete(&self) -> &Position {
        &self.complete
    }

    /// Changes printed.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The lines of a batch.
    ///
    /// # Errors
    /// [`Kind::Data`] for a value that is not text, naming table and column.
    pub fn lines(&mut self, batch: &Batch) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        for txn in batch.txns() {
            self.txn(batch, txn, &mut lines)?;
            // What follows, an idle position included, is beyond a transaction that was perhaps cut short.
            if self.done {
                return Ok(lines);
            }
        }
        if let Some(idle) = batch.idle() {
            self.tracker.advance(idle)?;
            self.complete = self.tracker.position();
            self.look_for_end()?;
        }
        Ok(lines)
    }

    fn txn(&mut self, batch: &Batch, txn: &TxnRecord, lines: &mut Vec<Line>) -> Result<()> {
        if txn.first {
            self.seq += 1;
            self.begun = false;
        }
        if txn.last {
            self.tracker.fold(txn)?;
        }
        let tx = Tx {
            seq: self.seq,
            id: self.tracker.describe(txn),
            commit_time: txn.commit_time_micros,
            origin: txn.origin.as_deref().map(str::to_owned),
        };
        let position = self.tracker.position().to_string();
        let bare = |op| Line {
            op,
            table: None,
            key: Map::new(),
            before: None,
            after: None,
            unchanged: Vec::new(),
            tx: tx.clone(),
            position: position.clone(),
        };
        for row in txn.rows.clone() {
            let Some(event) = batch.event(row as usize) else {
                continue;
            };
            for line in self.change(&event, &bare)? {
                if !std::mem::replace(&mut self.begun, true) {
                    lines.push(bare("begin"));
                }
                lines.push(line);
                self.changes += 1;
                if self.limit.is_some_and(|limit| self.changes >= limit) {
                    self.done = true;
                    if txn.last && row + 1 == txn.rows.end {
                        lines.push(bare("commit"));
                        self.complete = self.tracker.position();
                    }
                    return Ok(());
                }
            }
        }
        // A transaction of which nothing is shown (other tables, our own heartbeats) is not shown either.
        if txn.last {
            if self.begun {
                lines.push(bare("commit"));
            }
            self.complete = self.tracker.position();
        }
        self.look_for_end()
    }

    fn look_for_end(&mut self) -> Result<()> {
        if let Some(until) = &self.until {
            self.done |= self.tracker.has_reached(until)?;
        }
        Ok(())
    }

    /// The lines of a change: one, except for a truncation of several tables.
    fn change(&self, event: &ChangeEvent<'_>, bare: &dyn Fn(&'static str) -> Line) -> Result<Vec<Line>> {
        let op = match event.op() {
            Op::Truncate => {
                let tables = event.truncation().map(|truncation| truncation.tables.as_slice());
                let shown = tables
                    .unwrap_or(&[])
                    .iter()
                    .filter(|table| table.role == TableRole::User);
                return Ok(shown
                    .map(|table| Line {
                        table: Some(table.name.clone()),
                        ..bare("truncate")
                    })
                    .collect());
            }
            Op::Message => return Ok(vec![bare("message")]),
            Op::Insert => "insert",
            Op::Update | Op::Upsert => "update",
            Op::Delete => "delete",
        };
        let Some(table) = event.table().filter(|table| table.role == TableRole::User) else {
            return Ok(Vec::new());
        };
        let mut line = Line {
            table: Some(table.name.clone()),
            ..bare(op)
        };
        line.key = self.image(table, |column| column.identity, |index| event.identity(index))?;
        if event.has_before() {
            line.before = Some(self.image(table, |_| true, |index| event.before(index))?);
        }
        if event.has_after() {
            line.after = Some(self.image(table, |_| true, |index| event.after(index))?);
            let left_out = |index: &usize| event.after(*index) == Datum::Unchanged;
            line.unchanged = (0..table.columns.len())
                .filter(left_out)
                .filter_map(|index| table.columns.get(index).map(|column| column.name.clone()))
                .collect();
        }
        Ok(vec![line])
    }

    fn image<'a>(
        &self,
        table: &TableSchema,
        wanted: impl Fn(&ColumnSchema) -> bool,
        datum: impl Fn(usize) -> Datum<'a>,
    ) -> Result<Map<String, Value>> {
        let mut image = Map::new();
        for (index, column) in table
            .columns
            .iter()
            .enumerate()
            .filter(|(_, column)| wanted(column))
        {
            let value = match datum(index) {
                Datum::Null => Value::Null,
                Datum::Bytes(bytes) => self.value(table, column, bytes)?,
                Datum::Unchanged | Datum::Absent | Datum::Patch(_) => continue,
            };
            image.insert(column.name.clone(), value);
        }
        Ok(image)
    }

    fn value(&self, table: &TableSchema, column: &ColumnSchema, bytes: &[u8]) -> Result<Value> {
        if self.view == View::Typed
            && let Some(value) = typed(&table.reader.value(column, bytes)?)
        {
            return Ok(value);
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            Error::new(Kind::Data, "the value is not UTF-8 text")
                .object(format!("{}.{}", table.name, column.name))
                .caused_by(error)
        })?;
        Ok(text.into())
    }
}

/// The JSON value of what JSON can say exactly; everything else stays text.
fn typed(value: &Typed<'_>) -> Option<Value> {
    match value {
        Typed::Null => Some(Value::Null),
        Typed::Bool(v) => Some((*v).into()),
        Typed::Int(v) => Some((*v).into()),
        Typed::UInt(v) => Some((*v).into()),
        Typed::Float32(v) => serde_json::Number::from_f64(f64::from(*v)).map(Value::Number),
        Typed::Float64(v) => serde_json::Number::from_f64(*v).map(Value::Number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cdc_core::batch::Truncation;
    use cdc_core::model::{CanonicalReader, DataType, Encoding, Identity, TxnId, TxnRecord};

    use super::*;

    /// Positions are the numbers of transactions.
    struct Counter(u64);

    impl PositionTracker for Counter {
        fn fold(&mut self, txn: &TxnRecord) -> Result<()> {
            self.0 = u64::from(txn.id.as_bytes()[0]);
            Ok(())
        }
        fn advance(&mut self, idle: &Position) -> Result<()> {
            self.0 = idle.as_str().parse().map_err(|_| Error::bug("a position"))?;
            Ok(())
        }
        fn position(&self) -> Position {
            Position::new(self.0.to_string())
        }
        fn fork(&self) -> Box<dyn PositionTracker> {
            Box::new(Self(self.0))
        }
        fn is_after(&self, _: &TxnRecord, _: &Position) -> Result<bool> {
            Ok(true)
        }
        fn has_reached(&self, snapshot: &Position) -> Result<bool> {
            Ok(self.0 >= snapshot.as_str().parse().unwrap_or(u64::MAX))
        }
    }

    fn table(name: &str, role: TableRole) -> Arc<TableSchema> {
        let column = |name: &str, data_type, identity| ColumnSchema {
            name: name.into(),
            data_type,
            declared: Box::default(),
            encoding: Encoding::CANONICAL,
            identity,
        };
        Arc::new(TableSchema {
            name: TableName::new("public", name),
            columns: vec![
                column("id", DataType::Text, true),
                column("note", DataType::Text, false),
            ],
            identity: Identity::Key,
            role,
            reader: Arc::new(CanonicalReader),
        })
    }

    fn begin(batch: &mut Batch, number: u8, first: bool, last: bool) {
        batch.begin(TxnRecord {
            commit_time_micros: 7,
            first,
            last,
            ..TxnRecord::new(TxnId::new(&[number]).expect("short"))
        });
    }

    fn insert(batch: &mut Batch, table: &Arc<TableSchema>, id: &str) {
        let number = batch.add_table(table).expect("few tables");
        let mut image = batch.image();
        image.bytes(id.as_bytes()).expect("short").null();
        let after = image.finish();
        batch.push(Op::Insert, number, None, false, Some(after));
    }

    fn printer(limit: Option<u64>, until: Option<&str>) -> Printer {
        Printer::new(Box::new(Counter(0)), View::Text, limit, until.map(Position::new))
    }

    fn ops(lines: &[Line]) -> Vec<&'static str> {
        lines.iter().map(|line| line.op).collect()
    }

    #[test]
    fn a_line_has_the_promised_shape() {
        let mut batch = Batch::new();
        begin(&mut batch, 1, true, true);
        insert(&mut batch, &table("t", TableRole::User), "5");
        let lines = printer(None, None).lines(&batch).expect("lines");
        assert_eq!(
            serde_json::to_string(&lines[1]).expect("JSON"),
            "{\"op\":\"insert\",\"table\":{\"schema\":\"public\",\"name\":\"t\"},\"key\":{\"id\":\"5\"},\
             \"before\":null,\"after\":{\"id\":\"5\",\"note\":null},\"unchanged\":[],\
             \"tx\":{\"seq\":1,\"id\":\"01\",\"commit_time\":7,\"origin\":null},\"position\":\"1\"}"
        );
        assert_eq!(ops(&lines), ["begin", "insert", "commit"]);
    }

    #[test]
    fn old_keys_and_values_left_out_are_told() {
        let table = table("t", TableRole::User);
        let mut batch = Batch::new();
        begin(&mut batch, 1, true, true);
        let number = batch.add_table(&table).expect("few tables");
        let mut old = batch.image();
        old.bytes(b"1").expect("short").absent();
        let before = old.finish();
        let mut new = batch.image();
        new.bytes(b"2").expect("short").unchanged();
        let after = new.finish();
        batch.push(Op::Update, number, Some(before), false, Some(after));
        let lines = printer(None, None).lines(&batch).expect("lines");
        let update = serde_json::to_value(&lines[1]).expect("JSON");
        assert_eq!(update["key"]["id"], "1");
        assert_eq!(update["before"].to_string(), "{\"id\":\"1\"}");
        assert_eq!(update["after"].to_string(), "{\"id\":\"2\"}");
        assert_eq!(update["unchanged"].to_string(), "[\"note\"]");
    }

    #[test]
    fn a_transaction_in_parts_begins_and_ends_once() {
        let table = table("t", TableRole::User);
        let mut printer = printer(None, None);
        let mut all = Vec::new();
        for (first, last) in [(true, false), (false, false), (false, true)] {
            let mut batch = Batch::new();
            begin(&mut batch, 1, first, last);
            insert(&mut batch, &table, "5");
            all.extend(printer.lines(&batch).expect("lines"));
        }
        assert_eq!(ops(&all), ["begin", "insert", "insert", "insert", "commit"]);
        assert!(all.iter().all(|line| line.tx.seq == 1));
    }

    #[test]
    fn what_was_cut_short_is_not_complete() {
        let table = table("t", TableRole::User);
        let two_rows = |number, id: &str| {
            let mut batch = Batch::new();
            begin(&mut batch, number, true, true);
            insert(&mut batch, &table, "5");
            insert(&mut batch, &table, id);
            batch
        };
        let mut limited = printer(Some(3), None);
        limited.lines(&two_rows(1, "6")).expect("lines");
        assert_eq!(limited.complete().as_str(), "1");
        let mut cut = two_rows(2, "6");
        cut.set_idle(Position::new("9"));
        limited.lines(&cut).expect("lines");
        assert!(limited.done());
        assert_eq!(limited.complete().as_str(), "1");

        let mut exact = printer(Some(2), None);
        exact.lines(&two_rows(1, "6")).expect("lines");
        assert_eq!(exact.complete().as_str(), "1");

        let mut batch = two_rows(1, "6");
        begin(&mut batch, 2, true, true);
        let number = batch.add_table(&table).expect("few tables");
        let mut image = batch.image();
        image.bytes(b"\xff").expect("short").null();
        let after = image.finish();
        batch.push(Op::Insert, number, None, false, Some(after));
        let mut unreadable = printer(None, None);
        assert_eq!(unreadable.lines(&batch).unwrap_err().kind(), Kind::Data);
        assert_eq!(unreadable.complete().as_str(), "1");
    }

    #[test]
    fn our_own_rows_are_not_shown_and_truncations_are_one_line_a_table() {
        let mut batch = Batch::new();
        begin(&mut batch, 1, true, true);
        insert(&mut batch, &table("heartbeat", TableRole::Heartbeat), "5");
        begin(&mut batch, 2, true, true);
        batch.push_truncate(Truncation {
            tables: vec![table("a", TableRole::User), table("b", TableRole::User)],
            cascade: false,
            restart_identity: false,
        });
        let lines = printer(None, None).lines(&batch).expect("lines");
        assert_eq!(ops(&lines), ["begin", "truncate", "truncate", "commit"]);
    }

    #[test]
    fn it_ends_where_it_was_told() {
        let table = table("t", TableRole::User);
        let mut batch = Batch::new();
        for number in 1..=3 {
            begin(&mut batch, number, true, true);
            insert(&mut batch, &table, "5");
            insert(&mut batch, &table, "6");
        }
        let mut limited = printer(Some(3), None);
        let lines = limited.lines(&batch).expect("lines");
        assert_eq!(
            ops(&lines),
            ["begin", "insert", "insert", "commit", "begin", "insert"]
        );
        assert!(limited.done());
        let whole = printer(Some(2), None).lines(&batch).expect("lines");
        assert_eq!(ops(&whole), ["begin", "insert", "insert", "commit"]);
        let mut until = printer(None, Some("2"));
        assert_eq!(until.lines(&batch).expect("lines").len(), 8);
        assert!(until.done());
        let mut idle = Batch::new();
        idle.set_idle(Position::new("9"));
        let mut waiting = printer(None, Some("9"));
        assert!(waiting.lines(&idle).expect("no lines").is_empty());
        assert!(waiting.done());
    }

    #[test]
    fn a_value_that_is_not_text_names_its_column() {
        let mut batch = Batch::new();
        begin(&mut batch, 1, true, true);
        let number = batch.add_table(&table("t", TableRole::User)).expect("few tables");
        let mut image = batch.image();
        image.bytes(&[0xff]).expect("short").null();
        let after = image.finish();
        batch.push(Op::Insert, number, None, false, Some(after));
        let error = printer(None, None).lines(&batch).expect_err("not text");
        assert_eq!(error.object_name(), Some("public.t.id"));
    }
}
