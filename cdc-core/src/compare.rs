//! Rows of two sites in one order, for comparing them without holding a table in memory.
//!
//! # The order rule
//! Both sites hand out the rows of a table in the order of the same bytes, the row's *key part*, so that two
//! streams can be merged by comparing bytes. The key part is the key columns one after the other:
//!
//! | column | bytes | so the site orders by |
//! |---|---|---|
//! | NULL | `00` | NULLs first |
//! | integer below zero | `01`, two's complement, 8 bytes big-endian | the value |
//! | any other integer | `02`, the value, 8 bytes big-endian | the value |
//! | all else | `03`, the bytes of its text with `00` as `00 FF`, then `00 00` | the bytes of its text |
//!
//! With a key, integer columns are [`KeyOrder::Integer`] (an index on them gives the order) and all others
//! [`KeyOrder::Text`]. Without a key the key part is the whole row, every column as [`KeyOrder::Text`], and rows
//! are compared as a multiset. A text's end sorts before any byte, so `a` comes before `ab` whatever the next
//! column holds.

use crate::error::{Error, Kind, Result};

/// The length that stands for NULL in a row's content.
const NULL: u32 = u32::MAX;
/// Bytes that state the length of a value.
const LENGTH: usize = 4;

const TAG_NULL: u8 = 0;
const TAG_NEGATIVE: u8 = 1;
const TAG_NATURAL: u8 = 2;
const TAG_TEXT: u8 = 3;

/// How a key column is ordered; see the order rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOrder {
    /// By value; the text must be that of an integer of at most 64 bits.
    Integer,
    /// By the bytes of its text.
    Text,
}

/// A column that is part of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyColumn {
    /// its place among the columns of the row
    pub index: usize,
    /// how it is ordered
    pub order: KeyOrder,
}

/// Rows as text, flat. Each is its content (every column's text) and its key part, which orders it.
///
/// Filled column by column: [`RowBuffer::text`] or [`RowBuffer::null`] for each, then [`RowBuffer::finish_row`].
#[derive(Debug, Default)]
pub struct RowBuffer {
    bytes: Vec<u8>,
    /// end of content and end of key part of each row
    ends: Vec<(usize, usize)>,
    /// where the values of the row being filled start, by column
    values: Vec<usize>,
}

impl RowBuffer {
    /// Removes all rows, keeping the capacity.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.values.clear();
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes held, by which a reader decides that it is full.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Row `index`.
    pub fn row(&self, index: usize) -> Option<RowText<'_>> {
        let &(content, key) = self.ends.get(index)?;
        let start = match index.checked_sub(1) {
            Some(before) => self.ends.get(before)?.1,
            None => 0,
        };
        Some(RowText {
            content: self.bytes.get(start..content)?,
            key: self.bytes.get(content..key)?,
        })
    }

    /// Adds the next column of the row being filled.
    ///
    /// # Errors
    /// When the value has 4 GiB or more.
    pub fn text(&mut self, text: &[u8]) -> Result<()> {
        self.text_with(|bytes| bytes.extend_from_slice(text))
    }

    /// Adds the next column; `write` appends its text.
    ///
    /// # Errors
    /// When the value has 4 GiB or more.
    pub fn text_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let start = self.bytes.len();
        self.values.push(start);
        self.bytes.extend_from_slice(&NULL.to_le_bytes());
        write(&mut self.bytes);
        let length = u32::try_from(self.bytes.len() - start - LENGTH)
            .ok()
            .filter(|length| *length != NULL)
            .ok_or_else(|| Error::new(Kind::Unverifiable, "a value has 4 GiB or more"))?;
        if let Some(slot) = self.bytes.get_mut(start..start + LENGTH) {
            slot.copy_from_slice(&length.to_le_bytes());
        }
        Ok(())
    }

    /// Adds NULL as the next column.
    pub fn null(&mut self) {
        self.values.push(self.bytes.len());
        self.bytes.extend_from_slice(&NULL.to_le_bytes());
    }

    /// The number of columns the row being filled has so far.
    pub fn columns_filled(&self) -> usize {
        self.values.len()
    }

    /// Completes the row with the key part made of its columns `key`.
    ///
    /// # Errors
    /// When a key column is missing, or one ordered as an integer is none.
    pub fn finish_row(&mut self, key: &[KeyColumn]) -> Result<()> {
        let content = self.bytes.len();
        for column in key {
            let start = self
                .values
                .get(column.index)
                .copied()
                .ok_or_else(|| Error::bug(format!("a row without its key column {}", column.index)))?;
            match value_span(self.bytes.get(start..content).unwrap_or_default()) {
                Some(Some(length)) => self.push_key(start + LENGTH..start + LENGTH + length, column.order)?,
                Some(None) => self.bytes.push(TAG_NULL),
                None => return Err(Error::bug("a row whose values do not fit its content")),
            }
        }
        self.ends.push((content, self.bytes.len()));
        self.values.clear();
        Ok(())
    }

    fn push_key(&mut self, text: std::ops::Range<usize>, order: KeyOrder) -> Result<()> {
        match order {
            KeyOrder::Integer => {
                let (tag, value) = integer(self.bytes.get(text).unwrap_or_default())?;
                self.bytes.push(tag);
                self.bytes.extend_from_slice(&value.to_be_bytes());
            }
            KeyOrder::Text => {
                self.bytes.push(TAG_TEXT);
                if self.bytes.get(text.clone()).is_some_and(|text| text.contains(&0)) {
                    let escaped = escape_zeros(self.bytes.get(text).unwrap_or_default());
                    self.bytes.extend_from_slice(&escaped);
                } else {
                    self.bytes.extend_from_within(text);
                }
                self.bytes.extend_from_slice(&[0, 0]);
            }
        }
        Ok(())
    }
}

