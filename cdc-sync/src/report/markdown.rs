//! The account as a document for people.

use std::fmt::Display;

use serde_json::Value;

use super::{Account, Event, SiteAccount};

/// The whole document.
pub(super) fn document(account: &Account, job: &str) -> String {
    let mut out = format!("# Report of job {job}\n");
    let mut add = |section: String| {
        out.push('\n');
        out.push_str(&section);
    };
    add(head(account));
    if !account.missing.is_empty() {
        add(list("Missing from this report", account.missing.iter()));
    }
    add(state(account));
    add(timings(account));
    add(changes(account));
    add(tables(account));
    add(sequences(account));
    add(conflicts(account));
    add(event("Last verify", account.verify.as_ref()));
    add(event("Last repair", account.repair.as_ref()));
    add(not_carried(account));
    add(findings(account));
    out
}

fn head(account: &Account) -> String {
    let site = |site: &SiteAccount| format!("{}, {}, system {}", site.url, site.product, site.system);
    table(
        ["", ""],
        [
            ["program".to_owned(), account.program.clone()],
            ["generated".to_owned(), account.generated_at.clone()],
            ["settings, SHA-256".to_owned(), account.config_sha256.clone()],
            [
                "source".to_owned(),
                account
                    .source
                    .as_ref()
                    .map_or_else(|| "not reached".to_owned(), site),
            ],
            ["target".to_owned(), site(&account.target)],
        ],
    )
}

fn state(account: &Account) -> String {
    let status = &account.status;
    let known = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
    let slot = status.slot.as_ref();
    let rows = [
        ["state".to_owned(), status.state.clone()],
        [
            "source's log ends at".to_owned(),
            known(status.position.source.clone()),
        ],
        ["applied up to".to_owned(), known(status.position.applied.clone())],
        [
            "log not applied, bytes".to_owned(),
            known(status.lag.bytes.map(|bytes| bytes.to_string())),
        ],
        [
            "log retained, bytes".to_owned(),
            known(slot.map(|slot| format!("{} ({})", slot.retained_bytes, slot.wal_status))),
        ],
        [
            "lag: heartbeat, commit, staleness in ms".to_owned(),
            [
                status.lag.heartbeat_ms,
                status.lag.commit_ms,
                status.lag.staleness_ms,
            ]
            .map(|ms| ms.map_or_else(|| "unknown".to_owned(), |ms| format!("{ms:.0}")))
            .join(", "),
        ],
    ];
    format!("## State\n\n{}", table(["", ""], rows))
}

fn timings(account: &Account) -> String {
    let timings = &account.timings;
    let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let mut rows = vec![["begun".to_owned(), or_unknown(&timings.begun)]];
    rows.push([
        "copied".to_owned(),
        timings.seeded.as_ref().map_or_else(
            || "unknown".to_owned(),
            |event| format!("{} ({})", event.time, facts(&event.facts)),
        ),
    ]);
    rows.push(["caught up".to_owned(), timings.caught_up.join(", ")]);
    rows.push([
        "newest commit applied".to_owned(),
        or_unknown(&timings.last_applied_commit),
    ]);
    let runs = timings.runs.iter().map(|event| {
        [
            event.time.clone(),
            event.kind.replace('_', " "),
            event.exit.map_or_else(String::new, |exit| exit.to_string()),
            event.config_sha256.clone().unwrap_or_default(),
        ]
    });
    format!(
        "## Timings\n\n{}\n{}",
        table(["", ""], rows),
        table(["time", "run", "exit", "settings"], runs)
    )
}

fn changes(account: &Account) -> String {
    let counts = &account.status.changes;
    let rows = [
        ("read", counts.read),
        ("applied", counts.applied),
        ("coalesced", counts.coalesced),
        ("loop", counts.looped),
        ("filtered", counts.filtered),
        ("superseded", counts.superseded),
        ("dead-lettered", counts.dead_lettered),
        ("internal", counts.internal),
    ];
    let accounting = &account.accounting;
    let verdict = if accounting.balanced {
        "every change that was read is accounted for"
    } else {
        "NOT EVERY CHANGE IS ACCOUNTED FOR"
    };
    format!(
        "## Changes\n\n{}\n{verdict}: {} read, {} accounted for.\n",
        table(
            ["", "changes"],
            rows.map(|(name, count)| [name.to_owned(), count.to_string()])
        ),
        accounting.read,
        accounting.accounted
    )
}

