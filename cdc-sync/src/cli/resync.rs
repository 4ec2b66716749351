//! `resync`: has tables copied anew, or taken up, while the rest of the job goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use cdc_core::engine::{SeedPhase, Severity, TableInfo};
use cdc_core::{Error, Kind, Result, TableName};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::session::{Session, Sites};
use super::status::no_such_job;
use crate::check::compare_schemas;
use crate::output::Report;
use crate::{exit, job};

/// How often the target is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Serialize)]
struct Body {
    dry_run: bool,
    tables: Vec<Asked>,
    /// whether an instance ran, which was waited for
    running: bool,
}

/// A table that was asked for.
#[derive(Debug, Serialize)]
struct Asked {
    name: TableName,
    /// how it stood before; `None` for a table that the job did not have
    before: Option<SeedPhase>,
    /// whether it is complete and followed now
    live: bool,
}

pub(super) async fn resync(session: &Session) -> Result<Report> {
    let sites = session.bounded(session.connect()).await?;
    let mut tables = session.bounded(find(session, &sites)).await?;
    if session.dry_run {
        return Ok(report(tables, true, false));
    }
    let emptied = tables
        .iter()
        .filter(|table| table.before == Some(SeedPhase::Live));
    let (emptied, all) = (emptied.count(), tables.len());
    session
        .confirm(&format!(
            "copy {all} tables? {emptied} of them are emptied on the target, and incomplete there until the copy is done"
        ))
        .await?;
    let names: Vec<TableName> = tables.iter().map(|table| table.name.clone()).collect();
    sites.target.set_aside(&sites.names.job, &names).await?;
    let running = sites.target.holder(&sites.names.job).await?.is_some();
    if running {
        session.bounded(wait(session, &sites, &names)).await?;
        tables.iter_mut().for_each(|table| table.live = true);
    }
    Ok(report(tables, false, running))
}

/// The tables that are meant, each of which can be copied.
async fn find(session: &Session, sites: &Sites) -> Result<Vec<Asked>> {
    let Sites {
        source,
        target,
        names,
    } = sites;
    let state = target.stream_state(&names.job).await?;
    if state.checkpoint.is_none() {
        return Err(no_such_job(session, names));
    }
    let selection = &session.settings.selection;
    let of_source = source.inspect(selection).await?;
    if of_source.is_empty() {
        return Err(Error::new(Kind::Config, "no table of the source is meant")
            .object(selection.include.join(", "))
            .remedy("look at --table and --exclude: a pattern is schema.table, with * and ?"));
    }
    expect_fit(&of_source, &target.inspect(selection).await?)?;
    let phases: BTreeMap<TableName, SeedPhase> = state
        .seed
        .into_iter()
        .map(|seed| (seed.table, seed.phase))
        .collect();
    let asked = of_source.into_iter().map(|table| Asked {
        before: phases.get(&table.name).copied(),
        name: table.name,
        live: false,
    });
    Ok(asked.collect())
}

/// Refuses before anything is emptied what the copy would stop at. A table that the target lacks is created there.
fn expect_fit(of_source: &[TableInfo], of_target: &[TableInfo]) -> Result<()> {
    let there = |table: &&TableInfo| of_target.iter().any(|peer| peer.name == table.name);
    let compared: Vec<TableInfo> = of_source.iter().filter(there).cloned().collect();
    let findings = compare_schemas(&compared, of_target);
    let worst = findings
        .into_iter()
        .find(|finding| finding.severity == Severity::Fail);
    let Some(finding) = worst else { return Ok(()) };
    Err(Error::new(Kind::Check, finding.message)
        .object(finding.object)
        .remedy(finding.remedy))
}

/// Waits until the running instance has brought the tables back.
async fn wait(session: &Session, sites: &Sites, tables: &[TableName]) -> Result<()> {
    let Sites { target, names, .. } = sites;
    let beside = job::beside(names);
    let bar = session.canvas.add(ProgressBar::new_spinner());
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    loop {
        let aside = target.aside(&names.job).await?;
        let left = tables.iter().filter(|table| aside.contains(table)).count();
        // Foreign keys and triggers of tables that were created come after the rows.
        let state = target.stream_state(&beside.job).await?;
        let unfinished = state.seed.iter().any(|seed| tables.contains(&seed.table));
        if left == 0 && !unfinished {
            bar.finish_and_clear();
            return Ok(());
        }
        if target.holder(&names.job).await?.is_none() {
            bar.finish_and_clear();
            return Err(Error::new(
                Kind::Deadline,
                "the running instance has ended before the tables were complete; all that is done is kept",
            )
            .object(format!("job {}", names.job))
            .remedy(
                "start `cdc-sync run`: it takes them up again, and says what is in the way if something is",
            ));
        }
        let copied = state
            .seed
            .iter()
            .filter(|seed| seed.phase == SeedPhase::Live)
            .count();
        bar.set_message(format!(
            "{copied} copied, {left} of {} to come back",
            tables.len()
        ));
        bar.tick();
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn report(tables: Vec<Asked>, dry_run: bool, running: bool) -> Report {
    let mut human = String::new();
    for table in &tables {
        let what = match (table.live, table.before) {
            (true, _) => "copied anew and followed",
            (false, None) => "to be taken into the job",
            (false, Some(SeedPhase::Live)) => "to be copied anew",
            (false, Some(_)) => "not copied yet: it is taken up anyway",
        };
        human.push_str(&format!("{}: {what}\n", table.name));
    }
    if !running && !dry_run {
        human.push_str(
            "no instance of the job runs: the next `cdc-sync run` copies them while it follows the others\n",
        );
    }
    let body = Body {
        dry_run,
        tables,
        running,
    };
    Report::new(exit::OK, &body, human)
}
