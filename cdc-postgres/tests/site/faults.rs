//! The copy when connections break and transactions stand in the way.

use std::time::{Duration, Instant};

use cdc_core::seed::{BulkFormat, BulkLoader, TablePart};
use cdc_core::{Action, Engine, Error, Kind, Site};
use cdc_postgres::PgEngine;
use testbed::proxy::Proxy;
use testbed::{Gate, PgCluster};

use crate::{cluster, fence, names, site, table};

/// Waits for a condition on the server.
pub(crate) async fn until(cluster: &PgCluster, query: &str, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while cluster.sql("db", query).unwrap() != wanted {
        assert!(Instant::now() < deadline, "{query} is not {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A target where the COMMIT of a load waits at a gate.
fn gated() -> (PgCluster, Gate) {
    let target = cluster(16);
    let schema = format!("CREATE TABLE t (id int); {}", Gate::at_commit("t"));
    target.sql("db", &schema).unwrap();
    let gate = Gate::shut(&target, "db").unwrap();
    (target, gate)
}

/// Waits until a COMMIT has come to the gate.
async fn at_gate(target: &PgCluster) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Gate::waiting(target, "db").unwrap() == 0 {
        assert!(Instant::now() < deadline, "nothing comes to the gate");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const ASKING: &str = "query LIKE 'SELECT txid_status%'";

fn whole_table() -> TablePart {
    TablePart {
        table: table("public", "t"),
        columns: vec!["id".into()],
        range: None,
        index: 0,
        of: 1,
    }
}

async fn loaded(green: &dyn Site) -> Box<dyn BulkLoader> {
    let epoch = fence(green).await.epoch();
    let part = whole_table();
    let mut loader = green
        .loader("job", epoch, &part, BulkFormat("postgres.copy.text".into()))
        .await
        .unwrap();
    loader.write(bytes::Bytes::from_static(b"1\n2\n")).await.unwrap();
    loader
}

#[tokio::test]
async fn a_load_whose_commit_was_not_answered_is_known_to_have_taken_effect() {
    let (target, gate) = gated();
    let proxy = Proxy::start(target.port()).unwrap();
    let green = PgEngine
        .connect(&target.url_at(proxy.port(), "db"), Duration::from_secs(10))
        .await
        .unwrap();
    let finish = tokio::spawn(loaded(&*green).await.finish());
    at_gate(&target).await;
    proxy.cut_all();
    // The load asks for the outcome, which is not there yet.
    until(
        &target,
        &format!("SELECT count(*) > 0 FROM pg_stat_activity WHERE {ASKING}"),
        "t",
    )
    .await;
    gate.open();
    assert_eq!(finish.await.unwrap().unwrap(), 2);
    assert_eq!(target.sql("db", "SELECT count(*) FROM t").unwrap(), "2");
}

#[tokio::test]
async fn a_load_whose_session_was_ended_is_known_to_have_failed() {
    let (target, gate) = gated();
    let green = site(&target).await;
    let finish = tokio::spawn(loaded(&*green).await.finish());
    at_gate(&target).await;
    target
        .sql(
            "db",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'COMMIT'",
        )
        .unwrap();
    let error: Error = finish.await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.what_to_do()),
        (Kind::Unreachable, Action::Reconnect),
        "{error:?}"
    );
    gate.open();
    assert_eq!(target.sql("db", "SELECT count(*) FROM t").unwrap(), "0");
}

#[tokio::test]
async fn a_load_of_an_instance_that_was_taken_over_leaves_nothing() {
    let target = cluster(12);
    target.sql("db", "CREATE TABLE t (id int)").unwrap();
    let green = site(&target).await;
    let loader = loaded(&*green).await;
    // The load has begun, and holds the fence.
    until(
        &target,
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY %' AND state = 'active'",
        "1",
    )
    .await;
    // The successor waits for what is being loaded, and what the former instance begins after it is refused.
    let successor = site(&target).await;
    let takeover = successor.take_fence("job", Duration::from_secs(60));
    let (fence, finished) = tokio::join!(takeover, loader.finish());
    assert_eq!((fence.unwrap().epoch(), finished.unwrap()), (2, 2));
    let part = whole_table();
    let mut late = green
        .loader("job", 1, &part, BulkFormat("postgres.copy.text".into()))
        .await
        .unwrap();
    let _ = late.write(bytes::Bytes::from_static(b"3\n")).await;
    let error = late.finish().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.what_to_do()),
        (Kind::Fenced, Action::Stop),
        "{error:?}"
    );
    assert_eq!(target.sql("db", "SELECT count(*) FROM t").unwrap(), "2");
}

