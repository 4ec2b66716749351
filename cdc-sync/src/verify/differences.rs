//! Which rows a comparison found to differ: all of them, for a repair to look at again.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use cdc_core::compare::RowText;
use cdc_core::repair::TextRow;
use cdc_core::{Error, Kind, Result, TableName};

use super::merge::TablePlan;
use super::report::DifferenceKind;

/// Rows of a table above which it is quicker to copy it anew.
const MOST_ROWS: usize = 1_000_000;
/// What is held in memory of the rows of all tables.
const MOST_BYTES: usize = 512 << 20;

/// The differing rows of one table: of each its key, of a table without key all its columns, and then each only once.
#[derive(Debug, Clone)]
pub(crate) struct Differing {
    pub(crate) plan: TablePlan,
    /// only the source has them
    pub(crate) missing: Vec<TextRow>,
    /// only the target has them
    pub(crate) extra: Vec<TextRow>,
    /// the sides have them with other values
    pub(crate) different: Vec<TextRow>,
    bytes: usize,
}

impl Differing {
    /// How many rows are to be looked at again.
    pub(crate) fn rows(&self) -> usize {
        self.missing.len() + self.extra.len() + self.different.len()
    }
}

/// The differing rows of all tables.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    tables: BTreeMap<TableName, Differing>,
    bytes: usize,
}

impl Differences {
    /// Notes a row.
    ///
    /// # Errors
    /// When there are more than fit, or a value is not text that can be written back.
    pub(super) fn note(&self, plan: &TablePlan, kind: DifferenceKind, row: RowText<'_>) -> Result<()> {
        let (row, bytes) = key_of(plan, row)?;
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = &mut *noted;
        let table = noted
            .tables
            .entry(plan.table.clone())
            .or_insert_with(|| Differing {
                plan: plan.clone(),
                missing: Vec::new(),
                extra: Vec::new(),
                different: Vec::new(),
                bytes: 0,
            });
        if table.rows() >= MOST_ROWS || noted.bytes + bytes > MOST_BYTES {
            return Err(too_many(table.rows()));
        }
        let rows = match kind {
            DifferenceKind::Missing => &mut table.missing,
            DifferenceKind::Extra => &mut table.extra,
            DifferenceKind::Different => &mut table.different,
        };
        // Rows come in order, so that copies of one are neighbours.
        if rows.last() != Some(&row) {
            table.bytes += bytes;
            noted.bytes += bytes;
            rows.push(row);
        }
        Ok(())
    }

    /// Forgets a table that could not be compared to the end.
    pub(super) fn forget(&self, table: &TableName) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(forgotten) = noted.tables.remove(table) {
            noted.bytes -= forgotten.bytes;
        }
    }

    /// What was noted, table by table.
    pub(crate) fn into_tables(self) -> BTreeMap<TableName, Differing> {
        self.noted
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .tables
    }
}

/// The key of a row, or all of it, and the memory that it takes.
fn key_of(plan: &TablePlan, row: RowText<'_>) -> Result<(TextRow, usize)> {
    let columns: Vec<Option<&[u8]>> = row.columns().collect();
    let wanted = if plan.key.is_empty() {
        &plan.columns
    } else {
        &plan.key
    };
    let mut bytes = size_of::<TextRow>();
    let mut key = TextRow::with_capacity(wanted.len());
    for name in wanted {
        let place = plan.columns.iter().position(|column| column == name);
        let value = place.and_then(|place| columns.get(place).copied().flatten());
        let text = value.map(std::str::from_utf8).transpose().map_err(|_| {
            Error::new(
                Kind::Unverifiable,
                format!("column {name} holds bytes of no stated encoding, which a repair cannot carry"),
            )
            .remedy("mend the rows by hand, or copy the table anew: `cdc-sync resync`")
        })?;
        bytes += size_of::<Option<Box<str>>>() + text.map_or(0, str::len);
        key.push(text.map(Box::from));
    }
    Ok((key, bytes))
}

fn too_many(rows: usize) -> Error {
    Error::new(
        Kind::Unverifiable,
        format!("more than {rows} rows differ, too many to repair one by one"),
    )
    .remedy("copy the table anew: `cdc-sync resync`")
}

#[cfg(test)]
mod tests {
    use cdc_core::compare::RowBuffer;

    use super::*;

    fn plan(key: &[&str]) -> TablePlan {
        TablePlan {
            table: TableName::new("s", "t"),
            columns: vec!["a".into(), "b".into()],
            key: key.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn note(differences: &Differences, plan: &TablePlan, row: [Option<&[u8]>; 2]) -> Result<()> {
        let mut rows = RowBuffer::default();
        for value in row {
            match value {
                Some(text) => rows.text(text).unwrap(),
                None => rows.null(),
            }
        }
        rows.finish_row(&[]).unwrap();
        differences.note(plan, DifferenceKind::Extra, rows.row(0).unwrap())
    }

    fn noted(differences: Differences) -> Vec<TextRow> {
        differences
            .into_tables()
            .remove(&TableName::new("s", "t"))
            .unwrap()
            .extra
    }

    #[test]
    fn keys_are_noted_and_without_one_whole_rows_once() {
        let keyed = Differences::default();
        note(&keyed, &plan(&["b"]), [Some(b"1"), Some(b"x")]).unwrap();
        assert_eq!(noted(keyed), [vec![Some("x".into())]]);
        let whole = Differences::default();
        for row in [[None, Some(&b"x"[..])], [None, Some(b"x")], [None, Some(b"")]] {
            note(&whole, &plan(&[]), row).unwrap();
        }
        assert_eq!(
            noted(whole),
            [vec![None, Some("x".into())], vec![None, Some("".into())]]
        );
    }

    #[test]
    fn what_cannot_be_written_back_and_too_much_are_refused() {
        let differences = Differences::default();
        let error = note(&differences, &plan(&[]), [Some(b"\xff"), None]).unwrap_err();
        assert!(error.message().contains("column a"), "{error}");
        let wide = "x".repeat(MOST_BYTES / 2);
        note(&differences, &plan(&["a"]), [Some(wide.as_bytes()), None]).unwrap();
        let other = format!("{wide}y");
        let error = note(&differences, &plan(&["a"]), [Some(other.as_bytes()), None]).unwrap_err();
        assert!(error.remedy_text().unwrap_or_default().contains("resync"));
        differences.forget(&TableName::new("s", "t"));
        note(&differences, &plan(&["a"]), [Some(other.as_bytes()), None]).unwrap();
    }
}