/// The length of the value that starts `bytes`; the inner `None` is NULL, the outer one malformed bytes.
fn value_span(bytes: &[u8]) -> Option<Option<usize>> {
    let length = u32::from_le_bytes(bytes.get(..LENGTH)?.try_into().ok()?);
    if length == NULL {
        return Some(None);
    }
    let length = usize::try_from(length).ok()?;
    (bytes.len() - LENGTH >= length).then_some(Some(length))
}

/// Tag and bytes of an integer's text.
fn integer(text: &[u8]) -> Result<(u8, u64)> {
    let text = std::str::from_utf8(text).unwrap_or_default();
    let parsed = match text.strip_prefix('-') {
        Some(_) => text.parse::<i64>().map(|value| {
            let tag = if value < 0 { TAG_NEGATIVE } else { TAG_NATURAL };
            (tag, value.cast_unsigned())
        }),
        None => text.parse::<u64>().map(|value| (TAG_NATURAL, value)),
    };
    parsed.map_err(|error| {
        Error::new(
            Kind::Protocol,
            "an integer key column holds text that is no integer",
        )
        .caused_by(error)
    })
}

fn escape_zeros(text: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len() + 8);
    for &byte in text {
        escaped.push(byte);
        if byte == 0 {
            escaped.push(0xff);
        }
    }
    escaped
}

/// One row of a [`RowBuffer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowText<'a> {
    content: &'a [u8],
    key: &'a [u8],
}

