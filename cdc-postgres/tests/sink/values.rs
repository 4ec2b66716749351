//! Values of every kind arrive as they were, by COPY, by set and by single statement.

use std::sync::Arc;

use cdc_core::model::{CanonicalReader, Identity, encode_canonical};
use cdc_core::plan::PlanMode;
use cdc_core::{CommitOutcome, DataType, Encoding, Value};

use tokio_postgres::SimpleQueryMessage;

use crate::changes::{Changes, Of, table, typed_table};
use crate::on_each;
use crate::target::checkpoint;

/// Type and the values it is tried with.
const VALUES: &[(&str, &[&str])] = &[
    (
        "text",
        &["", "\\N", "\\.", "NULL", "a\tb\nc\rd\\e\"f'{},", "ü€😀"],
    ),
    ("varchar(4)", &["abcd", ""]),
    ("char(5)", &["ab   "]),
    ("\"char\"", &["x"]),
    ("name", &["a name"]),
    ("int2", &["-32768"]),
    ("int4", &["2147483647"]),
    ("int8", &["-9223372036854775808"]),
    ("oid", &["4294967295"]),
    ("float4", &["1e-45", "NaN", "-Infinity"]),
    ("float8", &["1.7976931348623157e+308", "-0", "5e-324", "0.1"]),
    ("numeric", &["1.00", "NaN", "-12345678901234567890.123456789"]),
    ("numeric(10,2)", &["12.50"]),
    ("money", &["$1,234.50"]),
    ("bool", &["t", "f"]),
    ("bytea", &["\\x", "\\x00ff5c"]),
    ("date", &["infinity", "0044-03-15 BC", "12345-01-01"]),
    ("time", &["24:00:00", "00:00:00.000001"]),
    ("timetz", &["12:00:00.5+05:30:21"]),
    (
        "timestamp",
        &[
            "-infinity",
            "2026-01-01 00:00:00.123456",
            "0044-03-15 12:00:00 BC",
        ],
    ),
    ("timestamptz", &["2026-01-01 00:00:00+00"]),
    ("interval", &["1 year 2 mons -3 days +04:05:06.7"]),
    ("uuid", &["00000000-0000-0000-0000-0000000000ff"]),
    ("json", &["{\"a\":  [1, null], \"a\": \"\\u00e9\"}", "null"]),
    ("jsonb", &["null", "{\"a\": \"x\\\\y\\\"\"}"]),
    ("xml", &["<a b=\"c\">&amp;</a>"]),
    ("bit(3)", &["101"]),
    ("varbit", &["", "10101"]),
    ("inet", &["10.0.0.1/24", "::1"]),
    ("cidr", &["10.0.0.0/8"]),
    ("macaddr", &["08:00:2b:01:02:03"]),
    ("point", &["(1,2)"]),
    ("box", &["(3,4),(1,2)"]),
    ("polygon", &["((0,0),(1,1),(1,0))"]),
    ("tsvector", &["'a':1 'cat''s':2A"]),
    ("tsquery", &["'a' & !'b'"]),
    ("pg_lsn", &["16/B374D848"]),
    ("regclass", &["pg_class"]),
    ("int4range", &["[1,5)", "empty"]),
    ("tstzrange", &["[\"2026-01-01 00:00:00+00\",)"]),
    ("int4[]", &["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={5,6}"]),
    (
        "text[]",
        &["{NULL,\"NULL\",\"\",\"a\\\"b\\\\c,{}\"}", "{{a,b},{c,d}}"],
    ),
    ("box[]", &["{(3,4),(1,2);(5,6),(0,0)}"]),
    ("bytea[]", &["{\"\\\\x00ff\"}"]),
    ("s.mood", &["so so"]),
    ("s.mood[]", &["{\"so so\",ok}"]),
    ("s.pair", &["(1,\"a,b\"\"c\")", "(,)"]),
    ("s.pair[]", &["{\"(1,\\\"a b\\\")\"}"]),
    ("s.short", &["abc"]),
    ("s.short[]", &["{abc,NULL}"]),
    ("s.positive", &["7"]),
    ("s.hstore", &["\"a\"=>NULL, \"b\"=>\"x\\\"y\""]),
    ("s.citext", &["MiXed"]),
];

