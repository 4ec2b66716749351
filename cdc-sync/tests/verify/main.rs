//! Verify against real servers: planted differences are found, absent ones are not, and blue may be written all
//! the time.

mod job;
mod planted;
mod stream;
mod under_load;

use std::sync::Arc;
use std::time::Duration;

use cdc_core::engine::{Engine, JobNames};
use cdc_core::{Site, TableSelection};
use cdc_postgres::PgEngine;
use cdc_sync::verify::{TableReport, VerifyOptions, VerifyReport, verify};
use testbed::PgCluster;

const DATABASE: &str = "app";

/// Old and new server, each with an empty database.
fn pair(old: u16, new: u16) -> (PgCluster, PgCluster) {
    let clusters = [old, new].map(|major| {
        let cluster = PgCluster::builder(major).start().unwrap();
        cluster.create_database(DATABASE).unwrap();
        cluster
    });
    let [source, target] = clusters;
    (source, target)
}

fn names() -> JobNames {
    JobNames {
        job: "verified".into(),
        slot: "cdc_sync_verified".into(),
    }
}

async fn site(cluster: &PgCluster) -> Arc<dyn Site> {
    Arc::from(
        PgEngine
            .connect(&cluster.url(DATABASE), Duration::from_secs(60))
            .await
            .unwrap(),
    )
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Compares everything the way the binary does.
fn compare(source: &PgCluster, target: &PgCluster) -> VerifyReport {
    block_on(async {
        let (source, target) = (site(source).await, site(target).await);
        let options = VerifyOptions {
            deadline: Some(tokio::time::Instant::now() + Duration::from_secs(300)),
            ..VerifyOptions::default()
        };
        verify(
            &source,
            &target,
            &names(),
            &TableSelection::default(),
            &options,
            &|_| {},
        )
        .await
        .unwrap()
    })
}

fn table<'a>(report: &'a VerifyReport, name: &str) -> &'a TableReport {
    let found = report.tables.iter().find(|table| table.name.name == name);
    found.unwrap_or_else(|| panic!("no table {name} in {report:#?}"))
}
