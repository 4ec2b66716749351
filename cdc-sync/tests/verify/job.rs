//! A job that runs while it is verified, and a writer on its source.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cdc_core::TableSelection;
use cdc_core::conflict::PolicyRules;
use cdc_core::pipeline::{Control, PipelineConfig, StatsSnapshot, StreamStats};
use cdc_sync::run::{Reporter, RunContext, RunOutcome, RunSettings, SeedProgress, run};
use testbed::PgCluster;
use testbed::provision::postgres_tools;

use super::{DATABASE, names, site};

struct Silent;

impl Reporter for Silent {
    fn seed(&self, _progress: &SeedProgress) {}

    fn stream(&self, _stats: &StatsSnapshot, _lag_bytes: Option<u64>) {}

    fn note(&self, _message: &str) {}
}

/// `run` on a thread of its own.
pub(super) struct Job {
    control: Arc<Control>,
    stats: Arc<StreamStats>,
    thread: JoinHandle<RunOutcome>,
}

impl Job {
    pub(super) fn start(source: &PgCluster, target: &PgCluster, until_caught_up: bool) -> Self {
        let (control, stats) = (Arc::new(Control::new()), Arc::new(StreamStats::default()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let sites = runtime.block_on(async { (site(source).await, site(target).await) });
        let context = Arc::new(RunContext {
            source: sites.0,
            target: sites.1,
            names: names(),
            selection: TableSelection::default(),
            present: None,
            settings: RunSettings {
                until_caught_up,
                truncate_target: false,
                takeover_timeout: Duration::from_secs(60),
                shutdown_timeout: Duration::from_secs(60),
                deadline: None,
                seed_connections: 2,
                seed_part_bytes: 64 << 20,
                max_retained_wal: None,
                pipeline: PipelineConfig::default(),
                heartbeat: Some(Duration::from_millis(200)),
                sequence_buffer: 0,
                conflicts: PolicyRules::default(),
                tools_dir: Some(postgres_tools().unwrap().bin),
            },
            control: Arc::clone(&control),
            conflicts: None,
            stats: Arc::clone(&stats),
            reporter: Arc::new(Silent),
        });
        let thread = std::thread::spawn(move || runtime.block_on(run(context)).unwrap());
        Self {
            control,
            stats,
            thread,
        }
    }

    pub(super) fn transactions(&self) -> u64 {
        self.stats.snapshot().transactions
    }

    /// Waits until the target's schema is complete, from when on a verify is possible.
    pub(super) fn wait_until_verifiable(&self, target: &PgCluster) {
        let deadline = Instant::now() + Duration::from_secs(300);
        let pending = "SELECT schema_pending FROM cdc_sync.stream WHERE stream = 'verified'";
        loop {
            assert!(!self.thread.is_finished(), "the job has ended");
            if target.sql(DATABASE, pending).is_ok_and(|pending| pending == "f") {
                return;
            }
            assert!(Instant::now() < deadline, "the seed does not end");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(super) fn stop(self) -> RunOutcome {
        self.control.stop(Duration::from_secs(60));
        self.thread.join().unwrap()
    }

    /// Waits for the end of a job that was started until caught up.
    pub(super) fn join(self) -> RunOutcome {
        self.thread.join().unwrap()
    }
}

/// Writes transactions to the source until dropped.
pub(super) struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Writer {
    /// Small transactions on `account` and `history`.
    pub(super) fn start(url: &str) -> Self {
        Self::with(url, |written| {
            // Both tables change together: a view that splits a transaction shows a difference.
            format!(
                "BEGIN; UPDATE account SET balance = balance + 1 WHERE id = {}; \
                 INSERT INTO history (account, note) VALUES ({0}, 'n{written}'); \
                 DELETE FROM account WHERE id = {}; INSERT INTO account VALUES ({1}, {written}); COMMIT",
                written % 500,
                500 + written % 500
            )
        })
    }

    /// What `script` says, given the number of scripts before.
    pub(super) fn with(url: &str, script: impl Fn(u64) -> String + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, url) = (Arc::clone(&stop), url.to_owned());
        let thread = std::thread::spawn(move || {
            super::block_on(async {
                let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
                    .await
                    .unwrap();
                tokio::spawn(connection);
                let mut written = 0;
                while !stopped.load(Ordering::Relaxed) {
                    client.batch_execute(&script(written)).await.unwrap();
                    written += 1;
                }
                written
            })
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    pub(super) fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(0, |thread| thread.join().unwrap())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
