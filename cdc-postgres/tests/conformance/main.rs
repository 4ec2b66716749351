//! The suites of `cdc_core::testing::conformance` on real servers, the oldest and the newest supported, and random
//! histories applied to them and read from them.

mod histories;
mod readings;
mod servers;
mod sessions;
mod sink_harness;
mod source_harness;
mod suites;
mod tables;
