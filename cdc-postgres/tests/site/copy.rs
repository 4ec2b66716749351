//! The initial copy while the source is written to: the target holds exactly what the slot's snapshot shows.

use std::time::Duration;

use cdc_core::engine::SchemaPhase;
use cdc_core::seed::{BulkFormat, Snapshot, TablePart};
use cdc_core::{Action, Engine, Kind, Result, Site, TableSelection};
use cdc_postgres::PgEngine;
use testbed::PgCluster;
use testbed::provision::postgres_tools;

use crate::{all_tables, cluster, fence, names, site, table};

/// Rows before the writer starts.
const BASE: u32 = 60_000;

/// A table, the history of its changes and a counter, changed together in each transaction; and values that a text
/// format must carry.
fn fill(source: &PgCluster) {
    let script = format!(
        r#"
        CREATE SCHEMA "App Data";
        CREATE TABLE "App Data"."Items" (
            "Id" bigint PRIMARY KEY, val bigint NOT NULL, pad text, doubled bigint GENERATED ALWAYS AS (val * 2) STORED);
        INSERT INTO "App Data"."Items" SELECT i, 0, repeat('x', 60 + i % 7) FROM generate_series(1, {BASE}) i;
        CREATE TABLE history (n bigint, id bigint, op "char", val bigint, PRIMARY KEY (n, id, op));
        CREATE TABLE counter (n bigint PRIMARY KEY);
        INSERT INTO counter VALUES (0);
        CREATE TABLE stop (stopped boolean);
        CREATE TABLE torture (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, t text, b bytea, a text[], j jsonb, f float8,
                              n numeric, ts timestamptz, i interval, "char" "char", big text);
        INSERT INTO torture (t, b, a, j, f, n, ts, i, "char", big) VALUES
            (E'tab\t nl\n cr\r bs\\ \\. q"', '\x00ff5c0a', ARRAY['a,b', NULL, 'NULL', '"', '\'], '"x"', 'NaN', 'NaN',
             'infinity', '-1 mon 3 days', 'x', repeat('ü€𝄞', 100000)),
            ('', '', '{{}}', 'null', '-0', 1e-300, '4713-01-01 BC', '1 year', '', NULL),
            (NULL, NULL, NULL, NULL, 0.1::float8 + 0.2::float8, 123456789012345678901234567890.123456789, 
             '1883-11-18 12:03:58-04:56:02', '00:00:00.000001', NULL, '\.'),
            ('\.', '\x5c2e', '[0:1]={{1,2}}', '{{"a": 1}}', 5e-324, 0, 'now', '0', '\', E'\\.\n\\.');
        CREATE TABLE empty (a int PRIMARY KEY);
        CREATE TABLE keyless (a int);
        INSERT INTO keyless SELECT 1 FROM generate_series(1, 1000);
        CREATE TABLE parent (id int, a text);
        CREATE TABLE child (extra text) INHERITS (parent);
        INSERT INTO parent SELECT i, 'p' FROM generate_series(1, 10) i;
        INSERT INTO child SELECT i, 'c', 'e' FROM generate_series(11, 30) i;
        CREATE TABLE parted (id int, k text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
        CREATE TABLE parted_a PARTITION OF parted FOR VALUES IN ('a');
        CREATE TABLE parted_b PARTITION OF parted FOR VALUES IN ('b');
        INSERT INTO parted SELECT i, CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END FROM generate_series(1, 100) i;
        CREATE PROCEDURE write() LANGUAGE plpgsql AS $$
        DECLARE k bigint := 0;
        BEGIN
            WHILE NOT EXISTS (SELECT FROM stop) LOOP
                k := k + 1;
                INSERT INTO "App Data"."Items" VALUES ({BASE} + k, k, repeat('y', 70));
                INSERT INTO history VALUES (k, {BASE} + k, 'i', k);
                WITH changed AS (UPDATE "App Data"."Items" SET val = k, pad = pad || 'z'
                                 WHERE "Id" = k * 7919 % {BASE} RETURNING "Id")
                    INSERT INTO history SELECT k, "Id", 'u', k FROM changed;
                WITH gone AS (DELETE FROM "App Data"."Items" WHERE "Id" = k * 104729 % {BASE} RETURNING "Id")
                    INSERT INTO history SELECT k, "Id", 'x', k FROM gone;
                UPDATE counter SET n = k;
                COMMIT;
            END LOOP;
        END $$;
        "#
    );
    source.sql("db", &script).unwrap();
}

/// What is wrong with the copy, as the history and the counter tell.
const DIFFERENCES: &str = r#"
    WITH last AS (SELECT DISTINCT ON (id) id, op, val FROM history ORDER BY id, n DESC, op DESC),
    expected AS (
        SELECT id, val FROM last WHERE op <> 'x'
        UNION ALL SELECT i, 0 FROM generate_series(1, 60000) i WHERE NOT EXISTS (SELECT FROM last WHERE id = i)),
    copied AS (SELECT "Id", val FROM "App Data"."Items")
    SELECT (SELECT count(*) FROM (TABLE expected EXCEPT TABLE copied) x) || '|' ||
           (SELECT count(*) FROM (TABLE copied EXCEPT TABLE expected) x) || '|' ||
           (SELECT count(*) - count(DISTINCT "Id") FROM "App Data"."Items") || '|' ||
           (SELECT count(*) FROM "App Data"."Items" WHERE doubled IS DISTINCT FROM val * 2) || '|' ||
           (SELECT n FROM counter) - (SELECT count(*) FROM history WHERE op = 'i') || '|' ||
           (SELECT count(*) FROM counter)"#;

async fn copy_part(from: &dyn Snapshot, to: &dyn Site, epoch: i64, part: &TablePart) -> Result<(u64, u64)> {
    let formats = to.bulk_formats(part).await?;
    let mut reader = from.read(part, &formats).await?;
    let mut loader = to.loader("job", epoch, part, reader.format()).await?;
    let mut bytes = 0;
    while let Some(chunk) = reader.next().await? {
        bytes += chunk.len() as u64;
        loader.write(chunk).await?;
    }
    Ok((loader.finish().await?, bytes))
}

fn copies_the_snapshot(from: u16, to: u16) {
    let (source, target) = (cluster(from), cluster(to));
    fill(&source);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (blue, green) = runtime.block_on(async { (site(&source).await, site(&target).await) });
    let everything = TableSelection::default();
    let tools = postgres_tools().unwrap().bin;
    let dump = runtime
        .block_on(blue.dump_schema(&everything, None, green.identity(), Some(&tools)))
        .unwrap();
    runtime
        .block_on(green.create_schema(&dump, SchemaPhase::BeforeData))
        .unwrap();

    let tables = runtime.block_on(all_tables(&*blue));
    let expected = [
        "App Data.Items",
        "public.child",
        "public.counter",
        "public.empty",
        "public.history",
        "public.keyless",
        "public.parent",
        "public.parted_a",
        "public.parted_b",
        "public.stop",
        "public.torture",
    ];
    assert_eq!(
        tables.iter().map(ToString::to_string).collect::<Vec<_>>(),
        expected
    );
    runtime.block_on(blue.prepare_source(&names(), &tables)).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            source
                .sql("db", "CALL write()")
                .inspect_err(|error| eprintln!("{error:#}"))
        });
        runtime.block_on(async {
            wait_for_writes(&source);
            let snapshot = blue.create_snapshot(&names(), true).await.unwrap();
            snapshot.alive().await.unwrap();
            // The writer goes on between the snapshot and the copies.
            wait_for_writes(&source);
            let fence = fence(&*green).await;
            for table in &tables {
                let parts = snapshot.parts(table, 256 * 1024).await.unwrap();
                if table.name == "Items" {
                    assert!(parts.len() > 10, "{} parts", parts.len());
                    assert!(!parts[0].columns.contains(&"doubled".to_owned()));
                }
                for pair in parts.chunks(2) {
                    let copy = |part| copy_part(&*snapshot, &*green, fence.epoch(), part);
                    match pair {
                        [one] => drop(copy(one).await.unwrap()),
                        [one, two] => drop(tokio::try_join!(copy(one), copy(two)).unwrap()),
                        _ => unreachable!(),
                    }
                }
            }
        });
        source.sql("db", "INSERT INTO stop VALUES (true)").unwrap();
        writer.join().unwrap().unwrap();
    });
    assert_eq!(
        target.sql("db", DIFFERENCES).unwrap(),
        "0|0|0|0|0|1",
        "{from} -> {to}"
    );
    let n: u64 = target
        .sql("db", "SELECT n FROM counter")
        .unwrap()
        .parse()
        .unwrap();
    let written: u64 = source
        .sql("db", "SELECT n FROM counter")
        .unwrap()
        .parse()
        .unwrap();
    assert!(0 < n && n < written, "snapshot at {n} of {written}");
    for query in [
        "SELECT t, b, a, j, f, n, ts AT TIME ZONE 'UTC' < 'now', ts, i, \"char\", md5(big) FROM torture ORDER BY id",
        "SELECT count(*) FROM keyless",
        "SELECT tableoid::regclass, * FROM parent ORDER BY id",
        "SELECT tableoid::regclass, * FROM parted ORDER BY 2, 3",
    ] {
        let query = format!("SET extra_float_digits = 3; {query}");
        assert_eq!(
            target.sql("db", &query).unwrap(),
            source.sql("db", &query).unwrap()
        );
    }
    runtime
        .block_on(green.create_schema(&dump, SchemaPhase::AfterData))
        .unwrap();
    runtime.block_on(green.analyze(&tables)).unwrap();
    let analyzed = "SELECT count(*) FROM pg_stats WHERE tablename IN ('parted', 'parted_a', 'Items')";
    assert!(target.sql("db", analyzed).unwrap().parse::<u32>().unwrap() > 5);
}

