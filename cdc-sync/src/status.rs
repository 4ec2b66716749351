//! Where a job stands: what `status` prints, `/status` serves and `run` publishes for other processes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cdc_core::engine::{JobNames, Retention, SeedPhase, SeedTable, StreamState};
use cdc_core::model::ChangeCounts;
use cdc_core::pipeline::{Phase, Setback, StatsSnapshot};
use cdc_core::{Error, Position, Result, Site};
use serde::{Deserialize, Serialize};

use crate::redact::redact;
use crate::{exit, output};

/// A published status older than this is not of the instance that holds the job now.
const FRESH: Duration = Duration::from_secs(15);
/// The retention status that says that the log is cut and the stream cannot go on.
pub(crate) const LOST: &str = "lost";

/// Where a job stands. Keys are stable.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// `starting`, `seeding`, `catching_up`, `synced`, `waiting`, `held`, `stopped`
    pub state: String,
    /// the four lags
    pub lag: Lag,
    /// tables by the state of their seed
    pub tables: TableCounts,
    /// what the source retains; `None` without a slot
    pub slot: Option<Slot>,
    /// the accounting over the life of the stream
    pub changes: ChangeCounts,
    /// conflicts that policies decided, by kind
    pub conflicts: BTreeMap<String, u64>,
    /// why the stream is slowed down on purpose; `None` when it is not
    pub throttled: Option<String>,
    /// what to do next
    pub next_command: String,
    /// source transactions applied over the life of the stream
    pub transactions: u64,
    /// newest position of the source's log and position committed on the target
    pub position: Positions,
    /// changes that were put aside and wait for the operator
    pub open_conflicts: u64,
    /// the instance that holds the job
    pub holder: Option<String>,
    /// the newest fault of the running instance
    pub last_error: Option<String>,
    /// what keeps tables that are set aside from coming back, while the others are followed
    pub setback: Option<SetbackReport>,
    /// the gates and whether they are met
    pub gates: BTreeMap<&'static str, bool>,
}

/// The lags of a job; `None` where it is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Lag {
    /// newest heartbeat: written on the source until seen committed on the target, one clock
    pub heartbeat_ms: Option<f64>,
    /// newest transaction: source commit until target commit, two clocks
    pub commit_ms: Option<f64>,
    /// how long ago the newest applied transaction was committed on the source, two clocks
    pub staleness_ms: Option<f64>,
    /// log not applied yet
    pub bytes: Option<u64>,
}

/// Tables by the state of their seed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableCounts {
    /// not begun
    pub todo: u64,
    /// begun, or copied anew beside the stream
    pub copying: u64,
    /// complete
    pub live: u64,
}

/// What the source retains for a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// bytes of log held back
    pub retained_bytes: u64,
    /// bytes that can be written before the log is cut; `None` without a limit
    pub safe_bytes: Option<u64>,
    /// the product's own word for it
    pub wal_status: String,
}

/// Positions of both sides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Positions {
    /// newest position of the source's log
    pub source: Option<String>,
    /// committed on the target
    pub applied: Option<String>,
}

/// Why the newest attempt to bring back tables that are set aside failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetbackReport {
    /// the error's stable name
    pub code: String,
    /// what went wrong
    pub message: String,
    /// the object it is about
    pub object: Option<String>,
    /// what to do; it is tried again by itself
    pub remedy: Option<String>,
    /// log that the source holds back for the next attempt
    pub retained_bytes: Option<u64>,
    /// when, microseconds since 1970-01-01 UTC
    pub at_micros: u64,
}

