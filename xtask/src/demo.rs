//! `cargo xtask demo`: PostgreSQL 12 to 18 under load, with the real binary, from nothing.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use testbed::postgres::PgCluster;
use testbed::provision::{ToolsInstall, postgres_tools};
use testbed::workload::{Config, Fill, Workload, prepare};

use crate::build::release_binary;
use crate::probe::{Lag, Probe};
use crate::psql::Psql;

const DATABASE: &str = "postgres";
const PGBENCH_SCALE: u32 = 10;
const ORDERS: u32 = 20_000;
const RATE: f64 = 500.0;
/// How long each follower is measured.
const MEASURE: Duration = Duration::from_secs(20);
/// Longest time any step may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Leave both servers running and print what to try next
    #[arg(long)]
    keep: bool,
    /// PostgreSQL major version of blue
    #[arg(long, default_value_t = 12)]
    source: u16,
    /// PostgreSQL major version of green
    #[arg(long, default_value_t = 18)]
    target: u16,
}

/// What the demo found, step by step.
#[derive(Default)]
struct Report {
    seed: Value,
    lag: Option<Lag>,
    native_lag: Option<Lag>,
    native_durable_lag: Option<Lag>,
    drained: Value,
    under_load: Value,
    at_rest: Value,
    generated_changes: u64,
    transactions: u64,
    rows: u64,
    seconds: f64,
}

/// Both servers and the program between them.
struct Demo {
    args: Args,
    tools: ToolsInstall,
    binary: PathBuf,
    blue: PgCluster,
    green: PgCluster,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let tools = postgres_tools()?;
    let binary = release_binary()?;
    let began = Instant::now();
    step(&format!(
        "starting PostgreSQL {} (blue) and {} (green)",
        args.source, args.target
    ));
    let demo = Demo {
        blue: PgCluster::builder(args.source).durable(true).start()?,
        green: PgCluster::builder(args.target).durable(true).start()?,
        tools,
        binary,
        args,
    };
    let mut report = demo.play()?;
    report.seconds = began.elapsed().as_secs_f64();
    let sound = report.print(demo.args.json)?;
    if demo.args.keep {
        demo.leave()?;
    }
    ensure!(
        sound,
        "the demo found differences or changes that are not accounted for"
    );
    Ok(())
}

fn step(what: &str) {
    eprintln!("\n== {what}");
}

impl Demo {
    fn play(&self) -> Result<Report> {
        let mut report = Report::default();
        let (blue_url, green_url) = (self.blue.url(DATABASE), self.green.url(DATABASE));
        step(&format!(
            "filling blue: pgbench scale {PGBENCH_SCALE} and a schema of mixed types"
        ));
        prepare(
            &blue_url,
            Fill {
                orders: ORDERS,
                pgbench_scale: Some(PGBENCH_SCALE),
            },
        )?;
        let blue = Psql::new(&self.tools, &blue_url);
        blue.run("CREATE TABLE public.lag_probe (id bigint PRIMARY KEY)")?;

        step("cdc-sync check");
        let check = self.verb(&["check"])?;
        eprintln!("   {}", check["counts"]);

        // The account of changes is exact from the slot's creation on, so writing begins right after it.
        step("cdc-sync run: seed and follow, with writes from the moment the slot exists");
        let mut running = self.spawn_run()?;
        let green = Psql::new(&self.tools, &green_url);
        wait_until("the first checkpoint", || {
            ended_early(&mut running)?;
            Ok(
                green.run("SELECT to_regclass('cdc_sync.checkpoint') IS NOT NULL")? == "t"
                    && green.run("SELECT count(*) FROM cdc_sync.checkpoint")? == "1",
            )
        })?;
        let workload = Workload::start(
            &blue_url,
            &Config {
                rate: RATE,
                threads: 4,
                pgbench_scale: Some(PGBENCH_SCALE),
                // A table truncated while it is compared cannot be compared: its old rows are gone at once.
                truncate: false,
                ..Config::default()
            },
        )?;
        wait_until("synced", || {
            ended_early(&mut running)?;
            let status = self.verb(&["status"])?;
            Ok(status["state"] == "synced")
        })?;

        step(&format!(
            "lag of cdc-sync over {} s at {RATE} transactions a second",
            MEASURE.as_secs()
        ));
        let probe = Probe::new(&blue_url)?;
        report.lag = Some(probe.measure(&green_url, MEASURE)?);
        step("cdc-sync verify: every row, both directions, while blue is written");
        report.under_load = self.verb(&["verify"])?;
        eprintln!("   differences {}", report.under_load["differences"]);
        step("SIGTERM, then cdc-sync run --until-caught-up: drain to a marker, advance sequences");
        report.seed = stop(running)?["seed"].clone();
        report.drained = self.verb(&["run", "--until-caught-up"])?;

        step("lag of the native subscription, same blue, same load");
        let (native, durable) = self.native_lag(&blue, &probe)?;
        (report.native_lag, report.native_durable_lag) = (Some(native), Some(durable));

        step("end of writing: drain and verify at rest");
        let totals = workload.stop()?;
        report.generated_changes = totals.changes() + probe.written();
        report.transactions = totals.transactions;
        report.drained["final"] = self.verb(&["run", "--until-caught-up"])?;
        report.at_rest = self.verb(&["verify"])?;
        report.rows = report.at_rest["tables"].as_array().map_or(0, |tables| {
            tables
                .iter()
                .filter_map(|table| table["source_rows"].as_u64())
                .sum()
        });
        Ok(report)
    }

