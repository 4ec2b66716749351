//! Death at each named failpoint, and an error at each that can have one.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use testbed::pair::LIMIT;
use testbed::{Process, process};

use super::lane::{Lane, quiet};
use super::{finish, report, servers};

/// When a point is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// before the first checkpoint: what is written until then comes with the seed
    Preparing,
    /// in a first run, after its first checkpoint
    Seeding,
    /// when a seed that was cut short is taken up again
    SeedingAgain,
    /// while a stream is followed
    Following,
    /// at the end of a run that catches up
    CatchingUp,
    /// while nothing of the job comes through the stream
    Idle,
    /// in `cleanup`
    CleaningUp,
}

use When::{CatchingUp, CleaningUp, Following, Idle, Preparing, Seeding, SeedingAgain};

/// Each failpoint, how often it is passed before it is met, and when.
const POINTS: &[(&str, u32, When)] = &[
    ("state.created", 0, Preparing),
    ("fence.locked", 0, Preparing),
    ("fence.raised", 0, Preparing),
    ("schema.begun", 0, Preparing),
    ("schema.before-commit", 0, Preparing),
    ("schema.created", 0, Preparing),
    ("source.tables-created", 0, Preparing),
    ("publication.created", 0, Preparing),
    ("slot.intended", 0, Preparing),
    ("slot.created", 0, Preparing),
    ("checkpoint.before-first", 0, Preparing),
    ("checkpoint.first", 0, Seeding),
    ("seed.table-begun", 2, Seeding),
    ("seed.part-opened", 0, Seeding),
    ("seed.mid-copy", 3, Seeding),
    ("seed.part-before-commit", 1, Seeding),
    ("seed.part-committed", 1, Seeding),
    ("seed.before-live", 1, Seeding),
    ("seed.table-live", 2, Seeding),
    ("snapshot.taken-again", 0, SeedingAgain),
    ("indexes.one-built", 2, Seeding),
    ("indexes.built", 0, Seeding),
    ("statistics.gathered", 0, Seeding),
    ("foreign-keys.one-added", 1, Seeding),
    ("foreign-keys.added", 0, Seeding),
    ("schema.finished", 0, Seeding),
    ("fence.raised", 0, Following),
    ("stream.started", 0, Following),
    ("heartbeat.written", 0, Following),
    ("sink.begun", 1, Following),
    ("sink.mid-apply", 2, Following),
    ("sink.applied", 2, Following),
    ("sink.before-commit", 3, Following),
    ("sink.sent", 3, Following),
    ("sink.committed", 2, Following),
    ("confirm.before", 2, Following),
    ("confirm.sent", 2, Following),
    ("marker.written", 0, CatchingUp),
    ("sequences.one-set", 1, CatchingUp),
    ("sequences.set", 0, CatchingUp),
    ("idle.before-store", 0, Idle),
    ("idle.stored", 0, Idle),
    ("cleanup.slot-dropped", 0, CleaningUp),
    ("cleanup.one-dropped", 1, CleaningUp),
    ("cleanup.side-done", 0, CleaningUp),
    ("cleanup.side-done", 1, CleaningUp),
];

/// Those of `resync`, which `tests/resync` tries.
const BESIDE: &str = "beside.";
/// Those of what is applied ahead of its commit, which `tests/crash` tries: an old server sends nothing so early.
const AHEAD: &str = "ahead.";

/// Databases that are worked on at the same time: most of the time is waiting.
const LANES: usize = 4;

