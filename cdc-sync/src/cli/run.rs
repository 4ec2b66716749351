//! `run`: copies and follows until stopped or, with `--until-caught-up`, until caught up.

use std::sync::Arc;
use std::time::Duration;

use cdc_core::engine::{Finding, SequenceAdvance};
use cdc_core::model::ChangeCounts;
use cdc_core::pipeline::{Control, Phase, StatsSnapshot, StreamStats};
use cdc_core::{Error, Kind, Result};
use serde::Serialize;
use tokio::time::Instant;

use super::args::Run;
use super::check::table;
use super::human::{bytes, count, millis};
use super::report::remember;
use super::session::{Session, Sites};
use crate::check::{Counts, findings_of_run, policy_findings, worst_first};
use crate::exit;
use crate::http::Endpoints;
use crate::monitor::Monitor;
use crate::output::Report;
use crate::progress::Progress;
use crate::run::{RunContext, RunOutcome, RunSettings, SeedSummary, standing};
use crate::status::Positions;

/// Beyond `--shutdown-timeout`, for the roll-back itself.
const ROLLBACK_GRACE: Duration = Duration::from_secs(3);
/// What has not begun to copy or follow has nothing to finish.
const STARTING_GRACE: Duration = Duration::from_secs(1);
/// For the last status row.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize)]
struct Body {
    seed: SeedSummary,
    transactions: u64,
    changes: ChangeCounts,
    position: Positions,
    lag_ms: LagMillis,
    sequences: Vec<SequenceAdvance>,
    caught_up: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    findings: Vec<Finding>,
}

/// Heartbeat lag of this run; `None` without heartbeats.
#[derive(Debug, Default, Serialize)]
struct LagMillis {
    p50: Option<f64>,
    p99: Option<f64>,
    max: Option<f64>,
}

impl Body {
    fn new(outcome: RunOutcome) -> Self {
        let stats = &outcome.stats;
        let lag = stats.heartbeat.summary();
        Self {
            seed: outcome.seed,
            transactions: stats.transactions,
            changes: stats.changes,
            position: Positions {
                source: outcome.source_position.as_ref().map(ToString::to_string),
                applied: stats.applied.as_ref().map(ToString::to_string),
            },
            lag_ms: LagMillis {
                p50: lag.map(|lag| lag.p50),
                p99: lag.map(|lag| lag.p99),
                max: lag.map(|lag| lag.max),
            },
            sequences: outcome.sequences,
            caught_up: outcome.caught_up,
            findings: Vec::new(),
        }
    }

    /// What can be said of a run that failed.
    fn unfinished(stats: StatsSnapshot) -> Self {
        Self::new(RunOutcome {
            seed: SeedSummary::default(),
            stats,
            source_position: None,
            sequences: Vec::new(),
            caught_up: false,
        })
    }

    fn human(&self) -> String {
        let mut out = String::new();
        let seed = &self.seed;
        if seed.tables > 0 {
            out.push_str(&format!(
                "copied   {} tables, {} rows, {} in {:.1} s\n",
                seed.tables,
                count(seed.rows),
                bytes(seed.bytes),
                seed.seconds
            ));
        }
        let changes = &self.changes;
        out.push_str(&format!(
            "applied  {} of {} changes in {} transactions, over the life of the job\n",
            count(changes.applied),
            count(changes.read),
            count(self.transactions)
        ));
        let lag = &self.lag_ms;
        if lag.p50.is_some() {
            out.push_str(&format!(
                "lag      p50 {}, p99 {}, max {}\n",
                millis(lag.p50),
                millis(lag.p99),
                millis(lag.max)
            ));
        }
        if self.caught_up {
            out.push_str(&format!("caught up; {} sequences set\n", self.sequences.len()));
        }
        out
    }
}

pub(super) async fn run(session: &Session, args: &Run) -> Report {
    match begin(session, args).await {
        Ok(report) => report,
        // A stop before there was anything to stop is what the signal asked for.
        Err(error)
            if error.kind() == Kind::Interrupted && session.stop.requested() && !args.until_caught_up =>
        {
            let body = Body::unfinished(StatsSnapshot::default());
            Report::new(exit::OK, &body, String::new())
        }
        Err(error) => Report::failed(error),
    }
}

