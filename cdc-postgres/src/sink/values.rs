//! Values in the forms that statements take: text, arrays of text in binary form, rows of COPY.

use std::ops::Range;

use cdc_core::batch::Datum;
use cdc_core::plan::PlannedTable;
use cdc_core::{Error, Result};

use super::render;
use crate::text::PG_TEXT;

/// The OID of `text`.
const TEXT: u32 = 25;
/// A buffer that one large value made larger than this is given back.
const KEEP_CAPACITY: usize = 16 << 20;
/// Length of an array's header (`array_send` of the server): dimensions, NULL flag, element type, length, lower bound.
const ARRAY_HEADER: usize = 20;

/// One value as text.
#[derive(Debug, Clone)]
pub(super) enum Text<'a> {
    Null,
    /// as it came from the source
    Source(&'a [u8]),
    /// a place in the scratch buffer
    Rendered(Range<usize>),
}

impl<'a> Text<'a> {
    /// The bytes, given the scratch buffer.
    pub(super) fn bytes<'s>(&'s self, scratch: &'s [u8]) -> Option<&'s [u8]>
    where
        'a: 's,
    {
        match self {
            Text::Null => None,
            Text::Source(bytes) => Some(bytes),
            Text::Rendered(range) => Some(scratch.get(range.clone()).unwrap_or_default()),
        }
    }
}

/// A source column's value as text. Cells that already are in the server's text form are passed through; others are
/// rendered at the end of `scratch`.
#[inline]
pub(super) fn text<'a>(
    table: &PlannedTable,
    column: usize,
    datum: Datum<'a>,
    scratch: &mut Vec<u8>,
) -> Result<Text<'a>> {
    let schema = table.source.columns.get(column);
    let schema = schema.ok_or_else(|| Error::bug("a plan names a column beyond its table"))?;
    match datum {
        Datum::Null => Ok(Text::Null),
        Datum::Bytes(bytes) if schema.encoding == PG_TEXT => Ok(Text::Source(bytes)),
        Datum::Bytes(bytes) => {
            let start = scratch.len();
            let value = table.source.reader.value(schema, bytes)?;
            Ok(if render::render(&value, scratch)? {
                Text::Rendered(start..scratch.len())
            } else {
                Text::Null
            })
        }
        Datum::Unchanged | Datum::Absent | Datum::Patch(_) => Err(Error::bug(format!(
            "a plan needs column {} of a change that does not say its value ({})",
            schema.name,
            match datum {
                Datum::Unchanged => "unchanged",
                Datum::Absent => "absent",
                _ => "a difference",
            }
        ))
        .object(table.target.name.to_string())),
    }
}

/// Arrays of text under construction, one a column.
///
/// In binary form an element is its length and its bytes, so nothing has to be quoted here and parsed there.
#[derive(Debug, Default)]
pub(super) struct Arrays {
    arrays: Vec<Vec<u8>>,
    /// one for each array in use
    has_null: Vec<bool>,
    rows: u32,
}

impl Arrays {
    /// Starts `columns` arrays.
    pub(super) fn start(&mut self, columns: usize) {
        self.arrays.resize_with(self.arrays.len().max(columns), Vec::new);
        for array in &mut self.arrays {
            array.clear();
            array.shrink_to(KEEP_CAPACITY);
        }
        for array in self.arrays.iter_mut().take(columns) {
            array.resize(ARRAY_HEADER, 0);
        }
        self.has_null.clear();
        self.has_null.resize(columns, false);
        self.rows = 0;
    }

    /// Appends an element to the array at `place`.
    pub(super) fn push(&mut self, place: usize, value: Option<&[u8]>) {
        let (Some(array), Some(has_null)) = (self.arrays.get_mut(place), self.has_null.get_mut(place)) else {
            return;
        };
        match value {
            None => {
                *has_null = true;
                array.extend_from_slice(&(-1_i32).to_be_bytes());
            }
            // A value is part of a batch, whose length has 31 bits.
            Some(value) => {
                array.extend_from_slice(&(value.len() as u32).to_be_bytes());
                array.extend_from_slice(value);
            }
        }
    }

    /// Ends a row: one element has been appended to each array.
    pub(super) fn end_row(&mut self) {
        self.rows += 1;
    }

    /// The elements of the first row, as they are.
    pub(super) fn single(&self) -> impl Iterator<Item = Option<&[u8]>> {
        self.arrays.iter().take(self.has_null.len()).map(|array| {
            let (length, rest) = array.get(ARRAY_HEADER..)?.split_first_chunk::<4>()?;
            let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
            rest.get(..length)
        })
    }

