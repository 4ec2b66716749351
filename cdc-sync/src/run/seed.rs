//! The initial copy: parts of tables, each on a connection of its own, all from one snapshot.
//!
//! A lost copy connection repeats its own part while the snapshot stands. When the snapshot is lost, tables
//! that are complete stay; the others are emptied and copied whole from a new snapshot, whose position is
//! stored with them: the stream applies to a table only what its snapshot does not contain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_core::engine::{SeedPhase, SeedTable, TableInfo};
use cdc_core::pipeline::Phase;
use cdc_core::seed::{Snapshot, TablePart};
use cdc_core::{Action, Error, Kind, Result, TableName};
use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::backoff::Backoff;
use super::retention::RetentionWatch;
use super::retry::{for_operator, passes, persist};
use super::{RunContext, SeedProgress, SeedSummary, TableProgress};
use crate::references::References;

/// How often progress is shown and stop requests are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often the snapshot is looked after.
const ALIVE_EVERY: Duration = Duration::from_secs(2);
/// Rounds in a row that lose their snapshot before a table is complete, until it is no outage any more: a URL that
/// leads to several servers, or through a pooler, never keeps one.
const SNAPSHOTS_LOST: u32 = 10;
/// Attempts at one part before its error is the seed's.
const PART_ATTEMPTS: u32 = 6;

/// Bytes of which a worker reports at a time.
const REPORTED: u64 = 1 << 20;

/// One part for a worker: which table, and what to copy.
struct Task {
    table: usize,
    part: TablePart,
}

/// What workers report.
enum Report {
    Bytes {
        table: usize,
        bytes: u64,
    },
    /// a part is copied again: its bytes so far do not count
    Again {
        table: usize,
        bytes: u64,
    },
    Done {
        table: usize,
        rows: u64,
    },
    Failed(Error),
}

/// Copies every table that is not live and stores its progress; returns early when a stop is asked for.
pub(super) async fn seed(
    context: &Arc<RunContext>,
    epoch: i64,
    snapshot: Option<Box<dyn Snapshot>>,
    mut tables: Vec<SeedTable>,
) -> Result<SeedSummary> {
    context.stats.update(|stats| stats.phase = Phase::Seeding);
    let began = Instant::now();
    // Before anything is emptied: a job whose position is lost has nothing to resume.
    let mut retention = RetentionWatch::default();
    retention.look(context).await?;
    let infos = persist(context, "reading the list of tables", || {
        context.source.inspect(&context.selection)
    })
    .await?;
    let size = |table: &SeedTable| {
        infos
            .iter()
            .find(|info| info.name == table.table)
            .map_or(0, |info| info.bytes)
    };
    tables.sort_by_key(|table| std::cmp::Reverse(size(table)));
    let references = references(context).await?;
    let mut summary = SeedSummary::default();
    let mut snapshot = snapshot;
    let mut backoff = Backoff::new(Duration::from_secs(30));
    let mut snapshots_lost = 0;
    loop {
        let live_before = summary.tables;
        let round = match snapshot.take() {
            Some(held) => Ok(held),
            None => context.source.create_snapshot(&context.names, false).await,
        };
        let copied = match round {
            Ok(held) => {
                let mut job = Job {
                    references: &references,
                    retention: &mut retention,
                    tables: &mut tables,
                    infos: &infos,
                };
                copy_round(context, epoch, Arc::from(held), &mut job, &mut summary).await
            }
            Err(error) => Err(error),
        };
        let Err(error) = copied else { break };
        if context.control.stopping() {
            return Err(error);
        }
        let progress = summary.tables > live_before;
        snapshots_lost = match error.kind() {
            Kind::PositionLost if !progress => snapshots_lost + 1,
            _ => 0,
        };
        if !may_go_on(&error, progress) || snapshots_lost == SNAPSHOTS_LOST {
            return Err(for_operator(error));
        }
        let pause = backoff.pause();
        tracing::warn!(%error, ?pause, "seed interrupted; unfinished tables are copied again from a new snapshot");
        context.stats.update(|stats| {
            stats.restarts += 1;
            stats.last_error = Some(error.to_string());
        });
        tokio::time::sleep(pause).await;
    }
    summary.seconds = began.elapsed().as_secs_f64();
    Ok(summary)
}