async fn begin(session: &Session, args: &Run) -> Result<Report> {
    let deadline = session.timeout.map(|limit| Instant::now() + limit);
    let endpoints = match &session.settings.listen {
        Some(address) => Some(Endpoints::bind(address).await?),
        None => None,
    };
    let sites = session.bounded(session.connect()).await?;
    let selection = &session.settings.selection;
    let found = session.bounded(blocking(session, &sites)).await?;
    if let Some(report) = refused(&found) {
        // A job that has lost its position has more to mend than a finding.
        session.bounded(position_kept(&sites)).await?;
        return Ok(report);
    }
    let stats = Arc::new(StreamStats::default());
    let monitor = Arc::new(Monitor::new(sites.names.clone(), Arc::clone(&stats)));
    let progress = Arc::new(Progress::new(Arc::clone(&monitor), session.canvas.clone()));
    let context = Arc::new(RunContext {
        source: Arc::clone(&sites.source),
        target: Arc::clone(&sites.target),
        names: sites.names.clone(),
        selection: selection.clone(),
        present: None,
        settings: settings(session, args),
        control: Arc::new(Control::new()),
        conflicts: None,
        stats,
        reporter: Arc::clone(&progress) as Arc<dyn crate::run::Reporter>,
    });
    if session.dry_run {
        session.bounded(crate::run::rehearse(&context)).await?;
        return session.bounded(plan(session, &sites)).await;
    }
    // Of a run that is killed, at least the beginning is known.
    remember(session, sites.target.as_ref(), &sites.names, "run_begun", None).await;
    let (ended, cause) = work(session, &context, &monitor, endpoints, deadline).await;
    progress.finish();
    context.stats.update(|stats| stats.phase = Phase::Stopped);
    // `status` knows a stopped job also without its last words.
    let _ = tokio::time::timeout(FAREWELL, monitor.publish(&sites.target)).await;
    let report = report(ended, cause, args, context.stats.snapshot());
    let remembered = remember(session, sites.target.as_ref(), &sites.names, "run", Some(&report));
    let _ = tokio::time::timeout(FAREWELL, remembered).await;
    Ok(report)
}

/// Whether the source still keeps the log after the checkpoint, if there is one.
async fn position_kept(sites: &Sites) -> Result<()> {
    let state = sites.target.stream_state(&sites.names.job).await?;
    if state.checkpoint.is_some() {
        standing(&sites.names, sites.source.retention(&sites.names).await?)?;
    }
    Ok(())
}

/// What speaks against the job, worst first.
async fn blocking(session: &Session, sites: &Sites) -> Result<Vec<Finding>> {
    let Sites {
        source,
        target,
        names,
    } = sites;
    let selection = &session.settings.selection;
    let mut found = findings_of_run(source, target, names, selection).await?;
    found.extend(policy_findings(source, target, selection, &session.settings.conflicts).await?);
    worst_first(&mut found);
    Ok(found)
}

/// Findings that block the job, as a report.
fn refused(found: &[Finding]) -> Option<Report> {
    let fail = Counts::of(found).fail;
    if fail == 0 {
        return None;
    }
    let error = Error::new(Kind::Check, format!("{fail} findings block the job"))
        .remedy("see to them, then run again; `cdc-sync check` lists them with the others");
    let mut body = Body::unfinished(StatsSnapshot::default());
    // Blocking ones come first.
    body.findings = found
        .iter()
        .take(usize::try_from(fail).unwrap_or(usize::MAX))
        .cloned()
        .collect();
    let human = table(&body.findings);
    Some(Report::new(exit::CHECK, &body, human).with_error(Some(error)))
}

