//! Looking at the log, and the statements for review.

use std::time::Duration;

use cdc_core::engine::{JobNames, Side, TailStream};
use cdc_core::{Batch, Kind, Op, RawChunk, TableSelection};
use testbed::PgCluster;

use crate::{all_tables, cluster, names, site};

/// Reads until `rows` changes have come; their tables and operations.
async fn changes(stream: &mut TailStream, rows: usize) -> Vec<(String, Op)> {
    let mut batch = Batch::new();
    while batch.rows().len() < rows {
        let mut chunk = RawChunk::default();
        tokio::time::timeout(Duration::from_secs(60), stream.source.read(&mut chunk))
            .await
            .expect("no changes within a minute")
            .unwrap();
        stream.decoder.decode(&mut chunk, &mut batch).unwrap();
        stream.source.confirm(None).await.unwrap();
    }
    let events = (0..batch.rows().len()).filter_map(|row| batch.event(row));
    events
        .map(|event| (event.table().unwrap().name.name.clone(), event.op()))
        .collect()
}

fn slots(source: &PgCluster) -> String {
    source
        .sql(
            "db",
            "SELECT count(*) || ' ' || count(*) FILTER (WHERE temporary) FROM pg_replication_slots",
        )
        .unwrap()
}

#[tokio::test]
async fn the_log_is_read_from_now_on_and_nothing_stays_but_the_publication() {
    for major in [12, 18] {
        let source = cluster(major);
        source
            .sql("db", "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); INSERT INTO t VALUES (0)")
            .unwrap();
        let blue = site(&source).await;
        let only_t = TableSelection {
            include: vec!["t".into()],
            ..TableSelection::default()
        };
        let mut stream = blue.tail(&names(), &only_t, None).await.unwrap();
        assert_eq!(slots(&source), "1 1");
        source
            .sql(
                "db",
                "INSERT INTO u VALUES (1); INSERT INTO t VALUES (1); DELETE FROM t WHERE id = 0",
            )
            .unwrap();
        let seen = changes(&mut stream, 2).await;
        assert_eq!(seen, [("t".to_owned(), Op::Insert), ("t".to_owned(), Op::Delete)]);
        stream.source.close().await.unwrap();
        drop(stream);
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while slots(&source) != "0 0" {
            assert!(std::time::Instant::now() < deadline, "the temporary slot stays");
        }
    }
}

#[tokio::test]
async fn a_slot_that_exists_is_looked_at_without_moving_it() {
    let source = cluster(16);
    source.sql("db", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let blue = site(&source).await;
    let tables = all_tables(&*blue).await;
    blue.prepare_source(&names(), &tables).await.unwrap();
    drop(blue.create_snapshot(&names(), true).await.unwrap());
    source
        .sql("db", "INSERT INTO t SELECT generate_series(1, 10)")
        .unwrap();
    let confirmed = || {
        source
            .sql(
                "db",
                "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'cdc_sync_job'",
            )
            .unwrap()
    };
    let before = confirmed();
    let all = TableSelection::default();
    // Another job's names: the slot is read through the publication of its own name.
    let other = JobNames {
        job: "looking".into(),
        slot: "cdc_sync_looking".into(),
    };
    for _ in 0..2 {
        let mut stream = blue.tail(&other, &all, Some("cdc_sync_job")).await.unwrap();
        assert_eq!(changes(&mut stream, 10).await.len(), 10);
        let error = blue.tail(&other, &all, Some("cdc_sync_job")).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Fenced, "{error:?}");
        stream.source.close().await.unwrap();
        assert_eq!(confirmed(), before);
    }
    let error = blue.tail(&other, &all, Some("missing")).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Config);
    source
        .sql(
            "db",
            "SELECT pg_create_logical_replication_slot('other', 'test_decoding')",
        )
        .unwrap_or_else(|_| {
            source
                .sql("db", "SELECT pg_create_physical_replication_slot('other')")
                .unwrap()
        });
    let error = blue.tail(&other, &all, Some("other")).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Config);
}

#[tokio::test]
async fn statements_for_review_prepare_both_sides() {
    let (source, target) = (cluster(12), cluster(18));
    source
        .sql(
            "db",
            "CREATE TABLE \"T;\" (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)",
        )
        .unwrap();
    let (blue, green) = (site(&source).await, site(&target).await);
    let selection = TableSelection {
        include: vec!["T;".into()],
        ..TableSelection::default()
    };
    for (site, cluster, side) in [(&blue, &source, Side::Source), (&green, &target, Side::Target)] {
        let statements = site.preparation(side, &names(), &selection).await.unwrap();
        assert!(
            statements.iter().all(|statement| statement.ends_with(';')),
            "{statements:#?}"
        );
        cluster.sql("db", &statements.join("\n")).unwrap();
    }
    let published = "SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_publication_tables";
    assert_eq!(source.sql("db", published).unwrap(), "T;,heartbeat,marker");
    let tables = blue.inspect(&selection).await.unwrap();
    let tables: Vec<_> = tables.into_iter().map(|table| table.name).collect();
    blue.prepare_source(&names(), &tables).await.unwrap();
    assert_eq!(source.sql("db", published).unwrap(), "T;,heartbeat,marker");
    green.prepare_state().await.unwrap();
    let state = green.stream_state("job").await.unwrap();
    assert!(state.checkpoint.is_none() && state.seed.is_empty());
    green.publish_status("job", "{}").await.unwrap();
    let status = green.published_status("job").await.unwrap().unwrap();
    assert_eq!(status.status, "{}");
    assert!(status.age < Duration::from_secs(60));
}
