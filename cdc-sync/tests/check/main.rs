//! `check` against real servers: each finding is provoked, and absent where its cause is.

mod catalogue;
mod documented;
mod grants;
mod link;
mod lookout;
mod refused;

use std::sync::Arc;
use std::time::Duration;

use cdc_core::engine::{Finding, JobNames};
use cdc_core::{Site, TableSelection};
use cdc_sync::check;
use cdc_sync::config::DatabaseUrl;

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn names() -> JobNames {
    JobNames {
        job: "checked".into(),
        slot: "cdc_sync_checked".into(),
    }
}

async fn site(url: &str) -> Arc<dyn Site> {
    let url = DatabaseUrl::new(url);
    let site = cdc_sync::engines::connect(&url, Duration::from_secs(60)).await;
    Arc::from(site.unwrap())
}

/// Everything that `check` finds about two databases.
fn checked(source: &str, target: &str) -> Vec<Finding> {
    block_on(async {
        let (source, target) = (site(source).await, site(target).await);
        let (names, all) = (names(), TableSelection::default());
        let mut found = check::findings(&source, &target, &names, &all).await.unwrap();
        found.extend(check::run_findings(&source, &target, &names, &all).await.unwrap());
        found
    })
}

fn has(findings: &[Finding], id: &str) -> bool {
    findings.iter().any(|finding| finding.id == id)
}
