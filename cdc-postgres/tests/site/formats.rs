//! The format of the initial copy: binary where it means the same on both sides, text elsewhere.

use cdc_core::seed::{BulkFormat, Snapshot, TablePart};
use cdc_core::{Kind, Site};
use testbed::PgCluster;

use crate::{cluster, fence, names, site, table};

/// A column of each type that goes in binary, with what its values can be at the extremes.
const PLAIN: &str = r"
    CREATE TABLE plain (id int8 PRIMARY KEY, b bool, y bytea, i2 int2, i4 int4, t text, o oid, j json, f4 float4, f8 float8,
        c char(5), v varchar(9), d date, ti time, ts timestamp(3), tz timestamptz, n numeric, n2 numeric(6,2), u uuid, jb jsonb)";
const ROWS: &str = r#"
    INSERT INTO plain VALUES
        (1, true, '\x00ff5c0a', -32768, 2147483647, E'tab\t nl\n \\. "üñ𝄞', 4294967295, '{"a" : 1}', 'NaN', '-Infinity', 'ab',
         'v', 'infinity', '24:00', '2026-01-01 00:00:00.123', '4713-01-01 00:00:00+00 BC', 'NaN', -9999.99,
         '00112233-4455-6677-8899-aabbccddeeff', '{"b": [1, null]}'),
        (-9223372036854775808, false, '', 32767, -2147483648, '', 0, 'null', 1e-38, 5e-324, '', '', '-infinity', '00:00',
         'infinity', '-infinity', 123456789012345678901234567890.0987654321, 0, NULL, '"x"'),
        (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '-0', '-0', NULL, NULL, '4713-01-01 BC', NULL, NULL, NULL,
         '-0.000', NULL, NULL, NULL);
    INSERT INTO plain (id, t, n) SELECT i, repeat('x', i % 100), i / 7.0 FROM generate_series(10, 20000) i"#;
const CONTENT: &str = "SELECT md5(string_agg(p::text, ',' ORDER BY id)) FROM plain p";

/// A snapshot of these tables, and a target that may be loaded under an epoch.
async fn begin(
    source: &PgCluster,
    target: &PgCluster,
    tables: &[&str],
) -> (Box<dyn Snapshot>, Box<dyn Site>, i64) {
    let (blue, green) = (site(source).await, site(target).await);
    let tables: Vec<_> = tables.iter().map(|name| table("public", name)).collect();
    blue.prepare_source(&names(), &tables).await.unwrap();
    let epoch = fence(&*green).await.epoch();
    let snapshot = blue.create_snapshot(&names(), true).await.unwrap();
    (snapshot, green, epoch)
}

/// The same table of an int4 and nothing else on both sides.
fn two_of_one_kind() -> (PgCluster, PgCluster) {
    let both = (cluster(18), cluster(18));
    for cluster in [&both.0, &both.1] {
        cluster
            .sql("db", "CREATE TABLE t (id int PRIMARY KEY, v int4)")
            .unwrap();
    }
    both
}

async fn only_part(from: &dyn Snapshot, name: &str) -> TablePart {
    let mut parts = from.parts(&table("public", name), 1 << 30).await.unwrap();
    assert_eq!(parts.len(), 1);
    parts.remove(0)
}

/// Copies; the format that it went in.
async fn copy(
    from: &dyn Snapshot,
    to: &dyn Site,
    epoch: i64,
    part: &TablePart,
) -> cdc_core::Result<BulkFormat> {
    let formats = to.bulk_formats(part).await?;
    let mut reader = from.read(part, &formats).await?;
    let format = reader.format();
    let mut loader = to.loader("job", epoch, part, format.clone()).await?;
    while let Some(chunk) = reader.next().await? {
        loader.write(chunk).await?;
    }
    loader.finish().await?;
    Ok(format)
}

fn is_binary(format: &BulkFormat) -> bool {
    format.0.starts_with("postgres.copy.binary")
}

async fn goes_in_binary(from: u16, to: u16) {
    let (source, target) = (cluster(from), cluster(to));
    source.sql("db", PLAIN).unwrap();
    source.sql("db", ROWS).unwrap();
    target.sql("db", PLAIN).unwrap();
    let (snapshot, green, epoch) = begin(&source, &target, &["plain"]).await;
    let part = only_part(&*snapshot, "plain").await;
    let format = copy(&*snapshot, &*green, epoch, &part).await.unwrap();
    assert!(is_binary(&format), "{format:?}");
    let content = |cluster: &PgCluster| cluster.sql("db", CONTENT).unwrap();
    assert_eq!(content(&target), content(&source), "{from} to {to}");
}

#[tokio::test]
async fn the_same_built_in_types_go_in_binary_between_all_versions() {
    goes_in_binary(12, 18).await;
    goes_in_binary(18, 12).await;
}

