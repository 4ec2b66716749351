//! The compare view: one order and one text form on all versions and in all encodings, and a frozen moment.

use cdc_core::compare::RowBuffer;
use cdc_core::engine::{CompareView, Side};
use cdc_core::{Error, Kind, TableName, TableSelection};
use testbed::PgCluster;

use super::{MAJORS, block_on, names, site};

/// Types that can be a key, with values that their own order, their text's order and a locale's order put in
/// different places.
const KEYS: &[(&str, &[&str])] = &[
    ("int2", &["-32768", "-10", "-9", "0", "9", "10", "32767"]),
    (
        "int8",
        &["-9223372036854775808", "-1", "0", "1", "9223372036854775807"],
    ),
    ("oid", &["0", "9", "10", "4294967295"]),
    (
        "text",
        &[
            "", " ", "a", "A", "b", "B", "ab", "a b", "a,b", "a\tb", "a\nb", "a\\b", "é", "e\u{301}", "z",
            "Ω", "😀",
        ],
    ),
    ("varchar(20)", &["", "Z", "a", "_", "-1", "10", "9"]),
    ("char(5)", &["", "a", "a b", "b"]),
    ("name", &["a", "B"]),
    ("bool", &["t", "f"]),
    (
        "bytea",
        &["\\x", "\\x00", "\\x0000", "\\x0a", "\\x9f", "\\xa0", "\\xff"],
    ),
    (
        "uuid",
        &[
            "00000000-0000-0000-0000-000000000000",
            "9fffffff-ffff-ffff-ffff-ffffffffffff",
            "a0000000-0000-0000-0000-000000000000",
        ],
    ),
    (
        "numeric",
        &["NaN", "-1.50", "-1", "0", "9", "10", "1e40", "0.000001"],
    ),
    (
        "float8",
        &[
            "-0",
            "NaN",
            "-Infinity",
            "Infinity",
            "1e-320",
            "0.1",
            "1e22",
            "123456789.12345678",
        ],
    ),
    ("float4", &["0.1", "1e-40", "-1.5", "16777216"]),
    (
        "date",
        &[
            "infinity",
            "-infinity",
            "0044-03-15 BC",
            "10000-01-01",
            "2026-04-03",
        ],
    ),
    (
        "timestamp",
        &["infinity", "2026-04-03 00:00:00.000001", "99999-12-31 23:59:59"],
    ),
    (
        "timestamptz",
        &["1883-11-18 12:00:00+05:30:21", "2026-04-03 00:00:00+02", "epoch"],
    ),
    ("timetz", &["24:00:00+00", "12:00:00+05:30"]),
    (
        "interval",
        &["-1 day", "1 year 2 mons -3 days 04:05:06.7", "100 hours"],
    ),
    ("inet", &["10.0.0.1", "10.0.0.0/8", "::1", "9.9.9.9"]),
    (
        "int4[]",
        &["{}", "{1,NULL}", "{{1,2},{3,4}}", "[0:1]={1,2}", "{10}", "{9}"],
    ),
    (
        "text[]",
        &["{NULL}", "{\"NULL\"}", "{\"a,b\"}", "{a,b}", "{\"\"}"],
    ),
    ("jsonb", &["null", "1", "{\"b\": 1, \"a\": [1, 2]}", "\"x\""]),
    ("int4range", &["empty", "[1,5)", "(,)", "[10,11)"]),
    ("mood", &["sad", "ok", "happy"]),
    ("count", &["10", "9", "-1"]),
    ("pair", &["(,)", "(1,)", "(,x)", "(1,\"a,b\")"]),
];

/// Types that only a table without key can hold.
const KEYLESS: &[(&str, &[&str])] = &[
    ("json", &["{\"a\":1}", "{\"a\": 1}", "null"]),
    ("point", &["(0.1,2)", "(-1,1e300)"]),
    ("money", &["1234.56", "-0.01"]),
    ("tsvector", &["a:1 b:2", ""]),
    ("bit(3)", &["101", "000"]),
];

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

