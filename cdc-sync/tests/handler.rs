//! An embedding program decides conflicts by code.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cdc_core::conflict::{Conflict, ConflictHandler, Policy, PolicyRule, PolicyRules};
use cdc_core::engine::{Engine, JobNames};
use cdc_core::pipeline::{Control, PipelineConfig, StatsSnapshot, StreamStats};
use cdc_core::{Datum, Kind, Result, TableSelection};
use cdc_postgres::PgEngine;
use cdc_sync::run::{Reporter, RunContext, RunOutcome, RunSettings, SeedProgress, run};
use testbed::Pair;
use testbed::provision::postgres_tools;

struct Silent;

impl Reporter for Silent {
    fn seed(&self, _: &SeedProgress) {}
    fn stream(&self, _: &StatsSnapshot, _: Option<u64>) {}
    fn note(&self, _: &str) {}
}

/// Decides by the first column of the change, and remembers what it was asked.
#[derive(Default)]
struct ByKey(Mutex<Vec<String>>);

impl ConflictHandler for ByKey {
    fn decide(&self, conflict: &Conflict<'_>) -> Policy {
        let Datum::Bytes(id) = conflict.change.after(0) else {
            return Policy::Stop;
        };
        let id = String::from_utf8_lossy(id).into_owned();
        let kind = conflict.error.message().split(':').next().unwrap_or_default();
        self.0
            .lock()
            .unwrap()
            .push(format!("{} {id} {kind}", conflict.table));
        match id.as_str() {
            "1" => Policy::BlueWins,
            "2" => Policy::GreenWins,
            "3" => Policy::DeadLetter,
            _ => Policy::Stop,
        }
    }
}

async fn drain(pair: &Pair, handler: Option<Arc<ByKey>>) -> Result<RunOutcome> {
    let [source, target] = pair.urls();
    let patience = Duration::from_secs(60);
    let context = RunContext {
        source: Arc::from(PgEngine.connect(&source, patience).await?),
        target: Arc::from(PgEngine.connect(&target, patience).await?),
        names: JobNames {
            job: "asked".into(),
            slot: "cdc_sync_asked".into(),
        },
        selection: TableSelection::default(),
        present: None,
        settings: RunSettings {
            until_caught_up: true,
            truncate_target: false,
            takeover_timeout: patience,
            shutdown_timeout: patience,
            deadline: None,
            seed_connections: 2,
            seed_part_bytes: 64 << 20,
            max_retained_wal: None,
            pipeline: PipelineConfig::default(),
            heartbeat: None,
            sequence_buffer: 0,
            conflicts: PolicyRules(vec![PolicyRule {
                pattern: "public.t".into(),
                policy: Policy::Ask,
            }]),
            tools_dir: Some(postgres_tools().unwrap().bin),
        },
        control: Arc::new(Control::new()),
        conflicts: handler.map(|handler| handler as Arc<dyn ConflictHandler>),
        stats: Arc::new(StreamStats::default()),
        reporter: Arc::new(Silent),
    };
    run(Arc::new(context)).await
}

const ROWS: &str = "SELECT string_agg(t::text, ' ' ORDER BY id) FROM t";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_conflict_is_decided_by_the_handler() {
    let pair = Pair::start(16, 18).unwrap();
    pair.on_blue("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .unwrap();
    drain(&pair, None).await.unwrap();
    pair.on_green("INSERT INTO t VALUES (1, 'green'), (2, 'green'), (3, 'green')")
        .unwrap();
    // A transaction without conflicts before and behind, and rows without conflicts among the others.
    pair.on_blue("INSERT INTO t VALUES (10, 'blue')").unwrap();
    pair.on_blue("INSERT INTO t SELECT n, 'blue' FROM generate_series(1, 5) n")
        .unwrap();
    pair.on_blue("INSERT INTO t VALUES (11, 'blue')").unwrap();
    let handler = Arc::new(ByKey::default());
    let outcome = drain(&pair, Some(Arc::clone(&handler))).await.unwrap();
    assert_eq!(
        *handler.0.lock().unwrap(),
        ["1", "2", "3"].map(|id| format!("public.t {id} insert_exists"))
    );
    assert_eq!(
        pair.on_green(ROWS).unwrap(),
        "(1,blue) (2,green) (3,green) (4,blue) (5,blue) (10,blue) (11,blue)"
    );
    let changes = outcome.stats.changes;
    assert!(changes.balanced(), "{changes:?}");
    assert_eq!(
        (
            changes.read,
            changes.applied,
            changes.superseded,
            changes.dead_lettered
        ),
        (7, 5, 1, 1)
    );

    // Without a handler, or by its word, the stream stops and the transaction is not applied.
    pair.on_green("INSERT INTO t VALUES (20, 'green')").unwrap();
    pair.on_blue("BEGIN; INSERT INTO t VALUES (21, 'blue'); INSERT INTO t VALUES (20, 'blue'); COMMIT")
        .unwrap();
    for handler in [None, Some(handler)] {
        let error = drain(&pair, handler).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert_eq!(error.object_name(), Some("public.t (id=20)"));
    }
    assert_eq!(
        pair.on_green("SELECT count(*) FROM t WHERE id = 21").unwrap(),
        "0"
    );
}
