//! `report`: the account of a job, and what other verbs store for it.

use cdc_core::engine::{HistoryEvent, JobNames};
use cdc_core::{Error, Kind, Result, Site};
use serde_json::{Map, Value};

use super::args;
use super::session::Session;
use super::status::no_such_job;
use crate::exit;
use crate::output::Report;
use crate::report::{Account, Subject, policies};

pub(super) async fn report(session: &Session, args: &args::Report) -> Result<Report> {
    let (source, target, names) = session.connect_target().await?;
    let config_sha256 = session.settings.sha256();
    let subject = Subject {
        source: source.as_ref(),
        target: &target,
        names: &names,
        selection: &session.settings.selection,
        policies: &session.settings.conflicts,
        suffix: &session.suffix(&names),
        config_sha256: &config_sha256,
    };
    let Some(account) = Account::gather(&subject).await? else {
        return Err(no_such_job(session, &names));
    };
    let markdown = account.markdown(&names.job);
    let human = match &args.markdown {
        None => markdown,
        Some(path) => {
            std::fs::write(path, markdown).map_err(|error| {
                Error::new(Kind::Local, "cannot write the report")
                    .object(path.display().to_string())
                    .caused_by(error)
            })?;
            format!("wrote {}\n", path.display())
        }
    };
    Ok(Report::new(exit::OK, &account, human))
}

/// Adds what a verb did to the job's history. It is no reason for the verb to fail.
pub(super) async fn remember(
    session: &Session,
    target: &dyn Site,
    names: &JobNames,
    kind: &str,
    report: Option<&Report>,
) {
    let mut facts = report.map_or_else(Map::new, |report| report.body.clone());
    // Rows of tables are counted, and not kept one by one.
    if let Some(Value::Array(tables)) = facts.remove("tables") {
        let rows: u64 = tables
            .iter()
            .filter_map(|table| table["source_rows"].as_u64())
            .sum();
        facts.insert("tables".into(), tables.len().into());
        if rows > 0 {
            facts.insert("rows".into(), rows.into());
        }
    }
    if report.is_none() {
        facts.insert("policies".into(), policies(&session.settings.conflicts).into());
    }
    if let Some(error) = report.and_then(|report| report.error.as_ref()) {
        facts.insert("error".into(), error.message().into());
    }
    let event = HistoryEvent {
        time: String::new(),
        kind: kind.to_owned(),
        exit: report.map(|report| i32::from(report.exit)),
        config: Some(session.settings.sha256()),
        facts: Value::Object(facts).to_string(),
    };
    if let Err(error) = target.record(&names.job, &event).await {
        tracing::warn!(%error, "what was done could not be added to the job's history");
    }
}
