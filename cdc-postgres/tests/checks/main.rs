//! Looking at databases and tidying them, against real servers: compare views, findings, cleanup.

mod cleanup;
mod compare;
mod precheck;
mod types;

use std::time::Duration;

use cdc_core::engine::JobNames;
use cdc_core::{Engine, Site};
use cdc_postgres::PgEngine;

/// The oldest and the newest server.
const MAJORS: [u16; 2] = [12, 18];

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

async fn site(url: &str) -> Box<dyn Site> {
    PgEngine.connect(url, Duration::from_secs(60)).await.unwrap()
}

fn names(job: &str) -> JobNames {
    JobNames {
        job: job.into(),
        slot: format!("cdc_sync_{job}"),
    }
}
