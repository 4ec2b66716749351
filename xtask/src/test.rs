//! `cargo xtask test`: everything that decides whether a state of the tree is good.

use anyhow::{Result, ensure};

use crate::fuzz::Fuzzer;
use crate::servers;
use crate::steps::Steps;
use crate::workspace::Workspace;

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run the long tier as well: the whole version matrix and long fault runs (up to three hours)
    #[arg(long)]
    all: bool,
}

/// Runs the steps up to the first that fails, and prints a summary in either case.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::new();
    let result = run_steps(args, &mut steps);
    steps.summary(result.is_ok());
    result
}

fn run_steps(args: &Args, steps: &mut Steps) -> Result<()> {
    let workspace = Workspace::load()?;
    steps.run("servers", servers::provision)?;
    steps.command("format", &mut workspace.cargo(["fmt", "--all", "--check"]))?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "--deny",
        "warnings",
    ];
    steps.command("clippy", &mut workspace.cargo(clippy))?;
    let mut doc = workspace.cargo(["doc", "--workspace", "--no-deps"]);
    steps.command("documentation", doc.env("RUSTDOCFLAGS", "--deny warnings"))?;

    let features = workspace.test_features();
    let test = ["test", "--workspace", "--features", features.as_str()];
    let only = |kind: &[&'static str]| workspace.cargo(test.iter().chain(kind).copied());
    steps.tests("unit tests", 1, &mut only(&["--lib", "--bins"]))?;
    steps.tests("documentation tests", 0, &mut only(&["--doc"]))?;

    let runs = if args.all { 200_000 } else { 20_000 };
    steps.run("fuzz targets", || {
        let fuzzer = Fuzzer::build(&workspace)?;
        fuzzer.forget()?;
        fuzzer.all(runs, "")
    })?;

    // Alone, as it is shipped: built with the workspace it would take in the features of its tests.
    steps.command(
        "release binary",
        &mut workspace.cargo(["build", "--release", "-p", "cdc-sync"]),
    )?;
    let binary = workspace.release_binary("cdc-sync");
    ensure!(binary.is_file(), "the release build left no {}", binary.display());
    let build = [
        "build",
        "-p",
        "cdc-sync",
        "--features",
        "failpoints",
        "--profile",
        "failpoints",
    ];
    steps.command("binary with failpoints", &mut workspace.cargo(build))?;
    // The tests run them as programs.
    steps.command(
        "examples",
        &mut workspace.cargo([
            "build",
            "--workspace",
            "--features",
            features.as_str(),
            "--examples",
        ]),
    )?;
    steps.command("live tests, built", &mut only(&["--no-run", "--test", "*"]))?;
    let live_test = |name: &str| {
        let mut command = workspace.cargo(test.iter().copied().chain(["--test", name]));
        command
            .env("CDC_SYNC_BIN", &binary)
            .env(
                "CDC_SYNC_FAILPOINTS_BIN",
                workspace.binary("failpoints", "cdc-sync"),
            )
            .env(testbed::TIER, if args.all { "all" } else { "quick" });
        command
    };
    let commands = longest_first(&workspace).into_iter().map(live_test).collect();
    steps.tests_at_once("live tests", AT_ONCE, commands)
}

/// Test programs that run at a time, with two threads each on two cores: most of a live test is waiting.
const AT_ONCE: usize = 3;
/// What takes longest is begun first, so that it does not run alone at the end.
const LONGEST: [&str; 6] = ["fire", "crash", "lifecycle", "site", "check", "resync"];

fn longest_first(workspace: &Workspace) -> Vec<&str> {
    let mut names: Vec<&str> = workspace.integration_tests().collect();
    names.sort_by_key(|name| {
        let place = LONGEST.iter().position(|long| long == name);
        (place.unwrap_or(LONGEST.len()), *name)
    });
    names.dedup();
    names
}