/// Waits until the writer has committed 200 more transactions.
fn wait_for_writes(source: &PgCluster) {
    let count = || {
        source
            .sql("db", "SELECT n FROM counter")
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let start = count();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while count() < start + 200 {
        assert!(std::time::Instant::now() < deadline, "the writer does not write");
        std::thread::yield_now();
    }
}

#[test]
fn ranges_of_keys_copy_the_snapshot_of_12_to_18() {
    copies_the_snapshot(12, 18);
}

#[test]
fn ranges_of_blocks_copy_the_snapshot_of_18_to_12() {
    copies_the_snapshot(18, 12);
}

#[tokio::test]
async fn a_slot_that_exists_is_refused_and_a_temporary_one_vanishes() {
    let source = cluster(18);
    let blue = site(&source).await;
    let slots = "SELECT string_agg(slot_name || ' ' || temporary, ',') FROM pg_replication_slots";
    let first = blue.create_snapshot(&names(), true).await.unwrap();
    drop(first);
    let error = blue.create_snapshot(&names(), true).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Check);
    assert_eq!(error.object_name(), Some("replication slot cdc_sync_job"));
    let temporary = blue.create_snapshot(&names(), false).await.unwrap();
    temporary.alive().await.unwrap();
    let held = source.sql("db", slots).unwrap();
    assert!(
        held.contains("cdc_sync_job false") && held.contains("_tmp_"),
        "{held}"
    );
    // The walsender that holds the snapshot is ended: every use of it says so.
    source.sql("db", "CREATE TABLE t (a int)").unwrap();
    source
        .sql(
            "db",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'",
        )
        .unwrap();
    let gone = |kind| kind == Kind::PositionLost;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match temporary.alive().await {
            Ok(()) => {
                assert!(
                    std::time::Instant::now() < deadline,
                    "the snapshot outlives its session"
                );
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            Err(error) => {
                assert!(gone(error.kind()), "{error:?}");
                // A new one can be taken.
                assert_eq!(error.what_to_do(), Action::Retry, "{error:?}");
                break;
            }
        }
    }
    let error = temporary.parts(&table("public", "t"), 1 << 20).await.unwrap_err();
    assert!(gone(error.kind()), "{error:?}");
    drop(temporary);
    assert_eq!(source.sql("db", slots).unwrap(), "cdc_sync_job false");
    let retention = blue.retention(&names()).await.unwrap().unwrap();
    assert_eq!(retention.status, "reserved");
    let (end, behind) = blue.log_end(None).await.unwrap();
    assert_eq!(behind, 0);
    let start = cdc_core::Position::new("0/10");
    let (_, behind) = blue.log_end(Some(&start)).await.unwrap();
    assert!(behind > 1 << 20 && end.as_str().contains('/'));
}

