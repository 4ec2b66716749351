//! The databases in memory as harnesses, so that the suites are tested by the models and the models by them.

use std::sync::Arc;

use super::{STREAM, SinkHarness, SourceHarness};
use crate::BoxFuture;
use crate::error::Error;
use crate::model::Position;
use crate::plan::TargetCatalog;
use crate::sink::{Checkpoint, Sink};
use crate::source::{Source, StreamStart};
use crate::testing::{
    AuditEntry, CellFormat, Contents, MemoryLog, MemoryTarget, ModelDatabase, SourceDatabase, SourceTable,
    Statement,
};

/// The target in memory as a harness.
#[derive(Debug)]
pub struct MemorySinkHarness {
    /// the target that was prepared last
    pub target: MemoryTarget,
    /// what its triggers saw while it was prepared
    loaded: usize,
    /// seeds what the server chooses by chance
    seed: u64,
    /// the format of the changes it is given
    format: CellFormat,
}

impl MemorySinkHarness {
    /// A harness whose sinks are given cells in `format`.
    pub fn new(format: CellFormat, seed: u64) -> Self {
        Self {
            target: MemoryTarget::empty([]),
            loaded: 0,
            seed,
            format,
        }
    }
}

impl SinkHarness for MemorySinkHarness {
    fn prepare<'a>(
        &'a mut self,
        db: &'a ModelDatabase,
        first: &'a Checkpoint,
    ) -> BoxFuture<'a, Arc<TargetCatalog>> {
        self.target = MemoryTarget::new(db.clone(), self.seed);
        self.loaded = db.audit().len();
        self.target.start_stream(first.clone());
        Box::pin(async { Ok(self.target.catalog()) })
    }

    fn format(&self) -> CellFormat {
        self.format.clone()
    }

    fn raise_epoch<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, i64> {
        self.target.raise_epoch(stream)
    }

    fn sink<'a>(&'a self, stream: &'a str, epoch: i64) -> BoxFuture<'a, Box<dyn Sink>> {
        Box::pin(async move { Ok(Box::new(self.target.sink(stream, epoch)) as Box<dyn Sink>) })
    }

    fn checkpoint<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Option<Checkpoint>> {
        Box::pin(async move { Ok(self.target.checkpoint(stream)) })
    }

    fn contents(&self) -> BoxFuture<'_, Contents> {
        Box::pin(async { Ok(self.target.contents()) })
    }

    fn audit(&self) -> BoxFuture<'_, Option<Vec<AuditEntry>>> {
        Box::pin(async { Ok(self.target.audit().get(self.loaded..).map(<[_]>::to_vec)) })
    }
}

impl SourceHarness for MemoryLog {
    fn prepare<'a>(&'a mut self, tables: &'a [SourceTable]) -> BoxFuture<'a, StreamStart> {
        self.restart(SourceDatabase::new(tables.to_vec()));
        Box::pin(async {
            Ok(StreamStart {
                from: Position::new("0"),
                stream: STREAM.into(),
                selection: Default::default(),
                seeded_to: Default::default(),
                aside: Default::default(),
                peer: None,
            })
        })
    }

    fn commit<'a>(&'a mut self, statements: &'a [Statement]) -> BoxFuture<'a, ()> {
        Box::pin(async {
            self.database(|source| super::source::execute(source, statements))
                .map_err(|violation| Error::bug(violation.to_string()))
        })
    }

    fn idle(&mut self) -> BoxFuture<'_, ()> {
        self.database(SourceDatabase::idle);
        Box::pin(async { Ok(()) })
    }

    fn source(&mut self) -> BoxFuture<'_, Box<dyn Source>> {
        Box::pin(async { Ok(Box::new(MemoryLog::source(self)) as Box<dyn Source>) })
    }

    fn confirmed(&mut self) -> BoxFuture<'_, Position> {
        Box::pin(async { Ok(MemoryLog::confirmed(self)) })
    }
}
