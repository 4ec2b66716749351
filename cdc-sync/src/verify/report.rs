//! What a verify found, in the shape of its JSON.

use cdc_core::{Position, TableName};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// How many differing rows of a table are named.
pub const NAMED_KEYS: usize = 100;

/// How the two views came to show the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Alignment {
    /// The running instance stood still at the source view's position.
    Running,
    /// No instance ran; the log between the checkpoint and the source view was read.
    Stopped,
    /// There is no stream: two databases compared as they were.
    None,
}

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DifferenceKind {
    /// Only the source has it.
    Missing,
    /// Only the target has it.
    Extra,
    /// Both have its key, with other values.
    Different,
}

/// The key columns of a row and their text, in key order; of a table without key, all columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowKey(pub Vec<(String, Option<String>)>);

impl Serialize for RowKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (column, text) in &self.0 {
            map.serialize_entry(column, text)?;
        }
        map.end()
    }
}

/// The comparison of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableReport {
    /// the table
    #[serde(serialize_with = "full_name")]
    pub name: TableName,
    /// rows read from the source
    pub source_rows: u64,
    /// rows read from the target
    pub target_rows: u64,
    /// rows that only the source has
    pub missing: u64,
    /// rows that only the target has
    pub extra: u64,
    /// rows that have the same key and other values
    pub different: u64,
    /// the first differing rows, at most [`NAMED_KEYS`]
    pub keys: Vec<RowKey>,
    /// what is wrong with each of `keys`
    pub kinds: Vec<DifferenceKind>,
    /// why the table could not be compared, or not to the end
    pub unverifiable: Option<String>,
}

fn full_name<S: Serializer>(name: &TableName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

impl TableReport {
    /// A table with nothing found yet.
    pub fn new(name: TableName) -> Self {
        Self {
            name,
            source_rows: 0,
            target_rows: 0,
            missing: 0,
            extra: 0,
            different: 0,
            keys: Vec::new(),
            kinds: Vec::new(),
            unverifiable: None,
        }
    }

    /// A table that cannot be compared.
    pub fn unverifiable(name: TableName, reason: impl Into<String>) -> Self {
        Self {
            unverifiable: Some(reason.into()),
            ..Self::new(name)
        }
    }

    /// Rows that differ in any way.
    pub fn differences(&self) -> u64 {
        self.missing + self.extra + self.different
    }

    /// Counts a differing row; `key` is asked for only while rows are still named.
    pub(super) fn count(&mut self, kind: DifferenceKind, key: impl FnOnce() -> RowKey) {
        match kind {
            DifferenceKind::Missing => self.missing += 1,
            DifferenceKind::Extra => self.extra += 1,
            DifferenceKind::Different => self.different += 1,
        }
        if self.keys.len() < NAMED_KEYS {
            self.keys.push(key());
            self.kinds.push(kind);
        }
    }
}

/// The comparison of all tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// how the two views came to show the same moment
    pub alignment: Alignment,
    /// the source's position that was compared, where there is one
    #[serde(serialize_with = "position_text")]
    pub position: Option<Position>,
    /// what the reader should know about the comparison as a whole
    pub notes: Vec<String>,
    /// the tables, by name
    pub tables: Vec<TableReport>,
    /// rows that differ, over all tables
    pub differences: u64,
    /// tables that could not be compared
    pub unverifiable: u64,
}

fn position_text<S: Serializer>(position: &Option<Position>, serializer: S) -> Result<S::Ok, S::Error> {
    match position {
        Some(position) => serializer.serialize_str(position.as_str()),
        None => serializer.serialize_none(),
    }
}

impl VerifyReport {
    /// Adds up `tables`.
    pub(super) fn new(
        alignment: Alignment,
        position: Option<Position>,
        notes: Vec<String>,
        mut tables: Vec<TableReport>,
    ) -> Self {
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            alignment,
            position,
            notes,
            differences: tables.iter().map(TableReport::differences).sum(),
            unverifiable: tables.iter().filter(|table| table.unverifiable.is_some()).count() as u64,
            tables,
        }
    }

    /// The exit code: 5 with differences, else 10 with something not compared, else 0.
    pub fn exit_code(&self) -> u8 {
        match (self.differences, self.unverifiable) {
            (0, 0) => 0,
            (0, _) => 10,
            _ => 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_promised_shape() {
        let mut table = TableReport::new(TableName::new("public", "t"));
        table.source_rows = 2;
        table.target_rows = 1;
        table.count(DifferenceKind::Missing, || {
            RowKey(vec![("b".into(), Some("1".into())), ("a".into(), None)])
        });
        let report = VerifyReport::new(
            Alignment::Running,
            Some(Position::new("0/10")),
            Vec::new(),
            vec![
                table,
                TableReport::unverifiable(TableName::new("a", "x"), "not on the target"),
            ],
        );
        assert_eq!(report.exit_code(), 5);
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            concat!(
                r#"{"alignment":"running","position":"0/10","notes":[],"tables":["#,
                r#"{"name":"a.x","source_rows":0,"target_rows":0,"missing":0,"extra":0,"different":0,"keys":[],"#,
                r#""kinds":[],"unverifiable":"not on the target"},"#,
                r#"{"name":"public.t","source_rows":2,"target_rows":1,"missing":1,"extra":0,"different":0,"#,
                r#""keys":[{"b":"1","a":null}],"kinds":["missing"],"unverifiable":null}],"#,
                r#""differences":1,"unverifiable":1}"#
            )
        );
    }

    #[test]
    fn only_the_first_keys_are_named() {
        let mut table = TableReport::new(TableName::new("public", "t"));
        for _ in 0..1000 {
            table.count(DifferenceKind::Extra, || RowKey(Vec::new()));
        }
        assert_eq!(
            (table.extra, table.keys.len(), table.kinds.len()),
            (1000, 100, 100)
        );
    }
}