#[tokio::test]
async fn a_rewritten_table_is_not_copied_empty() {
    for major in [12, 18] {
        let source = cluster(major);
        source
            .sql("db", "CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i")
            .unwrap();
        let blue = site(&source).await;
        let snapshot = blue.create_snapshot(&names(), false).await.unwrap();
        let parts = snapshot.parts(&table("public", "t"), 1 << 20).await.unwrap();
        let mut reader = snapshot
            .read(&parts[0], &[BulkFormat("postgres.copy.text".into())])
            .await
            .unwrap();
        let chunk = reader.next().await.unwrap().unwrap();
        assert_eq!(chunk.iter().filter(|byte| **byte == b'\n').count(), 1000);
        assert!(reader.next().await.unwrap().is_none());
        source.sql("db", "ALTER TABLE t ALTER a TYPE bigint").unwrap();
        let error = snapshot
            .read(&parts[0], &[BulkFormat("postgres.copy.text".into())])
            .await
            .err()
            .unwrap();
        assert_eq!(
            (error.kind(), error.what_to_do()),
            (Kind::Schema, Action::Retry),
            "{error:?}"
        );
        assert_eq!(error.object_name(), Some("table public.t"));
    }
}

#[tokio::test]
async fn a_refused_row_is_named_without_its_value_and_nothing_stays() {
    let (source, target) = (cluster(15), cluster(18));
    source
        .sql("db", "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, CASE i WHEN 70000 THEN 'the-secret' ELSE i::text END FROM generate_series(1, 100000) i")
        .unwrap();
    target
        .sql("db", "CREATE TABLE t (id int PRIMARY KEY, a int)")
        .unwrap();
    let (blue, green) = (site(&source).await, site(&target).await);
    let snapshot = blue.create_snapshot(&names(), false).await.unwrap();
    let t = table("public", "t");
    let parts = snapshot.parts(&t, 1 << 30).await.unwrap();
    let epoch = fence(&*green).await.epoch();
    let error = copy_part(&*snapshot, &*green, epoch, &parts[0])
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.what_to_do()),
        (Kind::Data, Action::Stop),
        "{error:?}"
    );
    assert_eq!(
        error.object_name(),
        Some("table public.t, column a, line 70000 of its copy")
    );
    assert!(!format!("{error:?}").contains("the-secret"), "{error:?}");

    // Given up half-way, and dropped without a word.
    let mut loader = green
        .loader("job", epoch, &parts[0], BulkFormat("postgres.copy.text".into()))
        .await
        .unwrap();
    loader.write(bytes::Bytes::from_static(b"1\t1\n")).await.unwrap();
    loader.abort().await.unwrap();
    let mut loader = green
        .loader("job", epoch, &parts[0], BulkFormat("postgres.copy.text".into()))
        .await
        .unwrap();
    loader.write(bytes::Bytes::from_static(b"2\t2\n")).await.unwrap();
    drop(loader);
    assert_eq!(target.sql("db", "SELECT count(*) FROM t").unwrap(), "0");
    let mut loader = green
        .loader("job", epoch, &parts[0], BulkFormat("postgres.copy.text".into()))
        .await
        .unwrap();
    loader
        .write(bytes::Bytes::from_static(b"3\t3\n4\t4\n"))
        .await
        .unwrap();
    assert_eq!(loader.finish().await.unwrap(), 2);
    let missing = table("public", "missing");
    let states = green.occupancy(&[missing, t.clone()]).await.unwrap();
    use cdc_core::engine::Occupancy;
    assert_eq!(
        states.iter().map(|(_, state)| *state).collect::<Vec<_>>(),
        [Occupancy::Missing, Occupancy::Rows]
    );
    green.truncate(std::slice::from_ref(&t)).await.unwrap();
    assert_eq!(green.occupancy(&[t]).await.unwrap()[0].1, Occupancy::Empty);
    let error = green
        .loader("job", epoch, &parts[0], BulkFormat("mysql.rows".into()))
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), Kind::Config);
}

