//! One instance at a time, and none before the last transaction of the former has ended.

use std::time::{Duration, Instant};

use cdc_core::model::Identity;
use cdc_core::plan::PlanMode;
use cdc_core::{Action, Kind};
use cdc_postgres::config::Config;
use testbed::Gate;

use crate::changes::{Changes, Of, table};
use crate::on_each;
use crate::target::{STREAM, Target, checkpoint, site};

const SCHEMA: &str = "CREATE TABLE t (id int8 PRIMARY KEY, v text)";
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_live_instance_keeps_others_out_and_is_named() {
    on_each("held", SCHEMA, async |mut target| {
        let other = site(target.cluster, &target.database).await;
        let error = other
            .take_fence(STREAM, Duration::from_millis(300))
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind(), Kind::Fenced);
        assert!(error.message().contains("pid "), "{error}");
        assert!(other.holder(STREAM).await.unwrap().unwrap().contains("cdc-sync"));
        other
            .take_fence("another", Duration::from_millis(300))
            .await
            .unwrap();
        target.fence.check().await.unwrap();
        let Target { fence, sink, .. } = target;
        let epoch = fence.epoch();
        drop((fence, sink));
        let fence = other.take_fence(STREAM, PATIENCE).await.unwrap();
        assert_eq!(fence.epoch(), epoch + 1);
    });
}

#[test]
fn an_instance_that_was_taken_over_applies_nothing() {
    on_each("taken", SCHEMA, async |mut target| {
        let t = table("t", &["*id", "v"], Identity::Key);
        let group = |id: &str| Changes::new().insert(&t, &[id.into(), Of::Null]).group();
        target.apply(group("1"), PlanMode::Net).await.unwrap();
        target.sql("UPDATE cdc_sync.fence SET epoch = epoch + 1");
        let error = target.apply(group("2"), PlanMode::Net).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.what_to_do()),
            (Kind::Fenced, Action::Stop),
            "{error:?}"
        );
        target.sink.begin().await.unwrap();
        assert_eq!(
            target.sink.commit(&checkpoint(2)).await.unwrap_err().kind(),
            Kind::Fenced
        );
        assert_eq!(target.fence.check().await.unwrap_err().kind(), Kind::Fenced);
        let stored = target.site.finish_schema(STREAM, target.fence.epoch()).await;
        assert_eq!(stored.unwrap_err().kind(), Kind::Fenced);
        assert_eq!(target.sql("SELECT count(*) FROM t"), "1");
    });
}

#[test]
fn a_control_session_that_is_lost_is_opened_again() {
    on_each("control", SCHEMA, async |mut target| {
        // Only in this database: the clusters are shared, and other tests hold fences in theirs.
        target.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database d ON d.oid = database \
             WHERE locktype = 'advisory' AND datname = current_database()",
        );
        regained(&mut target).await;
        assert!(target.site.holder(STREAM).await.unwrap().is_some());
    });
}

