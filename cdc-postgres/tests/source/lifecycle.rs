//! Opening, confirming, closing, and the ways in which a slot is not what the checkpoint says.

use std::time::{Duration, Instant};

use cdc_core::source::{Source, StreamStart};
use cdc_core::{Action, Error, Kind, Position, RawChunk};
use cdc_postgres::lsn::Lsn;
use cdc_postgres::walsender::{Frame, WalSenderOptions, parse_frame, split_frames};

use crate::stage::Stage;

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, note text);";

fn lsn(position: &Position) -> Lsn {
    position.as_str().parse().unwrap()
}

fn refused(stage: &Stage, from: &Position) -> Error {
    match stage.open(from) {
        Ok(_) => panic!("the stream was opened at {from}"),
        Err(error) => error,
    }
}

/// Waits until `condition` holds.
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(60));
    }
}

#[test]
fn what_is_confirmed_is_durable_and_never_taken_back() {
    for major in [12, 18] {
        let stage = Stage::set(major, &[], SCHEMA);
        stage.sql("INSERT INTO t VALUES (1, 'a')");
        stage.mark();
        let mut reader = stage.open(&stage.from).unwrap();
        reader.read_to_marker();
        let reached = reader.tracker.position();
        // Reading confirms nothing.
        reader.confirm(None);
        let unconfirmed: Lsn = stage.confirmed().parse().unwrap();
        assert!(unconfirmed <= lsn(&stage.from), "{unconfirmed}");
        reader.confirm(Some(&reached));
        wait_for("the position is confirmed", || {
            stage.confirmed() == reached.as_str()
        });
        reader.confirm(Some(&stage.from));
        reader.confirm(None);
        reader.close();
        assert_eq!(stage.confirmed(), reached.as_str());
        let active = "SELECT active FROM pg_replication_slots";
        assert_eq!(
            stage.sql(active),
            "f",
            "the slot is free as soon as the source is closed"
        );

        // The checkpoint of a target that was restored from an older backup.
        let error = refused(&stage, &stage.from);
        assert_eq!(
            (error.kind(), error.what_to_do()),
            (Kind::PositionLost, Action::Stop)
        );
        assert!(error.to_string().contains("ahead of the checkpoint"), "{error}");
    }
}

/// Positions of changes that overlap are in no order: only those of commits are resumed from.
#[test]
fn overlapping_transactions_come_once_and_in_commit_order_over_a_restart() {
    for major in [12, 18] {
        let stage = Stage::set(major, &[], SCHEMA);
        let url = stage.cluster.url("app");
        let connect = || stage.runtime.block_on(testbed::postgres::connect(&url)).unwrap();
        let [long, short] = [connect(), connect()];
        let run = |client: &tokio_postgres::Client, sql| {
            stage.runtime.block_on(client.batch_execute(sql)).unwrap();
        };
        run(&long, "BEGIN; INSERT INTO t VALUES (1, 'long')");
        run(&short, "BEGIN; INSERT INTO t VALUES (2, 'short')");
        run(&long, "INSERT INTO t VALUES (3, 'long')");
        run(&short, "COMMIT");
        let mut reader = stage.open(&stage.from).unwrap();
        reader.read_until(|batch, _| batch.txns().iter().any(|txn| txn.last));
        let between = reader.tracker.position();
        reader.confirm(Some(&between));
        wait_for("the position is confirmed", || {
            stage.confirmed() == between.as_str()
        });
        let before = std::mem::take(&mut reader.lines);
        reader.close();
        run(&long, "INSERT INTO t VALUES (4, 'long'); COMMIT");
        stage.mark();
        let mut reader = stage.open(&between).unwrap();
        let after = reader.read_to_marker();
        reader.close();
        let inserts = |lines: Vec<String>| -> Vec<String> {
            let ids = lines.iter().filter(|line| line.starts_with("insert public.t"));
            ids.map(|line| line["insert public.t -> ".len()..].to_owned())
                .collect()
        };
        assert_eq!(inserts(before), ["('2', 'short')"], "PostgreSQL {major}");
        let long = ["('1', 'long')", "('3', 'long')", "('4', 'long')"];
        assert_eq!(inserts(after), long, "PostgreSQL {major}");
    }
}