#[tokio::test]
async fn other_types_go_in_text() {
    let (source, target) = (cluster(18), cluster(14));
    let tables = "CREATE TABLE other (id int PRIMARY KEY, i interval); CREATE TABLE wider (id int PRIMARY KEY, n %); \
                  CREATE DOMAIN word AS text; CREATE TABLE worded (id int PRIMARY KEY, w word)";
    source.sql("db", &tables.replace('%', "int4")).unwrap();
    target.sql("db", &tables.replace('%', "int8")).unwrap();
    let rows = "INSERT INTO other VALUES (1, '1 mon 2 days'); INSERT INTO wider VALUES (1, -5); INSERT INTO worded VALUES (1, 'w')";
    source.sql("db", rows).unwrap();
    let (snapshot, green, epoch) = begin(&source, &target, &["other", "wider", "worded"]).await;
    for name in ["other", "wider", "worded"] {
        let part = only_part(&*snapshot, name).await;
        let format = copy(&*snapshot, &*green, epoch, &part).await.unwrap();
        assert!(!is_binary(&format), "{name}: {format:?}");
    }
    let content = "SELECT (SELECT o::text FROM other o) || (SELECT w::text FROM wider w) || (SELECT w::text FROM worded w)";
    assert_eq!(
        target.sql("db", content).unwrap(),
        source.sql("db", content).unwrap()
    );
}

/// Four bytes of an int4 are a float4 as well.
#[tokio::test]
async fn a_type_that_changes_after_it_was_asked_for_fails_the_load() {
    let (source, target) = two_of_one_kind();
    source.sql("db", "INSERT INTO t VALUES (1, 1065353216)").unwrap();
    let (snapshot, green, epoch) = begin(&source, &target, &["t"]).await;
    let part = only_part(&*snapshot, "t").await;
    let formats = green.bulk_formats(&part).await.unwrap();
    let reader = snapshot.read(&part, &formats).await.unwrap();
    assert!(is_binary(&reader.format()));
    target
        .sql("db", "ALTER TABLE t ALTER COLUMN v TYPE float4")
        .unwrap();
    let loader = green.loader("job", epoch, &part, reader.format()).await.unwrap();
    let error = loader.finish().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Config, "{error:?}");
    assert_eq!(error.object_name(), Some("table public.t"));
    assert!(
        error.to_string().contains("the type of a column was changed"),
        "{error}"
    );
    assert_eq!(target.sql("db", "SELECT count(*) FROM t").unwrap(), "0");
}

/// The rows that COPY refuses are named as they are in text, and so without their values.
#[tokio::test]
async fn a_value_that_is_refused_in_binary_is_named_by_its_place() {
    let (source, target) = (cluster(18), cluster(12));
    let tables = "CREATE TABLE long (id int PRIMARY KEY, v varchar(%)); CREATE TABLE endless (id int PRIMARY KEY, n numeric)";
    source.sql("db", &tables.replace('%', "30")).unwrap();
    target.sql("db", &tables.replace('%', "3")).unwrap();
    let rows =
        "INSERT INTO long VALUES (1, 'abc'), (2, 'the-secret'); INSERT INTO endless VALUES (1, 'Infinity')";
    source.sql("db", rows).unwrap();
    // What is asked of the catalog must not be as of the transaction's begin.
    target
        .sql(
            "db",
            "ALTER DATABASE db SET default_transaction_isolation = 'repeatable read'",
        )
        .unwrap();
    let (snapshot, green, epoch) = begin(&source, &target, &["long", "endless"]).await;
    for (name, object, message) in [
        (
            "long",
            "table public.long, column v, line 2 of its copy",
            "value too long",
        ),
        (
            "endless",
            "table public.endless, column n, line 1 of its copy",
            "invalid sign in external \"numeric\" value",
        ),
    ] {
        let part = only_part(&*snapshot, name).await;
        let error = copy(&*snapshot, &*green, epoch, &part).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Data, "{error:?}");
        assert_eq!(error.object_name(), Some(object), "{error:?}");
        assert!(error.to_string().contains(message), "{error}");
        assert!(!format!("{error:?}").contains("the-secret"), "{error:?}");
    }
}

/// The column has gone and come back with another type since the snapshot: binary must not take one for the other.
#[tokio::test]
async fn a_column_that_was_made_anew_on_the_source_does_not_go_in_binary() {
    let (source, target) = two_of_one_kind();
    source.sql("db", "INSERT INTO t VALUES (1, 7)").unwrap();
    let (snapshot, green, epoch) = begin(&source, &target, &["t"]).await;
    let part = only_part(&*snapshot, "t").await;
    let change = "ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN v float4 DEFAULT 1.5";
    source.sql("db", change).unwrap();
    let error = copy(&*snapshot, &*green, epoch, &part).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Data, "{error:?}");
    assert!(error.to_string().contains("invalid input syntax"), "{error}");
    assert_eq!(target.sql("db", "SELECT count(*) FROM t").unwrap(), "0");
}
