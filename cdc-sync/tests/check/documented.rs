//! Every id of docs/findings.md is provoked somewhere.

use std::collections::BTreeSet;

use super::catalogue;

/// What no server at hand shows, or what is judged from facts alone, and the files whose unit tests show it.
const BY_UNIT_TEST: &[(&str, &str)] = &[
    (
        "PG-VERSION",
        include_str!("../../../cdc-postgres/src/precheck/server.rs"),
    ),
    (
        "PG-COLUMN-LIST-BUG",
        include_str!("../../../cdc-postgres/src/precheck/server.rs"),
    ),
    (
        "PG-CLOCK-OFFSET",
        include_str!("../../../cdc-postgres/src/precheck/clock.rs"),
    ),
    ("POLICY-KEY", include_str!("../../src/check/policies.rs")),
    ("POLICY-DELETES", include_str!("../../src/check/policies.rs")),
    ("POLICY-IDENTITY", include_str!("../../src/check/policies.rs")),
    ("POLICY-UNDECIDED", include_str!("../../src/check/policies.rs")),
    ("POLICY-LARGE-VALUES", include_str!("../../src/check/policies.rs")),
    ("POLICY-UNIQUE", include_str!("../../src/check/policies.rs")),
];

/// Other live tests, which name the ids that they expect.
const LIVE: &[&str] = &[
    // The ids of one server used twice.
    include_str!("catalogue.rs"),
    include_str!("../../../cdc-postgres/tests/checks/precheck.rs"),
    include_str!("../../../cdc-postgres/tests/checks/types.rs"),
    include_str!("../verbs/conflicts.rs"),
    include_str!("../lifecycle/tables.rs"),
    include_str!("link.rs"),
    include_str!("lookout.rs"),
    include_str!("../tables/partitions.rs"),
];

/// The ids in the first column of the tables.
fn documented() -> BTreeSet<&'static str> {
    include_str!("../../../docs/findings.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .flat_map(|cell| cell.split(", "))
        .filter(|id| id.contains('-') && id.chars().all(|c| c.is_ascii_uppercase() || c == '-'))
        .filter(|id| id.len() > 3)
        .collect()
}

#[test]
fn every_documented_finding_is_provoked() {
    let documented = documented();
    assert!(documented.len() > 60, "{documented:?}");
    let by_case: BTreeSet<&str> = catalogue::CASES.iter().map(|case| case.id).collect();
    for id in &by_case {
        assert!(documented.contains(id), "{id} is not in docs/findings.md");
    }
    let quoted = |text: &str, id: &str| text.contains(&format!("\"{id}\""));
    let not_provoked: Vec<&&str> = documented
        .iter()
        .filter(|id| !by_case.contains(**id))
        .filter(|id| !LIVE.iter().any(|test| quoted(test, id)))
        .filter(|id| {
            !BY_UNIT_TEST.iter().any(|(by_unit_test, file)| {
                let tests = file.split_once("mod tests").map_or("", |(_, tests)| tests);
                *by_unit_test == **id && (quoted(tests, id) || tests.contains("judge("))
            })
        })
        .collect();
    assert!(not_provoked.is_empty(), "no test provokes {not_provoked:?}");
}