#[test]
fn a_death_at_any_failpoint_loses_nothing_and_repeats_nothing() {
    let of = |wanted: &[When]| -> Vec<(&str, u32, When)> {
        POINTS
            .iter()
            .copied()
            .filter(|(_, _, when)| wanted.contains(when))
            .collect()
    };
    // Each seed serves a point of the stream and one of the cleanup as well.
    let seeds = Mutex::new(of(&[Preparing, Seeding, SeedingAgain]));
    let streams = Mutex::new(of(&[Following, CatchingUp, Idle]));
    let cleanups = Mutex::new(of(&[CleaningUp]));
    let next = |of: &Mutex<Vec<_>>| of.lock().expect("no other lane failed").pop();
    std::thread::scope(|scope| {
        for number in 0..LANES {
            let (seeds, streams, cleanups, next) = (&seeds, &streams, &cleanups, &next);
            scope.spawn(move || {
                let mut lane = Lane::new(&format!("lane_{number}"));
                while let Some(seed) = next(seeds) {
                    seed_dies(&mut lane, seed);
                    if let Some(stream) = next(streams) {
                        stream_dies(&mut lane, stream);
                    }
                    if let Some(cleanup) = next(cleanups) {
                        cleanup_dies(&lane, cleanup);
                    }
                    lane.clear();
                }
            });
        }
    });
    assert!(
        streams.into_inner().expect("no lane failed").is_empty(),
        "more streams than seeds"
    );
    assert!(
        cleanups.into_inner().expect("no lane failed").is_empty(),
        "more cleanups than seeds"
    );
}

fn kill((name, passes, _): (&str, u32, When)) -> String {
    format!("{name}={passes}*off->kill")
}

/// Waits until it has died of the signal that nothing catches.
pub(crate) fn expect_death(running: &mut Process, what: &str) {
    let ended = running.wait_timeout(LIMIT).expect("it dies");
    assert_eq!(
        ended.status.signal(),
        Some(9),
        "it did not die at {what}\n{}\n{}",
        ended.stdout,
        ended.stderr
    );
}

fn seed_dies(lane: &mut Lane, point: (&str, u32, When)) {
    let (name, _, when) = point;
    let first = match when {
        SeedingAgain => "seed.table-begun=kill".to_owned(),
        _ => kill(point),
    };
    let uncounted = (when == Preparing).then(|| lane.load());
    let mut running = Process::spawn(lane.armed(&["run"], &first)).expect("run starts");
    if let Some(load) = uncounted {
        expect_death(&mut running, name);
        load.stop().expect("the load ends");
        assert!(
            !lane.has_checkpoint(),
            "{name} is passed before the first checkpoint"
        );
    } else {
        let load = lane.load_from_checkpoint(&mut running);
        expect_death(&mut running, name);
        lane.book(load.expect("a checkpoint was stored"));
    }
    if when == SeedingAgain {
        let mut again = Process::spawn(lane.armed(&["run"], &kill(point))).expect("run starts");
        expect_death(&mut again, name);
    }
    lane.assert_whole(name);
}

fn stream_dies(lane: &mut Lane, point: (&str, u32, When)) {
    let (name, _, when) = point;
    let arguments: &[&str] = match when {
        CatchingUp => &["run", "--until-caught-up"],
        _ => &["run"],
    };
    let mut command = lane.armed(arguments, &kill(point));
    let quiet = quiet();
    if when == Idle {
        command.arg("-c").arg(quiet.path());
    }
    let mut running = Process::spawn(command).expect("run starts");
    if when == Idle {
        while running.is_running() {
            // Of another database: on an old server a transaction without changes comes through the stream as well.
            servers()
                .blue
                .sql("postgres", "SELECT txid_current()")
                .expect("the log grows");
            std::thread::sleep(Duration::from_millis(200));
        }
        expect_death(&mut running, name);
    } else {
        let load = lane.load();
        expect_death(&mut running, name);
        lane.book(load);
    }
    lane.assert_whole(name);
}

fn cleanup_dies(lane: &Lane, point: (&str, u32, When)) {
    let mut running = Process::spawn(lane.armed(&["cleanup"], &kill(point))).expect("cleanup starts");
    expect_death(&mut running, point.0);
    finish(lane.command(&["cleanup"]), 0);
    lane.expect_cleaned();
    let again = finish(lane.command(&["cleanup"]), 0);
    assert_eq!(again["nothing_to_do"], true, "{again}");
}

