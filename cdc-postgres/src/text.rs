//! Values in the server's text form: which type a column holds, and reading its text as a typed value.
//!
//! Between two PostgreSQL servers no value is read at all. This is for sinks of another encoding, for heartbeats
//! and markers. The session fixes the form (`DateStyle` ISO, `bytea_output` hex, `TimeZone` UTC; see
//! [`wire::session`](crate::wire)); text of another form is an error and never a guess.

mod declared;
mod time;

use std::str::FromStr;

use cdc_core::model::CellReader;
use cdc_core::{ColumnSchema, DataType, Encoding, Error, Kind, Result, Value};
use tokio_postgres::types::Type;

pub(crate) use declared::declared;

/// The encoding of cells that hold the text form of their type's output function.
pub const PG_TEXT: Encoding = Encoding::new("postgres.text");

/// What a column of this type holds. `named` is what a Type message says of a type that is not built in: for a
/// domain, its base type. A type without a counterpart in the core is carried as its text.
pub fn data_type(oid: u32, modifier: i32, named: Option<(&str, &str)>) -> DataType {
    let builtin = Type::from_oid(oid);
    let name = match (&builtin, named) {
        (Some(builtin), _) => builtin.name(),
        (None, Some(("pg_catalog", name))) => name,
        (None, Some((schema, name))) => return DataType::Opaque(format!("{schema}.{name}").into()),
        (None, None) => return DataType::Opaque(format!("type with OID {oid}").into()),
    };
    let signed = |bits| DataType::Int { bits, signed: true };
    match name {
        "bool" => DataType::Bool,
        "int2" => signed(16),
        "int4" => signed(32),
        "int8" => signed(64),
        "oid" => DataType::Int {
            bits: 32,
            signed: false,
        },
        "float4" => DataType::Float32,
        "float8" => DataType::Float64,
        "numeric" => DataType::Decimal {
            precision: numeric_precision(modifier),
        },
        "text" | "varchar" | "bpchar" | "name" => DataType::Text,
        "bytea" => DataType::Bytes,
        "date" => DataType::Date,
        "time" => DataType::Time,
        "timestamp" => DataType::Timestamp,
        "timestamptz" => DataType::TimestampTz,
        "uuid" => DataType::Uuid,
        "json" | "jsonb" => DataType::Json,
        other => DataType::Opaque(other.into()),
    }
}

/// Precision and scale as `numeric` packs them: precision in the upper half, the scale as 11 bits with sign.
fn numeric_precision(modifier: i32) -> Option<(u32, i32)> {
    let packed = u32::try_from(modifier.checked_sub(4)?).ok()?;
    let scale = ((packed & 0x7FF) ^ 0x400).cast_signed() - 0x400;
    Some((packed >> 16, scale))
}

/// Reads cells of [`PG_TEXT`] columns.
#[derive(Clone, Copy, Debug, Default)]
pub struct TextReader;

impl CellReader for TextReader {
    fn value<'a>(&self, column: &ColumnSchema, bytes: &'a [u8]) -> Result<Value<'a>> {
        read(&column.data_type, bytes).ok_or_else(|| {
            Error::new(
                Kind::Data,
                format!(
                    "{} bytes of text do not make a {:?}",
                    bytes.len(),
                    column.data_type
                ),
            )
            .object(format!("column {}", column.name))
        })
    }
}

fn read<'a>(data_type: &DataType, bytes: &'a [u8]) -> Option<Value<'a>> {
    if *data_type == DataType::Bytes {
        return hex(bytes).map(Value::HexBytes);
    }
    let text = std::str::from_utf8(bytes).ok()?;
    Some(match data_type {
        DataType::Bool => match text {
            "t" => Value::Bool(true),
            "f" => Value::Bool(false),
            _ => return None,
        },
        DataType::Int { signed: true, .. } => Value::Int(number(text)?),
        DataType::Int { signed: false, .. } => Value::UInt(number(text)?),
        DataType::Float32 => Value::Float32(number(text)?),
        DataType::Float64 => Value::Float64(number(text)?),
        DataType::Decimal { .. } => Value::Decimal(decimal(text)?),
        DataType::Text => Value::Text(text),
        DataType::Date => Value::Date(time::date(text)?),
        DataType::Time => Value::Time(time::time_of_day(text)?),
        DataType::Timestamp => Value::Timestamp(time::timestamp(text)?),
        DataType::TimestampTz => Value::TimestampTz(time::timestamp_tz(text)?),
        DataType::Uuid => Value::Uuid(uuid(text)?),
        DataType::Json => Value::Json(text),
        DataType::Opaque(_) => Value::Opaque(text),
        _ => return None,
    })
}

/// The server writes neither a plus sign nor the other spellings of infinity that the parser takes.
fn number<T: FromStr>(text: &str) -> Option<T> {
    let body = text.strip_prefix('-').unwrap_or(text);
    match body.as_bytes().first()? {
        b'0'..=b'9' => text.parse().ok(),
        _ if matches!(body, "Infinity" | "NaN") => text.parse().ok(),
        _ => None,
    }
}

