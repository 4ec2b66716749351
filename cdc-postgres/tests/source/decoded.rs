//! What SQL statements decode to, on the oldest and newest servers and around the versions where pgoutput changed.

use cdc_core::DataType;
use cdc_core::Value;

use crate::stage::Stage;

const SCHEMA: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE DOMAIN short AS text CHECK (length(value) < 10);
    CREATE TABLE t (id int PRIMARY KEY, note text, doc text);
    ALTER TABLE t ALTER doc SET STORAGE EXTERNAL;
    CREATE TABLE whole (id int, note text, doc text);
    ALTER TABLE whole ALTER doc SET STORAGE EXTERNAL;
    ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE by_index (a int NOT NULL, b int PRIMARY KEY, c text NOT NULL);
    CREATE UNIQUE INDEX by_index_ca ON by_index (c, a);
    ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_ca;
    CREATE TABLE keyless (n int);
    CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE child (id serial PRIMARY KEY, parent int REFERENCES parent);
    CREATE TABLE typed (id int PRIMARY KEY, m mood, s short);
    CREATE TABLE excluded (id int PRIMARY KEY);
    CREATE TABLE \"Odd \"\"name\"\"\" (\"the key\" int PRIMARY KEY);
    CREATE UNLOGGED TABLE unlogged (id int);
";

/// Statements, and what they decode to. Each statement is a transaction of its own.
const CASES: &[(&str, &[&str])] = &[
    (
        "INSERT INTO t VALUES (1, 'a', NULL), (2, '', repeat('x', 9000))",
        &[
            "begin",
            "insert public.t -> ('1', 'a', NULL)",
            "insert public.t -> ('2', '', 9000 bytes)",
            "end read=2 filtered=0 internal=0",
        ],
    ),
    (
        "UPDATE t SET note = 'b'",
        &[
            "begin",
            "update public.t -> ('1', 'b', NULL)",
            "update public.t -> ('2', 'b', unchanged)",
            "end read=2 filtered=0 internal=0",
        ],
    ),
    (
        "UPDATE t SET id = id + 10",
        &[
            "begin",
            "update public.t ('1', absent, absent) -> ('11', 'b', NULL)",
            "update public.t ('2', absent, absent) -> ('12', 'b', unchanged)",
            "end read=2 filtered=0 internal=0",
        ],
    ),
    (
        "DELETE FROM t WHERE id = 11",
        &[
            "begin",
            "delete public.t ('11', absent, absent)",
            "end read=1 filtered=0 internal=0",
        ],
    ),
    (
        "INSERT INTO whole VALUES (1, NULL, repeat('y', 9000)), (1, NULL, repeat('y', 9000))",
        &[
            "begin",
            "insert public.whole [full] -> ('1', NULL, 9000 bytes)",
            "insert public.whole [full] -> ('1', NULL, 9000 bytes)",
            "end read=2 filtered=0 internal=0",
        ],
    ),
    (
        "UPDATE whole SET note = 'b' WHERE ctid = '(0,1)'",
        &[
            "begin",
            "update public.whole [full] ('1', NULL, 9000 bytes) -> ('1', 'b', 9000 bytes)",
            "end read=1 filtered=0 internal=0",
        ],
    ),
    (
        "DELETE FROM whole WHERE note = 'b'",
        &[
            "begin",
            "delete public.whole [full] ('1', 'b', 9000 bytes)",
            "end read=1 filtered=0 internal=0",
        ],
    ),
    (
        "INSERT INTO by_index VALUES (1, 2, 'c'); UPDATE by_index SET b = 3; UPDATE by_index SET a = 4; \
         DELETE FROM by_index",
        &[
            "begin",
            "insert public.by_index -> ('1', '2', 'c')",
            "update public.by_index -> ('1', '3', 'c')",
            "update public.by_index ('1', absent, 'c') -> ('4', '3', 'c')",
            "delete public.by_index ('4', absent, 'c')",
            "end read=4 filtered=0 internal=0",
        ],
    ),
    (
        "INSERT INTO keyless VALUES (1), (1)",
        &[
            "begin",
            "insert public.keyless -> ('1')",
            "insert public.keyless -> ('1')",
            "end read=2 filtered=0 internal=0",
        ],
    ),
    (
        "INSERT INTO parent VALUES (1); INSERT INTO child (parent) VALUES (1); \
         TRUNCATE parent RESTART IDENTITY CASCADE; TRUNCATE keyless, excluded",
        &[
            "begin",
            "insert public.parent -> ('1')",
            "insert public.child -> ('1', '1')",
            "truncate public.child public.parent cascade restart",
            "truncate public.keyless",
            "end read=6 filtered=1 internal=0",
        ],
    ),
    (
        "BEGIN; INSERT INTO t VALUES (20, 'kept', NULL); SAVEPOINT s; INSERT INTO t VALUES (21, 'gone', NULL); \
         UPDATE t SET note = 'gone'; ROLLBACK TO s; INSERT INTO t VALUES (22, 'kept', NULL); COMMIT",
        &[
            "begin",
            "insert public.t -> ('20', 'kept', NULL)",
            "insert public.t -> ('22', 'kept', NULL)",
            "end read=2 filtered=0 internal=0",
        ],
    ),
    (
        "BEGIN; INSERT INTO t VALUES (30, 'gone', NULL); ROLLBACK; INSERT INTO unlogged VALUES (1)",
        &[],
    ),
    (
        "BEGIN; INSERT INTO excluded VALUES (1); INSERT INTO keyless VALUES (2); UPDATE excluded SET id = 2; COMMIT",
        &[
            "begin",
            "insert public.keyless -> ('2')",
            "end read=3 filtered=2 internal=0",
        ],
    ),
    (
        "BEGIN; INSERT INTO keyless VALUES (3); ALTER TABLE keyless ADD added text DEFAULT 'd'; \
         INSERT INTO keyless VALUES (4); ALTER TABLE keyless DROP n; INSERT INTO keyless VALUES ('e'); COMMIT",
        &[
            "begin",
            "insert public.keyless -> ('3')",
            "insert public.keyless -> ('4', 'd')",
            "insert public.keyless -> ('e')",
            "end read=3 filtered=0 internal=0",
        ],
    ),
    (
        "INSERT INTO typed VALUES (1, 'sad', 'abc')",
        &[
            "begin",
            "insert public.typed -> ('1', 'sad', 'abc')",
            "end read=1 filtered=0 internal=0",
        ],
    ),
    (
        "INSERT INTO \"Odd \"\"name\"\"\" VALUES (1)",
        &[
            "begin",
            "insert public.Odd \"name\" -> ('1')",
            "end read=1 filtered=0 internal=0",
        ],
    ),
    (
        "INSERT INTO cdc_sync.marker VALUES ('other job', 'x')",
        &["begin", "end read=0 filtered=0 internal=1"],
    ),
    (
        "SELECT pg_replication_origin_create('upstream'); SELECT pg_replication_origin_session_setup('upstream'); \
         BEGIN; SELECT pg_replication_origin_xact_setup('0/AB', now()); INSERT INTO typed VALUES (2); COMMIT",
        &[
            "begin from upstream",
            "insert public.typed -> ('2', NULL, NULL)",
            "end read=1 filtered=0 internal=0",
        ],
    ),
];