async fn references(context: &RunContext) -> Result<References> {
    let tables = persist(context, "reading the target's foreign keys", || {
        context.target.target_tables(&context.selection)
    })
    .await?;
    Ok(References::of(&tables))
}

/// Whether another round may come further. Where foreign keys are checked while we copy, a table waits for those it
/// refers to: as long as tables become complete, the next round may find them.
fn may_go_on(error: &Error, progress: bool) -> bool {
    passes(error) || (is_reference(error) && progress)
}

/// Whether a row lacks what it refers to, which another table's copy may bring. A value that is there twice stays so.
fn is_reference(error: &Error) -> bool {
    error.what_to_do() == Action::Conflict && error.kind() != Kind::Conflict
}

/// What is copied.
struct Job<'a> {
    references: &'a References,
    retention: &'a mut RetentionWatch,
    tables: &'a mut [SeedTable],
    infos: &'a [TableInfo],
}

/// Where foreign keys are checked, a table and those it refers to come from one snapshot: a row of a newer one may
/// refer to what an older one does not show, and nothing is applied before the copy ends. So a family of tables that is
/// not complete is copied anew, all of it.
async fn begin_families_anew(
    context: &RunContext,
    epoch: i64,
    snapshot: &dyn Snapshot,
    job: &mut Job<'_>,
) -> Result<()> {
    for family in job.references.families() {
        let mut members: Vec<&mut SeedTable> = job
            .tables
            .iter_mut()
            .filter(|table| family.contains(&table.table))
            .collect();
        let complete = members.iter().all(|table| table.phase == SeedPhase::Live);
        let begun =
            |table: &SeedTable| table.phase != SeedPhase::Todo && table.position != *snapshot.position();
        if complete || !members.iter().any(|table| begun(table)) {
            continue;
        }
        for table in &mut members {
            table.phase = SeedPhase::Todo;
            context
                .target
                .store_seed(&context.names.job, epoch, table)
                .await?;
        }
        let family: Vec<TableName> = members.iter().map(|table| table.table.clone()).collect();
        context.target.truncate(&family).await?;
    }
    Ok(())
}

/// One attempt: all unfinished tables from one snapshot.
async fn copy_round(
    context: &Arc<RunContext>,
    epoch: i64,
    snapshot: Arc<dyn Snapshot>,
    job: &mut Job<'_>,
    summary: &mut SeedSummary,
) -> Result<()> {
    begin_families_anew(context, epoch, &*snapshot, job).await?;
    let (tasks_tx, tasks_rx) = unbounded::<Task>();
    let (reports_tx, mut reports_rx) = unbounded_channel::<Report>();
    let (give_up, given_up) = watch::channel(false);
    let workers: Vec<_> = (0..context.settings.seed_connections.max(1))
        .map(|number| {
            let queues = (tasks_rx.clone(), reports_tx.clone());
            spawn_worker(number, context, epoch, &snapshot, queues, given_up.clone())
        })
        .collect::<Result<_>>()?;
    drop((tasks_rx, reports_tx));
    let live_before = summary.tables;
    let mut round = Round::new(context, epoch, &snapshot, job);
    let copied = round.run(tasks_tx, &mut reports_rx, summary).await;
    // The queue is closed or dropped: workers end after the part they are at, or at once when it failed.
    drop(reports_rx);
    if let Err(error) = &copied
        && !may_go_on(error, summary.tables > live_before)
    {
        // No other round of this process empties the tables, so nobody needs to know how the parts ended.
        give_up.send_replace(true);
    }
    let joined =
        tokio::task::spawn_blocking(move || workers.into_iter().try_for_each(|worker| worker.join())).await;
    match joined {
        Ok(Ok(())) => copied,
        Ok(Err(_)) | Err(_) => Err(Error::bug("a copy thread panicked")),
    }
}

