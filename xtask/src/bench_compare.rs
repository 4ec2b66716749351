//! `cargo xtask bench-compare pg`: the same work through cdc-sync and through the native subscription.
//!
//! One blue server, two green ones. A workload is written once on blue while both followers are off; then each
//! catches up, timed from the start (of our process, or of `ALTER SUBSCRIPTION … ENABLE`) until the workload's
//! last row is on its green. Which one goes first alternates. Ratios are what is comparable: the machine drifts.
//! Beside the seconds stand the CPU seconds of the processes that could be the limit. After each round both greens
//! are compared with blue.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use testbed::postgres::PgCluster;
use testbed::provision::{ToolsInstall, postgres_tools};
use testbed::usage::Watch;

use crate::build::release_binary;
use crate::psql::Psql;

/// Longest time one catch-up may take.
const LIMIT: Duration = Duration::from_secs(600);

/// Arguments of `cargo xtask bench-compare`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which database product
    #[arg(value_parser = ["pg"])]
    product: String,
    /// Rounds of each workload; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// PostgreSQL major version of blue
    #[arg(long, default_value_t = 18)]
    source: u16,
    /// PostgreSQL major version of both greens
    #[arg(long, default_value_t = 18)]
    target: u16,
    /// Options of the native subscription beside its defaults, as in `WITH (…)`: `streaming = off`
    #[arg(long, default_value = "")]
    native_with: String,
    /// Only workloads whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Judge our tables like this, as `cdc-sync run` takes it; repeatable
    #[arg(long, value_name = "PATTERN=POLICY")]
    conflict: Vec<String>,
    /// pgbench scale of the seed (100,000 rows each)
    #[arg(long, default_value_t = 20)]
    scale: u32,
}

/// One workload: what is done on blue.
struct Workload {
    name: &'static str,
    setup: &'static str,
    work: Work,
}

enum Work {
    /// one transaction
    Sql(String),
    /// pgbench TPC-B transactions
    TpcB(u32),
}

const PGBENCH_TABLES: &str = "pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history";
/// A table of ten columns.
pub(crate) const WIDE: &str = "DROP TABLE IF EXISTS wide; CREATE TABLE wide (id bigint PRIMARY KEY, a int, b bigint, \
    c text, d text, e numeric(12,2), f timestamptz, g boolean, h double precision, i text)";
/// The row `n` of it.
pub(crate) const WIDE_ROW: &str = "n, n % 1000, n * 7, 'name ' || n, repeat('x', 40), n / 100.0, \
    '2026-01-01'::timestamptz + n * interval '1 second', n % 2 = 0, n * 1.5, 'note ' || (n % 97)";

/// Inserts the rows 1 to `rows` of it.
pub(crate) fn wide_rows(rows: u32) -> String {
    format!("INSERT INTO wide SELECT {WIDE_ROW} FROM generate_series(1, {rows}) n")
}

fn workloads() -> Vec<Workload> {
    vec![
        Workload {
            name: "tpcb-100k",
            setup: "",
            work: Work::TpcB(100_000),
        },
        Workload {
            name: "insert-1m",
            setup: "TRUNCATE wide",
            work: Work::Sql(wide_rows(1_000_000)),
        },
        Workload {
            name: "update-500k",
            setup: "",
            work: Work::Sql("UPDATE wide SET a = a + 1, c = c || '!' WHERE id <= 500000".to_owned()),
        },
        Workload {
            name: "delete-300k",
            setup: "",
            work: Work::Sql("DELETE FROM wide WHERE id > 700000".to_owned()),
        },
        Workload {
            name: "values-of-200kb",
            setup: "",
            work: Work::Sql(
                "INSERT INTO wide SELECT n, 1, 1, 'name', repeat(md5(n::text), 6250), 1, now(), true, 1, 'note' \
                 FROM generate_series(2000001, 2002000) n"
                    .to_owned(),
            ),
        },
    ]
}

