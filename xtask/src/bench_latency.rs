//! `cargo xtask bench-latency pg`: how long a row that is committed on blue takes until it is committed on green, through
//! cdc-sync and through the native subscription, at given rates of one-row transactions.
//!
//! Both ends are told to one process, so that there is one clock: the writer notes when blue has answered its commit, and a
//! trigger on green notifies, which the server does at the commit. All followers have the same trigger; one runs at a time,
//! and which goes first alternates. The clock that paces the writers ticks once a millisecond: above 1,000 a second, rows come
//! in twos.

use std::future::poll_fn;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::postgres::{PgCluster, connect};
use testbed::provision::postgres_tools;
use testbed::{Process, Proxy};
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::bench_compare::cluster;
use crate::build::{floor, release_binary};

/// Longest wait for a follower to have everything.
const LIMIT: Duration = Duration::from_secs(120);
/// Connections that write.
const WRITERS: u64 = 8;
const TABLE: &str = "CREATE TABLE lag (id bigint PRIMARY KEY)";
const NOTIFY: &str = "CREATE FUNCTION lag_notify() RETURNS trigger LANGUAGE plpgsql AS \
    $$ BEGIN PERFORM pg_notify('lag', NEW.id::text); RETURN NULL; END $$; \
    CREATE TRIGGER lag AFTER INSERT ON lag FOR EACH ROW EXECUTE FUNCTION lag_notify(); \
    ALTER TABLE lag ENABLE ALWAYS TRIGGER lag";

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
    for side in &sides {
        side.green.sql("postgres", NOTIFY)?;
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
                let urls = [&blue, &side.green].map(|cluster| cluster.url("postgres"));
                let count = rate * args.seconds;
                let lags = runtime.block_on(measure(&urls, *rate, count, &mut next))?;
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
async fn measure([blue, green]: &[String; 2], rate: u64, count: u64, next: &mut u64) -> Result<Vec<f64>> {
    let mut arrivals = listen(green).await?;
    let warm = *next;
    *next += 1;
    connect(blue)
        .await?
        .batch_execute(&format!("INSERT INTO lag VALUES ({warm})"))
        .await?;
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        let arrived = tokio::time::timeout_at(deadline, arrivals.recv()).await;
        let (id, _) = arrived
            .context("the first row does not arrive")?
            .context("green is gone")?;
        if id == warm {
            break;
        }
    }
    let begin = tokio::time::Instant::now() + Duration::from_millis(500);
    let first = *next;
    *next += count;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let client = connect(blue).await?;
        writers.spawn(async move {
            let insert = client.prepare("INSERT INTO lag VALUES ($1)").await?;
            let mut committed = Vec::new();
            for number in (writer..count).step_by(WRITERS as usize) {
                tokio::time::sleep_until(begin + Duration::from_nanos(1_000_000_000 / rate * number)).await;
                client.execute(&insert, &[&((first + number) as i64)]).await?;
                committed.push((number, Instant::now()));
            }
            Ok::<_, anyhow::Error>(committed)
        });
    }
    let mut committed = vec![None; count as usize];
    let mut seen = vec![None; count as usize];
    let deadline = begin + Duration::from_secs(count / rate) + LIMIT;
    let arriving = async {
        for _ in 0..count {
            let arrival = tokio::time::timeout_at(deadline, arrivals.recv()).await;
            let (id, at) = arrival.context("rows do not arrive")?.context("green is gone")?;
            let place = id.checked_sub(first).context("an older row arrives")?;
            if let Some(seen) = seen.get_mut(place as usize) {
                *seen = Some(at);
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    let writing = async {
        while let Some(written) = writers.join_next().await {
            for (number, at) in written?? {
                if let Some(committed) = committed.get_mut(number as usize) {
                    *committed = Some(at);
                }
            }
        }
        Ok(())
    };
    tokio::try_join!(arriving, writing)?;
    let both = committed.into_iter().zip(seen);
    let lags = both.map(|(committed, seen)| {
        let (committed, seen): (Instant, Instant) = (committed?, seen?);
        Some(match seen.checked_duration_since(committed) {
            Some(lag) => lag.as_secs_f64() * 1e3,
            // It was there before blue's answer.
            None => -committed.duration_since(seen).as_secs_f64() * 1e3,
        })
    });
    lags.collect::<Option<Vec<f64>>>().context("a row was lost")
}

/// The numbers of the rows that are committed on green, with the time at which it says so.
async fn listen(green: &str) -> Result<mpsc::UnboundedReceiver<(u64, Instant)>> {
    let (client, mut connection) = tokio_postgres::connect(green, NoTls).await?;
    let (told, arrivals) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            let at = Instant::now();
            if let AsyncMessage::Notification(notification) = message
                && let Ok(id) = notification.payload().parse()
                && told.send((id, at)).is_err()
            {
                break;
            }
        }
    });
    client.batch_execute("LISTEN lag").await?;
    // The connection ends when nobody has its client any more.
    tokio::spawn(async move {
        let _client = client;
        std::future::pending::<()>().await;
    });
    Ok(arrivals)
}