/// The coordinating side of one attempt.
struct Round<'a> {
    context: &'a RunContext,
    epoch: i64,
    snapshot: &'a Arc<dyn Snapshot>,
    references: &'a References,
    tables: &'a mut [SeedTable],
    progress: SeedProgress,
    pending: Vec<usize>,
    retention: &'a mut RetentionWatch,
    alive_asked: Instant,
    /// when progress was last shown
    shown: Option<Instant>,
}

impl<'a> Round<'a> {
    fn new(
        context: &'a RunContext,
        epoch: i64,
        snapshot: &'a Arc<dyn Snapshot>,
        job: &'a mut Job<'_>,
    ) -> Self {
        let infos = job.infos;
        let rows = job.tables.iter().map(|table| {
            let info = infos.iter().find(|info| info.name == table.table);
            TableProgress {
                table: table.table.clone(),
                phase: table.phase,
                estimated_rows: info.map_or(0, |info| info.estimated_rows),
                disk_bytes: info.map_or(0, |info| info.bytes),
                rows: table.rows,
                bytes: table.bytes,
                parts: (0, 0),
            }
        });
        let progress = SeedProgress {
            tables: rows.collect(),
            began: Instant::now(),
            retention: None,
        };
        let pending = vec![0; job.tables.len()];
        Self {
            context,
            epoch,
            snapshot,
            references: job.references,
            tables: job.tables,
            progress,
            pending,
            retention: job.retention,
            alive_asked: Instant::now(),
            shown: None,
        }
    }

    async fn run(
        &mut self,
        tasks: Sender<Task>,
        reports: &mut UnboundedReceiver<Report>,
        summary: &mut SeedSummary,
    ) -> Result<()> {
        let mut todo: Vec<usize> = (0..self.tables.len())
            .filter(|table| matches!(self.tables[*table].phase, SeedPhase::Todo | SeedPhase::Copying))
            .collect();
        let mut unfinished = 0;
        loop {
            // Tables are begun when the workers run out of parts, so that few are half copied at any moment.
            while tasks.len() < self.context.settings.seed_connections
                && let Some(table) = self.next_table(&mut todo, unfinished == 0)
            {
                if let Err(error) = self.begin_table(table, &tasks).await {
                    // A copy thread ends with the part that failed: why says more than that none is left.
                    while let Ok(report) = reports.try_recv() {
                        self.take(report, summary).await?;
                    }
                    return Err(error);
                }
                unfinished += 1;
            }
            let done = unfinished == 0 && todo.is_empty();
            if done || self.shown.is_none_or(|at| at.elapsed() >= TICK) {
                self.context.reporter.seed(&self.progress);
                self.shown = Some(Instant::now());
            }
            if done {
                return Ok(());
            }
            if self.context.control.stopping() {
                return Err(Error::new(
                    Kind::Interrupted,
                    "stopped during the seed; it resumes with the next run",
                ));
            }
            self.watch_source().await?;
            unfinished -= self.take_reports(reports, summary).await?;
        }
    }

    /// The next table whose turn it is, taken from the list: none while it refers to one that is not complete, unless
    /// there is nothing to wait for. What the server then says of the row is the error to show.
    fn next_table(&self, todo: &mut Vec<usize>, idle: bool) -> Option<usize> {
        let complete = |name: &TableName| {
            let mut tables = self.tables.iter();
            tables.any(|table| table.table == *name && table.phase == SeedPhase::Live)
        };
        let ready = |table: &usize| self.references.met(&self.tables[*table].table, complete);
        let place = todo.iter().position(ready);
        let place = place.or((idle && !todo.is_empty()).then_some(0))?;
        Some(todo.remove(place))
    }