#[test]
fn an_idle_stream_follows_the_log() {
    for major in [12, 15, 18] {
        let stage = Stage::set(major, &[], "CREATE TABLE excluded (id int PRIMARY KEY);");
        let mut reader = stage.open(&stage.from).unwrap();
        stage.cluster.create_database("elsewhere").unwrap();
        let write = "CREATE TABLE w AS SELECT repeat('x', 100) FROM generate_series(1, 10000);
                     SELECT pg_switch_wal();";
        stage.cluster.sql("elsewhere", write).unwrap();
        let end: Lsn = stage.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        // A timer calls it in silence, and the server then says how far it is.
        reader.confirm(None);
        reader.confirm(None);
        reader.read_until(|_, tracker| lsn(&tracker.position()) >= end);
        let idle = reader.tracker.position();
        reader.confirm(Some(&idle));
        wait_for("the idle position is confirmed", || {
            stage.confirmed() == idle.as_str()
        });
        reader.close();
        // The checkpoint holds the idle position too, so the slot is not ahead of it.
        stage.sql("INSERT INTO excluded VALUES (1)");
        stage.mark();
        let mut reader = stage.open(&idle).unwrap();
        let lines = reader.read_to_marker();
        assert!(
            lines.contains(&"end read=1 filtered=1 internal=0".to_owned()),
            "PostgreSQL {major}: {lines:?}"
        );
        reader.close();
    }
}

#[test]
fn a_walsender_left_behind_is_ended() {
    for major in [12, 18] {
        let stage = Stage::set(major, &[], SCHEMA);
        stage.sql("INSERT INTO t VALUES (1, 'a')");
        stage.mark();
        // It still holds its connection, as a killed process's server side does until it notices.
        let mut first = stage.open(&stage.from).unwrap();
        let mut second = stage.open(&stage.from).unwrap();
        assert_eq!(second.read_to_marker().len(), 3);
        let end = loop {
            if let Err(error) = first.read() {
                break error;
            }
        };
        assert_eq!(end.what_to_do(), Action::Reconnect, "{end:?}");
        second.close();
    }
}

#[test]
fn a_slot_that_another_program_reads_is_left_alone() {
    let stage = Stage::set(15, &[], SCHEMA);
    let url = format!("{}?application_name=another", stage.cluster.url("app"));
    let config = cdc_postgres::config::Config::parse(&url).unwrap();
    let names = stage.names.clone();
    let mut other = cdc_postgres::source::PgSource::new(config, &names, stage.identity.clone()).unwrap();
    let _decoder = stage
        .runtime
        .block_on(other.open(&stage.start(&stage.from)))
        .unwrap();
    let pid = stage.sql("SELECT active_pid FROM pg_replication_slots");
    let error = refused(&stage, &stage.from);
    assert_eq!((error.kind(), error.what_to_do()), (Kind::Fenced, Action::Retry));
    assert!(error.to_string().contains(&format!("PID {pid}")), "{error}");
    assert_eq!(stage.sql("SELECT active_pid FROM pg_replication_slots"), pid);
}

