//! The text form in which the models hold values, and its reading and writing as typed values.

use crate::error::{Error, Kind, Result};
use crate::model::{CellReader, ColumnSchema, DataType, Encoding, Value};

/// The models' own encoding: the text of each value.
pub(super) const MODEL_TEXT: Encoding = Encoding::new("model-text");

/// Reads cells of [`MODEL_TEXT`] columns.
#[derive(Debug)]
pub(super) struct TextReader;

impl CellReader for TextReader {
    fn value<'a>(&self, column: &ColumnSchema, bytes: &'a [u8]) -> Result<Value<'a>> {
        parse(&column.data_type, bytes).map_err(|error| error.object(format!("column {}", column.name)))
    }
}

/// The typed value of a text of one of the types that the models know.
pub(super) fn parse<'a>(data_type: &DataType, bytes: &'a [u8]) -> Result<Value<'a>> {
    let malformed = || Error::new(Kind::Protocol, format!("text that makes no {data_type:?}"));
    let text = std::str::from_utf8(bytes).map_err(|_| malformed())?;
    Ok(match data_type {
        DataType::Bool => match text {
            "t" => Value::Bool(true),
            "f" => Value::Bool(false),
            _ => return Err(malformed()),
        },
        DataType::Int { signed: true, .. } => Value::Int(text.parse().map_err(|_| malformed())?),
        DataType::Int { signed: false, .. } => Value::UInt(text.parse().map_err(|_| malformed())?),
        DataType::Decimal { .. } => Value::Decimal(text),
        DataType::Text => Value::Text(text),
        DataType::Json => Value::Json(text),
        _ => return Err(malformed()),
    })
}

/// The text of a typed value.
pub(super) fn render(value: &Value<'_>) -> Result<Option<Vec<u8>>> {
    Ok(Some(match value {
        Value::Null => return Ok(None),
        Value::Bool(true) => b"t".to_vec(),
        Value::Bool(false) => b"f".to_vec(),
        Value::Int(v) => v.to_string().into_bytes(),
        Value::UInt(v) => v.to_string().into_bytes(),
        Value::Decimal(v) | Value::Text(v) | Value::Json(v) | Value::Opaque(v) => v.as_bytes().to_vec(),
        other => {
            return Err(Error::new(
                Kind::Data,
                format!("the models hold no value like {other:?}"),
            ));
        }
    }))
}