/// `--dry-run`: what would be executed to prepare both sides.
async fn plan(session: &Session, sites: &Sites) -> Result<Report> {
    use cdc_core::engine::Side;
    let selection = &session.settings.selection;
    let state = sites.target.stream_state(&sites.names.job).await?;
    let tables = sites.source.inspect(selection).await?.len();
    let source = sites
        .source
        .preparation(Side::Source, &sites.names, selection)
        .await?;
    let target = sites
        .target
        .preparation(Side::Target, &sites.names, selection)
        .await?;
    let resumes = state.checkpoint.map(|checkpoint| checkpoint.position.to_string());
    let mut human = match &resumes {
        Some(position) => format!("would resume job {} at {position}\n", sites.names.job),
        None => format!(
            "would copy {tables} tables as job {} and follow\n",
            sites.names.job
        ),
    };
    for (side, statements) in [("source", &source), ("target", &target)] {
        human.push_str(&format!("\n-- on the {side}\n{}\n", statements.join("\n")));
    }
    let body = serde_json::json!({
        "dry_run": true,
        "tables": tables,
        "resumes_at": resumes,
        "statements": {"source": source, "target": target},
    });
    Ok(Report::new(exit::OK, &body, human))
}

/// Runs the job, watched and served to whoever asks meanwhile.
async fn work(
    session: &Session,
    context: &Arc<RunContext>,
    monitor: &Arc<Monitor>,
    endpoints: Option<Endpoints>,
    deadline: Option<Instant>,
) -> (Result<RunOutcome>, Option<Cause>) {
    let watching = {
        let (monitor, context) = (Arc::clone(monitor), Arc::clone(context));
        tokio::spawn(async move { monitor.watch(&context.source, &context.target).await })
    };
    let serving = endpoints.map(|endpoints| {
        if let Some(address) = endpoints.address() {
            tracing::info!(%address, "serving /livez, /readyz, /status and /metrics");
        }
        tokio::spawn(endpoints.serve(Arc::clone(monitor)))
    });
    tracing::info!(
        job = monitor.job(),
        source = context.source.display_url(),
        target = context.target.display_url(),
        "starting"
    );
    let ended = steer(session, context, deadline).await;
    watching.abort();
    if let Some(serving) = serving {
        serving.abort();
    }
    ended
}

fn settings(session: &Session, args: &Run) -> RunSettings {
    let settings = &session.settings;
    RunSettings {
        until_caught_up: args.until_caught_up,
        truncate_target: args.truncate_target,
        takeover_timeout: args.takeover_timeout,
        shutdown_timeout: args.shutdown_timeout,
        // Kept here, around the whole run, seed included.
        deadline: None,
        seed_connections: settings.seed_parallel,
        seed_part_bytes: settings.seed_part_bytes,
        max_retained_wal: settings.max_retained_wal,
        pipeline: settings.pipeline,
        heartbeat: settings.heartbeat,
        sequence_buffer: settings.sequence_buffer,
        conflicts: settings.conflicts.clone(),
        tools_dir: args.tools_dir.clone(),
    }
}

/// Why a run was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Signal,
    Deadline,
}

/// Runs until the run ends by itself, or stops it in good order when a signal or the time limit says so.
async fn steer(
    session: &Session,
    context: &Arc<RunContext>,
    deadline: Option<Instant>,
) -> (Result<RunOutcome>, Option<Cause>) {
    let mut running = tokio::spawn(crate::run::run(Arc::clone(context)));
    let limit = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    let cause = tokio::select! {
        ended = &mut running => return (joined(ended), None),
        () = session.stop.wait() => Cause::Signal,
        () = limit => Cause::Deadline,
    };
    tracing::info!("stopping");
    let patience = context.settings.shutdown_timeout;
    context.control.stop(patience);
    let grace = match context.stats.snapshot().phase {
        Phase::Starting => STARTING_GRACE,
        _ => patience + ROLLBACK_GRACE,
    };
    let ended = match tokio::time::timeout(grace, &mut running).await {
        Ok(ended) => joined(ended),
        // Connections close with the process: the target rolls back, the checkpoint stands.
        Err(_) => {
            running.abort();
            Err(Error::new(
                Kind::Interrupted,
                "work in flight was given up and is rolled back",
            ))
        }
    };
    (ended, Some(cause))
}

