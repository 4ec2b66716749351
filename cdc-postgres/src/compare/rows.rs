//! Reading COPY's text format into rows (PostgreSQL manual, COPY, "Text Format").

use std::sync::Arc;

use bytes::{Buf, BytesMut};
use cdc_core::compare::{KeyColumn, RowBuffer};
use cdc_core::engine::OrderedRows;
use cdc_core::{BoxFuture, Error, Kind, Result};

use super::Shared;
use crate::wire::copy_out::CopyOut;

/// Bytes read at a time: two such buffers for each side of a table are what a comparison holds in memory.
const CHUNK: usize = 256 * 1024;

/// The rows of one table.
#[derive(Debug)]
pub(super) struct PgRows {
    shared: Arc<Shared>,
    /// `None` at the end
    copy: Option<CopyOut>,
    chunk: BytesMut,
    columns: usize,
    key: Vec<KeyColumn>,
}

impl PgRows {
    pub(super) fn new(shared: Arc<Shared>, copy: CopyOut, columns: usize, key: Vec<KeyColumn>) -> Self {
        Self {
            shared,
            copy: Some(copy),
            chunk: BytesMut::new(),
            columns,
            key,
        }
    }

    async fn read(&mut self, rows: &mut RowBuffer) -> Result<bool> {
        let Some(copy) = &mut self.copy else {
            return Ok(false);
        };
        if copy.read(&mut self.chunk, CHUNK).await? {
            let used = parse(&self.chunk, self.columns, &self.key, rows)?;
            self.chunk.advance(used);
            return Ok(true);
        }
        if !self.chunk.is_empty() {
            return Err(Error::new(Kind::Protocol, "COPY ended within a row"));
        }
        if let Some(connection) = self.copy.take().and_then(CopyOut::into_connection) {
            self.shared.end(connection).await?;
        }
        Ok(false)
    }
}

impl OrderedRows for PgRows {
    fn next<'a>(&'a mut self, rows: &'a mut RowBuffer) -> BoxFuture<'a, bool> {
        Box::pin(self.read(rows))
    }
}

/// Adds the whole lines of `bytes` to `rows`; returns how many bytes they took.
pub(super) fn parse(bytes: &[u8], columns: usize, key: &[KeyColumn], rows: &mut RowBuffer) -> Result<usize> {
    let mut used = 0;
    // A line end or tab within a value is escaped.
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(content) = line.strip_suffix(b"\n") else {
            break;
        };
        used += line.len();
        if columns > 0 {
            for field in content.split(|byte| *byte == b'\t') {
                push_field(field, rows)?;
            }
        }
        let found = rows.columns_filled();
        if found != columns {
            return Err(Error::new(
                Kind::Protocol,
                format!("a row of COPY has {found} values where {columns} were asked for"),
            ));
        }
        rows.finish_row(key)?;
    }
    Ok(used)
}

fn push_field(field: &[u8], rows: &mut RowBuffer) -> Result<()> {
    if field == b"\\N" {
        rows.null();
        return Ok(());
    }
    if !field.contains(&b'\\') {
        return rows.text(field);
    }
    rows.text_with(|out| {
        let mut bytes = field.iter();
        while let Some(&byte) = bytes.next() {
            out.push(match byte {
                b'\\' => bytes.next().map_or(b'\\', |escaped| unescaped(*escaped)),
                plain => plain,
            });
        }
    })
}

/// The byte that a backslash and `escaped` stand for. The server writes no octal or hexadecimal ones.
fn unescaped(escaped: u8) -> u8 {
    match escaped {
        b'b' => 8,
        b't' => b'\t',
        b'n' => b'\n',
        b'v' => 11,
        b'f' => 12,
        b'r' => b'\r',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use cdc_core::compare::KeyOrder;

    use super::*;

    const KEY: &[KeyColumn] = &[KeyColumn {
        index: 0,
        order: KeyOrder::Integer,
    }];

    fn texts(rows: &RowBuffer, index: usize) -> Vec<Option<String>> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        rows.row(index)
            .unwrap()
            .columns()
            .map(|value| value.map(text))
            .collect()
    }

    #[test]
    fn escapes_nulls_and_empty_values() {
        let mut rows = RowBuffer::default();
        let copied = b"1\t\\N\t\t\\\\N\n2\ta\\tb\\nc\t\\b\\f\\r\\v\\\\\t\xc3\xa9\n3\tpart";
        assert_eq!(
            parse(copied, 4, KEY, &mut rows).unwrap(),
            copied.len() - b"3\tpart".len()
        );
        assert_eq!(rows.len(), 2);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(texts(&rows, 0), [some("1"), None, some(""), some("\\N")]);
        assert_eq!(
            texts(&rows, 1),
            [some("2"), some("a\tb\nc"), some("\u{8}\u{c}\r\u{b}\\"), some("é")]
        );
    }

    #[test]
    fn rows_without_columns_are_counted() {
        let mut rows = RowBuffer::default();
        assert_eq!(parse(b"\n\n\n", 0, &[], &mut rows).unwrap(), 3);
        assert_eq!(rows.len(), 3);
    }

    #[test]
    fn malformed_rows_are_errors() {
        for wrong in [&b"1\n"[..], b"1\t2\t3\n", b"x\t2\n", b"\n", b"\\\t1\n"] {
            let error = parse(wrong, 2, KEY, &mut RowBuffer::default()).unwrap_err();
            assert_eq!(error.kind(), Kind::Protocol, "{wrong:?}");
        }
    }
}
