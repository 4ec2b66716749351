//! The most memory that the binary ever holds while transactions larger than its budget pass through it.

use std::time::{Duration, Instant};

use tempfile::TempDir;
use testbed::postgres::PgCluster;
use testbed::{Pair, Process};

const MIB: u64 = 1 << 20;
/// What the process holds beside its budget: program, connections, threads and the records of a plan. An idle one has
/// 9 MiB; twice as much and some room for what the allocator keeps is more than any of these needs.
const PROCESS: u64 = 32 * MIB;
/// What many small pieces leave unused between them: in 30 runs on a crowded machine, where a chunk had from one row to a few
/// hundred and never more than 47 MiB of the budget were used, the peak was from 75 to 102 MiB, whether or not batches were
/// kept to be filled again. The whole transaction would be 240 MiB and more.
const BETWEEN: u64 = 24 * MIB;
/// How many copies of the largest row there are at most outside of the budget: it is let in whole when the budget has
/// any room left (1), and lies in a buffer that grows by doubling (2), in a batch before its chunk is given up (1), as a
/// parameter (1), and in the buffer of the connection to the target, which doubles, too (2). What the allocator keeps of
/// what was given back comes on top: 170 MiB in all were measured on a quiet machine and 226 on a crowded one, where seven
/// copies would be 208 (3).
const COPIES: u64 = 10;
/// Ten times and more what the larger of the transactions takes.
const LIMIT: Duration = Duration::from_secs(1200);

/// Memory that grows no more for this long is full: what is not noticed of a slower growth would only make a failing
/// test pass.
const STANDSTILL: Duration = Duration::from_secs(2);

/// A `run` between two servers whose budget is stated in its job file.
struct Following {
    pair: Pair,
    running: Process,
    _folder: TempDir,
}

impl Following {
    /// Starts with a blue of this version, the table `schema` and a row in it, and waits for its seed. The budget is four times
    /// `group_mb`.
    fn start(blue: u16, schema: &str, group_mb: u64, group_rows: u64) -> Self {
        let pair = Pair::start(blue, 18).expect("two servers");
        pair.on_blue(schema).expect("blue has the table");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("job.toml");
        let limits = format!("[apply]\ngroup_mb = {group_mb}\ngroup_rows = {group_rows}\n");
        std::fs::write(&file, limits).expect("a job file");
        pair.on_blue("INSERT INTO t VALUES (0, '')")
            .expect("blue has a row");
        let file = file.to_str().expect("a path that is text");
        let running = pair.spawn(&["run", "-c", file]).expect("the binary starts");
        let mut following = Self {
            pair,
            running,
            _folder: folder,
        };
        // Before its key is built, a held table would hold up the seed.
        following.wait_for("SELECT NOT schema_pending FROM cdc_sync.stream");
        following
    }

