//! What is committed and not durable yet is not confirmed to the source, so it may be lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use cdc_core::BoxFuture;
use cdc_core::error::{Action, Error, Kind};
use cdc_core::model::TxnKind;
use cdc_core::plan::ApplyPlan;
use cdc_core::sink::Applied;
use cdc_core::testing::{History, HistoryOptions, MemorySink, MemoryTarget, ModelDatabase};
use cdc_core::{Checkpoint, CommitOutcome, Sink};

use super::{DEADLINE, Stream, first_checkpoint, history};

/// How long the target takes for a commit, so that a history lasts for several waits until all is durable.
const PACE: Duration = Duration::from_millis(15);

/// What becomes of the durable commit that the target does not get done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// it has no end for now
    Waits,
    /// it fails for certain
    Fails,
    /// its answer is lost, and it with it
    Unknown,
}

/// What a target has on its disk.
struct Disk {
    rows: ModelDatabase,
    checkpoint: Checkpoint,
    /// groups that are committed, and not here
    soon: u64,
    /// durable commits with groups committed soon before them that still go through
    passes: u32,
    refusal: Option<Refusal>,
    refused: bool,
    waiting: Option<Waker>,
}

type SharedDisk = Arc<Mutex<Disk>>;

fn look(disk: &SharedDisk) -> MutexGuard<'_, Disk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A sink whose target shows what is committed soon, and writes it to its disk with the next durable commit.
struct DiskSink {
    sink: MemorySink,
    target: MemoryTarget,
    disk: SharedDisk,
}

impl DiskSink {
    /// How a durable commit is to be refused, if it is.
    fn refusal(&self) -> Option<Refusal> {
        let mut disk = look(&self.disk);
        if disk.soon == 0 {
            return None;
        }
        if let Some(left) = disk.passes.checked_sub(1) {
            disk.passes = left;
            return None;
        }
        disk.refused |= disk.refusal.is_some();
        disk.refusal
    }

    async fn commit_durably(&mut self, checkpoint: &Checkpoint) -> cdc_core::Result<CommitOutcome> {
        match self.refusal() {
            None => {}
            Some(Refusal::Waits) => {
                std::future::poll_fn(|context| {
                    let mut disk = look(&self.disk);
                    if disk.refusal.is_none() {
                        return Poll::Ready(());
                    }
                    disk.waiting = Some(context.waker().clone());
                    Poll::Pending
                })
                .await;
            }
            Some(Refusal::Fails) => {
                self.sink.rollback().await?;
                return Err(Error::new(Kind::Resource, "the disk is full").action(Action::Retry));
            }
            Some(Refusal::Unknown) => {
                self.sink.rollback().await?;
                return Ok(CommitOutcome::Unknown);
            }
        }
        let outcome = self.sink.commit(checkpoint).await?;
        let rows = self.target.database(|rows| rows.clone());
        let mut disk = look(&self.disk);
        (disk.rows, disk.checkpoint, disk.soon) = (rows, checkpoint.clone(), 0);
        Ok(outcome)
    }
}

impl Sink for DiskSink {
    fn begin(&mut self) -> BoxFuture<'_, ()> {
        self.sink.begin()
    }

    fn apply<'a>(&'a mut self, plan: &'a ApplyPlan) -> BoxFuture<'a, Applied> {
        self.sink.apply(plan)
    }

    fn commit<'a>(&'a mut self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, CommitOutcome> {
        Box::pin(self.commit_durably(checkpoint))
    }

    fn commit_soon<'a>(&'a mut self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, CommitOutcome> {
        Box::pin(async {
            tokio::time::sleep(PACE).await;
            let outcome = self.sink.commit(checkpoint).await?;
            look(&self.disk).soon += 1;
            Ok(outcome)
        })
    }

    fn apply_at_once<'a>(
        &'a mut self,
        plan: &'a ApplyPlan,
        checkpoint: &'a Checkpoint,
        soon: bool,
    ) -> BoxFuture<'a, Option<CommitOutcome>> {
        Box::pin(async move {
            self.sink.begin().await?;
            if self.sink.apply(plan).await.is_err() {
                self.sink.rollback().await?;
                return Ok(None);
            }
            let outcome = match soon {
                true => self.commit_soon(checkpoint).await,
                false => self.commit_durably(checkpoint).await,
            };
            outcome.map(Some)
        })
    }

    fn rollback(&mut self) -> BoxFuture<'_, ()> {
        self.sink.rollback()
    }
}

