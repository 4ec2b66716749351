//! `conflicts`: what policies decided, and what waits for the operator to decide.

use cdc_core::conflict::ConflictRecord;
use cdc_core::{Error, Kind, Result};
use serde::Serialize;
use serde_json::Value;

use super::args::{Conflicts, Decide, Deed};
use super::session::{Session, Sites};
use super::status::no_such_job;
use crate::exit;
use crate::output::{Report, error_object};

/// Rows of the log that are read at a time.
const PAGE: u32 = 1000;

pub(super) async fn conflicts(session: &Session, args: &Conflicts) -> Result<Report> {
    let sites = session.connect().await?;
    let state = sites.target.stream_state(&sites.names.job).await?;
    if state.checkpoint.is_none() && state.seed.is_empty() {
        return Err(no_such_job(session, &sites.names));
    }
    match &args.deed {
        Deed::List(list) => {
            let records = selected(session, &sites, list.open, list.limit as usize).await?;
            let human = table(&records);
            Ok(Report::new(exit::OK, &Listed { conflicts: records }, human))
        }
        Deed::Show { id } => show(&sites, *id).await,
        Deed::Retry(decide) => decided(session, &sites, decide, Verdict::Retry).await,
        Deed::Discard(decide) => decided(session, &sites, decide, Verdict::Discard).await,
    }
}

#[derive(Debug, Serialize)]
struct Listed<T> {
    conflicts: Vec<T>,
}

/// The key as `a=1, b=NULL`.
fn key(record: &ConflictRecord) -> String {
    let columns = record.key.iter();
    let columns: Vec<String> = columns
        .map(|(column, text)| format!("{column}={}", text.as_deref().unwrap_or("NULL")))
        .collect();
    columns.join(", ")
}

/// Conflicts for people, one a line.
fn table(records: &[ConflictRecord]) -> String {
    if records.is_empty() {
        return "no conflicts\n".to_owned();
    }
    let head = [
        "id", "time", "table", "key", "op", "kind", "policy", "winner", "state",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(records.iter().map(|record| {
        [
            record.id.to_string(),
            record.time.clone(),
            record.table.to_string(),
            key(record),
            record.op.clone(),
            record.kind.clone(),
            record.policy.clone(),
            record.winner.clone(),
            record.state.clone(),
        ]
    }));
    let mut widths = [0; 9];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for line in &lines {
        let cells: Vec<String> = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A conflict with both rows.
#[derive(Debug, Serialize)]
struct Detail {
    #[serde(flatten)]
    record: ConflictRecord,
    blue: Value,
    green: Value,
    /// columns that the change carried and the target's row had otherwise
    differs: Vec<String>,
}

async fn show(sites: &Sites, id: i64) -> Result<Report> {
    let found = sites
        .target
        .conflicts(&sites.names.job, id.checked_add(1), 1, false)
        .await?;
    let record = found.into_iter().find(|record| record.id == id).ok_or_else(|| {
        Error::new(Kind::Config, "the job has no conflict of this number")
            .object(format!("conflict {id}"))
            .remedy("`cdc-sync conflicts list` shows them")
    })?;
    let detail = detail(record)?;
    let human = described(&detail);
    Ok(Report::new(
        exit::OK,
        &Listed {
            conflicts: vec![detail],
        },
        human,
    ))
}

fn detail(record: ConflictRecord) -> Result<Detail> {
    let parsed = |text: &Option<String>| match text {
        Some(text) => serde_json::from_str(text).map_err(|error| {
            Error::new(Kind::Protocol, "the log of conflicts holds what is no JSON")
                .object(format!("conflict {}", record.id))
                .caused_by(error)
        }),
        None => Ok(Value::Null),
    };
    let (blue, green): (Value, Value) = (parsed(&record.blue)?, parsed(&record.green)?);
    let differs = match (&blue, &green) {
        (Value::Object(blue), Value::Object(green)) => blue
            .iter()
            .filter(|(column, value)| green.get(*column) != Some(*value))
            .map(|(column, _)| column.clone())
            .collect(),
        _ => Vec::new(),
    };
    Ok(Detail {
        record,
        blue,
        green,
        differs,
    })
}

/// A conflict for people: what happened, then both rows column by column.
fn described(detail: &Detail) -> String {
    let record = &detail.record;
    let mut out = format!(
        "conflict {}: {}, {} of {} ({})\n  time      {}\n  position  {}\n  policy    {}\n  winner    {}\n  \
         state     {}\n",
        record.id,
        record.kind,
        record.op,
        record.table,
        key(record),
        record.time,
        record.position,
        record.policy,
        record.winner,
        record.state
    );
    out.push_str(&row("blue", &detail.blue, &detail.differs));
    match &detail.green {
        Value::Array(rows) => rows
            .iter()
            .for_each(|one| out.push_str(&row("green", one, &detail.differs))),
        one => out.push_str(&row("green", one, &detail.differs)),
    }
    if record.state == "open" {
        out.push_str(&format!(
            "next: cdc-sync conflicts retry {0}, or discard {0}\n",
            record.id
        ));
    }
    out
}

fn row(side: &str, row: &Value, differs: &[String]) -> String {
    let Value::Object(columns) = row else {
        return format!("  {side}: no row\n");
    };
    let mut out = format!("  {side}:\n");
    for (column, value) in columns {
        let mark = if differs.contains(column) { '*' } else { ' ' };
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let text = if value.is_null() { "NULL".to_owned() } else { text };
        out.push_str(&format!("  {mark} {column} = {text}\n"));
    }
    out
}

/// What the operator decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Retry,
    Discard,
}

impl Verdict {
    /// The verb, and the state that it leads to.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Retry => ("retry", "retried"),
            Self::Discard => ("discard", "discarded"),
        }
    }
}

