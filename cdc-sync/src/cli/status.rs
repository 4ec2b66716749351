//! `status`: where the job stands, asked of both databases.

use std::io::IsTerminal;
use std::time::Duration;

use cdc_core::engine::JobNames;
use cdc_core::model::ChangeCounts;
use cdc_core::{Error, Kind, Result};

use super::args;
use super::human::{bytes, count, millis};
use super::session::{Session, Sites};
use crate::exit;
use crate::output::{self, Printed, Report};
use crate::status::{Facts, SetbackReport, Slot, Status};

/// Time between two looks of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Clears the screen and goes to its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

pub(super) async fn status(session: &Session, args: &args::Status) -> Result<Report> {
    let sites = session.connect().await?;
    look(session, &sites, args).await
}

/// Repeats until stopped or nobody reads. An outage is shown and waited out; a job that is gone ends it.
pub(super) async fn watch(session: &Session, args: &args::Status) -> Result<Report> {
    let mut sites = Some(session.bounded(session.connect()).await?);
    loop {
        let looked = match &sites {
            Some(sites) => session.bounded(look(session, sites, args)).await,
            None => Err(interrupted_by_outage()),
        };
        match looked {
            Ok(report) => {
                if show(session, &report) == Printed::ReaderGone {
                    return Ok(silent(report.exit));
                }
            }
            Err(_) if session.stop.requested() => return Ok(silent(exit::OK)),
            Err(error) if error.kind() == Kind::Config => return Err(error),
            Err(error) => {
                output::notice(&output::describe(&error));
                sites = session.bounded(session.connect()).await.ok();
            }
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_EVERY) => {}
            () = session.stop.wait() => return Ok(silent(exit::OK)),
        }
    }
}

fn interrupted_by_outage() -> Error {
    Error::new(Kind::Unreachable, "a server is away; trying again")
}

/// A report that says no more than its exit code: everything was printed on the way.
fn silent(exit: u8) -> Report {
    Report::new(exit, &serde_json::json!({}), String::new())
}

fn show(session: &Session, report: &Report) -> Printed {
    if session.json {
        return output::data(&format!("{}\n", report.envelope("status", session.job())));
    }
    let clear = if std::io::stdout().is_terminal() {
        CLEAR
    } else {
        ""
    };
    output::data(&format!("{clear}{}", report.human))
}

async fn look(session: &Session, sites: &Sites, args: &args::Status) -> Result<Report> {
    let names = &sites.names;
    let facts = Facts::gather(&sites.source, &sites.target, names).await?;
    let facts = facts.ok_or_else(|| no_such_job(session, names))?;
    let status = facts.status(&session.suffix(names));
    let unmet = args
        .gate
        .as_deref()
        .filter(|gate| status.gates.get(gate) != Some(&true));
    let exit = if unmet.is_some() { exit::GATE } else { exit::OK };
    let mut human = screen(sites, &status);
    if let Some(gate) = unmet {
        human.push_str(&format!("gate {gate} is not met\n"));
    }
    Ok(Report::new(exit, &status, human))
}

/// Neither database knows the job.
pub(super) fn no_such_job(session: &Session, names: &JobNames) -> Error {
    Error::new(Kind::Config, "there is no such job between these databases")
        .object(format!("job {}", names.job))
        .remedy(format!("start it: cdc-sync run {}", session.suffix(names)))
}

fn screen(sites: &Sites, status: &Status) -> String {
    let mut out = format!("job {}: {}\n", sites.names.job, status.state);
    let mut line = |name: &str, text: String| out.push_str(&format!("  {name:8} {text}\n"));
    for (name, site) in [("source", &sites.source), ("target", &sites.target)] {
        line(
            name,
            format!("{}  {}", site.identity().product, site.display_url()),
        );
    }
    if let Some(holder) = &status.holder {
        line("held by", holder.clone());
    }
    let lag = &status.lag;
    let behind = lag.bytes.map_or_else(|| "unknown".to_owned(), bytes);
    line(
        "lag",
        format!(
            "heartbeat {}, commit {}, staleness {}, {behind} of log not applied",
            millis(lag.heartbeat_ms),
            millis(lag.commit_ms),
            millis(lag.staleness_ms)
        ),
    );
    let tables = &status.tables;
    line(
        "tables",
        format!(
            "{} live, {} copying, {} to do",
            tables.live, tables.copying, tables.todo
        ),
    );
    line("slot", slot(status.slot.as_ref()));
    line("changes", changes(&status.changes));
    if !status.conflicts.is_empty() {
        let kinds: Vec<String> = status
            .conflicts
            .iter()
            .map(|(kind, met)| format!("{} {kind}", count(*met)))
            .collect();
        line(
            "conflict",
            format!(
                "{}; {} to be decided",
                kinds.join(", "),
                count(status.open_conflicts)
            ),
        );
    }
    let applied = status.position.applied.as_deref().unwrap_or("nothing");
    line(
        "applied",
        format!("{applied} in {} transactions", count(status.transactions)),
    );
    if let Some(error) = &status.last_error {
        line("fault", error.clone());
    }
    match &status.setback {
        None => line("next", status.next_command.clone()),
        Some(setback) => {
            line("aside", not_back(setback));
            let remedy = setback.remedy.as_deref().unwrap_or("mend what is said");
            line("next", format!("{remedy} (it is tried again by itself)"));
        }
    }
    out
}

fn slot(slot: Option<&Slot>) -> String {
    let Some(slot) = slot else {
        return "none on the source".to_owned();
    };
    let safe = slot
        .safe_bytes
        .map_or_else(|| "no limit".to_owned(), |safe| format!("{} left", bytes(safe)));
    format!(
        "{} of log retained ({safe}), {}",
        bytes(slot.retained_bytes),
        slot.wal_status
    )
}

fn changes(changes: &ChangeCounts) -> String {
    format!(
        "{} read = {} applied + {} filtered + {} loop + {} superseded + {} dead-lettered",
        count(changes.read),
        count(changes.applied),
        count(changes.filtered),
        count(changes.looped),
        count(changes.superseded),
        count(changes.dead_lettered)
    )
}

/// Why tables that are set aside do not come back.
fn not_back(setback: &SetbackReport) -> String {
    let object = setback.object.as_deref().unwrap_or("tables that are set aside");
    let retained = setback.retained_bytes.map_or_else(String::new, |retained| {
        format!("; {} of log retained for them", bytes(retained))
    });
    format!("not coming back: {object}: {}{retained}", setback.message)
}
