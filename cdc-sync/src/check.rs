//! What speaks against a job: the findings of each side and of the two together.

use std::sync::Arc;

use cdc_core::engine::{Finding, JobNames, Occupancy, Severity, Side};
use cdc_core::{Result, Site, TableName, TableSelection};
use serde::Serialize;

/// How many findings of each severity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// the job cannot run
    pub fail: u64,
    /// works, but see to it
    pub warn: u64,
    /// good to know
    pub info: u64,
}

impl Counts {
    /// Counts findings.
    pub fn of(findings: &[Finding]) -> Self {
        let mut counts = Self::default();
        for finding in findings {
            match finding.severity {
                Severity::Fail => counts.fail += 1,
                Severity::Warn => counts.warn += 1,
                Severity::Info => counts.info += 1,
            }
        }
        counts
    }
}

/// The findings of both sides, worst first. Changes nothing.
///
/// # Errors
/// When a catalog cannot be read.
pub async fn findings(
    source: &Arc<dyn Site>,
    target: &Arc<dyn Site>,
    names: &JobNames,
    selection: &TableSelection,
) -> Result<Vec<Finding>> {
    let (of_source, of_target) = tokio::try_join!(
        source.findings(Side::Source, names, selection),
        target.findings(Side::Target, names, selection),
    )?;
    let mut findings = of_source;
    findings.extend(of_target);
    let (here, there) = (source.identity(), target.identity());
    if here.system == there.system && here.database == there.database {
        findings.push(Finding {
            id: "SAME-DATABASE",
            severity: Severity::Fail,
            side: Side::Both,
            object: here.database.clone(),
            message: "source and target are the same database".to_owned(),
            remedy: "give the database that takes over as --target".to_owned(),
        });
    } else {
        let profile = source.profile(selection).await?;
        findings.extend(target.pair_findings(&profile, selection).await?);
    }
    worst_first(&mut findings);
    Ok(findings)
}

/// What a first `run` would refuse on the target. Empty for a job that has begun.
///
/// # Errors
/// When a catalog cannot be read.
pub async fn first_run_findings(
    source: &Arc<dyn Site>,
    target: &Arc<dyn Site>,
    names: &JobNames,
    selection: &TableSelection,
) -> Result<Vec<Finding>> {
    if target.stream_state(&names.job).await?.checkpoint.is_some() {
        return Ok(Vec::new());
    }
    let tables: Vec<TableName> = source
        .inspect(selection)
        .await?
        .into_iter()
        .map(|table| table.name)
        .collect();
    let occupancy = target.occupancy(&tables).await?;
    Ok(judge_occupancy(&occupancy))
}

fn judge_occupancy(occupancy: &[(TableName, Occupancy)]) -> Vec<Finding> {
    if occupancy.is_empty() {
        return vec![Finding {
            id: "NO-TABLES",
            severity: Severity::Fail,
            side: Side::Source,
            object: "selected tables".to_owned(),
            message: "no table of the source is selected".to_owned(),
            remedy: "check --table and --exclude, and that the database is the right one".to_owned(),
        }];
    }
    let some_exist = occupancy.iter().any(|(_, found)| *found != Occupancy::Missing);
    occupancy
        .iter()
        .filter_map(|(table, found)| {
            let (id, message, remedy) = match found {
                Occupancy::Rows => (
                    "TARGET-HOLDS-ROWS",
                    "the table holds rows on the target",
                    "empty it, or run with --truncate-target",
                ),
                Occupancy::Missing if some_exist => (
                    "TARGET-LACKS-TABLE",
                    "the table is missing on the target, where others exist",
                    "create it, exclude it with --exclude, or empty the target so that the schema is copied",
                ),
                Occupancy::Missing | Occupancy::Empty => return None,
            };
            Some(Finding {
                id,
                severity: Severity::Fail,
                side: Side::Target,
                object: table.to_string(),
                message: message.to_owned(),
                remedy: remedy.to_owned(),
            })
        })
        .collect()
}

/// Orders findings by severity, then by id and object.
pub fn worst_first(findings: &mut [Finding]) {
    findings.sort_by(|a, b| {
        b.severity
            .cmp(&a.severity)
            .then_with(|| a.id.cmp(b.id))
            .then_with(|| a.object.cmp(&b.object))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(found: &[Occupancy]) -> Vec<&'static str> {
        let occupancy: Vec<_> = found
            .iter()
            .enumerate()
            .map(|(n, found)| (TableName::new("public", format!("t{n}")), *found))
            .collect();
        judge_occupancy(&occupancy)
            .into_iter()
            .map(|finding| finding.id)
            .collect()
    }

    #[test]
    fn a_target_is_empty_or_complete() {
        use Occupancy::{Empty, Missing, Rows};
        assert!(judged(&[Missing, Missing]).is_empty());
        assert!(judged(&[Empty, Empty]).is_empty());
        assert_eq!(judged(&[Empty, Missing]), ["TARGET-LACKS-TABLE"]);
        assert_eq!(judged(&[Rows, Empty]), ["TARGET-HOLDS-ROWS"]);
        assert_eq!(judged(&[]), ["NO-TABLES"]);
    }

    #[test]
    fn the_worst_comes_first() {
        let finding = |severity, id| Finding {
            id,
            severity,
            side: Side::Both,
            object: String::new(),
            message: String::new(),
            remedy: String::new(),
        };
        let mut findings = vec![
            finding(Severity::Info, "C"),
            finding(Severity::Fail, "B"),
            finding(Severity::Warn, "D"),
            finding(Severity::Fail, "A"),
        ];
        worst_first(&mut findings);
        let ids: Vec<_> = findings.iter().map(|finding| finding.id).collect();
        assert_eq!(ids, ["A", "B", "D", "C"]);
        assert_eq!(
            Counts::of(&findings),
            Counts {
                fail: 2,
                warn: 1,
                info: 1
            }
        );
    }
}
