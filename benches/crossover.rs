//! From how many rows a net set costs less than a statement for each row, for `cargo xtask bench-crossover`: the sink applies
//! groups of so many inserts, updates or deletes of one table to a real server, planned as net sets and in order, alternating.
//!
//! `cdc-crossover GREEN ROUNDS` prints microseconds a row, the median of the rounds, in a target transaction a group: begun,
//! applied and committed, or all at once where so few rows are a set then. Nothing waits for the target's disk.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_core::model::{ChangeCounts, Identity, TableRole};
use cdc_core::plan::{ApplyPlan, Piece, PlanMode, Planner, TargetCatalog, TxnGroup};
use cdc_core::{
    Batch, Checkpoint, ColumnSchema, CommitOutcome, DataType, Engine, Op, Position, Sink, SourceIdentity,
    TableName, TableSchema, TableSelection, TxnId, TxnRecord,
};
use cdc_postgres::PgEngine;
use cdc_postgres::text::{PG_TEXT, TextReader};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const TIMEOUT: Duration = Duration::from_secs(60);
const STREAM: &str = "crossover";
/// Rows of a group.
const SIZES: [usize; 11] = [4, 8, 16, 32, 33, 48, 64, 128, 256, 1_000, 10_000];
/// A group committed at once has at most so many changes.
const AT_ONCE: usize = 256;
/// Its sets begin with so many.
const AT_ONCE_FROM: usize = 33;
/// Rows that each time is taken over, about.
const ROWS: usize = 20_000;
const COLUMNS: [&str; 6] = ["id", "number", "amount", "at", "name", "note"];
const OPERATIONS: [(Op, &str); 3] = [
    (Op::Insert, "insert"),
    (Op::Update, "update"),
    (Op::Delete, "delete"),
];
const FORMS: [PlanMode; 2] = [PlanMode::Net, PlanMode::Ordered];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [green, rounds] = arguments.as_slice() else {
        return Err("cdc-crossover GREEN ROUNDS".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(green, rounds.parse()?))
}

