//! What is shown of a running job: HTTP endpoints and `tail`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::pair::LIMIT;
use testbed::{Pair, Process};

use super::{end, following, shop, wait_for_green};

/// The answer to a GET, head and body.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_running_job_answers_over_http() {
    let pair = shop(16, 17);
    let running = following(&pair, &["--listen", "127.0.0.1:0", "--log-format", "json"]);
    let log = running.stderr();
    let served = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|line| Some(line["address"].as_str()?.to_owned()));
    let address = served.unwrap_or_else(|| panic!("no address in {log}"));
    assert!(get(&address, "/livez").starts_with("HTTP/1.1 200"));
    assert!(get(&address, "/readyz").starts_with("HTTP/1.1 200"));
    let metrics = get(&address, "/metrics");
    for metric in ["cdc_sync_changes_read_total", "cdc_sync_heartbeat_lag_seconds"] {
        assert!(metrics.contains(metric), "{metrics}");
    }
    let status = get(&address, "/status");
    let body = status.split_once("\r\n\r\n").unwrap().1;
    let status: Value = serde_json::from_str(body).unwrap();
    assert_eq!(status["state"], "synced", "{status}");
    end(running);
}

/// Starts a `tail` and waits until it reads.
fn tail_of(pair: &Pair, arguments: &[&str]) -> Process {
    let mut tail = pair.spawn(&[&["tail"], arguments].concat()).unwrap();
    let reads = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    let deadline = Instant::now() + LIMIT;
    while pair.on_blue(reads).unwrap() != "1" {
        assert!(
            tail.is_running() && Instant::now() < deadline,
            "{}\n{}",
            tail.stdout(),
            tail.stderr()
        );
    }
    tail
}

