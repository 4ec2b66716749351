//! Conflict policies by their names.

use cdc_core::conflict::{Policy, PolicyRule, VersionColumns};

/// The names that people may write. An embedding program that is asked has no name here.
const NAMES: &str = "stop, blue_wins, green_wins, lww or dead_letter";

/// The policy of a name. Version columns belong to `lww`, which needs them.
pub(super) fn policy(name: &str, version: Option<VersionColumns>) -> Result<Policy, String> {
    let policy = match name {
        "stop" => Policy::Stop,
        "blue_wins" => Policy::BlueWins,
        "green_wins" => Policy::GreenWins,
        "dead_letter" => Policy::DeadLetter,
        "lww" => {
            return version
                .map(Policy::Lww)
                .ok_or_else(|| "lww needs the column that holds a row's version".to_owned());
        }
        _ => return Err(format!("must be {NAMES}")),
    };
    match version {
        None => Ok(policy),
        Some(_) => Err(format!("{name} knows no version column; lww does")),
    }
}

/// A rule as a flag has it: `PATTERN=POLICY`, with `lww:COLUMN` or `lww:COLUMN,NODE_COLUMN`.
///
/// # Errors
/// Says what is expected.
pub fn parse_policy_rule(text: &str) -> Result<PolicyRule, String> {
    let (pattern, said) = text
        .split_once('=')
        .filter(|(pattern, _)| !pattern.is_empty())
        .ok_or("must be PATTERN=POLICY, such as `public.accounts=blue_wins`")?;
    let (name, columns) = match said.split_once(':') {
        Some((name, columns)) => (name, Some(columns)),
        None => (said, None),
    };
    let version = columns.map(|columns| {
        let (version, node) = match columns.split_once(',') {
            Some((version, node)) => (version, Some(node.to_owned())),
            None => (columns, None),
        };
        VersionColumns {
            version: version.to_owned(),
            node,
        }
    });
    let empty = |version: &VersionColumns| {
        version.version.is_empty() || version.node.as_ref().is_some_and(String::is_empty)
    };
    if version.as_ref().is_some_and(empty) {
        return Err("a column's name is missing; write `lww:COLUMN` or `lww:COLUMN,NODE_COLUMN`".to_owned());
    }
    let policy =
        policy(name, version).map_err(|message| format!("the policy: {message}; such as `lww:COLUMN`"));
    Ok(PolicyRule {
        pattern: pattern.to_owned(),
        policy: policy?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lww(version: &str, node: Option<&str>) -> Policy {
        Policy::Lww(VersionColumns {
            version: version.to_owned(),
            node: node.map(str::to_owned),
        })
    }

    #[test]
    fn a_flag_names_tables_and_their_policy() {
        for (text, pattern, policy) in [
            ("public.t=stop", "public.t", Policy::Stop),
            ("*=blue_wins", "*", Policy::BlueWins),
            ("t=green_wins", "t", Policy::GreenWins),
            ("t=dead_letter", "t", Policy::DeadLetter),
            ("t=lww:ts", "t", lww("ts", None)),
            ("t=lww:ts,node", "t", lww("ts", Some("node"))),
        ] {
            let rule = parse_policy_rule(text).unwrap();
            assert_eq!((rule.pattern.as_str(), rule.policy), (pattern, policy), "{text}");
        }
    }

    #[test]
    fn a_wrong_flag_says_what_is_expected() {
        for (text, part) in [
            ("t", "PATTERN=POLICY"),
            ("=stop", "PATTERN=POLICY"),
            ("t=", "must be stop, blue_wins"),
            ("t=ask", "must be stop, blue_wins"),
            ("t=lww", "lww needs the column"),
            ("t=lww:", "a column's name is missing"),
            ("t=lww:ts,", "a column's name is missing"),
            ("t=stop:ts", "stop knows no version column"),
        ] {
            let message = parse_policy_rule(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
