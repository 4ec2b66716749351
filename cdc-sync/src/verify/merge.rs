//! Comparing one table: two ordered streams of rows, merged.
//!
//! Both streams are in the order rule of [`cdc_core::compare`], so the smaller key is the row the other side
//! lacks. Without a key the key part is the whole row: equal rows pair off one by one, and what is left over is
//! the difference of the two multisets. Memory is two buffers, whatever the size of the table.

use cdc_core::compare::{RowBuffer, RowText};
use cdc_core::engine::OrderedRows;
use cdc_core::{Error, Kind, Result, TableName};

use super::report::{DifferenceKind, RowKey, TableReport};

/// Longest text of a named column, in characters: a table without key names whole rows.
const NAMED_TEXT: usize = 256;

/// How a table is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TablePlan {
    /// the table
    pub(crate) table: TableName,
    /// the columns compared, in the order both sides give them
    pub(crate) columns: Vec<String>,
    /// the key columns; empty compares whole rows as a multiset
    pub(crate) key: Vec<String>,
}

impl TablePlan {
    /// The key of `row` as text.
    fn name_row(&self, row: RowText<'_>) -> RowKey {
        let texts: Vec<Option<&[u8]>> = row.columns().collect();
        let named = if self.key.is_empty() {
            &self.columns
        } else {
            &self.key
        };
        RowKey(
            named
                .iter()
                .map(|name| {
                    let index = self.columns.iter().position(|column| column == name);
                    let text = index.and_then(|index| texts.get(index).copied().flatten());
                    (name.clone(), text.map(shortened))
                })
                .collect(),
        )
    }
}

fn shortened(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    match text.char_indices().nth(NAMED_TEXT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.into_owned(),
    }
}

/// One side's stream and how far it has been compared.
struct Cursor {
    rows: Box<dyn OrderedRows>,
    buffer: RowBuffer,
    next: usize,
    ended: bool,
    read: u64,
    side: &'static str,
    /// the key of the last row of the buffer before, to see that the order goes on
    last_key: Option<Vec<u8>>,
}

impl Cursor {
    fn new(rows: Box<dyn OrderedRows>, side: &'static str) -> Self {
        Self {
            rows,
            buffer: RowBuffer::default(),
            next: 0,
            ended: false,
            read: 0,
            side,
            last_key: None,
        }
    }

    fn row(&self) -> Option<RowText<'_>> {
        self.buffer.row(self.next)
    }

    /// Reads on when the buffer is used up; afterwards there is a row, or the stream has ended.
    async fn refill(&mut self, unique: bool) -> Result<()> {
        while self.next >= self.buffer.len() && !self.ended {
            if let Some(last) = self
                .buffer
                .len()
                .checked_sub(1)
                .and_then(|last| self.buffer.row(last))
            {
                let kept = self.last_key.get_or_insert_default();
                kept.clear();
                kept.extend_from_slice(last.key());
            }
            self.buffer.clear();
            self.next = 0;
            self.ended = !self.rows.next(&mut self.buffer).await?;
            self.read += self.buffer.len() as u64;
            self.check_order(unique)?;
        }
        Ok(())
    }

    /// A merge of unordered streams would report differences that are none, so a server that breaks the order
    /// (a damaged index) is found out.
    fn check_order(&self, unique: bool) -> Result<()> {
        let mut last = self.last_key.as_deref();
        let mut index = 0;
        while let Some(row) = self.buffer.row(index) {
            let fault = match last.map(|last| last.cmp(row.key())) {
                Some(std::cmp::Ordering::Greater) => Some("rows come out of order"),
                Some(std::cmp::Ordering::Equal) if unique => Some("two rows have the same key"),
                _ => None,
            };
            if let Some(fault) = fault {
                return Err(
                    Error::new(Kind::Unverifiable, format!("on the {} {fault}", self.side))
                        .remedy("check the primary key's index of this table (REINDEX), then verify again"),
                );
            }
            last = Some(row.key());
            index += 1;
        }
        Ok(())
    }
}

/// Compares `plan.table` and completes `report`, which also holds what was found when this fails midway.
/// `progress` is called with the rows compared so far, `found` with each row that differs.
pub(super) async fn compare(
    plan: &TablePlan,
    source: Box<dyn OrderedRows>,
    target: Box<dyn OrderedRows>,
    report: &mut TableReport,
    progress: &(dyn Fn(u64) + Send + Sync),
    found: &Found<'_>,
) -> Result<()> {
    let unique = !plan.key.is_empty();
    let mut source = Cursor::new(source, "source");
    let mut target = Cursor::new(target, "target");
    loop {
        let read = futures_util::future::try_join(source.refill(unique), target.refill(unique)).await;
        report.source_rows = source.read;
        report.target_rows = target.read;
        read?;
        progress(source.read.max(target.read));
        if source.row().is_none() && target.row().is_none() {
            return Ok(());
        }
        merge(plan, &mut source, &mut target, report, found)?;
    }
}

/// Who is told of each row that differs.
pub(super) type Found<'a> = dyn Fn(DifferenceKind, RowText<'_>) -> Result<()> + Send + Sync + 'a;

/// Compares rows until a buffer is used up whose stream may go on.
fn merge(
    plan: &TablePlan,
    source: &mut Cursor,
    target: &mut Cursor,
    report: &mut TableReport,
    found: &Found<'_>,
) -> Result<()> {
    let mut differs = |kind, row: RowText<'_>| {
        report.count(kind, || plan.name_row(row));
        found(kind, row)
    };
    loop {
        match (source.row(), target.row()) {
            (Some(left), Some(right)) => match left.key().cmp(right.key()) {
                std::cmp::Ordering::Less => {
                    differs(DifferenceKind::Missing, left)?;
                    source.next += 1;
                }
                std::cmp::Ordering::Greater => {
                    differs(DifferenceKind::Extra, right)?;
                    target.next += 1;
                }
                std::cmp::Ordering::Equal => {
                    if left.content() != right.content() {
                        differs(DifferenceKind::Different, left)?;
                    }
                    source.next += 1;
                    target.next += 1;
                }
            },
            (Some(left), None) if target.ended => {
                differs(DifferenceKind::Missing, left)?;
                source.next += 1;
            }
            (None, Some(right)) if source.ended => {
                differs(DifferenceKind::Extra, right)?;
                target.next += 1;
            }
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