    async fn begin_table(&mut self, table: usize, tasks: &Sender<Task>) -> Result<()> {
        let seed = &mut self.tables[table];
        seed.phase = SeedPhase::Copying;
        seed.position = self.snapshot.position().clone();
        seed.rows = 0;
        seed.bytes = 0;
        self.context
            .target
            .store_seed(&self.context.names.job, self.epoch, seed)
            .await?;
        // Rows that refer to each other agree at the end of the statement that brings them all.
        let part_bytes = if self.references.to_itself(&seed.table) {
            u64::MAX
        } else {
            self.context.settings.seed_part_bytes
        };
        let parts = self.snapshot.parts(&seed.table, part_bytes).await?;
        let shown = &mut self.progress.tables[table];
        (shown.phase, shown.rows, shown.bytes, shown.parts) = (SeedPhase::Copying, 0, 0, (0, parts.len()));
        self.pending[table] = parts.len();
        for part in parts {
            if tasks.send(Task { table, part }).is_err() {
                return Err(Error::bug("no copy thread is left"));
            }
        }
        Ok(())
    }

    /// Takes reports for a tick, or until a table is live; returns how many became so.
    async fn take_reports(
        &mut self,
        reports: &mut UnboundedReceiver<Report>,
        summary: &mut SeedSummary,
    ) -> Result<usize> {
        let until = tokio::time::Instant::now() + TICK;
        while let Ok(report) = timeout_at(until, reports.recv()).await {
            let report = report.ok_or_else(|| Error::bug("no copy thread is left"))?;
            if self.take(report, summary).await? {
                return Ok(1);
            }
        }
        Ok(0)
    }

