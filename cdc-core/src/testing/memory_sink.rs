//! A target in memory: executes plans, keeps checkpoints and the fence, and fails where it is told to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::execute::execute;
use super::model::{AuditEntry, Contents, ModelDatabase};
use super::rng::Rng;
use super::schema::TableSpec;
use crate::BoxFuture;
use crate::error::{Action, Error, Kind, Result};
use crate::model::TableName;
use crate::plan::{ApplyPlan, TargetCatalog, TargetTable};
use crate::sink::{Applied, Checkpoint, CommitOutcome, Sink};

/// Something that goes wrong once. `nth` counts calls from the injection on, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An `apply` fails before it did anything.
    Apply {
        /// which
        nth: u64,
        /// kind of the error
        kind: Kind,
        /// action of the error; any but Conflict and Stop ends the transaction
        action: Action,
    },
    /// A `commit` whose answer is lost.
    CommitUnknown {
        /// which
        nth: u64,
        /// whether it took place
        committed: bool,
    },
    /// A `commit` that fails for certain.
    Commit {
        /// which
        nth: u64,
    },
    /// A `begin` whose connection is lost.
    Begin {
        /// which
        nth: u64,
    },
}

/// A target: cheap to clone, all clones are the same one.
#[derive(Debug, Clone)]
pub struct MemoryTarget(Arc<Mutex<Server>>);

#[derive(Debug)]
struct Server {
    db: ModelDatabase,
    catalog: Arc<TargetCatalog>,
    epochs: HashMap<String, i64>,
    checkpoints: HashMap<String, Checkpoint>,
    /// the connection whose transaction is open; there is one at a time
    open: Option<u64>,
    waiting: Vec<Waker>,
    connections: u64,
    commits: u64,
    faults: Vec<Fault>,
    rng: Rng,
}

