//! A database in memory: rows under unique, NOT NULL and foreign key constraints, with undo.
//!
//! Uniqueness is checked row by row while a statement runs, foreign keys when it ends, as servers do.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::schema::{ForeignKeySpec, TableSpec};
use crate::model::TableName;

/// A value in text form; `None` is NULL.
pub type ModelValue = Option<Vec<u8>>;
/// A row: one value per column.
pub type ModelRow = Vec<ModelValue>;
/// A row's identity within its table, whatever its values.
pub type RowId = u64;
/// The rows of all tables, sorted.
pub type Contents = BTreeMap<TableName, Vec<ModelRow>>;

/// What a statement ran against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A second row with the same values in a unique constraint's columns.
    Unique {
        /// the table
        table: TableName,
        /// the constraint's columns
        columns: Vec<usize>,
    },
    /// A child without parent.
    ForeignKey {
        /// the child's table
        table: TableName,
    },
    /// NULL in a column that refuses it.
    NotNull {
        /// the table
        table: TableName,
        /// the column
        column: String,
    },
    /// A row to change that is not there.
    Missing {
        /// the table
        table: TableName,
    },
    /// Something that the database does not know or cannot do.
    Unsupported(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unique { table, columns } => write!(f, "{table}: unique violation in columns {columns:?}"),
            Self::ForeignKey { table } => write!(f, "{table}: foreign key violation"),
            Self::NotNull { table, column } => write!(f, "{table}: NULL in column {column}"),
            Self::Missing { table } => write!(f, "{table}: no such row"),
            Self::Unsupported(what) => f.write_str(what),
        }
    }
}

/// What a trigger saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// the table
    pub table: TableName,
    /// the row before, unless inserted
    pub old: Option<ModelRow>,
    /// the row after, unless deleted
    pub new: Option<ModelRow>,
}

impl fmt::Display for AuditEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |row: &Option<ModelRow>| {
            let texts = row.as_ref().map(|row| {
                let texts = row.iter().map(|value| match value {
                    Some(text) => format!("{:?}", String::from_utf8_lossy(text)),
                    None => "NULL".to_owned(),
                });
                texts.collect::<Vec<_>>().join(", ")
            });
            format!("({})", texts.unwrap_or_default())
        };
        write!(f, "{}: {} -> {}", self.table, shown(&self.old), shown(&self.new))
    }
}

/// Tables with rows.
#[derive(Debug, Clone)]
pub struct ModelDatabase {
    tables: BTreeMap<TableName, Table>,
    foreign_keys_checked: bool,
    next_row: RowId,
    undo: Vec<Undo>,
    audit: Vec<AuditEntry>,
}

#[derive(Debug, Clone)]
struct Table {
    spec: TableSpec,
    rows: BTreeMap<RowId, ModelRow>,
    /// for each unique constraint, rows by the values of its columns; rows with NULL in them are left out
    indexes: Vec<HashMap<ModelRow, RowId>>,
}

#[derive(Debug, Clone)]
enum Undo {
    Insert(TableName, RowId),
    Update(TableName, RowId, ModelRow),
    Delete(TableName, RowId, ModelRow),
    Audit,
}

impl ModelDatabase {
    /// An empty database of these tables; foreign keys are declared but not checked unless asked for.
    pub fn new(tables: impl IntoIterator<Item = TableSpec>, foreign_keys_checked: bool) -> Self {
        let tables = tables
            .into_iter()
            .map(|spec| (spec.name.clone(), Table::new(spec)))
            .collect();
        Self {
            tables,
            foreign_keys_checked,
            next_row: 0,
            undo: Vec::new(),
            audit: Vec::new(),
        }
    }

    /// A table's description.
    pub fn spec(&self, table: &TableName) -> Option<&TableSpec> {
        self.tables.get(table).map(|table| &table.spec)
    }

    /// The tables.
    pub fn specs(&self) -> impl Iterator<Item = &TableSpec> {
        self.tables.values().map(|table| &table.spec)
    }

