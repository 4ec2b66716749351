//! A source that is taken over by its standby, together with the slot (PostgreSQL 17 and later).

use std::process::Command;
use std::time::{Duration, Instant};

use testbed::pair::LIMIT;
use testbed::provision::postgres_tools;
use testbed::workload::{Config, Fill, Workload, prepare};
use testbed::{PgCluster, Process, StopMode, compare, process};

use super::{finish, report};

const DATABASE: &str = "app";
/// Names the standbys that changes wait for before they are sent to a failover slot.
const WAITED_FOR: &str = "synchronized_standby_slots";

fn load(cluster: &PgCluster, seed: u64) -> u64 {
    let config = Config {
        seed,
        rate: 200.0,
        ..Config::default()
    };
    let load = Workload::start(&cluster.url(DATABASE), &config).expect("the workload starts");
    while load.progress().changes() < 200 {
        assert!(!load.has_failed(), "the workload failed");
        std::thread::sleep(Duration::from_millis(60));
    }
    load.stop().expect("the workload kept count").changes()
}

/// Waits until a query of a cluster's database answers `t`, as long as `running` lives.
fn wait(running: &mut Process, what: &str, cluster: &PgCluster, database: &str, sql: &str) {
    let deadline = Instant::now() + LIMIT;
    while cluster.sql(database, sql).expect("it answers") != "t" {
        assert!(running.is_running(), "{what}: {}", running.stderr());
        assert!(
            Instant::now() < deadline,
            "{what}: {}\n{}",
            running.stderr(),
            cluster.log().expect("a log")
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A standby that synchronises failover slots.
fn standby_of(blue: &PgCluster) -> PgCluster {
    let primary = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres",
        blue.port()
    );
    PgCluster::builder(17)
        .standby_of(blue)
        .setting("primary_conninfo", &primary)
        .setting("primary_slot_name", "standby")
        .setting("hot_standby_feedback", "on")
        .setting("sync_replication_slots", "on")
        // It would wait for a slot that it does not have.
        .setting(WAITED_FOR, "")
        .start()
        .expect("a standby")
}

/// Waits until the standby has the job's slot as its own.
fn wait_for_slot(blue: &PgCluster, standby: &PgCluster) {
    let synchronised = "SELECT coalesce(bool_or(synced AND NOT temporary), false) FROM pg_replication_slots";
    let deadline = Instant::now() + LIMIT;
    while standby
        .sql("postgres", synchronised)
        .expect("the standby answers")
        != "t"
    {
        // The standby has let go of old catalog rows; the slot does so when it meets such a record.
        blue.sql("postgres", "SELECT pg_log_standby_snapshot()")
            .expect("blue answers");
        assert!(Instant::now() < deadline, "{}", standby.log().expect("a log"));
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_promoted_standby_goes_on_with_the_slot_it_synchronised() {
    // Otherwise green may have what blue still keeps from the standby when it ends: a heartbeat is enough.
    let mut blue = PgCluster::builder(17)
        .setting(WAITED_FOR, "standby")
        .start()
        .expect("blue");
    blue.create_database(DATABASE).expect("a database");
    blue.sql(
        "postgres",
        "SELECT pg_create_physical_replication_slot('standby', true)",
    )
    .expect("a slot for the standby");
    let standby = standby_of(&blue);
    let green = PgCluster::builder(18).start().expect("green");
    green.create_database(DATABASE).expect("a database");
    let source = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/{DATABASE}?target_session_attrs=read-write",
        blue.port(),
        standby.port()
    );
    let command = |arguments: &[&str]| -> Command {
        let mut command = process::cdc_sync().expect("the binary");
        command
            .args(arguments)
            .args(["--yes", "--json", "--source", &source]);
        command.args(["--target", &green.url(DATABASE)]);
        if arguments.first() == Some(&"run") {
            command
                .arg("--pg-bin")
                .arg(postgres_tools().expect("the tools").bin);
        }
        command
    };
    let fill = Fill {
        orders: 60,
        pgbench_scale: None,
    };
    prepare(&blue.url(DATABASE), fill).expect("blue is filled");
    finish(command(&["run", "--until-caught-up"]), 0);
    let mut running = Process::spawn(command(&["run"])).expect("run starts");
    let mut written = load(&blue, 1);
    let end = blue
        .sql("postgres", "SELECT pg_current_wal_flush_lsn()")
        .expect("blue answers");
    let applied = format!("SELECT position::pg_lsn >= '{end}' FROM cdc_sync.checkpoint");
    wait(&mut running, "green follows", &green, DATABASE, &applied);
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    wait(
        &mut running,
        "the standby follows",
        &standby,
        "postgres",
        &replayed,
    );
    wait_for_slot(&blue, &standby);

    blue.stop(StopMode::Immediate).expect("blue stops");
    standby.promote().expect("the standby takes over");
    written += load(&standby, 2);
    let end = standby
        .sql("postgres", "SELECT pg_current_wal_flush_lsn()")
        .expect("it answers");
    let applied = format!("SELECT position::pg_lsn >= '{end}' FROM cdc_sync.checkpoint");
    wait(
        &mut running,
        "green follows the new source",
        &green,
        DATABASE,
        &applied,
    );
    running.sigterm().expect("the signal arrives");
    report(running, 0);
    let run = finish(command(&["run", "--until-caught-up"]), 0);
    assert_eq!(run["changes"]["read"].as_u64(), Some(written), "{run}");
    let differences = compare::databases(&standby.url(DATABASE), &green.url(DATABASE)).expect("both compare");
    assert!(differences.is_empty(), "{}", differences[0]);
    let timeline = "SELECT timeline FROM cdc_sync.checkpoint";
    assert_eq!(green.sql(DATABASE, timeline).expect("green answers"), "2");
}
