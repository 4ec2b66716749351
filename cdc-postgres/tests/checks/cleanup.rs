//! Cleanup: drops what a job made, nothing of another job, and does it once.

use cdc_core::engine::{CleanupReport, Side};
use cdc_core::{Kind, Site, TableName};
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
    cluster
        .sql(
            "app",
            "CREATE SCHEMA cdc_sync;
             CREATE TABLE cdc_sync.format (version int);
             CREATE TABLE cdc_sync.fence (stream text PRIMARY KEY, epoch bigint);
             CREATE TABLE cdc_sync.seed (id bigserial, stream text REFERENCES cdc_sync.fence, v text);
             CREATE TABLE cdc_sync.heartbeat (stream text, beat bigint);
             INSERT INTO cdc_sync.fence VALUES ('a', 1), ('b', 1); INSERT INTO cdc_sync.heartbeat VALUES ('other', 1);
             INSERT INTO cdc_sync.seed (stream) VALUES ('a'), ('a'), ('b')",
        )
        .unwrap();
    block_on(async {
        let site = site(&cluster.url("app")).await;
        let site = site.as_ref();
        let done = clean(site, Side::Target, "a", false).await;
        assert_eq!(
            done.dropped,
            ["2 rows of table cdc_sync.seed", "1 rows of table cdc_sync.fence"]
        );
        assert_eq!(done.stays, ["schema cdc_sync: used by stream b"]);
        let done = clean(site, Side::Target, "b", false).await;
        assert_eq!(
            done.dropped,
            [
                "table cdc_sync.format",
                "table cdc_sync.seed with 1 rows",
                "table cdc_sync.fence with 1 rows"
            ]
        );
        assert_eq!(done.stays, ["schema cdc_sync: holds table cdc_sync.heartbeat"]);
        cluster.sql("app", "DROP TABLE cdc_sync.heartbeat").unwrap();
        assert_eq!(
            clean(site, Side::Target, "b", true).await.dropped,
            ["schema cdc_sync"]
        );
        assert_eq!(
            clean(site, Side::Target, "b", false).await.dropped,
            ["schema cdc_sync"]
        );
        assert_eq!(
            clean(site, Side::Target, "b", false).await,
            CleanupReport::default()
        );
    });
}
