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
            name,
            format!(
                "policy {} decides row by row, and the table has no primary key and no unique key of NOT NULL columns",
                policy.name()
            ),
            "add a primary key on both sides, or leave the table's policy at stop",
        );
    }
    if let Policy::Lww(version) = policy {
        judge_version(table, there, version, &mut add);
        judge_versions_reach(table, there, &mut add);
    }
    judge_rows(table, there, policy, &mut add);
}

/// What versions cannot decide.
fn judge_versions_reach(
    table: &TableInfo,
    there: &Peer<'_>,
    add: &mut impl FnMut(&'static str, Severity, Side, String, String, &str),
) {
    let name = table.name.to_string();
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

/// What a policy cannot write, foresee, or have.
fn judge_rows(
    table: &TableInfo,
    there: &Peer<'_>,
    policy: &Policy,
    add: &mut impl FnMut(&'static str, Severity, Side, String, String, &str),
) {
    let key = there.info.unique_keys.iter().chain([&there.info.primary_key]);
    let in_key: Vec<&String> = key.flatten().collect();
    for column in &there.info.fixed_columns {
        if !in_key.contains(&column) {
            add(
                "POLICY-IDENTITY",
                Severity::Fail,
                Side::Target,
                format!("{}.{column}", table.name),
                format!(
                    "policy {} overwrites whole rows, and the server lets nobody overwrite this column, which it numbers \
                     always: the first update stops the stream",
                    policy.name()
                ),
                "let it be numbered by default on the target, or leave the table's policy at stop",
            );
        }
    }
    if !there.info.opaque_constraints.is_empty() {
        add(
            "POLICY-UNDECIDED",
            Severity::Warn,
            Side::Target,
            table.name.to_string(),
            format!(
                "no policy decides about {}: what violates one (partial, on expressions, deferrable or an exclusion) \
                 stops the stream",
                there.info.opaque_constraints.join(", ")
            ),
            "drop them on the target for the time, or be ready to mend such a conflict by hand",
        );
    }
    let blue_may_win = matches!(policy, Policy::BlueWins | Policy::Lww(_));
    if blue_may_win && table.leaves_out_values && table.identity != "full" {
        add(
            "POLICY-LARGE-VALUES",
            Severity::Warn,
            Side::Source,
            table.name.to_string(),
            format!(
                "an update does not carry large values that it left as they were: where it wins under {} against a row \
                 of which the target changed such a value, the row becomes a mixture of both, and where the row is \
                 missing it stops the stream",
                policy.name()
            ),
            "log whole old rows (full replica identity) on the source",
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
            opaque_constraints: Vec::new(),
            fixed_columns: Vec::new(),
            leaves_out_values: false,
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
            sees_others: false,
            acts_on_others: false,
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
    fn what_a_policy_cannot_write_foresee_or_have_is_told() {
        let (mut source, mut target) = (table(), table());
        source.identity = "default".to_owned();
        source.leaves_out_values = true;
        target.fixed_columns = vec!["id".to_owned(), "ts".to_owned()];
        target.opaque_constraints = vec!["when_active".to_owned()];
        let identity = ("POLICY-IDENTITY", Severity::Fail, Side::Target);
        let undecided = ("POLICY-UNDECIDED", Severity::Warn, Side::Target);
        let large = ("POLICY-LARGE-VALUES", Severity::Warn, Side::Source);
        let facts = facts();
        let judged = |source: &TableInfo, policy: &Policy| judged(source, &target, Some(&facts), policy);
        assert_eq!(judged(&source, &Policy::BlueWins), [identity, undecided, large]);
        // What is skipped or put aside is not mixed.
        assert_eq!(judged(&source, &Policy::GreenWins), [identity, undecided]);
        assert_eq!(judged(&source, &Policy::DeadLetter), [identity, undecided]);
        source.identity = "full".to_owned();
        assert_eq!(judged(&source, &lww()), [identity, undecided]);
        assert_eq!(judged(&source, &Policy::Stop), []);
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
