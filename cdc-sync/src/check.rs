//! What speaks against a job: the findings of each side and of the two together.

mod policies;

use std::sync::Arc;

use cdc_core::engine::{ColumnInfo, Finding, JobNames, Occupancy, SeedPhase, Severity, Side, TableInfo};
use cdc_core::plan::TargetTable;
use cdc_core::{Kind, Result, Site, TableName, TableSelection};
use serde::Serialize;

use crate::references::References;
use crate::run::{UNPUBLISHED_REMEDY, unpublished};

pub use policies::{expect_matched, policy_findings};

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
    all_findings(source, target, names, selection, selection).await
}

/// The same for a run: tables that were copied are not compared again. Should their types have changed, changes from before
/// that are still to be applied, and the stream stops by itself at the first that the target would not keep as it is.
///
/// # Errors
/// As [`findings`].
pub async fn findings_of_run(
    source: &Arc<dyn Site>,
    target: &Arc<dyn Site>,
    names: &JobNames,
    selection: &TableSelection,
) -> Result<Vec<Finding>> {
    let seed = target.stream_state(&names.job).await?.seed;
    let live = seed.into_iter().filter(|table| table.phase == SeedPhase::Live);
    let mut compared = selection.clone();
    compared.exclude.extend(live.map(|table| table.table.to_string()));
    all_findings(source, target, names, selection, &compared).await
}

async fn all_findings(
    source: &Arc<dyn Site>,
    target: &Arc<dyn Site>,
    names: &JobNames,
    selection: &TableSelection,
    compared: &TableSelection,
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
        if here.system == there.system {
            findings.push(Finding {
                id: "SAME-SERVER",
                severity: Severity::Info,
                side: Side::Both,
                object: here.product.clone(),
                message: "source and target are two databases of one server: they share its disk, memory and outages"
                    .to_owned(),
                remedy: "nothing, if that is what you want".to_owned(),
            });
        }
        let profile = source.profile(compared).await?;
        findings.extend(target.pair_findings(&profile, compared).await?);
    }
    worst_first(&mut findings);
    Ok(findings)
}

/// What `run` would refuse: a first one on the target, or one that goes on because changes were missed. What the role may
/// not look at is a finding too.
///
/// # Errors
/// When a catalog cannot be read.
pub async fn run_findings(
    source: &Arc<dyn Site>,
    target: &Arc<dyn Site>,
    names: &JobNames,
    selection: &TableSelection,
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let state = target.stream_state(&names.job).await;
    let state = seen(state, "the job's state", &mut findings)?;
    let Some(state) = state else {
        return Ok(findings);
    };
    let of_source = source.inspect(selection).await?;
    let tables: Vec<TableName> = of_source.iter().map(|table| table.name.clone()).collect();
    if state.checkpoint.is_some() {
        let of_job = |table: &TableName| state.seed.iter().any(|seed| seed.table == *table);
        let of_job: Vec<TableName> = tables.into_iter().filter(of_job).collect();
        let unpublished = unpublished(&**source, &**target, names, &of_job).await?;
        findings.extend(unpublished.into_iter().map(|(table, why)| Finding {
            id: "JOB-UNPUBLISHED",
            severity: Severity::Fail,
            side: Side::Source,
            object: format!("table {table}"),
            message: format!("its changes do not come through the stream any more: {why}"),
            remedy: UNPUBLISHED_REMEDY.to_owned(),
        }));
        return Ok(findings);
    }
    let occupancy = target.occupancy(&tables).await;
    let occupancy = seen(occupancy, "whether tables hold rows", &mut findings)?;
    let all_empty = occupancy
        .iter()
        .flatten()
        .all(|(_, found)| *found == Occupancy::Empty);
    findings.extend(occupancy.iter().flat_map(|found| judge_occupancy(found)));
    // Tables that an interrupted first run made are the source's own, and get their keys after the data.
    if !(state.schema_pending && all_empty) {
        findings.extend(compare_schemas(&of_source, &target.inspect(selection).await?));
        findings.extend(judge_references(&target.target_tables(selection).await?));
    }
    Ok(findings)
}

