//! A flight that the network delivers after its client has given the connection up.

use std::time::{Duration, Instant};

use testbed::pair::LIMIT;
use testbed::proxy::{Act, Aim, Direction, Place};
use testbed::{Process, Proxy, process};

use super::lane::{Lane, quiet};
use super::{finish, report, servers};

/// A position without changes goes in one flight: it may still be under way when its connection breaks, and would move the
/// checkpoint after the next session has read it, were the end of the former one not waited for.
#[test]
fn a_position_that_arrives_late_does_not_take_the_checkpoint_from_its_successor() {
    let lane = Lane::new("held");
    lane.assert_run("seed", &finish(lane.command(&["run", "--until-caught-up"]), 0));
    let proxy = Proxy::start(servers().green.port()).expect("a proxy");
    // Behind this text the preparing flight has three messages; of the next flight one byte passes.
    proxy.aim(Aim {
        text: "cdc_sync.store_checkpoint($1::text",
        skip: 0,
        direction: Direction::ToServer,
        place: Place::Message { number: 2, off: 1 },
        act: Act::Hold,
    });
    let job = quiet();
    let binary = process::cdc_sync().expect("the binary");
    let mut command = lane.between(binary, &["run"], [servers().blue.port(), proxy.port()]);
    command.arg("-c").arg(job.path());
    let mut running = Process::spawn(command).expect("run starts");
    let applying = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query = 'COMMIT' \
                    AND state = 'idle' AND backend_type = 'client backend'";
    wait("the idle position", &mut running, |_| {
        // Of another database: the log goes on, and nothing of it is the job's.
        servers()
            .blue
            .sql("postgres", "SELECT txid_current()")
            .expect("blue answers");
        proxy.has_hit()
    });
    let backend = lane.on_green(applying);
    wait("another session", &mut running, |said| {
        said.matches("stream started").count() == 2
    });
    proxy.release();
    let orphan = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {backend}");
    wait("the end of the former session", &mut running, |_| {
        lane.on_green(&orphan) == "0"
    });
    lane.on_blue("INSERT INTO shop.scratch VALUES (1000000, 'after')");
    let arrived = "SELECT count(*) FROM shop.scratch WHERE id = 1000000";
    wait("what comes after", &mut running, |_| {
        lane.on_green(arrived) == "1"
    });
    running.sigterm().expect("the signal arrives");
    report(running, 0);
}

/// Waits for a condition on what the process has said, while it runs.
fn wait(what: &str, running: &mut Process, mut condition: impl FnMut(&str) -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition(&running.stderr()) {
        assert!(
            running.is_running(),
            "{what}: it ended\n{}\n{}",
            running.stdout(),
            running.stderr()
        );
        assert!(Instant::now() < deadline, "{what}\n{}", running.stderr());
        std::thread::sleep(Duration::from_millis(60));
    }
}
