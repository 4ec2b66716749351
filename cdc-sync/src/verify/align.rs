//! Two views of the same moment: the source after some transactions, the target after exactly those.
//!
//! While an instance runs, it is asked to stand still, the source view is opened, the instance applies exactly
//! what that view contains, the target view is opened, and the instance goes on: it stands still for the time of
//! two snapshots, however long the comparison takes. Without an instance the target stands at its checkpoint,
//! and the log from there to the source view says which tables have changes that are not applied.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cdc_core::engine::{Barrier, CompareView, JobNames, SeedPhase, Side, Site, StreamState};
use cdc_core::{Checkpoint, Error, Kind, Position, Result, TableName, TableSelection};
use tokio::time::Instant;

use super::gap::{self, Gap};
use super::report::Alignment;
use super::{Progress, VerifyOptions, before};

/// How often the target is asked whether the instance stands still.
const POLL: Duration = Duration::from_millis(50);
/// How often a waiting verify looks whether the instance is still there.
const HOLDER_POLL: Duration = Duration::from_secs(2);
/// How often the situation may change under a verify (an instance starts or ends, another verify runs) before it
/// gives up.
pub(super) const ATTEMPTS: usize = 5;

/// Views to compare, and what is known about them.
pub(super) struct Views {
    pub(super) alignment: Alignment,
    pub(super) source: Box<dyn CompareView>,
    pub(super) target: Box<dyn CompareView>,
    /// tables with changes in the source view that the target does not have, and how many
    pub(super) pending: BTreeMap<TableName, u64>,
    /// tables that are copied anew beside the stream: they stand at another position, or are not complete
    pub(super) aside: BTreeSet<TableName>,
    pub(super) notes: Vec<String>,
}

impl std::fmt::Debug for Views {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Views")
            .field("alignment", &self.alignment)
            .field("pending", &self.pending)
            .finish()
    }
}

/// The two sites of a job.
pub(crate) struct Aligner<'a> {
    pub(crate) source: &'a dyn Site,
    pub(crate) target: &'a Arc<dyn Site>,
    pub(crate) names: &'a JobNames,
    pub(crate) selection: &'a TableSelection,
    pub(crate) options: &'a VerifyOptions,
    pub(crate) progress: &'a (dyn Fn(Progress<'_>) + Send + Sync),
}

/// A request to stand still that does not outlive its owner: dropped without having been withdrawn, it is withdrawn
/// by a task of its own.
pub(super) struct Request {
    target: Arc<dyn Site>,
    stream: String,
    open: bool,
}

impl Request {
    pub(super) fn new(target: &Arc<dyn Site>, names: &JobNames) -> Self {
        Self {
            target: Arc::clone(target),
            stream: names.job.clone(),
            open: true,
        }
    }

    pub(super) async fn withdraw(mut self) -> Result<()> {
        let withdrawn = self.target.request_barrier(&self.stream, None).await;
        self.open = false;
        withdrawn
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let (true, Ok(runtime)) = (self.open, tokio::runtime::Handle::try_current()) {
            let (target, stream) = (Arc::clone(&self.target), std::mem::take(&mut self.stream));
            runtime.spawn(async move {
                if let Err(error) = target.request_barrier(&stream, None).await {
                    tracing::warn!(%error, "the running instance could not be told to go on");
                }
            });
        }
    }
}

/// How an attempt ended without views: an instance came or went, and the other way must be taken.
enum Attempt {
    Views(Views),
    Again,
}