/// What the target answered; `None` and a finding when the role may not ask.
fn seen<T>(answer: Result<T>, what: &str, findings: &mut Vec<Finding>) -> Result<Option<T>> {
    let error = match answer {
        Ok(answer) => return Ok(Some(answer)),
        Err(error) if error.kind() == Kind::Permission => error,
        Err(error) => return Err(error),
    };
    findings.push(Finding {
        id: "NOT-CHECKED",
        severity: Severity::Info,
        side: Side::Target,
        object: what.to_owned(),
        message: format!("could not be checked: {error}"),
        remedy: "give the role of the URL the rights that `cdc-sync check --print-grants` prints".to_owned(),
    });
    Ok(None)
}

/// `TARGET-KEY-CYCLE`: what the target's foreign keys leave no order for, in which tables could be copied.
pub(crate) fn judge_references(target: &[TargetTable]) -> Option<Finding> {
    let tables = References::of(target).circular();
    if tables.is_empty() {
        return None;
    }
    let names: Vec<String> = tables.iter().map(ToString::to_string).collect();
    Some(schema_finding(
        ("TARGET-KEY-CYCLE", Severity::Fail),
        names.join(", "),
        "foreign keys lead from each of these tables by way of others back to it, and the target checks them while \
         tables are copied one after the other: none can come first",
        "give the role of the target the right to apply without checking foreign keys (`cdc-sync check \
         --print-grants`), or drop one of these foreign keys on the target until `cdc-sync run --until-caught-up` has \
         ended, or drop all tables there so that the schema is copied",
    ))
}

/// What of the target's tables cannot take the rows of the source's, or takes them otherwise. Tables that only one
/// side has are not compared.
pub fn compare_schemas(source: &[TableInfo], target: &[TableInfo]) -> Vec<Finding> {
    let mut found = Vec::new();
    for table in source {
        if let Some(peer) = target.iter().find(|peer| peer.name == table.name) {
            compare_columns(table, peer, &mut found);
            compare_keys(table, peer, &mut found);
        }
    }
    found
}