fn script() -> String {
    let mut script = String::from(
        "CREATE DOMAIN count AS int; CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy'); CREATE TYPE pair AS (a int, b text);",
    );
    for (index, (type_name, values)) in KEYS.iter().enumerate() {
        script += &format!("CREATE TABLE k{index} (k {type_name} PRIMARY KEY, n int);");
        for (n, value) in values.iter().enumerate() {
            script += &format!("INSERT INTO k{index} VALUES ({}, {n});", quoted(value));
        }
    }
    for (index, (type_name, values)) in KEYS.iter().chain(KEYLESS).enumerate() {
        script += &format!("CREATE TABLE n{index} (k {type_name}, n text);");
        for value in *values {
            for n in ["NULL", "''", "'x'", "'x'"] {
                script += &format!("INSERT INTO n{index} VALUES ({}, {n});", quoted(value));
            }
        }
        script += &format!("INSERT INTO n{index} VALUES (NULL, 'null'), (NULL, 'null');");
    }
    script += "CREATE TABLE composite (a text, b int, c timestamptz, v json, PRIMARY KEY (a, b, c));
        INSERT INTO composite SELECT a, b, c, '{}' FROM unnest(ARRAY['', 'a', 'ab', 'b', 'Ä']) a,
            unnest(ARRAY[-10, -9, 0, 9, 10]) b, unnest(ARRAY[timestamptz 'epoch', '2026-01-01']) c;
        CREATE TABLE nothing ();
        INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES;
        CREATE TABLE wide (id int PRIMARY KEY, v text);
        INSERT INTO wide SELECT i, repeat(md5(i::text), 40) FROM generate_series(-5000, 5000) i;";
    script
}

/// All rows of a table: key part and content.
type Rows = Vec<(Vec<u8>, Vec<u8>)>;

async fn read(
    view: &dyn CompareView,
    table: &TableName,
    columns: &[String],
    key: &[String],
) -> Result<Rows, Error> {
    let mut stream = view.rows(table, columns, key).await?;
    let (mut rows, mut buffer) = (Vec::new(), RowBuffer::default());
    loop {
        buffer.clear();
        let more = stream.next(&mut buffer).await?;
        assert!(buffer.size() < 4 << 20, "a read is bounded");
        for index in 0..buffer.len() {
            let row = buffer.row(index).unwrap();
            rows.push((row.key().to_vec(), row.content().to_vec()));
        }
        if !more {
            return Ok(rows);
        }
    }
}

/// The rows of every table of a database, by its primary key where it has one.
async fn read_all(url: &str, side: Side) -> Vec<(TableName, Rows)> {
    let site = site(url).await;
    let view = site.compare_view(side, &names("view")).await.unwrap();
    let mut all = Vec::new();
    for table in site.inspect(&TableSelection::default()).await.unwrap() {
        let columns: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
        let rows = read(view.as_ref(), &table.name, &columns, &table.primary_key)
            .await
            .unwrap();
        let name = &table.name;
        if table.primary_key.is_empty() {
            assert!(rows.is_sorted_by(|a, b| a.0 <= b.0), "{name}: out of order");
        } else {
            assert!(
                rows.is_sorted_by(|a, b| a.0 < b.0),
                "{name}: out of order, or equal keys"
            );
        }
        all.push((table.name, rows));
    }
    all
}

#[test]
fn both_ends_of_the_versions_give_the_same_rows_in_the_same_order() {
    let [old, new] = MAJORS.map(|major| {
        let cluster = PgCluster::builder(major)
            .setting("DateStyle", "SQL, DMY")
            .setting("IntervalStyle", "sql_standard")
            .setting("extra_float_digits", "0")
            .setting("bytea_output", "escape")
            .setting("TimeZone", "Asia/Kolkata")
            .start()
            .unwrap();
        cluster.create_database("app").unwrap();
        let script = format!("SET DateStyle = ISO; SET IntervalStyle = postgres; {}", script());
        cluster.sql("app", &script).unwrap();
        cluster
    });
    let left = block_on(read_all(&old.url("app"), Side::Source));
    let right = block_on(read_all(&new.url("app"), Side::Target));
    assert!(left.len() > KEYS.len() * 2);
    for ((table, left), (other, right)) in left.iter().zip(&right) {
        assert_eq!(table, other);
        assert!(
            !left.is_empty() && left == right,
            "{table}: {} and {} rows",
            left.len(),
            right.len()
        );
    }
    assert_eq!(left.len(), right.len());
}

