//! Instruction counts: what a row costs to decode and to plan, and how that grows with tables, columns and rows. They do
//! not drift with the machine's load as times do. Needs `valgrind`.
//!
//! Each case runs once in a process of its own under callgrind, which counts only inside [`icount_measured`].

use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;

use cdc_benches::{Corpus, target};
use cdc_core::Batch;
use cdc_core::plan::{Piece, PlanMode, Planner, TxnGroup};
use cdc_core::source::Decoder;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Decode,
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

const CASES: [Case; 26] = [
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
    let mut decoder = corpus.decoder();
    let mut chunks = corpus.chunks();
    let mut batches: Vec<Batch> = chunks.iter().map(|_| Batch::new()).collect();
    let mut decode = || {
        for (chunk, batch) in chunks.iter_mut().zip(&mut batches) {
            decoder.decode(chunk, batch).unwrap();
        }
    };
    if case.work == Work::Decode {
        icount_measured(&mut decode);
        return;
    }
    decode();
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
        .ok()?;
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
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("icount: install valgrind for instruction counts");
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
