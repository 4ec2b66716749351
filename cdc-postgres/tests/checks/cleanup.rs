//! Cleanup: drops what a job made, nothing of another job, and does it once.

use std::time::Duration;

use cdc_core::engine::{CleanupReport, SeedPhase, SeedTable, Side};
use cdc_core::model::ChangeCounts;
use cdc_core::{Checkpoint, Kind, Position, Site, SourceIdentity, TableName};
use cdc_postgres::config::Config;
use cdc_postgres::walsender::{PgoutputOptions, WalSender, WalSenderOptions};
use testbed::PgCluster;

use super::{MAJORS, block_on, names, site};

const LEFT: &str =
    "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_publication),
    (SELECT count(*) FROM pg_namespace WHERE nspname = 'cdc_sync')";

async fn make(site: &dyn Site, cluster: &PgCluster, job: &str) {
    let names = names(job);
    site.prepare_source(&names, &[TableName::new("public", "t")])
        .await
        .unwrap();
    site.beat(&names, 1).await.unwrap();
    site.mark(&names, "m").await.unwrap();
    cluster
        .sql(
            "app",
            &format!(
                "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
                names.slot
            ),
        )
        .unwrap();
}

async fn clean(site: &dyn Site, side: Side, job: &str, dry_run: bool) -> CleanupReport {
    site.cleanup(side, &names(job), dry_run).await.unwrap()
}

#[test]
fn a_source_loses_what_the_job_made() {
    for major in MAJORS {
        let cluster = PgCluster::builder(major).start().unwrap();
        cluster.create_database("app").unwrap();
        cluster.sql("app", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
        block_on(async {
            let site = site(&cluster.url("app")).await;
            let site = site.as_ref();
            make(site, &cluster, "a").await;
            make(site, &cluster, "b").await;
            let dry = clean(site, Side::Source, "a", true).await;
            assert_eq!(cluster.sql("app", LEFT).unwrap(), "2|2|1");
            let done = clean(site, Side::Source, "a", false).await;
            assert_eq!(dry, done);
            assert_eq!(
                done.dropped,
                [
                    "replication slot cdc_sync_a",
                    "publication cdc_sync_a",
                    "1 rows of table cdc_sync.heartbeat",
                    "1 rows of table cdc_sync.marker"
                ]
            );
            assert_eq!(
                done.stays,
                ["schema cdc_sync: used by publication cdc_sync_b, stream b"]
            );
            assert_eq!(cluster.sql("app", LEFT).unwrap(), "1|1|1");
            assert!(clean(site, Side::Source, "a", false).await.dropped.is_empty());
            let done = clean(site, Side::Source, "b", false).await;
            assert_eq!(
                done.dropped[2..],
                [
                    "table cdc_sync.heartbeat with 1 rows",
                    "table cdc_sync.marker with 1 rows",
                    "schema cdc_sync"
                ]
            );
            assert!(done.stays.is_empty());
            assert_eq!(cluster.sql("app", LEFT).unwrap(), "0|0|0");
            assert_eq!(
                clean(site, Side::Source, "b", false).await,
                CleanupReport::default()
            );
            assert_eq!(cluster.sql("app", "SELECT count(*) FROM t").unwrap(), "0");
        });
    }
}

#[test]
fn a_slot_in_use_or_of_another_stays() {
    for major in MAJORS {
        let cluster = PgCluster::builder(major).start().unwrap();
        cluster.create_database("app").unwrap();
        cluster.sql("app", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
        let url = cluster.url("app");
        block_on(async {
            let site = site(&url).await;
            make(site.as_ref(), &cluster, "a").await;
            let config = Config::parse_with(&url, &|_| None).unwrap();
            let mut sender = WalSender::connect(&config, &WalSenderOptions::default())
                .await
                .unwrap();
            let options = PgoutputOptions::new(vec!["cdc_sync_a".into()]);
            sender
                .start_logical_replication("cdc_sync_a", "0/0".parse().unwrap(), &options)
                .await
                .unwrap();
            let error = site.cleanup(Side::Source, &names("a"), false).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Fenced);
            assert!(
                error.to_string().contains(&sender.backend_pid().to_string()),
                "{error}"
            );
            assert_eq!(
                cluster.sql("app", LEFT).unwrap(),
                "1|1|1",
                "nothing is dropped then"
            );
            sender.close().await;
            assert_eq!(
                clean(site.as_ref(), Side::Source, "a", false).await.dropped.len(),
                5
            );

            cluster
                .sql("app", "SELECT pg_create_physical_replication_slot('cdc_sync_p')")
                .unwrap();
            let kept = clean(site.as_ref(), Side::Source, "p", false).await;
            assert!(
                kept.dropped.is_empty() && kept.stays[0].contains("cdc_sync_p"),
                "{kept:?}"
            );
        });
    }
}

#[test]
fn a_target_loses_the_streams_rows_and_the_last_one_the_schema() {
    let cluster = PgCluster::builder(16).start().unwrap();
    cluster.create_database("app").unwrap();
    cluster.sql("app", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    block_on(async {
        let site = site(&cluster.url("app")).await;
        let site = site.as_ref();
        for job in ["a", "b"] {
            site.prepare_state().await.unwrap();
            let fence = site.take_fence(job, Duration::from_secs(60)).await.unwrap();
            let seed = SeedTable {
                table: TableName::new("public", "t"),
                phase: SeedPhase::Todo,
                position: Position::new("0/1"),
                rows: 0,
                bytes: 0,
            };
            site.start_stream(fence.epoch(), &checkpoint(job), &[seed], false)
                .await
                .unwrap();
            site.publish_status(job, "{}").await.unwrap();
        }
        let done = clean(site, Side::Target, "a", false).await;
        let rows = ["seed", "stream", "fence", "checkpoint", "status", "history"];
        for table in rows {
            let row = format!("1 rows of table cdc_sync.{table}");
            assert!(done.dropped.contains(&row), "{done:?}");
        }
        assert_eq!(done.dropped.len(), rows.len(), "{done:?}");
        assert_eq!(done.stays, ["schema cdc_sync: used by stream b"]);

        // Something that is not ours keeps the schema.
        cluster
            .sql(
                "app",
                "CREATE TABLE cdc_sync.heartbeat (stream text, beat bigint)",
            )
            .unwrap();
        let dry = clean(site, Side::Target, "b", true).await;
        let done = clean(site, Side::Target, "b", false).await;
        assert_eq!(dry, done);
        assert_eq!(done.stays, ["schema cdc_sync: holds table cdc_sync.heartbeat"]);
        cluster.sql("app", "DROP TABLE cdc_sync.heartbeat").unwrap();
        assert_eq!(
            clean(site, Side::Target, "b", false).await.dropped,
            ["schema cdc_sync"]
        );
        assert_eq!(
            clean(site, Side::Target, "b", false).await,
            CleanupReport::default()
        );

        // And it can be made again.
        site.prepare_state().await.unwrap();
        let done = clean(site, Side::Target, "b", false).await;
        assert_eq!(done.dropped.last().unwrap(), "schema cdc_sync", "{done:?}");
        assert_eq!(cluster.sql("app", LEFT).unwrap(), "0|0|0");
    });
}

fn checkpoint(job: &str) -> Checkpoint {
    Checkpoint {
        stream: job.into(),
        source: SourceIdentity {
            system: "7".into(),
            database: "app".into(),
            timeline: "1".into(),
            slot: format!("cdc_sync_{job}"),
        },
        position: Position::new("0/1"),
        commit_time_micros: 0,
        groups: 0,
        transactions: 0,
        changes: ChangeCounts::default(),
    }
}