impl<'a> RowText<'a> {
    /// The bytes that order the row.
    pub fn key(&self) -> &'a [u8] {
        self.key
    }

    /// All columns; equal bytes are equal rows.
    pub fn content(&self) -> &'a [u8] {
        self.content
    }

    /// The text of each column, `None` for NULL.
    pub fn columns(&self) -> impl Iterator<Item = Option<&'a [u8]>> + use<'a> {
        let mut rest = self.content;
        std::iter::from_fn(move || {
            let length = value_span(rest)?;
            let end = LENGTH + length.unwrap_or(0);
            let value = length.map(|_| rest.get(LENGTH..end).unwrap_or_default());
            rest = rest.get(end..)?;
            Some(value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(values: &[Option<&str>], orders: &[KeyOrder]) -> Vec<u8> {
        let mut rows = RowBuffer::default();
        for value in values {
            match value {
                Some(text) => rows.text(text.as_bytes()).unwrap(),
                None => rows.null(),
            }
        }
        let key: Vec<KeyColumn> = orders
            .iter()
            .enumerate()
            .map(|(index, &order)| KeyColumn { index, order })
            .collect();
        rows.finish_row(&key).unwrap();
        rows.row(0).unwrap().key().to_vec()
    }

    #[test]
    fn integers_order_by_value() {
        let values = [
            "-9223372036854775808",
            "-10",
            "-9",
            "-1",
            "0",
            "1",
            "9",
            "10",
            "9223372036854775807",
            "18446744073709551615",
        ];
        let keys: Vec<_> = values
            .iter()
            .map(|value| key_of(&[Some(value)], &[KeyOrder::Integer]))
            .collect();
        assert!(
            keys.is_sorted() && keys.iter().all(|key| key.len() == 9),
            "{keys:?}"
        );
        assert!(key_of(&[None], &[KeyOrder::Integer]) < keys[0]);
        assert_eq!(key_of(&[Some("-0")], &[KeyOrder::Integer]), keys[4]);
    }

    #[test]
    fn text_orders_by_bytes_across_columns() {
        let text = [KeyOrder::Text, KeyOrder::Text];
        let rows: [[Option<&str>; 2]; 9] = [
            [None, Some("z")],
            [Some(""), Some("z")],
            [Some("\0"), Some("a")],
            [Some("\0\0"), Some("a")],
            [Some("\u{1}"), None],
            [Some("a"), None],
            [Some("a"), Some("")],
            [Some("a"), Some("b")],
            [Some("a\u{1}"), Some("")],
        ];
        let keys: Vec<_> = rows.iter().map(|row| key_of(row, &text)).collect();
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "{keys:?}");
        assert!(key_of(&[Some("ab"), Some("")], &text) > key_of(&[Some("a"), Some("zzz")], &text));
    }

    #[test]
    fn null_is_not_the_empty_text() {
        let mut rows = RowBuffer::default();
        rows.text(b"").unwrap();
        rows.finish_row(&[]).unwrap();
        rows.null();
        rows.finish_row(&[]).unwrap();
        assert_ne!(rows.row(0).unwrap().content(), rows.row(1).unwrap().content());
        assert_eq!(
            rows.row(0).unwrap().columns().collect::<Vec<_>>(),
            [Some(&b""[..])]
        );
        assert_eq!(rows.row(1).unwrap().columns().collect::<Vec<_>>(), [None]);
    }

    #[test]
    fn rows_are_read_back() {
        let mut rows = RowBuffer::default();
        let key = [KeyColumn {
            index: 1,
            order: KeyOrder::Text,
        }];
        for (a, b) in [("1", "x"), ("22", "y")] {
            rows.text(a.as_bytes()).unwrap();
            rows.text(b.as_bytes()).unwrap();
            assert_eq!(rows.columns_filled(), 2);
            rows.finish_row(&key).unwrap();
        }
        assert_eq!((rows.len(), rows.row(2)), (2, None));
        let second = rows.row(1).unwrap();
        assert_eq!(second.key(), b"\x03y\0\0");
        assert_eq!(
            second.columns().collect::<Vec<_>>(),
            [Some(&b"22"[..]), Some(b"y")]
        );
        rows.clear();
        assert!(rows.is_empty() && rows.size() == 0);
    }

    #[test]
    fn a_wrong_integer_and_a_missing_column_are_errors() {
        for text in ["", "x", "1.0", "18446744073709551616", "\u{fffd}"] {
            let mut rows = RowBuffer::default();
            rows.text(text.as_bytes()).unwrap();
            let key = [KeyColumn {
                index: 0,
                order: KeyOrder::Integer,
            }];
            assert_eq!(
                rows.finish_row(&key).unwrap_err().kind(),
                Kind::Protocol,
                "{text}"
            );
        }
        let key = [KeyColumn {
            index: 3,
            order: KeyOrder::Text,
        }];
        assert!(RowBuffer::default().finish_row(&key).is_err());
    }
}
