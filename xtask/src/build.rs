//! Building what the tasks run.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::workspace::Workspace;

/// Builds the shipped binary alone, so that no test-only feature is unified into it; returns its path.
pub(crate) fn release_binary() -> Result<PathBuf> {
    release_build("cdc-sync", "cdc-sync")
}

/// Builds the simple follower of `bench-latency --floor`; returns its path.
pub(crate) fn floor() -> Result<PathBuf> {
    release_build("cdc-benches", "cdc-floor")
}

/// Builds the reader of `bench-inserts`; returns its path.
pub(crate) fn source() -> Result<PathBuf> {
    release_build("cdc-benches", "cdc-source")
}

/// Builds the program of `bench-crossover`; returns its path.
pub(crate) fn crossover() -> Result<PathBuf> {
    release_build("cdc-benches", "cdc-crossover")
}

fn release_build(package: &str, name: &str) -> Result<PathBuf> {
    let workspace = Workspace::load()?;
    let status = workspace
        .cargo(["build", "--release", "-p", package, "--bin", name])
        .status()
        .context("cargo does not start")?;
    ensure!(status.success(), "the release build of {name} failed");
    Ok(workspace.release_binary(name))
}
