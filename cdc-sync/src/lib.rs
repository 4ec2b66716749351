//! cdc-sync: change-data-capture replication that moves a live database to a new version or server.
//!
//! This crate is the facade over the engine-neutral [`core`] and the engines that this build has, and the home
//! of the `cdc-sync` binary. The binary copies a database that is being written to, follows it, and brings the
//! other side to exact equality, exactly once, through crashes:
//!
//! ```text
//! cdc-sync check    what stands in the way?
//! cdc-sync run      copy, then follow; resumable at every point
//! cdc-sync verify   compare every row while the source is written to
//! ```
//!
//! # Where to look
//!
//! | to | use |
//! |---|---|
//! | connect to a database by URL | [`engines::connect`] |
//! | copy and follow from your own program | [`run::run`] |
//! | compare two databases | [`verify::verify`] |
//! | repair what differs | [`repair::Repair`] |
//! | give account of a job | [`report::Account::gather`] |
//! | ask what stands in the way | [`check::findings`] |
//! | ask where a job stands | [`status::Facts::gather`] |
//! | write an engine | [`Engine`], [`Site`], and the modules of [`core`] |
//!
//! # Guarantees
//! The target always equals the source after some prefix of its transactions: data and position commit together.
//! What cannot be decoded, typed or applied stops the stream and names table, key and position; nothing is
//! dropped by default. Errors, logs and debug output hold neither row values nor passwords.
//!
//! # In a program of one's own
//! ```no_run
//! # async fn example() -> cdc_sync::Result<()> {
//! use std::time::Duration;
//! use cdc_sync::config::DatabaseUrl;
//!
//! let url = DatabaseUrl::new("postgres://app@blue.example/shop");
//! let source = cdc_sync::engines::connect(&url, Duration::from_secs(30)).await?;
//! println!("{}", source.identity().product);
//! # Ok(())
//! # }
//! ```

pub mod check;
pub mod cli;
pub mod config;
pub mod engines;
pub mod exit;
pub mod http;
pub mod job;
pub mod logging;
pub mod metrics;
pub mod monitor;
pub mod output;
pub mod progress;
pub mod redact;
mod references;
pub mod repair;
pub mod report;
pub mod run;
pub mod signals;
pub mod status;
pub mod tail;
pub mod verify;

pub use cdc_core as core;
pub use cdc_core::{Engine, Error, Kind, Result, Site, TableName, TableSelection};
