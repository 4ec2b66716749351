//! `cargo xtask bench-latency pg`: how long a row that is committed on blue takes until it is committed on green, through
//! cdc-sync and through the native subscription, at given rates of one-row transactions.
//!
//! The writer notes when blue has answered its commit; when green committed is read from green's log afterwards
//! (`pg_waldump`), where each commit has its time: nothing watches green meanwhile, and its table is as any other. Both times
//! are of the machine's clock. One follower runs at a time, and which goes first alternates. The clock that paces the writers
//! ticks once a millisecond: above 1,000 a second, rows come in twos.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use testbed::postgres::{PgCluster, connect};
use testbed::provision::{ToolsInstall, postgres_tools};
use testbed::{Process, Proxy};
use tokio_postgres::Client;

use crate::bench_compare::cluster;
use crate::build::{floor, release_binary};

/// Longest wait for a follower to have everything.
const LIMIT: Duration = Duration::from_secs(120);
/// Connections that write.
const WRITERS: u64 = 8;
const TABLE: &str = "CREATE TABLE lag (id bigint PRIMARY KEY)";

/// Arguments of `cargo xtask bench-latency`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which database product
    #[arg(value_parser = ["pg"])]
    product: String,
    /// Transactions a second
    #[arg(long, value_delimiter = ',', default_values_t = [100, 500, 2000], value_parser = clap::value_parser!(u64).range(1..))]
    rates: Vec<u64>,
    /// How long each follower is measured at each rate, in each round
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Rounds at each rate
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Another build of cdc-sync, to compare with
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Milliseconds, each way, between cdc-sync and green, as if green were on another machine
    #[arg(long, default_value_t = 0)]
    delay: u64,
    /// Measure a process that does no more than hand on what it reads as well
    #[arg(long, conflicts_with = "delay")]
    floor: bool,
}

/// Who follows blue.
enum Follower {
    Ours(Box<dyn Fn() -> Command>),
    Native,
    /// The least that a process beside the servers does
    Floor(Box<dyn Fn() -> Command>),
}

struct Side {
    name: &'static str,
    follower: Follower,
    green: PgCluster,
    running: Option<Process>,
}

impl Side {
    fn start(&mut self) -> Result<()> {
        match &self.follower {
            Follower::Ours(command) => self.running = Some(Process::spawn(command())?),
            Follower::Floor(command) => {
                let mut floor = Process::spawn(command())?;
                floor.wait_for("ready", LIMIT)?;
                self.running = Some(floor);
            }
            Follower::Native => drop(self.green.sql("postgres", "ALTER SUBSCRIPTION native ENABLE")?),
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        match self.running.take() {
            Some(mut running) => {
                running.sigterm()?;
                let ended = running.wait_timeout(LIMIT)?;
                let left = ended.code() == Some(0) || matches!(self.follower, Follower::Floor(_));
                ensure!(left, "{}: {}", self.name, ended.stderr);
            }
            None => drop(self.green.sql("postgres", "ALTER SUBSCRIPTION native DISABLE")?),
        }
        Ok(())
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let tools = postgres_tools()?;
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => release_binary()?,
    };
    let (blue, ours, native) = (cluster(18)?, cluster(18)?, cluster(18)?);
    blue.sql("postgres", TABLE)?;
    let far = Proxy::start(ours.port())?;
    far.delay(Duration::from_millis(args.delay));
    let port = if args.delay == 0 { ours.port() } else { far.port() };
    let (source, target, bin) = (
        blue.url("postgres"),
        ours.url_at(port, "postgres"),
        tools.bin.clone(),
    );
    let command = move || {
        let mut command = Command::new(&binary);
        command.args(["run", "--yes", "--source", &source, "--target", &target]);
        command.arg("--pg-bin").arg(&bin);
        command
    };
    let mut first = command();
    first.arg("--until-caught-up");
    let seeded = Process::run(first, LIMIT)?;
    ensure!(seeded.code() == Some(0), "cdc-sync: {}", seeded.stderr);
    native.sql("postgres", TABLE)?;
    blue.sql("postgres", "CREATE PUBLICATION native FOR TABLE lag")?;
    let subscribe = format!(
        "CREATE SUBSCRIPTION native CONNECTION '{}' PUBLICATION native WITH (enabled = false)",
        blue.url("postgres")
    );
    native.sql("postgres", &subscribe)?;
    let side = |name, follower, green| Side {
        name,
        follower,
        green,
        running: None,
    };
    let mut sides = vec![
        side("ours", Follower::Ours(Box::new(command)), ours),
        side("native", Follower::Native, native),
    ];
    if args.floor {
        let green = cluster(18)?;
        green.sql("postgres", TABLE)?;
        let (binary, urls) = (floor()?, [&blue, &green].map(|cluster| cluster.url("postgres")));
        let command = move || {
            let mut command = Command::new(&binary);
            command.args(&urls);
            command
        };
        sides.push(side("floor", Follower::Floor(Box::new(command)), green));
    }
    println!(
        "machine: {} cores; 18 to 18; {} s a round; cdc-sync and green {} ms apart",
        std::thread::available_parallelism()?,
        args.seconds,
        args.delay
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut next = 1;
    for rate in &args.rates {
        for round in 0..args.rounds {
            let mut told = vec![String::new(); sides.len()];
            for turn in 0..sides.len() {
                let place = (round + turn) % sides.len();
                let (Some(side), Some(told)) = (sides.get_mut(place), told.get_mut(place)) else {
                    continue;
                };
                side.start()?;
                let count = rate * args.seconds;
                let blue = blue.url("postgres");
                let lags = runtime.block_on(measure(&tools, &blue, &side.green, *rate, count, &mut next));
                let lags = lags.with_context(|| side.name)?;
                *told = format!("{} {}", side.name, describe(lags));
                side.stop()?;
            }
            println!("{rate:>6}/s round {}: {}", round + 1, told.join(" · "));
        }
    }
    Ok(())
}

fn describe(mut lags: Vec<f64>) -> String {
    lags.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (lags.len() as f64 * share) as usize;
        lags.get(place.min(lags.len().saturating_sub(1)))
            .copied()
            .unwrap_or(f64::NAN)
    };
    let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
    format!("p50 {p50:.2} p99 {p99:.2} max {max:.2} ms")
}

/// The lags of `count` rows from number `next` on, in milliseconds, after the follower has all that is older.
async fn measure(
    tools: &ToolsInstall,
    blue: &str,
    green: &PgCluster,
    rate: u64,
    count: u64,
    next: &mut u64,
) -> Result<Vec<f64>> {
    let watch = connect(&green.url("postgres")).await?;
    let warm = *next;
    connect(blue)
        .await?
        .batch_execute(&format!("INSERT INTO lag VALUES ({warm})"))
        .await?;
    arrived(&watch, warm, 1).await?;
    let from = green.sql("postgres", "SELECT pg_current_wal_insert_lsn()")?;
    let first = warm + 1;
    *next = first + count;
    let begin = tokio::time::Instant::now() + Duration::from_millis(500);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let client = connect(blue).await?;
        writers.spawn(async move {
            let insert = client.prepare("INSERT INTO lag VALUES ($1)").await?;
            let mut committed = Vec::new();
            for number in (writer..count).step_by(WRITERS as usize) {
                tokio::time::sleep_until(begin + Duration::from_nanos(1_000_000_000 / rate * number)).await;
                client.execute(&insert, &[&((first + number) as i64)]).await?;
                let at = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
                committed.push((first + number, at as i64));
            }
            Ok::<_, anyhow::Error>(committed)
        });
    }
    let mut on_blue = Vec::new();
    while let Some(written) = writers.join_next().await {
        on_blue.extend(written??);
    }
    arrived(&watch, first, count).await?;
    let on_green = commits(tools, green, from.trim(), &watch, first).await?;
    let lags = on_blue.iter().map(|(row, committed)| {
        let seen = on_green.get(row)?;
        Some((seen - committed) as f64 / 1e3)
    });
    let lags: Option<Vec<f64>> = lags.collect();
    lags.with_context(|| format!("green's log has commits of {} rows of {count}", on_green.len()))
}

