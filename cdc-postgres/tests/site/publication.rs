//! What the source holds for a stream, heartbeats and the catalog.

use std::time::{Duration, Instant};

use cdc_core::{Action, Engine, Kind, TableSelection};
use cdc_postgres::PgEngine;

use crate::{all_tables, cluster, names, site, table};

const PUBLISHED: &str = "SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_publication_tables \
     WHERE pubname = 'cdc_sync_job'";

#[tokio::test]
async fn the_publication_holds_leaves_and_is_completed() {
    for major in [12, 15, 18] {
        let source = cluster(major);
        let blue = site(&source).await;
        source
            .sql(
                "db",
                r#"CREATE TABLE plain (id int PRIMARY KEY);
                   CREATE TABLE "Odd ""name" (id int PRIMARY KEY);
                   CREATE TABLE parted (id int, k int, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
                   CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (k);
                   CREATE TABLE parted_1_1 PARTITION OF parted_1 FOR VALUES FROM (0) TO (5);
                   CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20);"#,
            )
            .unwrap();
        let tables = all_tables(&*blue).await;
        let (first, _) = tables.split_at(2);
        blue.prepare_source(&names(), first).await.unwrap();
        assert_eq!(
            source.sql("db", PUBLISHED).unwrap(),
            "Odd \"name,heartbeat,marker,parted_1_1",
            "{major}"
        );
        // Made narrower by hand, it is mended; a second time changes nothing.
        source
            .sql("db", "ALTER PUBLICATION cdc_sync_job SET (publish = 'insert')")
            .unwrap();
        for _ in 0..2 {
            blue.prepare_source(&names(), &tables).await.unwrap();
            assert_eq!(
                source.sql("db", PUBLISHED).unwrap(),
                "Odd \"name,heartbeat,marker,parted_1_1,parted_2,plain"
            );
            let all = "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication";
            assert_eq!(source.sql("db", all).unwrap(), "t");
        }
        blue.beat(&names(), 1).await.unwrap();
        blue.beat(&names(), 2).await.unwrap();
        for id in ["one", "two", "two"] {
            blue.mark(&names(), id).await.unwrap();
        }
        let rows = "SELECT (SELECT string_agg(stream || beat, ',') FROM cdc_sync.heartbeat) || ' ' || \
                           (SELECT string_agg(stream || id, ',') FROM cdc_sync.marker)";
        assert_eq!(source.sql("db", rows).unwrap(), "job2 jobtwo");
        // The session that beats is lost: one beat may fail, the next has a new one.
        source
            .sql(
                "db",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cdc-sync'",
            )
            .unwrap();
        let _ = blue.beat(&names(), 3).await;
        blue.beat(&names(), 4).await.unwrap();
    }
}

#[tokio::test]
async fn a_table_published_in_part_is_refused() {
    let source = cluster(15);
    source
        .sql("db", "CREATE TABLE t (id int PRIMARY KEY, a int); CREATE PUBLICATION cdc_sync_job FOR TABLE t WHERE (id > 5)")
        .unwrap();
    let blue = site(&source).await;
    let error = blue
        .prepare_source(&names(), &[table("public", "t")])
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.object_name()),
        (Kind::Check, Some("table public.t"))
    );
}

