//! Embeds the engine: copies one database into another and follows it until both are equal.
//!
//! ```sh
//! cargo run -p cdc-sync --example embed -- postgres://me@blue/shop postgres://me@green/shop
//! ```

use std::sync::Arc;
use std::time::Duration;

use cdc_core::conflict::PolicyRules;
use cdc_core::engine::{Engine, JobNames, Retention};
use cdc_core::pipeline::{Control, PipelineConfig, StatsSnapshot, StreamStats};
use cdc_core::{Result, TableSelection};
use cdc_postgres::PgEngine;
use cdc_sync::run::{Reporter, RunContext, RunSettings, SeedProgress, run};

/// Shows what the engine tells, in the simplest way.
struct Lines;

impl Reporter for Lines {
    fn seed(&self, progress: &SeedProgress) {
        let rows: u64 = progress.tables.iter().map(|table| table.rows).sum();
        let retained = progress
            .retention
            .as_ref()
            .map(|Retention { retained_bytes, .. }| *retained_bytes);
        eprintln!("seed: {rows} rows copied, the source retains {retained:?} bytes of log");
    }

    fn stream(&self, stats: &StatsSnapshot, lag_bytes: Option<u64>) {
        eprintln!(
            "{:?}: {} transactions, {lag_bytes:?} bytes behind",
            stats.phase, stats.transactions
        );
    }

    fn note(&self, message: &str) {
        eprintln!("{message}");
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(source), Some(target)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: embed SOURCE_URL TARGET_URL [DIRECTORY_OF_PG_DUMP]");
        std::process::exit(2);
    };
    let patience = Duration::from_secs(30);
    let context = RunContext {
        source: Arc::from(PgEngine.connect(&source, patience).await?),
        target: Arc::from(PgEngine.connect(&target, patience).await?),
        names: JobNames {
            job: "embedded".into(),
            slot: "cdc_sync_embedded".into(),
        },
        selection: TableSelection::default(),
        present: None,
        settings: RunSettings {
            until_caught_up: true,
            truncate_target: false,
            takeover_timeout: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(10),
            deadline: None,
            seed_connections: 2,
            seed_part_bytes: 256 << 20,
            max_retained_wal: None,
            pipeline: PipelineConfig::default(),
            heartbeat: Some(Duration::from_millis(500)),
            sequence_buffer: 0,
            conflicts: PolicyRules::default(),
            tools_dir: arguments.next().map(Into::into),
        },
        control: Arc::new(Control::new()),
        conflicts: None,
        stats: Arc::new(StreamStats::default()),
        reporter: Arc::new(Lines),
    };
    let outcome = run(Arc::new(context)).await?;
    println!(
        "{} rows copied, then {:?}",
        outcome.seed.rows, outcome.stats.changes
    );
    Ok(())
}
