use std::sync::atomic::{AtomicU64, Ordering};

use cdc_core::BoxFuture;
use cdc_core::compare::{KeyColumn, KeyOrder};

use super::*;
use crate::verify::testing::block_on;

type Row = Vec<Option<Vec<u8>>>;

/// Rows from memory, a few at a time, so that every merge crosses buffer borders.
struct Rows {
    rows: std::vec::IntoIter<Row>,
    key: Vec<KeyColumn>,
    chunk: usize,
}

impl OrderedRows for Rows {
    fn next<'a>(&'a mut self, rows: &'a mut RowBuffer) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            for row in self.rows.by_ref().take(self.chunk) {
                for value in &row {
                    match value {
                        Some(text) => rows.text(text)?,
                        None => rows.null(),
                    }
                }
                rows.finish_row(&self.key)?;
            }
            Ok(self.rows.len() > 0)
        })
    }
}

fn row(values: &[&str]) -> Row {
    values
        .iter()
        .map(|value| (*value != "∅").then(|| value.as_bytes().to_vec()))
        .collect()
}

/// Compares two tables with columns `a`, `b`, … given in order. `key` says how its leading columns are ordered.
fn compare_rows(source: Vec<Row>, target: Vec<Row>, key: &[KeyOrder]) -> Result<TableReport> {
    let width = source.first().or(target.first()).map_or(0, Vec::len);
    let columns: Vec<String> = ('a'..='z').take(width).map(String::from).collect();
    let plan = TablePlan {
        table: TableName::new("s", "t"),
        key: columns.iter().take(key.len()).cloned().collect(),
        columns,
    };
    let key: Vec<KeyColumn> = if key.is_empty() {
        (0..width)
            .map(|index| KeyColumn {
                index,
                order: KeyOrder::Text,
            })
            .collect()
    } else {
        key.iter()
            .enumerate()
            .map(|(index, &order)| KeyColumn { index, order })
            .collect()
    };
    let stream = |rows: Vec<Row>, chunk| -> Box<dyn OrderedRows> {
        Box::new(Rows {
            rows: rows.into_iter(),
            key: key.clone(),
            chunk,
        })
    };
    let mut reports = Vec::new();
    for (left, right) in [(1, 1), (1, 3), (3, 2), (1000, 1), (1000, 1000)] {
        let mut report = TableReport::new(plan.table.clone());
        let (source, target) = (stream(source.clone(), left), stream(target.clone(), right));
        let found = AtomicU64::new(0);
        let count = |_, _: RowText<'_>| {
            found.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        block_on(compare(&plan, source, target, &mut report, &|_| {}, &count))?;
        assert_eq!(found.into_inner(), report.differences());
        reports.push(report);
    }
    assert!(
        reports.iter().all(|report| *report == reports[0]),
        "chunking changes the result"
    );
    Ok(reports.remove(0))
}

fn tally(report: &TableReport) -> (u64, u64, u64) {
    (report.missing, report.extra, report.different)
}

const INT: &[KeyOrder] = &[KeyOrder::Integer];
const TEXT: &[KeyOrder] = &[KeyOrder::Text];

#[test]
fn equal_tables_have_no_differences() {
    let rows: Vec<Row> = (-500..500).map(|id: i32| row(&[&id.to_string(), "x"])).collect();
    let report = compare_rows(rows.clone(), rows, INT).unwrap();
    assert_eq!(
        (report.source_rows, report.target_rows, report.differences()),
        (1000, 1000, 0)
    );
    assert_eq!(
        compare_rows(Vec::new(), Vec::new(), INT).unwrap().differences(),
        0
    );
}

#[test]
fn each_kind_is_counted_and_named() {
    let source = vec![
        row(&["-2", "x"]),
        row(&["-1", "x"]),
        row(&["3", "x"]),
        row(&["10", "x"]),
    ];
    let target = vec![
        row(&["-1", "y"]),
        row(&["2", "x"]),
        row(&["3", "x"]),
        row(&["11", "x"]),
    ];
    let report = compare_rows(source, target, INT).unwrap();
    assert_eq!(tally(&report), (2, 2, 1));
    let named: Vec<(DifferenceKind, &str)> = report
        .kinds
        .iter()
        .zip(&report.keys)
        .map(|(kind, key)| (*kind, key.0[0].1.as_deref().unwrap()))
        .collect();
    use DifferenceKind::{Different, Extra, Missing};
    assert_eq!(
        named,
        [
            (Missing, "-2"),
            (Different, "-1"),
            (Extra, "2"),
            (Missing, "10"),
            (Extra, "11")
        ]
    );
    assert_eq!((report.source_rows, report.target_rows), (4, 4));
}