/// Waits until green has `count` rows from number `first` on.
async fn arrived(green: &Client, first: u64, count: u64) -> Result<()> {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        let row = green
            .query_one("SELECT count(*) FROM lag WHERE id >= $1", &[&(first as i64)])
            .await?;
        if row.get::<_, i64>(0) == count as i64 {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < deadline, "rows do not arrive");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// When the rows from number `first` on were committed there, in microseconds since 1970, by its log from `from` on.
async fn commits(
    tools: &ToolsInstall,
    green: &PgCluster,
    from: &str,
    watch: &Client,
    first: u64,
) -> Result<HashMap<u64, i64>> {
    // A commit that waits for the disk has everything before it there, too; one that wrote nothing does not wait.
    let durable = "SELECT pg_logical_emit_message(true, 'bench', '')";
    green.sql("postgres", durable)?;
    let end = green.sql("postgres", "SELECT pg_current_wal_flush_lsn()")?;
    let mut dump = tools.command("pg_waldump");
    dump.env("TZ", "UTC")
        .arg("--path")
        .arg(green.data_dir().join("pg_wal"));
    dump.args(["--rmgr", "Transaction", "--start", from, "--end", end.trim()]);
    let dump = Process::run(dump, LIMIT)?;
    ensure!(dump.code() == Some(0), "pg_waldump: {}", dump.stderr);
    let (xids, times): (Vec<i64>, Vec<&str>) = dump.stdout.lines().filter_map(commit).unzip();
    let joined = "SELECT id, (extract(epoch FROM at) * 1000000)::bigint \
         FROM lag JOIN unnest($1::bigint[], $2::text[]::timestamptz[]) commit (xid, at) ON xid = lag.xmin::text::bigint \
         WHERE id >= $3";
    let rows = watch.query(joined, &[&xids, &times, &(first as i64)]).await?;
    Ok(rows
        .iter()
        .map(|row| (row.get::<_, i64>(0) as u64, row.get(1)))
        .collect())
}

/// Transaction and time of a commit, from a line of `pg_waldump`: `… tx: 766, lsn: …, desc: COMMIT 2026-01-01 … UTC; origin: …`.
fn commit(line: &str) -> Option<(i64, &str)> {
    let (head, time) = line.split_once("desc: COMMIT ")?;
    let xid = head.split_once("tx:")?.1.split(',').next()?;
    Some((xid.trim().parse().ok()?, time.split(';').next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_told_from_other_lines() {
        let line = "rmgr: Transaction len (rec/tot):     65/    65, tx:        766, lsn: 0/01A2B3C8, prev 0/01A2B390, \
                    desc: COMMIT 2026-11-23 07:05:11.123456 UTC; origin: node 1, lsn 0/0, at 2026-11-23 07:05:11.1 UTC";
        assert_eq!(commit(line), Some((766, "2026-11-23 07:05:11.123456 UTC")));
        let abort = line.replace("COMMIT", "ABORT");
        assert_eq!(commit(&abort), None);
    }
}
