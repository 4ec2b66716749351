//! The most memory that the binary ever holds while transactions larger than its budget pass through it.

use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use testbed::{Pair, Process};

const MIB: u64 = 1 << 20;
/// Ten times and more what the larger of the transactions takes.
const LIMIT: Duration = Duration::from_secs(1200);

/// A `run` between two servers whose budget is stated in its job file.
struct Following {
    pair: Pair,
    running: Process,
    _folder: TempDir,
}

impl Following {
    /// Starts with the table `schema` on blue, still empty, and waits for its seed.
    fn start(schema: &str, group_mb: u64) -> Self {
        let pair = Pair::start(12, 18).expect("two servers");
        pair.on_blue(schema).expect("blue has the table");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("job.toml");
        std::fs::write(&file, format!("[apply]\ngroup_mb = {group_mb}\n")).expect("a job file");
        let running = pair
            .spawn(&["run", "-c", text(&file)])
            .expect("the binary starts");
        let mut following = Self {
            pair,
            running,
            _folder: folder,
        };
        following
            .pair
            .on_blue("INSERT INTO t VALUES (0, '')")
            .expect("a row");
        following.wait_for_rows(1);
        following
    }

    /// Waits until green has this many rows.
    fn wait_for_rows(&mut self, rows: u64) {
        let deadline = Instant::now() + LIMIT;
        // The table is not there before the seed; a count of it is a scan, so it is asked for seldom.
        while self.pair.on_green("SELECT count(*) FROM t").ok() != Some(rows.to_string()) {
            let running = self.running.is_running();
            assert!(running, "the run ended\n{}", self.running.stderr());
            assert!(
                Instant::now() < deadline,
                "{rows} rows never came\n{}",
                self.running.stderr()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The most memory that the process has held, in bytes.
    fn peak(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.running.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib: u64 = line
            .and_then(|line| line.split_whitespace().nth(1))
            .and_then(|number| number.parse().ok())
            .expect("a peak in KiB");
        kib << 10
    }

    /// Applies `rows` rows that blue inserts by `script` in one transaction; returns the peak.
    fn apply(&mut self, script: &str, rows: u64) -> u64 {
        let before = self.peak();
        self.pair.on_blue(script).expect("blue commits");
        self.wait_for_rows(rows + 1);
        let peak = self.peak();
        println!("{} MiB before, {} MiB at most", before / MIB, peak / MIB);
        self.running.sigterm().expect("it is asked to stop");
        let ended = self.running.wait_timeout(LIMIT).expect("it stops");
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
        self.pair.assert_equal().expect("both compare");
        peak
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

#[test]
fn a_million_rows_in_one_transaction() {
    let mut following = Following::start("CREATE TABLE t (id bigint PRIMARY KEY, v text)", 16);
    let script = "INSERT INTO t SELECT n, repeat(md5(n::text), 6) FROM generate_series(1, 1000000) n";
    let peak = following.apply(script, 1_000_000);
    assert!(peak < (64 + 64) * MIB, "{} MiB", peak / MIB);
}

#[test]
fn rows_of_many_megabytes_in_one_transaction() {
    let mut following = Following::start("CREATE TABLE t (id bigint PRIMARY KEY, v bytea)", 16);
    let script =
        "INSERT INTO t SELECT n, decode(repeat(md5(n::text), 500000), 'hex') FROM generate_series(1, 40) n";
    let peak = following.apply(script, 40);
    assert!(peak < (64 + 64) * MIB, "{} MiB", peak / MIB);
}