async fn measure(green: &str, rounds: usize) -> Result<()> {
    let site = PgEngine.connect(green, TIMEOUT).await?;
    site.prepare_state().await?;
    let fence = site.take_fence(STREAM, TIMEOUT).await?;
    site.start_stream(fence.epoch(), &checkpoint(0), &[], false)
        .await?;
    let tables = site.target_tables(&TableSelection::default()).await?;
    let mut bench = Bench {
        sink: site.sink(STREAM, fence.epoch()).await?,
        planner: Planner::new(Arc::new(TargetCatalog::new(tables))),
        table: table(),
        groups: 0,
        next: 0,
    };
    println!("microseconds a row: net sets / in order = how many times the cost");
    for at_once in [false, true] {
        println!(
            "{}",
            if at_once {
                "committed at once"
            } else {
                "begun, applied, committed"
            }
        );
        for size in SIZES {
            if at_once && !(AT_ONCE_FROM..=AT_ONCE).contains(&size) {
                continue;
            }
            let mut times: [[Vec<f64>; 2]; 3] = Default::default();
            for round in 0..rounds {
                for turn in 0..FORMS.len() {
                    let form = (round + turn) % FORMS.len();
                    let taken = bench.groups_of(size, FORMS[form], at_once).await?;
                    for (times, taken) in times.iter_mut().zip(taken) {
                        times[form].push(taken);
                    }
                }
            }
            let told = times
                .iter_mut()
                .zip(OPERATIONS)
                .map(|([net, ordered], (_, name))| {
                    let (net, ordered) = (median(net), median(ordered));
                    format!("{name} {net:6.1} / {ordered:6.1} = {:4.2}", ordered / net)
                });
            println!("{size:>6} rows: {}", told.collect::<Vec<String>>().join(" · "));
        }
    }
    Ok(())
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

struct Bench {
    sink: Box<dyn Sink>,
    planner: Planner,
    table: Arc<TableSchema>,
    /// groups committed
    groups: u64,
    /// the next key
    next: usize,
}

impl Bench {
    /// Inserts rows in groups of `size`, updates and deletes them; microseconds a row of each.
    async fn groups_of(&mut self, size: usize, form: PlanMode, at_once: bool) -> Result<[f64; 3]> {
        let groups = (ROWS / size).clamp(3, 1_000);
        let first = self.next;
        self.next += groups * size;
        let mut taken = [0.0; 3];
        for ((op, _), taken) in OPERATIONS.into_iter().zip(&mut taken) {
            let mut spent = Duration::ZERO;
            for number in 0..groups {
                let group = group(&self.table, op, first + number * size, size)?;
                let plan = self.planner.compile(group, form)?;
                let began = Instant::now();
                self.apply(&plan, at_once).await?;
                spent += began.elapsed();
            }
            *taken = spent.as_secs_f64() * 1e6 / (groups * size) as f64;
        }
        Ok(taken)
    }

    async fn apply(&mut self, plan: &ApplyPlan, at_once: bool) -> Result<()> {
        self.groups += 1;
        let checkpoint = checkpoint(self.groups);
        let outcome = if at_once {
            self.sink.apply_at_once(plan, &checkpoint, true).await?
        } else {
            self.sink.begin().await?;
            self.sink.apply(plan).await?;
            Some(self.sink.commit_soon(&checkpoint).await?)
        };
        if outcome != Some(CommitOutcome::Done) {
            return Err(format!("group {} was not committed: {outcome:?}", self.groups).into());
        }
        Ok(())
    }
}

fn checkpoint(groups: u64) -> Checkpoint {
    Checkpoint {
        stream: STREAM.into(),
        source: SourceIdentity {
            system: "1".into(),
            database: "bench".into(),
            timeline: "1".into(),
            slot: "none".into(),
        },
        position: Position::new(format!("0/{groups:X}")),
        commit_time_micros: 0,
        groups,
        transactions: groups,
        changes: ChangeCounts::default(),
    }
}

/// `public.crossover`, whose first column is its key.
fn table() -> Arc<TableSchema> {
    let column = |name: &&str| ColumnSchema {
        name: (*name).to_owned(),
        data_type: DataType::Text,
        declared: Box::default(),
        encoding: PG_TEXT,
        identity: *name == "id",
    };
    Arc::new(TableSchema {
        name: TableName::new("public", "crossover"),
        columns: COLUMNS.iter().map(column).collect(),
        identity: Identity::Key,
        role: TableRole::User,
        reader: Arc::new(TextReader),
    })
}

/// One transaction of changes to `rows` rows, in no order of their keys.
fn group(table: &Arc<TableSchema>, op: Op, first: usize, rows: usize) -> Result<TxnGroup> {
    let mut batch = Batch::new();
    let number = batch.add_table(table)?;
    batch.begin(TxnRecord::new(TxnId::new(b"1")?));
    let version = if op == Op::Insert { 1 } else { 2 };
    for place in 0..rows {
        let mut image = batch.image();
        // No size has the factor 7, so that every place comes once.
        let id = (first + place * 7 % rows).to_string();
        image.bytes(id.as_bytes())?;
        if op == Op::Delete {
            for _ in 1..COLUMNS.len() {
                image.absent();
            }
        } else {
            image.bytes((version * 1_000).to_string().as_bytes())?;
            image.bytes(format!("{version}.25").as_bytes())?;
            image.bytes(b"2026-11-21 10:00:00+00")?;
            image.bytes(format!("customer {id}").as_bytes())?;
            image.bytes(b"what was said of it when it was last looked at")?;
        }
        let image = image.finish();
        match op {
            Op::Delete => batch.push(op, number, Some(image), false, None),
            _ => batch.push(op, number, None, false, Some(image)),
        }
    }
    let rows = 0..batch.rows().len();
    let piece = Piece {
        batch: Arc::new(batch),
        txns: 0..1,
        rows,
    };
    Ok(TxnGroup { pieces: vec![piece] })
}
