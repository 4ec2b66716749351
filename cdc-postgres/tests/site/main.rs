//! `PgSite` on real servers: catalog, publication, snapshot and copy, schema copy, sequences.

mod clients;
mod copy;
mod faults;
mod formats;
mod publication;
mod schema;
mod sequences;
mod tail;

use std::time::Duration;

use cdc_core::engine::{Fence, JobNames};
use cdc_core::{Engine, Site, TableName, TableSelection};
use cdc_postgres::PgEngine;
use testbed::PgCluster;

/// A cluster of a major version with one empty database, `db`.
fn cluster(major: u16) -> PgCluster {
    let cluster = PgCluster::builder(major).start().unwrap();
    cluster.create_database("db").unwrap();
    cluster
}

async fn site(cluster: &PgCluster) -> Box<dyn Site> {
    PgEngine
        .connect(&cluster.url("db"), Duration::from_secs(30))
        .await
        .unwrap()
}

fn names() -> JobNames {
    JobNames {
        job: "job".into(),
        slot: "cdc_sync_job".into(),
    }
}

/// Readies a target for `names()`; the right to load and apply there.
async fn fence(green: &dyn Site) -> Box<dyn Fence> {
    green.prepare_state().await.unwrap();
    green
        .take_fence(&names().job, Duration::from_secs(60))
        .await
        .unwrap()
}

fn table(schema: &str, name: &str) -> TableName {
    TableName::new(schema, name)
}

async fn all_tables(site: &dyn Site) -> Vec<TableName> {
    let tables = site.inspect(&TableSelection::default()).await.unwrap();
    tables.into_iter().map(|table| table.name).collect()
}