fn decimal(text: &str) -> Option<&str> {
    if matches!(text, "NaN" | "Infinity" | "-Infinity") {
        return Some(text);
    }
    let body = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = body.split_once('.').unwrap_or((body, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    (digits(whole) && digits(fraction)).then_some(text)
}

/// The digits after `\x`, checked.
fn hex(bytes: &[u8]) -> Option<&[u8]> {
    let digits = bytes.strip_prefix(b"\\x")?;
    (digits.len() % 2 == 0 && digits.iter().all(u8::is_ascii_hexdigit)).then_some(digits)
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let text: &[u8; 36] = text.as_bytes().try_into().ok()?;
    let mut number = 0_u128;
    for (place, byte) in text.iter().enumerate() {
        match (place, byte) {
            (8 | 13 | 18 | 23, b'-') => {}
            (8 | 13 | 18 | 23, _) => return None,
            (_, digit) => number = number << 4 | u128::from(char::from(*digit).to_digit(16)?),
        }
    }
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(oid: u32, text: &str) -> Option<String> {
        let column = ColumnSchema {
            name: "c".into(),
            data_type: data_type(oid, -1, None),
            declared: Box::default(),
            encoding: PG_TEXT,
            identity: false,
        };
        let value = TextReader.value(&column, text.as_bytes());
        value.ok().map(|value| format!("{value:?}"))
    }

    #[test]
    fn builtin_types_are_read() {
        for (oid, text, value) in [
            (16, "t", "Bool(true)"),
            (21, "-32768", "Int(-32768)"),
            (23, "2147483647", "Int(2147483647)"),
            (20, "-9223372036854775808", "Int(-9223372036854775808)"),
            (26, "4294967295", "UInt(4294967295)"),
            (700, "1e-45", "Float32(1e-45)"),
            (701, "-0", "Float64(-0.0)"),
            (701, "-Infinity", "Float64(-inf)"),
            (701, "NaN", "Float64(NaN)"),
            (1700, "-12.50", "Decimal(\"-12.50\")"),
            (1700, "NaN", "Decimal(\"NaN\")"),
            (25, "", "Text(\"\")"),
            (1042, "a  ", "Text(\"a  \")"),
            (17, "\\x", "HexBytes([])"),
            (17, "\\x00ff", "HexBytes([48, 48, 102, 102])"),
            (1082, "1970-01-02", "Date(1)"),
            (1083, "24:00:00", "Time(86400000000)"),
            (1114, "1970-01-01 00:00:00.5", "Timestamp(500000)"),
            (1184, "1970-01-01 00:00:00+00", "TimestampTz(0)"),
            (
                2950,
                "00000000-0000-0000-0000-0000000000ff",
                "Uuid([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255])",
            ),
            (3802, "null", "Json(\"null\")"),
            (1007, "[0:1]={1,2}", "Opaque(\"[0:1]={1,2}\")"),
        ] {
            assert_eq!(typed(oid, text).as_deref(), Some(value), "{oid} {text}");
        }
    }

    #[test]
    fn text_of_another_form_is_refused() {
        for (oid, text) in [
            (16, "true"),
            (23, "+1"),
            (23, ""),
            (20, "9223372036854775808"),
            (701, "inf"),
            (701, "-"),
            (1700, "1e5"),
            (1700, "."),
            (1700, "1."),
            (17, "abc"),
            (17, "\\xabc"),
            (17, "\\xzz"),
            (2950, "00000000-0000-0000-0000-00000000000"),
            (2950, "0000000000000000-0000-0000-0000-0ff"),
            (2950, "+0000000-0000-0000-0000-0000000000ff"),
        ] {
            assert_eq!(typed(oid, text), None, "{oid} {text}");
        }
    }

    #[test]
    fn types_are_named_when_they_are_not_built_in() {
        assert_eq!(
            data_type(1700, ((12 << 16) | 3) + 4, None),
            DataType::Decimal {
                precision: Some((12, 3))
            }
        );
        // numeric(5,-2), PostgreSQL 15 and later
        assert_eq!(numeric_precision(((5 << 16) | 0x7FE) + 4), Some((5, -2)));
        assert_eq!(numeric_precision(-1), None);
        assert_eq!(
            data_type(20_000, -1, Some(("app", "mood"))),
            DataType::Opaque("app.mood".into())
        );
        assert_eq!(
            data_type(20_000, -1, Some(("pg_catalog", "text"))),
            DataType::Text
        );
        assert_eq!(
            data_type(20_000, -1, None),
            DataType::Opaque("type with OID 20000".into())
        );
        assert_eq!(data_type(1266, -1, None), DataType::Opaque("timetz".into()));
    }
}