fn tables(account: &Account) -> String {
    let rows = account.tables.iter().map(|one| {
        [
            one.name.to_string(),
            format!("{:?}", one.phase).to_lowercase(),
            one.rows.to_string(),
            one.bytes.to_string(),
        ]
    });
    format!(
        "## Tables\n\n{}",
        table(["table", "copy", "rows copied", "bytes copied"], rows)
    )
}

fn sequences(account: &Account) -> String {
    let rows = account.sequences.iter().map(|one| {
        [
            one.name.to_string(),
            one.source.to_string(),
            one.target
                .map_or_else(|| "not there".to_owned(), |value| value.to_string()),
        ]
    });
    format!(
        "## Sequences\n\n{}",
        table(["sequence", "source", "target"], rows)
    )
}

fn conflicts(account: &Account) -> String {
    let conflicts = &account.conflicts;
    let kinds = conflicts.by_kind.iter();
    let kinds = kinds.map(|(kind, count)| [kind.clone(), count.to_string()]);
    let newest = conflicts.newest.iter().map(|one| {
        [
            one.id.to_string(),
            one.time.clone(),
            one.table.to_string(),
            one.kind.clone(),
            one.policy.clone(),
            one.winner.clone(),
            one.state.clone(),
        ]
    });
    let mut out = format!(
        "## Conflicts\n\n{} wait for a decision.\n\n{}\n{}",
        conflicts.open,
        table(["kind", "conflicts"], kinds),
        table(
            ["id", "time", "table", "kind", "policy", "winner", "state"],
            newest
        )
    );
    if !conflicts.policies.is_empty() {
        out.push('\n');
        out.push_str(&list("Policies", conflicts.policies.iter()));
    }
    out
}

fn event(title: &str, event: Option<&Event>) -> String {
    match event {
        None => format!("## {title}\n\nnone\n"),
        Some(event) => {
            let exit = event
                .exit
                .map_or_else(|| "unknown".to_owned(), |exit| exit.to_string());
            format!(
                "## {title}\n\n{}, exit {exit}: {}\n",
                event.time,
                facts(&event.facts)
            )
        }
    }
}

fn not_carried(account: &Account) -> String {
    let rows = account.not_carried.iter().map(|one| {
        [
            one.id.to_owned(),
            one.object.clone(),
            one.message.clone(),
            one.remedy.clone(),
        ]
    });
    format!(
        "## Not carried\n\n{}",
        table(["finding", "what", "why", "what to do"], rows)
    )
}

fn findings(account: &Account) -> String {
    let rows = account.findings.iter().map(|one| {
        [
            format!("{:?}", one.severity).to_lowercase(),
            one.id.to_owned(),
            one.object.clone(),
            one.message.clone(),
        ]
    });
    format!(
        "## Findings\n\n{}",
        table(["", "finding", "object", "message"], rows)
    )
}

/// `a 1, b 2` of a JSON object; what is nested is left to the JSON report.
fn facts(facts: &Value) -> String {
    let Value::Object(facts) = facts else {
        return String::new();
    };
    let plain = facts.iter().filter_map(|(name, value)| match value {
        Value::Null | Value::Object(_) | Value::Array(_) => None,
        Value::String(text) => Some(format!("{name} {text}")),
        other => Some(format!("{name} {other}")),
    });
    plain.collect::<Vec<_>>().join(", ")
}

fn list(title: &str, items: impl Iterator<Item = impl Display>) -> String {
    let items: String = items.map(|item| format!("- {item}\n")).collect();
    format!("## {title}\n\n{items}")
}

/// A table, or `none` without rows.
fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let rows: Vec<String> = rows
        .into_iter()
        .map(|row| line(row.iter().map(|cell| escaped(cell)).collect()))
        .collect();
    if rows.is_empty() {
        return "none\n".to_owned();
    }
    let head = line(head.iter().map(|cell| (*cell).to_owned()).collect());
    format!("{head}|{}\n{}", "---|".repeat(N), rows.concat())
}

/// A cell must not end its row or column.
fn escaped(cell: &str) -> String {
    cell.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_keep_their_shape() {
        assert_eq!(
            table(["a", "b"], [["x|y".to_owned(), "1\n2".to_owned()]]),
            "| a | b |\n|---|---|\n| x\\|y | 1 2 |\n"
        );
        assert_eq!(table::<1>(["a"], []), "none\n");
    }

    #[test]
    fn facts_are_told_in_a_line() {
        let told = facts(&serde_json::json!({"rows": 7, "position": "0/10", "more": {}, "none": null}));
        assert_eq!(told, "rows 7, position 0/10");
        assert_eq!(event("Last verify", None), "## Last verify\n\nnone\n");
    }
}
