//! `[[tables.rule]]`: which tables have which conflict policy.

use cdc_core::conflict::{PolicyRule, VersionColumns};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Reading, type_name};
use crate::config::keys::Raw;
use crate::config::policy::policy;

/// The keys of a rule.
const KEYS: [&str; 3] = ["match", "conflict", "version"];
/// The keys of a version that names two columns.
const VERSION_KEYS: [&str; 2] = ["column", "node"];

/// A text of the file and where it stands.
type Text = Option<(usize, String)>;

impl Reading<'_> {
    /// The rules, in order; what is wrong with one is an issue of its own.
    pub(super) fn rules(&mut self, value: &DeValue<'_>) -> Raw {
        let DeValue::Array(items) = value else {
            return Raw::Other(type_name(value));
        };
        let mut rules = Vec::new();
        for item in items {
            match item.get_ref() {
                DeValue::Table(table) => rules.extend(self.rule(item.span().start, table)),
                other => {
                    let message = format!("tables.rule: must be tables, not {}", type_name(other));
                    self.issue(item.span().start, message);
                }
            }
        }
        Raw::Rules(rules)
    }

    /// `at` is where the rule begins, for what it lacks.
    fn rule(&mut self, at: usize, table: &DeTable<'_>) -> Option<PolicyRule> {
        let before = self.issues.len();
        let (mut pattern, mut name, mut version) = (None, None, None);
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "match" => pattern = self.text("match", value),
                "conflict" => name = self.text("conflict", value),
                "version" => version = self.version(value),
                other => self.unknown(key.span().start, "key in [[tables.rule]]", other, &KEYS),
            }
        }
        if self.issues.len() > before {
            return None;
        }
        for (key, value) in [("match", &pattern), ("conflict", &name)] {
            if value.is_none() {
                self.issue(at, format!("[[tables.rule]]: `{key}` is missing"));
            }
        }
        let ((_, pattern), (at, name)) = (pattern?, name?);
        match policy(&name, version) {
            Ok(policy) => Some(PolicyRule { pattern, policy }),
            Err(message) => {
                self.issue(at, format!("tables.rule.conflict: {message}"));
                None
            }
        }
    }

    /// A column, or a table of two columns.
    fn version(&mut self, value: &Spanned<DeValue<'_>>) -> Option<VersionColumns> {
        let DeValue::Table(table) = value.get_ref() else {
            let (_, version) = self.text("version", value)?;
            return Some(VersionColumns { version, node: None });
        };
        let (mut version, mut node) = (None, None);
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "column" => version = self.text("version.column", value),
                "node" => node = self.text("version.node", value),
                other => self.unknown(key.span().start, "key of a version", other, &VERSION_KEYS),
            }
        }
        if version.is_none() && !table.iter().any(|(key, _)| key.get_ref() == "column") {
            self.issue(
                value.span().start,
                "tables.rule.version: `column` is missing".to_owned(),
            );
        }
        Some(VersionColumns {
            version: version?.1,
            node: node.map(|(_, node)| node),
        })
    }

    fn text(&mut self, name: &str, value: &Spanned<DeValue<'_>>) -> Text {
        let at = value.span().start;
        let message = match self.raw(value.get_ref()) {
            Ok(Raw::Text(text)) if text.is_empty() => "must not be empty".to_owned(),
            Ok(Raw::Text(text)) => return Some((at, text)),
            Ok(_) => format!("must be a string, not {}", type_name(value.get_ref())),
            Err(message) => message,
        };
        self.issue(at, format!("tables.rule.{name}: {message}"));
        None
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use cdc_core::conflict::Policy;

    use super::super::parse;
    use super::*;

    fn rules(text: &str) -> Result<Vec<PolicyRule>, Vec<String>> {
        match parse(text, Path::new("/nowhere"), &|_| None, &[]) {
            Ok(file) => Ok(file.rules),
            Err(issues) => Err(issues.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn rules_are_read_in_order() {
        let read = rules(
            "[tables]\ninclude = [\"public.*\"]\n[[tables.rule]]\nmatch = \"public.accounts\"\nconflict = \"lww\"\n\
             version = { column = \"cdc_ts\", node = \"cdc_node\" }\n[[tables.rule]]\nmatch = \"a*\"\n\
             conflict = \"lww\"\nversion = \"cdc_ts\"\n[[tables.rule]]\nmatch = \"*\"\nconflict = \"dead_letter\"\n",
        )
        .unwrap();
        let lww = |node: Option<&str>| {
            Policy::Lww(VersionColumns {
                version: "cdc_ts".into(),
                node: node.map(str::to_owned),
            })
        };
        let expected = [
            ("public.accounts", lww(Some("cdc_node"))),
            ("a*", lww(None)),
            ("*", Policy::DeadLetter),
        ];
        let expected = expected.map(|(pattern, policy)| PolicyRule {
            pattern: pattern.into(),
            policy,
        });
        assert_eq!(read, expected);
    }

    #[test]
    fn every_issue_of_a_rule_has_its_line() {
        let text = "[[tables.rule]]\nmatch = \"\"\nconflicts = \"stop\"\n[[tables.rule]]\nmatch = \"t\"\n\
                    [[tables.rule]]\nmatch = \"t\"\nconflict = \"last\"\n[[tables.rule]]\nmatch = \"t\"\n\
                    conflict = \"lww\"\n[[tables.rule]]\nmatch = \"t\"\nconflict = \"stop\"\nversion = \"v\"\n\
                    [[tables.rule]]\nmatch = \"t\"\nconflict = \"lww\"\nversion = { colum = \"v\", node = 1 }\n";
        assert_eq!(
            rules(text).unwrap_err(),
            [
                "line 2, column 9: tables.rule.match: must not be empty",
                "line 3, column 1: unknown key in [[tables.rule]]: `conflicts`; did you mean `conflict`? (known: \
                 match, conflict, version)",
                "line 4, column 1: [[tables.rule]]: `conflict` is missing",
                "line 8, column 12: tables.rule.conflict: must be stop, blue_wins, green_wins, lww or dead_letter",
                "line 11, column 12: tables.rule.conflict: lww needs the column that holds a row's version",
                "line 14, column 12: tables.rule.conflict: stop knows no version column; lww does",
                "line 19, column 11: tables.rule.version: `column` is missing",
                "line 19, column 13: unknown key of a version: `colum`; did you mean `column`? (known: column, node)",
                "line 19, column 33: tables.rule.version.node: must be a string, not a whole number",
            ]
        );
        assert_eq!(
            rules("[tables]\nrule = \"t\"\n").unwrap_err(),
            ["line 2, column 8: tables.rule: must be tables `[[tables.rule]]`, not a string"]
        );
        assert_eq!(
            rules("[tables]\nrule = [1]\n").unwrap_err(),
            ["line 2, column 9: tables.rule: must be tables, not a whole number"]
        );
    }
}
