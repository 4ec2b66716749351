//! Groups of changes written by hand.

use std::sync::Arc;

use cdc_core::batch::Cell;
use cdc_core::model::{CellReader, Identity, TableRole, TxnKind};
use cdc_core::plan::{Piece, TxnGroup};
use cdc_core::{Batch, ColumnSchema, DataType, Encoding, Op, TableName, TableSchema, TxnId, TxnRecord};
use cdc_postgres::text::{PG_TEXT, TextReader};

/// A cell of an image.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Of<'a> {
    Text(&'a str),
    Null,
    Unchanged,
    Absent,
}

impl<'a> From<&'a str> for Of<'a> {
    fn from(text: &'a str) -> Self {
        Of::Text(text)
    }
}

impl<'a> From<&'a String> for Of<'a> {
    fn from(text: &'a String) -> Self {
        Of::Text(text)
    }
}

/// `public.<name>` with these columns; those with a `*` in front identify rows, all of them when `full`.
pub(crate) fn table(name: &str, columns: &[&str], identity: Identity) -> Arc<TableSchema> {
    typed_table(name, columns, identity, PG_TEXT, Arc::new(TextReader), |_| {
        DataType::Text
    })
}

pub(crate) fn typed_table(
    name: &str,
    columns: &[&str],
    identity: Identity,
    encoding: Encoding,
    reader: Arc<dyn CellReader>,
    data_type: impl Fn(usize) -> DataType,
) -> Arc<TableSchema> {
    let column = |(place, name): (usize, &&str)| ColumnSchema {
        name: name.trim_start_matches('*').to_owned(),
        data_type: data_type(place),
        declared: Box::default(),
        encoding,
        identity: identity == Identity::Full || name.starts_with('*'),
    };
    Arc::new(TableSchema {
        name: TableName::new("public", name),
        columns: columns.iter().enumerate().map(column).collect(),
        identity,
        role: TableRole::User,
        reader,
    })
}

/// A group under construction: one transaction.
pub(crate) struct Changes {
    batch: Batch,
    tables: Vec<Arc<TableSchema>>,
}

impl Changes {
    pub(crate) fn new() -> Self {
        Self::of_kind(TxnKind::Log)
    }

    pub(crate) fn of_kind(kind: TxnKind) -> Self {
        let mut batch = Batch::new();
        batch.begin(TxnRecord {
            kind,
            ..TxnRecord::new(TxnId::new(b"1").unwrap())
        });
        Self {
            batch,
            tables: Vec::new(),
        }
    }

    fn number(&mut self, table: &Arc<TableSchema>) -> u16 {
        let known = self.tables.iter().position(|known| Arc::ptr_eq(known, table));
        let number = known.unwrap_or_else(|| {
            self.batch.add_table(table).unwrap();
            self.tables.push(Arc::clone(table));
            self.tables.len() - 1
        });
        number as u16
    }

    fn image(&mut self, cells: &[Of<'_>]) -> u32 {
        let mut image = self.batch.image();
        for cell in cells {
            match cell {
                Of::Text(text) => image.bytes(text.as_bytes()).unwrap(),
                Of::Null => image.null(),
                Of::Unchanged => image.unchanged(),
                Of::Absent => image.absent(),
            };
        }
        image.finish()
    }

    fn push(
        mut self,
        op: Op,
        table: &Arc<TableSchema>,
        before: Option<&[Of<'_>]>,
        after: Option<&[Of<'_>]>,
    ) -> Self {
        let number = self.number(table);
        let full = table.identity == Identity::Full;
        let before = before.map(|cells| self.image(cells));
        let after = after.map(|cells| self.image(cells));
        self.batch
            .push(op, number, before, full && before.is_some(), after);
        self
    }

    pub(crate) fn insert(self, table: &Arc<TableSchema>, after: &[Of<'_>]) -> Self {
        self.push(Op::Insert, table, None, Some(after))
    }

    pub(crate) fn update(self, table: &Arc<TableSchema>, after: &[Of<'_>]) -> Self {
        self.push(Op::Update, table, None, Some(after))
    }

    pub(crate) fn update_from(self, table: &Arc<TableSchema>, before: &[Of<'_>], after: &[Of<'_>]) -> Self {
        self.push(Op::Update, table, Some(before), Some(after))
    }

    pub(crate) fn delete(self, table: &Arc<TableSchema>, before: &[Of<'_>]) -> Self {
        self.push(Op::Delete, table, Some(before), None)
    }

    pub(crate) fn upsert(self, table: &Arc<TableSchema>, after: &[Of<'_>]) -> Self {
        self.push(Op::Upsert, table, None, Some(after))
    }

    pub(crate) fn truncate(mut self, tables: &[&Arc<TableSchema>], restart_identity: bool) -> Self {
        self.batch.push_truncate(cdc_core::batch::Truncation {
            tables: tables.iter().map(|table| Arc::clone(table)).collect(),
            cascade: false,
            restart_identity,
        });
        self
    }

    /// Adds an insert whose cells are already in the table's encoding.
    pub(crate) fn insert_bytes(mut self, table: &Arc<TableSchema>, cells: &[Option<Vec<u8>>]) -> Self {
        let number = self.number(table);
        let start = self.batch.next_cell();
        for cell in cells {
            match cell {
                Some(bytes) => {
                    let at = self.batch.append(bytes).unwrap();
                    self.batch.cell_at(at, bytes.len() as u32);
                }
                None => self.batch.cell(Cell::NULL),
            }
        }
        self.batch.push(Op::Insert, number, None, false, Some(start));
        self
    }

    pub(crate) fn group(self) -> TxnGroup {
        self.batch.verify().unwrap();
        let rows = 0..self.batch.rows().len();
        TxnGroup {
            pieces: vec![Piece {
                batch: Arc::new(self.batch),
                txns: 0..1,
                rows,
            }],
        }
    }
}
