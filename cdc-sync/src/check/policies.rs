//! Whether the tables have what their conflict policies need.

use std::sync::Arc;

use cdc_core::conflict::{Policy, PolicyRules, VersionColumns};
use cdc_core::engine::{Finding, Severity, Side, TableInfo};
use cdc_core::plan::TargetTable;
use cdc_core::{Error, Kind, Result, Site, TableName, TableSelection};

/// The findings about policies; none without rules.
///
/// # Errors
/// [`Kind::Config`] for a rule that no table matches; otherwise when a catalog cannot be read.
pub async fn policy_findings(
    source: &Arc<dyn Site>,
    target: &Arc<dyn Site>,
    selection: &TableSelection,
    rules: &PolicyRules,
) -> Result<Vec<Finding>> {
    if rules.0.is_empty() {
        return Ok(Vec::new());
    }
    let (of_source, of_target, facts) = tokio::try_join!(
        source.inspect(selection),
        target.inspect(selection),
        target.target_tables(selection),
    )?;
    expect_matched(rules, of_source.iter().map(|table| &table.name))?;
    let mut found = Vec::new();
    for table in &of_source {
        let there = Peer {
            // A table that is missing will be copied as the source has it.
            info: of_target
                .iter()
                .find(|peer| peer.name == table.name)
                .unwrap_or(table),
            facts: facts.iter().find(|peer| peer.name == table.name),
        };
        judge(table, &there, &rules.policy(&table.name), &mut found);
    }
    Ok(found)
}

/// Refuses a rule that matches none of the job's tables: those it was meant for would stop at a conflict.
///
/// # Errors
/// [`Kind::Config`], naming the rule.
pub fn expect_matched<'a>(
    rules: &PolicyRules,
    tables: impl Iterator<Item = &'a TableName> + Clone,
) -> Result<()> {
    let idle = rules.0.iter().find(|rule| {
        let mut tables = tables.clone();
        !tables.any(|table| cdc_core::engine::matches_pattern(&rule.pattern, table))
    });
    match idle {
        None => Ok(()),
        Some(rule) => Err(
            Error::new(Kind::Config, "the conflict rule matches no table of the job")
                .object(format!("{} = {}", rule.pattern, rule.policy.name()))
                .remedy(
                    "correct its pattern, or take the rule out; tables without a rule stop at a conflict",
                ),
        ),
    }
}

/// A table as the target has it.
struct Peer<'a> {
    info: &'a TableInfo,
    /// `None` while it is missing
    facts: Option<&'a TargetTable>,
}

fn judge(table: &TableInfo, there: &Peer<'_>, policy: &Policy, found: &mut Vec<Finding>) {
    if *policy == Policy::Stop {
        return;
    }
    let mut add = |id, severity, side, object: String, message: String, remedy: &str| {
        found.push(Finding {
            id,
            severity,
            side,
            object,
            message,
            remedy: remedy.to_owned(),
        });
    };
    let name = table.name.to_string();
    if !has_key(there) {
        add(
            "POLICY-KEY",
            Severity::Fail,
            Side::Target,
            name.clone(),
            format!(
                "policy {} decides row by row, and the table has no primary key and no unique key of NOT NULL columns",
                policy.name()
            ),
            "add a primary key on both sides, or leave the table's policy at stop",
        );
    }
    let Policy::Lww(version) = policy else {
        return;
    };
    judge_version(table, there, version, &mut add);
    if table.identity != "full" {
        add(
            "POLICY-DELETES",
            Severity::Warn,
            Side::Source,
            name.clone(),
            "the log has only the key of a deleted row, not its version: deletes win against any row of the target"
                .to_owned(),
            "log whole old rows (full replica identity) if deletes are to be compared too",
        );
    }
    let keys = there
        .facts
        .map_or(there.info.unique_keys.len(), |facts| facts.unique_constraints);
    if keys > 1 {
        add(
            "POLICY-UNIQUE",
            Severity::Warn,
            Side::Target,
            name,
            format!(
                "the table has {keys} unique or exclusion constraints: versions decide between rows of one key only, \
                 and a conflict on another stops the stream"
            ),
            "drop the other constraints on the target, or be ready to mend such a conflict by hand",
        );
    }
}