impl From<&Setback> for SetbackReport {
    fn from(setback: &Setback) -> Self {
        let error = &setback.error;
        let at = setback.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = |text: &str| redact(text).into_owned();
        Self {
            code: exit::name(error.kind()).to_owned(),
            message: text(&output::message(error)),
            object: error.object_name().map(text),
            remedy: error.remedy_text().map(text),
            retained_bytes: setback.retained_bytes,
            at_micros: u64::try_from(at.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl SetbackReport {
    /// The error again, as it ended the attempt.
    pub fn error(&self) -> Error {
        let mut error = Error::new(exit::kind(&self.code), self.message.clone());
        if let Some(object) = &self.object {
            error = error.object(object.clone());
        }
        if let Some(remedy) = &self.remedy {
            error = error.remedy(remedy.clone());
        }
        error
    }
}

/// What a running instance says of itself to other processes: only what the databases do not tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// as [`Status::state`]
    pub state: String,
    /// newest heartbeat lag
    pub heartbeat_ms: Option<f64>,
    /// newest commit latency
    pub commit_ms: Option<f64>,
    /// newest fault
    pub last_error: Option<String>,
    /// as [`Status::setback`]; an older instance says nothing of it
    #[serde(default)]
    pub setback: Option<SetbackReport>,
}

impl From<&StatsSnapshot> for Published {
    fn from(stats: &StatsSnapshot) -> Self {
        let ms = |micros: u64| micros as f64 / 1000.0;
        Self {
            state: state_name(stats.phase).to_owned(),
            heartbeat_ms: stats.heartbeat.last_micros().map(ms),
            commit_ms: stats.commit_latency.last_micros().map(ms),
            last_error: stats.last_error.clone(),
            setback: stats.setback.as_ref().map(SetbackReport::from),
        }
    }
}

impl From<Retention> for Slot {
    fn from(retention: Retention) -> Self {
        Self {
            retained_bytes: retention.retained_bytes,
            safe_bytes: retention.safe_bytes,
            wal_status: retention.status,
        }
    }
}

impl TableCounts {
    /// Counts tables.
    pub fn of(phases: impl IntoIterator<Item = SeedPhase>) -> Self {
        let mut counts = Self::default();
        for phase in phases {
            match phase {
                SeedPhase::Todo => counts.todo += 1,
                SeedPhase::Copying | SeedPhase::Aside => counts.copying += 1,
                SeedPhase::Live => counts.live += 1,
            }
        }
        counts
    }

    /// Whether there are tables and all are complete.
    pub fn all_live(&self) -> bool {
        self.live > 0 && self.todo + self.copying == 0
    }
}

/// The stable name of a phase.
pub fn state_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Seeding => "seeding",
        Phase::CatchingUp => "catching_up",
        Phase::Synced => "synced",
        Phase::Waiting => "waiting",
        Phase::Held => "held",
        Phase::Stopped => "stopped",
    }
}

/// Every phase, for metrics.
pub const PHASES: [Phase; 7] = [
    Phase::Starting,
    Phase::Seeding,
    Phase::CatchingUp,
    Phase::Synced,
    Phase::Waiting,
    Phase::Held,
    Phase::Stopped,
];

/// How long before now `commit_micros` was, in milliseconds; `None` for no commit. Two clocks: never below 0.
pub fn staleness_ms(commit_micros: i64) -> Option<f64> {
    if commit_micros <= 0 {
        return None;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_micros();
    let past = i128::from(u64::try_from(now).unwrap_or(u64::MAX)) - i128::from(commit_micros);
    Some(past.max(0) as f64 / 1000.0)
}

/// What is known of a job from its two databases and its running instance.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// the job's id
    pub job: String,
    /// what the instance says of itself
    pub published: Option<Published>,
    /// who holds the job
    pub holder: Option<String>,
    /// the seed
    pub tables: TableCounts,
    /// indexes, foreign keys and triggers of the target are not all there yet
    pub schema_pending: bool,
    /// what the source retains
    pub slot: Option<Slot>,
    /// the accounting
    pub changes: ChangeCounts,
    /// transactions applied
    pub transactions: u64,
    /// source commit time of the newest applied transaction, microseconds since 1970-01-01 UTC
    pub commit_micros: i64,
    /// conflicts by kind
    pub conflicts: BTreeMap<String, u64>,
    /// changes that were put aside and wait for the operator
    pub open_conflicts: u64,
    /// log not applied yet
    pub lag_bytes: Option<u64>,
    /// positions
    pub position: Positions,
}

/// The gates that `status --gate` knows.
pub const GATES: [&str; 4] = ["running", "seeded", "synced", "ready"];

impl Facts {
    /// Asks both databases; `None` when neither knows the job.
    ///
    /// # Errors
    /// When a database cannot be read.
    pub async fn gather(
        source: &Arc<dyn Site>,
        target: &Arc<dyn Site>,
        names: &JobNames,
    ) -> Result<Option<Self>> {
        Self::gather_from(Some(source), target, names).await
    }

