//! A source database: runs statements on a model and captures what its log says of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::change::{OldImage, SourceCell, SourceChange, SourceTxn};
use super::model::{Contents, ModelDatabase, ModelRow, ModelValue, RowId, Violation};
use super::schema::{CellFormat, TableSpec};
use crate::batch::Op;
use crate::model::{DataType, Identity, TableName, TableRole, TableSchema, TxnKind};

/// Offsets between transactions: between two there is room for idle positions.
const OFFSET_STEP: u64 = 10;

/// When a log holds the old image of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldImages {
    /// When a column of the identity changes.
    WhenIdentityChanges,
    /// Always.
    Always,
}

/// What a log holds of the changes of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capture {
    /// old images of updates
    pub old_images: OldImages,
    /// whether texts of an update that are long and unchanged are left out
    pub skips_unchanged: bool,
    /// whether unchanged columns of an update are not part of the new image; needs
    /// [`OldImages::Always`]
    pub minimal: bool,
    /// whether a text that only grew comes as a patch
    pub patches: bool,
}

impl Capture {
    /// New images whole, old images when the identity changes.
    pub const PLAIN: Self = Self {
        old_images: OldImages::WhenIdentityChanges,
        skips_unchanged: false,
        minimal: false,
        patches: false,
    };
}

/// Texts from this length on are left out when unchanged.
const LONG_TEXT: usize = 24;

/// A table of a source.
#[derive(Debug, Clone)]
pub struct SourceTable {
    /// the table
    pub spec: TableSpec,
    /// how old rows are identified
    pub identity: Identity,
    /// the identity's columns, for [`Identity::Key`]
    pub identity_columns: Vec<usize>,
    /// what it is to cdc-sync
    pub role: TableRole,
    /// what the log holds of its changes
    pub capture: Capture,
}

impl SourceTable {
    /// A user's table identified by its primary key, or by the whole row without one.
    pub fn new(spec: TableSpec) -> Self {
        let identity_columns = spec.primary_columns().to_vec();
        Self {
            identity: if identity_columns.is_empty() {
                Identity::Full
            } else {
                Identity::Key
            },
            identity_columns,
            role: TableRole::User,
            capture: Capture::PLAIN,
            spec,
        }
    }

    /// The table as its log describes it.
    pub fn schema(&self, format: &CellFormat) -> Arc<TableSchema> {
        let columns: &[usize] = match self.identity {
            Identity::Key => &self.identity_columns,
            Identity::Full | Identity::Nothing => &[],
        };
        self.spec.schema(self.identity, columns, self.role, format)
    }
}

/// A statement about one row, or the emptying of tables. Tables are numbers into the list of source tables;
/// `key` names exactly one row by values of some columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// INSERT of a whole row
    Insert {
        /// the table
        table: usize,
        /// one value per column
        row: ModelRow,
    },
    /// UPDATE of one row
    Update {
        /// the table
        table: usize,
        /// which row
        key: Vec<(usize, ModelValue)>,
        /// columns to set
        set: Vec<(usize, ModelValue)>,
    },
    /// DELETE of one row
    Delete {
        /// the table
        table: usize,
        /// which row
        key: Vec<(usize, ModelValue)>,
    },
    /// TRUNCATE
    Truncate(Vec<usize>),
}

/// A point of an open transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Savepoint {
    model: usize,
    changes: usize,
    statements: usize,
}

/// A source with its log and, for oracles, its contents after every transaction.
#[derive(Debug, Clone)]
pub struct SourceDatabase {
    model: ModelDatabase,
    tables: Vec<SourceTable>,
    txns: Vec<SourceTxn>,
    /// for each transaction what was executed
    statements: Vec<Vec<Statement>>,
    states: Vec<Contents>,
    pending: Vec<SourceChange>,
    pending_statements: Vec<Statement>,
    next_offset: u64,
}

impl SourceDatabase {
    /// An empty source, foreign keys checked.
    pub fn new(tables: Vec<SourceTable>) -> Self {
        let model = ModelDatabase::new(tables.iter().map(|table| table.spec.clone()), true);
        Self {
            states: vec![model.contents()],
            model,
            tables,
            txns: Vec::new(),
            statements: Vec::new(),
            pending: Vec::new(),
            pending_statements: Vec::new(),
            next_offset: OFFSET_STEP,
        }
    }