/// One run meets an error at every point that can have one, and comes through all of them.
#[test]
fn an_error_at_any_failpoint_is_waited_out() {
    let fallible = marked_in_code().into_iter().filter(|(_, fallible)| *fallible);
    let elsewhere = ["snapshot.", "idle.", "confirm.", BESIDE, AHEAD];
    let names: Vec<String> = fallible
        .map(|(name, _)| name)
        .filter(|name| !elsewhere.iter().any(|begin| name.starts_with(begin)))
        .collect();
    let armed: Vec<String> = names.iter().map(|name| format!("{name}=error")).collect();
    let mut lane = Lane::new("errors");
    let mut running =
        Process::spawn(lane.armed(&["run", "--until-caught-up"], &armed.join(","))).expect("run starts");
    let load = lane
        .load_from_checkpoint(&mut running)
        .expect("a checkpoint is stored");
    let run = report_said(running, &names);
    assert_eq!(run["caught_up"], true, "{run}");
    // By themselves: a session that another error ends confirms once more, which nobody would hear of.
    let confirming = ["confirm.before", "confirm.sent"];
    let armed = confirming.map(|name| format!("{name}=error")).join(",");
    let mut running = Process::spawn(lane.armed(&["run"], &armed)).expect("run starts");
    for name in confirming {
        let said = format!("error=failpoint {name}");
        running.wait_for(&said, LIMIT).expect("the error is told");
    }
    running.sigterm().expect("the signal arrives");
    report(running, 0);
    lane.book(load);
    lane.assert_whole("errors");
}

/// The report of a run that was successful, and told of each of these errors.
fn report_said(mut running: Process, names: &[String]) -> serde_json::Value {
    running.wait_timeout(LIMIT).expect("it ends");
    let said = running.stderr();
    let silent: Vec<&String> = names
        .iter()
        .filter(|name| !said.contains(&format!("failpoint {name}")))
        .collect();
    assert!(silent.is_empty(), "never met: {silent:?}\n{said}");
    report(running, 0)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The names in `failpoint!(…)` of the shipped crates, and whether they can fail.
fn marked_in_code() -> BTreeSet<(String, bool)> {
    let mut found = BTreeSet::new();
    for package in ["cdc-core", "cdc-postgres", "cdc-sync"] {
        read_marks(&root().join(package).join("src"), &mut found);
    }
    found
}

fn read_marks(folder: &Path, found: &mut BTreeSet<(String, bool)>) {
    for entry in std::fs::read_dir(folder).expect("a source folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read_marks(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            for mark in text.split("failpoint!(\"").skip(1) {
                let (name, rest) = mark.split_once('"').expect("a name ends");
                found.insert((name.to_owned(), rest.starts_with(", error")));
            }
        }
    }
}

#[test]
fn code_tests_and_documentation_have_the_same_failpoints() {
    let code = marked_in_code();
    let tried: BTreeSet<String> = POINTS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let names = code.iter().map(|(name, _)| name.clone());
    let names: BTreeSet<String> = names
        .filter(|name| ![BESIDE, AHEAD].iter().any(|begin| name.starts_with(begin)))
        .collect();
    assert_eq!(names, tried, "code against test");
    assert!(names.len() >= 25, "{}", names.len());
    let docs = std::fs::read_to_string(root().join("docs/testing.md")).expect("docs/testing.md");
    let listed: BTreeSet<(String, bool)> = docs
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let name = cells.next()?.strip_suffix('`')?;
            let fallible = match cells.next()? {
                "death, error" => true,
                "death" => false,
                // A row of another table.
                _ => return None,
            };
            Some((name.to_owned(), fallible))
        })
        .collect();
    assert_eq!(code, listed, "code against docs/testing.md");
}

#[test]
fn the_shipped_binary_has_no_failpoints() {
    let holds = |binary: &Path, text: &str| {
        let bytes = std::fs::read(binary).expect("a binary");
        String::from_utf8_lossy(&bytes).contains(text)
    };
    let shipped = process::binary("CDC_SYNC_BIN").expect("the shipped binary");
    let armed = process::binary("CDC_SYNC_FAILPOINTS_BIN").expect("the binary with failpoints");
    for text in [
        "CDC_SYNC_FAILPOINTS",
        "checkpoint.before-first",
        "cleanup.one-dropped",
    ] {
        assert!(holds(&armed, text), "{text}: this would find it");
        assert!(!holds(&shipped, text), "{text} is in the shipped binary");
    }
}
