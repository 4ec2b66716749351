//! The text form of a value, read as each of the types that are read, and of those that are carried as they are.

use cdc_core::model::CellReader;
use cdc_core::{ColumnSchema, Value};
use cdc_postgres::text::{PG_TEXT, TextReader, data_type};

use crate::limit::within;

/// OIDs of the types whose text is read.
const READ: [u32; 17] = [
    16, 17, 20, 21, 23, 25, 26, 114, 700, 701, 1082, 1083, 1114, 1184, 1700, 2950, 3802,
];
/// OIDs of types whose text is carried: arrays of int4, text, numeric, timestamptz and jsonb, int4range, point, xml.
const CARRIED: [u32; 8] = [1007, 1009, 1231, 1185, 3807, 3904, 600, 142];
/// Values are borrowed from their text; what remains is the column, and the error with its name.
const MOST_BYTES: usize = 4 << 10;

pub(crate) fn run(bytes: &[u8]) {
    within(MOST_BYTES, || {
        for oid in READ {
            let _ = TextReader.value(&column(oid), bytes);
        }
        for oid in CARRIED {
            let column = column(oid);
            let read = TextReader.value(&column, bytes);
            match std::str::from_utf8(bytes) {
                Ok(text) => assert!(matches!(read, Ok(Value::Opaque(carried)) if carried == text)),
                Err(_) => assert!(read.is_err()),
            }
        }
        let modifier = bytes.first_chunk().map_or(-1, |bytes| i32::from_le_bytes(*bytes));
        let _ = data_type(1700, modifier, None);
    });
}

fn column(oid: u32) -> ColumnSchema {
    ColumnSchema {
        name: "c".into(),
        data_type: data_type(oid, -1, None),
        declared: "".into(),
        encoding: PG_TEXT,
        identity: false,
    }
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let seeds = [
        ("array", r#"[0:1][-2:-1]={{1,NULL},{"a \"b\" \\c",}}"#),
        ("bool", "t"),
        ("bytea", r"\x00ff"),
        ("date", "2024-02-29"),
        ("date-bc", "4714-11-24 BC"),
        ("float", "-1.7976931348623157e+308"),
        ("infinity", "-infinity"),
        ("int", "-9223372036854775808"),
        ("json", r#"{"a": [1, "b", null]}"#),
        ("numeric", "-123456789012345678901234567890.0010"),
        ("time", "24:00:00.000001"),
        ("timestamp", "294276-12-31 23:59:59.999999"),
        ("timestamptz", "2024-02-29 12:34:56.789+05:30:15"),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ];
    seeds
        .map(|(name, text)| (name, text.as_bytes().to_vec()))
        .to_vec()
}