/// Whether rows of the target can be located.
fn has_key(there: &Peer<'_>) -> bool {
    match there.facts {
        Some(facts) => !facts.keys.is_empty(),
        None => {
            let not_null = |name: &String| {
                let mut columns = there.info.columns.iter();
                columns.any(|column| column.name == *name && column.not_null)
            };
            !there.info.primary_key.is_empty()
                || there.info.unique_keys.iter().any(|key| key.iter().all(not_null))
        }
    }
}

fn judge_version(
    table: &TableInfo,
    there: &Peer<'_>,
    version: &VersionColumns,
    add: &mut impl FnMut(&'static str, Severity, Side, String, String, &str),
) {
    for name in std::iter::once(&version.version).chain(&version.node) {
        let object = format!("{}.{name}", table.name);
        let mut nullable = false;
        for (side, info) in [(Side::Source, table), (Side::Target, there.info)] {
            match info.columns.iter().find(|column| column.name == *name) {
                None => add(
                    "POLICY-VERSION",
                    Severity::Fail,
                    side,
                    object.clone(),
                    "policy lww compares this column, and there is none of this name".to_owned(),
                    "add the column on both sides, or name another one in the rule",
                ),
                Some(column) => nullable |= !column.not_null,
            }
        }
        let column = there.facts.and_then(|facts| {
            let mut columns = facts.columns.iter();
            columns.find(|column| column.name == *name)
        });
        if let Some(column) = column.filter(|column| !column.has_equality) {
            add(
                "POLICY-VERSION",
                Severity::Fail,
                Side::Target,
                object.clone(),
                format!(
                    "policy lww compares this column, and its type {} has no order",
                    column.type_name
                ),
                "name a column of a time or a number in the rule",
            );
        }
        if nullable {
            add(
                "POLICY-VERSION",
                Severity::Warn,
                Side::Both,
                object,
                "policy lww compares this column, and it may be NULL: a conflict between rows of which one has no \
                 version stops the stream"
                    .to_owned(),
                "fill it and make it NOT NULL on both sides",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use cdc_core::conflict::PolicyRule;
    use cdc_core::engine::ColumnInfo;
    use cdc_core::plan::{TargetColumn, UniqueKey};

    use super::*;

    /// Columns `id`, `ts`, `node`; all NOT NULL, keyed by `id`, its old rows logged in full.
    fn table() -> TableInfo {
        let column = |name: &str| ColumnInfo {
            name: name.to_owned(),
            type_name: "int".to_owned(),
            not_null: true,
            has_default: false,
            generated: false,
        };
        TableInfo {
            name: TableName::new("s", "t"),
            columns: ["id", "ts", "node"].map(column).to_vec(),
            primary_key: vec!["id".to_owned()],
            unique_keys: vec![vec!["id".to_owned()]],
            identity: "full".to_owned(),
            has_identity: true,
            estimated_rows: 0,
            bytes: 0,
        }
    }

    /// The same as a target.
    fn facts() -> TargetTable {
        let column = |name: &str| TargetColumn {
            name: name.to_owned(),
            type_name: "int".to_owned(),
            generated: false,
            byte_comparable: true,
            has_equality: true,
        };
        TargetTable {
            name: TableName::new("s", "t"),
            columns: ["id", "ts", "node"].map(column).to_vec(),
            keys: vec![UniqueKey {
                columns: vec![0],
                primary: true,
            }],
            unique_constraints: 1,
            order_visible: false,
            cascaded: false,
            partitioned: false,
            policy: Policy::Stop,
            references: Vec::new(),
        }
    }

    fn lww() -> Policy {
        Policy::Lww(VersionColumns {
            version: "ts".into(),
            node: Some("node".into()),
        })
    }

    fn judged(
        source: &TableInfo,
        info: &TableInfo,
        facts: Option<&TargetTable>,
        policy: &Policy,
    ) -> Vec<(&'static str, Severity, Side)> {
        let mut found = Vec::new();
        judge(source, &Peer { info, facts }, policy, &mut found);
        found
            .iter()
            .map(|finding| (finding.id, finding.severity, finding.side))
            .collect()
    }

    #[test]
    fn a_table_with_all_that_is_needed_has_no_findings() {
        let (source, facts) = (table(), facts());
        for policy in [Policy::Stop, Policy::BlueWins, Policy::DeadLetter, lww()] {
            assert_eq!(judged(&source, &source, Some(&facts), &policy), []);
            assert_eq!(judged(&source, &source, None, &policy), []);
        }
    }

    #[test]
    fn a_policy_needs_a_key() {
        let mut keyless = table();
        keyless.primary_key.clear();
        keyless.unique_keys.clear();
        let mut facts = facts();
        facts.keys.clear();
        let wanted = [("POLICY-KEY", Severity::Fail, Side::Target)];
        assert_eq!(
            judged(&table(), &table(), Some(&facts), &Policy::GreenWins),
            wanted
        );
        assert_eq!(judged(&keyless, &keyless, None, &Policy::GreenWins), wanted);
        assert_eq!(judged(&keyless, &keyless, None, &Policy::Stop), []);
        keyless.unique_keys = vec![vec!["ts".to_owned()]];
        assert_eq!(judged(&keyless, &keyless, None, &Policy::GreenWins), []);
        keyless.columns[1].not_null = false;
        assert_eq!(judged(&keyless, &keyless, None, &Policy::GreenWins), wanted);
    }

    #[test]
    fn versions_are_there_not_null_and_ordered() {
        let (source, facts) = (table(), facts());
        let mut without = table();
        without.columns.truncate(2);
        assert_eq!(
            judged(&without, &source, Some(&facts), &lww()),
            [("POLICY-VERSION", Severity::Fail, Side::Source)]
        );
        assert_eq!(
            judged(&source, &without, Some(&facts), &lww()),
            [("POLICY-VERSION", Severity::Fail, Side::Target)]
        );
        let mut nullable = table();
        nullable.columns[1].not_null = false;
        assert_eq!(
            judged(&source, &nullable, Some(&facts), &lww()),
            [("POLICY-VERSION", Severity::Warn, Side::Both)]
        );
        let mut unordered = facts.clone();
        unordered.columns[1].has_equality = false;
        assert_eq!(
            judged(&source, &source, Some(&unordered), &lww()),
            [("POLICY-VERSION", Severity::Fail, Side::Target)]
        );
    }

    #[test]
    fn deletes_and_other_unique_keys_are_warned_of() {
        let (mut source, mut facts) = (table(), facts());
        source.identity = "default".to_owned();
        facts.unique_constraints = 2;
        assert_eq!(
            judged(&source, &table(), Some(&facts), &lww()),
            [
                ("POLICY-DELETES", Severity::Warn, Side::Source),
                ("POLICY-UNIQUE", Severity::Warn, Side::Target),
            ]
        );
        assert_eq!(judged(&source, &table(), Some(&facts), &Policy::BlueWins), []);
    }

    #[test]
    fn a_rule_without_a_table_is_named() {
        let rule = |pattern: &str| PolicyRule {
            pattern: pattern.into(),
            policy: Policy::BlueWins,
        };
        let tables = [TableName::new("s", "t"), TableName::new("s", "u")];
        let matched = |patterns: &[&str]| {
            let rules = PolicyRules(patterns.iter().map(|pattern| rule(pattern)).collect());
            expect_matched(&rules, tables.iter())
        };
        assert!(matched(&[]).is_ok());
        assert!(matched(&["s.t", "*"]).is_ok());
        let error = matched(&["s.t", "s.v"]).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert_eq!(error.object_name(), Some("s.v = blue_wins"));
    }
}