impl MemoryTarget {
    /// A target that holds what `db` holds. Its facts follow from the tables.
    pub fn new(db: ModelDatabase, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Server {
            catalog: Arc::new(TargetCatalog::new(facts_of(&db))),
            db,
            epochs: HashMap::new(),
            checkpoints: HashMap::new(),
            open: None,
            waiting: Vec::new(),
            connections: 0,
            commits: 0,
            faults: Vec::new(),
            rng: Rng::new(seed),
        })))
    }

    /// An empty target without checked foreign keys.
    pub fn empty(tables: impl IntoIterator<Item = TableSpec>) -> Self {
        Self::new(ModelDatabase::new(tables, false), 0)
    }

    /// The facts about its tables.
    pub fn catalog(&self) -> Arc<TargetCatalog> {
        Arc::clone(&self.server().catalog)
    }

    /// Its committed and, while a transaction is open, uncommitted rows, sorted.
    pub fn contents(&self) -> Contents {
        self.server().db.contents()
    }

    /// What its triggers saw.
    pub fn audit(&self) -> Vec<AuditEntry> {
        self.server().db.audit().to_vec()
    }

    /// Looks at or changes the database behind the sinks' backs; what is changed is committed. Not while a
    /// sink's transaction is open.
    pub fn database<T>(&self, visit: impl FnOnce(&mut ModelDatabase) -> T) -> T {
        let mut server = self.server();
        let result = visit(&mut server.db);
        server.db.commit();
        result
    }

    /// Stores a stream's first checkpoint.
    pub fn start_stream(&self, checkpoint: Checkpoint) {
        let stream = checkpoint.stream.clone();
        self.server().checkpoints.insert(stream, checkpoint);
    }

    /// A stream's checkpoint.
    pub fn checkpoint(&self, stream: &str) -> Option<Checkpoint> {
        self.server().checkpoints.get(stream).cloned()
    }

    /// How often a sink's transaction was committed.
    pub fn commits(&self) -> u64 {
        self.server().commits
    }

    /// Makes something go wrong.
    pub fn inject(&self, fault: Fault) {
        self.server().faults.push(fault);
    }

    /// Takes the stream over: waits for the open transaction to end, then returns the new epoch.
    pub fn raise_epoch(&self, stream: &str) -> BoxFuture<'static, i64> {
        let target = self.clone();
        let stream = stream.to_owned();
        Box::pin(async move {
            target.idle().await;
            let mut server = target.server();
            let epoch = server.epochs.entry(stream).or_insert(0);
            *epoch += 1;
            Ok(*epoch)
        })
    }

    /// A connection that applies `stream` under `epoch`.
    pub fn sink(&self, stream: &str, epoch: i64) -> MemorySink {
        let mut server = self.server();
        server.connections += 1;
        MemorySink {
            target: self.clone(),
            connection: server.connections,
            stream: stream.to_owned(),
            epoch,
            lost: false,
        }
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no transaction is open.
    async fn idle(&self) {
        std::future::poll_fn(|context| {
            let mut server = self.server();
            if server.open.is_none() {
                return Poll::Ready(());
            }
            server.waiting.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

fn facts_of(db: &ModelDatabase) -> Vec<TargetTable> {
    let checked = db.foreign_keys_checked();
    let specs: Vec<&TableSpec> = db.specs().collect();
    let is_parent = |name: &TableName| {
        let mut keys = specs.iter().flat_map(|spec| &spec.foreign_keys);
        keys.any(|key| key.parent == *name)
    };
    let facts = specs.iter().map(|spec| {
        let mut facts = spec.facts(checked);
        facts.order_visible |= checked && is_parent(&spec.name);
        facts
    });
    facts.collect()
}

impl Server {
    /// The fault that is due among those that `matches` gives a count for; counts the others down.
    fn due(&mut self, matches: impl Fn(&mut Fault) -> Option<&mut u64>) -> Option<Fault> {
        let mut due = None;
        self.faults.retain_mut(|fault| {
            let Some(nth) = matches(fault) else {
                return true;
            };
            if *nth == 0 && due.is_none() {
                due = Some(*fault);
                return false;
            }
            *nth = nth.saturating_sub(1);
            true
        });
        due
    }

    fn end(&mut self) {
        self.open = None;
        self.waiting.drain(..).for_each(Waker::wake);
    }

    fn roll_back(&mut self) {
        self.db.roll_back_to(0);
        self.end();
    }
}

/// One connection to a [`MemoryTarget`]. Dropping it rolls its transaction back.
#[derive(Debug)]
pub struct MemorySink {
    target: MemoryTarget,
    connection: u64,
    stream: String,
    epoch: i64,
    lost: bool,
}

impl MemorySink {
    fn alive(&self) -> Result<()> {
        if self.lost {
            return Err(lost());
        }
        Ok(())
    }

    /// The server, if this connection's transaction is open on it.
    fn in_transaction(&self) -> Result<MutexGuard<'_, Server>> {
        self.alive()?;
        let server = self.target.server();
        if server.open != Some(self.connection) {
            return Err(Error::bug("no transaction is open"));
        }
        Ok(server)
    }

    async fn begin_now(&mut self) -> Result<()> {
        self.alive()?;
        if self.target.server().open == Some(self.connection) {
            return Err(Error::bug("a transaction is open already"));
        }
        self.target.idle().await;
        let mut server = self.target.server();
        let due = server.due(|fault| match fault {
            Fault::Begin { nth } => Some(nth),
            _ => None,
        });
        if due.is_some() {
            drop(server);
            self.lost = true;
            return Err(lost());
        }
        if server.epochs.get(&self.stream).copied().unwrap_or(0) != self.epoch {
            return Err(Error::new(Kind::Fenced, "another instance applies the stream")
                .object(format!("stream {}", self.stream))
                .remedy("stop one of the two instances"));
        }
        server.open = Some(self.connection);
        Ok(())
    }

    fn apply_now(&mut self, plan: &ApplyPlan) -> Result<Applied> {
        let mut guard = self.in_transaction()?;
        let server = &mut *guard;
        let due = server.due(|fault| match fault {
            Fault::Apply { nth, .. } => Some(nth),
            _ => None,
        });
        let savepoint = server.db.savepoint();
        let done = match due {
            Some(Fault::Apply { kind, action, .. }) => {
                Err(Error::new(kind, "an injected fault").action(action))
            }
            _ => execute(&mut server.db, plan, &mut server.rng),
        };
        match done {
            Ok(rows) => Ok(Applied {
                rows,
                ..Applied::default()
            }),
            Err(error) => {
                if matches!(error.what_to_do(), Action::Conflict | Action::Stop) {
                    server.db.roll_back_to(savepoint);
                } else {
                    server.roll_back();
                    let reconnect = error.what_to_do() == Action::Reconnect;
                    drop(guard);
                    self.lost = reconnect;
                }
                Err(error)
            }
        }
    }

    fn commit_now(&mut self, checkpoint: &Checkpoint) -> Result<CommitOutcome> {
        let mut guard = self.in_transaction()?;
        let server = &mut *guard;
        let due = server.due(|fault| match fault {
            Fault::CommitUnknown { nth, .. } | Fault::Commit { nth } => Some(nth),
            _ => None,
        });
        let goes_through = !matches!(
            due,
            Some(Fault::Commit { .. } | Fault::CommitUnknown { committed: false, .. })
        );
        if goes_through {
            let stored = server.checkpoints.get_mut(&checkpoint.stream);
            let Some(stored) = stored.filter(|stored| stored.groups + 1 == checkpoint.groups) else {
                server.roll_back();
                return Err(
                    Error::new(Kind::Fenced, "the checkpoint to be followed is not there")
                        .object(format!("stream {}", checkpoint.stream)),
                );
            };
            stored.clone_from(checkpoint);
            server.db.commit();
            server.commits += 1;
            server.end();
        } else {
            server.roll_back();
        }
        drop(guard);
        match due {
            None => Ok(CommitOutcome::Done),
            Some(Fault::CommitUnknown { .. }) => {
                self.lost = true;
                Ok(CommitOutcome::Unknown)
            }
            Some(_) => Err(Error::new(Kind::Resource, "an injected fault").action(Action::Retry)),
        }
    }

    async fn apply_at_once_now(
        &mut self,
        plan: &ApplyPlan,
        checkpoint: &Checkpoint,
    ) -> Result<Option<CommitOutcome>> {
        // What is to go wrong now is for the operations that tell what went wrong.
        let apply_fails = |fault: &Fault| matches!(fault, Fault::Apply { nth: 0, .. });
        if self.target.server().faults.iter().any(apply_fails) {
            return Ok(None);
        }
        self.begin_now().await?;
        if self.apply_now(plan).is_err() {
            self.rollback_now();
            return Ok(None);
        }
        self.commit_now(checkpoint).map(Some)
    }

    fn rollback_now(&mut self) {
        let mut server = self.target.server();
        if server.open == Some(self.connection) {
            server.roll_back();
        }
    }
}

impl Sink for MemorySink {
    fn begin(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(self.begin_now())
    }

    fn apply<'a>(&'a mut self, plan: &'a ApplyPlan) -> BoxFuture<'a, Applied> {
        Box::pin(async { self.apply_now(plan) })
    }

    fn commit<'a>(&'a mut self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, CommitOutcome> {
        Box::pin(async { self.commit_now(checkpoint) })
    }

    fn apply_at_once<'a>(
        &'a mut self,
        plan: &'a ApplyPlan,
        checkpoint: &'a Checkpoint,
        _soon: bool,
    ) -> BoxFuture<'a, Option<CommitOutcome>> {
        Box::pin(self.apply_at_once_now(plan, checkpoint))
    }

    fn rollback(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.rollback_now();
            self.alive()
        })
    }
}

impl Drop for MemorySink {
    fn drop(&mut self) {
        self.rollback_now();
    }
}

fn lost() -> Error {
    Error::new(Kind::Unreachable, "the connection is lost").action(Action::Reconnect)
}
