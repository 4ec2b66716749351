//! Random histories: tables, what the log says of them, a target with facts of its own, and transactions.
//!
//! Transactions are lists of [`Action`]s, plain numbers whose meaning the tables and rows of the moment give.
//! What a constraint refuses does not happen, so every history is valid statement by statement; any list of
//! actions is a history, so failing ones can be shrunk.

use super::capture::{Capture, OldImages, SourceDatabase, SourceTable, Statement};
use super::model::{Contents, ModelDatabase, ModelRow, ModelValue};
use super::rng::Rng;
use super::schema::{ColumnSpec, TableSpec};
use crate::model::{DataType, Identity, TableName};

/// Which peculiarities a history may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryOptions {
    /// foreign keys on the source; the target checks them or not
    pub foreign_keys: bool,
    /// tables without key
    pub keyless: bool,
    /// identities other than the primary key
    pub other_identities: bool,
    /// a second unique constraint
    pub second_unique: bool,
    /// key columns in which `a` equals `A`
    pub case_insensitive: bool,
    /// columns that only the target has
    pub extra_columns: bool,
    /// columns that the target computes
    pub generated: bool,
    /// triggers on the target, and targets without keys, without primary keys or marked as ordered
    pub odd_targets: bool,
    /// foreign keys checked on the target
    pub foreign_keys_checked: bool,
    /// TRUNCATE
    pub truncate: bool,
    /// differences instead of values
    pub patches: bool,
}

impl HistoryOptions {
    /// Everything.
    pub const ALL: Self = Self {
        foreign_keys: true,
        keyless: true,
        other_identities: true,
        second_unique: true,
        case_insensitive: true,
        extra_columns: true,
        generated: true,
        odd_targets: true,
        foreign_keys_checked: true,
        truncate: true,
        patches: true,
    };

    /// What net windows can carry: primary keys, and nothing on the target that sees states in between.
    pub const WINDOWS: Self = Self {
        keyless: false,
        other_identities: false,
        extra_columns: false,
        odd_targets: false,
        foreign_keys_checked: false,
        patches: false,
        ..Self::ALL
    };
}

/// A step of a transaction; see the module page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// what to do
    pub kind: u8,
    /// to which table
    pub table: u8,
    /// to which row
    pub row: u8,
    /// with which values
    pub value: u32,
}

/// `txns` transactions of up to `most` actions each.
pub fn random_actions(rng: &mut Rng, txns: usize, most: usize) -> Vec<Vec<Action>> {
    (0..txns)
        .map(|_| {
            let count = 1 + rng.below(most);
            (0..count).map(|_| random_action(rng)).collect()
        })
        .collect()
}

fn random_action(rng: &mut Rng) -> Action {
    let bits = rng.next_u64();
    Action {
        kind: bits as u8,
        table: (bits >> 8) as u8,
        row: (bits >> 16) as u8,
        value: (bits >> 32) as u32,
    }
}

/// A source with its log and states, and the target it is replicated to, both starting from the same rows.
#[derive(Debug, Clone)]
pub struct History {
    /// the source; state 0 is what the target starts from
    pub source: SourceDatabase,
    /// the target as it starts
    pub target: ModelDatabase,
    /// target tables that are known to be applied in order
    pub marked_ordered: Vec<TableName>,
}

impl History {
    /// The history that `seed` and `txns` determine.
    pub fn new(seed: u64, options: HistoryOptions, txns: &[Vec<Action>]) -> Self {
        let mut rng = Rng::new(seed);
        let tables = source_tables(&mut rng, &options);
        let mut source = SourceDatabase::new(tables);
        for actions in random_actions(&mut rng, 4, 8) {
            Script::new(&mut source, &options).run(&actions);
        }
        source.forget_log();
        let (target, marked_ordered) = target_database(&mut rng, &options, &source);
        for (number, actions) in txns.iter().enumerate() {
            Script::new(&mut source, &options).run(actions);
            source.commit(1_000_000 * (number as i64 + 1));
        }
        Self {
            source,
            target,
            marked_ordered,
        }
    }

