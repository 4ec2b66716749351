//! The canonical encoding: typed bytes that belong to no engine. Integers and times are little-endian,
//! everything textual is UTF-8, so that a cell can be read knowing only its column's [`DataType`].

use super::schema::{CellReader, ColumnSchema};
use super::types::DataType;
use super::value::Value;
use crate::error::{Error, Kind, Result};

/// Appends the canonical bytes of `value`; `Null` has none and is a cell state of its own.
pub fn encode_canonical(value: &Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Null => {}
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::Int(v) | Value::Time(v) | Value::Timestamp(v) | Value::TimestampTz(v) => {
            out.extend_from_slice(&v.to_le_bytes());
        }
        Value::UInt(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Float32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Float64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Date(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Uuid(v) => out.extend_from_slice(v),
        Value::Bytes(v) => out.extend_from_slice(v),
        Value::HexBytes(v) => out.extend(v.as_chunks::<2>().0.iter().map(|[high, low]| {
            let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
            digit(*high) << 4 | digit(*low)
        })),
        Value::Decimal(v) | Value::Text(v) | Value::Json(v) | Value::Opaque(v) => {
            out.extend_from_slice(v.as_bytes());
        }
    }
}

/// Reads cells of [`super::Encoding::CANONICAL`] columns.
#[derive(Debug, Default)]
pub struct CanonicalReader;

impl CellReader for CanonicalReader {
    fn value<'a>(&self, column: &ColumnSchema, bytes: &'a [u8]) -> Result<Value<'a>> {
        let malformed = || {
            Error::new(
                Kind::Protocol,
                format!(
                    "{} canonical bytes do not make a {:?}",
                    bytes.len(),
                    column.data_type
                ),
            )
            .object(format!("column {}", column.name))
        };
        let fixed8 = || <[u8; 8]>::try_from(bytes).map_err(|_| malformed());
        let fixed4 = || <[u8; 4]>::try_from(bytes).map_err(|_| malformed());
        let text = || std::str::from_utf8(bytes).map_err(|_| malformed());
        Ok(match &column.data_type {
            DataType::Bool => match bytes {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                _ => return Err(malformed()),
            },
            DataType::Int { signed: true, .. } => Value::Int(i64::from_le_bytes(fixed8()?)),
            DataType::Int { signed: false, .. } => Value::UInt(u64::from_le_bytes(fixed8()?)),
            DataType::Float32 => Value::Float32(f32::from_le_bytes(fixed4()?)),
            DataType::Float64 => Value::Float64(f64::from_le_bytes(fixed8()?)),
            DataType::Decimal { .. } => Value::Decimal(text()?),
            DataType::Text => Value::Text(text()?),
            DataType::Bytes => Value::Bytes(bytes),
            DataType::Date => Value::Date(i32::from_le_bytes(fixed4()?)),
            DataType::Time => Value::Time(i64::from_le_bytes(fixed8()?)),
            DataType::Timestamp => Value::Timestamp(i64::from_le_bytes(fixed8()?)),
            DataType::TimestampTz => Value::TimestampTz(i64::from_le_bytes(fixed8()?)),
            DataType::Uuid => Value::Uuid(bytes.try_into().map_err(|_| malformed())?),
            DataType::Json => Value::Json(text()?),
            DataType::Opaque(_) => Value::Opaque(text()?),
        })
    }
}
