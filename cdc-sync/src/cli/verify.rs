//! `verify`: compares every row of both sides.

use cdc_core::{Error, Kind, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::human::count;
use super::report::remember;
use super::session::Session;
use crate::output::Report;
use crate::verify::{Progress, TableReport, VerifyOptions, VerifyReport};

pub(super) async fn verify(session: &Session) -> Result<Report> {
    let deadline = session.timeout.map(|limit| tokio::time::Instant::now() + limit);
    let sites = session.bounded(session.connect()).await?;
    let options = VerifyOptions {
        deadline,
        ..VerifyOptions::default()
    };
    let bar = session.canvas.add(ProgressBar::new_spinner());
    let style = ProgressStyle::with_template("{spinner} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let shown = |progress: Progress<'_>| show(&bar, progress);
    let comparison = crate::verify::verify(
        &sites.source,
        &sites.target,
        &sites.names,
        &session.settings.selection,
        &options,
        &shown,
    );
    let compared = tokio::select! {
        compared = comparison => compared,
        () = session.stop.wait() => Err(Error::new(Kind::Interrupted, "interrupted before the comparison was complete")),
    };
    bar.finish_and_clear();
    let report = compared?;
    let report = Report::new(report.exit_code(), &report, human(&report));
    remember(
        session,
        sites.target.as_ref(),
        &sites.names,
        "verify",
        Some(&report),
    )
    .await;
    Ok(report)
}

pub(super) fn show(bar: &ProgressBar, progress: Progress<'_>) {
    match progress {
        Progress::Waiting { what } => bar.set_message(format!("waiting: {what}")),
        Progress::Comparing { table, rows } => bar.set_message(format!("{table}: {} rows", count(rows))),
        Progress::Repairing { table, rows, of } => {
            bar.set_message(format!(
                "{table}: {} of {} rows looked at again",
                count(rows),
                count(of)
            ));
        }
        Progress::Compared { table, done, of } => {
            let rows = table.source_rows;
            tracing::info!(table = %table.name, rows, differences = table.differences(), done, of, "compared");
            bar.set_message(format!("{done}/{of} tables, {} compared", table.name));
        }
    }
    bar.tick();
}

fn human(report: &VerifyReport) -> String {
    let mut out = String::new();
    for note in &report.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    for table in &report.tables {
        out.push_str(&verdict(table));
    }
    let rows: u64 = report.tables.iter().map(|table| table.source_rows).sum();
    let tables = report.tables.len();
    out.push_str(&match (report.differences, report.unverifiable) {
        (0, 0) => format!("equal: {} rows in {tables} tables\n", count(rows)),
        (differences, unverifiable) => format!(
            "{} differences, {unverifiable} of {tables} tables not compared, {} rows read\n",
            count(differences),
            count(rows)
        ),
    });
    out
}

fn verdict(table: &TableReport) -> String {
    let name = &table.name;
    let mut out = match (&table.unverifiable, table.differences()) {
        (Some(reason), 0) => format!("not compared  {name}: {reason}\n"),
        (reason, differences) if differences > 0 => {
            let reason = reason
                .as_ref()
                .map_or_else(String::new, |reason| format!("; {reason}"));
            format!(
                "different     {name}: {} missing, {} extra, {} different{reason}\n",
                count(table.missing),
                count(table.extra),
                count(table.different)
            )
        }
        _ => format!("equal         {name}: {} rows\n", count(table.source_rows)),
    };
    for (key, kind) in table.keys.iter().zip(&table.kinds) {
        let columns: Vec<String> = key
            .0
            .iter()
            .map(|(column, text)| format!("{column}={}", text.as_deref().unwrap_or("NULL")))
            .collect();
        let kind = format!("{kind:?}").to_lowercase();
        out.push_str(&format!("              {kind:9} {}\n", columns.join(", ")));
    }
    out
}