    /// Compares what a target holds with the source after `txns` of its transactions, in the columns that the
    /// source sends and the target can write.
    ///
    /// # Errors
    /// Names the first table that differs, with both contents.
    pub fn compare(&self, target: &Contents, txns: usize) -> Result<(), String> {
        let state = self
            .source
            .state(txns)
            .ok_or_else(|| format!("no state after {txns} transactions"))?;
        for table in self.source.tables() {
            let name = &table.spec.name;
            let Some(spec) = self.target.spec(name) else {
                return Err(format!("{name}: not on the target"));
            };
            let shared: Vec<(usize, usize)> = (table.spec.columns.iter().enumerate())
                .filter_map(|(number, column)| {
                    let found = spec.columns.iter().position(|c| c.name == column.name)?;
                    let writable = spec.columns.get(found)?.generated_from.is_none();
                    writable.then_some((number, found))
                })
                .collect();
            let project = |rows: Option<&Vec<ModelRow>>, pick: &dyn Fn(&(usize, usize)) -> usize| {
                let rows = rows.into_iter().flatten();
                let mut rows: Vec<ModelRow> = rows
                    .map(|row| {
                        let cell = |pair| row.get(pick(pair)).cloned().flatten();
                        shared.iter().map(cell).collect()
                    })
                    .collect();
                rows.sort();
                rows
            };
            let expected = project(state.get(name), &|pair| pair.0);
            let found = project(target.get(name), &|pair| pair.1);
            if expected != found {
                return Err(format!(
                    "{name} after {txns} transactions:\n  source {expected:?}\n  target {found:?}"
                ));
            }
        }
        Ok(())
    }
}

fn source_tables(rng: &mut Rng, options: &HistoryOptions) -> Vec<SourceTable> {
    let mut tables: Vec<SourceTable> = Vec::new();
    for number in 0..2 + rng.below(2) {
        let name = TableName::new("h", format!("t{number}"));
        let mut columns = vec![ColumnSpec::int("k1").not_null()];
        let mut key = vec![0];
        if rng.percent(40) {
            let mut second = ColumnSpec::text("k2").not_null();
            second.case_insensitive = options.case_insensitive && rng.percent(30);
            columns.push(second);
            // The order of a key's columns need not be that of the table's.
            key.insert(rng.below(2), 1);
        }
        let unique = columns.len();
        let mut code = ColumnSpec::int("u");
        code.not_null = rng.percent(50);
        columns.push(code);
        columns.push(ColumnSpec::text("a"));
        columns.push(ColumnSpec::text("big"));
        columns.push(ColumnSpec::new("n", DataType::Decimal { precision: None }));
        columns.push(ColumnSpec::new("b", DataType::Bool));
        let mut spec = TableSpec::new(name, columns);
        if !(options.keyless && rng.percent(12)) {
            spec = spec.primary_key(key);
            if options.second_unique && rng.percent(60) {
                spec = spec.unique([unique]);
            }
        }
        if options.foreign_keys && rng.percent(60) {
            spec = with_parent(rng, spec, &tables);
        }
        tables.push(captured(rng, options, spec));
    }
    tables
}

fn with_parent(rng: &mut Rng, mut spec: TableSpec, earlier: &[SourceTable]) -> TableSpec {
    let parents: Vec<&TableSpec> = earlier
        .iter()
        .map(|table| &table.spec)
        .filter(|spec| spec.primary_columns() == [0])
        .collect();
    let Some(parent) = parents.get(rng.below(parents.len())) else {
        return spec;
    };
    spec.columns.push(ColumnSpec::int("p"));
    let column = spec.columns.len() - 1;
    spec.references([column], &parent.name, [0])
}

fn captured(rng: &mut Rng, options: &HistoryOptions, spec: TableSpec) -> SourceTable {
    let mut table = SourceTable::new(spec);
    let second = table.spec.keys.get(1).map(|key| key.columns.clone());
    let all_not_null = |columns: &[usize]| {
        let mut columns = columns
            .iter()
            .filter_map(|column| table.spec.columns.get(*column));
        columns.all(|column| column.not_null)
    };
    match second.filter(|columns| all_not_null(columns)) {
        Some(columns) if options.other_identities && rng.percent(30) => table.identity_columns = columns,
        _ if options.other_identities && rng.percent(25) => {
            table.identity = Identity::Full;
            table.identity_columns.clear();
        }
        _ => {}
    }
    let always = rng.percent(40);
    table.capture = Capture {
        old_images: if always {
            OldImages::Always
        } else {
            OldImages::WhenIdentityChanges
        },
        skips_unchanged: rng.percent(60),
        minimal: always && rng.percent(40),
        patches: options.patches && rng.percent(15),
    };
    table
}

