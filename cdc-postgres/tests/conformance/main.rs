//! The suites of `cdc_core::testing::conformance` on real servers, the oldest and the newest supported, and random
//! histories of changes applied to them.

mod histories;
mod servers;
mod sessions;
mod sink_harness;
mod source_harness;
mod suites;
mod tables;