    /// Takes one report; whether a table became live by it.
    async fn take(&mut self, report: Report, summary: &mut SeedSummary) -> Result<bool> {
        match report {
            Report::Bytes { table, bytes } => {
                self.progress.tables[table].bytes += bytes;
                self.tables[table].bytes += bytes;
            }
            Report::Again { table, bytes } => {
                self.progress.tables[table].bytes -= bytes;
                self.tables[table].bytes -= bytes;
            }
            Report::Failed(error) => return Err(error),
            Report::Done { table, rows } => {
                let shown = &mut self.progress.tables[table];
                shown.rows += rows;
                shown.parts.0 += 1;
                let seed = &mut self.tables[table];
                seed.rows += rows;
                self.pending[table] -= 1;
                if self.pending[table] == 0 {
                    shown.phase = SeedPhase::Live;
                    let stored = SeedTable {
                        phase: SeedPhase::Live,
                        ..seed.clone()
                    };
                    self.context
                        .target
                        .store_seed(&self.context.names.job, self.epoch, &stored)
                        .await?;
                    *seed = stored;
                    summary.tables += 1;
                    summary.rows += seed.rows;
                    summary.bytes += seed.bytes;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Whether blue can bear it, and the snapshot still stands.
    async fn watch_source(&mut self) -> Result<()> {
        if let Some(kept) = self.retention.look(self.context).await? {
            self.progress.retention = Some(kept);
        }
        if self.alive_asked.elapsed() < ALIVE_EVERY {
            return Ok(());
        }
        self.alive_asked = Instant::now();
        match self.snapshot.alive().await {
            Err(error) if error.kind() == Kind::PositionLost => Err(error),
            // Not known is not lost: who reads from it will notice.
            Err(error) => {
                tracing::warn!(%error, "cannot ask the source whether the snapshot stands");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

type Worker = std::thread::JoinHandle<()>;

fn spawn_worker(
    number: usize,
    context: &Arc<RunContext>,
    epoch: i64,
    snapshot: &Arc<dyn Snapshot>,
    (tasks, reports): (Receiver<Task>, UnboundedSender<Report>),
    mut given_up: watch::Receiver<bool>,
) -> Result<Worker> {
    let (context, snapshot) = (Arc::clone(context), Arc::clone(snapshot));
    let local = |error| Error::new(Kind::Local, "cannot start a copy thread").caused_by(error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(local)?;
    let body = move || {
        while let Ok(task) = tasks.recv() {
            let copying = async {
                tokio::select! {
                    copied = copy_with_retries(&context, epoch, &*snapshot, &task, &reports) => copied,
                    _ = given_up.wait_for(|given_up| *given_up) => Err(seed_given_up()),
                }
            };
            let report = match runtime.block_on(copying) {
                Ok(rows) => Report::Done {
                    table: task.table,
                    rows,
                },
                Err(error) => Report::Failed(error),
            };
            let failed = matches!(report, Report::Failed(_));
            if reports.send(report).is_err() || failed {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name(format!("cdc-seed-{number}"))
        .spawn(body)
        .map_err(local)
}

/// Copies a part; after a lost connection it is copied again from the start, as long as the snapshot stands.
async fn copy_with_retries(
    context: &RunContext,
    epoch: i64,
    snapshot: &dyn Snapshot,
    task: &Task,
    reports: &UnboundedSender<Report>,
) -> Result<u64> {
    let mut backoff = Backoff::new(Duration::from_secs(5));
    let mut attempt = 1;
    loop {
        let mut sent = 0;
        let error = match copy_part(context, epoch, snapshot, task, reports, &mut sent).await {
            Ok(rows) => return Ok(rows),
            Err(error) => error,
        };
        // A table that was rewritten since can never be read through this snapshot.
        let hopeless = !(passes(&error) || is_reference(&error)) || error.kind() == Kind::Schema;
        let stopping = context.control.stopping();
        if hopeless || attempt == PART_ATTEMPTS || stopping {
            return Err(error.object(task.part.table.to_string()));
        }
        snapshot.alive().await?;
        attempt += 1;
        // Nobody listening means the seed was given up, which the next send finds out.
        let _ = reports.send(Report::Again {
            table: task.table,
            bytes: sent,
        });
        tracing::warn!(%error, table = %task.part.table, part = task.part.index, attempt, "copying a part again");
        tokio::time::sleep(backoff.pause()).await;
    }
}

async fn copy_part(
    context: &RunContext,
    epoch: i64,
    snapshot: &dyn Snapshot,
    task: &Task,
    reports: &UnboundedSender<Report>,
    sent: &mut u64,
) -> Result<u64> {
    let formats = context.target.bulk_formats(&task.part).await?;
    let mut reader = snapshot.read(&task.part, &formats).await?;
    let mut loader = context
        .target
        .loader(&context.names.job, epoch, &task.part, reader.format())
        .await?;
    let mut unreported = 0;
    let mut report = |bytes| {
        *sent += bytes;
        let table = task.table;
        reports.send(Report::Bytes { table, bytes }).is_ok()
    };
    loop {
        let chunk = match reader.next().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => {
                // Nothing of the part may stay; the connection's end rolls back what an abort cannot.
                let _ = loader.abort().await;
                return Err(error);
            }
        };
        unreported += chunk.len() as u64;
        loader.write(chunk).await?;
        if unreported >= REPORTED && !report(std::mem::take(&mut unreported)) {
            let _ = loader.abort().await;
            return Err(seed_given_up());
        }
    }
    if !report(unreported) {
        let _ = loader.abort().await;
        return Err(seed_given_up());
    }
    loader.finish().await
}

fn seed_given_up() -> Error {
    Error::new(Kind::Interrupted, "the seed was given up")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_constraint_refuses_is_copied_again_only_while_it_may_help() {
        let unique = Error::new(Kind::Conflict, "duplicate key").action(Action::Conflict);
        let reference = Error::new(Kind::Data, "foreign key").action(Action::Conflict);
        let outage = Error::new(Kind::Unreachable, "reset by peer").action(Action::Reconnect);
        assert!(!may_go_on(&unique, true) && !may_go_on(&unique, false));
        assert!(may_go_on(&reference, true) && !may_go_on(&reference, false));
        assert!(may_go_on(&outage, false));
        assert!(!may_go_on(&Error::new(Kind::Data, "bad value"), true));
    }
}
