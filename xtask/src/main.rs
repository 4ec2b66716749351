//! Development tasks of cdc-sync, run as `cargo xtask TASK`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench_compare;
mod bench_crossover;
mod bench_inserts;
mod bench_latency;
mod bench_pgcopydb;
mod bench_scale;
mod build;
mod demo;
mod fuzz;
mod probe;
mod psql;
mod servers;
mod steps;
mod test;
mod workspace;

/// Development tasks of cdc-sync.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch the real database servers that tests, benches and the demo run
    Servers(servers::Args),
    /// PostgreSQL 12 to 18 under load with the real binary: check, seed, follow, drain, verify
    Demo(demo::Args),
    /// The same work through cdc-sync and through a peer, alternating
    BenchCompare(bench_compare::Args),
    /// From how many rows a net set costs less than a statement for each row
    BenchCrossover(bench_crossover::Args),
    /// A million inserts in one transaction, beside its source alone and COPY alone
    BenchInserts(bench_inserts::Args),
    /// The lag of one-row transactions through cdc-sync and through the native subscription, alternating
    BenchLatency(bench_latency::Args),
    /// Time cdc-sync beside pgcopydb, which is not fetched, on the same work
    BenchPgcopydb(bench_pgcopydb::Args),
    /// Catch-ups over tables, columns and rows a transaction, with the CPU time of each part
    BenchScale(bench_scale::Args),
    /// Every fuzz target for a bounded number of executions
    Fuzz(fuzz::Args),
    /// Run every check and test, as CI does
    Test(test::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Servers(args) => servers::run(&args),
        Task::Demo(args) => demo::run(args),
        Task::BenchCompare(args) => bench_compare::run(&args),
        Task::BenchCrossover(args) => bench_crossover::run(&args),
        Task::BenchInserts(args) => bench_inserts::run(&args),
        Task::BenchLatency(args) => bench_latency::run(&args),
        Task::BenchPgcopydb(args) => bench_pgcopydb::run(&args),
        Task::BenchScale(args) => bench_scale::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Test(args) => test::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