    fn arguments(&self, command: &mut Command) {
        command
            .args([
                "--yes",
                "--source",
                &self.blue.url(DATABASE),
                "--target",
                &self.green.url(DATABASE),
            ])
            .stdin(Stdio::null());
    }

    /// Runs a verb to its end and returns its JSON; any exit code but 0 and 5 ends the demo.
    fn verb(&self, verb: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.binary);
        command.args(verb).arg("--json");
        if verb[0] == "run" {
            command.arg("--pg-bin").arg(&self.tools.bin);
        }
        self.arguments(&mut command);
        let output = command.output().context("cdc-sync does not start")?;
        let code = output.status.code();
        ensure!(
            code == Some(0)
                || (verb[0] == "verify" && code == Some(5))
                || (verb[0] == "status" && code == Some(2)),
            "cdc-sync {} ended with {:?}\n{}{}",
            verb.join(" "),
            code,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("the JSON of cdc-sync {}", verb.join(" ")))
    }

    /// Starts a run that follows; its progress goes to our terminal.
    fn spawn_run(&self) -> Result<Following> {
        let mut command = Command::new(&self.binary);
        command
            .args(["run", "--json"])
            .arg("--pg-bin")
            .arg(&self.tools.bin);
        self.arguments(&mut command);
        let child = command
            .stdout(Stdio::piped())
            .spawn()
            .context("cdc-sync does not start")?;
        Ok(Following(Some(child)))
    }

    /// The lag of a subscription as it is by default, which does not wait for its commits to be durable, and of one
    /// that does, as cdc-sync.
    fn native_lag(&self, blue: &Psql<'_>, probe: &Probe) -> Result<(Lag, Lag)> {
        let subscriber = PgCluster::builder(self.args.target).durable(true).start()?;
        let native = Psql::new(&self.tools, subscriber.url(DATABASE));
        let schema = self
            .tools
            .command("pg_dump")
            .args([
                "--schema-only",
                "--no-publications",
                "-N",
                "cdc_sync",
                "-d",
                &self.blue.url(DATABASE),
            ])
            .output()?;
        ensure!(
            schema.status.success(),
            "pg_dump: {}",
            String::from_utf8_lossy(&schema.stderr)
        );
        let script = tempfile::NamedTempFile::new()?;
        std::fs::write(script.path(), &schema.stdout)?;
        native.file(script.path())?;
        let tables = blue.run(
            "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') FROM pg_tables \
             WHERE schemaname NOT IN ('pg_catalog', 'information_schema', 'cdc_sync') \
             AND (SELECT relkind FROM pg_class WHERE oid = format('%I.%I', schemaname, tablename)::regclass) = 'r'",
        )?;
        blue.run(&format!("CREATE PUBLICATION demo_native FOR TABLE {tables}"))?;
        native.run(&format!(
            "CREATE SUBSCRIPTION demo_native CONNECTION '{}' PUBLICATION demo_native WITH (streaming = off)",
            self.blue.url(DATABASE)
        ))?;
        native.wait_inside(
            "NOT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate <> 'r')",
            LIMIT,
        )?;
        let lag = probe.measure(&subscriber.url(DATABASE), MEASURE)?;
        native.run("ALTER SUBSCRIPTION demo_native SET (synchronous_commit = on)")?;
        let durable = probe.measure(&subscriber.url(DATABASE), MEASURE)?;
        native.run("DROP SUBSCRIPTION demo_native")?;
        blue.run("DROP PUBLICATION demo_native")?;
        Ok((lag, durable))
    }

    fn leave(self) -> Result<()> {
        let (blue, green) = (self.blue.url(DATABASE), self.green.url(DATABASE));
        let blue_left = self.blue.leave_running()?;
        let green_left = self.green.leave_running()?;
        eprintln!(
            "\nBoth servers are running:\n  export CDC_SYNC_SOURCE_URL={blue}\n  export CDC_SYNC_TARGET_URL={green}"
        );
        eprintln!("Try next:");
        for verb in ["status", "tail --limit 5", "run", "verify", "cleanup"] {
            eprintln!("  {} {verb}", self.binary.display());
        }
        for left in [blue_left, green_left] {
            eprintln!(
                "To stop one: kill -INT {}, then rm -r {}",
                left.pid,
                left.folder.display()
            );
        }
        Ok(())
    }
}

