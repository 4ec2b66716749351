//! Instruction counts: what a row costs to decode and to plan, beside the fastest of the other decoders, and how that grows
//! with tables, columns and rows. They do not drift with the machine's load as times do. Needs `valgrind`.
//!
//! Each case runs once in a process of its own under callgrind, which counts only inside [`icount_measured`].

#[path = "decode_pgoutput/peers.rs"]
#[expect(dead_code, reason = "the fastest are counted")]
mod peers;

use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;

use cdc_benches::{Corpus, Totals, target};
use cdc_core::Batch;
use cdc_core::plan::{Piece, PlanMode, Planner, TxnGroup};
use cdc_core::source::Decoder;

/// Batches that are filled in turn, as they circulate between the threads of the pipeline.
const BATCHES: usize = 4;

/// What is counted.
#[derive(Clone, Copy)]
enum Work {
    Decode,
    /// The same by another published decoder
    Peer(fn(&Corpus) -> Totals),
    Plan,
}

/// A case by its name: what is counted, over which stream.
struct Case {
    name: &'static str,
    work: Work,
    corpus: fn() -> Corpus,
    /// the case of a tenth of the size, which this may cost at most twelve times
    tenth: Option<&'static str>,
}

const fn case(name: &'static str, work: Work, corpus: fn() -> Corpus, tenth: Option<&'static str>) -> Case {
    Case {
        name,
        work,
        corpus,
        tenth,
    }
}

const fn peer(name: &'static str, decode: fn(&Corpus) -> Totals, corpus: fn() -> Corpus) -> Case {
    case(name, Work::Peer(decode), corpus, None)
}

const CASES: [Case; 32] = [
    peer("elefant-client/wide", peers::elefant_client, || {
        Corpus::wide(20_000)
    }),
    peer("pgsync-postgres/wide", peers::pgsync_postgres, || {
        Corpus::wide(20_000)
    }),
    peer("elefant-client/tx", peers::elefant_client, || {
        Corpus::small_transactions(5_000)
    }),
    peer("pgsync-postgres/tx", peers::pgsync_postgres, || {
        Corpus::small_transactions(5_000)
    }),
    case("decode/narrow", Work::Decode, || Corpus::narrow(20_000), None),
    case("decode/toast", Work::Decode, || Corpus::toast(20_000), None),
    case(
        "decode/tx",
        Work::Decode,
        || Corpus::small_transactions(5_000),
        None,
    ),
    case(
        "decode/1-table",
        Work::Decode,
        || Corpus::tables(1, 10, 200),
        None,
    ),
    case(
        "decode/10-tables",
        Work::Decode,
        || Corpus::tables(10, 10, 2_000),
        Some("decode/1-table"),
    ),
    case(
        "decode/100-tables",
        Work::Decode,
        || Corpus::tables(100, 10, 20_000),
        Some("decode/10-tables"),
    ),
    case(
        "decode/1000-tables",
        Work::Decode,
        || Corpus::tables(1000, 10, 200_000),
        Some("decode/100-tables"),
    ),
    case(
        "decode/10-columns",
        Work::Decode,
        || Corpus::tables(1, 10, 2_000),
        None,
    ),
    case(
        "decode/100-columns",
        Work::Decode,
        || Corpus::tables(1, 100, 2_000),
        Some("decode/10-columns"),
    ),
    case(
        "decode/1000-columns",
        Work::Decode,
        || Corpus::tables(1, 1000, 2_000),
        Some("decode/100-columns"),
    ),
    case("decode/wide", Work::Decode, || Corpus::wide(20_000), None),
    case(
        "decode/wide-x10",
        Work::Decode,
        || Corpus::wide(200_000),
        Some("decode/wide"),
    ),
    case(
        "decode/wide-x100",
        Work::Decode,
        || Corpus::wide(2_000_000),
        Some("decode/wide-x10"),
    ),
    case(
        "decode/narrow-1m",
        Work::Decode,
        || Corpus::narrow(1_000_000),
        None,
    ),
    case(
        "decode/narrow-10m",
        Work::Decode,
        || Corpus::narrow(10_000_000),
        Some("decode/narrow-1m"),
    ),
    case("plan/narrow", Work::Plan, || Corpus::narrow(20_000), None),
    case("plan/tx", Work::Plan, || Corpus::small_transactions(5_000), None),
    case(
        "plan/tx-x10",
        Work::Plan,
        || Corpus::small_transactions(50_000),
        Some("plan/tx"),
    ),
    case("plan/1-table", Work::Plan, || Corpus::tables(1, 10, 200), None),
    case(
        "plan/10-tables",
        Work::Plan,
        || Corpus::tables(10, 10, 2_000),
        Some("plan/1-table"),
    ),
    case(
        "plan/100-tables",
        Work::Plan,
        || Corpus::tables(100, 10, 20_000),
        Some("plan/10-tables"),
    ),
    case(
        "plan/1000-tables",
        Work::Plan,
        || Corpus::tables(1000, 10, 200_000),
        Some("plan/100-tables"),
    ),
    case(
        "plan/10-columns",
        Work::Plan,
        || Corpus::tables(1, 10, 2_000),
        None,
    ),
    case(
        "plan/100-columns",
        Work::Plan,
        || Corpus::tables(1, 100, 2_000),
        Some("plan/10-columns"),
    ),
    case(
        "plan/1000-columns",
        Work::Plan,
        || Corpus::tables(1, 1000, 2_000),
        Some("plan/100-columns"),
    ),
    case("plan/wide", Work::Plan, || Corpus::wide(20_000), None),
    case(
        "plan/wide-x10",
        Work::Plan,
        || Corpus::wide(200_000),
        Some("plan/wide"),
    ),
    case(
        "plan/wide-x100",
        Work::Plan,
        || Corpus::wide(2_000_000),
        Some("plan/wide-x10"),
    ),
];

