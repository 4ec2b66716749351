//! What `docs/traps.md` says of tests is true: each trap has its row, and each test that is cited exists.

use std::path::PathBuf;

fn root() -> PathBuf {
    PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("..")
}

fn page() -> String {
    std::fs::read_to_string(root().join("docs/traps.md")).expect("docs/traps.md")
}

#[test]
fn every_trap_has_one_row_with_evidence() {
    let page = page();
    for trap in 1..=80 {
        let begin = format!("| T{trap} | ");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with(&begin)).collect();
        assert_eq!(rows.len(), 1, "rows of T{trap}");
        let cells: Vec<&str> = rows[0].trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 3, "{}", rows[0]);
        assert!(cells[2].trim().len() > 10, "nothing would notice T{trap}");
    }
}

#[test]
fn every_test_that_is_cited_exists() {
    let page = page();
    let cited: Vec<(&str, &str)> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.split_once(".rs::"))
        .collect();
    assert!(cited.len() > 150, "{}", cited.len());
    let lacking: Vec<String> = cited
        .iter()
        .filter(|(file, function)| !defines(&format!("{file}.rs"), function))
        .map(|(file, function)| format!("{file}.rs::{function}"))
        .collect();
    assert!(lacking.is_empty(), "there is no {}", lacking.join(", "));
}

/// Whether the file has a function of exactly this name.
fn defines(file: &str, function: &str) -> bool {
    let text = std::fs::read_to_string(root().join(file)).unwrap_or_default();
    text.contains(&format!("fn {function}("))
}

#[test]
fn what_does_not_exist_is_noticed() {
    let here = "cdc-sync/tests/traps.rs";
    assert!(defines(here, "what_does_not_exist_is_noticed"));
    assert!(!defines(here, "what_does_not_exist"));
    assert!(!defines("cdc-sync/tests/nowhere.rs", "page"));
}
