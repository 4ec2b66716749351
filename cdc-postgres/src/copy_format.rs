//! The formats of a copy: COPY's text, and its binary format where both sides store the same types.
//!
//! Binary saves both servers printing and parsing. It is the types' own (`typsend` and `typreceive`), so a part goes in it only
//! when each of its columns has the same built-in type on both sides, one of which the bytes mean the same on every server.

use std::borrow::Cow;

use cdc_core::TableName;
use cdc_core::seed::BulkFormat;

use crate::catalog::qualified;
use crate::error::PgError;
use crate::wire::{QueryResult, identifier, literal};

/// COPY's text format, as `COPY … TO STDOUT` writes it under our session settings.
pub(crate) const COPY_TEXT: BulkFormat = BulkFormat(Cow::Borrowed("postgres.copy.text"));

/// What the name of a binary format begins with; the types follow.
const COPY_BINARY: &str = "postgres.copy.binary ";

/// Types that go in binary: bool, bytea, int8, int2, int4, text, oid, json, float4, float8, bpchar, varchar, date, time,
/// timestamp, timestamptz, numeric, uuid, jsonb.
///
/// Not interval, of which the bytes of `infinity` (17 and later) are another value to older servers; not money, whose
/// scale is the locale's.
const BINARY_TYPES: [u32; 19] = [
    16, 17, 20, 21, 23, 25, 26, 114, 700, 701, 1042, 1043, 1082, 1083, 1114, 1184, 1700, 2950, 3802,
];

/// The query for what [`binary`] is made of: the types of the columns, in order, for the snapshot that it runs in.
pub(crate) fn types_query(table: &TableName, columns: &[String]) -> String {
    let names: Vec<_> = columns.iter().map(|column| literal(column)).collect();
    format!(
        "SELECT string_agg(a.atttypid::text, ',' ORDER BY w.place) \
         FROM unnest(ARRAY[{}]::text[]) WITH ORDINALITY w (name, place) \
         JOIN pg_attribute a ON a.attname = w.name AND a.attnum > 0 AND NOT a.attisdropped \
         JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = {} AND c.relname = {}",
        names.join(", "),
        literal(&table.schema),
        literal(&table.name)
    )
}

/// The same for a transaction whose snapshot is older than the table may be: COPY takes the columns as they are now, and so
/// does the analysis of a statement.
pub(crate) fn current_types_query(table: &TableName, columns: &[String]) -> String {
    let row = qualified(table);
    let types: Vec<_> = columns
        .iter()
        .map(|column| format!("pg_typeof((NULL::{row}).{})::oid", identifier(column)))
        .collect();
    format!("SELECT array_to_string(ARRAY[{}]::oid[], ',')", types.join(", "))
}

/// The binary format of so many columns, from the answer to such a query; `None` when they do not go in binary.
pub(crate) fn binary(answer: Option<&QueryResult>, columns: usize) -> Result<Option<BulkFormat>, PgError> {
    let row = answer.and_then(|result| result.rows.first());
    let types = row.map(|row| row.text(0)).transpose()?.flatten();
    Ok(types.filter(|types| are_binary(types, columns)).map(binary_of))
}

fn binary_of(types: &str) -> BulkFormat {
    BulkFormat(Cow::Owned(format!("{COPY_BINARY}{types}")))
}

fn are_binary(types: &str, columns: usize) -> bool {
    let mut seen = 0;
    let known = types.split(',').all(|oid| {
        seen += 1;
        oid.parse().is_ok_and(|oid: u32| BINARY_TYPES.contains(&oid))
    });
    known && seen == columns
}

/// Whether it is one of ours.
pub(crate) fn is_known(format: &BulkFormat) -> bool {
    *format == COPY_TEXT || is_binary(format)
}

/// Whether it is a binary one.
pub(crate) fn is_binary(format: &BulkFormat) -> bool {
    format.0.starts_with(COPY_BINARY)
}

/// What follows a COPY statement.
pub(crate) fn clause(format: &BulkFormat) -> &'static str {
    if is_binary(format) { " (FORMAT binary)" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_must_have_a_type_that_goes_in_binary() {
        assert!(are_binary("23,25", 2));
        // An interval, a column that is missing, and a table without columns.
        assert!(!are_binary("23,1186", 2));
        assert!(!are_binary("23", 2));
        assert!(!are_binary("", 0));
        assert!(is_binary(&binary_of("23")) && is_known(&binary_of("23")));
        assert!(!is_binary(&COPY_TEXT) && is_known(&COPY_TEXT));
    }
}