/// What is on blue when it is copied.
pub(crate) struct Seed {
    pub(crate) name: String,
    fill: Fill,
    tables: String,
}

impl Seed {
    /// A blue server that has it and is at rest.
    pub(crate) fn blue(&self, major: u16, tools: &ToolsInstall) -> Result<PgCluster> {
        let blue = cluster(major)?;
        let url = blue.url("postgres");
        let source = Psql::new(tools, &url);
        match &self.fill {
            Fill::PgBench(scale) => pgbench(tools, &url, &["-i", "-q", "-s", &scale.to_string()])?,
            Fill::Sql(sql) => drop(source.run(sql)?),
        }
        source.run("VACUUM ANALYZE")?;
        source.run("CHECKPOINT")?;
        Ok(blue)
    }
}

enum Fill {
    /// pgbench's tables at a scale
    PgBench(u32),
    Sql(String),
}

/// pgbench's tables at that scale, and twenty tables of 100,000 rows.
pub(crate) fn seeds(scale: u32) -> [Seed; 2] {
    let names: Vec<String> = (1..=20).map(|number| format!("part{number}")).collect();
    let fill = names.iter().map(|name| {
        format!(
            "CREATE TABLE {name} (id bigint PRIMARY KEY, a int, b text, c timestamptz, d numeric(12,2)); \
             CREATE INDEX ON {name} (a); \
             INSERT INTO {name} SELECT n, n % 1000, 'name ' || n, now(), n / 100.0 FROM generate_series(1, 100000) n;"
        )
    });
    [
        Seed {
            name: format!("seed-{}m", scale / 10),
            fill: Fill::PgBench(scale),
            tables: PGBENCH_TABLES.to_owned(),
        },
        Seed {
            name: "seed-20-tables".to_owned(),
            fill: Fill::Sql(fill.collect()),
            tables: names.join(", "),
        },
    ]
}

/// What both sides took in one round.
struct Round {
    ours: Took,
    native: Took,
}

/// What one side took: seconds, and CPU seconds of the busiest process of each watched kind.
struct Took {
    seconds: f64,
    cpu: Vec<f64>,
}

