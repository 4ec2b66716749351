//! The life of a job beside its stream: what may change between and during runs, whose the slot is, what an outage
//! at any step does, what the target may look like.

mod meanwhile;
mod outages;
mod retention;
mod slots;
mod tables;
mod targets;

use std::time::{Duration, Instant};

use testbed::pair::LIMIT;
use testbed::{Pair, Process};

/// What is held on green: whoever does it waits until it is released.
struct Hold<'a>(&'a Pair);

impl<'a> Hold<'a> {
    /// Holds the loading of rows into this table of green, which exists there.
    fn rows(pair: &'a Pair, table: &str) -> Self {
        let hold = Self::functions(pair);
        hold.add("row");
        pair.on_green(&format!(
            "CREATE TRIGGER held BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION testing.wait_for_rows(); \
             ALTER TABLE {table} ENABLE ALWAYS TRIGGER held"
        ))
        .expect("rows are held");
        hold
    }

    /// Holds each statement about a schema whose text has one of these in it.
    fn statements(pair: &'a Pair, texts: &[&str]) -> Self {
        let hold = Self::functions(pair);
        pair.on_green(
            "CREATE EVENT TRIGGER held ON ddl_command_start WHEN TAG IN ('CREATE INDEX', 'ALTER TABLE') \
             EXECUTE FUNCTION testing.wait_for_statement()",
        )
        .expect("statements are held");
        texts.iter().for_each(|text| hold.add(text));
        hold
    }

    /// Holds nothing yet.
    fn functions(pair: &'a Pair) -> Self {
        pair.on_green(
            "CREATE SCHEMA testing; CREATE TABLE testing.hold (what text); \
             CREATE FUNCTION testing.wait_for_rows() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 WHILE EXISTS (SELECT FROM testing.hold WHERE what = 'row') LOOP \
                     PERFORM pg_catalog.pg_sleep(0.01); \
                 END LOOP; RETURN NEW; END $$; \
             CREATE FUNCTION testing.wait_for_statement() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN \
                 WHILE EXISTS (SELECT FROM testing.hold WHERE strpos(current_query(), what) > 0) LOOP \
                     PERFORM pg_catalog.pg_sleep(0.01); \
                 END LOOP; END $$",
        )
        .expect("green has the functions");
        Self(pair)
    }

    fn add(&self, what: &str) {
        self.0
            .on_green(&format!("INSERT INTO testing.hold VALUES ('{what}')"))
            .expect("green takes the hold");
    }

    fn release(&self, what: &str) {
        self.0
            .on_green(&format!("DELETE FROM testing.hold WHERE what = '{what}'"))
            .expect("green releases the hold");
    }

    /// Releases everything and leaves nothing of it on green.
    fn remove(self) {
        self.0
            .on_green(
                "DELETE FROM testing.hold; SET client_min_messages = warning; DROP SCHEMA testing CASCADE",
            )
            .expect("green drops what held");
    }

    /// Whether somebody waits.
    fn holds(&self) -> bool {
        let waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')";
        self.0.on_green(waiting).expect("green answers") == "t"
    }

    /// Waits until `running` waits.
    fn wait(&self, running: &mut Process) {
        wait("something held", running, || self.holds());
    }
}

/// Waits for a condition while the process runs.
fn wait(what: &str, running: &mut Process, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(
            running.is_running(),
            "{what}: the process ended\n{}\n{}",
            running.stdout(),
            running.stderr()
        );
        assert!(
            Instant::now() < deadline,
            "{what}: not within {LIMIT:?}\n{}",
            running.stderr()
        );
        std::thread::sleep(Duration::from_millis(60));
    }
}

/// Waits for the end of a run; returns its JSON.
fn end(running: &mut Process, code: i32) -> serde_json::Value {
    let ended = running.wait_timeout(LIMIT).expect("it ends");
    assert_eq!(ended.code(), Some(code), "{}\n{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).expect("it prints JSON")
}

/// The error of a report as one text.
fn error(report: &serde_json::Value) -> String {
    report["error"].to_string()
}

fn until_caught_up(pair: &Pair) -> serde_json::Value {
    pair.verb(&["run", "--until-caught-up"], 0).expect("run")
}