    /// Waits until green answers with true.
    fn wait_for(&mut self, query: &str) {
        let deadline = Instant::now() + LIMIT;
        // There is nothing to ask for before the seed.
        while self.pair.on_green(query).ok().as_deref() != Some("t") {
            let running = self.running.is_running();
            assert!(running, "the run ended\n{}", self.running.stderr());
            let stderr = self.running.stderr();
            assert!(Instant::now() < deadline, "{query}\n{stderr}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The most memory that the process has held, in bytes.
    fn peak(&self) -> u64 {
        testbed::usage::peak(self.running.pid()).expect("it runs")
    }

    /// Applies the rows 1 to `rows` that blue inserts by `script` in one transaction, of which green takes nothing before
    /// as much as may be under way is; returns the peak.
    fn apply(&mut self, script: &str, rows: u64) -> u64 {
        let write = |blue: &PgCluster| drop(blue.sql(Pair::DATABASE, script).expect("blue commits"));
        self.apply_from(write, &format!("SELECT EXISTS (SELECT FROM t WHERE id = {rows})"))
    }

    /// The same of rows that are written in some other way, and all there when green answers `arrived` with true.
    fn apply_from(&mut self, write: impl FnOnce(&PgCluster), arrived: &str) -> u64 {
        let idle = self.peak();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let url = self.pair.green.url(Pair::DATABASE);
            let connected = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
            let (holder, connection) = connected.expect("green answers");
            tokio::spawn(connection);
            let hold = holder.batch_execute("BEGIN; LOCK TABLE t IN SHARE MODE");
            hold.await.expect("writes are held");
            write(&self.pair.blue);
            self.wait_until_filled(idle);
            holder.batch_execute("COMMIT").await.expect("writes go on");
        });
        self.wait_for(arrived);
        let peak = self.peak();
        println!("{} MiB idle, {} MiB at most", idle / MIB, peak / MIB);
        self.running.sigterm().expect("it is asked to stop");
        let ended = self.running.wait_timeout(LIMIT).expect("it stops");
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
        let digest = "SELECT count(*), md5(string_agg(md5(id || ' ' || md5(v)), '' ORDER BY id)) FROM t";
        let [blue, green] = [&self.pair.blue, &self.pair.green]
            .map(|cluster| cluster.sql(Pair::DATABASE, digest).expect("a digest"));
        assert_eq!(blue, green);
        peak
    }

    /// Waits until the memory has grown well over `idle`, and does not grow any more.
    fn wait_until_filled(&mut self, idle: u64) {
        let deadline = Instant::now() + LIMIT;
        let (mut peak, mut since) = (self.peak(), Instant::now());
        while peak < idle + 16 * MIB || since.elapsed() < STANDSTILL {
            assert!(
                Instant::now() < deadline,
                "the memory does not stand still at {peak}"
            );
            std::thread::sleep(Duration::from_millis(20));
            if self.peak() > peak {
                (peak, since) = (self.peak(), Instant::now());
            }
        }
    }
}

const MILLION: &str = "INSERT INTO t SELECT n, repeat(md5(n::text), 6) FROM generate_series(1, 1000000) n";

#[test]
fn a_million_rows_in_one_transaction() {
    let mut following = Following::start(12, "CREATE TABLE t (id bigint PRIMARY KEY, v text)", 16, 50_000);
    let peak = following.apply(MILLION, 1_000_000);
    assert!(peak < 64 * MIB + PROCESS + BETWEEN, "{} MiB", peak / MIB);
}

#[test]
fn a_million_rows_that_come_while_their_transaction_runs() {
    let mut following = Following::start(18, "CREATE TABLE t (id bigint PRIMARY KEY, v text)", 16, 50_000);
    let peak = following.apply(MILLION, 1_000_000);
    assert!(peak < 64 * MIB + PROCESS + BETWEEN, "{} MiB", peak / MIB);
    let streamed = "SELECT bool_or(stream_txns > 0) FROM pg_stat_replication_slots";
    assert_eq!(following.pair.on_blue(streamed).expect("blue answers"), "t");
}

#[test]
fn ten_million_rows_in_one_transaction() {
    if !testbed::runs_long_tier() {
        return;
    }
    let mut following = Following::start(12, "CREATE TABLE t (id bigint PRIMARY KEY, v text)", 64, 400_000);
    let script = "INSERT INTO t SELECT n, repeat(md5(n::text), 6) FROM generate_series(1, 10000000) n";
    let peak = following.apply(script, 10_000_000);
    assert!(peak < 512 * MIB, "{} MiB", peak / MIB);
}

/// 8 MB each, 16 MB as text.
const LARGE: &str =
    "INSERT INTO t SELECT n, decode(repeat(md5(n::text), 500000), 'hex') FROM generate_series(1, 40) n";

#[test]
fn rows_of_many_megabytes_in_one_transaction() {
    let mut following = Following::start(12, "CREATE TABLE t (id bigint PRIMARY KEY, v bytea)", 16, 50_000);
    let peak = following.apply(LARGE, 40);
    assert!(peak < (64 + COPIES * 16) * MIB + PROCESS, "{} MiB", peak / MIB);
}

/// Each of these rows in a transaction of its own, which all run until blue has sent what it cannot keep of them.
fn written_side_by_side(blue: &PgCluster, rows: u64) {
    let row = |n: u64| {
        let sql = |script: &str| blue.sql(Pair::DATABASE, script).expect("blue answers");
        sql(&format!(
            "BEGIN; INSERT INTO t SELECT {n}, decode(repeat(md5('{n}'), 500000), 'hex');
             DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM t WHERE id = -1) LOOP PERFORM pg_sleep(0.1); END LOOP; END $$;
             COMMIT"
        ))
    };
    std::thread::scope(|scope| {
        for n in 1..=rows {
            scope.spawn(move || row(n));
        }
        // It keeps 64 MB, and these have 8 MB each.
        let most_are_sent = format!(
            "SELECT coalesce(sum(stream_txns), 0) >= {} FROM pg_stat_replication_slots",
            rows - 10
        );
        let deadline = Instant::now() + LIMIT;
        let mut sent = Ok(String::new());
        while sent.as_deref().is_ok_and(|sent| sent != "t") && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
            sent = blue.sql(Pair::DATABASE, &most_are_sent);
        }
        // In any case, since this waits for those who wait for it.
        let let_go = blue.sql(Pair::DATABASE, "INSERT INTO t VALUES (-1, '')");
        assert_eq!(
            sent.expect("blue answers"),
            "t",
            "blue does not send what still runs"
        );
        let_go.expect("blue has the row");
    });
}

#[test]
fn rows_of_many_megabytes_that_come_while_their_transactions_run() {
    // What blue keeps of a transaction is counted as it is in its log, where these would be small if they were compressed.
    let schema = "CREATE TABLE t (id bigint PRIMARY KEY, v bytea STORAGE EXTERNAL)";
    let mut following = Following::start(18, schema, 16, 50_000);
    let peak = following.apply_from(
        |blue| written_side_by_side(blue, 40),
        "SELECT count(*) = 40 FROM t WHERE id > 0",
    );
    // Two more: what was read and is being set aside, and what the lane reads again of the one that goes ahead.
    let copies = COPIES + 2;
    assert!(peak < (64 + copies * 16) * MIB + PROCESS, "{} MiB", peak / MIB);
}