    /// Its tables.
    pub fn tables(&self) -> &[SourceTable] {
        &self.tables
    }

    /// Its tables as its log describes them.
    pub fn schemas(&self, format: &CellFormat) -> Vec<Arc<TableSchema>> {
        self.tables.iter().map(|table| table.schema(format)).collect()
    }

    /// Its rows.
    pub fn model(&self) -> &ModelDatabase {
        &self.model
    }

    /// Its committed transactions.
    pub fn txns(&self) -> &[SourceTxn] {
        &self.txns
    }

    /// The statements of each committed transaction, rolled back work left out: their keys are the whole rows,
    /// and they set each column once.
    pub fn statements(&self) -> &[Vec<Statement>] {
        &self.statements
    }

    /// Its contents after `txns` transactions.
    pub fn state(&self, txns: usize) -> Option<&Contents> {
        self.states.get(txns)
    }

    /// Runs a statement in the open transaction.
    ///
    /// # Errors
    /// When a constraint objects or the key names no row; the transaction is as before then.
    pub fn execute(&mut self, statement: &Statement) -> Result<(), Violation> {
        let mut executed = statement.clone();
        let change = match &mut executed {
            Statement::Insert { table, row } => self.insert(*table, row)?,
            Statement::Update { table, key, set } => {
                let id = self.locate(*table, key)?;
                *key = self.whole_row(*table, id)?;
                *set = last_of_each(set);
                self.update(*table, id, set)?
            }
            Statement::Delete { table, key } => {
                let id = self.locate(*table, key)?;
                *key = self.whole_row(*table, id)?;
                self.delete(*table, id)?
            }
            Statement::Truncate(tables) => {
                let names = tables
                    .iter()
                    .map(|table| self.name(*table))
                    .collect::<Result<Vec<_>, _>>()?;
                self.model.statement(|db| db.truncate(&names))?;
                SourceChange::Truncate(tables.clone())
            }
        };
        self.pending.push(change);
        self.pending_statements.push(executed);
        Ok(())
    }

    /// A point of the open transaction to return to.
    pub fn savepoint(&self) -> Savepoint {
        Savepoint {
            model: self.model.savepoint(),
            changes: self.pending.len(),
            statements: self.pending_statements.len(),
        }
    }

    /// Takes back everything since a savepoint; the log knows nothing of it.
    pub fn roll_back_to(&mut self, savepoint: Savepoint) {
        self.model.roll_back_to(savepoint.model);
        self.pending.truncate(savepoint.changes);
        self.pending_statements.truncate(savepoint.statements);
    }

    /// Adds a message to the open transaction.
    pub fn message(&mut self) {
        self.pending.push(SourceChange::Message);
    }

    /// Commits the open transaction and returns its offset; one without changes leaves no trace.
    pub fn commit(&mut self, commit_time_micros: i64) -> u64 {
        self.model.commit();
        if self.pending.is_empty() {
            return self.txns.last().map_or(0, |txn| txn.offset);
        }
        let offset = self.next_offset;
        self.next_offset += OFFSET_STEP;
        self.txns.push(SourceTxn {
            offset,
            kind: TxnKind::Log,
            commit_time_micros,
            changes: std::mem::take(&mut self.pending),
        });
        self.statements.push(std::mem::take(&mut self.pending_statements));
        self.states.push(self.model.contents());
        offset
    }

    /// Lets the log advance without a transaction for us; returns a position there.
    pub fn idle(&mut self) -> u64 {
        let offset = self.next_offset;
        self.next_offset += OFFSET_STEP;
        offset
    }

    /// The newest offset: everything up to it has been logged.
    pub fn log_end(&self) -> u64 {
        self.next_offset - OFFSET_STEP
    }

    /// Makes what is there the initial state: as if it had never been logged.
    pub fn forget_log(&mut self) {
        self.model.commit();
        self.pending.clear();
        self.pending_statements.clear();
        self.txns.clear();
        self.statements.clear();
        self.states = vec![self.model.contents()];
    }

    fn table(&self, table: usize) -> Result<&SourceTable, Violation> {
        self.tables
            .get(table)
            .ok_or_else(|| Violation::Unsupported(format!("no table number {table}")))
    }

    fn name(&self, table: usize) -> Result<TableName, Violation> {
        self.table(table).map(|table| table.spec.name.clone())
    }