/// The target's tables, which differ from the source's where nothing forbids it, with the source's rows.
fn target_database(
    rng: &mut Rng,
    options: &HistoryOptions,
    source: &SourceDatabase,
) -> (ModelDatabase, Vec<TableName>) {
    let mut marked = Vec::new();
    let mut orders: Vec<Vec<usize>> = Vec::new();
    let mut specs: Vec<TableSpec> = Vec::new();
    for table in source.tables() {
        let mut spec = table.spec.clone();
        let column = |name: &str| spec.columns.iter().position(|column| column.name == name);
        if let (true, Some(computed), from) =
            (options.generated && rng.percent(25), column("a"), column("big"))
            && let Some(column) = spec.columns.get_mut(computed)
        {
            column.generated_from = from;
        }
        if options.extra_columns && rng.percent(30) {
            let mut extra = ColumnSpec::text("extra");
            extra.default = Some(b"default".to_vec());
            spec.columns.push(extra);
        }
        if options.odd_targets {
            spec.trigger = rng.percent(15);
            if rng.percent(8) {
                spec.keys.clear();
            }
            // What is left may hold NULL, and then locates no row.
            if rng.percent(10) {
                spec.keys.retain(|key| !key.primary);
            }
            if rng.percent(8) {
                marked.push(spec.name.clone());
            }
        }
        let mut order: Vec<usize> = (0..spec.columns.len()).collect();
        rng.shuffle(&mut order);
        specs.push(spec);
        orders.push(order);
    }
    let reordered = specs.iter().map(|spec| reorder(spec, &specs, &orders));
    let checked = options.foreign_keys_checked && rng.percent(50);
    let mut db = ModelDatabase::new(reordered, checked);
    for (spec, order) in specs.iter().zip(&orders) {
        for (id, row) in source.model().rows(&spec.name) {
            let mut values: Vec<(usize, ModelValue)> = (order.iter().enumerate())
                .filter_map(|(place, original)| Some((place, row.get(*original)?.clone())))
                .collect();
            // What only the target knows must survive. Not where rows may be equal in all that the source knows: which
            // of them a change hits is the server's choice.
            let told_apart = source
                .model()
                .spec(&spec.name)
                .is_some_and(|spec| !spec.keys.is_empty());
            if let Some(extra) = order.iter().position(|original| *original >= row.len())
                && rng.percent(60)
                && told_apart
            {
                values.push((extra, Some(format!("local {id}").into_bytes())));
            }
            // Rows that stand on the source stand here: the same constraints hold.
            let _ = db.insert(&spec.name, &values);
        }
    }
    db.commit();
    (db, marked)
}

/// `spec` with its columns in the order of the target; what refers to columns follows.
fn reorder(spec: &TableSpec, specs: &[TableSpec], orders: &[Vec<usize>]) -> TableSpec {
    let order_of = |name: &TableName| {
        let number = specs.iter().position(|spec| spec.name == *name);
        number.and_then(|number| orders.get(number))
    };
    let moved = |name: &TableName, column: usize| {
        let place = order_of(name).and_then(|order| order.iter().position(|original| *original == column));
        place.unwrap_or(column)
    };
    let mut result = spec.clone();
    if let Some(order) = order_of(&spec.name) {
        result.columns = order
            .iter()
            .filter_map(|original| spec.columns.get(*original).cloned())
            .collect();
    }
    for column in &mut result.columns {
        column.generated_from = column.generated_from.map(|from| moved(&spec.name, from));
    }
    for key in &mut result.keys {
        key.columns
            .iter_mut()
            .for_each(|column| *column = moved(&spec.name, *column));
    }
    for key in &mut result.foreign_keys {
        key.columns
            .iter_mut()
            .for_each(|column| *column = moved(&spec.name, *column));
        let parent = key.parent.clone();
        key.parent_columns
            .iter_mut()
            .for_each(|column| *column = moved(&parent, *column));
    }
    result
}

/// Interprets actions against the source of the moment.
struct Script<'a> {
    source: &'a mut SourceDatabase,
    options: &'a HistoryOptions,
}

impl<'a> Script<'a> {
    fn new(source: &'a mut SourceDatabase, options: &'a HistoryOptions) -> Self {
        Self { source, options }
    }

    fn run(&mut self, actions: &[Action]) {
        for action in actions {
            self.act(*action);
        }
    }

    fn act(&mut self, action: Action) {
        let table = usize::from(action.table) % self.source.tables().len();
        let mut rng = Rng::new(u64::from(action.value));
        match action.kind % 22 {
            0..=5 => {
                self.insert(table, &mut rng);
            }
            6..=9 => self.update(table, action.row, &mut rng),
            10 => self.change_key(table, action.row, &mut rng),
            11 | 12 => {
                self.delete(table, action.row);
            }
            13 => self.swap_unique(table, action.row, &mut rng),
            14 => self.come_and_go(table, &mut rng),
            15 => self.replace(table, action.row, &mut rng),
            16 if self.options.truncate && rng.percent(40) => self.truncate(table),
            16 | 17 => self.roll_back_some(table, action.row, &mut rng),
            18 => self.grow(table, action.row, &mut rng),
            20 => self.sweep(table, &mut rng),
            21 => self.clear(table, &mut rng),
            _ if rng.percent(10) => self.source.message(),
            _ if self.spec(table).is_some_and(|spec| spec.keys.is_empty()) => self.repeat(table, action.row),
            _ => self.touch(table, action.row),
        }
    }

