//! `resync`: has tables copied anew, or taken up, while the rest of the job goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cdc_core::engine::{Partitions, SeedPhase, Severity, TableInfo, matches_pattern};
use cdc_core::{Error, Kind, Result, TableName, TableSelection};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::session::{Session, Sites};
use super::status::no_such_job;
use crate::check::compare_schemas;
use crate::output::Report;
use crate::references::References;
use crate::status::{Published, SetbackReport};
use crate::{exit, job, output};

/// How often the target is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Serialize)]
struct Body {
    dry_run: bool,
    tables: Vec<Asked>,
    /// whether an instance ran, which was waited for
    running: bool,
    /// why the newest attempt failed, when one of the tables was set aside before
    setback: Option<SetbackReport>,
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
    let before = session.bounded(setback(&sites)).await?;
    let again = |table: &Asked| table.before == Some(SeedPhase::Aside);
    let failed = before.clone().filter(|_| tables.iter().any(again));
    if session.dry_run {
        return Ok(report(tables, true, false, failed));
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
        session
            .bounded(wait(session, &sites, &names, before.as_ref()))
            .await?;
        tables.iter_mut().for_each(|table| table.live = true);
    }
    Ok(report(tables, false, running, failed.filter(|_| !running)))
}

/// What the newest attempt to bring tables back met, by what the job's newest instance said last.
async fn setback(sites: &Sites) -> Result<Option<SetbackReport>> {
    let said = sites.target.published_status(&sites.names.job).await?;
    let said = said.and_then(|said| serde_json::from_str::<Published>(&said.status).ok());
    Ok(said.and_then(|said| said.setback))
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
    for pattern in &selection.include {
        let met = of_source
            .iter()
            .any(|table| matches_pattern(pattern, &table.name));
        if !met && (of_source.is_empty() || !pattern.contains(['*', '?'])) {
            return Err(not_meant(sites, selection, pattern).await?);
        }
    }
    expect_fit(&of_source, &target.inspect(selection).await?)?;
    let mut together: BTreeSet<TableName> = of_source.iter().map(|table| table.name.clone()).collect();
    let aside = state.seed.iter().filter(|seed| seed.phase == SeedPhase::Aside);
    together.extend(aside.map(|seed| seed.table.clone()));
    let of_job: BTreeSet<TableName> = state.seed.iter().map(|seed| seed.table.clone()).collect();
    expect_unreferred(sites, selection.partitions, &together, &of_job).await?;
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

/// Why `pattern` means no table that can be copied.
async fn not_meant(sites: &Sites, selection: &TableSelection, pattern: &str) -> Result<Error> {
    let (partitions, what, remedy) = match selection.partitions {
        Partitions::Leaves => (
            Partitions::Root,
            "it is a partitioned table, and its partitions are tables of the job",
            "name the partitions, or with a pattern all of them; a job that began with --partitions root has it as one",
        ),
        Partitions::Root => (
            Partitions::Leaves,
            "it is a partition, and the job has the partitioned table as one (--partitions root)",
            "name the partitioned table",
        ),
    };
    let otherwise = TableSelection {
        include: vec![pattern.to_owned()],
        partitions,
        ..TableSelection::default()
    };
    let error = |what: &str, remedy: &str| {
        Error::new(Kind::Config, what)
            .object(pattern.to_owned())
            .remedy(remedy)
    };
    if !sites.source.inspect(&otherwise).await?.is_empty() {
        return Ok(error(what, remedy));
    }
    Ok(match sites.source.never_replicated(pattern).await? {
        Some(what) => error(
            &format!("on the source it is {what}: it is not replicated"),
            "name tables that are; `cdc-sync check` says what is left behind",
        ),
        None => error(
            "no table of the source is meant",
            "look at --table and --exclude: a pattern is schema.table, with * and ?",
        ),
    })
}

/// Refuses tables that cannot be emptied, because foreign keys are checked and rows of other tables refer to theirs.
async fn expect_unreferred(
    sites: &Sites,
    partitions: Partitions,
    together: &BTreeSet<TableName>,
    of_job: &BTreeSet<TableName>,
) -> Result<()> {
    let all = TableSelection {
        partitions,
        ..TableSelection::default()
    };
    let references = References::of(&sites.target.target_tables(&all).await?);
    let referring = references.referring(together);
    if referring.is_empty() {
        return Ok(());
    }
    let list = |tables: &mut dyn Iterator<Item = &TableName>| -> String {
        tables.map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let others: Vec<&TableName> = referring
        .iter()
        .filter(|table| !of_job.contains(*table))
        .collect();
    let unchecked = "give the role on the target the right to load rows without that check (`cdc-sync check --print-grants`)";
    let remedy = if others.is_empty() {
        let tables = together.iter().chain(&referring);
        let flags: Vec<String> = tables.map(|table| format!("--table '{table}'")).collect();
        format!(
            "copy them together: `cdc-sync resync {}`; or {unchecked}",
            flags.join(" ")
        )
    } else {
        format!(
            "drop the foreign keys of {}, which the job does not have, until the copy is done; or {unchecked}",
            list(&mut others.into_iter())
        )
    };
    let message = format!(
        "it cannot be emptied on the target: foreign keys are checked there for our role, and {} refers to it",
        list(&mut referring.iter())
    );
    Err(Error::new(Kind::Check, message)
        .object(list(&mut together.iter()))
        .remedy(remedy))
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
async fn wait(
    session: &Session,
    sites: &Sites,
    tables: &[TableName],
    before: Option<&SetbackReport>,
) -> Result<()> {
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
        if let Some(met) = setback(sites).await?.filter(|met| Some(met) != before) {
            bar.finish_and_clear();
            let remedy = met.remedy.as_deref().unwrap_or("mend what is said");
            return Err(met.error().with_remedy(format!(
                "{remedy}. The other tables are followed, and these are tried again while the job runs"
            )));
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

fn report(tables: Vec<Asked>, dry_run: bool, running: bool, setback: Option<SetbackReport>) -> Report {
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
    if let Some(setback) = &setback {
        human.push_str(&format!(
            "the newest attempt failed:\n{}",
            output::describe(&setback.error())
        ));
    }
    let body = Body {
        dry_run,
        tables,
        running,
        setback,
    };
    Report::new(exit::OK, &body, human)
}