    /// Whether foreign keys are checked.
    pub fn foreign_keys_checked(&self) -> bool {
        self.foreign_keys_checked
    }

    /// All rows of all tables, sorted.
    pub fn contents(&self) -> Contents {
        let sorted = |table: &Table| {
            let mut rows: Vec<ModelRow> = table.rows.values().cloned().collect();
            rows.sort();
            rows
        };
        self.tables
            .iter()
            .map(|(name, table)| (name.clone(), sorted(table)))
            .collect()
    }

    /// What the triggers saw since the beginning, rolled back work left out.
    pub fn audit(&self) -> &[AuditEntry] {
        &self.audit
    }

    /// The rows of a table in the order in which they were inserted.
    pub fn rows(&self, table: &TableName) -> impl Iterator<Item = (RowId, &ModelRow)> {
        self.tables
            .get(table)
            .into_iter()
            .flat_map(|table| table.rows.iter().map(|(id, row)| (*id, row)))
    }

    /// One row.
    pub fn row(&self, table: &TableName, id: RowId) -> Option<&ModelRow> {
        self.tables.get(table)?.rows.get(&id)
    }

    /// The rows that have these values in these columns, NULL equal to NULL; those that are the same to the byte before
    /// those that are merely equal.
    pub fn find(&self, table: &TableName, wanted: &[(usize, ModelValue)]) -> Vec<RowId> {
        self.tables
            .get(table)
            .map(|table| table.find(wanted))
            .unwrap_or_default()
    }