#[test]
fn a_slot_that_is_gone_or_of_another_server_is_refused() {
    let mut stage = Stage::set(18, &[], SCHEMA);
    let lost = |stage: &Stage| {
        let error = refused(stage, &stage.from);
        assert_eq!(
            (error.kind(), error.what_to_do()),
            (Kind::PositionLost, Action::Stop)
        );
        assert!(error.remedy_text().is_some());
        error.to_string()
    };
    let system = std::mem::replace(&mut stage.identity.system, "1".into());
    assert!(lost(&stage).contains("system identifier"));
    stage.identity.system = system;
    stage.identity.timeline = "9".into();
    assert!(lost(&stage).contains("timeline"));
    stage.identity.timeline = "1".into();
    stage.sql("SELECT pg_drop_replication_slot('cdc_sync_job')");
    assert!(lost(&stage).contains("does not exist"));
    stage.sql("SELECT pg_create_physical_replication_slot('cdc_sync_job')");
    assert!(lost(&stage).contains("physical"));
    stage.sql(
        "SELECT pg_drop_replication_slot('cdc_sync_job');
         INSERT INTO t VALUES (1, 'lost');
         SELECT pg_create_logical_replication_slot('cdc_sync_job', 'pgoutput')",
    );
    assert!(lost(&stage).contains("ahead of the checkpoint"));
}

#[test]
fn a_slot_whose_wal_was_removed_is_refused() {
    for major in [13, 18] {
        let settings = [
            ("max_slot_wal_keep_size", "16MB"),
            ("max_wal_size", "32MB"),
            ("min_wal_size", "32MB"),
        ];
        let stage = Stage::set(major, &settings, SCHEMA);
        let status = "SELECT wal_status FROM pg_replication_slots";
        wait_for("the slot is invalidated", || {
            stage.sql("SELECT pg_switch_wal(); INSERT INTO t SELECT count(*) FROM t; CHECKPOINT");
            stage.sql(status) == "lost"
        });
        let error = refused(&stage, &stage.from);
        assert_eq!(
            (error.kind(), error.what_to_do()),
            (Kind::PositionLost, Action::Stop)
        );
        assert!(error.to_string().contains("invalidated"), "{error}");
    }
}

#[test]
fn a_read_that_is_dropped_loses_nothing() {
    let stage = Stage::set(18, &[], SCHEMA);
    let mut source = stage.source();
    let start: StreamStart = stage.start(&stage.from);
    let mut decoder = stage.runtime.block_on(source.open(&start)).unwrap();
    stage.sql("INSERT INTO t SELECT n, repeat('n', 500) FROM generate_series(1, 20000) AS n");
    stage.mark();
    let (mut rows, mut marked) = (0, false);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !marked {
        assert!(Instant::now() < deadline);
        let mut chunk = RawChunk::default();
        // Mostly dropped before anything has come.
        let read = stage.runtime.block_on(async {
            tokio::time::timeout(Duration::from_micros(50), source.read(&mut chunk)).await
        });
        assert!(read.is_ok() || chunk.bytes.is_empty());
        let mut batch = cdc_core::Batch::new();
        decoder.decode(&mut chunk, &mut batch).unwrap();
        for row in 0..batch.rows().len() {
            let table = batch.event(row).unwrap().table().unwrap().name.clone();
            rows += usize::from(table.name == "t");
            marked |= table.name == "marker";
        }
    }
    assert_eq!(rows, 20_000);
    stage.runtime.block_on(source.close()).unwrap();
}

#[test]
fn a_server_that_asks_is_answered_by_reading_alone() {
    let stage = Stage::set(14, &[], SCHEMA);
    let mut options = WalSenderOptions::default();
    options.settings.wal_sender_timeout = "6s".into();
    let mut source = stage.source().with_options(options);
    let _decoder = stage
        .runtime
        .block_on(source.open(&stage.start(&stage.from)))
        .unwrap();
    // After half the time the server asks; unanswered, it would end the session.
    let mut chunk = RawChunk::default();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(15) {
        let read = stage.runtime.block_on(async {
            tokio::time::timeout(Duration::from_millis(100), source.read(&mut chunk)).await
        });
        read.unwrap_or(Ok(())).unwrap();
    }
    let asked = split_frames(&chunk.bytes).filter(|frame| {
        matches!(
            parse_frame(frame.as_ref().unwrap()),
            Ok(Frame::Keepalive {
                reply_requested: true,
                ..
            })
        )
    });
    assert!(asked.count() >= 2);
    stage.runtime.block_on(source.close()).unwrap();
}
