//! Rows that blue copies in: many of them have one position, so that a part of them cannot be told from the rest by it.

use std::io::Write;

use testbed::Process;

use super::failpoints::expect_death;
use super::lane::Lane;

const ROWS: u64 = 10_000;

#[test]
fn a_copy_on_blue_comes_whole_and_once_whatever_dies_in_it() {
    let mut lane = Lane::new("copied");
    lane.on_blue("CREATE TABLE copied (id int PRIMARY KEY, v text)");
    lane.assert_whole("the seed");
    let mut job = tempfile::NamedTempFile::new().expect("a job file");
    job.write_all(b"[apply]\ngroup_rows = 1000\n")
        .expect("a job file");
    let rows: String = (0..ROWS).map(|id| format!("{id}\t{id:0>300}\n")).collect();
    lane.on_blue(&format!("COPY copied FROM STDIN;\n{rows}\\.\n"));
    lane.wrote(ROWS);
    let some = "SELECT count(*) > 0 FROM copied";
    let dies = |point: &str| {
        let mut command = lane.armed(&["run"], point);
        command.arg("-c").arg(job.path());
        let mut running = Process::spawn(command).expect("run starts");
        expect_death(&mut running, point);
    };
    for point in ["sink.mid-apply=2*off->kill", "sink.applied=2*off->kill"] {
        dies(point);
        assert_eq!(lane.on_green(some), "f", "{point}");
    }
    // A group before it may be nothing but a heartbeat.
    while lane.on_green(some) == "f" {
        dies("sink.committed=kill");
    }
    lane.assert_whole("after the deaths");
}
