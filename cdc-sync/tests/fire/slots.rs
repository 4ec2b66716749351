//! A slot that goes, or comes back as another, is a lost position: nothing is passed over in silence.

use std::time::Instant;

use testbed::Process;
use testbed::pair::LIMIT;

use super::lane::Lane;
use super::{finish, report};

const OURS: &str = "FROM pg_replication_slots WHERE database = current_database() AND NOT temporary";

fn expect_lost(report: &serde_json::Value) {
    let error = report["error"].to_string();
    assert!(error.contains("slot cdc_sync_"), "{report}");
    assert!(error.contains("run --truncate-target"), "{report}");
}

/// Takes the slot away; a walsender on it is ended for that.
fn drop_slot(lane: &Lane) {
    let deadline = Instant::now() + LIMIT;
    // In one statement the walsender may still hold it, or the job may be back already.
    let attempt = format!(
        "DO $$ BEGIN PERFORM pg_terminate_backend(active_pid) {OURS}; PERFORM pg_drop_replication_slot(slot_name) \
         {OURS}; EXCEPTION WHEN object_in_use THEN NULL; END $$"
    );
    while lane.on_blue(&format!("SELECT count(*) {OURS}")) != "0" {
        assert!(Instant::now() < deadline, "the slot stays");
        lane.on_blue(&attempt);
    }
}

#[test]
fn a_slot_that_goes_or_is_made_anew_is_a_lost_position() {
    let mut lane = Lane::new("slots");
    for (recreated, running) in [(false, true), (false, false), (true, true), (true, false)] {
        finish(lane.command(&["run", "--until-caught-up"]), 0);
        let slot = lane.on_blue(&format!("SELECT slot_name {OURS}"));
        let mut job = running.then(|| Process::spawn(lane.command(&["run"])).expect("run starts"));
        let load = lane.load();
        if let Some(job) = &mut job {
            job.wait_for("stream started", LIMIT).expect("the stream starts");
            if recreated {
                // So that it finds the new one and not none.
                job.suspend().expect("it stands still");
            }
        }
        drop_slot(&lane);
        if recreated {
            lane.on_blue("INSERT INTO shop.scratch VALUES (1000001, 'between') ON CONFLICT DO NOTHING");
            lane.on_blue(&format!(
                "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
            ));
        }
        let lost = match job {
            Some(job) => {
                job.resume().expect("it goes on");
                report(job, 9)
            }
            None => finish(lane.command(&["run"]), 9),
        };
        expect_lost(&lost);
        drop(load);
        // The remedy.
        lane.clear();
    }
}