#[test]
fn one_empty_side_and_a_thousand_differences() {
    let rows: Vec<Row> = (0..1000).map(|id: i32| row(&[&id.to_string(), "x"])).collect();
    let changed: Vec<Row> = (0..1000).map(|id: i32| row(&[&id.to_string(), "y"])).collect();
    assert_eq!(
        tally(&compare_rows(rows.clone(), Vec::new(), INT).unwrap()),
        (1000, 0, 0)
    );
    assert_eq!(
        tally(&compare_rows(Vec::new(), rows.clone(), INT).unwrap()),
        (0, 1000, 0)
    );
    let report = compare_rows(rows, changed, INT).unwrap();
    assert_eq!(tally(&report), (0, 0, 1000));
    assert_eq!(report.keys.len(), 100);
}

#[test]
fn what_a_database_calls_equal_is_different_text() {
    let pairs = [
        ("0", "-0"),
        ("a", "a "),
        ("a", "A"),
        ("", "∅"),
        ("1.0", "1.00"),
        ("é", "e\u{301}"),
    ];
    for (left, right) in pairs {
        let report = compare_rows(vec![row(&["1", left])], vec![row(&["1", right])], INT).unwrap();
        assert_eq!(tally(&report), (0, 0, 1), "{left:?} {right:?}");
        let keys = if right == "∅" { &[][..] } else { TEXT };
        let report = compare_rows(vec![row(&[left, "1"])], vec![row(&[right, "1"])], keys).unwrap();
        assert_eq!(tally(&report), (1, 1, 0), "{left:?} {right:?}");
    }
}

#[test]
fn text_keys_with_separators_and_empty_text() {
    let keys = [
        "", "\u{1}", "\t", "\n", " ", "\"", ",", "-1", "10", "9", "a", "a\u{1}", "a,b", "ab", "b", "é", "😀",
    ];
    let rows: Vec<Row> = keys.iter().map(|key| row(&[key, "x"])).collect();
    assert_eq!(
        compare_rows(rows.clone(), rows.clone(), TEXT)
            .unwrap()
            .differences(),
        0
    );
    for (gone, key) in keys.iter().enumerate() {
        let mut fewer = rows.clone();
        fewer.remove(gone);
        let report = compare_rows(rows.clone(), fewer.clone(), TEXT).unwrap();
        assert_eq!(tally(&report), (1, 0, 0));
        assert_eq!(report.keys[0].0, [("a".to_owned(), Some((*key).to_owned()))]);
        assert_eq!(
            tally(&compare_rows(fewer, rows.clone(), TEXT).unwrap()),
            (0, 1, 0)
        );
    }
}

#[test]
fn composite_keys() {
    let order = [KeyOrder::Text, KeyOrder::Integer];
    let source = vec![
        row(&["a", "-5", "x"]),
        row(&["a", "10", "x"]),
        row(&["ab", "2", "x"]),
    ];
    let mut target = source.clone();
    target[1] = row(&["a", "9", "x"]);
    target[2] = row(&["ab", "2", "y"]);
    let report = compare_rows(source, target, &order).unwrap();
    assert_eq!(tally(&report), (1, 1, 1));
    assert_eq!(report.keys[0].0[1], ("b".to_owned(), Some("9".to_owned())));
}

#[test]
fn keyless_rows_are_a_multiset() {
    let rows = |counts: &[(&str, usize)]| -> Vec<Row> {
        counts
            .iter()
            .flat_map(|(text, count)| std::iter::repeat_n(row(&[text, "∅"]), *count))
            .collect()
    };
    let source = rows(&[("∅", 2), ("", 3), ("a", 5), ("b", 1)]);
    let target = rows(&[("∅", 3), ("", 3), ("a", 2), ("c", 1)]);
    let report = compare_rows(source.clone(), target, &[]).unwrap();
    assert_eq!(tally(&report), (4, 2, 0));
    assert_eq!(report.keys[0].0, [("a".to_owned(), None), ("b".to_owned(), None)]);
    assert_eq!(
        compare_rows(source.clone(), source, &[]).unwrap().differences(),
        0
    );
}

#[test]
fn long_values_of_named_rows_are_cut() {
    let report = compare_rows(vec![row(&["ä".repeat(1000).as_str()])], Vec::new(), &[]).unwrap();
    let text = report.keys[0].0[0].1.as_ref().unwrap();
    assert_eq!(text.chars().count(), NAMED_TEXT + 1);
}

#[test]
fn broken_order_is_not_taken_for_differences() {
    let sorted = vec![row(&["1"]), row(&["2"]), row(&["3"])];
    let unsorted = vec![row(&["1"]), row(&["3"]), row(&["2"])];
    let twice = vec![row(&["1"]), row(&["2"]), row(&["2"])];
    for bad in [unsorted, twice] {
        let error = compare_rows(sorted.clone(), bad.clone(), INT).unwrap_err();
        assert_eq!(error.kind(), Kind::Unverifiable);
        assert!(error.message().contains("target"), "{error}");
        assert!(compare_rows(bad, sorted.clone(), INT).is_err());
    }
}