/// From 14 on logical messages are sent to those who ask.
const MESSAGES: &str = "SELECT pg_logical_emit_message(false, 'p', 'at once'); \
     BEGIN; SELECT pg_logical_emit_message(true, 'p', 'with it'); INSERT INTO typed VALUES (3); COMMIT";

fn run(major: u16) {
    let stage = Stage::set(major, &[], SCHEMA);
    let mut expected: Vec<String> = Vec::new();
    for (statements, lines) in CASES {
        // A single string is one transaction to the server, unless it has transactions of its own.
        if statements.contains("BEGIN;") {
            stage.sql(statements);
        } else {
            stage.sql(&format!("BEGIN; {statements}; COMMIT"));
        }
        expected.extend(lines.iter().map(|line| line.to_string()));
    }
    stage.sql(MESSAGES);
    let internal = if major >= 14 { 2 } else { 0 };
    expected.extend([
        "begin".into(),
        "insert public.typed -> ('3', NULL, NULL)".into(),
        format!("end read=1 filtered=0 internal={internal}"),
    ]);
    stage.mark();
    let mut reader = stage.open(&stage.from).unwrap();
    let lines = without_empty(reader.read_to_marker());
    assert_eq!(lines, expected, "PostgreSQL {major}");

    // What has been folded is where the stream goes on after a restart: the marker's transaction is not repeated.
    let position = reader.tracker.position();
    reader.close();
    stage.sql("INSERT INTO typed VALUES (4)");
    stage.mark();
    let mut reader = stage.open(&position).unwrap();
    assert_eq!(
        without_empty(reader.read_to_marker()),
        [
            "begin",
            "insert public.typed -> ('4', NULL, NULL)",
            "end read=1 filtered=0 internal=0"
        ]
    );
    reader.close();
}

/// Up to 14 the server sends transactions also when nothing of them is published.
fn without_empty(lines: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for line in lines {
        if line == "end read=0 filtered=0 internal=0" && kept.last().is_some_and(|line| line == "begin") {
            kept.pop();
        } else {
            kept.push(line);
        }
    }
    kept
}

#[test]
fn every_operation_on_12() {
    run(12);
}

#[test]
fn every_operation_on_14() {
    run(14);
}

#[test]
fn every_operation_on_15() {
    run(15);
}

#[test]
fn every_operation_on_18() {
    run(18);
}