#[tokio::test]
async fn a_copy_whose_connections_break_says_what_is_lost() {
    let source = cluster(18);
    source
        .sql(
            "db",
            "CREATE TABLE t (id int PRIMARY KEY, pad text); \
                    INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 100000) i",
        )
        .unwrap();
    let proxy = Proxy::start(source.port()).unwrap();
    let blue = PgEngine
        .connect(&source.url_at(proxy.port(), "db"), Duration::from_secs(10))
        .await
        .unwrap();
    // The holder of the snapshot goes the same way as its readers: all is lost, and said to be.
    let snapshot = blue.create_snapshot(&names(), false).await.unwrap();
    let parts = snapshot.parts(&table("public", "t"), 1 << 30).await.unwrap();
    assert_eq!(parts.len(), 1);
    let mut reader = snapshot
        .read(&parts[0], &[BulkFormat("postgres.copy.text".into())])
        .await
        .unwrap();
    reader.next().await.unwrap().unwrap();
    proxy.cut_all();
    let error = loop {
        match reader.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a cut copy ended well"),
            Err(error) => break error,
        }
    };
    assert_eq!(
        (error.kind(), error.what_to_do()),
        (Kind::Unreachable, Action::Reconnect),
        "{error:?}"
    );
    until(
        &source,
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'",
        "0",
    )
    .await;
    let error = snapshot
        .read(&parts[0], &[BulkFormat("postgres.copy.text".into())])
        .await
        .err()
        .unwrap();
    // A new snapshot mends it.
    assert_eq!(
        (error.kind(), error.what_to_do()),
        (Kind::PositionLost, Action::Retry),
        "{error:?}"
    );
    assert_eq!(snapshot.alive().await.unwrap_err().what_to_do(), Action::Retry);
}

#[tokio::test]
async fn a_slot_waits_for_old_transactions_and_is_not_left_behind() {
    let source = cluster(15);
    source.sql("db", "CREATE TABLE t (id int)").unwrap();
    let blue = site(&source).await;
    let (mut client, connection) = tokio_postgres::connect(&source.url("db"), tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let writing = client.transaction().await.unwrap();
    writing.execute("INSERT INTO t VALUES (1)", &[]).await.unwrap();
    let names = names();
    let given_up = tokio::time::timeout(Duration::from_secs(6), blue.create_snapshot(&names, true)).await;
    assert!(given_up.is_err(), "the slot did not wait for the transaction");
    until(&source, "SELECT count(*) FROM pg_replication_slots", "0").await;
    until(
        &source,
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'",
        "0",
    )
    .await;

    let waiting = blue.create_snapshot(&names, true);
    let committing = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        writing.commit().await.unwrap();
    };
    let (snapshot, ()) = tokio::join!(waiting, committing);
    let snapshot = snapshot.unwrap();
    let parts = snapshot.parts(&table("public", "t"), 1 << 20).await.unwrap();
    let mut reader = snapshot
        .read(&parts[0], &[BulkFormat("postgres.copy.text".into())])
        .await
        .unwrap();
    assert_eq!(reader.next().await.unwrap().as_deref(), Some(&b"1\n"[..]));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_waited_for_and_then_named() {
    let mut target = cluster(18);
    target.stop(testbed::StopMode::Fast).unwrap();
    let begun = Instant::now();
    let error = PgEngine
        .connect(&target.url("db"), Duration::from_secs(2))
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), Kind::Unreachable, "{error:?}");
    assert!(begun.elapsed() >= Duration::from_millis(1500) && begun.elapsed() < Duration::from_secs(20));
    let url = target.url("db");
    let connecting =
        tokio::spawn(async move { PgEngine.connect(&url, Duration::from_secs(120)).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let _target = tokio::task::spawn_blocking(move || target.start_again().map(|()| target))
        .await
        .unwrap()
        .unwrap();
    connecting.await.unwrap().unwrap();
    for (url, kind) in [
        ("postgres://h/d?nonsense=1", Kind::Config),
        ("mysql://h/d", Kind::Config),
    ] {
        let error = PgEngine.connect(url, Duration::from_secs(1)).await.err().unwrap();
        assert_eq!(error.kind(), kind);
    }
}
