//! `cargo xtask bench-crossover pg`: from how many rows a net set costs less than a statement for each row, on a real server.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::bench_compare::cluster;
use crate::build::crossover;

/// Arguments of `cargo xtask bench-crossover`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which database product
    #[arg(value_parser = ["pg"])]
    product: String,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// PostgreSQL major version of the target
    #[arg(long, default_value_t = 18)]
    major: u16,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let program = crossover()?;
    let green = cluster(args.major)?;
    green.sql(
        "postgres",
        "CREATE TABLE crossover (id bigint PRIMARY KEY, number integer, amount numeric(12,2), at timestamptz, \
         name text, note text)",
    )?;
    let mut command = Command::new(program);
    command.arg(green.url("postgres")).arg(args.rounds.to_string());
    let status = command.status().context("cdc-crossover does not start")?;
    ensure!(status.success(), "cdc-crossover ended with {status}");
    Ok(())
}