/// A run that follows; it does not outlive a demo that fails.
struct Following(Option<Child>);

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // One that has ended already is what we want.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn ended_early(running: &mut Following) -> Result<()> {
    let Some(child) = &mut running.0 else {
        return Ok(());
    };
    match child.try_wait()? {
        None => Ok(()),
        Some(status) => bail!("cdc-sync run ended early with {status}"),
    }
}

/// Asks a run to stop in an orderly way and returns its JSON.
fn stop(mut running: Following) -> Result<Value> {
    let running = running.0.take().context("the run was stopped before")?;
    let pid = running.id().to_string();
    ensure!(
        Command::new("kill").args(["-TERM", &pid]).status()?.success(),
        "kill failed"
    );
    let output = running.wait_with_output()?;
    ensure!(
        output.status.success(),
        "cdc-sync run ended with {} after SIGTERM",
        output.status
    );
    serde_json::from_slice(&output.stdout).context("the JSON of cdc-sync run")
}

fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !condition()? {
        ensure!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

impl Report {
    /// Prints the result; whether it is sound.
    fn print(&self, as_json: bool) -> Result<bool> {
        let last = &self.drained["final"];
        let changes = &last["changes"];
        let count = |key: &str| changes[key].as_u64().unwrap_or(0);
        let outcomes: u64 = ["applied", "loop", "filtered", "superseded", "dead_lettered"]
            .map(count)
            .iter()
            .sum();
        let differences = self.under_load["differences"]
            .as_u64()
            .zip(self.at_rest["differences"].as_u64());
        let differences = differences.map(|(a, b)| a + b);
        let accounted = count("read") == outcomes && count("read") == self.generated_changes;
        let sound = differences == Some(0) && accounted;
        if as_json {
            let report = json!({
                "version": 1, "kind": "demo", "rows": self.rows, "transactions": self.transactions,
                "generated_changes": self.generated_changes, "seed": self.seed, "changes": changes,
                "lag_ms": self.lag, "native_lag_ms": self.native_lag,
                "native_durable_lag_ms": self.native_durable_lag, "differences": differences,
                "accounted": accounted, "sequences": last["sequences"], "seconds": self.seconds,
            });
            println!("{}", serde_json::to_string_pretty(&report)?);
            return Ok(sound);
        }
        let megabytes = self.seed["bytes"].as_f64().unwrap_or(0.0) / 1e6;
        println!("\n{:<34}{}", "rows compared", self.rows);
        println!(
            "{:<34}{} rows, {megabytes:.0} MB in {:.1} s",
            "seed",
            self.seed["rows"],
            self.seed["seconds"].as_f64().unwrap_or(0.0)
        );
        println!("{:<34}{}", "transactions written meanwhile", self.transactions);
        println!(
            "{:<34}{} written, {} read, {} accounted for",
            "row changes",
            self.generated_changes,
            count("read"),
            outcomes
        );
        for (name, lag) in [
            ("lag of cdc-sync", &self.lag),
            ("lag of the native subscription", &self.native_lag),
            ("the same with durable commits", &self.native_durable_lag),
        ] {
            if let Some(lag) = lag {
                println!("{name:<34}p50 {:.1} ms, p99 {:.1} ms", lag.p50, lag.p99);
            }
        }
        println!(
            "{:<34}{}",
            "sequences advanced",
            last["sequences"].as_array().map_or(0, Vec::len)
        );
        println!("{:<34}{:.0} s", "time", self.seconds);
        println!(
            "{:<34}{}",
            "differences",
            differences.map_or("unknown".into(), |n| n.to_string())
        );
        Ok(sound)
    }
}