    /// Runs a statement: all of it or, on a violation, nothing.
    ///
    /// # Errors
    /// The first violation, of `run` itself or of a foreign key at its end.
    pub fn statement<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, Violation>,
    ) -> Result<T, Violation> {
        let start = self.savepoint();
        let done = run(self).and_then(|value| self.check_foreign_keys().map(|()| value));
        if done.is_err() {
            self.roll_back_to(start);
        }
        done
    }

    /// Inserts a row of the columns given; others get their defaults.
    ///
    /// # Errors
    /// A unique or NOT NULL violation.
    pub fn insert(&mut self, table: &TableName, values: &[(usize, ModelValue)]) -> Result<RowId, Violation> {
        let held = self.table(table)?;
        let mut row: ModelRow = held
            .spec
            .columns
            .iter()
            .map(|column| column.default.clone())
            .collect();
        overwrite(&mut row, values);
        held.compute(&mut row);
        held.check(&row, None)?;
        let id = self.next_row;
        self.next_row += 1;
        self.place(table, id, row.clone())?;
        self.undo.push(Undo::Insert(table.clone(), id));
        self.record(table, None, Some(row));
        Ok(id)
    }

    /// Changes columns of a row.
    ///
    /// # Errors
    /// A unique or NOT NULL violation, or when the row is not there.
    pub fn update(
        &mut self,
        table: &TableName,
        id: RowId,
        values: &[(usize, ModelValue)],
    ) -> Result<(), Violation> {
        let held = self.table(table)?;
        let old = held.rows.get(&id).cloned().ok_or_else(|| missing(table))?;
        let mut new = old.clone();
        overwrite(&mut new, values);
        held.compute(&mut new);
        held.check(&new, Some(id))?;
        self.take(table, id);
        self.place(table, id, new.clone())?;
        self.undo.push(Undo::Update(table.clone(), id, old.clone()));
        self.record(table, Some(old), Some(new));
        Ok(())
    }

    /// Removes a row.
    ///
    /// # Errors
    /// When the row is not there.
    pub fn delete(&mut self, table: &TableName, id: RowId) -> Result<(), Violation> {
        let old = self.take(table, id).ok_or_else(|| missing(table))?;
        self.undo.push(Undo::Delete(table.clone(), id, old.clone()));
        self.record(table, Some(old), None);
        Ok(())
    }

    /// Empties tables; triggers see nothing.
    ///
    /// # Errors
    /// When a table that stays refers to one of them, whether or not it holds rows.
    pub fn truncate(&mut self, tables: &[TableName]) -> Result<(), Violation> {
        let refers = |spec: &&TableSpec| {
            !tables.contains(&spec.name) && spec.foreign_keys.iter().any(|key| tables.contains(&key.parent))
        };
        if self.foreign_keys_checked
            && let Some(spec) = self.specs().find(refers)
        {
            return Err(Violation::ForeignKey {
                table: spec.name.clone(),
            });
        }
        for table in tables {
            let ids: Vec<RowId> = self.rows(table).map(|(id, _)| id).collect();
            for id in ids {
                if let Some(old) = self.take(table, id) {
                    self.undo.push(Undo::Delete(table.clone(), id, old));
                }
            }
        }
        Ok(())
    }

    /// A point to return to.
    pub fn savepoint(&self) -> usize {
        self.undo.len()
    }

    /// Undoes everything since a savepoint.
    pub fn roll_back_to(&mut self, savepoint: usize) {
        while self.undo.len() > savepoint {
            match self.undo.pop() {
                Some(Undo::Insert(table, id)) => {
                    self.take(&table, id);
                }
                Some(Undo::Update(table, id, old)) => {
                    self.take(&table, id);
                    // It stood there before, so nothing can object.
                    let _ = self.place(&table, id, old);
                }
                Some(Undo::Delete(table, id, old)) => {
                    let _ = self.place(&table, id, old);
                }
                Some(Undo::Audit) => {
                    self.audit.pop();
                }
                None => break,
            }
        }
    }

    /// Makes everything final: savepoints no longer count.
    pub fn commit(&mut self) {
        self.undo.clear();
    }

    fn table(&self, table: &TableName) -> Result<&Table, Violation> {
        self.tables
            .get(table)
            .ok_or_else(|| Violation::Unsupported(format!("{table}: no such table")))
    }

    fn place(&mut self, table: &TableName, id: RowId, row: ModelRow) -> Result<(), Violation> {
        let held = self
            .tables
            .get_mut(table)
            .ok_or_else(|| Violation::Unsupported(format!("{table}: no such table")))?;
        held.place(id, row);
        Ok(())
    }

    fn take(&mut self, table: &TableName, id: RowId) -> Option<ModelRow> {
        self.tables.get_mut(table)?.take(id)
    }

    fn record(&mut self, table: &TableName, old: Option<ModelRow>, new: Option<ModelRow>) {
        if self.spec(table).is_some_and(|spec| spec.trigger) {
            self.audit.push(AuditEntry {
                table: table.clone(),
                old,
                new,
            });
            self.undo.push(Undo::Audit);
        }
    }

    fn check_foreign_keys(&self) -> Result<(), Violation> {
        if !self.foreign_keys_checked {
            return Ok(());
        }
        for child in self.tables.values() {
            for key in &child.spec.foreign_keys {
                if !child.rows.values().all(|row| self.has_parent(key, row)) {
                    return Err(Violation::ForeignKey {
                        table: child.spec.name.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    fn has_parent(&self, key: &ForeignKeySpec, row: &ModelRow) -> bool {
        let values: Option<Vec<(usize, ModelValue)>> = key
            .parent_columns
            .iter()
            .zip(&key.columns)
            .map(|(parent, child)| {
                let value = row.get(*child).cloned().flatten();
                value.map(|value| (*parent, Some(value)))
            })
            .collect();
        values.is_none_or(|values| !self.find(&key.parent, &values).is_empty())
    }
}

impl Table {
    fn new(spec: TableSpec) -> Self {
        Self {
            indexes: vec![HashMap::new(); spec.keys.len()],
            rows: BTreeMap::new(),
            spec,
        }
    }

    fn compute(&self, row: &mut ModelRow) {
        for (index, column) in self.spec.columns.iter().enumerate() {
            if let Some(from) = column.generated_from {
                let value = row.get(from).cloned().flatten();
                let computed = value.map(|text| [b"g:".as_slice(), &text].concat());
                if let Some(slot) = row.get_mut(index) {
                    *slot = computed;
                }
            }
        }
    }

    /// Checks a row that is to stand at `id`, or anew.
    fn check(&self, row: &ModelRow, id: Option<RowId>) -> Result<(), Violation> {
        for (column, value) in self.spec.columns.iter().zip(row) {
            if column.not_null && value.is_none() {
                return Err(Violation::NotNull {
                    table: self.spec.name.clone(),
                    column: column.name.clone(),
                });
            }
        }
        for (key, index) in self.spec.keys.iter().zip(&self.indexes) {
            let taken = self.index_key(&key.columns, row).and_then(|key| index.get(&key));
            if taken.is_some_and(|taken| Some(*taken) != id) {
                return Err(Violation::Unique {
                    table: self.spec.name.clone(),
                    columns: key.columns.clone(),
                });
            }
        }
        Ok(())
    }

    fn place(&mut self, id: RowId, row: ModelRow) {
        for number in 0..self.indexes.len() {
            if let Some(key) = self.key_of(number, &row)
                && let Some(index) = self.indexes.get_mut(number)
            {
                index.insert(key, id);
            }
        }
        self.rows.insert(id, row);
    }

    fn take(&mut self, id: RowId) -> Option<ModelRow> {
        let row = self.rows.remove(&id)?;
        for number in 0..self.indexes.len() {
            if let Some(key) = self.key_of(number, &row)
                && let Some(index) = self.indexes.get_mut(number)
            {
                index.remove(&key);
            }
        }
        Some(row)
    }

    fn key_of(&self, number: usize, row: &ModelRow) -> Option<ModelRow> {
        let key = self.spec.keys.get(number)?;
        self.index_key(&key.columns, row)
    }

    fn index_key(&self, columns: &[usize], row: &ModelRow) -> Option<ModelRow> {
        columns
            .iter()
            .map(|column| {
                let value = row.get(*column).cloned().flatten()?;
                Some(Some(self.fold(*column, value)))
            })
            .collect()
    }

    /// The form of a value in which equality is equality of bytes.
    fn fold(&self, column: usize, mut value: Vec<u8>) -> Vec<u8> {
        if self.spec.columns.get(column).is_some_and(|c| c.case_insensitive) {
            value.make_ascii_lowercase();
        }
        value
    }

    fn find(&self, wanted: &[(usize, ModelValue)]) -> Vec<RowId> {
        for (key, index) in self.spec.keys.iter().zip(&self.indexes) {
            let values: Option<ModelRow> = key
                .columns
                .iter()
                .map(|column| {
                    let (_, value) = wanted.iter().find(|(other, _)| other == column)?;
                    Some(Some(self.fold(*column, value.clone()?)))
                })
                .collect();
            if let Some(values) = values {
                let found = index.get(&values).copied();
                return found
                    .filter(|id| self.rows.get(id).is_some_and(|row| self.matches(row, wanted)))
                    .into_iter()
                    .collect();
            }
        }
        let equal = self.rows.iter().filter(|(_, row)| self.matches(row, wanted));
        let mut equal: Vec<_> = equal.collect();
        equal.sort_by_key(|(_, row)| {
            wanted
                .iter()
                .any(|(column, value)| row.get(*column) != Some(value))
        });
        equal.into_iter().map(|(id, _)| *id).collect()
    }

    fn matches(&self, row: &ModelRow, wanted: &[(usize, ModelValue)]) -> bool {
        let folded = |column: usize, value: &ModelValue| value.clone().map(|v| self.fold(column, v));
        wanted.iter().all(|(column, value)| {
            row.get(*column)
                .is_some_and(|held| folded(*column, held) == folded(*column, value))
        })
    }
}

fn overwrite(row: &mut ModelRow, values: &[(usize, ModelValue)]) {
    for (column, value) in values {
        if let Some(slot) = row.get_mut(*column) {
            slot.clone_from(value);
        }
    }
}

fn missing(table: &TableName) -> Violation {
    Violation::Missing { table: table.clone() }
}

#[cfg(test)]
mod tests {
    use super::super::schema::ColumnSpec;
    use super::*;

    fn value(text: &str) -> ModelValue {
        Some(text.as_bytes().to_vec())
    }

    fn database() -> (ModelDatabase, TableName, TableName) {
        let parent = TableName::new("m", "parent");
        let child = TableName::new("m", "child");
        let specs = [
            TableSpec::new(
                parent.clone(),
                vec![ColumnSpec::int("id").not_null(), ColumnSpec::text("code")],
            )
            .primary_key([0])
            .unique([1]),
            TableSpec::new(
                child.clone(),
                vec![ColumnSpec::int("id").not_null(), ColumnSpec::int("parent")],
            )
            .primary_key([0])
            .references([1], &parent, [0]),
        ];
        (ModelDatabase::new(specs, true), parent, child)
    }

    #[test]
    fn constraints_are_checked_and_a_failed_statement_leaves_nothing() {
        let (mut db, parent, child) = database();
        let one = db
            .statement(|db| db.insert(&parent, &[(0, value("1")), (1, value("a"))]))
            .expect("free");
        let twice = db.statement(|db| {
            db.insert(&parent, &[(0, value("2")), (1, value("b"))])?;
            db.insert(&parent, &[(0, value("3")), (1, value("a"))])
        });
        assert!(matches!(twice, Err(Violation::Unique { .. })), "{twice:?}");
        assert_eq!(db.rows(&parent).count(), 1);
        let orphan = db.statement(|db| db.insert(&child, &[(0, value("1")), (1, value("9"))]));
        assert!(matches!(orphan, Err(Violation::ForeignKey { .. })), "{orphan:?}");
        db.statement(|db| db.insert(&child, &[(0, value("1")), (1, value("1"))]))
            .expect("has a parent");
        assert!(db.statement(|db| db.delete(&parent, one)).is_err());
        assert!(
            db.statement(|db| db.truncate(std::slice::from_ref(&parent)))
                .is_err()
        );
        db.statement(|db| db.truncate(&[parent.clone(), child.clone()]))
            .expect("both");
    }

    #[test]
    fn nulls_never_collide_and_undo_restores_rows_and_indexes() {
        let (mut db, parent, child) = database();
        let id = db.insert(&parent, &[(0, value("1"))]).expect("free");
        db.insert(&parent, &[(0, value("2"))])
            .expect("NULL code is no code");
        db.commit();
        let before = db.contents();
        let savepoint = db.savepoint();
        db.update(&parent, id, &[(0, value("7")), (1, value("x"))])
            .expect("free");
        db.truncate(&[parent.clone(), child]).expect("both");
        db.roll_back_to(savepoint);
        assert_eq!(db.contents(), before);
        assert_eq!(db.find(&parent, &[(0, value("1"))]), vec![id]);
        assert!(db.find(&parent, &[(0, value("7"))]).is_empty());
    }

    #[test]
    fn of_equal_rows_the_same_one_is_found_first() {
        let table = TableName::new("m", "keyless");
        let mut column = ColumnSpec::text("name");
        column.case_insensitive = true;
        let mut db = ModelDatabase::new([TableSpec::new(table.clone(), vec![column])], false);
        let upper = db.insert(&table, &[(0, value("A"))]).expect("no key");
        let lower = db.insert(&table, &[(0, value("a"))]).expect("no key");
        assert_eq!(db.find(&table, &[(0, value("a"))]), vec![lower, upper]);
        assert_eq!(db.find(&table, &[(0, value("A"))]), vec![upper, lower]);
    }
}