#[test]
fn tail_shows_changes_as_they_come() {
    let pair = shop(12, 18);
    let mut tail = tail_of(&pair, &["--limit", "3"]);
    pair.on_blue(
        "BEGIN; INSERT INTO customers VALUES (2000, E'tab\\there', NULL); \
         UPDATE customers SET note = 'x' WHERE id = 2000; DELETE FROM customers WHERE id = 2000; COMMIT",
    )
    .unwrap();
    let ended = tail.wait_timeout(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let lines: Vec<Value> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ops: Vec<&str> = lines.iter().filter_map(|line| line["op"].as_str()).collect();
    // Whether the transaction has ended by then is the log's business.
    assert_eq!(ops[..4], ["begin", "insert", "update", "delete"], "{lines:#?}");
    assert_eq!(lines[1]["after"]["name"], "tab\there");
    assert_eq!(lines[2]["after"]["note"], "x");
    assert_eq!(lines[3]["key"]["id"], "2000");
    assert_eq!(lines[3]["table"]["name"], "customers");
    assert_eq!(
        pair.on_blue("SELECT count(*) FROM pg_replication_slots").unwrap(),
        "0"
    );

    // With --consume, a transaction of which only a part was printed comes again.
    pair.on_blue("CREATE PUBLICATION own FOR ALL TABLES").unwrap();
    pair.on_blue("SELECT pg_create_logical_replication_slot('own', 'pgoutput')")
        .unwrap();
    pair.on_blue("INSERT INTO customers VALUES (2001, 'a', NULL), (2002, 'b', NULL)")
        .unwrap();
    for _ in 0..2 {
        let mut once = pair
            .spawn(&["tail", "--slot", "own", "--consume", "--limit", "1"])
            .unwrap();
        let ended = once.wait_timeout(LIMIT).unwrap();
        assert!(
            ended.stdout.contains("\"2001\""),
            "{} {}",
            ended.stdout,
            ended.stderr
        );
    }
    let nonsense = pair
        .verb(&["tail", "--slot", "own", "--until-lsn", "nonsense"], 2)
        .unwrap();
    assert_eq!(nonsense["error"]["object"], "--until-lsn nonsense");

    // The slot of a running job is its own.
    let running = following(&pair, &[]);
    let slot = pair
        .on_blue("SELECT slot_name FROM pg_replication_slots WHERE active")
        .unwrap();
    pair.verb(&["tail", "--slot", &slot, "--limit", "1"], 11).unwrap();
    end(running);
}

#[test]
fn a_capture_tells_what_tail_told_without_a_server() {
    let pair = shop(13, 17);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.cdccap");
    let file = path.to_str().unwrap();
    let mut tail = tail_of(&pair, &["--limit", "203", "--capture", file]);
    pair.on_blue(
        "INSERT INTO customers SELECT n, repeat('x', 5000), NULL FROM generate_series(2001, 2200) n; \
         UPDATE customers SET note = 'x' WHERE id IN (1, 2); DELETE FROM orders WHERE id = 1",
    )
    .unwrap();
    let told = tail.wait_timeout(LIMIT).unwrap();
    assert_eq!(told.code(), Some(0), "{}", told.stderr);
    let replay = |arguments: &[&str]| {
        let mut command = testbed::process::cdc_sync().unwrap();
        command.arg("replay").args(arguments);
        Process::run(command, LIMIT).unwrap()
    };
    let again = replay(&[file, "--limit", "203"]);
    assert_eq!(again.code(), Some(0), "{}", again.stderr);
    assert_eq!(again.stdout, told.stdout);
    let some = replay(&[file, "--table", "public.orders", "--typed"]);
    assert!(some.stdout.contains(r#""key":{"id":1}"#), "{}", some.stdout);
    assert!(!some.stdout.contains("customers"));

    // What exists is not written over, and what is damaged is told as far as it is whole.
    pair.verb(&["tail", "--limit", "1", "--capture", file], 2)
        .unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let cut = replay(&[file]);
    assert_eq!(cut.code(), Some(13), "{}", cut.stderr);
    assert!(
        cut.stderr.contains(file) && cut.stderr.contains("cut short"),
        "{}",
        cut.stderr
    );
    assert!(!cut.stdout.is_empty() && told.stdout.starts_with(&cut.stdout));
    assert_eq!(replay(&["nowhere.cdccap"]).code(), Some(2));
}

/// What the job has applied to green carries its origin in green's log, by which a stream in the other direction knows
/// where it came from.
#[test]
fn what_a_job_applied_is_marked_in_the_log() {
    let pair = shop(16, 18);
    let mut running = pair.spawn(&["run", "--job", "both"]).unwrap();
    running.wait_for("stream started", LIMIT).unwrap();
    pair.on_green("CREATE PUBLICATION all_of_it FOR TABLE customers")
        .unwrap();
    pair.on_green("SELECT pg_create_logical_replication_slot('probe', 'pgoutput')")
        .unwrap();
    pair.on_blue("INSERT INTO customers VALUES (2000, 'from blue', NULL)")
        .unwrap();
    let arrived = "SELECT count(*) FROM customers WHERE id = 2000";
    wait_for_green(&pair, &mut running, arrived, "1");
    pair.on_green("INSERT INTO customers VALUES (2001, 'from green', NULL)")
        .unwrap();
    // Origin messages of pgoutput begin with 'O'; the name follows the LSN at the origin.
    let origins = pair
        .on_green(
            "SELECT string_agg(convert_from(substr(data, 10, length(data) - 10), 'UTF8'), ' ') FROM \
             pg_logical_slot_get_binary_changes('probe', NULL, NULL, 'proto_version', '1', 'publication_names', 'all_of_it') \
             WHERE get_byte(data, 0) = ascii('O')",
        )
        .unwrap();
    let system = pair
        .on_blue("SELECT system_identifier FROM pg_control_system()")
        .unwrap();
    let database = pair
        .on_green("SELECT oid FROM pg_database WHERE datname = current_database()")
        .unwrap();
    assert_eq!(origins, format!("cdc_sync_{database}/{system}/both/app"));
    end(running);
    pair.on_green("SELECT pg_drop_replication_slot('probe')").unwrap();
    pair.verb(&["cleanup", "--job", "both"], 0).unwrap();
    assert_eq!(
        pair.on_green("SELECT count(*) FROM pg_replication_origin")
            .unwrap(),
        "0"
    );
}
