//! The programs that fetch servers (npm, node, pip): found, or installed when we are root on Debian.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::cache;

/// A program we need, and the Debian package that has it.
struct Tool {
    program: &'static str,
    package: &'static str,
}

const NPM: &[Tool] = &[
    Tool {
        program: "node",
        package: "nodejs",
    },
    Tool {
        program: "npm",
        package: "npm",
    },
];
const PIP: &[Tool] = &[Tool {
    program: "pip3",
    package: "python3-pip",
}];

/// Makes sure that `node` and `npm` can be run.
pub(super) fn require_npm() -> Result<()> {
    require(NPM)
}

/// Makes sure that `pip3` can be run.
pub(super) fn require_pip() -> Result<()> {
    require(PIP)
}

fn require(tools: &[Tool]) -> Result<()> {
    if absent(tools).is_empty() {
        return Ok(());
    }
    let by_hand = |packages: &[&str]| format!("apt-get install {}", packages.join(" "));
    let packages = absent(tools);
    ensure!(
        rustix::process::geteuid().is_root(),
        "programs are missing to fetch the test servers; install them: {}",
        by_hand(&packages)
    );
    ensure!(
        runs("apt-get"),
        "programs are missing to fetch the test servers and there is no apt-get to install them: provide {}",
        packages.join(" ")
    );
    let _lock = cache::lock(&cache::servers_dir()?.join(".apt.lock"))?;
    // Another process may have installed them while this one waited for the lock.
    let packages = absent(tools);
    if packages.is_empty() {
        return Ok(());
    }
    eprintln!("installing {} with apt-get", packages.join(" "));
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-q", "-o", "DPkg::Lock::Timeout=600"]);
        apt
    };
    run(apt().arg("update"))?;
    run(apt()
        .args(["install", "-y", "--no-install-recommends"])
        .args(&packages))
    .with_context(|| format!("try it by hand: {}", by_hand(&packages)))?;
    let still = absent(tools);
    ensure!(
        still.is_empty(),
        "{} cannot be run although apt-get installed it",
        still.join(" ")
    );
    Ok(())
}

fn absent(tools: &[Tool]) -> Vec<&'static str> {
    tools
        .iter()
        .filter(|t| !runs(t.program))
        .map(|t| t.package)
        .collect()
}

/// Whether `program --version` runs: a shim or a broken link in PATH is as good as absent.
fn runs(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success())
}

/// Runs a command to its end and returns its standard output; its whole output is in the error otherwise.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", Path::new(command.get_program()).display()))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
