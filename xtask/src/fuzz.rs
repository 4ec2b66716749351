//! `cargo xtask fuzz`: every fuzz target for a bounded number of executions, on stable Rust.
//!
//! libFuzzer needs the compiler's coverage instrumentation, which stable Rust has as a pass of its code generator. Each
//! target begins with its seeds in `fuzz/corpus` and with what former runs found; what it finds new stays outside the
//! repository. Executions are seeded, so that the same tree does the same again.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace::Workspace;

/// Coverage instrumentation, see the Clang documentation on SanitizerCoverage.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// The most memory that a target may have, in MiB.
const MEMORY: u32 = 1024;
/// Seconds that one input may take.
const PATIENCE: u32 = 25;

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Executions of each target
    #[arg(long, default_value_t = 1_000_000)]
    runs: u64,
    /// Only targets whose name contains this
    #[arg(long, default_value = "")]
    only: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    all(&Workspace::load()?, args.runs, &args.only)
}

/// Builds the targets and runs each; the first input that one dies of ends it all and is named.
pub(crate) fn all(workspace: &Workspace, runs: u64, only: &str) -> Result<()> {
    let folder = workspace.root().join("fuzz");
    let host = host()?;
    let target_dir = workspace.target_dir().join("fuzz");
    let built = Command::new("cargo")
        .args(["build", "--release", "--target", &host])
        .current_dir(&folder)
        .env("RUSTFLAGS", FLAGS)
        .env("CARGO_TARGET_DIR", &target_dir)
        .status()
        .context("cargo does not start")?;
    ensure!(built.success(), "the fuzz targets do not build");
    let binaries = target_dir.join(&host).join("release");
    for target in targets(&folder)? {
        if target.contains(only) {
            fuzz(&folder, &binaries, &target_dir, &target, runs)?;
        }
    }
    Ok(())
}

/// The triple of this machine: naming it keeps the flags away from build scripts.
fn host() -> Result<String> {
    let told = Command::new("rustc")
        .arg("-vV")
        .output()
        .context("rustc does not start")?;
    let told = String::from_utf8(told.stdout)?;
    let host = told.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not tell its host")?.to_owned())
}

fn targets(folder: &Path) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in std::fs::read_dir(folder.join("targets"))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        targets.push(name.context("a fuzz target without a name")?.to_owned());
    }
    targets.sort();
    Ok(targets)
}

fn fuzz(folder: &Path, binaries: &Path, target_dir: &Path, target: &str, runs: u64) -> Result<()> {
    let found = target_dir.join("found").join(target);
    std::fs::create_dir_all(&found)?;
    let crash = format!("-artifact_prefix={}/{target}-", target_dir.display());
    let mut command = Command::new(binaries.join(target));
    command
        .args([format!("-runs={runs}"), format!("-rss_limit_mb={MEMORY}")])
        .args([format!("-timeout={PATIENCE}"), "-seed=1".into(), crash])
        .args(["-print_final_stats=1", "-verbosity=0"])
        .arg(&found);
    let seeds = folder.join("corpus").join(target);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    let ended = command
        .output()
        .with_context(|| format!("{target} does not start"))?;
    let told = String::from_utf8_lossy(&ended.stderr);
    ensure!(
        ended.status.success(),
        "fuzz target {target} failed; the input is in {}\n{told}",
        target_dir.display()
    );
    let stat = |name: &str| {
        told.lines()
            .find_map(|line| line.strip_prefix(&format!("stat::{name}:")))
            .map_or("?", str::trim)
    };
    println!(
        "{target:<20} {} executions, {} a second, {} MiB",
        stat("number_of_executed_units"),
        stat("average_exec_per_sec"),
        stat("peak_rss_mb")
    );
    Ok(())
}