    /// Asks the target, and the source if it can be reached.
    ///
    /// # Errors
    /// When a database cannot be read.
    pub async fn gather_from(
        source: Option<&Arc<dyn Site>>,
        target: &Arc<dyn Site>,
        names: &JobNames,
    ) -> Result<Option<Self>> {
        let state = target.stream_state(&names.job).await?;
        let retention = match source {
            Some(source) => source.retention(names).await?,
            None => None,
        };
        if state.checkpoint.is_none() && state.seed.is_empty() && retention.is_none() {
            return Ok(None);
        }
        let holder = target.holder(&names.job).await?;
        let published = target.published_status(&names.job).await?;
        let applied: Option<&Position> = state.checkpoint.as_ref().map(|checkpoint| &checkpoint.position);
        let mut facts = Self::stored(names, &state);
        facts.conflicts = target.conflict_counts(&names.job).await?;
        facts.open_conflicts = target.open_conflicts(&names.job).await?;
        if let Some(source) = source {
            let (end, behind) = source.log_end(applied).await?;
            facts.lag_bytes = applied.is_some().then_some(behind);
            facts.position.source = Some(end.to_string());
        }
        facts.slot = retention.map(Slot::from);
        // Without a holder the last words of a gone instance mean nothing.
        facts.published = published
            .filter(|said| holder.is_some() && said.age <= FRESH)
            .and_then(|said| serde_json::from_str(&said.status).ok());
        facts.holder = holder;
        Ok(Some(facts))
    }

    fn stored(names: &JobNames, state: &StreamState) -> Self {
        let phase = |table: &SeedTable| table.phase;
        let mut facts = Self {
            job: names.job.clone(),
            tables: TableCounts::of(state.seed.iter().map(phase)),
            schema_pending: state.schema_pending,
            ..Self::default()
        };
        if let Some(checkpoint) = &state.checkpoint {
            facts.changes = checkpoint.changes;
            facts.transactions = checkpoint.transactions;
            facts.commit_micros = checkpoint.commit_time_micros;
            facts.position.applied = Some(checkpoint.position.to_string());
        }
        facts
    }

    fn state(&self) -> &str {
        match (&self.published, &self.holder) {
            (Some(published), _) => &published.state,
            (None, Some(_)) => state_name(Phase::Starting),
            (None, None) => state_name(Phase::Stopped),
        }
    }

    fn lost(&self) -> bool {
        self.slot.as_ref().is_some_and(|slot| slot.wal_status == LOST)
    }

    fn gates(&self) -> BTreeMap<&'static str, bool> {
        let running = self.holder.is_some();
        let seeded = self.tables.all_live();
        let synced = self.state() == state_name(Phase::Synced);
        let ready = running && seeded && synced && !self.schema_pending && !self.lost();
        GATES.into_iter().zip([running, seeded, synced, ready]).collect()
    }

    /// `suffix` names the job to the next command.
    fn next_command(&self, suffix: &str) -> String {
        let verb = match self.state() {
            _ if self.lost() => "cleanup",
            _ if self.open_conflicts > 0 => "conflicts list --open",
            "stopped" => "run",
            "synced" | "held" => "verify",
            _ => "status --watch",
        };
        format!("cdc-sync {verb} {suffix}")
    }

    /// The status of these facts.
    pub fn status(&self, suffix: &str) -> Status {
        let said = self.published.as_ref();
        Status {
            state: self.state().to_owned(),
            lag: Lag {
                heartbeat_ms: said.and_then(|said| said.heartbeat_ms),
                commit_ms: said.and_then(|said| said.commit_ms),
                staleness_ms: staleness_ms(self.commit_micros),
                bytes: self.lag_bytes,
            },
            tables: self.tables,
            slot: self.slot.clone(),
            changes: self.changes,
            conflicts: self.conflicts.clone(),
            throttled: None,
            next_command: self.next_command(suffix),
            transactions: self.transactions,
            position: self.position.clone(),
            open_conflicts: self.open_conflicts,
            holder: self.holder.clone(),
            last_error: said.and_then(|said| said.last_error.clone()),
            setback: said.and_then(|said| said.setback.clone()),
            gates: self.gates(),
        }
    }
}

#[cfg(test)]
mod tests {
    use cdc_core::Kind;

    use super::*;