    /// Rows so far.
    pub(super) fn rows(&self) -> u32 {
        self.rows
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> usize {
        self.arrays.iter().map(Vec::len).sum()
    }

    /// The finished arrays.
    pub(super) fn finish(&mut self) -> impl Iterator<Item = Option<&[u8]>> {
        let rows = self.rows;
        for (array, has_null) in self.arrays.iter_mut().zip(&self.has_null) {
            let header = [1, u32::from(*has_null), TEXT, rows, 1];
            for (place, word) in array.chunks_exact_mut(4).zip(header) {
                place.copy_from_slice(&word.to_be_bytes());
            }
        }
        self.arrays
            .iter()
            .take(self.has_null.len())
            .map(|array| Some(array.as_slice()))
    }
}

/// Appends a column of a row in COPY's text format (PostgreSQL manual, COPY, "Text Format").
pub(super) fn copy_value(value: Option<&[u8]>, out: &mut Vec<u8>) {
    let Some(mut rest) = value else {
        out.extend_from_slice(b"\\N");
        return;
    };
    while let Some(place) = first_special(rest) {
        let (clean, tail) = rest.split_at(place);
        let Some((byte, tail)) = tail.split_first() else {
            break;
        };
        out.extend_from_slice(clean);
        out.extend_from_slice(match byte {
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            _ => b"\\\\",
        });
        rest = tail;
    }
    out.extend_from_slice(rest);
}

/// The first byte that COPY's text has to have escaped. Few values have one: whole blocks are looked through at once, which the
/// compiler makes a few instructions of, and bytes one by one only where there is one and at the end.
fn first_special(bytes: &[u8]) -> Option<usize> {
    let (blocks, _) = bytes.as_chunks::<16>();
    let has_none = |block: &&[u8; 16]| !block.iter().fold(false, |found, byte| found | is_special(*byte));
    let from = blocks.iter().take_while(has_none).count() * 16;
    let place = bytes.get(from..)?.iter().position(|byte| is_special(*byte))?;
    Some(from + place)
}

/// Without branches, so that it can be asked of a block at once.
#[inline(always)]
fn is_special(byte: u8) -> bool {
    (byte == b'\\') | (byte == b'\n') | (byte == b'\r') | (byte == b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_to_be_escaped_is_found_wherever_it_is() {
        for length in 0..50 {
            let mut bytes = vec![b'x'; length];
            assert_eq!(first_special(&bytes), None);
            for place in (0..length).rev() {
                for special in *b"\\\n\r\t" {
                    bytes[place] = special;
                    assert_eq!(first_special(&bytes), Some(place));
                }
            }
        }
    }

    #[test]
    fn copy_escapes_what_ends_columns_and_rows() {
        let copied = |value: Option<&str>| {
            let mut out = Vec::new();
            copy_value(value.map(str::as_bytes), &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(copied(Some("a\tb\nc\rd\\e")), "a\\tb\\nc\\rd\\\\e");
        assert_eq!(copied(Some("\\N")), "\\\\N");
        assert_eq!(copied(Some("\\.")), "\\\\.");
        assert_eq!(copied(Some("\\")), "\\\\");
        assert_eq!(copied(Some("")), "");
        assert_eq!(copied(None), "\\N");
    }

    #[test]
    fn arrays_have_the_form_of_array_send() {
        let mut arrays = Arrays::default();
        arrays.start(2);
        arrays.push(0, Some(b"ab"));
        arrays.push(1, None);
        arrays.end_row();
        arrays.push(0, Some(b""));
        arrays.push(1, Some(b"c"));
        arrays.end_row();
        assert_eq!(
            (arrays.rows(), arrays.bytes()),
            (2, 20 + 4 + 2 + 4 + 20 + 4 + 4 + 1)
        );
        let finished: Vec<Vec<u8>> = arrays.finish().map(|array| array.unwrap().to_vec()).collect();
        let words = |words: &[i32]| {
            words
                .iter()
                .flat_map(|word| word.to_be_bytes())
                .collect::<Vec<u8>>()
        };
        let first = [words(&[1, 0, 25, 2, 1, 2]), b"ab".to_vec(), words(&[0])].concat();
        let second = [words(&[1, 1, 25, 2, 1, -1, 1]), b"c".to_vec()].concat();
        assert_eq!(finished, [first, second]);
        arrays.start(1);
        assert_eq!((arrays.rows(), arrays.bytes()), (0, 20));
    }
}
