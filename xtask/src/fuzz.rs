//! `cargo xtask fuzz`: every fuzz target for a bounded number of executions, on stable Rust.
//!
//! Each target begins with its seeds in `fuzz/corpus` and with what former runs found; what it finds new stays outside
//! the repository. Executions are seeded, so that the same tree does the same again.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace::Workspace;

/// The most memory that the process of a target may have, in MiB. What reading one input may take is up to the target.
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
    /// Write the seeds in fuzz/corpus instead
    #[arg(long)]
    seeds: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let fuzzer = Fuzzer::build(&Workspace::load()?)?;
    if args.seeds {
        return fuzzer.write_seeds();
    }
    fuzzer.all(args.runs, &args.only)
}

/// The targets, built with instrumentation.
pub(crate) struct Fuzzer {
    program: PathBuf,
    corpus: PathBuf,
    /// where inputs go that a run finds
    found: PathBuf,
}

impl Fuzzer {
    /// Builds them on the dependencies that the tests are built on; only the crates of the workspace are instrumented.
    pub(crate) fn build(workspace: &Workspace) -> Result<Fuzzer> {
        let features = format!("{},cdc-fuzz/libfuzzer", workspace.test_features());
        let built = workspace
            .cargo([
                "build",
                "--workspace",
                "--features",
                &features,
                "--example",
                "fuzz",
            ])
            .env(
                "RUSTC_WORKSPACE_WRAPPER",
                workspace.root().join("fuzz/instrumented-rustc"),
            )
            // Nothing of it is edited and built again all day.
            .env("CARGO_INCREMENTAL", "0")
            .status();
        ensure!(
            built.context("cargo does not start")?.success(),
            "the fuzz targets do not build"
        );
        Ok(Fuzzer {
            program: workspace.binary("debug/examples", "fuzz"),
            corpus: workspace.root().join("fuzz/corpus"),
            found: workspace.target_dir().join("fuzz"),
        })
    }

    fn write_seeds(&self) -> Result<()> {
        let written = Command::new(&self.program)
            .env("CDC_FUZZ_SEEDS", &self.corpus)
            .status();
        ensure!(
            written.context("the fuzz targets do not start")?.success(),
            "the seeds cannot be written"
        );
        Ok(())
    }

    /// Runs each target; the first input that one dies of ends it all and is named.
    pub(crate) fn all(&self, runs: u64, only: &str) -> Result<()> {
        let targets = targets(&self.corpus).context("there are no seeds")?;
        let mut matching = targets.iter().filter(|target| target.contains(only)).peekable();
        ensure!(
            matching.peek().is_some(),
            "no target is named {only:?}; there are {targets:?}"
        );
        matching.try_for_each(|target| self.one(target, runs))
    }

    fn one(&self, target: &str, runs: u64) -> Result<()> {
        let found = self.found.join(target);
        std::fs::create_dir_all(&found)?;
        let crash = format!("-artifact_prefix={}/{target}-", self.found.display());
        let ended = Command::new(&self.program)
            .env("CDC_FUZZ_TARGET", target)
            .args([format!("-runs={runs}"), format!("-rss_limit_mb={MEMORY}")])
            .args([format!("-timeout={PATIENCE}"), "-seed=1".into(), crash])
            .args(["-print_final_stats=1", "-verbosity=0"])
            .args([found, self.corpus.join(target)])
            .output()
            .with_context(|| format!("{target} does not start"))?;
        let told = String::from_utf8_lossy(&ended.stderr);
        ensure!(
            ended.status.success(),
            "fuzz target {target} failed; the input is in {}\n{told}",
            self.found.display()
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
}

/// Each has a folder of seeds with its name.
fn targets(corpus: &Path) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in std::fs::read_dir(corpus)? {
        let name = entry?.file_name();
        targets.push(name.to_str().context("a fuzz target without a name")?.to_owned());
    }
    targets.sort();
    Ok(targets)
}
