//! What cargo knows about this workspace.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The parts of `cargo metadata` that tasks use.
#[derive(Deserialize)]
pub(crate) struct Workspace {
    workspace_root: PathBuf,
    target_directory: PathBuf,
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
    features: std::collections::BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Workspace {
    /// Asks cargo about the workspace that this task was started in. Not the one it was compiled in: clones share
    /// a target folder, and cargo takes the program of another one for fresh.
    pub(crate) fn load() -> Result<Workspace> {
        let folder = std::env::var_os("CARGO_MANIFEST_DIR").context("start it with `cargo xtask`")?;
        let output = program()
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .current_dir(folder)
            .output()
            .context("cannot run cargo metadata")?;
        ensure!(
            output.status.success(),
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).context("cannot read the output of cargo metadata")
    }

    /// `cargo`, run at the root of the workspace.
    pub(crate) fn cargo<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut cargo = program();
        cargo.args(args).current_dir(&self.workspace_root);
        cargo
    }

    /// Where the workspace is.
    pub(crate) fn root(&self) -> &Path {
        &self.workspace_root
    }

    /// Where builds go.
    pub(crate) fn target_dir(&self) -> &Path {
        &self.target_directory
    }

    /// The feature of this name of each package that has it, as `--features` takes them.
    fn features(&self, name: &str) -> String {
        let owners = self
            .packages
            .iter()
            .filter(|package| package.features.contains_key(name));
        owners
            .map(|package| format!("{}/{name}", package.name))
            .collect::<Vec<_>>()
            .join(",")
    }

    /// The features of all tests: one set, so that nothing is compiled twice.
    pub(crate) fn test_features(&self) -> String {
        [self.features("live"), self.features("testing")].join(",")
    }

    /// The names of all integration tests.
    pub(crate) fn integration_tests(&self) -> impl Iterator<Item = &str> {
        let targets = self.packages.iter().flat_map(|package| &package.targets);
        let tests = targets.filter(|target| target.kind.iter().any(|kind| kind == "test"));
        tests.map(|target| target.name.as_str())
    }

    /// Where a release build puts a program.
    pub(crate) fn release_binary(&self, name: &str) -> PathBuf {
        self.binary("release", name)
    }

    /// Where a build of this profile puts a program.
    pub(crate) fn binary(&self, profile: &str, name: &str) -> PathBuf {
        self.target_directory.join(profile).join(name)
    }
}

/// The cargo that runs us.
fn program() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
