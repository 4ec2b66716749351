//! `cargo xtask fuzz`: every fuzz target for a bounded number of executions, on stable Rust.
//!
//! Each target begins with its seeds in `fuzz/corpus` and with what former runs found; what it finds new stays outside
//! the repository. `cargo xtask test` begins with the seeds alone, so that the same tree does the same again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};

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

    /// Forgets what former runs found.
    pub(crate) fn forget(&self) -> Result<()> {
        for target in targets(&self.corpus)? {
            let found = self.found.join(target);
            if found.is_dir() {
                std::fs::remove_dir_all(found)?;
            }
        }
        Ok(())
    }

    /// Runs each target, as many at a time as there are processors. An input that one dies of ends it and is named.
    pub(crate) fn all(&self, runs: u64, only: &str) -> Result<()> {
        let targets = targets(&self.corpus)?;
        let matching: Vec<&String> = targets.iter().filter(|target| target.contains(only)).collect();
        ensure!(
            !matching.is_empty(),
            "no target is named {only:?}; there are {targets:?}"
        );
        let next = AtomicUsize::new(0);
        let in_turn = || {
            while let Some(target) = matching.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.one(target, runs)?;
            }
            Ok(())
        };
        let processors = std::thread::available_parallelism()?.get();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..processors).map(|_| scope.spawn(in_turn)).collect();
            let ended = workers.into_iter().map(|worker| worker.join());
            let ended: Vec<Result<()>> = ended
                .map(|ended| ended.unwrap_or_else(|_| Err(anyhow!("a fuzz run panicked"))))
                .collect();
            ended.into_iter().collect()
        })
    }

    fn one(&self, target: &str, runs: u64) -> Result<()> {
        let begun = Instant::now();
        let found = self.found.join(target);
        std::fs::create_dir_all(&found)?;
        let crash = format!("-artifact_prefix={}/{target}-", self.found.display());
        let ended = Command::new(&self.program)
            .env("CDC_FUZZ_TARGET", target)
            .args([format!("-runs={runs}"), format!("-rss_limit_mb={MEMORY}")])
            .args([format!("-timeout={PATIENCE}"), "-seed=1".into(), crash])
            .args(["-print_final_stats=1", "-verbosity=0"])
            // To weigh inputs by how rare their paths are takes longer than to run two thirds more of them.
            .arg("-entropic=0")
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
        let executed = stat("number_of_executed_units").parse::<u64>();
        ensure!(
            executed.is_ok_and(|executed| executed >= runs),
            "fuzz target {target} ended before {runs} executions\n{told}"
        );
        println!(
            "{target:<22} {} executions in {:.1} s, {} MiB",
            stat("number_of_executed_units"),
            begun.elapsed().as_secs_f32(),
            stat("peak_rss_mb")
        );
        Ok(())
    }
}

/// Each has a folder of seeds with its name.
fn targets(corpus: &Path) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in std::fs::read_dir(corpus).context("there are no seeds")? {
        let name = entry?.file_name();
        targets.push(name.to_str().context("a fuzz target without a name")?.to_owned());
    }
    targets.sort();
    Ok(targets)
}
