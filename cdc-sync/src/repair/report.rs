//! What a repair did, in the shape of its JSON.

use cdc_core::TableName;
use serde::{Serialize, Serializer};

use super::Outcome;
use crate::verify::{Alignment, TableReport, VerifyReport};

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepairedTable {
    /// the table
    #[serde(serialize_with = "full_name")]
    pub name: TableName,
    /// rows that the target lacked and has now; before the repair, that it lacks
    pub inserted: u64,
    /// rows that had other values
    pub updated: u64,
    /// rows that the source does not have
    pub deleted: u64,
    /// rows that differ still
    pub remaining: u64,
    /// why the table, or a row of it, could not be compared or written
    pub unverifiable: Option<String>,
}

fn full_name<S: Serializer>(name: &TableName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

/// Rows written over all tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// inserted
    pub inserted: u64,
    /// updated
    pub updated: u64,
    /// deleted
    pub deleted: u64,
}

/// The repair of all tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// whether it only says what would be done
    pub dry_run: bool,
    /// how the first comparison came to show one moment
    pub alignment: Alignment,
    /// what the reader should know about it as a whole
    pub notes: Vec<String>,
    /// the tables, by name
    pub tables: Vec<RepairedTable>,
    /// rows written, or to be written, over all tables
    pub totals: Totals,
    /// rows that differ still, over all tables
    pub differences: u64,
    /// tables that could not be compared or written
    pub unverifiable: u64,
}

impl RepairReport {
    /// What would be done.
    pub fn planned(found: &VerifyReport) -> Self {
        let tables = found.tables.iter().map(|table| RepairedTable {
            name: table.name.clone(),
            inserted: table.missing,
            updated: table.different,
            deleted: table.extra,
            remaining: table.differences(),
            unverifiable: table.unverifiable.clone(),
        });
        Self::new(found, tables.collect())
    }

    /// What was done: `found` before, `after` of the tables that differed.
    pub(super) fn done(found: &VerifyReport, outcome: &Outcome, after: &VerifyReport) -> Self {
        let tables = found.tables.iter().map(|before| {
            let again = after.tables.iter().find(|table| table.name == before.name);
            let mended = outcome.mended.get(&before.name).copied().unwrap_or_default();
            let refused = outcome.refused.get(&before.name).cloned();
            RepairedTable {
                name: before.name.clone(),
                inserted: mended.inserted,
                updated: mended.updated,
                deleted: mended.deleted,
                remaining: again.map_or(0, TableReport::differences),
                unverifiable: refused
                    .or_else(|| again.unwrap_or(before).unverifiable.clone())
                    .or_else(|| before.unverifiable.clone().filter(|_| again.is_none())),
            }
        });
        let mut report = Self::new(found, tables.collect());
        let undone = report.tables.iter().filter(|table| {
            table.remaining > 0 && table.unverifiable.is_none() && outcome.mended.contains_key(&table.name)
        });
        let undone: Vec<String> = undone
            .map(|table| {
                format!(
                    "{} rows of {} differ still after they were written: a trigger of the target changes what is written, \
                     or someone else writes there",
                    table.remaining, table.name
                )
            })
            .collect();
        report.notes.extend(undone);
        report
    }

    fn new(found: &VerifyReport, tables: Vec<RepairedTable>) -> Self {
        let sum = |rows: fn(&RepairedTable) -> u64| tables.iter().map(rows).sum();
        Self {
            dry_run: false,
            alignment: found.alignment,
            notes: found.notes.clone(),
            totals: Totals {
                inserted: sum(|table| table.inserted),
                updated: sum(|table| table.updated),
                deleted: sum(|table| table.deleted),
            },
            differences: sum(|table| table.remaining),
            unverifiable: tables.iter().filter(|table| table.unverifiable.is_some()).count() as u64,
            tables,
        }
    }

    /// The exit code, as of `verify`: 5 with differences left, else 10 with something not compared, else 0.
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
    use cdc_core::repair::Mended;

    use super::*;

    fn found(table: TableReport) -> VerifyReport {
        VerifyReport {
            alignment: Alignment::Stopped,
            position: None,
            notes: Vec::new(),
            differences: table.differences(),
            unverifiable: 0,
            tables: vec![table],
        }
    }

    #[test]
    fn json_has_the_promised_shape() {
        let mut table = TableReport::new(TableName::new("s", "t"));
        (table.missing, table.extra, table.different) = (3, 2, 1);
        let before = found(table);
        let planned = RepairReport::planned(&before);
        assert_eq!((planned.exit_code(), planned.differences), (5, 6));
        let mut outcome = Outcome::default();
        outcome.mended.insert(
            TableName::new("s", "t"),
            Mended {
                inserted: 3,
                updated: 1,
                deleted: 2,
            },
        );
        let after = found(TableReport::new(TableName::new("s", "t")));
        let done = RepairReport::done(&before, &outcome, &after);
        assert_eq!(done.exit_code(), 0);
        assert_eq!(
            serde_json::to_string(&done).unwrap(),
            concat!(
                r#"{"dry_run":false,"alignment":"stopped","notes":[],"tables":[{"name":"s.t","inserted":3,"#,
                r#""updated":1,"deleted":2,"remaining":0,"unverifiable":null}],"#,
                r#""totals":{"inserted":3,"updated":1,"deleted":2},"differences":0,"unverifiable":0}"#
            )
        );
    }

    #[test]
    fn a_refused_table_is_told() {
        let mut table = TableReport::new(TableName::new("s", "t"));
        table.missing = 1;
        let before = found(table);
        let mut outcome = Outcome::default();
        outcome.refused.insert(TableName::new("s", "t"), "no".into());
        let done = RepairReport::done(&before, &outcome, &before);
        assert_eq!((done.exit_code(), done.unverifiable, done.differences), (5, 1, 1));
        assert_eq!(done.tables[0].unverifiable.as_deref(), Some("no"));
    }
}
