//! Real database servers for the tests, benches and the demo of cdc-sync: provisioning, throw-away
//! clusters, seeded workloads with exact accounting, an independent comparison of two databases, and a
//! TCP proxy that cuts, freezes and delays.
//!
//! Development only. It names no cdc crate: what it counts and compares is an oracle for them.
//!
//! ```no_run
//! use testbed::workload::{Config, Fill, prepare};
//! use testbed::{PgCluster, Workload, compare};
//!
//! let blue = PgCluster::builder(12).start()?;
//! let green = PgCluster::builder(18).start()?;
//! prepare(&blue.url("postgres"), Fill { orders: 10_000, pgbench_scale: Some(1) })?;
//! let config = Config { rate: 500.0, pgbench_scale: Some(1), ..Config::default() };
//! let workload = Workload::start(&blue.url("postgres"), &config)?;
//! // … replicate …
//! let totals = workload.stop()?;
//! println!("{} changes in {} transactions", totals.changes(), totals.transactions);
//! assert_eq!(compare::databases(&blue.url("postgres"), &green.url("postgres"))?, []);
//! # Ok::<(), anyhow::Error>(())
//! ```

mod blocking;
pub mod compare;
mod gate;
pub mod pair;
mod port;
pub mod postgres;
mod proc;
pub mod process;
pub mod provision;
pub mod proxy;
mod table;
pub mod usage;
mod watchdog;
pub mod workload;

pub use gate::Gate;
pub use pair::Pair;
pub use postgres::{PgCluster, StopMode};
pub use process::Process;
pub use proxy::Proxy;
pub use table::TableName;
pub use workload::Workload;

/// The environment variable by which `cargo xtask test` tells the live tests how much to run.
pub const TIER: &str = "CDC_SYNC_TEST_TIER";

/// Whether the long tier runs (`cargo xtask test --all`): the whole matrix, more rows, longer fault runs.
pub fn runs_long_tier() -> bool {
    std::env::var_os(TIER).is_some_and(|tier| tier == "all")
}