#[derive(Debug, Serialize)]
struct Decided {
    dry_run: bool,
    conflicts: Vec<Outcome>,
}

/// What became of one.
#[derive(Debug, Serialize)]
struct Outcome {
    id: i64,
    /// `retried`, `discarded`, `refused`; with a dry run what it would be
    outcome: &'static str,
    error: Value,
}

async fn decided(session: &Session, sites: &Sites, decide: &Decide, verdict: Verdict) -> Result<Report> {
    let (verb, _) = verdict.words();
    let ids = if decide.all {
        open_ids(session, sites).await?
    } else {
        decide.ids.clone()
    };
    if ids.is_empty() {
        let body = Decided {
            dry_run: session.dry_run,
            conflicts: Vec::new(),
        };
        return Ok(Report::new(exit::OK, &body, "nothing to do\n".to_owned()));
    }
    if session.dry_run {
        return plan(session, sites, &ids, verdict).await;
    }
    let listed: Vec<String> = ids.iter().take(10).map(i64::to_string).collect();
    let more = if ids.len() > listed.len() { ", …" } else { "" };
    let question = format!("{verb} {} conflicts ({}{more})?", ids.len(), listed.join(", "));
    session.confirm(&question).await?;
    Ok(carry_out(sites, ids, verdict).await)
}

/// Decides one after the other; what is refused does not keep the others.
async fn carry_out(sites: &Sites, ids: Vec<i64>, verdict: Verdict) -> Report {
    let (_, done) = verdict.words();
    let (mut conflicts, mut human) = (Vec::new(), String::new());
    let mut failed: Option<Error> = None;
    for id in ids {
        let job = &sites.names.job;
        let performed = match verdict {
            Verdict::Retry => sites.target.retry_conflict(job, id).await,
            Verdict::Discard => sites.target.discard_conflict(job, id).await,
        };
        let Err(error) = performed else {
            human.push_str(&format!("{done} {id}\n"));
            conflicts.push(outcome(id, done, None));
            continue;
        };
        human.push_str(&format!("refused {id}: {}\n", error.message()));
        conflicts.push(outcome(id, "refused", Some(&error)));
        let away = matches!(error.kind(), Kind::Unreachable | Kind::Login);
        if away || failed.as_ref().is_none_or(|first| weighs_more(&error, first)) {
            failed = Some(error);
        }
        if away {
            break;
        }
    }
    let body = Decided {
        dry_run: false,
        conflicts,
    };
    Report::new(exit::OK, &body, human).with_error(failed)
}

/// Which error decides the exit code: a row that is in the way before a number that is none; otherwise the first.
fn weighs_more(error: &Error, first: &Error) -> bool {
    error.kind() == Kind::Conflict && first.kind() != Kind::Conflict
}

fn outcome(id: i64, outcome: &'static str, error: Option<&Error>) -> Outcome {
    Outcome {
        id,
        outcome,
        error: error.map_or(Value::Null, error_object),
    }
}

/// Conflicts of the selected tables, newest first.
async fn selected(session: &Session, sites: &Sites, open: bool, limit: usize) -> Result<Vec<ConflictRecord>> {
    let mut records: Vec<ConflictRecord> = Vec::new();
    let mut before = None;
    while records.len() < limit {
        let page = sites
            .target
            .conflicts(&sites.names.job, before, PAGE, open)
            .await?;
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        let of_selected = page
            .into_iter()
            .filter(|record| session.settings.selection.selects(&record.table));
        records.extend(of_selected);
    }
    records.truncate(limit);
    Ok(records)
}

/// The numbers of all of the selected tables that wait, in the order in which they were put aside: later changes build on
/// earlier ones.
async fn open_ids(session: &Session, sites: &Sites) -> Result<Vec<i64>> {
    let open = selected(session, sites, true, usize::MAX).await?;
    Ok(open.iter().rev().map(|record| record.id).collect())
}

/// `--dry-run`: which would be decided. Whether the target's row still is as it was shows only by doing it.
async fn plan(session: &Session, sites: &Sites, ids: &[i64], verdict: Verdict) -> Result<Report> {
    let open = open_ids(session, sites).await?;
    if let Some(id) = ids.iter().find(|id| !open.contains(id)) {
        return Err(
            Error::new(Kind::Config, "there is nothing to decide under this number")
                .object(format!("conflict {id}"))
                .remedy("`cdc-sync conflicts list --open` shows those that wait for a decision"),
        );
    }
    let (verb, done) = verdict.words();
    let human = ids.iter().map(|id| format!("would {verb} {id}\n")).collect();
    let body = Decided {
        dry_run: true,
        conflicts: ids.iter().map(|id| outcome(*id, done, None)).collect(),
    };
    Ok(Report::new(exit::OK, &body, human))
}
