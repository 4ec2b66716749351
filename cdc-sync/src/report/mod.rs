//! The account of a job for those who have to sign it off: what was set, where it stands, what was done and found, and
//! what was not carried.

mod markdown;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use cdc_core::conflict::{ConflictRecord, PolicyRules};
use cdc_core::engine::{Finding, HistoryEvent, JobNames, SeedPhase, SequenceState, Site};
use cdc_core::model::ChangeCounts;
use cdc_core::{Error, Result, TableName, TableSelection};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::check;
use crate::status::{Facts, Status};

/// Conflicts that are named.
const NAMED_CONFLICTS: u32 = 100;
/// Runs, verifies and the like that are named.
const NAMED_EVENTS: usize = 50;

/// One of the two databases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SiteAccount {
    /// its URL without secrets
    pub url: String,
    /// product and version
    pub product: String,
    /// what tells the server from others
    pub system: String,
    /// the database
    pub database: String,
}

/// Every change that was read, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Accounting {
    /// what was read
    pub read: u64,
    /// what came of these, added up
    pub accounted: u64,
    /// whether the two are the same
    pub balanced: bool,
}

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// when, by the target's clock
    pub time: String,
    /// what
    pub kind: String,
    /// the verb's exit code
    pub exit: Option<i32>,
    /// what the settings came to then
    pub config_sha256: Option<String>,
    /// what was found or done
    pub facts: Value,
}

/// What happened when.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Timings {
    /// when the first checkpoint was stored
    pub begun: Option<String>,
    /// when every table was copied, with rows, bytes and seconds
    pub seeded: Option<Event>,
    /// ends of runs that had caught up, newest first
    pub caught_up: Vec<String>,
    /// source commit time of the newest transaction applied
    pub last_applied_commit: Option<String>,
    /// runs, newest first; one that was killed has a beginning only
    pub runs: Vec<Event>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableAccount {
    /// the table
    #[serde(serialize_with = "full_name")]
    pub name: TableName,
    /// how far its copy has come
    pub phase: SeedPhase,
    /// rows copied
    pub rows: u64,
    /// bytes copied
    pub bytes: u64,
}

fn full_name<S: Serializer>(name: &TableName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

/// One sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SequenceAccount {
    /// the sequence
    #[serde(serialize_with = "full_name")]
    pub name: TableName,
    /// its last value on the source
    pub source: i64,
    /// its last value on the target; `None` when it has none of that name
    pub target: Option<i64>,
}

/// Conflicts and the policies that decide them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ConflictAccount {
    /// how many of each kind
    pub by_kind: BTreeMap<String, u64>,
    /// how many wait for the operator
    pub open: u64,
    /// the rules of the newest run, in their order
    pub policies: Vec<String>,
    /// the newest, at most 100
    pub newest: Vec<ConflictRecord>,
}

/// Something on the source that the target does not get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotCarried {
    /// the finding of `check`
    pub id: &'static str,
    /// what
    pub object: String,
    /// why, with names
    pub message: String,
    /// what to do
    pub remedy: String,
}

/// The account. Keys are stable.
#[derive(Debug, Clone, Serialize)]
pub struct Account {
    /// this program and its version
    pub program: String,
    /// when, by this machine's clock
    pub generated_at: String,
    /// what the settings of the newest run come to, without secrets
    pub config_sha256: String,
    /// blue, if it could be reached
    pub source: Option<SiteAccount>,
    /// green
    pub target: SiteAccount,
    /// what could not be asked, and why
    pub missing: Vec<String>,
    /// as `status` has it
    pub status: Status,
    /// whether every change is accounted for
    pub accounting: Accounting,
    /// what happened when
    pub timings: Timings,
    /// the tables
    pub tables: Vec<TableAccount>,
    /// the sequences
    pub sequences: Vec<SequenceAccount>,
    /// conflicts
    pub conflicts: ConflictAccount,
    /// what `check` finds now
    pub findings: Vec<Finding>,
    /// what the target does not get
    pub not_carried: Vec<NotCarried>,
    /// the newest verify
    pub verify: Option<Event>,
    /// the newest repair that wrote
    pub repair: Option<Event>,
}