#[test]
fn typed_values_are_those_of_the_server() {
    let schema = "
        CREATE TABLE v (id int PRIMARY KEY, b bool, i2 int2, i8 int8, o oid, f4 float4, f8 float8, n numeric(12,2),
            t text, v varchar(9), bp bpchar(3), x bytea, d date, ti time, ts timestamp, tz timestamptz, u uuid,
            j json, jb jsonb, days int, micros bigint, tz_micros numeric);
        CREATE PROCEDURE add(at int, d date, ts timestamp, tz timestamptz) LANGUAGE sql AS $$
            INSERT INTO v (id, b, i2, i8, o, f4, f8, n, t, v, bp, x, d, ti, ts, tz, u, j, jb, days, micros, tz_micros)
            VALUES (at, true, -32768, 9223372036854775807, 4294967295, 'NaN', 1e-300, -12.50, 'ü', 'v', 'b', '\\x00ff',
                d, '24:00', ts, tz, '00112233-4455-6677-8899-aabbccddeeff', '{\"a\": null}', 'null',
                CASE WHEN isfinite(d) THEN d - date '1970-01-01' END,
                CASE WHEN isfinite(ts) THEN extract(day FROM ts - timestamp '1970-01-01') * 86400000000
                    + extract(hour FROM ts - timestamp '1970-01-01') * 3600000000
                    + extract(minute FROM ts - timestamp '1970-01-01') * 60000000
                    + extract(microseconds FROM ts - timestamp '1970-01-01') END,
                NULL) $$;
    ";
    let stage = Stage::set(15, &[], schema);
    for (id, (date, ts)) in [
        ("1970-01-01", "1970-01-01 00:00:00"),
        ("2026-02-28", "2026-02-28 23:59:59.999999"),
        ("0044-03-15 BC", "0044-03-15 01:02:03.4 BC"),
        ("4714-11-24 BC", "4714-11-24 00:00:00 BC"),
        ("5874897-12-31", "200000-12-31 12:00:00"),
        ("1582-10-10", "1582-10-10 10:10:10"),
        ("0001-01-01", "0001-02-29 00:00:00 BC"),
        ("1900-03-01", "1900-02-28 00:00:00.000001"),
        ("infinity", "-infinity"),
    ]
    .into_iter()
    .enumerate()
    {
        stage.sql(&format!(
            "CALL add({id}, '{date}', '{ts}', '{ts}'::timestamp AT TIME ZONE 'UTC')"
        ));
    }
    stage.mark();
    let mut reader = stage.open(&stage.from).unwrap();
    let mut seen = 0;
    while seen < 9 {
        let batch = reader.read().unwrap();
        for row in 0..batch.rows().len() {
            let event = batch.event(row).unwrap();
            let table = event.table().unwrap();
            if table.name.name != "v" {
                continue;
            }
            seen += 1;
            let value = |name: &str| event.value(table.column(name).unwrap()).unwrap();
            assert_eq!(value("b"), Value::Bool(true));
            assert_eq!(value("i2"), Value::Int(-32768));
            assert_eq!(value("i8"), Value::Int(i64::MAX));
            assert_eq!(value("o"), Value::UInt(u64::from(u32::MAX)));
            assert!(matches!(value("f4"), Value::Float32(f) if f.is_nan()));
            assert_eq!(value("f8"), Value::Float64(1e-300));
            assert_eq!(value("n"), Value::Decimal("-12.50"));
            assert_eq!(value("t"), Value::Text("ü"));
            assert_eq!(value("bp"), Value::Text("b  "));
            assert_eq!(value("x"), Value::HexBytes(b"00ff"));
            assert_eq!(value("ti"), Value::Time(86_400_000_000));
            assert!(matches!(value("u"), Value::Uuid([0, 0x11, 0x22, .., 0xff])));
            assert_eq!(value("j"), Value::Json("{\"a\": null}"));
            assert_eq!(value("jb"), Value::Json("null"));
            match (value("days"), value("micros")) {
                (Value::Int(days), Value::Int(micros)) => {
                    assert_eq!(value("d"), Value::Date(days as i32), "{:?}", value("id"));
                    assert_eq!(value("ts"), Value::Timestamp(micros), "{:?}", value("id"));
                    assert_eq!(value("tz"), Value::TimestampTz(micros), "{:?}", value("id"));
                }
                _ => {
                    assert_eq!(value("d"), Value::Date(i32::MAX));
                    assert_eq!(value("ts"), Value::Timestamp(i64::MIN));
                    assert_eq!(value("tz"), Value::TimestampTz(i64::MIN));
                }
            }
            let n = &table.columns[table.column("n").unwrap()].data_type;
            assert_eq!(
                *n,
                DataType::Decimal {
                    precision: Some((12, 2))
                }
            );
        }
    }
    reader.close();
}
