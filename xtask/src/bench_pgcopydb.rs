//! `cargo xtask bench-pgcopydb --pgcopydb PROGRAM`: the same work through cdc-sync and through pgcopydb, which is not fetched
//! (<https://github.com/dimitri/pgcopydb>; packages of Debian and PGDG).
//!
//! Seeds are `clone` with its default options beside a run of ours, each into an empty green. A catch-up is what is written
//! on blue while both are off: `follow --resume` up to the log's position then, beside a run of ours, each timed as a
//! process from its start to its end. Afterwards every table of both greens is compared with blue.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testbed::postgres::PgCluster;
use testbed::provision::{ToolsInstall, postgres_tools};

use crate::bench_compare::{WIDE, cluster, follow, median, pgbench, seeds, wide_rows};
use crate::build::release_binary;
use crate::psql::Psql;

/// Arguments of `cargo xtask bench-pgcopydb`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The program
    #[arg(long, default_value = "pgcopydb")]
    pgcopydb: PathBuf,
    /// Its output plugin
    #[arg(long, default_value = "pgoutput", value_parser = ["pgoutput", "test_decoding"])]
    plugin: String,
    /// Rounds of each workload; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// PostgreSQL major version of all servers
    #[arg(long, default_value_t = 18)]
    major: u16,
    /// pgbench scale of the seed (100,000 rows each)
    #[arg(long, default_value_t = 20)]
    scale: u32,
    /// Only workloads whose name contains this
    #[arg(long, default_value = "")]
    only: String,
}

/// What is written on blue.
enum Work {
    /// One transaction
    Sql(String),
    /// So many sessions of pgbench, with so many transactions each
    TpcB(u32, u32),
}

/// Rows of the table that one transaction inserts, or changes.
const WIDE_ROWS: u32 = 20_000;

fn workloads() -> [(&'static str, Work); 5] {
    [
        ("tpcb-2k", Work::TpcB(1, 2_000)),
        ("insert-20k", Work::Sql(wide_rows(WIDE_ROWS))),
        (
            "update-10k",
            Work::Sql("UPDATE wide SET a = a + 1, c = c || '!' WHERE id <= 10000".to_owned()),
        ),
        (
            "delete-6k",
            Work::Sql("DELETE FROM wide WHERE id > 14000".to_owned()),
        ),
        ("tpcb-2k-by-two", Work::TpcB(2, 1_000)),
    ]
}

/// Seconds of both sides in one round, and whether their greens are as blue is.
struct Round {
    ours: f64,
    theirs: f64,
    same: [bool; 2],
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let bench = Bench {
        args,
        tools: postgres_tools()?,
        binary: release_binary()?,
    };
    println!(
        "machine: {} cores; {} to {}; {}, {}",
        std::thread::available_parallelism()?,
        args.major,
        args.major,
        version(&args.pgcopydb)?,
        args.plugin
    );
    for seed in seeds(args.scale) {
        if seed.name.contains(&args.only) {
            let rounds = (0..args.rounds).map(|number| {
                let blue = seed.blue(args.major, &bench.tools)?;
                let (ours, theirs) = (cluster(args.major)?, cluster(args.major)?);
                let folder = tempfile::tempdir()?;
                bench.round(number, [&blue, &ours, &theirs], || {
                    bench.pgcopydb("clone", &[], [&blue, &theirs], &folder)
                })
            });
            print(&seed.name, &rounds.collect::<Result<Vec<Round>>>()?)?;
        }
    }
    let workloads = workloads();
    let wanted = workloads.iter().filter(|(name, _)| name.contains(&args.only));
    for (name, work) in wanted {
        let rounds = (0..args.rounds).map(|number| bench.catch_up(number, work));
        print(name, &rounds.collect::<Result<Vec<Round>>>()?)?;
    }
    Ok(())
}

fn version(pgcopydb: &Path) -> Result<String> {
    let output = Command::new(pgcopydb)
        .arg("--version")
        .output()
        .with_context(|| {
            format!(
                "{} does not start: say where it is with --pgcopydb",
                pgcopydb.display()
            )
        })?;
    let told = String::from_utf8_lossy(&output.stdout);
    Ok(told.lines().next().unwrap_or_default().to_owned())
}

fn print(name: &str, rounds: &[Round]) -> Result<()> {
    let ratio = median(rounds.iter().map(|round| round.theirs / round.ours));
    let raw: Vec<String> = rounds
        .iter()
        .map(|round| format!("{:.2}/{:.2}", round.ours, round.theirs))
        .collect();
    println!("{name:<16}{ratio:>7.2}x   ours/pgcopydb, s: {}", raw.join(" "));
    let wrong = |side: usize| rounds.iter().filter(|round| !round.same[side]).count();
    if wrong(1) > 0 {
        println!(
            "{:<16}   pgcopydb left green other than blue in {} rounds",
            "",
            wrong(1)
        );
    }
    ensure!(
        wrong(0) == 0,
        "cdc-sync left green other than blue in {} rounds",
        wrong(0)
    );
    Ok(())
}

struct Bench<'a> {
    args: &'a Args,
    tools: ToolsInstall,
    binary: PathBuf,
}

