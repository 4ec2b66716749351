//! `check`: what stands in the way.

use cdc_core::engine::{Finding, Severity, Side};
use cdc_core::{Result, Site};
use serde::Serialize;

use super::args::Check;
use super::session::{Session, Sites};
use crate::check::{Counts, findings, policy_findings, run_findings, worst_first};
use crate::exit;
use crate::output::Report;

#[derive(Debug, Serialize)]
struct Body {
    findings: Vec<Finding>,
    counts: Counts,
}

/// The statements of `--print-grants`.
#[derive(Debug, Serialize)]
struct Grants {
    source: Vec<String>,
    target: Vec<String>,
}

#[derive(Debug, Serialize)]
struct GrantsBody {
    grants: Grants,
}

pub(super) async fn check(session: &Session, args: &Check) -> Result<Report> {
    let sites = session.connect().await?;
    if args.print_grants {
        return print_grants(session, &sites).await;
    }
    let (source, target) = (&sites.source, &sites.target);
    let selection = &session.settings.selection;
    let mut found = findings(source, target, &sites.names, selection).await?;
    found.extend(run_findings(source, target, &sites.names, selection).await?);
    found.extend(policy_findings(source, target, selection, &session.settings.conflicts).await?);
    worst_first(&mut found);
    let counts = Counts::of(&found);
    let failed = counts.fail > 0 || (args.strict && counts.warn > 0);
    let exit = if failed { exit::CHECK } else { exit::OK };
    let mut human = format!(
        "source  {}  {}\ntarget  {}  {}\n\n{}",
        source.identity().product,
        source.display_url(),
        target.identity().product,
        target.display_url(),
        table(&found)
    );
    let next = match (failed, counts.fail) {
        (false, _) => format!("next: cdc-sync run {}\n", session.suffix(&sites.names)),
        (true, 0) => "next: see to the warnings, or check without --strict\n".to_owned(),
        (true, _) => "next: see to what fails, then check again\n".to_owned(),
    };
    human.push_str(&format!(
        "{} fail, {} warn, {} info\n{next}",
        counts.fail, counts.warn, counts.info
    ));
    Ok(Report::new(
        exit,
        &Body {
            findings: found,
            counts,
        },
        human,
    ))
}

/// The rights both roles need, as statements that can be pasted: all else is in comments.
async fn print_grants(session: &Session, sites: &Sites) -> Result<Report> {
    let (names, selection) = (&sites.names, &session.settings.selection);
    let profile = sites.source.profile(selection).await?;
    let grants = Grants {
        source: sites.source.grants(Side::Source, names, selection, None).await?,
        target: sites
            .target
            .grants(Side::Target, names, selection, Some(&profile))
            .await?,
    };
    let script = |title: &str, site: &dyn Site, statements: &[String]| {
        format!(
            "-- {title}: {}, as its administrator\n{}\n",
            site.display_url(),
            statements.join("\n")
        )
    };
    let human = format!(
        "{}\n{}",
        script("source", &*sites.source, &grants.source),
        script("target", &*sites.target, &grants.target)
    );
    Ok(Report::new(exit::OK, &GrantsBody { grants }, human))
}

/// Findings for people, one block each.
pub(super) fn table(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Fail => "FAIL",
            Severity::Warn => "WARN",
            Severity::Info => "info",
        };
        let side = match finding.side {
            Side::Source => "source",
            Side::Target => "target",
            Side::Both => "both",
        };
        out.push_str(&format!(
            "{severity}  {}  {side} {}\n      {}\n",
            finding.id, finding.object, finding.message
        ));
        for (index, line) in finding.remedy.lines().enumerate() {
            let arrow = if index == 0 { "->" } else { "  " };
            out.push_str(&format!("      {arrow} {line}\n"));
        }
    }
    out
}