fn schema() -> String {
    let mut sql = "CREATE SCHEMA s; CREATE EXTENSION hstore SCHEMA s; CREATE EXTENSION citext SCHEMA s; \
        CREATE TYPE s.mood AS ENUM ('so so', 'ok'); CREATE TYPE s.pair AS (a int4, b text); \
        CREATE DOMAIN s.short AS varchar(3); CREATE DOMAIN s.positive AS int4 CHECK (value > 0);"
        .to_owned();
    for table in ["copied", "single", "updated", "upserted"] {
        let columns: Vec<String> = VALUES
            .iter()
            .enumerate()
            .map(|(n, (name, _))| format!("c{n} {name}"))
            .collect();
        sql += &format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, {});",
            columns.join(", ")
        );
    }
    sql
}

/// The cells of row `n`: every column cycles through its values; the last row is NULL throughout.
fn row(n: usize) -> Vec<Of<'static>> {
    let value = |values: &&'static [&'static str]| {
        if n == ROWS - 1 {
            Of::Null
        } else {
            Of::Text(values[n % values.len()])
        }
    };
    VALUES.iter().map(|(_, values)| value(values)).collect()
}

const ROWS: usize = 8;

#[test]
fn text_of_every_type_arrives_by_every_way() {
    on_each("values", &schema(), async |mut target| {
        let names: Vec<String> = (0..VALUES.len()).map(|n| format!("c{n}")).collect();
        let columns: Vec<&str> = std::iter::once("*id")
            .chain(names.iter().map(String::as_str))
            .collect();
        let tables: Vec<_> = ["copied", "single", "updated", "upserted"]
            .map(|name| table(name, &columns, Identity::Key))
            .into();
        target.sql(&format!(
            "INSERT INTO updated (id) SELECT n FROM generate_series(0, {ROWS} - 1) n"
        ));
        let ids: Vec<String> = (0..ROWS).map(|n| n.to_string()).collect();
        let cells = |n: usize| -> Vec<Of<'_>> { std::iter::once(Of::Text(&ids[n])).chain(row(n)).collect() };
        let (mut copied, mut updated) = (Changes::new(), Changes::new());
        let mut upserted = Changes::of_kind(cdc_core::model::TxnKind::NetWindow);
        for n in 0..ROWS {
            copied = copied.insert(&tables[0], &cells(n));
            updated = updated.update(&tables[2], &cells(n));
            upserted = upserted.upsert(&tables[3], &cells(n));
            let single = Changes::new().insert(&tables[1], &cells(n));
            target.apply(single.group(), PlanMode::Ordered).await.unwrap();
        }
        for changes in [copied, updated, upserted] {
            assert_eq!(
                target.apply(changes.group(), PlanMode::Net).await.unwrap(),
                ROWS as u64
            );
        }
        let expected: Vec<String> = (0..ROWS)
            .flat_map(|n| {
                row(n)
                    .into_iter()
                    .enumerate()
                    .map(move |(column, cell)| match cell {
                        Of::Text(text) => format!("{n} {column} {text:?}"),
                        _ => format!("{n} {column} NULL"),
                    })
            })
            .collect();
        let config = cdc_postgres::config::Config::parse(&target.cluster.url(&target.database)).unwrap();
        let (client, _driver) = config.connect_client(&[]).await.unwrap();
        for name in ["copied", "single", "updated", "upserted"] {
            let sql = format!("SELECT {} FROM public.{name} ORDER BY id", names.join(", "));
            let rows: Vec<SimpleQueryMessage> = client.simple_query(&sql).await.unwrap();
            let rows = rows.iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            });
            let read = rows.enumerate().flat_map(|(n, row)| {
                (0..row.len()).map(move |column| match row.get(column) {
                    Some(text) => format!("{n} {column} {text:?}"),
                    None => format!("{n} {column} NULL"),
                })
            });
            let read: Vec<String> = read.collect();
            assert_eq!(read.len(), expected.len());
            for (read, expected) in read.iter().zip(&expected) {
                let column: usize = expected.split(' ').nth(1).unwrap().parse().unwrap();
                assert_eq!(read, expected, "{name}, {}", VALUES[column].0);
            }
        }
    });
}

