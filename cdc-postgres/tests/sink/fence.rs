//! One instance at a time, and none before the last transaction of the former has ended.

use std::time::{Duration, Instant};

use cdc_core::model::Identity;
use cdc_core::plan::PlanMode;
use cdc_core::{Action, Kind};
use cdc_postgres::config::Config;

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
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = target.fence.check().await {
            assert_eq!(error.what_to_do(), Action::Reconnect, "{error:?}");
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(target.site.holder(STREAM).await.unwrap().is_some());
    });
}

/// Leaves a session that executes `script` behind: its client is gone, the server goes on.
async fn orphan(target: &Target, script: &str) {
    let config = Config::parse(&target.cluster.url(&target.database)).unwrap();
    let (client, driver) = config.connect_client(&[]).await.unwrap();
    let script = script.to_owned();
    let running = tokio::spawn(async move { client.batch_execute(&script).await });
    let waits =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
    let deadline = Instant::now() + PATIENCE;
    while target.sql(waits) != "1" {
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
        orphan(
            &target,
            &format!(
                "BEGIN; SELECT cdc_sync.hold_fence('{STREAM}', {epoch}); INSERT INTO public.t VALUES (1, 'orphan'); \
                 SELECT pg_sleep(2); COMMIT"
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
        let fence = other.take_fence(STREAM, PATIENCE).await.unwrap();
        assert_eq!(fence.epoch(), epoch + 1);
        assert_eq!(cluster.sql(&database, "SELECT v FROM t").unwrap(), "orphan");
    });
}

#[test]
fn a_takeover_ends_what_does_not_end() {
    on_each("ends", SCHEMA, async |target| {
        let other = site(target.cluster, &target.database).await;
        let epoch = target.fence.epoch();
        orphan(
            &target,
            &format!(
                "BEGIN; SELECT cdc_sync.hold_fence('{STREAM}', {epoch}); INSERT INTO public.t VALUES (1, 'orphan'); \
                 SELECT pg_sleep(600); COMMIT"
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