/// `run` does not look for it before: a policy that hides rows must fail the copy that it would cut short.
#[tokio::test]
async fn rows_that_the_role_may_not_see_fail_the_copy() {
    let cluster = cluster(14);
    cluster
        .sql(
            "db",
            "CREATE ROLE half_blind LOGIN REPLICATION; \
             CREATE TABLE h (id int PRIMARY KEY); INSERT INTO h SELECT generate_series(1, 5); \
             ALTER TABLE h ENABLE ROW LEVEL SECURITY; CREATE POLICY low ON h USING (id < 3) WITH CHECK (true); \
             GRANT SELECT, INSERT, UPDATE, DELETE ON h TO half_blind",
        )
        .unwrap();
    let url = cluster.url("db").replace("postgres@", "half_blind@");
    let blind = PgEngine.connect(&url, Duration::from_secs(30)).await.unwrap();
    let seeing = site(&cluster).await;
    let epoch = fence(&*seeing).await.epoch();
    cluster
        .sql(
            "db",
            "GRANT USAGE ON SCHEMA cdc_sync TO half_blind; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA cdc_sync TO half_blind",
        )
        .unwrap();
    let named = |error: cdc_core::Error| {
        assert_eq!(error.kind(), Kind::Permission, "{error:?}");
        assert!(format!("{error:?}").contains("row-level security"), "{error:?}");
        let named = error.to_string().contains("\"h\"")
            || error.object_name().is_some_and(|name| name.contains("public.h"));
        assert!(named, "{error:?}");
    };

    let snapshot = blind.create_snapshot(&names(), false).await.unwrap();
    let parts = snapshot.parts(&table("public", "h"), 1 << 30).await.unwrap();
    let read = async {
        let mut reader = snapshot
            .read(&parts[0], &[BulkFormat("postgres.copy.text".into())])
            .await?;
        let mut bytes = 0;
        while let Some(chunk) = reader.next().await? {
            bytes += chunk.len();
        }
        Ok::<_, cdc_core::Error>(bytes)
    };
    named(read.await.unwrap_err());

    let load = async {
        let format = BulkFormat("postgres.copy.text".into());
        let mut loader = blind.loader("job", epoch, &parts[0], format).await?;
        loader.write(bytes::Bytes::from_static(b"6\n")).await?;
        loader.finish().await
    };
    named(load.await.unwrap_err());
    assert_eq!(cluster.sql("db", "SELECT count(*) FROM h").unwrap(), "5");
}