fn joined(ended: std::result::Result<Result<RunOutcome>, tokio::task::JoinError>) -> Result<RunOutcome> {
    ended.unwrap_or_else(|error| Err(Error::bug("the run panicked").caused_by(error)))
}

fn report(ended: Result<RunOutcome>, cause: Option<Cause>, args: &Run, stats: StatsSnapshot) -> Report {
    let (body, error) = match ended {
        Ok(outcome) => (Body::new(outcome), None),
        Err(error) => (Body::unfinished(stats), Some(error)),
    };
    let error = match (error, cause) {
        // A stop that was asked for is no failure of its own.
        (Some(error), Some(_)) if error.kind() == Kind::Interrupted => None,
        (error, _) => error,
    };
    let reached = !args.until_caught_up || body.caught_up;
    let error = error.or_else(|| match cause {
        Some(Cause::Deadline) if !body.caught_up => Some(
            Error::new(Kind::Deadline, "the time limit passed; everything so far is kept")
                .remedy("run it again: it resumes where it stands"),
        ),
        Some(Cause::Signal) if !reached => Some(
            Error::new(
                Kind::Interrupted,
                "interrupted before the target had caught up; everything so far is kept",
            )
            .remedy("run it again: it resumes where it stands"),
        ),
        _ => None,
    });
    let human = body.human();
    Report::new(exit::OK, &body, human).with_error(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(until_caught_up: bool) -> Run {
        Run {
            until_caught_up,
            truncate_target: false,
            takeover_timeout: Duration::ZERO,
            shutdown_timeout: Duration::ZERO,
            listen: None,
            tools_dir: None,
            sequence_buffer: None,
            max_retained_wal: None,
            parallel: None,
            conflict: Vec::new(),
        }
    }

    fn outcome(caught_up: bool) -> Result<RunOutcome> {
        Ok(RunOutcome {
            seed: SeedSummary::default(),
            stats: StatsSnapshot::default(),
            source_position: None,
            sequences: Vec::new(),
            caught_up,
        })
    }

    #[test]
    fn exit_codes_of_every_end() {
        let exit = |ended, cause, until| report(ended, cause, &args(until), StatsSnapshot::default()).exit;
        let interrupted = || Err(Error::new(Kind::Interrupted, "given up"));
        let data = || Err(Error::new(Kind::Data, "bad value"));
        assert_eq!(exit(outcome(false), Some(Cause::Signal), false), 0);
        assert_eq!(exit(interrupted(), Some(Cause::Signal), false), 0);
        assert_eq!(exit(outcome(true), None, true), 0);
        assert_eq!(exit(outcome(true), Some(Cause::Signal), true), 0);
        assert_eq!(exit(outcome(false), Some(Cause::Signal), true), 130);
        assert_eq!(exit(interrupted(), Some(Cause::Signal), true), 130);
        assert_eq!(exit(outcome(false), Some(Cause::Deadline), true), 4);
        assert_eq!(exit(data(), None, false), 13);
        assert_eq!(exit(data(), Some(Cause::Signal), true), 13);
    }

    #[test]
    fn the_stable_keys_are_there_also_after_a_failure() {
        let failed = Err(Error::new(Kind::Data, "bad value"));
        let report = report(failed, None, &args(false), StatsSnapshot::default());
        let object = report.envelope("run", Some("shop"));
        for key in [
            "seed",
            "transactions",
            "changes",
            "position",
            "lag_ms",
            "sequences",
            "caught_up",
        ] {
            assert!(object.get(key).is_some(), "{key}");
        }
        for (parent, keys) in [
            ("seed", &["tables", "rows", "bytes", "seconds"][..]),
            ("position", &["source", "applied"]),
            ("lag_ms", &["p50", "p99", "max"]),
        ] {
            assert!(
                keys.iter().all(|key| object[parent].get(key).is_some()),
                "{parent}"
            );
        }
        assert_eq!(object["error"]["code"], "data");
    }
}