impl Bench<'_> {
    /// Both have copied blue; then it is written to, and both follow.
    fn catch_up(&self, number: usize, work: &Work) -> Result<Round> {
        let major = self.args.major;
        let (blue, ours, theirs) = (cluster(major)?, cluster(major)?, cluster(major)?);
        let url = blue.url("postgres");
        let source = Psql::new(&self.tools, &url);
        pgbench(&self.tools, &url, &["-i", "-q", "-s", "10"])?;
        source.run("ALTER TABLE pgbench_history REPLICA IDENTITY FULL")?;
        source.run(WIDE)?;
        if matches!(work, Work::Sql(sql) if !sql.starts_with("INSERT")) {
            source.run(&wide_rows(WIDE_ROWS))?;
        }
        source.run("VACUUM ANALYZE")?;
        follow(&[], &self.binary, &self.tools, [&blue, &ours]).context("first run of cdc-sync")?;
        let folder = tempfile::tempdir()?;
        let pair = [&blue, &theirs];
        self.follow_to_now("clone", &["--follow"], pair, &folder)
            .context("first run of pgcopydb")?;
        match work {
            Work::Sql(sql) => drop(source.run(sql)?),
            Work::TpcB(sessions, each) => pgbench(
                &self.tools,
                &url,
                &["-n", "-c", &sessions.to_string(), "-t", &each.to_string()],
            )?,
        }
        source.run("CHECKPOINT")?;
        self.round(number, [&blue, &ours, &theirs], || {
            self.follow_to_now("follow", &["--resume", "--not-consistent"], pair, &folder)
        })
    }

    /// Times both, in turns who is first, and looks at what they left.
    fn round(
        &self,
        number: usize,
        [blue, ours, theirs]: [&PgCluster; 3],
        pgcopydb: impl Fn() -> Result<f64>,
    ) -> Result<Round> {
        let cdc_sync = || follow(&[], &self.binary, &self.tools, [blue, ours]);
        let (our_time, their_time) = if number.is_multiple_of(2) {
            let first = cdc_sync()?;
            (first, pgcopydb()?)
        } else {
            let first = pgcopydb()?;
            (cdc_sync()?, first)
        };
        let content = |server: &PgCluster| Psql::new(&self.tools, server.url("postgres")).content();
        let wanted = content(blue)?;
        Ok(Round {
            ours: our_time,
            theirs: their_time,
            same: [content(ours)? == wanted, content(theirs)? == wanted],
        })
    }

    fn follow_to_now(
        &self,
        verb: &str,
        options: &[&str],
        [blue, green]: [&PgCluster; 2],
        folder: &TempDir,
    ) -> Result<f64> {
        let now = Psql::new(&self.tools, blue.url("postgres")).run("SELECT pg_current_wal_lsn()")?;
        let options = [
            options,
            &[
                "--plugin",
                &self.args.plugin,
                "--slot-name",
                "pgcopydb",
                "--endpos",
                now.trim(),
            ],
        ];
        self.pgcopydb(verb, &options.concat(), [blue, green], folder)
    }

    /// Runs it from process start to exit; returns the seconds.
    fn pgcopydb(
        &self,
        verb: &str,
        options: &[&str],
        [blue, green]: [&PgCluster; 2],
        folder: &TempDir,
    ) -> Result<f64> {
        let began = Instant::now();
        let output = Command::new(&self.args.pgcopydb)
            .arg(verb)
            .args([
                "--source",
                &blue.url("postgres"),
                "--target",
                &green.url("postgres"),
            ])
            .arg("--dir")
            .arg(folder.path().join("pgcopydb"))
            .args(options)
            .output()
            .context("pgcopydb does not start")?;
        let seconds = began.elapsed().as_secs_f64();
        ensure!(
            output.status.success(),
            "pgcopydb {verb}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(seconds)
    }
}
