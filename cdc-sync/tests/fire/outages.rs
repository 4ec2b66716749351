//! Servers that stop at once, stay away, stand still or run out of room, under load.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use testbed::pair::LIMIT;
use testbed::proxy::{Act, Aim, Direction, Place};
use testbed::workload::{Config, Fill, Workload, prepare};
use testbed::{Pair, Process, Proxy, StopMode};

const FILL: Fill = Fill {
    orders: 300,
    pgbench_scale: None,
};

/// How long a server stays away.
fn outage() -> Duration {
    Duration::from_secs(if testbed::runs_long_tier() { 120 } else { 5 })
}

fn load(pair: &Pair) -> Workload {
    let config = Config {
        seed: 5,
        threads: 2,
        rate: 200.0,
        outage: Duration::from_secs(180),
        ..Config::default()
    };
    Workload::start(&pair.urls()[0], &config).expect("the workload starts")
}

/// Waits until all that blue has written by now is on green.
fn wait_for_green(pair: &Pair, running: &mut Process, after: &str) {
    let written = pair
        .on_blue("SELECT pg_current_wal_insert_lsn()")
        .expect("blue answers");
    let applied = format!("SELECT position::pg_lsn >= '{written}' FROM cdc_sync.checkpoint");
    let deadline = Instant::now() + LIMIT;
    while pair.on_green(&applied).expect("green answers") != "t" {
        assert!(running.is_running(), "{after}: it ended\n{}", running.stderr());
        assert!(
            Instant::now() < deadline,
            "{after}: it does not go on\n{}",
            running.stderr()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Ends the run and the load; everything is on green, once, and accounted for.
fn assert_whole(pair: &Pair, mut running: Process, load: Workload) {
    let written = load.stop().expect("the workload kept count").changes();
    running.sigterm().expect("the signal arrives");
    let ended = running.wait_timeout(LIMIT).expect("run ends");
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let run = pair.verb(&["run", "--until-caught-up"], 0).expect("run");
    let count = |key: &str| run["changes"][key].as_u64().expect(key);
    let ends = ["applied", "loop", "filtered", "superseded", "dead_lettered"];
    assert_eq!(count("read"), ends.map(count).iter().sum::<u64>(), "{run}");
    assert_eq!(count("read"), written, "read against written: {run}");
    pair.assert_equal().expect("both compare");
}

#[test]
fn servers_that_stop_at_once_stay_away_or_stand_still_are_waited_for() {
    let mut pair = Pair::start(12, 18).expect("two servers");
    prepare(&pair.urls()[0], FILL).expect("blue is filled");
    pair.verb(&["run", "--until-caught-up"], 0).expect("run");
    let [blue, green] = pair.urls();
    // Blue ends a walsender whose client says nothing for so long.
    let impatient = format!("{blue}?options=-c%20wal_sender_timeout%3D10s");
    // Of groups so small, few are under way: then a target that stands still soon keeps the source from being read.
    let mut file = tempfile::NamedTempFile::new().expect("a job file");
    std::io::Write::write_all(&mut file, b"[apply]\ngroup_rows = 50\n").expect("a job file");
    let file = file.path().to_str().expect("a path of text");
    let mut running = pair
        .spawn_between([&impatient, &green], &["run", "-c", file])
        .expect("run starts");
    // Until it follows, an outage is a start that failed.
    running
        .wait_for("stream started", LIMIT)
        .expect("the stream starts");
    let load = load(&pair);
    wait_for_green(&pair, &mut running, "at the beginning");

    pair.green.stop(StopMode::Immediate).expect("green stops");
    pair.green.start_again().expect("green starts");
    wait_for_green(&pair, &mut running, "after green's stop");
    pair.blue.stop(StopMode::Immediate).expect("blue stops");
    pair.blue.start_again().expect("blue starts");
    wait_for_green(&pair, &mut running, "after blue's stop");

    pair.green.stop(StopMode::Immediate).expect("green stops");
    std::thread::sleep(outage());
    pair.green.start_again().expect("green starts");
    wait_for_green(&pair, &mut running, "after green's outage");
    pair.blue.stop(StopMode::Immediate).expect("blue stops");
    std::thread::sleep(outage());
    pair.blue.start_again().expect("blue starts");
    wait_for_green(&pair, &mut running, "after blue's outage");

    let replays = |pair: &Pair| {
        pair.blue
            .log()
            .expect("blue's log")
            .matches("START_REPLICATION")
            .count()
    };
    let before = replays(&pair);
    // One table: who holds the first of two while it waits for the second can be in a deadlock with what is applied.
    pair.on_green("BEGIN; LOCK TABLE shop.orders; SELECT pg_sleep(14); COMMIT")
        .expect("green is blocked");
    wait_for_green(&pair, &mut running, "after green's standstill");
    let log = pair.blue.log().expect("blue's log");
    assert!(!log.contains("due to replication timeout"), "{log}");
    assert_eq!(
        replays(&pair),
        before,
        "the stream was started again: {}\n{log}",
        running.stderr()
    );
    assert_whole(&pair, running, load);
}

#[test]
fn servers_that_stay_away_during_the_seed_are_waited_for() {
    let mut pair = Pair::start(12, 18).expect("two servers");
    prepare(&pair.urls()[0], FILL).expect("blue is filled");
    for on_blue in [true, false] {
        let proxies = [&pair.blue, &pair.green].map(|server| Proxy::start(server.port()).expect("a proxy"));
        // The seed cannot end before the server has gone: one of its copies stands still.
        let (proxy, text, direction) = if on_blue {
            (&proxies[0], " TO STDOUT", Direction::ToClient)
        } else {
            (&proxies[1], " FROM STDIN", Direction::ToServer)
        };
        proxy.aim(Aim {
            text,
            skip: 0,
            direction,
            place: Place::Bytes(100),
            act: Act::Freeze,
        });
        let [blue, green] = [(&pair.blue, &proxies[0]), (&pair.green, &proxies[1])]
            .map(|(server, proxy)| server.url_at(proxy.port(), Pair::DATABASE));
        let mut running = pair
            .spawn_between([&blue, &green], &["run", "--until-caught-up"])
            .expect("run starts");
        let deadline = Instant::now() + LIMIT;
        while !proxy.has_hit() {
            assert!(
                running.is_running() && Instant::now() < deadline,
                "{}",
                running.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        let server = if on_blue { &mut pair.blue } else { &mut pair.green };
        server.stop(StopMode::Immediate).expect("it stops");
        proxy.cut_all();
        std::thread::sleep(outage());
        assert!(running.is_running(), "{}", running.stderr());
        server.start_again().expect("it starts");
        let ended = running.wait_timeout(LIMIT).expect("run ends");
        assert_eq!(ended.code(), Some(0), "on blue: {on_blue}\n{}", ended.stderr);
        pair.assert_equal().expect("both compare");
        pair.verb(&["cleanup"], 0).expect("cleanup");
        pair.on_green("SET client_min_messages = warning; DROP SCHEMA shop, \"Odd Names\" CASCADE")
            .expect("green is emptied");
    }
}

/// A small file system of its own.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn of(megabytes: u32) -> SmallDisk {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = SmallDisk(folder);
        disk.mount(&[
            "-t",
            "tmpfs",
            "-o",
            &format!("size={megabytes}m,mode=0777"),
            "tmpfs",
        ]);
        disk
    }

    fn grow_to(&self, megabytes: u32) {
        self.mount(&["-o", &format!("remount,size={megabytes}m")]);
    }

    fn mount(&self, arguments: &[&str]) {
        let mounted = Command::new("mount")
            .args(arguments)
            .arg(self.path())
            .output()
            .expect("mount runs");
        let said = String::from_utf8_lossy(&mounted.stderr);
        assert!(
            mounted.status.success(),
            "a disk can be made full only where root may mount one: {said}"
        );
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Busy until the server is gone, which holds files on it.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[test]
fn a_full_disk_of_the_target_is_waited_out() {
    let pair = Pair::start(12, 18).expect("two servers");
    let disk = SmallDisk::of(32);
    let space = disk.path().join("space");
    let owner = std::fs::metadata(pair.green.data_dir()).expect("green's data");
    std::fs::create_dir(&space).expect("a folder on the disk");
    let owner = (
        Some(std::os::unix::fs::MetadataExt::uid(&owner)),
        Some(std::os::unix::fs::MetadataExt::gid(&owner)),
    );
    std::os::unix::fs::chown(&space, owner.0, owner.1).expect("the folder is the server's");
    std::fs::set_permissions(disk.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("it may enter");
    pair.on_green(&format!("CREATE TABLESPACE small LOCATION '{}'", space.display()))
        .expect("green has a tablespace");
    pair.on_green("ALTER DATABASE app SET default_tablespace = small")
        .expect("it is the default");
    prepare(&pair.urls()[0], FILL).expect("blue is filled");
    pair.verb(&["run", "--until-caught-up"], 0).expect("run");
    pair.on_green("ALTER DATABASE app RESET default_tablespace")
        .expect("only the tables are there");
    let mut running = pair.spawn(&["run"]).expect("run starts");
    // Until it follows, an outage is a start that failed.
    running
        .wait_for("stream started", LIMIT)
        .expect("the stream starts");
    let load = load(&pair);
    wait_for_green(&pair, &mut running, "at the beginning");
    // Of the load's own tables, and not of its account: what is written and taken back is nothing, but takes room.
    let fill = "INSERT INTO shop.filler SELECT g, repeat('x', 1000) FROM generate_series(1, 40000) g";
    pair.on_green("CREATE TABLE shop.filler (id int, body text) TABLESPACE small")
        .expect("green has a table");
    let full = pair.on_green(fill).expect_err("the disk is full").to_string();
    assert!(full.contains("No space left on device"), "{full}");
    // The failed statement's room is given back, so that the rest is filled little by little.
    for rows in [20_000, 5_000, 1_000, 200, 50, 10, 1] {
        let fill =
            format!("INSERT INTO shop.filler SELECT g, repeat('x', 1000) FROM generate_series(1, {rows}) g");
        while pair.on_green(&fill).is_ok() {}
    }
    running
        .wait_for("No space left on device", LIMIT)
        .expect("it is told");
    assert!(running.is_running(), "{}", running.stderr());
    disk.grow_to(256);
    wait_for_green(&pair, &mut running, "after the full disk");
    pair.on_green("DROP TABLE shop.filler").expect("green drops it");
    assert_whole(&pair, running, load);
}