    /// Runs a statement; what a constraint refuses has not happened.
    fn execute(&mut self, statement: &Statement) -> bool {
        self.source.execute(statement).is_ok()
    }

    fn spec(&self, table: usize) -> Option<&TableSpec> {
        self.source.tables().get(table).map(|table| &table.spec)
    }

    fn row(&self, table: usize, row: u8) -> Option<ModelRow> {
        let name = &self.spec(table)?.name;
        let rows: Vec<&ModelRow> = self.source.model().rows(name).map(|(_, row)| row).collect();
        rows.get(usize::from(row) % rows.len().max(1))
            .map(|row| (*row).clone())
    }

    fn random_row(&self, table: usize, rng: &mut Rng) -> ModelRow {
        let columns = self.spec(table).map_or(&[][..], |spec| spec.columns.as_slice());
        columns.iter().map(|column| random_value(column, rng)).collect()
    }

    fn random_set(&self, table: usize, rng: &mut Rng, key: bool) -> Vec<(usize, ModelValue)> {
        let Some(spec) = self.spec(table) else {
            return Vec::new();
        };
        let candidates: Vec<usize> = (0..spec.columns.len())
            .filter(|column| spec.primary_columns().contains(column) == key)
            .collect();
        let count = if key { 1 } else { 1 + rng.below(2) };
        (0..count)
            .filter_map(|_| {
                let column = *candidates.get(rng.below(candidates.len()))?;
                Some((column, random_value(spec.columns.get(column)?, rng)))
            })
            .collect()
    }

    fn insert(&mut self, table: usize, rng: &mut Rng) -> Option<ModelRow> {
        let row = self.random_row(table, rng);
        let inserted = self.execute(&Statement::Insert {
            table,
            row: row.clone(),
        });
        inserted.then_some(row)
    }

    fn set(&mut self, table: usize, row: &ModelRow, set: Vec<(usize, ModelValue)>) -> Option<ModelRow> {
        let mut changed = row.clone();
        for (column, value) in &set {
            if let Some(slot) = changed.get_mut(*column) {
                slot.clone_from(value);
            }
        }
        let key = whole_row(row);
        self.execute(&Statement::Update { table, key, set })
            .then_some(changed)
    }

    fn update(&mut self, table: usize, row: u8, rng: &mut Rng) {
        if let Some(row) = self.row(table, row) {
            let set = self.random_set(table, rng, false);
            self.set(table, &row, set);
        }
    }

    fn change_key(&mut self, table: usize, row: u8, rng: &mut Rng) {
        if let Some(row) = self.row(table, row) {
            let mut set = self.random_set(table, rng, true);
            if rng.percent(50) {
                set.extend(self.random_set(table, rng, false));
            }
            self.set(table, &row, set);
        }
    }

    fn delete(&mut self, table: usize, row: u8) -> Option<ModelRow> {
        let row = self.row(table, row)?;
        let key = whole_row(&row);
        self.execute(&Statement::Delete { table, key }).then_some(row)
    }

    /// Two rows exchange their unique values by way of a third.
    fn swap_unique(&mut self, table: usize, row: u8, rng: &mut Rng) {
        let column = self
            .spec(table)
            .and_then(|spec| spec.columns.iter().position(|column| column.name == "u"));
        let (Some(column), Some(one), Some(other)) = (
            column,
            self.row(table, row),
            self.row(table, rng.next_u64() as u8),
        ) else {
            return;
        };
        let (Some(first), Some(second)) = (one.get(column).cloned(), other.get(column).cloned()) else {
            return;
        };
        if one == other {
            return;
        }
        let free = Some(format!("{}", 1000 + rng.below(1000)).into_bytes());
        if let Some(moved) = self.set(table, &one, vec![(column, free)]) {
            self.set(table, &other, vec![(column, first)]);
            self.set(table, &moved, vec![(column, second)]);
        }
    }

    fn come_and_go(&mut self, table: usize, rng: &mut Rng) {
        let Some(mut row) = self.insert(table, rng) else {
            return;
        };
        if rng.percent(70) {
            let set = self.random_set(table, rng, false);
            row = self.set(table, &row, set).unwrap_or(row);
        }
        self.execute(&Statement::Delete {
            table,
            key: whole_row(&row),
        });
        if rng.percent(30) {
            self.execute(&Statement::Insert { table, row });
        }
    }

