//! `cargo xtask bench-inserts pg`: one transaction of a million inserts through cdc-sync, and both ends of its way alone.
//!
//! The source alone is `pg_recvlogical` with the options that cdc-sync asks for, into nothing; COPY alone is `psql` with the same
//! rows from a file, into a table with the same key. Every round has new servers; which of the three goes first rotates.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use testbed::provision::{ToolsInstall, postgres_tools};

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

/// Seconds of one round.
#[derive(Default)]
struct Round {
    ours: f64,
    source: f64,
    copy: f64,
}

impl Round {
    /// Ours against the slower end.
    fn ratio(&self) -> f64 {
        self.ours / self.source.max(self.copy)
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let tools = postgres_tools()?;
    let binary = release_binary()?;
    let mut ratios = Vec::new();
    for number in 0..args.rounds {
        let round = round(args, &tools, &binary, number)?;
        println!(
            "round {}: ours {:.2} s, source alone {:.2} s, COPY alone {:.2} s: {:.2} of the slower",
            number + 1,
            round.ours,
            round.source,
            round.copy,
            round.ratio()
        );
        ratios.push(round.ratio());
    }
    println!("median {:.2}", median(ratios.into_iter()));
    Ok(())
}

fn round(args: &Args, tools: &ToolsInstall, binary: &std::path::Path, number: usize) -> Result<Round> {
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
    for turn in 0..3 {
        let began = Instant::now();
        match (number + turn) % 3 {
            0 => round.ours = follow(&[], binary, tools, [&blue, &green])?,
            1 => {
                receive(tools, &url, &end)?;
                round.source = began.elapsed().as_secs_f64();
            }
            _ => {
                target.run(&format!("\\copy wide FROM '{file}'"))?;
                round.copy = began.elapsed().as_secs_f64();
            }
        }
    }
    Ok(round)
}

/// Reads the slot up to `end` and throws away what comes.
fn receive(tools: &ToolsInstall, url: &str, end: &str) -> Result<()> {
    let mut command = tools.command("pg_recvlogical");
    command.args(["-d", url, "--slot", "alone", "--start", "--no-loop", "-f", "-"]);
    command.args(["--endpos", end]);
    let options = [
        "proto_version=2",
        "publication_names=alone",
        "messages=true",
        "streaming=on",
    ];
    command.args(options.iter().flat_map(|option| ["-o", option]));
    let output = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .context("pg_recvlogical does not start")?;
    ensure!(
        output.status.success(),
        "pg_recvlogical: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
