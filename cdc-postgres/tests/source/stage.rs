//! A server with a slot, a source that reads it, and what it decodes as text.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cdc_core::batch::Datum;
use cdc_core::engine::JobNames;
use cdc_core::model::{ChangeCounts, Identity, TableRole};
use cdc_core::source::{Decoder, PositionTracker, Source, StreamStart};
use cdc_core::{Batch, ChangeEvent, Error, Op, Position, RawChunk, SourceIdentity, TableSelection};
use cdc_postgres::config::Config;
use cdc_postgres::source::PgSource;
use cdc_postgres::walsender::{CreateSlot, SlotSnapshot, WalSender, WalSenderOptions};
use testbed::PgCluster;
use tokio::runtime::{Builder, Runtime};

/// Ten times what the slowest step needs.
const DEADLINE: Duration = Duration::from_secs(60);
const DATABASE: &str = "app";

pub(crate) struct Stage {
    pub(crate) cluster: PgCluster,
    pub(crate) runtime: Runtime,
    pub(crate) names: JobNames,
    pub(crate) identity: SourceIdentity,
    /// the slot's consistent point
    pub(crate) from: Position,
}

impl Stage {
    /// Starts a server, runs `schema`, publishes all tables and creates the slot.
    pub(crate) fn set(major: u16, settings: &[(&str, &str)], schema: &str) -> Stage {
        let builder = PgCluster::builder(major);
        let builder = settings
            .iter()
            .fold(builder, |builder, (name, value)| builder.setting(name, value));
        let cluster = builder.start().unwrap();
        cluster.create_database(DATABASE).unwrap();
        cluster
            .sql(
                DATABASE,
                &format!(
                    "CREATE SCHEMA cdc_sync;
                     CREATE TABLE cdc_sync.marker (stream text, id text, PRIMARY KEY (stream));
                     {schema}
                     CREATE PUBLICATION cdc_sync_job FOR ALL TABLES;"
                ),
            )
            .unwrap();
        let names = JobNames {
            job: "job".into(),
            slot: "cdc_sync_job".into(),
        };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let config = Config::parse(&cluster.url(DATABASE)).unwrap();
        let (system, from) = runtime.block_on(async {
            let mut sender = WalSender::connect(&config, &WalSenderOptions::default())
                .await
                .unwrap();
            let system = sender.identify_system().await.unwrap();
            let slot = CreateSlot {
                name: &names.slot,
                temporary: false,
                snapshot: SlotSnapshot::None,
                failover: false,
            };
            let created = sender.create_logical_slot(&slot).await.unwrap();
            sender.close().await;
            (system, created.consistent_point)
        });
        let identity = SourceIdentity {
            system: system.system_id.to_string(),
            database: DATABASE.into(),
            timeline: system.timeline.to_string(),
            slot: names.slot.clone(),
        };
        Stage {
            cluster,
            runtime,
            names,
            identity,
            from: Position::new(from.to_string()),
        }
    }

    pub(crate) fn sql(&self, script: &str) -> String {
        self.cluster.sql(DATABASE, script).unwrap()
    }

    /// Writes a marker, which ends what a test reads.
    pub(crate) fn mark(&self) {
        self.sql(
            "INSERT INTO cdc_sync.marker VALUES ('job', 'end')
             ON CONFLICT (stream) DO UPDATE SET id = excluded.id",
        );
    }

    pub(crate) fn source(&self) -> PgSource {
        let config = Config::parse(&self.cluster.url(DATABASE)).unwrap();
        PgSource::new(config, &self.names, self.identity.clone()).unwrap()
    }

    pub(crate) fn start(&self, from: &Position) -> StreamStart {
        StreamStart {
            from: from.clone(),
            stream: "job".into(),
            selection: TableSelection {
                exclude: vec!["public.excluded".into()],
                ..TableSelection::default()
            },
            seeded_to: HashMap::new(),
            aside: Default::default(),
            peer: None,
        }
    }

    pub(crate) fn open(&self, from: &Position) -> Result<Reader<'_>, Error> {
        let mut source = self.source();
        let decoder = self.runtime.block_on(source.open(&self.start(from)))?;
        let tracker = decoder.tracker();
        Ok(Reader {
            stage: self,
            source,
            decoder,
            tracker,
            lines: Vec::new(),
            counts: ChangeCounts::default(),
        })
    }

    pub(crate) fn confirmed(&self) -> String {
        self.sql("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'cdc_sync_job'")
    }
}

