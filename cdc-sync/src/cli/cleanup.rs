//! `cleanup`: drops what the job made on both sides.

use cdc_core::engine::{CleanupReport, Side};
use cdc_core::{Error, Kind, Result};
use serde::Serialize;

use super::session::{Session, Sites};
use crate::output::{self, Report};
use crate::{exit, job};

#[derive(Debug, Serialize)]
struct Body {
    dry_run: bool,
    nothing_to_do: bool,
    source: CleanupReport,
    target: CleanupReport,
}

pub(super) async fn cleanup(session: &Session) -> Result<Report> {
    let sites = session.connect().await?;
    refuse_while_held(&sites).await?;
    let planned = both(&sites, true).await?;
    let nothing_to_do = planned.0.dropped.is_empty() && planned.1.dropped.is_empty();
    let (source, target) = if session.dry_run || nothing_to_do {
        planned
    } else {
        let objects = planned.0.dropped.len() + planned.1.dropped.len();
        output::notice(&listed("would drop", &planned));
        session.confirm(&format!("drop these {objects} objects?")).await?;
        // Whoever was asked may have thought about it for a while.
        refuse_while_held(&sites).await?;
        both(&sites, false).await?
    };
    let mut human = match (nothing_to_do, session.dry_run) {
        (true, _) => "nothing to do\n".to_owned(),
        (false, true) => listed("would drop", &(source.clone(), target.clone())),
        (false, false) => listed("dropped", &(source.clone(), target.clone())),
    };
    for (side, report) in [("source", &source), ("target", &target)] {
        for object in &report.stays {
            human.push_str(&format!("stays on the {side}: {object}\n"));
        }
    }
    let body = Body {
        dry_run: session.dry_run,
        nothing_to_do,
        source,
        target,
    };
    Ok(Report::new(exit::OK, &body, human))
}

/// The source first: what it retains for a job that is gone is what hurts. What a copy beside the stream has left goes
/// before the job's own, which then finds itself the last to use what they share.
async fn both(sites: &Sites, dry_run: bool) -> Result<(CleanupReport, CleanupReport)> {
    let beside = job::beside(&sites.names);
    let mut reports = (CleanupReport::default(), CleanupReport::default());
    for (site, side, report) in [
        (&sites.source, Side::Source, &mut reports.0),
        (&sites.target, Side::Target, &mut reports.1),
    ] {
        report.dropped = site.cleanup(side, &beside, dry_run).await?.dropped;
        let own = site.cleanup(side, &sites.names, dry_run).await?;
        report.dropped.extend(own.dropped);
        report.stays = own.stays;
    }
    Ok(reports)
}

async fn refuse_while_held(sites: &Sites) -> Result<()> {
    match sites.target.holder(&sites.names.job).await? {
        None => Ok(()),
        Some(holder) => Err(Error::new(Kind::Fenced, format!("the job is running: {holder}"))
            .object(format!("job {}", sites.names.job))
            .remedy("stop it, then clean up")),
    }
}

fn listed(verb: &str, (source, target): &(CleanupReport, CleanupReport)) -> String {
    let mut out = String::new();
    for (side, report) in [("source", source), ("target", target)] {
        for object in &report.dropped {
            out.push_str(&format!("{verb} on the {side}: {object}\n"));
        }
    }
    out
}
