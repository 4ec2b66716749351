//! `cargo xtask bench-inserts pg`: one transaction of a million inserts through cdc-sync, and both ends of its way alone.
//!
//! The source alone is read by our own reader with the options that cdc-sync asks for, into nothing (`benches/source.rs`), and once
//! more with values in binary, which it does not ask for; COPY alone is `psql` with the same rows from a file, into a table
//! with the same key. Every round has new servers; which of the four goes first rotates.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use testbed::provision::{ToolsInstall, postgres_tools};

use crate::build::source;

use crate::bench_compare::{WIDE, cluster, follow, median, wide_rows};
use crate::build::release_binary;
use crate::psql::Psql;

/// Arguments of `cargo xtask bench-inserts`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which database product
    #[arg(value_parser = ["pg"])]
    product: String,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// PostgreSQL major version of both sides, 14 or later
    #[arg(long, default_value_t = 18)]
    major: u16,
}

/// Reading alone: seconds, and CPU seconds of blue's walsender.
#[derive(Clone, Copy, Default)]
struct Read {
    seconds: f64,
    cpu: f64,
}

/// Seconds of one round.
#[derive(Default)]
struct Round {
    ours: f64,
    text: Read,
    binary: Read,
    copy: f64,
}

impl Round {
    /// Ours against the slower end.
    fn ratio(&self) -> f64 {
        self.ours / self.text.seconds.max(self.copy)
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let tools = postgres_tools()?;
    let (binary, source) = (release_binary()?, source()?);
    let mut ratios = Vec::new();
    for number in 0..args.rounds {
        let round = round(args, &tools, [&binary, &source], number)?;
        println!(
            "round {}: ours {:.2} s, source alone {:.2} s (walsender {:.2} s of CPU; binary {:.2} and {:.2} s), COPY alone {:.2} s: \
             {:.2} of the slower",
            number + 1,
            round.ours,
            round.text.seconds,
            round.text.cpu,
            round.binary.seconds,
            round.binary.cpu,
            round.copy,
            round.ratio()
        );
        ratios.push(round.ratio());
    }
    println!("median {:.2}", median(ratios.into_iter()));
    Ok(())
}

fn round(args: &Args, tools: &ToolsInstall, [binary, reader]: [&Path; 2], number: usize) -> Result<Round> {
    let (blue, green) = (cluster(args.major)?, cluster(args.major)?);
    green.create_database("alone")?;
    let url = blue.url("postgres");
    let source = Psql::new(tools, &url);
    let target = Psql::new(tools, green.url("alone"));
    source.run(WIDE)?;
    target.run(WIDE)?;
    follow(&[], binary, tools, [&blue, &green]).context("first run of cdc-sync")?;
    source.run("CREATE PUBLICATION alone FOR TABLE wide")?;
    source.run("SELECT pg_create_logical_replication_slot('alone', 'pgoutput')")?;
    source.run(&wide_rows(1_000_000))?;
    source.run("CHECKPOINT")?;
    let end = source.run("SELECT pg_current_wal_lsn()")?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("wide.copy");
    let file = file
        .to_str()
        .context("a temporary folder whose name is no text")?;
    source.run(&format!("\\copy wide TO '{file}'"))?;

    let mut round = Round::default();
    for turn in 0..4 {
        let began = Instant::now();
        match (number + turn) % 4 {
            0 => round.ours = follow(&[], binary, tools, [&blue, &green])?,
            1 => round.text = read(reader, [&url, "alone", "alone", &end, "text"])?,
            2 => round.binary = read(reader, [&url, "alone", "alone", &end, "binary"])?,
            _ => {
                target.run(&format!("\\copy wide FROM '{file}'"))?;
                round.copy = began.elapsed().as_secs_f64();
            }
        }
    }
    Ok(round)
}

/// Reads the slot and throws away what comes.
fn read(reader: &Path, arguments: [&str; 5]) -> Result<Read> {
    let began = Instant::now();
    let output = Command::new(reader).args(arguments).output();
    let output = output.context("cdc-source does not start")?;
    let seconds = began.elapsed().as_secs_f64();
    let told = String::from_utf8_lossy(&output.stdout);
    let cpu = told.split_whitespace().last().and_then(|cpu| cpu.parse().ok());
    match cpu {
        Some(cpu) if output.status.success() => Ok(Read { seconds, cpu }),
        _ => bail!("cdc-source: {told}{}", String::from_utf8_lossy(&output.stderr)),
    }
}
