//! Clusters: start, restart, crash, authentication, and their end with the owner.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testbed::postgres::{PASSWORD, PasswordAuth};
use testbed::provision::{POSTGRES_MAJORS, postgres_tools};
use testbed::{PgCluster, StopMode};

#[test]
fn every_major_starts_and_answers() {
    for major in POSTGRES_MAJORS {
        let cluster = PgCluster::builder(major).start().unwrap();
        let version = cluster.sql("postgres", "SHOW server_version_num").unwrap();
        assert_eq!(version.parse::<u32>().unwrap() / 10_000, u32::from(major));
        assert_eq!(cluster.sql("postgres", "SHOW wal_level").unwrap(), "logical");
    }
}

#[test]
fn clusters_of_one_version_are_told_apart() {
    let one = PgCluster::builder(18).start().unwrap();
    let two = PgCluster::builder(18).start().unwrap();
    let identity = "SELECT system_identifier FROM pg_control_system()";
    assert_ne!(
        one.sql("postgres", identity).unwrap(),
        two.sql("postgres", identity).unwrap()
    );
}

#[test]
fn data_survives_each_stop_and_a_crash() {
    for major in [12, 18] {
        let mut cluster = PgCluster::builder(major).start().unwrap();
        let port = cluster.port();
        cluster.create_database("Odd \"name\"").unwrap();
        cluster.sql("Odd \"name\"", "CREATE TABLE t (n int)").unwrap();
        for (round, mode) in [StopMode::Smart, StopMode::Fast, StopMode::Immediate]
            .into_iter()
            .enumerate()
        {
            cluster
                .sql("Odd \"name\"", &format!("INSERT INTO t VALUES ({round})"))
                .unwrap();
            cluster.stop(mode).unwrap();
            assert!(!cluster.is_running() && cluster.stop(mode).is_err());
            cluster.start_again().unwrap();
        }
        cluster.sql("Odd \"name\"", "INSERT INTO t VALUES (3)").unwrap();
        cluster.crash().unwrap();
        cluster.start_again().unwrap();
        assert_eq!(cluster.port(), port);
        assert_eq!(cluster.sql("Odd \"name\"", "SELECT sum(n) FROM t").unwrap(), "6");
        assert!(cluster.log().unwrap().contains("automatic recovery in progress"));
    }
}

#[test]
fn tcp_asks_for_the_password_it_was_told_to() {
    for method in [PasswordAuth::Scram, PasswordAuth::Md5, PasswordAuth::Clear] {
        let cluster = PgCluster::builder(16).password_auth(method).start().unwrap();
        assert_eq!(
            psql(&cluster.url("postgres"), &[]),
            Ok("1".to_owned()),
            "{method:?}"
        );
        let refused = psql(&cluster.url("postgres").replace(PASSWORD, "wrong"), &[]).unwrap_err();
        assert!(refused.contains("password authentication failed"), "{refused}");
    }
}

#[test]
fn a_bad_setting_is_reported_with_the_server_log() {
    let error = PgCluster::builder(18)
        .setting("shared_buffers", "much")
        .start()
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("invalid value for parameter \"shared_buffers\""),
        "{error:#}"
    );
}

#[test]
fn tls_server_speaks_tls() {
    let cluster = PgCluster::builder(18).ssl().start().unwrap();
    assert_eq!(cluster.sql("postgres", "SHOW ssl").unwrap(), "on");
    assert!(
        cluster
            .tls()
            .is_some_and(|tls| tls.root_cert.is_file() && tls.client_key.is_file())
    );
}

fn psql(url: &str, args: &[&str]) -> Result<String, String> {
    let output = postgres_tools()
        .unwrap()
        .command("psql")
        .args(["-XAtq", "-c", "SELECT 1", url])
        .args(args)
        .output()
        .unwrap();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Set in the process that the next test kills.
const VICTIM: &str = "TESTBED_TEST_VICTIM";

#[test]
fn server_and_folder_go_when_the_owner_is_killed() {
    if std::env::var_os(VICTIM).is_some() {
        own_a_cluster_until_killed();
    }
    // The test program runs only this test once more, as the owner to be killed.
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "cluster::server_and_folder_go_when_the_owner_is_killed",
            "--nocapture",
        ])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let line = lines
        .find_map(|l| l.split_once("victim: ").map(|(_, rest)| rest.to_owned()))
        .unwrap();
    let (pid, data) = line.split_once(' ').unwrap();
    let (process, data) = (Path::new("/proc").join(pid), PathBuf::from(data));
    assert!(process.exists() && data.exists());
    owner.kill().unwrap();
    owner.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let zombie = || std::fs::read_to_string(process.join("stat")).is_ok_and(|stat| stat.contains(") Z "));
    while (process.exists() && !zombie()) || data.parent().unwrap().exists() {
        assert!(
            Instant::now() < deadline,
            "still there: {} or {}",
            process.display(),
            data.display()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn own_a_cluster_until_killed() -> ! {
    // Started on a thread that ends at once, as those of tests do.
    let cluster = std::thread::spawn(|| PgCluster::builder(18).start().unwrap())
        .join()
        .unwrap();
    let pid = std::fs::read_to_string(cluster.data_dir().join("postmaster.pid")).unwrap();
    println!(
        "victim: {} {}",
        pid.lines().next().unwrap(),
        cluster.data_dir().display()
    );
    loop {
        std::thread::park();
    }
}