#[test]
fn sets_that_are_committed_at_once_take_every_type() {
    on_each("values_at_once", &schema(), async |mut target| {
        let names: Vec<String> = (0..VALUES.len()).map(|number| format!("v{number}")).collect();
        // A table for each: a type that no array takes keeps the others of its table from it.
        for (made, (name, _)) in names.iter().zip(VALUES) {
            target.sql(&format!("CREATE TABLE {made} (id int PRIMARY KEY, v {name})"));
        }
        let selection = cdc_core::TableSelection::default();
        let facts = target.site.target_tables(&selection).await.unwrap();
        let mut planner = crate::target::planner(facts);
        let config = cdc_postgres::config::Config::parse(&target.cluster.url(&target.database)).unwrap();
        let (client, _driver) = config.connect_client(&[]).await.unwrap();
        let mut groups = 0;
        for (made, (name, values)) in names.iter().zip(VALUES) {
            let t = table(made, &["*id", "v"], Identity::Key);
            // Sets begin with 33 rows. The second time every row has the value of the next.
            for shift in [0, 1] {
                let cells: Vec<Option<&str>> = (shift..40 + shift)
                    .map(|n| {
                        values
                            .iter()
                            .copied()
                            .map(Some)
                            .chain([None])
                            .cycle()
                            .nth(n)
                            .flatten()
                    })
                    .collect();
                let mut changes = Changes::new();
                for (id, cell) in cells.iter().enumerate() {
                    let row = [Of::Text(&id.to_string()), cell.map_or(Of::Null, Of::Text)];
                    changes = match shift {
                        0 => changes.insert(&t, &row),
                        _ => changes.update(&t, &row),
                    };
                }
                groups += 1;
                let plan = planner.compile(changes.group(), PlanMode::Net).unwrap();
                let outcome = target.sink.apply_at_once(&plan, &checkpoint(groups), true).await;
                assert_eq!(outcome.unwrap(), Some(CommitOutcome::Done), "{name}");
                let sql = format!("SELECT v FROM public.{made} ORDER BY id");
                let read = client.simple_query(&sql).await.unwrap();
                let read: Vec<Option<&str>> = read
                    .iter()
                    .filter_map(|message| match message {
                        SimpleQueryMessage::Row(row) => Some(row.get(0)),
                        _ => None,
                    })
                    .collect();
                assert_eq!(read, cells, "{name}");
            }
        }
    });
}

#[test]
fn keys_of_many_types_locate_their_rows() {
    let types = [
        "int2",
        "text",
        "char(5)",
        "numeric",
        "uuid",
        "timestamptz",
        "bytea",
        "inet",
        "s.mood",
        "s.short",
        "int4[]",
        "int4range",
        "\"char\"",
        "name",
        "date",
        "interval",
        "jsonb",
        "s.pair",
        "bool",
    ];
    let setup = schema();
    on_each("keys", &setup, async |mut target| {
        for (number, name) in types.into_iter().enumerate() {
            let values = VALUES
                .iter()
                .find(|(known, _)| *known == name)
                .map_or(&["-32768"][..], |(_, values)| values);
            let key_table = format!("k{number}");
            target.sql(&format!(
                "CREATE TABLE {key_table} (k {name} PRIMARY KEY, v text)"
            ));
            let facts = target
                .site
                .target_tables(&cdc_core::TableSelection::default())
                .await
                .unwrap();
            let mut fresh = crate::target::planner(facts);
            let t = table(&key_table, &["*k", "v"], Identity::Key);
            for mode in [PlanMode::Net, PlanMode::Ordered] {
                let (mut inserts, mut updates, mut deletes) =
                    (Changes::new(), Changes::new(), Changes::new());
                for value in values {
                    inserts = inserts.insert(&t, &[(*value).into(), "old".into()]);
                    updates = updates.update(&t, &[(*value).into(), "new".into()]);
                    deletes = deletes.delete(&t, &[(*value).into(), Of::Absent]);
                }
                for changes in [inserts, updates, deletes] {
                    let plan = fresh.compile(changes.group(), mode).unwrap();
                    let rows = target.apply_plan(&plan).await;
                    assert_eq!(
                        rows.unwrap_or_else(|error| panic!("{name}: {error:?}")),
                        values.len() as u64,
                        "{name}"
                    );
                }
                assert_eq!(target.sql(&format!("SELECT count(*) FROM {key_table}")), "0");
            }
        }
    });
}