impl Took {
    /// Times `work` and watches what the children of these processes use meanwhile.
    fn by(parents: &[u32], work: impl FnOnce() -> Result<f64>) -> Result<Took> {
        let watch = Watch::start(parents.to_vec());
        let seconds = work()?;
        let cpu = watch.busiest().iter().map(|used| used.cpu).collect();
        Ok(Took { seconds, cpu })
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let tools = postgres_tools()?;
    let binary = release_binary()?;
    println!(
        "machine: {} cores; blue {}, green {}; native {}; ours {}",
        std::thread::available_parallelism()?,
        args.source,
        args.target,
        if args.native_with.is_empty() {
            "by default"
        } else {
            &args.native_with
        },
        if args.conflict.is_empty() {
            String::from("stops at conflicts")
        } else {
            format!("under {}", args.conflict.join(" "))
        }
    );
    let mut results: Vec<(String, Vec<Round>)> = Vec::new();
    for seed in seeds(args.scale) {
        if seed.name.contains(&args.only) {
            let rounds = (0..args.rounds)
                .map(|round| seed_round(args, &tools, &binary, &seed, round))
                .collect::<Result<_>>()?;
            results.push((seed.name, rounds));
        }
    }
    let wanted: Vec<Workload> = workloads()
        .into_iter()
        .filter(|work| work.name.contains(&args.only))
        .collect();
    if !wanted.is_empty() {
        results.extend(catch_up(args, &tools, &binary, &wanted)?);
    }
    print_results(&results);
    Ok(())
}

fn print_results(results: &[(String, Vec<Round>)]) {
    println!(
        "{:<16}{:>8}{:>10}{:>8}   {:<20}{:<16}rounds (ours/native, s)",
        "workload", "ours s", "native s", "ratio", "CPU s of ours", "of native"
    );
    for (name, rounds) in results {
        let seconds = |side: fn(&Round) -> &Took| median(rounds.iter().map(|round| side(round).seconds));
        let ratio = median(rounds.iter().map(|r| r.native.seconds / r.ours.seconds));
        let raw = rounds
            .iter()
            .map(|r| format!("{:.2}/{:.2}", r.ours.seconds, r.native.seconds));
        println!(
            "{name:<16}{:>8.2}{:>10.2}{ratio:>7.2}x   {:<20}{:<16}{}",
            seconds(|round| &round.ours),
            seconds(|round| &round.native),
            cpu(rounds, |round| &round.ours),
            cpu(rounds, |round| &round.native),
            raw.collect::<Vec<_>>().join(" ")
        );
    }
    println!(
        "CPU seconds, medians: walsender/cdc-sync/green's busiest session; walsender/busiest native worker"
    );
}

/// The medians of one side's CPU seconds, process by process.
fn cpu(rounds: &[Round], side: fn(&Round) -> &Took) -> String {
    let kinds = rounds.first().map_or(0, |round| side(round).cpu.len());
    let medians = (0..kinds).map(|kind| {
        let used = median(
            rounds
                .iter()
                .filter_map(|round| side(round).cpu.get(kind).copied()),
        );
        format!("{used:.2}")
    });
    medians.collect::<Vec<_>>().join("/")
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A server as one would run it.
pub(crate) fn cluster(major: u16) -> Result<PgCluster> {
    PgCluster::builder(major)
        .durable(true)
        .setting("shared_buffers", "512MB")
        .setting("max_wal_size", "4GB")
        .setting("checkpoint_timeout", "30min")
        .start()
}

pub(crate) fn pgbench(tools: &ToolsInstall, url: &str, arguments: &[&str]) -> Result<()> {
    let output = tools
        .command("pgbench")
        .args(arguments)
        .arg(url)
        .output()
        .context("pgbench does not start")?;
    ensure!(
        output.status.success(),
        "pgbench: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Gives a follower the tables of blue.
fn copy_schema(tools: &ToolsInstall, url: &str, subscriber: &Psql<'_>) -> Result<()> {
    let schema = tools
        .command("pg_dump")
        .args(["--schema-only", "--no-publications", "-N", "cdc_sync", "-d", url])
        .output()?;
    ensure!(schema.status.success(), "pg_dump failed");
    let script = tempfile::NamedTempFile::new()?;
    std::fs::write(script.path(), &schema.stdout)?;
    subscriber.file(script.path()).context("restoring the schema")
}

fn subscribe(name: &str, blue: &PgCluster, args: &Args) -> String {
    let with = if args.native_with.is_empty() {
        String::new()
    } else {
        format!(" WITH ({})", args.native_with)
    };
    let url = blue.url("postgres");
    format!("CREATE SUBSCRIPTION {name} CONNECTION '{url}' PUBLICATION {name}{with}")
}

/// Seeds an empty green both ways: ours with schema, indexes and statistics, native into a schema that is there.
fn seed_round(
    args: &Args,
    tools: &ToolsInstall,
    binary: &std::path::Path,
    seed: &Seed,
    round: usize,
) -> Result<Round> {
    let blue = seed.blue(args.source, tools)?;
    let url = blue.url("postgres");
    let source = Psql::new(tools, &url);
    let blue_pid = pid(&blue)?;
    let before = source.content()?;
    let ours = || -> Result<Took> {
        let green = cluster(args.target)?;
        let took = Took::by(&[blue_pid, std::process::id(), pid(&green)?], || {
            follow(&args.conflict, binary, tools, [&blue, &green])
        })?;
        same(&before, &Psql::new(tools, green.url("postgres")), "cdc-sync")?;
        Ok(took)
    };
    let native = || -> Result<Took> {
        let green = cluster(args.target)?;
        let target = Psql::new(tools, green.url("postgres"));
        copy_schema(tools, &url, &target)?;
        source.run(&format!(
            "CREATE PUBLICATION seed_native FOR TABLE {}",
            seed.tables
        ))?;
        let took = Took::by(&[blue_pid, pid(&green)?], || {
            let began = Instant::now();
            target.run(&subscribe("seed_native", &blue, args))?;
            target.wait_inside(
                "NOT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate <> 'r')",
                LIMIT,
            )?;
            Ok(began.elapsed().as_secs_f64())
        })?;
        same(&before, &target, "the native subscription")?;
        target.run("DROP SUBSCRIPTION seed_native")?;
        source.run("DROP PUBLICATION seed_native")?;
        Ok(took)
    };
    let (ours, native) = if round.is_multiple_of(2) {
        let first = ours()?;
        (first, native()?)
    } else {
        let first = native()?;
        (ours()?, first)
    };
    eprintln!(
        "{} round {}: ours {:.2} s, native {:.2} s",
        seed.name,
        round + 1,
        ours.seconds,
        native.seconds
    );
    Ok(Round { ours, native })
}

/// Fails unless the follower's tables hold what blue's do, `blue` being [`Psql::content`] of them.
fn same(blue: &str, follower: &Psql<'_>, name: &str) -> Result<()> {
    ensure!(
        follower.content()? == blue,
        "the green of {name} is not as blue is"
    );
    Ok(())
}

/// The process of a server that runs, whose sessions are its children.
pub(crate) fn pid(server: &PgCluster) -> Result<u32> {
    server.pid().context("a server has ended")
}

/// Runs the workloads on one blue with two followers.
fn catch_up(
    args: &Args,
    tools: &ToolsInstall,
    binary: &std::path::Path,
    workloads: &[Workload],
) -> Result<Vec<(String, Vec<Round>)>> {
    let (blue, green, native) = (
        cluster(args.source)?,
        cluster(args.target)?,
        cluster(args.target)?,
    );
    let url = blue.url("postgres");
    pgbench(tools, &url, &["-i", "-q", "-s", "10"])?;
    let source = Psql::new(tools, &url);
    source.run("ALTER TABLE pgbench_history REPLICA IDENTITY FULL")?;
    source.run(WIDE)?;
    source.run("CREATE TABLE last_row (id bigint PRIMARY KEY)")?;
    source.run(&wide_rows(1_000_000))?;
    source.run("VACUUM ANALYZE")?;
    follow(&args.conflict, binary, tools, [&blue, &green]).context("first run of cdc-sync")?;
    let subscriber = Psql::new(tools, native.url("postgres"));
    copy_schema(tools, &url, &subscriber)?;
    source.run(&format!(
        "CREATE PUBLICATION native FOR TABLE {PGBENCH_TABLES}, wide, last_row"
    ))?;
    subscriber.run(&subscribe("native", &blue, args))?;
    subscriber.wait_inside(
        "NOT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate <> 'r')",
        LIMIT,
    )?;
    subscriber.run("ANALYZE")?;

    let mut last_row = 0_u64;
    let mut results: Vec<(String, Vec<Round>)> = workloads
        .iter()
        .map(|w| (w.name.to_owned(), Vec::new()))
        .collect();
    for round in 0..args.rounds {
        if round > 0 {
            // Back to the first round's data, outside the timing.
            source.run("TRUNCATE wide")?;
            source.run(&wide_rows(1_000_000))?;
            drain(&source, &subscriber, &mut last_row)?;
            follow(&args.conflict, binary, tools, [&blue, &green])?;
        }
        for (workload, (_, rounds)) in workloads.iter().zip(&mut results) {
            let ours = || follow(&args.conflict, binary, tools, [&blue, &green]).map(drop);
            leave_behind(&source, ours, || drain(&source, &subscriber, &mut last_row))?;
            subscriber.run("ALTER SUBSCRIPTION native DISABLE")?;
            if !workload.setup.is_empty() {
                source.run(workload.setup)?;
            }
            match &workload.work {
                Work::Sql(sql) => drop(source.run(sql)?),
                Work::TpcB(transactions) => {
                    let each = (transactions / 2).to_string();
                    pgbench(tools, &url, &["-n", "-c", "2", "-j", "2", "-t", &each])?;
                }
            }
            source.run("CHECKPOINT")?;
            last_row += 1;
            source.run(&format!("INSERT INTO last_row VALUES ({last_row})"))?;
            let run_native = || {
                Took::by(&[pid(&blue)?, pid(&native)?], || {
                    let began = Instant::now();
                    subscriber.run("ALTER SUBSCRIPTION native ENABLE")?;
                    subscriber.wait_inside(
                        &format!("EXISTS (SELECT FROM last_row WHERE id = {last_row})"),
                        LIMIT,
                    )?;
                    Ok(began.elapsed().as_secs_f64())
                })
            };
            let run_ours = || {
                Took::by(&[pid(&blue)?, std::process::id(), pid(&green)?], || {
                    follow(&args.conflict, binary, tools, [&blue, &green])
                })
            };
            let (ours, theirs) = if round.is_multiple_of(2) {
                let first = run_ours()?;
                (first, run_native()?)
            } else {
                let first = run_native()?;
                (run_ours()?, first)
            };
            eprintln!(
                "{} round {}: ours {:.2} s, native {:.2} s",
                workload.name,
                round + 1,
                ours.seconds,
                theirs.seconds
            );
            rounds.push(Round { ours, native: theirs });
        }
        let content = source.content()?;
        same(&content, &Psql::new(tools, green.url("postgres")), "cdc-sync")?;
        same(&content, &subscriber, "the native subscription")?;
    }
    Ok(results)
}

/// Brings both slots so far that neither reads an earlier transaction again. Decoding begins at a slot's `restart_lsn`, which
/// moves only when its follower has confirmed what came behind a snapshot of the running transactions; one that was taken
/// within a transaction keeps it at that transaction's begin, and a follower that has ended confirms nothing.
fn leave_behind(
    source: &Psql<'_>,
    ours: impl Fn() -> Result<()>,
    mut native: impl FnMut() -> Result<()>,
) -> Result<()> {
    const PASSES: u32 = 5;
    for _ in 0..PASSES {
        let begin = source.run("SELECT pg_current_wal_insert_lsn()")?;
        // Logs the running transactions.
        source.run("CHECKPOINT")?;
        native()?;
        ours()?;
        let behind = format!(
            "SELECT count(*) FROM pg_replication_slots WHERE restart_lsn < '{}'",
            begin.trim()
        );
        if source.run(&behind)?.trim() == "0" {
            return Ok(());
        }
    }
    bail!("after {PASSES} passes a slot would still read earlier transactions again")
}

/// Lets the native subscription apply everything written so far.
fn drain(source: &Psql<'_>, subscriber: &Psql<'_>, last_row: &mut u64) -> Result<()> {
    *last_row += 1;
    source.run(&format!("INSERT INTO last_row VALUES ({last_row})"))?;
    subscriber.wait_inside(
        &format!("EXISTS (SELECT FROM last_row WHERE id = {last_row})"),
        LIMIT,
    )
}

/// Runs cdc-sync from process start to exit, with rules for conflicts; returns the seconds.
pub(crate) fn follow(
    conflict: &[String],
    binary: &std::path::Path,
    tools: &ToolsInstall,
    [blue, green]: [&PgCluster; 2],
) -> Result<f64> {
    let began = Instant::now();
    let output = Command::new(binary)
        .args(["run", "--until-caught-up", "--yes", "--json", "--timeout", "600s"])
        .args([
            "--source",
            &blue.url("postgres"),
            "--target",
            &green.url("postgres"),
        ])
        .arg("--pg-bin")
        .arg(&tools.bin)
        .args(conflict.iter().flat_map(|rule| ["--conflict", rule]))
        .output()
        .context("cdc-sync does not start")?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(
        output.status.success(),
        "cdc-sync: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(seconds)
}