#[test]
fn a_lock_in_the_way_is_named_and_a_missing_right_explained() {
    let source = cluster(18);
    source
        .sql("db", "CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE weak LOGIN REPLICATION; GRANT SELECT ON t TO weak")
        .unwrap();
    let t = [table("public", "t")];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let url = source.url("db").replace("postgres@", "weak@");
    let weak = runtime
        .block_on(PgEngine.connect(&url, Duration::from_secs(10)))
        .unwrap();
    let error = runtime.block_on(weak.prepare_source(&names(), &t)).unwrap_err();
    assert_eq!(error.kind(), Kind::Permission, "{error:?}");
    assert!(
        error.remedy_text().unwrap().contains("GRANT CREATE ON DATABASE"),
        "{error:?}"
    );
    assert!(!weak.display_url().is_empty());

    let blue = runtime.block_on(site(&source));
    let lock = std::thread::scope(|scope| {
        let holder = scope.spawn(|| source.sql("db", "BEGIN; LOCK TABLE t; SELECT pg_sleep(300)"));
        let held =
            "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 't'::regclass";
        let deadline = Instant::now() + Duration::from_secs(120);
        while source.sql("db", held).unwrap() != "1" {
            assert!(Instant::now() < deadline, "the table is not locked");
            std::thread::sleep(Duration::from_millis(60));
        }
        let inspected = runtime.block_on(blue.inspect(&TableSelection::default()));
        let error = inspected.unwrap_err();
        assert_eq!(
            (error.what_to_do(), error.object_name()),
            (Action::Retry, Some("table public.t")),
            "{error:?}"
        );
        assert!(
            error.message().contains("AccessExclusiveLock on public.t"),
            "{error:?}"
        );
        let prepared = runtime.block_on(blue.prepare_source(&names(), &t));
        source
            .sql(
                "db",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE query LIKE '%pg_sleep(300)' AND pid <> pg_backend_pid()",
            )
            .unwrap();
        assert!(holder.join().unwrap().is_err());
        prepared.unwrap_err()
    });
    assert!(
        lock.message().contains("AccessExclusiveLock on public.t"),
        "{lock:?}"
    );
    runtime.block_on(blue.prepare_source(&names(), &t)).unwrap();
}

#[tokio::test]
async fn inspect_tells_what_the_log_needs_to_know() {
    for major in [12, 18] {
        let source = cluster(major);
        source
            .sql(
                "db",
                r#"CREATE TABLE a_default (id int, "B" numeric(5, 2) NOT NULL, g int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY ("B", id));
                   CREATE TABLE b_none (a int);
                   CREATE TABLE c_full (a int); ALTER TABLE c_full REPLICA IDENTITY FULL;
                   CREATE TABLE d_index (a int NOT NULL); CREATE UNIQUE INDEX d_i ON d_index (a);
                   ALTER TABLE d_index REPLICA IDENTITY USING INDEX d_i;
                   CREATE TABLE e_nothing (a int PRIMARY KEY); ALTER TABLE e_nothing REPLICA IDENTITY NOTHING;
                   CREATE TABLE f_deferrable (a int PRIMARY KEY DEFERRABLE);
                   CREATE UNLOGGED TABLE g_unlogged (a int PRIMARY KEY);
                   CREATE VIEW v AS SELECT 1; CREATE MATERIALIZED VIEW m AS SELECT 1;
                   CREATE TABLE h_empty ();
                   CREATE SCHEMA cdc_sync; CREATE TABLE cdc_sync.checkpoint (a int);
                   INSERT INTO b_none SELECT generate_series(1, 5000); ANALYZE b_none;"#,
            )
            .unwrap();
        let tables = site(&source)
            .await
            .inspect(&TableSelection::default())
            .await
            .unwrap();
        let seen: Vec<String> = tables
            .iter()
            .map(|table| format!("{} {} {}", table.name.name, table.identity, table.has_identity))
            .collect();
        assert_eq!(
            seen,
            [
                "a_default default true",
                "b_none default false",
                "c_full full true",
                "d_index index true",
                "e_nothing nothing false",
                "f_deferrable default false",
                "h_empty default false",
            ]
        );
        let first = &tables[0];
        assert_eq!(first.primary_key, ["B", "id"]);
        let columns: Vec<String> = first
            .columns
            .iter()
            .map(|column| {
                format!(
                    "{} {} {} {}",
                    column.name, column.type_name, column.not_null, column.generated
                )
            })
            .collect();
        assert_eq!(
            columns,
            [
                "id integer true false",
                "B numeric(5,2) true false",
                "g integer false true"
            ]
        );
        assert_eq!(tables[1].estimated_rows, 5000);
        assert!(tables[1].bytes > 100_000);
        assert!(tables[6].columns.is_empty());
    }
}
