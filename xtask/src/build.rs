//! Building what the tasks run.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::workspace::Workspace;

/// Builds the shipped binary alone, so that no test-only feature is unified into it; returns its path.
pub(crate) fn release_binary() -> Result<PathBuf> {
    let workspace = Workspace::load()?;
    let status = workspace
        .cargo(["build", "--release", "-p", "cdc-sync"])
        .status()
        .context("cargo does not start")?;
    ensure!(status.success(), "the release build of cdc-sync failed");
    Ok(workspace.release_binary("cdc-sync"))
}
