//! Verify beside a job: running, stopped, and interrupted.

use std::time::{Duration, Instant};

use cdc_core::{Kind, TableSelection};
use cdc_sync::verify::{Alignment, Progress, VerifyOptions, verify};
use testbed::PgCluster;

use super::job::{Job, Writer};
use super::{DATABASE, block_on, compare, names, pair, site, table};

const SCHEMA: &str = "
    CREATE TABLE account (id int PRIMARY KEY, balance bigint);
    CREATE TABLE history (account int, note text);
    CREATE TABLE quiet (id uuid PRIMARY KEY, v text);
    INSERT INTO account SELECT i, 0 FROM generate_series(0, 999) i;
    INSERT INTO quiet SELECT md5(i::text)::uuid, repeat('x', i % 100) FROM generate_series(1, 5000) i;";

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn barriers(target: &PgCluster) -> String {
    target
        .sql(DATABASE, "SELECT count(*) FROM cdc_sync.barrier")
        .unwrap()
}

#[test]
fn a_running_job_is_compared_exactly_while_blue_is_written() {
    let (source, target) = pair(12, 18);
    source.sql(DATABASE, SCHEMA).unwrap();
    let writer = Writer::start(&source.url(DATABASE));
    let job = Job::start(&source, &target, false);
    job.wait_until_verifiable(&target);
    for _ in 0..5 {
        let before = job.transactions();
        let report = compare(&source, &target);
        assert_eq!(report.exit_code(), 0, "{report:#?}");
        assert_eq!(report.alignment, Alignment::Running);
        assert!(report.position.is_some() && report.tables.len() == 3);
        assert_eq!(barriers(&target), "0");
        wait("the stream goes on", || job.transactions() > before);
    }
    // Two at once take turns.
    let reports = std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| compare(&source, &target)));
        both.map(|verify| verify.join().unwrap())
    });
    for report in reports {
        assert_eq!(
            (report.exit_code(), report.alignment),
            (0, Alignment::Running),
            "{report:#?}"
        );
    }
    // A row that only the target has changed is found, with everything around it moving.
    target.sql(DATABASE, "UPDATE quiet SET v = v || '!' WHERE id = md5('7')::uuid; DELETE FROM quiet WHERE id = md5('8')::uuid").unwrap();
    let report = compare(&source, &target);
    assert_eq!((report.exit_code(), report.differences), (5, 2));
    assert_eq!(
        (table(&report, "quiet").different, table(&report, "quiet").missing),
        (1, 1)
    );
    assert!(writer.stop() > 100);
    job.stop();
}

#[test]
fn a_stopped_job_is_compared_where_it_stands() {
    let (source, target) = pair(14, 17);
    source.sql(DATABASE, SCHEMA).unwrap();
    assert!(Job::start(&source, &target, true).join().caught_up);
    let report = compare(&source, &target);
    assert_eq!(
        (report.alignment, report.exit_code()),
        (Alignment::Stopped, 0),
        "{report:#?}"
    );

    // Writes elsewhere and to tables that are not replicated are no changes.
    source
        .sql(
            DATABASE,
            "CREATE TEMP TABLE t AS SELECT 1; SELECT pg_switch_wal()",
        )
        .unwrap();
    assert_eq!(compare(&source, &target).exit_code(), 0);

    let confirmed =
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'cdc_sync_verified'";
    let stood = source.sql(DATABASE, confirmed).unwrap();
    source
        .sql(
            DATABASE,
            "UPDATE account SET balance = 1 WHERE id < 3; INSERT INTO history VALUES (1, 'x')",
        )
        .unwrap();
    target
        .sql(DATABASE, "DELETE FROM quiet WHERE id = md5('9')::uuid")
        .unwrap();
    let report = compare(&source, &target);
    let reason = |name| table(&report, name).unverifiable.clone().unwrap_or_default();
    assert!(
        reason("account").starts_with("3 changes") && reason("history").starts_with("1 changes"),
        "{report:#?}"
    );
    assert_eq!(
        (
            table(&report, "quiet").missing,
            report.exit_code(),
            report.unverifiable
        ),
        (1, 5, 2)
    );
    assert_eq!(report.notes.len(), 1);
    assert_eq!(
        source.sql(DATABASE, confirmed).unwrap(),
        stood,
        "verify confirms nothing"
    );

    target
        .sql(
            DATABASE,
            "INSERT INTO quiet VALUES (md5('9')::uuid, repeat('x', 9))",
        )
        .unwrap();
    assert_eq!(compare(&source, &target).exit_code(), 10);
    assert!(Job::start(&source, &target, true).join().caught_up);
    assert_eq!(compare(&source, &target).exit_code(), 0);

    source
        .sql(DATABASE, "SELECT pg_drop_replication_slot('cdc_sync_verified')")
        .unwrap();
    let error = block_on(async {
        let (source, target) = (site(&source).await, site(&target).await);
        let options = VerifyOptions::default();
        verify(
            &source,
            &target,
            &names(),
            &TableSelection::default(),
            &options,
            &|_| {},
        )
        .await
        .unwrap_err()
    });
    assert_eq!(error.kind(), Kind::Unverifiable, "{error}");
}

#[test]
fn a_verify_that_is_given_up_lets_the_stream_go_on() {
    let (source, target) = pair(18, 18);
    source.sql(DATABASE, SCHEMA).unwrap();
    let job = Job::start(&source, &target, false);
    job.wait_until_verifiable(&target);
    // A transaction that writes holds the source's snapshot back, so that the verify stays at its barrier.
    block_on(async {
        let (client, connection) = tokio_postgres::connect(&source.url(DATABASE), tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        client
            .batch_execute("BEGIN; INSERT INTO history VALUES (0, 'open')")
            .await
            .unwrap();
        let sites = (site(&source).await, site(&target).await);
        let attempt = |deadline: Option<Duration>, max_standstill| {
            let options = VerifyOptions {
                deadline: deadline.map(|left| tokio::time::Instant::now() + left),
                max_standstill,
                ..VerifyOptions::default()
            };
            let sites = &sites;
            async move {
                let names = names();
                let selection = TableSelection::default();
                let standing = |progress: Progress<'_>| {
                    if let Progress::Waiting { what } = progress {
                        assert!(!what.is_empty());
                    }
                };
                verify(&sites.0, &sites.1, &names, &selection, &options, &standing).await
            }
        };
        let error = attempt(Some(Duration::from_secs(4)), Duration::from_secs(60))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Deadline, "{error}");
        assert_eq!(barriers(&target), "0", "after a deadline");
        let error = attempt(None, Duration::from_secs(2)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unverifiable, "{error}");
        assert_eq!(barriers(&target), "0", "after a standstill that was too long");
        let dropped =
            tokio::time::timeout(Duration::from_secs(4), attempt(None, Duration::from_secs(60))).await;
        assert!(dropped.is_err());
        let deadline = Instant::now() + Duration::from_secs(60);
        while barriers(&target) != "0" {
            assert!(Instant::now() < deadline, "after it was dropped");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        client.batch_execute("COMMIT").await.unwrap();
    });
    let before = job.transactions();
    source.sql(DATABASE, "UPDATE account SET balance = 7").unwrap();
    wait("the stream goes on", || job.transactions() > before);
    assert_eq!(compare(&source, &target).exit_code(), 0);
    // Slot creation was given up with the verify: nothing is left on the source but the job's own.
    wait("temporary slots go", || {
        source
            .sql(DATABASE, "SELECT count(*) FROM pg_replication_slots")
            .unwrap()
            == "1"
    });
    job.stop();
}