/// An open stream and what it has brought.
pub(crate) struct Reader<'a> {
    stage: &'a Stage,
    pub(crate) source: PgSource,
    decoder: Box<dyn Decoder>,
    pub(crate) tracker: Box<dyn PositionTracker>,
    /// a line for each begin, row and end of a transaction, and each idle position
    pub(crate) lines: Vec<String>,
    /// of the parts of the transaction that is being read
    counts: ChangeCounts,
}

impl Reader<'_> {
    /// Reads one chunk.
    pub(crate) fn read(&mut self) -> Result<Batch, Error> {
        let mut chunk = RawChunk::default();
        self.stage.runtime.block_on(async {
            tokio::time::timeout(DEADLINE, self.source.read(&mut chunk))
                .await
                .expect("the server sends nothing")
        })?;
        let mut batch = Batch::new();
        self.decoder.decode(&mut chunk, &mut batch)?;
        batch.verify()?;
        for txn in batch.txns() {
            if txn.first {
                let origin = txn.origin.as_deref().map(|origin| format!(" from {origin}"));
                self.lines.push(format!("begin{}", origin.unwrap_or_default()));
            }
            for row in txn.rows.clone() {
                self.lines.push(line(&batch.event(row as usize).unwrap()));
            }
            self.counts += txn.counts;
            if txn.last {
                self.tracker.fold(txn)?;
                let counts = std::mem::take(&mut self.counts);
                self.lines.push(format!(
                    "end read={} filtered={} internal={}",
                    counts.read, counts.filtered, counts.internal
                ));
            }
        }
        if let Some(idle) = batch.idle() {
            self.tracker.advance(idle)?;
        }
        Ok(batch)
    }

    /// Reads up to the marker; the lines before its transaction.
    pub(crate) fn read_to_marker(&mut self) -> Vec<String> {
        let marker = |lines: &[String]| lines.iter().position(|line| line.contains("cdc_sync.marker"));
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(at) = marker(&self.lines)
                && self.lines.len() > at + 1
            {
                let mut lines: Vec<String> = self.lines.drain(..at + 2).collect();
                lines.truncate(at - 1);
                return lines;
            }
            assert!(Instant::now() < deadline, "no marker in {:#?}", self.lines);
            self.read().unwrap();
        }
    }

    /// Reads until `done` says so.
    pub(crate) fn read_until(&mut self, mut done: impl FnMut(&Batch, &dyn PositionTracker) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let batch = self.read().unwrap();
            if done(&batch, &*self.tracker) {
                return;
            }
            assert!(Instant::now() < deadline, "it does not come");
        }
    }

    pub(crate) fn confirm(&mut self, position: Option<&Position>) {
        self.stage
            .runtime
            .block_on(self.source.confirm(position))
            .unwrap();
    }

    pub(crate) fn close(mut self) {
        self.stage.runtime.block_on(self.source.close()).unwrap();
    }
}

fn line(event: &ChangeEvent<'_>) -> String {
    if let Some(truncation) = event.truncation() {
        let mut names: Vec<String> = truncation
            .tables
            .iter()
            .map(|table| table.name.to_string())
            .collect();
        names.sort();
        return format!(
            "truncate {}{}{}",
            names.join(" "),
            if truncation.cascade { " cascade" } else { "" },
            if truncation.restart_identity {
                " restart"
            } else {
                ""
            }
        );
    }
    let table = event.table().unwrap();
    let op = match event.op() {
        Op::Insert => "insert",
        Op::Update => "update",
        Op::Delete => "delete",
        other => panic!("{other:?}"),
    };
    let image = |cell: &dyn Fn(usize) -> String| -> String {
        let cells: Vec<String> = (0..table.columns.len()).map(cell).collect();
        format!("({})", cells.join(", "))
    };
    let mut line = format!("{op} {}", table.name);
    if table.role == TableRole::User && table.identity == Identity::Full {
        line.push_str(" [full]");
    }
    if event.has_before() {
        line.push_str(&format!(" {}", image(&|column| cell(event.before(column)))));
    }
    if event.has_after() {
        line.push_str(&format!(" -> {}", image(&|column| cell(event.after(column)))));
    }
    line
}

/// A value, long ones by their length.
fn cell(datum: Datum<'_>) -> String {
    match datum {
        Datum::Null => "NULL".into(),
        Datum::Unchanged => "unchanged".into(),
        Datum::Absent => "absent".into(),
        Datum::Bytes(bytes) if bytes.len() > 100 => format!("{} bytes", bytes.len()),
        Datum::Bytes(bytes) => format!("'{}'", bytes.escape_ascii()),
        Datum::Patch(_) => panic!("a patch"),
    }
}