/// The only function inside which callgrind counts.
#[inline(never)]
fn icount_measured(work: &mut dyn FnMut()) {
    black_box(work)();
}

/// Does what a case counts.
fn perform(case: &Case) {
    let corpus = (case.corpus)();
    match case.work {
        Work::Decode => decode(&corpus),
        Work::Peer(decode) => icount_measured(&mut || _ = black_box(decode(&corpus))),
        Work::Plan => plan(&corpus),
    }
}

/// Into batches that are filled in turn, every value looked at, as the others do.
fn decode(corpus: &Corpus) {
    let mut decoder = corpus.decoder();
    let mut batches: [Batch; BATCHES] = Default::default();
    let (mut chunks, mut totals) = (corpus.chunks(), Totals::default());
    icount_measured(&mut || {
        for (index, chunk) in chunks.iter_mut().enumerate() {
            let batch = &mut batches[index % BATCHES];
            batch.clear();
            decoder.decode(chunk, batch).unwrap();
            totals.add_batch(batch);
        }
    });
    black_box(totals);
}

fn plan(corpus: &Corpus) {
    let mut decoder = corpus.decoder();
    let mut chunks = corpus.chunks();
    let mut batches: Vec<Batch> = chunks.iter().map(|_| Batch::new()).collect();
    for (chunk, batch) in chunks.iter_mut().zip(&mut batches) {
        decoder.decode(chunk, batch).unwrap();
    }
    let mut planner = Planner::new(target::catalog(&batches));
    let pieces = batches.into_iter().map(|batch| Piece {
        txns: 0..batch.txns().len(),
        rows: 0..batch.rows().len(),
        batch: Arc::new(batch),
    });
    let mut group = Some(TxnGroup {
        pieces: pieces.collect(),
    });
    icount_measured(&mut || {
        let group = group.take().unwrap();
        assert_eq!(
            planner.compile(group, PlanMode::Net).unwrap().applied,
            corpus.rows
        );
    });
}

/// Runs a case under callgrind; the instructions.
fn count(name: &str) -> Option<u64> {
    let program = std::env::current_exe().ok()?;
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--toggle-collect=*icount_measured*",
        ])
        .arg(program)
        .args(["--case", name])
        .output()
        .expect("valgrind counts the instructions and has to be installed");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {told}");
    let counted = told.lines().find_map(|line| line.split("Collected :").nth(1))?;
    counted.trim().parse().ok()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let wanted = arguments.iter().skip_while(|word| *word != "--case").nth(1);
    if let Some(case) = CASES
        .iter()
        .find(|case| Some(case.name) == wanted.map(String::as_str))
    {
        perform(case);
        return;
    }
    println!(
        "{:<22}{:>16}{:>12}{:>12}",
        "case", "instructions", "a row", "of a tenth"
    );
    let mut counts: Vec<(&str, u64)> = Vec::new();
    for case in &CASES {
        let counted = count(case.name).unwrap_or_else(|| panic!("valgrind counted nothing of {}", case.name));
        let rows = (case.corpus)().rows;
        let smaller = case
            .tenth
            .and_then(|tenth| counts.iter().find(|(name, _)| *name == tenth));
        let times = smaller.map(|(_, smaller)| counted as f64 / *smaller as f64);
        let shown = times.map_or_else(String::new, |times| format!("{times:.2}x"));
        println!(
            "{:<22}{counted:>16}{:>12.1}{shown:>12}",
            case.name,
            counted as f64 / rows as f64
        );
        assert!(
            times.is_none_or(|times| times <= 12.0),
            "{} costs more than twelve times a tenth of it",
            case.name
        );
        counts.push((case.name, counted));
    }
}
