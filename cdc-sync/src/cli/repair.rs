//! `repair`: brings the target's rows to the source's where they differ.

use cdc_core::{Error, Kind, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::human::count;
use super::report::remember;
use super::session::Session;
use super::status::no_such_job;
use super::verify::show;
use crate::output::{self, Report};
use crate::repair::{Repair, RepairReport, RepairedTable};
use crate::verify::{Progress, VerifyOptions};

pub(super) async fn repair(session: &Session) -> Result<Report> {
    let deadline = session.timeout.map(|limit| tokio::time::Instant::now() + limit);
    let sites = session.bounded(session.connect()).await?;
    let state = session
        .bounded(sites.target.stream_state(&sites.names.job))
        .await?;
    if state.checkpoint.is_none() {
        return Err(no_such_job(session, &sites.names));
    }
    let options = VerifyOptions {
        deadline,
        ..VerifyOptions::default()
    };
    let bar = session.canvas.add(ProgressBar::new_spinner());
    let style = ProgressStyle::with_template("{spinner} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let shown = |progress: Progress<'_>| show(&bar, progress);
    let repair = Repair {
        source: &sites.source,
        target: &sites.target,
        names: &sites.names,
        selection: &session.settings.selection,
        options: &options,
        progress: &shown,
    };
    let repaired = tokio::select! {
        repaired = surveyed_and_written(session, &repair) => repaired,
        () = session.stop.wait() => Err(Error::new(Kind::Interrupted, "interrupted before the repair was complete")
            .remedy("what was written stays; repair again for the rest")),
    };
    bar.finish_and_clear();
    let mut report = repaired?;
    let open = sites.target.open_conflicts(&sites.names.job).await?;
    if open > 0 {
        report.notes.push(format!(
            "{open} changes that a policy put aside still wait: a repaired row has what they would bring, and more; \
             discard those of repaired tables (`cdc-sync conflicts list --open`)"
        ));
    }
    let dry_run = report.dry_run;
    let report = Report::new(report.exit_code(), &report, human(&report));
    if !dry_run {
        remember(
            session,
            sites.target.as_ref(),
            &sites.names,
            "repair",
            Some(&report),
        )
        .await;
    }
    Ok(report)
}

async fn surveyed_and_written(session: &Session, repair: &Repair<'_>) -> Result<RepairReport> {
    let survey = repair.survey().await?;
    let mut planned = RepairReport::planned(&survey.report);
    planned.dry_run = session.dry_run;
    if session.dry_run || planned.differences == 0 {
        return Ok(planned);
    }
    output::notice(&listed(&planned, "would "));
    let totals = &planned.totals;
    let rows = totals.inserted + totals.updated + totals.deleted;
    session
        .confirm(&format!("write {} rows to the target?", count(rows)))
        .await?;
    let outcome = repair.write(&survey).await?;
    repair.compare_again(&survey, &outcome).await
}

fn listed(report: &RepairReport, would: &str) -> String {
    let differs =
        |table: &&RepairedTable| table.remaining + table.inserted + table.updated + table.deleted > 0;
    report
        .tables
        .iter()
        .filter(differs)
        .map(|table| {
            format!(
                "{would}insert {}, update {}, delete {}  {}\n",
                count(table.inserted),
                count(table.updated),
                count(table.deleted),
                table.name
            )
        })
        .collect()
}

fn human(report: &RepairReport) -> String {
    let mut out = String::new();
    for note in &report.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    let done = report.totals.inserted + report.totals.updated + report.totals.deleted;
    if report.dry_run {
        out.push_str(&listed(report, "would "));
    } else if done > 0 {
        out.push_str(&listed(report, "did "));
    }
    for table in &report.tables {
        if let Some(reason) = &table.unverifiable {
            out.push_str(&format!("left as it is  {}: {reason}\n", table.name));
        }
    }
    out.push_str(&match (done, report.differences, report.unverifiable) {
        (0, 0, 0) => "nothing to repair\n".to_owned(),
        (_, 0, 0) => format!("equal: {} rows written\n", count(done)),
        (_, differences, unverifiable) => format!(
            "{} rows differ{}, {unverifiable} tables not compared or not written\n",
            count(differences),
            if report.dry_run { "" } else { " still" }
        ),
    });
    out
}