    /// A row goes and another comes in its place.
    fn replace(&mut self, table: usize, row: u8, rng: &mut Rng) {
        let Some(old) = self.delete(table, row) else {
            return;
        };
        let mut row = self.random_row(table, rng);
        let key: Vec<usize> = self
            .spec(table)
            .map(|spec| spec.primary_columns().to_vec())
            .unwrap_or_default();
        for column in key {
            if let (Some(slot), Some(value)) = (row.get_mut(column), old.get(column)) {
                slot.clone_from(value);
            }
        }
        self.execute(&Statement::Insert { table, row });
    }

    fn truncate(&mut self, table: usize) {
        let all: Vec<usize> = (0..self.source.tables().len()).collect();
        if !self.execute(&Statement::Truncate(vec![table])) {
            self.execute(&Statement::Truncate(all));
        }
    }

    fn roll_back_some(&mut self, table: usize, row: u8, rng: &mut Rng) {
        let savepoint = self.source.savepoint();
        self.update(table, row, rng);
        self.insert(table, rng);
        self.delete(table, row);
        if rng.percent(80) {
            self.source.roll_back_to(savepoint);
        }
    }

    /// A text becomes longer.
    fn grow(&mut self, table: usize, row: u8, rng: &mut Rng) {
        let column = self
            .spec(table)
            .and_then(|spec| spec.columns.iter().position(|column| column.name == "big"));
        let (Some(column), Some(row)) = (column, self.row(table, row)) else {
            return;
        };
        if let Some(Some(text)) = row.get(column) {
            let longer = [text.as_slice(), b"+", &[b'a' + rng.below(26) as u8]].concat();
            self.set(table, &row, vec![(column, Some(longer))]);
        }
    }

    /// One statement that changes every row.
    fn sweep(&mut self, table: usize, rng: &mut Rng) {
        let set = self.random_set(table, rng, false);
        for row in self.all_rows(table) {
            self.set(table, &row, set.clone());
        }
    }

    /// One statement that deletes most rows, and perhaps one that brings others.
    fn clear(&mut self, table: usize, rng: &mut Rng) {
        for row in self.all_rows(table) {
            if rng.percent(70) {
                self.execute(&Statement::Delete {
                    table,
                    key: whole_row(&row),
                });
            }
        }
        for _ in 0..rng.below(8) {
            self.insert(table, rng);
        }
    }

    fn all_rows(&self, table: usize) -> Vec<ModelRow> {
        let name = self.spec(table).map(|spec| &spec.name);
        let rows = name.into_iter().flat_map(|name| self.source.model().rows(name));
        rows.map(|(_, row)| row.clone()).collect()
    }

    /// A second row that is the same.
    fn repeat(&mut self, table: usize, row: u8) {
        if let Some(row) = self.row(table, row) {
            self.execute(&Statement::Insert { table, row });
        }
    }

    /// An update that changes nothing.
    fn touch(&mut self, table: usize, row: u8) {
        if let Some(row) = self.row(table, row)
            && let Some(first) = row.first().cloned()
        {
            self.set(table, &row, vec![(0, first)]);
        }
    }
}

fn whole_row(row: &ModelRow) -> Vec<(usize, ModelValue)> {
    row.iter().cloned().enumerate().collect()
}

/// Values from small sets, so that keys meet.
fn random_value(column: &ColumnSpec, rng: &mut Rng) -> ModelValue {
    if !column.not_null && rng.percent(15) {
        return None;
    }
    let pick = |rng: &mut Rng, texts: &[&str]| texts.get(rng.below(texts.len())).map(|t| t.to_string());
    let text = match (column.name.as_str(), &column.data_type) {
        ("k2", _) => pick(rng, &["a", "A", "b", "B", "c", "", "a'b\\"]),
        ("big", _) if rng.percent(80) => {
            let letter = pick(rng, &["x", "y", "z"]);
            letter.map(|letter| letter.repeat(24 + rng.below(3)))
        }
        (_, DataType::Int { .. }) => Some(rng.below(12).to_string()),
        (_, DataType::Bool) => pick(rng, &["t", "f"]),
        (_, DataType::Decimal { .. }) => pick(rng, &["0", "1.50", "-2", "12345678901234567890.1"]),
        _ => pick(rng, &["", "p", "q", "Grüße", "\t\n"]),
    };
    text.map(String::into_bytes)
}