fn schema_finding(
    (id, severity): (&'static str, Severity),
    object: String,
    message: impl Into<String>,
    remedy: &str,
) -> Finding {
    Finding {
        id,
        severity,
        side: Side::Target,
        object,
        message: message.into(),
        remedy: remedy.to_owned(),
    }
}

/// `TARGET-LACKS-COLUMN`, `TARGET-COLUMN-REQUIRED`, `TARGET-COLUMN-GENERATED`, `TARGET-COLUMN-TYPE`.
fn compare_columns(table: &TableInfo, peer: &TableInfo, found: &mut Vec<Finding>) {
    let named = |column: &ColumnInfo| format!("{}.{}", table.name, column.name);
    for column in &table.columns {
        let other = peer.columns.iter().find(|other| other.name == column.name);
        found.extend(match other {
            None if column.generated => None,
            None => Some(schema_finding(
                ("TARGET-LACKS-COLUMN", Severity::Fail),
                named(column),
                "the column is missing on the target",
                "add the column to the target",
            )),
            Some(other) if other.generated != column.generated => Some(schema_finding(
                ("TARGET-COLUMN-GENERATED", Severity::Fail),
                named(column),
                "the column is generated on one side only: its values are not replicated",
                "make it generated on both sides or on neither",
            )),
            Some(other) if other.type_name != column.type_name => Some(schema_finding(
                ("TARGET-COLUMN-TYPE", Severity::Warn),
                named(column),
                format!(
                    "the column is {} on the source and {} on the target: a value that does not fit stops the job",
                    column.type_name, other.type_name
                ),
                "see that every value fits, or give the column the source's type",
            )),
            Some(_) => None,
        });
    }
    let extra = peer.columns.iter().filter(|other| {
        let known = table.columns.iter().any(|column| column.name == other.name);
        !known && other.not_null && !other.has_default && !other.generated
    });
    for other in extra {
        found.push(schema_finding(
            ("TARGET-COLUMN-REQUIRED", Severity::Fail),
            named(other),
            "the column is not on the source, and on the target it is NOT NULL without a default: no row can be \
             inserted",
            "give the column a default on the target, or drop its NOT NULL",
        ));
    }
}

/// `TARGET-LACKS-KEY`. A key of fewer columns finds the row as well, one of more (as a partitioned table needs) still
/// by its first columns.
fn compare_keys(table: &TableInfo, peer: &TableInfo, found: &mut Vec<Finding>) {
    let key = &table.primary_key;
    let within = |some: &[String], others: &[String]| some.iter().all(|column| others.contains(column));
    let fits = |other: &Vec<String>| within(other, key) || within(key, other);
    if !key.is_empty() && !peer.unique_keys.iter().any(fits) {
        found.push(schema_finding(
            ("TARGET-LACKS-KEY", Severity::Fail),
            table.name.to_string(),
            format!(
                "the table has the primary key ({}) on the source and no unique key like it on the target: each \
                 change would have to read the whole table",
                key.join(", ")
            ),
            "add the primary key to the target's table",
        ));
    }
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
                    "create it, exclude it with --exclude, or empty the target so that the schema is copied; where the \
                     target divides a table into other partitions: --partitions root",
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

    /// A table from `name type` columns; `!` is NOT NULL, `=` generated, `?` with a default.
    fn table(columns: &[&str], key: &[&str], unique: &[&[&str]]) -> TableInfo {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let column = |line: &&str| {
            let (name, type_name) = line.split_once(' ').unwrap();
            ColumnInfo {
                name: name.trim_matches(['!', '=', '?']).to_owned(),
                type_name: type_name.to_owned(),
                not_null: name.contains('!'),
                has_default: name.contains('?'),
                generated: name.contains('='),
            }
        };
        TableInfo {
            name: TableName::new("s", "t"),
            columns: columns.iter().map(column).collect(),
            primary_key: owned(key),
            unique_keys: unique.iter().map(|key| owned(key)).collect(),
            opaque_constraints: Vec::new(),
            fixed_columns: Vec::new(),
            leaves_out_values: false,
            identity: "default".into(),
            has_identity: true,
            estimated_rows: 0,
            bytes: 0,
        }
    }

    fn compared(source: &TableInfo, target: &TableInfo) -> Vec<(&'static str, Severity, String)> {
        compare_schemas(std::slice::from_ref(source), std::slice::from_ref(target))
            .into_iter()
            .map(|finding| (finding.id, finding.severity, finding.object))
            .collect()
    }

    #[test]
    fn columns_that_cannot_be_filled_fail_and_other_types_warn() {
        let source = table(&["a int", "b text", "g= int", "only_here= int"], &[], &[]);
        assert!(compared(&source, &source).is_empty());
        let fits = ["a int", "b text", "g= int", "free text", "d!? int", "c!= int"];
        assert!(compared(&source, &table(&fits, &[], &[])).is_empty());
        let differs = ["a bigint", "g int", "must! text"];
        assert_eq!(
            compared(&source, &table(&differs, &[], &[])),
            [
                ("TARGET-COLUMN-TYPE", Severity::Warn, "s.t.a".to_owned()),
                ("TARGET-LACKS-COLUMN", Severity::Fail, "s.t.b".to_owned()),
                ("TARGET-COLUMN-GENERATED", Severity::Fail, "s.t.g".to_owned()),
                ("TARGET-COLUMN-REQUIRED", Severity::Fail, "s.t.must".to_owned()),
            ]
        );
    }

    #[test]
    fn a_primary_key_needs_a_key_on_the_target() {
        let columns = ["a int", "b int", "c int"];
        let source = table(&columns, &["a", "b"], &[&["a", "b"]]);
        let judged = |unique: &[&[&str]]| compared(&source, &table(&columns, &[], unique)).len();
        for fits in [&["b", "a"][..], &["a"], &["a", "b", "c"]] {
            assert_eq!(judged(&[&["c"], fits]), 0, "{fits:?}");
        }
        assert_eq!(judged(&[]), 1);
        assert_eq!(judged(&[&["c"], &["a", "c"]]), 1);
        let keyless = table(&columns, &[], &[]);
        assert!(compared(&keyless, &keyless).is_empty());
    }

    #[test]
    fn every_finding_of_the_job_is_documented() {
        let documented = include_str!("../../docs/findings.md");
        let (code, _) = include_str!("check.rs").split_once("mod tests").unwrap();
        let (policies, _) = include_str!("check/policies.rs").split_once("mod tests").unwrap();
        let code = format!("{code}{policies}");
        let ids: Vec<&str> = code
            .split('"')
            .filter(|text| {
                let capitals = |c: char| c.is_ascii_uppercase() || c == '-';
                text.contains('-') && text.len() > 5 && text.chars().all(capitals)
            })
            .collect();
        for known in ["TARGET-LACKS-KEY", "POLICY-UNIQUE"] {
            assert!(ids.contains(&known), "{ids:?}");
        }
        for id in ids {
            assert!(documented.contains(id), "{id} is not in docs/findings.md");
        }
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