    fn locate(&self, table: usize, key: &[(usize, ModelValue)]) -> Result<RowId, Violation> {
        let name = self.name(table)?;
        let found = self.model.find(&name, key);
        found.first().copied().ok_or(Violation::Missing { table: name })
    }

    fn whole_row(&self, table: usize, id: RowId) -> Result<Vec<(usize, ModelValue)>, Violation> {
        let row = self.row(&self.name(table)?, id)?;
        Ok(row.into_iter().enumerate().collect())
    }

    fn insert(&mut self, table: usize, row: &ModelRow) -> Result<SourceChange, Violation> {
        let name = self.name(table)?;
        let values: Vec<(usize, ModelValue)> = row.iter().cloned().enumerate().collect();
        let id = self.model.statement(|db| db.insert(&name, &values))?;
        let row = self.row(&name, id)?;
        Ok(SourceChange::Row {
            table,
            op: Op::Insert,
            before: None,
            after: Some(row.iter().map(whole).collect()),
        })
    }

    fn update(
        &mut self,
        table: usize,
        id: RowId,
        set: &[(usize, ModelValue)],
    ) -> Result<SourceChange, Violation> {
        let name = self.name(table)?;
        let old = self.row(&name, id)?;
        self.model.statement(|db| db.update(&name, id, set))?;
        let new = self.row(&name, id)?;
        let described = self.table(table)?;
        let identity_changed = described
            .identity_columns
            .iter()
            .any(|column| old.get(*column) != new.get(*column));
        let has_old = described.identity == Identity::Full
            || identity_changed
            || described.capture.old_images == OldImages::Always;
        let after = old
            .iter()
            .zip(&new)
            .enumerate()
            .map(|(column, (old, new))| described.new_cell(column, old, new, has_old));
        Ok(SourceChange::Row {
            table,
            op: Op::Update,
            after: Some(after.collect()),
            before: has_old.then(|| described.old_image(&old)),
        })
    }

    fn delete(&mut self, table: usize, id: RowId) -> Result<SourceChange, Violation> {
        let name = self.name(table)?;
        let old = self.row(&name, id)?;
        self.model.statement(|db| db.delete(&name, id))?;
        Ok(SourceChange::Row {
            table,
            op: Op::Delete,
            before: Some(self.table(table)?.old_image(&old)),
            after: None,
        })
    }

    fn row(&self, table: &TableName, id: RowId) -> Result<ModelRow, Violation> {
        self.model
            .row(table, id)
            .cloned()
            .ok_or_else(|| Violation::Missing { table: table.clone() })
    }
}

impl SourceTable {
    fn old_image(&self, row: &ModelRow) -> OldImage {
        let full = self.identity == Identity::Full;
        let cells = row.iter().enumerate().map(|(column, value)| {
            if full || self.identity_columns.contains(&column) {
                whole(value)
            } else {
                SourceCell::Absent
            }
        });
        OldImage {
            cells: cells.collect(),
            full,
        }
    }

    fn new_cell(&self, column: usize, old: &ModelValue, new: &ModelValue, has_old: bool) -> SourceCell {
        let changed = old != new;
        // Without an old image the new one has to carry the identity.
        let is_identity = self.identity_columns.contains(&column);
        if !changed && self.capture.minimal && has_old {
            return SourceCell::Absent;
        }
        let is_text = self
            .spec
            .columns
            .get(column)
            .is_some_and(|c| c.data_type == DataType::Text);
        if let (true, Some(old), Some(new)) = (is_text && !is_identity, old, new) {
            if !changed && self.capture.skips_unchanged && new.len() >= LONG_TEXT {
                return SourceCell::Unchanged;
            }
            if changed
                && self.capture.patches
                && let Some(suffix) = new.strip_prefix(old.as_slice())
            {
                return SourceCell::Patch(suffix.to_vec());
            }
        }
        whole(new)
    }
}

/// What remains of assignments of which a later one overwrites an earlier one.
fn last_of_each(set: &[(usize, ModelValue)]) -> Vec<(usize, ModelValue)> {
    let assignments: BTreeMap<usize, ModelValue> = set.iter().cloned().collect();
    assignments.into_iter().collect()
}

fn whole(value: &ModelValue) -> SourceCell {
    value.clone().map_or(SourceCell::Null, SourceCell::Value)
}
