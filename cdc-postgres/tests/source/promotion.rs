//! A source whose standby was promoted: what the new primary lacks must not be passed over in silence.

use std::time::{Duration, Instant};

use cdc_core::model::ChangeCounts;
use cdc_core::source::Source;
use cdc_core::{Action, Checkpoint, Engine, Kind, Position, SourceIdentity};
use cdc_postgres::PgEngine;
use testbed::{PgCluster, StopMode};

use crate::stage::Stage;

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, note text);";

fn checkpoint(source: &SourceIdentity, position: &Position) -> Checkpoint {
    Checkpoint {
        stream: "job".into(),
        source: source.clone(),
        position: position.clone(),
        commit_time_micros: 0,
        groups: 1,
        transactions: 1,
        changes: ChangeCounts::default(),
    }
}

/// Waits until the standby says so.
pub(crate) fn until(standby: &PgCluster, question: &str) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while standby.sql("app", question).unwrap() != "t" {
        assert!(Instant::now() < deadline, "{question}");
        std::thread::sleep(Duration::from_millis(60));
    }
}

#[test]
fn a_promoted_standby_that_lagged_is_refused() {
    for major in [12, 18] {
        let mut stage = Stage::set(major, &[], SCHEMA);
        let mut standby = PgCluster::builder(major)
            .standby_of(&stage.cluster)
            .start()
            .unwrap();
        stage.sql("INSERT INTO t VALUES (1, 'on both')");
        let here = |stage: &Stage| Position::new(stage.sql("SELECT pg_current_wal_flush_lsn()"));
        let shared = here(&stage);
        until(
            &standby,
            &format!("SELECT pg_last_wal_replay_lsn() >= '{shared}'"),
        );
        standby.stop(StopMode::Fast).unwrap();
        stage.sql("INSERT INTO t VALUES (2, 'lost')");
        let lost = here(&stage);
        stage.cluster.stop(StopMode::Fast).unwrap();
        standby.start_again().unwrap();
        standby.promote().unwrap();
        // The slot as a cluster manager makes it anew, and WAL of its own beyond what was applied.
        let own = "SELECT pg_create_logical_replication_slot('cdc_sync_job', 'pgoutput');
                   SELECT pg_switch_wal(); INSERT INTO t VALUES (3, 'new'); SELECT pg_switch_wal()";
        standby.sql("app", own).unwrap();
        stage.cluster = standby;
        let end: String = stage.sql(&format!("SELECT pg_current_wal_flush_lsn() > '{lost}'"));
        assert_eq!(end, "t");

        let url = stage.cluster.url("app");
        let site = stage
            .runtime
            .block_on(PgEngine.connect(&url, Duration::from_secs(30)))
            .unwrap();
        let resume = |position: &Position| {
            let checkpoint = checkpoint(&stage.identity, position);
            stage.runtime.block_on(site.resume(&checkpoint))
        };
        let error = resume(&lost).unwrap_err();
        assert_eq!(
            (error.kind(), error.what_to_do()),
            (Kind::PositionLost, Action::Stop)
        );
        assert!(error.to_string().contains("promoted to timeline 2"), "{error}");
        assert!(error.remedy_text().is_some());

        // What both have goes on, and from then on under the new timeline.
        let identity = resume(&shared).unwrap();
        assert_eq!(identity.timeline, "2");
        let again = checkpoint(&identity, &lost);
        assert_eq!(stage.runtime.block_on(site.resume(&again)).unwrap().timeline, "2");
        // A source that does not know of it yet asks for that first.
        let error = stage.open(&lost).err().unwrap();
        assert_eq!(error.what_to_do(), Action::Reconnect, "{error:?}");
        stage.identity = identity;
        let mut source = stage.source();
        let end = Position::new(stage.sql("SELECT pg_current_wal_flush_lsn()"));
        stage.runtime.block_on(source.open(&stage.start(&end))).unwrap();
        stage.runtime.block_on(source.close()).unwrap();
    }
}

#[test]
fn a_server_that_has_not_written_so_far_is_refused() {
    for major in [12, 18] {
        let stage = Stage::set(major, &[], SCHEMA);
        let ahead = Position::new("7F/0");
        let error = stage.open(&ahead).err().expect("the position is beyond the log");
        assert_eq!(
            (error.kind(), error.what_to_do()),
            (Kind::PositionLost, Action::Stop)
        );
        assert!(error.to_string().contains("only up to"), "{error}");
        assert!(error.object_name().is_some() && error.remedy_text().is_some());
    }
}
