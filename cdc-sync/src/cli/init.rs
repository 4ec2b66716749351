//! `init`: files to start from; nothing is executed on a database.

use std::path::{Path, PathBuf};

use cdc_core::engine::{Partitions, Side};
use cdc_core::{Error, Kind, Result};
use serde::Serialize;

use super::args::Init;
use super::session::{Session, Sites};
use crate::config::{DatabaseUrl, template, toml_string};
use crate::exit;
use crate::output::Report;
use crate::redact::has_secret;

/// The job file's name where -c does not say another.
const JOB_FILE: &str = "cdc-sync.toml";

#[derive(Debug, Serialize)]
struct Body {
    files: Vec<String>,
}

pub(super) async fn init(session: &Session, args: &Init) -> Result<Report> {
    let settings = &session.settings;
    let job_file = session.config.clone().unwrap_or_else(|| args.dir.join(JOB_FILE));
    let sites = match (&settings.source, &settings.target) {
        (Some(_), Some(_)) => Some(session.connect().await?),
        _ => None,
    };
    let job = sites
        .as_ref()
        .map_or(settings.job.as_deref(), |sites| Some(&sites.names.job));
    let mut files = vec![(job_file.clone(), template(job, &values(session)))];
    if let Some(sites) = &sites {
        files.extend(statements(session, sites, &args.dir).await?);
    }
    if session.dry_run {
        let human = files
            .iter()
            .map(|(path, text)| format!("--- {}\n{text}", path.display()))
            .collect();
        return Ok(report(&files, human));
    }
    let existing: Vec<String> = files
        .iter()
        .filter(|(path, _)| path.exists())
        .map(|(path, _)| path.display().to_string())
        .collect();
    if !existing.is_empty() {
        session
            .confirm(&format!("overwrite {}?", existing.join(", ")))
            .await?;
    }
    files.iter().try_for_each(|(path, text)| write(path, text))?;
    let mut human: String = files
        .iter()
        .map(|(path, _)| format!("wrote {}\n", path.display()))
        .collect();
    human.push_str(&format!("next: cdc-sync check -c {}\n", job_file.display()));
    Ok(report(&files, human))
}

fn report(files: &[(PathBuf, String)], human: String) -> Report {
    let files = files.iter().map(|(path, _)| path.display().to_string()).collect();
    Report::new(exit::OK, &Body { files }, human)
}

/// What the user said, as values of the job file. A URL with a password stays in the environment.
fn values(session: &Session) -> Vec<(&'static str, String)> {
    let settings = &session.settings;
    let mut values = Vec::new();
    let mut url = |key, url: &Option<DatabaseUrl>| {
        if let Some(url) = url.as_ref().filter(|url| !has_secret(url.expose())) {
            values.push((key, toml_string(url.expose())));
        }
    };
    url("source.url", &settings.source);
    url("target.url", &settings.target);
    let mut patterns = |key, patterns: &[String]| {
        if !patterns.is_empty() {
            let items: Vec<String> = patterns.iter().map(|pattern| toml_string(pattern)).collect();
            values.push((key, format!("[{}]", items.join(", "))));
        }
    };
    patterns("tables.include", &settings.selection.include);
    patterns("tables.exclude", &settings.selection.exclude);
    if settings.selection.partitions != Partitions::default() {
        values.push((
            "tables.partitions",
            toml_string(&settings.selection.partitions.to_string()),
        ));
    }
    values
}

async fn statements(session: &Session, sites: &Sites, dir: &Path) -> Result<Vec<(PathBuf, String)>> {
    let selection = &session.settings.selection;
    let mut files = Vec::new();
    for (site, side, name) in [
        (&sites.source, Side::Source, "source"),
        (&sites.target, Side::Target, "target"),
    ] {
        let statements = site.preparation(side, &sites.names, selection).await?;
        let text = format!(
            "-- What `cdc-sync run` executes on the {name} of job {}. For review; do not run it yourself.\n{}\n",
            sites.names.job,
            statements.join("\n")
        );
        files.push((dir.join(format!("cdc-sync-{name}.sql")), text));
    }
    Ok(files)
}

fn write(path: &Path, text: &str) -> Result<()> {
    let written = std::fs::write(path, text);
    written.map_err(|error| {
        Error::new(Kind::Config, "cannot write the file")
            .object(path.display().to_string())
            .remedy("give a folder that exists and can be written with --dir or -c")
            .caused_by(error)
    })
}