#[test]
fn text_is_compared_as_utf8_whatever_it_is_stored_as() {
    let cluster = PgCluster::builder(15).start().unwrap();
    let letters = "CREATE TABLE t (k text PRIMARY KEY, c char(3), n text);
        INSERT INTO t SELECT chr, chr, chr FROM unnest(ARRAY['a', 'z', 'ä', 'Ž', 'š', '€', 'é', 'ß', 'ý']) chr;
        CREATE TABLE n AS SELECT * FROM t";
    for (database, encoding) in [("u8", "UTF8"), ("l2", "LATIN2"), ("w2", "WIN1250")] {
        let create = format!(
            "CREATE DATABASE {database} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        );
        cluster.sql("postgres", &create).unwrap();
        // LATIN2 has no euro sign.
        let letters = letters.replace("'€', ", "");
        cluster
            .sql(database, &format!("SET client_encoding = 'UTF8'; {letters}"))
            .unwrap();
    }
    let utf8 = block_on(read_all(&cluster.url("u8"), Side::Source));
    assert_eq!(utf8.len(), 2);
    for database in ["l2", "w2"] {
        assert!(
            block_on(read_all(&cluster.url(database), Side::Target)) == utf8,
            "{database}"
        );
    }
    cluster
        .sql(
            "postgres",
            "CREATE DATABASE raw ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
        )
        .unwrap();
    cluster
        .sql("raw", "SET client_encoding = 'SQL_ASCII'; CREATE TABLE t (k text PRIMARY KEY); INSERT INTO t VALUES (E'\\xe9'), (E'\\xff'), ('a')")
        .unwrap();
    let raw = block_on(read_all(&cluster.url("raw"), Side::Source));
    assert_eq!(raw[0].1[1].0, b"\x03\xe9\0\0");
}

#[test]
fn a_view_is_frozen_and_leaves_no_slot() {
    for major in MAJORS {
        let cluster = PgCluster::builder(major).start().unwrap();
        cluster.create_database("app").unwrap();
        cluster
            .sql("app", "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100); CREATE TABLE gone AS SELECT 1 AS x; CREATE TABLE cut AS SELECT 1 AS x")
            .unwrap();
        block_on(async {
            let site = site(&cluster.url("app")).await;
            let view = site.compare_view(Side::Source, &names("frozen")).await.unwrap();
            let position = view.position().unwrap().as_str();
            assert!(position.contains('/'), "{position}");
            cluster
                .sql(
                    "app",
                    "DELETE FROM t WHERE id > 50; INSERT INTO t VALUES (1000); TRUNCATE cut; DROP TABLE gone",
                )
                .unwrap();
            let slots = "SELECT count(*) FROM pg_replication_slots";
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while cluster.sql("app", slots).unwrap() != "0" {
                assert!(std::time::Instant::now() < deadline, "the temporary slot stays");
            }
            let (columns, table) = (["id".to_owned()], TableName::new("public", "t"));
            for _ in 0..2 {
                let rows = read(view.as_ref(), &table, &columns, &columns).await.unwrap();
                assert_eq!(rows.len(), 100);
            }
            for (table, part) in [("cut", "truncated"), ("gone", "does not exist")] {
                let table = TableName::new("public", table);
                let error = read(view.as_ref(), &table, &["x".to_owned()], &[])
                    .await
                    .unwrap_err();
                assert!(error.to_string().contains(part), "{error}");
            }
            // A failed table does not spoil the view, and none holds a lock for longer than it is read.
            assert_eq!(
                read(view.as_ref(), &table, &columns, &columns)
                    .await
                    .unwrap()
                    .len(),
                100
            );
            cluster
                .sql("app", "SET lock_timeout = '5s'; ALTER TABLE t ADD COLUMN v int")
                .unwrap();
            let plain = site.compare_view(Side::Target, &names("frozen")).await.unwrap();
            assert_eq!(plain.position(), None);
            assert_eq!(
                read(plain.as_ref(), &table, &columns, &columns)
                    .await
                    .unwrap()
                    .len(),
                51
            );
        });
    }
}

#[test]
fn rows_that_the_role_may_not_see_are_an_error() {
    let cluster = PgCluster::builder(16).start().unwrap();
    cluster.create_database("app").unwrap();
    cluster
        .sql("app", "CREATE ROLE plain LOGIN; CREATE TABLE hidden (id int PRIMARY KEY); CREATE TABLE closed (id int PRIMARY KEY);
            ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; GRANT SELECT ON hidden TO plain; INSERT INTO hidden VALUES (1)")
        .unwrap();
    let url = cluster.url("app").replace("postgres@", "plain@");
    block_on(async {
        let site = site(&url).await;
        let view = site.compare_view(Side::Target, &names("rls")).await.unwrap();
        for table in ["hidden", "closed"] {
            let columns = ["id".to_owned()];
            let error = read(
                view.as_ref(),
                &TableName::new("public", table),
                &columns,
                &columns,
            )
            .await
            .unwrap_err();
            assert_eq!(error.kind(), Kind::Permission, "{error}");
        }
    });
}