impl Aligner<'_> {
    /// Opens both views.
    pub(super) async fn views(&self) -> Result<Views> {
        for _ in 0..ATTEMPTS {
            let deadline = self.options.deadline;
            let (state, holder) = before(deadline, self.situation()).await?;
            let attempt = match (holder, &state.checkpoint) {
                (Some(holder), _) => self.running(&holder).await?,
                (None, Some(checkpoint)) => before(deadline, self.stopped(&state, checkpoint)).await?,
                (None, None) => Attempt::Views(before(deadline, self.unaligned()).await?),
            };
            if let Attempt::Views(mut views) = attempt {
                // Before or after the views were opened: either way the table may have been empty in between.
                let before = state.seed.iter().filter(|table| table.phase == SeedPhase::Aside);
                views.aside.extend(before.map(|table| table.table.clone()));
                if state.checkpoint.is_some() {
                    views.aside.extend(self.target.aside(&self.names.job).await?);
                }
                return Ok(views);
            }
        }
        Err(Error::new(
            Kind::Unverifiable,
            "the stream was not left alone: instances of the job, or other verifies, keep coming and going",
        )
        .object(self.names.job.clone())
        .remedy("leave the job running or stopped while a verify opens its views"))
    }

    /// What is stored of the stream, and who runs it.
    pub(super) async fn situation(&self) -> Result<(StreamState, Option<String>)> {
        let state = self.target.stream_state(&self.names.job).await?;
        let holder = self.target.holder(&self.names.job).await?;
        if state.checkpoint.is_none()
            && let Some(holder) = holder
        {
            return Err(Error::new(Kind::Unverifiable, "the seed has not begun")
                .object(holder)
                .remedy(SEED_REMEDY));
        }
        seed_complete(&state)?;
        Ok((state, holder))
    }

    pub(super) fn waiting(&self, what: &str) {
        (self.progress)(Progress::Waiting { what });
    }

    /// Views around a running instance, which goes on however this ends.
    async fn running(&self, holder: &str) -> Result<Attempt> {
        before(self.options.deadline, self.turn()).await?;
        let request = Request::new(self.target, self.names);
        let aligned = before(self.options.deadline, self.held(holder)).await;
        match (aligned, request.withdraw().await) {
            (Ok(attempt), Ok(())) => Ok(attempt),
            (Err(error), _) => Err(error),
            (Ok(_), Err(error)) => Err(error.context(
                "the running instance could not be told to go on; it goes on when this process ends",
            )),
        }
    }

    /// Waits until no other verify holds the stream: there is one request at a time.
    pub(super) async fn turn(&self) -> Result<()> {
        while self.target.barrier(&self.names.job).await?.is_some() {
            self.waiting("another verify of this job to open its views");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn held(&self, holder: &str) -> Result<Attempt> {
        let views = self.while_held(holder, async |source: Box<dyn CompareView>| {
            let target = self.target.compare_view(Side::Target, self.names).await?;
            Ok(Views {
                alignment: Alignment::Running,
                source,
                target,
                pending: BTreeMap::new(),
                aside: BTreeSet::new(),
                notes: Vec::new(),
            })
        });
        Ok(views.await?.map_or(Attempt::Again, Attempt::Views))
    }

    /// Has the instance stand still at a view of the source, and does with that view what has to be done meanwhile;
    /// `None` when it did not stand still all the time.
    pub(super) async fn while_held<T>(
        &self,
        holder: &str,
        work: impl AsyncFnOnce(Box<dyn CompareView>) -> Result<T>,
    ) -> Result<Option<T>> {
        self.waiting("the running instance to stand still");
        if self.reached(&Barrier::Hold).await?.is_none() {
            return Ok(None);
        }
        let standstill = tokio::time::timeout(self.options.max_standstill, async {
            self.waiting("a snapshot of the source");
            let source = self.source.compare_view(Side::Source, self.names).await?;
            let position = position_of(source.as_ref())?;
            self.waiting("the running instance to reach the snapshot");
            let barrier = Barrier::HoldAt(position);
            if self.reached(&barrier).await?.is_none() {
                return Ok(None);
            }
            let done = work(source).await?;
            // Another verify may have replaced the request, or our session may have been lost with it: then the
            // instance could have gone on before the work was done.
            let stood = self.target.barrier(&self.names.job).await?.as_ref() == Some(&barrier);
            Ok(stood.then_some(done))
        });
        standstill.await.unwrap_or_else(|_| {
            let limit = self.options.max_standstill.as_secs_f32();
            Err(Error::new(
                Kind::Unverifiable,
                format!("the two views could not be opened while the stream stood still for {limit} s"),
            )
            .object(holder.to_owned())
            .remedy(
                "a long write transaction on the source holds its snapshot back: `check` names it; end it, or verify \
                 when it has ended",
            ))
        })
    }

    /// Waits until the instance stands still for `barrier`; `None` when the instance is gone, or the request has
    /// been replaced.
    async fn reached(&self, barrier: &Barrier) -> Result<Option<Position>> {
        self.target
            .request_barrier(&self.names.job, Some(barrier))
            .await?;
        let mut look = Instant::now() + HOLDER_POLL;
        loop {
            if let Some(position) = self.target.barrier_state(&self.names.job, barrier).await? {
                return Ok(Some(position));
            }
            if Instant::now() >= look {
                let alone = self.target.barrier(&self.names.job).await?.as_ref() == Some(barrier);
                if !alone || self.target.holder(&self.names.job).await?.is_none() {
                    return Ok(None);
                }
                look = Instant::now() + HOLDER_POLL;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Views without an instance: the target stands at its checkpoint, if that is the same before and after
    /// the target view is opened.
    async fn stopped(&self, before: &StreamState, checkpoint: &Checkpoint) -> Result<Attempt> {
        self.waiting("snapshots of both sides");
        let target = self.target.compare_view(Side::Target, self.names).await?;
        let after = self.target.stream_state(&self.names.job).await?;
        let stands = after.checkpoint.as_ref() == Some(checkpoint) && after.seed == before.seed;
        if !stands {
            return Ok(Attempt::Again);
        }
        let Some((source, pending)) = self.source_and_gap(before, checkpoint).await? else {
            return Ok(Attempt::Again);
        };
        let mut notes = Vec::new();
        if !pending.is_empty() {
            let (_, bytes) = self.source.log_end(Some(&checkpoint.position)).await?;
            notes.push(format!(
                "no instance runs and the target is {bytes} bytes of log behind: {} tables have changes that are not \
                 applied yet; {REMEDY}",
                pending.len()
            ));
        }
        Ok(Attempt::Views(Views {
            alignment: Alignment::Stopped,
            source,
            target,
            pending,
            aside: BTreeSet::new(),
            notes,
        }))
    }

    /// A view of the source, and the changes in it that come after the checkpoint; `None` when an instance has started.
    pub(super) async fn source_and_gap(
        &self,
        state: &StreamState,
        checkpoint: &Checkpoint,
    ) -> Result<Option<(Box<dyn CompareView>, BTreeMap<TableName, u64>)>> {
        let source = self.source.compare_view(Side::Source, self.names).await?;
        let position = position_of(source.as_ref())?;
        self.waiting("the log after the checkpoint");
        let seeded_to: HashMap<_, _> = state
            .seed
            .iter()
            .map(|table| (table.table.clone(), table.position.clone()))
            .collect();
        let gap = Gap {
            names: self.names,
            selection: self.selection,
            checkpoint,
            seeded_to,
        };
        match gap::pending_changes(self.source, gap, &position).await {
            Ok(pending) => Ok(Some((source, pending))),
            // An instance that has started in between reads the log now.
            Err(_) if self.target.holder(&self.names.job).await?.is_some() => Ok(None),
            Err(error) => Err(self.gap_unknown(error).await),
        }
    }

    /// The error when the log between checkpoint and snapshot cannot be read.
    async fn gap_unknown(&self, error: Error) -> Error {
        let retention = self.source.retention(self.names).await.ok().flatten();
        let state = retention.map_or_else(
            || format!("slot {} is not there", self.names.slot),
            |slot| {
                format!(
                    "slot {} is {}, holding {} bytes",
                    self.names.slot, slot.status, slot.retained_bytes
                )
            },
        );
        Error::new(
            Kind::Unverifiable,
            format!(
                "no instance runs, and whether changes wait to be applied cannot be read from the log ({state}): {}",
                error.message()
            ),
        )
        .object(self.names.job.clone())
        .remedy(REMEDY)
        .caused_by(error)
    }

    /// Views of two databases that no stream ties together.
    async fn unaligned(&self) -> Result<Views> {
        self.waiting("snapshots of both sides");
        // A view in the role of a target is a plain snapshot: it needs no right to read the log.
        let source = self.source.compare_view(Side::Target, self.names).await?;
        let target = self.target.compare_view(Side::Target, self.names).await?;
        Ok(Views {
            alignment: Alignment::None,
            source,
            target,
            pending: BTreeMap::new(),
            aside: BTreeSet::new(),
            notes: vec![format!(
                "the target stores no stream {}: the databases were compared as they were, and writes between the two \
                 snapshots show as differences",
                self.names.job
            )],
        })
    }
}

/// What to do when the target is behind and nothing runs.
pub(crate) const REMEDY: &str = "start `run`, or `run --until-caught-up`, then verify";

/// What to do about a table that is set aside.
pub(super) const ASIDE_REMEDY: &str = "`run` gives it back to the stream when it is complete; verify then";

const SEED_REMEDY: &str = "let `run` finish the seed (`status` shows how far it is), then verify";

fn position_of(view: &dyn CompareView) -> Result<Position> {
    view.position()
        .cloned()
        .ok_or_else(|| Error::bug("a source's view without a position"))
}

/// A table that is still being copied has no position to compare at.
fn seed_complete(state: &StreamState) -> Result<()> {
    let waiting: Vec<String> = state
        .seed
        .iter()
        .filter(|table| !matches!(table.phase, SeedPhase::Live | SeedPhase::Aside))
        .map(|table| table.table.to_string())
        .collect();
    let what = match waiting.split_first() {
        Some((first, _)) => {
            format!(
                "{} of {} tables are not copied yet",
                waiting.len(),
                state.seed.len()
            ) + " ("
                + first
                + ", …)"
        }
        None if state.schema_pending => "indexes and constraints of the target are not built yet".to_owned(),
        None => return Ok(()),
    };
    Err(
        Error::new(Kind::Unverifiable, format!("the seed is not complete: {what}"))
            .remedy("let `run` finish the seed (`status` shows how far it is), then verify"),
    )
}