/// A stream in small groups, and its target's disk, which refuses a durable commit when it has done a few.
fn stage(refusal: Refusal, seed: u64) -> (History, Stream, SharedDisk) {
    let history = history(seed, HistoryOptions::ALL);
    let mut stream = Stream::new(&history, TxnKind::Log, seed);
    stream.group_rows = 1;
    let disk = Disk {
        rows: history.target.clone(),
        checkpoint: first_checkpoint(),
        soon: 0,
        passes: 2,
        refusal: Some(refusal),
        refused: false,
        waiting: None,
    };
    (history, stream, Arc::new(Mutex::new(disk)))
}

fn session(stream: &Stream, disk: &SharedDisk) -> cdc_core::Result<()> {
    let (target, disk) = (stream.target.clone(), Arc::clone(disk));
    stream.session_with(move |sink| Box::new(DiskSink { sink, target, disk }))
}

/// Ends the stream's session when a check outside it fails.
struct Ends<'s>(&'s Stream);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.control.stop(Duration::ZERO);
        }
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < DEADLINE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn offset(checkpoint: &Checkpoint) -> u64 {
    checkpoint.position.as_str().parse().expect("an offset")
}

/// Asserts that not more was confirmed than is on the disk; tells how far that is.
fn expect_unconfirmed(stream: &Stream, disk: &SharedDisk) -> u64 {
    let durable = offset(&look(disk).checkpoint);
    let confirmed = stream.log.confirms().into_iter().max();
    assert!(
        confirmed <= Some(durable),
        "{confirmed:?} is confirmed, {durable} is on the disk"
    );
    assert!(durable > 0 && durable < offset(&stream.checkpoint()));
    durable
}

#[test]
fn nothing_is_confirmed_while_it_waits_to_be_durable() {
    let (history, stream, disk) = stage(Refusal::Waits, 3);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| session(&stream, &disk));
        let _ends = Ends(&stream);
        until("no durable commit waits", || look(&disk).refused);
        // All that was to be confirmed before has been when two more confirmations have come.
        let so_far = stream.log.confirms().len();
        until("the source hears nothing", || {
            stream.log.confirms().len() >= so_far + 2
        });
        expect_unconfirmed(&stream, &disk);
        let waiting = {
            let mut disk = look(&disk);
            disk.refusal = None;
            disk.waiting.take()
        };
        waiting.expect("the commit waits").wake();
        let end = stream.log.database(|source| source.log_end());
        until("not all is confirmed once it is durable", || {
            stream.log.confirmed().as_str() == end.to_string()
        });
        stream.control.stop(DEADLINE);
        running.join().expect("no panic").expect("the session ends well");
    });
    let last = history.source.txns().len();
    history
        .compare(&stream.target.contents(), last)
        .expect("as the source");
}

#[test]
fn what_a_target_loses_is_read_again() {
    for (refusal, kind) in [
        (Refusal::Fails, Kind::Resource),
        (Refusal::Unknown, Kind::Unreachable),
    ] {
        let (history, mut stream, disk) = stage(refusal, 11);
        let error = session(&stream, &disk).expect_err("a durable commit fails");
        assert_eq!(error.kind(), kind, "{error:?}");
        let durable = expect_unconfirmed(&stream, &disk);
        assert_eq!(
            stream.log.confirmed().as_str(),
            durable.to_string(),
            "what is on the disk may be forgotten"
        );
        // The power goes: what is left of the target is its disk.
        let left = look(&disk);
        stream.target = MemoryTarget::new(left.rows.clone(), 0);
        stream.target.start_stream(left.checkpoint.clone());
        drop(left);
        stream.run();
        let last = history.source.txns().len();
        history
            .compare(&stream.target.contents(), last)
            .expect("as the source");
        let stored = stream.checkpoint();
        assert_eq!(stored.transactions, last as u64);
        assert!(stored.changes.balanced());
        assert_eq!(stream.log.confirmed(), stored.position);
    }
}