/// What an account is made for.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// blue, or why it cannot be reached
    pub source: std::result::Result<&'a Arc<dyn Site>, &'a Error>,
    /// green
    pub target: &'a Arc<dyn Site>,
    /// the job
    pub names: &'a JobNames,
    /// its tables
    pub selection: &'a TableSelection,
    /// its policies
    pub policies: &'a PolicyRules,
    /// names the job to the next command
    pub suffix: &'a str,
    /// what the settings come to
    pub config_sha256: &'a str,
}

impl std::fmt::Debug for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").field("names", self.names).finish()
    }
}

impl Account {
    /// Asks both databases, or the target alone; `None` when there is no such job.
    ///
    /// # Errors
    /// When the target cannot be read.
    pub async fn gather(subject: &Subject<'_>) -> Result<Option<Self>> {
        let Subject {
            source,
            target,
            names,
            ..
        } = *subject;
        let source = source.ok();
        let Some(facts) = Facts::gather_from(source, target, names).await? else {
            return Ok(None);
        };
        let state = target.stream_state(&names.job).await?;
        let history = target.history(&names.job).await?;
        let mut missing = Vec::new();
        if let Err(error) = subject.source {
            missing.push(format!(
                "the source could not be reached: its position, slot, sequences and findings are not told ({error})"
            ));
        }
        let findings = match source {
            Some(source) => {
                let found = check::findings(source, target, names, subject.selection).await;
                told(found, "findings", &mut missing)
            }
            None => Vec::new(),
        };
        let sequences = match source {
            Some(source) => told(sequences(source, target).await, "sequences", &mut missing),
            None => Vec::new(),
        };
        let newest = target.conflicts(&names.job, None, NAMED_CONFLICTS, false).await?;
        let events: Vec<Event> = history.into_iter().map(Event::from).collect();
        // What the job ran with, which may be other than what this was asked with.
        let ran = events.iter().find(|event| event.kind == "run_begun");
        let config = ran.and_then(|event| event.config_sha256.as_deref());
        let judged: Option<Vec<String>> =
            ran.and_then(|event| serde_json::from_value(event.facts["policies"].clone()).ok());
        Ok(Some(Self {
            program: format!("cdc-sync {}", env!("CARGO_PKG_VERSION")),
            generated_at: rfc3339(SystemTime::now()),
            config_sha256: config.unwrap_or(subject.config_sha256).to_owned(),
            source: source.map(|site| site_account(site.as_ref())),
            target: site_account(target.as_ref()),
            missing,
            accounting: accounting(&facts.changes),
            timings: timings(&events, facts.commit_micros),
            tables: state.seed.into_iter().map(TableAccount::from).collect(),
            sequences,
            conflicts: ConflictAccount {
                by_kind: facts.conflicts.clone(),
                open: facts.open_conflicts,
                policies: judged.unwrap_or_else(|| policies(subject.policies)),
                newest,
            },
            not_carried: source.map_or_else(Vec::new, |site| not_carried(site.as_ref(), &findings)),
            findings,
            verify: events.iter().find(|event| event.kind == "verify").cloned(),
            repair: events.iter().find(|event| event.kind == "repair").cloned(),
            status: facts.status(subject.suffix),
        }))
    }

    /// The account as a Markdown document.
    pub fn markdown(&self, job: &str) -> String {
        markdown::document(self, job)
    }
}

/// What was asked for, or a word on why it is missing.
fn told<T: Default>(asked: Result<T>, what: &str, missing: &mut Vec<String>) -> T {
    asked.unwrap_or_else(|error| {
        missing.push(format!("{what}: {error}"));
        T::default()
    })
}

fn site_account(site: &dyn Site) -> SiteAccount {
    let identity = site.identity();
    SiteAccount {
        url: site.display_url(),
        product: identity.product.clone(),
        system: identity.system.clone(),
        database: identity.database.clone(),
    }
}

fn accounting(changes: &ChangeCounts) -> Accounting {
    let accounted =
        changes.applied + changes.looped + changes.filtered + changes.superseded + changes.dead_lettered;
    Accounting {
        read: changes.read,
        accounted,
        balanced: accounted == changes.read,
    }
}

