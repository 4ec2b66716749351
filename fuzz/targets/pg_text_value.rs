//! The text form of a value, read as each of the types that are read.
#![no_main]

use cdc_core::ColumnSchema;
use cdc_core::model::CellReader;
use cdc_postgres::text::{PG_TEXT, TextReader, data_type};
use libfuzzer_sys::fuzz_target;

/// OIDs of the types whose text is not taken as it is.
const TYPES: [u32; 16] = [
    16, 17, 20, 21, 23, 25, 26, 700, 701, 1082, 1083, 1114, 1184, 1700, 2950, 3802,
];

fuzz_target!(|bytes: &[u8]| {
    for oid in TYPES {
        let column = ColumnSchema {
            name: "c".into(),
            data_type: data_type(oid, -1, None),
            declared: "".into(),
            encoding: PG_TEXT,
            identity: false,
        };
        let _ = TextReader.value(&column, bytes);
    }
    let _ = data_type(
        1700,
        bytes.first_chunk().map_or(-1, |bytes| i32::from_le_bytes(*bytes)),
        None,
    );
});