#[test]
fn values_of_another_encoding_are_rendered() {
    let schema = "CREATE TABLE r (id int PRIMARY KEY, b bool, f float8, n numeric, x bytea, d date, t time, ts timestamp, \
                  tz timestamptz, u uuid, j json, r real)";
    on_each("rendered", schema, async |mut target| {
        let types = [
            DataType::Int {
                bits: 32,
                signed: true,
            },
            DataType::Bool,
            DataType::Float64,
            DataType::Decimal { precision: None },
            DataType::Bytes,
            DataType::Date,
            DataType::Time,
            DataType::Timestamp,
            DataType::TimestampTz,
            DataType::Uuid,
            DataType::Json,
            DataType::Float32,
        ];
        let columns = ["*id", "b", "f", "n", "x", "d", "t", "ts", "tz", "u", "j", "r"];
        let r = typed_table(
            "r",
            &columns,
            Identity::Key,
            Encoding::CANONICAL,
            Arc::new(CanonicalReader),
            |place| types[place].clone(),
        );
        let row = |id: i64, far: bool| -> Vec<Option<Vec<u8>>> {
            let values = [
                Value::Int(id),
                Value::Bool(far),
                Value::Float64(if far { f64::NEG_INFINITY } else { 5e-324 }),
                Value::Decimal(if far { "NaN" } else { "-12.50" }),
                Value::Bytes(b"\0\\\xff"),
                Value::Date(if far { i32::MAX } else { -800_000 }),
                Value::Time(86_400_000_000),
                Value::Timestamp(if far { i64::MIN } else { -70_000_000_000_001 }),
                Value::TimestampTz(253_402_300_800_000_001),
                Value::Uuid([0xab; 16]),
                Value::Json("{\"a\": \"\\n\"}"),
                Value::Float32(0.1),
            ];
            let encode = |value: &Value<'_>| {
                let mut out = Vec::new();
                encode_canonical(value, &mut out);
                Some(out)
            };
            values.iter().map(encode).collect()
        };
        for (mode, count) in [(PlanMode::Ordered, 2), (PlanMode::Net, 5)] {
            target.sql("TRUNCATE r");
            let mut changes = Changes::new();
            for id in 0..count {
                changes = changes.insert_bytes(&r, &row(id, id > 0));
            }
            target.apply(changes.group(), mode).await.unwrap();
            // The server's own arithmetic says what was meant.
            let expected = |far: &str, id: i64| {
                format!(
                    "SELECT {id}, {far}, CASE WHEN {far} THEN '-Infinity' ELSE 5e-324::float8 END, \
                     CASE WHEN {far} THEN 'NaN' ELSE -12.50 END, '\\x005cff'::bytea, \
                     CASE WHEN {far} THEN 'infinity' ELSE date '1970-01-01' - 800000 END, time '24:00', \
                     CASE WHEN {far} THEN '-infinity' ELSE timestamp '1970-01-01' - interval '70000000.000001 seconds' END, \
                     timestamptz '10000-01-01 00:00:00.000001+00', 'abababab-abab-abab-abab-abababababab'::uuid, \
                     '{{\"a\": \"\\n\"}}', 0.1::real"
                )
            };
            let expected = format!("({} UNION ALL {})", expected("false", 0), expected("true", 1));
            let stored = "SELECT id, b, f, n, x, d, t, ts, tz, u, j::text, r FROM r WHERE id < 2";
            let differences = format!("({stored} EXCEPT {expected}) UNION ALL ({expected} EXCEPT {stored})");
            assert_eq!(target.sql(&differences), "", "{mode:?}");
            assert_eq!(
                target.sql("SELECT count(*), count(ts) FROM r"),
                format!("{count}|{count}")
            );
        }
    });
}

#[test]
fn unchanged_values_stay() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, big text, small int, more text[]); \
                  ALTER TABLE t ALTER big SET STORAGE EXTERNAL; \
                  INSERT INTO t SELECT n, repeat('x', 20000), 0, ARRAY['a', NULL] FROM generate_series(1, 8) n";
    on_each("toast", schema, async |mut target| {
        let t = table("t", &["*id", "big", "small", "more"], Identity::Key);
        for (mode, small) in [(PlanMode::Net, "1"), (PlanMode::Ordered, "2")] {
            let mut changes = Changes::new();
            for id in 1..=8 {
                let id = id.to_string();
                changes = changes.update(&t, &[(&id).into(), Of::Unchanged, small.into(), Of::Unchanged]);
            }
            target.apply(changes.group(), mode).await.unwrap();
            assert_eq!(
                target.sql("SELECT small, count(*), min(length(big)), min(more) FROM t GROUP BY 1"),
                format!("{small}|8|20000|{{a,NULL}}")
            );
        }
        // Moved to another key without the value having been sent.
        let moved = Changes::new().update_from(
            &t,
            &["8".into(), Of::Absent, Of::Absent, Of::Absent],
            &["9".into(), Of::Unchanged, "3".into(), Of::Unchanged],
        );
        target.apply(moved.group(), PlanMode::Net).await.unwrap();
        assert_eq!(
            target.sql("SELECT id, length(big) FROM t WHERE small = 3"),
            "9|20000"
        );
    });
}