/// Checks the fence until it holds; each error on the way is one to reconnect after.
async fn regained(target: &mut Target) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = target.fence.check().await {
        assert_eq!(error.what_to_do(), Action::Reconnect, "{error:?}");
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The server may not know yet that a control session of ours is dead: it holds the lock, but no epoch of its own.
#[test]
fn a_lock_that_is_still_held_stops_nobody_whose_epoch_stands() {
    on_each("lingering", SCHEMA, async |mut target| {
        let url = target.cluster.url(&target.database);
        let lingering = testbed::postgres::connect(&url).await.unwrap();
        let lock = format!("SELECT pg_advisory_lock(1667523443, hashtext('{STREAM}'))");
        let taken = tokio::spawn(async move {
            lingering.batch_execute(&lock).await.unwrap();
            lingering
        });
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let deadline = Instant::now() + PATIENCE;
        while target.sql(waits) != "1" {
            assert!(Instant::now() < deadline, "the lock is not waited for");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The control session ends, and the lock is at once another's.
        target.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database d ON d.oid = database \
             WHERE locktype = 'advisory' AND granted AND datname = current_database()",
        );
        let lingering = taken.await.unwrap();
        for _ in 0..3 {
            let error = target.fence.check().await.unwrap_err();
            assert_eq!(
                (error.kind(), error.what_to_do()),
                (Kind::Unreachable, Action::Reconnect),
                "{error:?}"
            );
        }
        drop(lingering);
        regained(&mut target).await;
    });
}

/// Leaves a session that executes `script` behind: its client is gone, the server goes on.
async fn orphan(target: &Target, script: &str) {
    let config = Config::parse(&target.cluster.url(&target.database)).unwrap();
    let (client, driver) = config.connect_client(&[]).await.unwrap();
    let script = script.to_owned();
    let running = tokio::spawn(async move { client.batch_execute(&script).await });
    let deadline = Instant::now() + PATIENCE;
    while Gate::waiting(target.cluster, &target.database).unwrap() != 1 {
        assert!(!running.is_finished(), "{:?}", running.await);
        assert!(Instant::now() < deadline, "the orphan does not run");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    driver.abort();
    running.abort();
}

#[test]
fn a_takeover_waits_for_the_statement_of_a_killed_instance() {
    on_each("waits", SCHEMA, async |target| {
        let other = site(target.cluster, &target.database).await;
        let epoch = target.fence.epoch();
        let gate = Gate::shut(target.cluster, &target.database).unwrap();
        orphan(
            &target,
            &format!(
                "BEGIN; SELECT cdc_sync.hold_fence('{STREAM}', {epoch}); INSERT INTO public.t VALUES (1, 'orphan'); \
                 SELECT {}; COMMIT",
                Gate::pass()
            ),
        )
        .await;
        let Target {
            fence,
            sink,
            cluster,
            database,
            ..
        } = target;
        drop((fence, sink));
        let raises = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO cdc_sync.fence%' \
                      AND wait_event_type = 'Lock' AND datname = current_database()";
        let (fence, ()) = tokio::join!(other.take_fence(STREAM, PATIENCE), async {
            let deadline = Instant::now() + PATIENCE;
            while cluster.sql(&database, raises).unwrap() != "1" {
                assert!(Instant::now() < deadline, "the takeover does not wait");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            gate.open();
        });
        assert_eq!(fence.unwrap().epoch(), epoch + 1);
        assert_eq!(cluster.sql(&database, "SELECT v FROM t").unwrap(), "orphan");
    });
}

#[test]
fn a_takeover_ends_what_does_not_end() {
    on_each("ends", SCHEMA, async |target| {
        let other = site(target.cluster, &target.database).await;
        let epoch = target.fence.epoch();
        let _gate = Gate::shut(target.cluster, &target.database).unwrap();
        orphan(
            &target,
            &format!(
                "BEGIN; SELECT cdc_sync.hold_fence('{STREAM}', {epoch}); INSERT INTO public.t VALUES (1, 'orphan'); \
                 SELECT {}; COMMIT",
                Gate::pass()
            ),
        )
        .await;
        let Target {
            fence,
            sink,
            cluster,
            database,
            ..
        } = target;
        drop((fence, sink));
        let fence = other
            .take_fence(STREAM, Duration::from_millis(1_500))
            .await
            .unwrap();
        assert_eq!(fence.epoch(), epoch + 1);
        assert_eq!(cluster.sql(&database, "SELECT count(*) FROM t").unwrap(), "0");
    });
}

/// A server does not look whether the client of a session that waits for a lock is still there.
#[test]
fn an_instance_that_died_while_it_waited_keeps_nobody_out() {
    on_each("died_waiting", SCHEMA, async |target| {
        let Target { fence, sink, .. } = target;
        drop((fence, sink));
        let url = target.cluster.url(&target.database);
        let running = testbed::postgres::connect(&url).await.unwrap();
        let last = format!("BEGIN; SELECT FROM cdc_sync.fence WHERE stream = '{STREAM}' FOR SHARE");
        running.batch_execute(&last).await.unwrap();
        let other = site(target.cluster, &target.database).await;
        let deadline = Instant::now() + PATIENCE;
        let dead = {
            let dies = other.take_fence(STREAM, PATIENCE);
            tokio::pin!(dies);
            let holds = async {
                loop {
                    if let Some(holder) = other.holder(STREAM).await.unwrap() {
                        return holder;
                    }
                    assert!(Instant::now() < deadline, "the lock is not taken");
                }
            };
            tokio::select! {
                _ = &mut dies => panic!("the fence was taken over a running transaction"),
                holder = holds => holder,
            }
        };
        let (taken, ()) = tokio::join!(other.take_fence(STREAM, PATIENCE), async {
            // The next one holds the lock while the transaction that the dead one waited for still runs.
            while other
                .holder(STREAM)
                .await
                .unwrap()
                .is_none_or(|holder| holder == dead)
            {
                assert!(Instant::now() < deadline, "the dead one keeps the lock");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            running.batch_execute("COMMIT").await.unwrap();
        });
        taken.unwrap();
    });
}