    fn running(state: &str) -> Facts {
        Facts {
            job: "shop".into(),
            published: Some(Published {
                state: state.into(),
                heartbeat_ms: Some(12.5),
                commit_ms: None,
                last_error: None,
                setback: None,
            }),
            holder: Some("cdc-sync 4711".into()),
            tables: TableCounts {
                live: 3,
                ..TableCounts::default()
            },
            slot: Some(Slot {
                retained_bytes: 10,
                safe_bytes: None,
                wal_status: "reserved".into(),
            }),
            ..Facts::default()
        }
    }

    #[test]
    fn the_stable_keys_are_there() {
        let status = serde_json::to_value(running("synced").status("--job shop")).expect("an object");
        for key in [
            "state",
            "lag",
            "tables",
            "slot",
            "changes",
            "conflicts",
            "throttled",
            "next_command",
        ] {
            assert!(status.get(key).is_some(), "{key}");
        }
        let keys = |name: &str| -> Vec<String> {
            status[name]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, _)| key.clone())
                .collect()
        };
        assert_eq!(
            keys("lag"),
            ["heartbeat_ms", "commit_ms", "staleness_ms", "bytes"]
        );
        assert_eq!(keys("tables"), ["todo", "copying", "live"]);
        assert_eq!(keys("slot"), ["retained_bytes", "safe_bytes", "wal_status"]);
        assert_eq!(
            keys("changes"),
            [
                "read",
                "applied",
                "coalesced",
                "loop",
                "filtered",
                "superseded",
                "dead_lettered",
                "internal"
            ]
        );
        assert_eq!(status["lag"]["heartbeat_ms"], 12.5);
    }

    #[test]
    fn gates_and_next_commands() {
        let synced = running("synced");
        assert!(synced.status("").gates.values().all(|met| *met));
        assert_eq!(
            synced.status("--job shop").next_command,
            "cdc-sync verify --job shop"
        );
        let waiting = Facts {
            open_conflicts: 2,
            conflicts: BTreeMap::from([("insert_exists".to_owned(), 3)]),
            ..running("synced")
        };
        let status = waiting.status("--job shop");
        assert_eq!(status.next_command, "cdc-sync conflicts list --open --job shop");
        assert_eq!(status.conflicts["insert_exists"], 3);
        let mut lost = running("synced");
        lost.slot = Some(Slot {
            retained_bytes: 0,
            safe_bytes: None,
            wal_status: "lost".into(),
        });
        assert!(!lost.status("").gates["ready"]);
        assert!(lost.status("x").next_command.contains("cleanup"));
        let stopped = Facts {
            holder: None,
            published: None,
            ..running("synced")
        };
        let status = stopped.status("--job shop");
        assert_eq!(status.state, "stopped");
        assert_eq!(status.next_command, "cdc-sync run --job shop");
        assert!(!status.gates["running"] && status.gates["seeded"]);
        assert_eq!(
            Facts {
                published: None,
                ..running("")
            }
            .status("")
            .state,
            "starting"
        );
    }

    #[test]
    fn what_is_published_is_read_back() {
        let published = Published::from(&StatsSnapshot {
            phase: Phase::CatchingUp,
            ..StatsSnapshot::default()
        });
        let text = serde_json::to_string(&published).expect("text");
        assert_eq!(serde_json::from_str::<Published>(&text).ok(), Some(published));
    }

    #[test]
    fn a_setback_is_told_and_read_back_as_the_error_it_was() {
        let error = Error::new(Kind::Schema, "lacks a column")
            .object("table s.t")
            .remedy("add it");
        let stats = StatsSnapshot {
            setback: Some(Setback {
                error: Arc::new(error),
                retained_bytes: Some(7),
                at: UNIX_EPOCH + Duration::from_micros(5),
            }),
            ..StatsSnapshot::default()
        };
        let facts = Facts {
            published: Some(Published::from(&stats)),
            ..running("synced")
        };
        let told = facts.status("").setback.expect("a setback");
        assert_eq!((told.retained_bytes, told.at_micros), (Some(7), 5));
        let error = told.error();
        assert_eq!(
            (error.kind(), error.object_name()),
            (Kind::Schema, Some("table s.t"))
        );
        assert_eq!(error.remedy_text(), Some("add it"));
    }

    #[test]
    fn staleness_is_unknown_without_a_commit_and_never_negative() {
        assert_eq!(staleness_ms(0), None);
        assert_eq!(staleness_ms(i64::MAX), Some(0.0));
        assert!(staleness_ms(1).is_some_and(|ms| ms > 1e12));
    }
}