fn timings(events: &[Event], commit_micros: i64) -> Timings {
    let of = |kind: &'static str| events.iter().filter(move |event| event.kind == kind);
    let commit = u64::try_from(commit_micros).ok().filter(|micros| *micros > 0);
    Timings {
        begun: of("begun").next().map(|event| event.time.clone()),
        seeded: of("seeded").next().cloned(),
        caught_up: of("run")
            .filter(|event| event.facts["caught_up"] == true)
            .map(|event| event.time.clone())
            .take(NAMED_EVENTS)
            .collect(),
        last_applied_commit: commit
            .map(|micros| rfc3339(SystemTime::UNIX_EPOCH + std::time::Duration::from_micros(micros))),
        runs: events
            .iter()
            .filter(|event| matches!(event.kind.as_str(), "run" | "run_begun"))
            .take(NAMED_EVENTS)
            .cloned()
            .collect(),
    }
}

async fn sequences(source: &Arc<dyn Site>, target: &Arc<dyn Site>) -> Result<Vec<SequenceAccount>> {
    let (source, target) = futures_util::future::try_join(source.sequences(), target.sequences()).await?;
    let there: BTreeMap<TableName, i64> = target
        .into_iter()
        .map(|sequence: SequenceState| (sequence.name, sequence.last_value))
        .collect();
    let account = |sequence: SequenceState| SequenceAccount {
        target: there.get(&sequence.name).copied(),
        source: sequence.last_value,
        name: sequence.name,
    };
    Ok(source.into_iter().map(account).collect())
}

/// Policies as they are told: the rules, in their order.
pub(crate) fn policies(rules: &PolicyRules) -> Vec<String> {
    let rules = rules.0.iter();
    rules
        .map(|rule| format!("{} = {}", rule.pattern, rule.policy.name()))
        .collect()
}

fn not_carried(source: &dyn Site, findings: &[Finding]) -> Vec<NotCarried> {
    let left = findings.iter().filter(|finding| source.is_left_behind(finding));
    left.map(|finding| NotCarried {
        id: finding.id,
        object: finding.object.clone(),
        message: finding.message.clone(),
        remedy: finding.remedy.clone(),
    })
    .collect()
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

impl From<HistoryEvent> for Event {
    fn from(event: HistoryEvent) -> Self {
        Self {
            time: event.time,
            kind: event.kind,
            exit: event.exit,
            config_sha256: event.config,
            facts: serde_json::from_str(&event.facts).unwrap_or(Value::Null),
        }
    }
}

impl From<cdc_core::engine::SeedTable> for TableAccount {
    fn from(table: cdc_core::engine::SeedTable) -> Self {
        Self {
            name: table.table,
            phase: table.phase,
            rows: table.rows,
            bytes: table.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_balance_or_not() {
        let changes = ChangeCounts {
            read: 10,
            applied: 9,
            looped: 1,
            coalesced: 4,
            internal: 3,
            ..ChangeCounts::default()
        };
        assert!(accounting(&changes).balanced);
        let lost = ChangeCounts { read: 11, ..changes };
        assert!(!accounting(&lost).balanced);
    }

    #[test]
    fn the_newest_of_each_kind_is_told() {
        let event = |time: &str, kind: &str, facts: Value| Event {
            time: time.into(),
            kind: kind.into(),
            exit: Some(0),
            config_sha256: None,
            facts,
        };
        let events = [
            event("5", "run_begun", Value::Null),
            event("4", "run", serde_json::json!({"caught_up": true})),
            event("3", "run", serde_json::json!({"caught_up": false})),
            event("2", "seeded", Value::Null),
            event("1", "begun", Value::Null),
        ];
        let timings = timings(&events, 1_000_000);
        assert_eq!(timings.begun.as_deref(), Some("1"));
        assert_eq!(timings.caught_up, ["4"]);
        assert_eq!(timings.runs.len(), 3);
        assert_eq!(
            timings.last_applied_commit.as_deref(),
            Some("1970-01-01T00:00:01Z")
        );
    }
}
