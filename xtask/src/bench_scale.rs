//! `cargo xtask bench-scale pg`: how a catch-up grows with tables, columns and rows a transaction.
//!
//! Each case has new servers. Its tables are copied empty; then rows are inserted and, after that has been followed,
//! updated, each in transactions of the case's size while cdc-sync is off. A run of ours is timed from process start
//! to exit. Beside its seconds stand the CPU seconds of blue's walsender, of ours, and of green's busiest session: what is
//! as high as the seconds is the limit. Other sessions are not counted. Afterwards every table of green is compared with blue.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use testbed::postgres::PgCluster;
use testbed::provision::{ToolsInstall, postgres_tools};
use testbed::usage::{Used, Watch};

use crate::bench_compare::{WIDE, WIDE_ROW, cluster, follow, pid};
use crate::build::release_binary;
use crate::psql::Psql;

/// Arguments of `cargo xtask bench-scale`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which database product
    #[arg(value_parser = ["pg"])]
    product: String,
    /// PostgreSQL major version of both sides
    #[arg(long, default_value_t = 18)]
    major: u16,
    /// Rows of the largest transaction
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    rows: u64,
    /// Only axes whose name contains this: tables, columns, transaction
    #[arg(long, default_value = "")]
    only: String,
}

/// What grows, and how far it has.
struct Case {
    axis: &'static str,
    size: u64,
    tables: u64,
    /// of the one table or of all
    create: String,
    insert: String,
    update: &'static str,
    /// all rows
    rows: u64,
    /// rows of one transaction, which takes as many of each table
    transaction: u64,
}

/// Rows of a case of tables, and cells (of integers) of a case of columns.
const ROWS: u64 = 200_000;
const CELLS: u64 = 2_000_000;

fn cases(args: &Args) -> Vec<Case> {
    let wide = |axis, size, tables, rows, transaction| Case {
        axis,
        size,
        tables,
        create: format!("{WIDE}; {}; DROP TABLE wide", copies_of_wide(tables)),
        insert: format!("INSERT INTO filled SELECT {WIDE_ROW} FROM generate_series($1, $2) n"),
        update: "UPDATE filled SET a = a + 1 WHERE id BETWEEN $1 AND $2",
        rows: rows / transaction * transaction,
        transaction,
    };
    let mut cases = Vec::new();
    for tables in [1, 10, 100, 1_000] {
        cases.push(wide("tables", tables, tables, ROWS, 1_000));
    }
    for columns in [10, 100, 1_000] {
        let names: Vec<String> = (1..columns).map(|column| format!("c{column} int")).collect();
        let values: Vec<String> = (1..columns).map(|column| format!("n % {column}")).collect();
        cases.push(Case {
            axis: "columns",
            size: columns,
            tables: 1,
            create: format!(
                "CREATE TABLE filled1 (id bigint PRIMARY KEY, {})",
                names.join(", ")
            ),
            insert: format!(
                "INSERT INTO filled SELECT n, {} FROM generate_series($1, $2) n",
                values.join(", ")
            ),
            update: "UPDATE filled SET c1 = c1 + 1 WHERE id BETWEEN $1 AND $2",
            rows: CELLS / columns,
            transaction: 1_000,
        });
    }
    // The same rows in transactions of a thousand and in one; fewer in between, where time is all that they would take.
    let sizes = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000];
    let between = (args.rows / 10).max(1_000);
    for size in sizes.into_iter().filter(|size| *size <= between) {
        let rows = match size {
            1 | 10 => (between / 10).max(size),
            1_000 => args.rows,
            _ => between,
        };
        cases.push(wide("transaction", size, 1, rows, size));
    }
    cases.push(wide("transaction", args.rows, 1, args.rows, args.rows));
    cases
}

fn copies_of_wide(tables: u64) -> String {
    format!(
        "DO $$ BEGIN FOR number IN 1..{tables} LOOP \
         EXECUTE format('CREATE TABLE filled%s (LIKE wide INCLUDING ALL)', number); END LOOP; END $$"
    )
}

impl Case {
    /// A statement over `filled` and the rows `$1` to `$2`, for every table in turn, a transaction after the other.
    fn script(&self, statement: &str) -> String {
        let (tables, each) = (self.tables, self.transaction / self.tables);
        let transactions = self.rows / self.transaction;
        format!(
            "DO $do$ BEGIN FOR tx IN 0..{transactions} - 1 LOOP FOR number IN 1..{tables} LOOP \
             EXECUTE replace($q${statement}$q$, 'filled', 'filled' || number) \
             USING tx::bigint * {each} + 1, (tx + 1)::bigint * {each}; \
             END LOOP; COMMIT; END LOOP; END $do$"
        )
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let bench = Bench {
        major: args.major,
        tools: postgres_tools()?,
        binary: release_binary()?,
    };
    println!(
        "machine: {} cores; {} to {}",
        std::thread::available_parallelism()?,
        args.major,
        args.major
    );
    println!(
        "{:<12}{:>9}{:>10}  {:<7}{:>8}{:>10}{:>11}{:>7}{:>9}{:>10}",
        "", "", "rows", "", "s", "rows/s", "walsender", "ours", "session", "peak MiB"
    );
    for case in cases(args) {
        if case.axis.contains(&args.only) {
            bench
                .case(&case)
                .with_context(|| format!("{} {}", case.axis, case.size))?;
        }
    }
    Ok(())
}

struct Bench {
    major: u16,
    tools: ToolsInstall,
    binary: PathBuf,
}

impl Bench {
    fn case(&self, case: &Case) -> Result<()> {
        let (blue, green) = (cluster(self.major)?, cluster(self.major)?);
        let psql = |server: &PgCluster| Psql::new(&self.tools, server.url("postgres"));
        let source = psql(&blue);
        source.run(&case.create)?;
        self.timed(case, "copied", 0, [&blue, &green])?;
        for (what, statement) in [("insert", case.insert.as_str()), ("update", case.update)] {
            source.run(&case.script(statement))?;
            source.run("CHECKPOINT")?;
            self.timed(case, what, case.rows, [&blue, &green])?;
            ensure!(
                source.content()? == psql(&green).content()?,
                "green is not as blue is after {what}"
            );
        }
        Ok(())
    }

    /// A run of ours, and what it took.
    fn timed(&self, case: &Case, what: &str, rows: u64, [blue, green]: [&PgCluster; 2]) -> Result<()> {
        let watch = Watch::start(vec![pid(blue)?, std::process::id(), pid(green)?]);
        let seconds = follow(&[], &self.binary, &self.tools, [blue, green])?;
        let used = watch.busiest();
        // Both servers are children as well, but hardly work by themselves.
        let [walsender, ours, session]: [Used; 3] = used
            .try_into()
            .map_err(|_| anyhow::anyhow!("the watch has lost a process"))?;
        println!(
            "{:<12}{:>9}{rows:>10}  {what:<7}{seconds:>8.2}{:>10.0}{:>11.2}{:>7.2}{:>9.2}{:>10}",
            case.axis,
            case.size,
            rows as f64 / seconds,
            walsender.cpu,
            ours.cpu,
            session.cpu,
            ours.peak >> 20
        );
        Ok(())
    }
}
