//! A database on each of the shared servers, and the account of what was written to it since its slot was made.

use std::process::Command;
use std::time::{Duration, Instant};

use testbed::pair::LIMIT;
use testbed::provision::postgres_tools;
use testbed::workload::{Config, Fill, Workload, prepare};
use testbed::{Process, compare, process};

use super::{finish, servers};

/// Between two looks at a server. Each is a psql of its own: with several lanes, looking more often is most of the work.
pub(crate) const POLL: Duration = Duration::from_millis(200);

/// Small: what is tried here is not volume.
const FILL: Fill = Fill {
    orders: 40,
    pgbench_scale: None,
};

pub(crate) struct Lane {
    pub(crate) database: String,
    /// changes that blue's log holds after the slot's first position
    written: u64,
    loads: u64,
}

impl Lane {
    pub(crate) fn new(database: &str) -> Lane {
        servers().blue.create_database(database).expect("blue has it");
        servers().green.create_database(database).expect("green has it");
        prepare(&servers().blue.url(database), FILL).expect("blue is filled");
        Lane {
            database: database.to_owned(),
            written: 0,
            loads: 0,
        }
    }

    pub(crate) fn on_blue(&self, sql: &str) -> String {
        servers().blue.sql(&self.database, sql).expect("blue answers")
    }

    pub(crate) fn on_green(&self, sql: &str) -> String {
        servers().green.sql(&self.database, sql).expect("green answers")
    }

    /// A verb of the shipped binary.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let shipped = process::cdc_sync().expect("the binary");
        self.between(
            shipped,
            arguments,
            [servers().blue.port(), servers().green.port()],
        )
    }

    /// A verb by other ports of blue and green.
    pub(crate) fn between(&self, mut binary: Command, arguments: &[&str], ports: [u16; 2]) -> Command {
        let [blue, green] = ports;
        binary.args(arguments).args(["--yes", "--json"]);
        binary
            .arg("--source")
            .arg(servers().blue.url_at(blue, &self.database));
        binary
            .arg("--target")
            .arg(servers().green.url_at(green, &self.database));
        if arguments.first() == Some(&"run") {
            binary
                .arg("--pg-bin")
                .arg(postgres_tools().expect("the tools").bin);
        }
        binary
    }

    /// A verb of the binary with failpoints.
    pub(crate) fn armed(&self, arguments: &[&str], failpoints: &str) -> Command {
        let binary = process::cdc_sync_with_failpoints().expect("the binary with failpoints");
        let mut command = self.between(binary, arguments, [servers().blue.port(), servers().green.port()]);
        command.env("CDC_SYNC_FAILPOINTS", failpoints);
        command
    }

    /// Writes to blue until the load is settled with [`Lane::book`] or dropped.
    pub(crate) fn load(&mut self) -> Workload {
        self.loads += 1;
        let config = Config {
            seed: self.loads,
            threads: 1,
            rate: 60.0,
            ..Config::default()
        };
        Workload::start(&servers().blue.url(&self.database), &config).expect("the workload starts")
    }

    /// Ends a load that began after the slot was made: all of it is to come through the stream.
    pub(crate) fn book(&mut self, load: Workload) {
        self.written += load.stop().expect("the workload kept count").changes();
    }

    /// Counts what a test has written by itself.
    pub(crate) fn wrote(&mut self, changes: u64) {
        self.written += changes;
    }

    /// Whether the first checkpoint is stored.
    pub(crate) fn has_checkpoint(&self) -> bool {
        let table = "SELECT to_regclass('cdc_sync.checkpoint') IS NOT NULL";
        self.on_green(table) == "t" && self.on_green("SELECT count(*) FROM cdc_sync.checkpoint") == "1"
    }

    /// Starts a load as soon as the stream begins; `None` when `running` ends without.
    pub(crate) fn load_from_checkpoint(&mut self, running: &mut Process) -> Option<Workload> {
        let deadline = Instant::now() + LIMIT;
        loop {
            // In this order: what it stored before it ended counts.
            let runs = running.is_running();
            if self.has_checkpoint() {
                return Some(self.load());
            }
            if !runs {
                return None;
            }
            assert!(Instant::now() < deadline, "no checkpoint\n{}", running.stderr());
            std::thread::sleep(POLL);
        }
    }

    /// Brings green up to blue and asserts that it has the same rows, that all that was written was read and came to
    /// one end, and that nothing is left over.
    pub(crate) fn assert_whole(&self, what: &str) {
        self.assert_run(what, &finish(self.command(&["run", "--until-caught-up"]), 0));
    }

    /// The same after the run that brought green up to blue.
    pub(crate) fn assert_run(&self, what: &str, run: &serde_json::Value) {
        let count = |key: &str| run["changes"][key].as_u64().expect(key);
        let ends = ["applied", "loop", "filtered", "superseded", "dead_lettered"];
        assert_eq!(
            count("read"),
            ends.map(count).iter().sum::<u64>(),
            "{what}: {run}"
        );
        assert_eq!(count("read"), self.written, "{what}: read against written: {run}");
        let [blue, green] = [&servers().blue, &servers().green].map(|cluster| cluster.url(&self.database));
        let differences = compare::databases(&blue, &green).expect("both compare");
        assert!(differences.is_empty(), "{what}: {}", differences[0]);
        let verified = finish(self.command(&["verify"]), 0);
        assert_eq!(verified["differences"], 0, "{what}: {verified}");
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
        assert_eq!(self.on_blue(slots), "1", "{what}: slots");
        assert_eq!(self.on_blue("SELECT count(*) FROM pg_publication"), "1", "{what}");
        assert_eq!(
            self.on_green("SELECT count(*) FROM cdc_sync.slot_intent"),
            "0",
            "{what}"
        );
        assert_eq!(
            self.on_green("SELECT bool_or(schema_pending) FROM cdc_sync.stream"),
            "f",
            "{what}"
        );
    }

    /// Takes the job and green's tables away.
    pub(crate) fn clear(&mut self) {
        finish(self.command(&["cleanup"]), 0);
        self.expect_cleaned();
        self.on_green("SET client_min_messages = warning; DROP SCHEMA shop, \"Odd Names\" CASCADE");
        self.written = 0;
    }

    /// Ends the job and drops both databases.
    pub(crate) fn remove(&self) {
        finish(self.command(&["cleanup"]), 0);
        for server in [&servers().blue, &servers().green] {
            let drop = format!("DROP DATABASE \"{}\"", self.database);
            server.sql("postgres", &drop).expect("nobody is connected");
        }
    }

    /// Asserts that nothing of a job is left on either side.
    pub(crate) fn expect_cleaned(&self) {
        let left = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) \
                    + (SELECT count(*) FROM pg_publication) \
                    + (SELECT count(*) FROM pg_namespace WHERE nspname = 'cdc_sync')";
        assert_eq!(self.on_blue(left), "0", "left on blue");
        assert_eq!(self.on_green(left), "0", "left on green");
    }
}

/// A job file without heartbeats: with them there is always something to apply.
pub(crate) fn quiet() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a job file");
    std::fs::write(file.path(), "[heartbeat]\ninterval = \"0s\"\n").expect("a job file");
    file
}
