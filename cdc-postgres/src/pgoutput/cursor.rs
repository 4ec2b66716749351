//! Reading a message field by field, never beyond its end.

use std::fmt;

use cdc_core::{Error, Kind};

/// What is wrong with the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flaw {
    /// The message ends inside this field.
    Short(&'static str),
    /// The message goes on after its last field for this many bytes.
    Trailing(usize),
    /// A count says more than the message has bytes for.
    Count {
        /// what is counted
        of: &'static str,
        /// how many there are said to be
        count: usize,
    },
    /// A text is not UTF-8.
    NotUtf8(&'static str),
    /// No message of this protocol version starts with this byte.
    UnknownTag(u8),
    /// A byte that selects what follows has a value the protocol does not know.
    UnknownKind {
        /// what it selects
        of: &'static str,
        /// its value
        byte: u8,
    },
}

/// Where and how a message breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// the offset in the message, its tag being at 0
    pub at: usize,
    /// what is wrong
    pub flaw: Flaw,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.flaw {
            Flaw::Short(field) => write!(f, "it ends inside the {field}")?,
            Flaw::Trailing(bytes) => write!(f, "{bytes} bytes follow its last field")?,
            Flaw::Count { of, count } => write!(f, "it is too short for the {count} {of} it announces")?,
            Flaw::NotUtf8(field) => write!(f, "the {field} is not UTF-8")?,
            Flaw::UnknownTag(tag) => write!(f, "unknown message tag {}", Byte(tag))?,
            Flaw::UnknownKind { of, byte } => write!(f, "unknown {of} {}", Byte(byte))?,
        }
        write!(f, " (byte {})", self.at)
    }
}

/// A byte for people: as a character where it is one, and in hex.
struct Byte(u8);

impl fmt::Display for Byte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_ascii_graphic() {
            write!(f, "'{}' ", char::from(self.0))?;
        }
        write!(f, "{:#04x}", self.0)
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Error {
        Error::new(Kind::Protocol, malformed.to_string())
    }
}

/// A message and how far it has been read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    /// how long the message is
    length: usize,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor {
            length: bytes.len(),
            rest: bytes,
        }
    }

    /// A message that has been read up to `at`.
    #[inline]
    pub(crate) fn from(bytes: &'a [u8], at: usize) -> Cursor<'a> {
        Cursor {
            length: bytes.len(),
            rest: bytes.get(at..).unwrap_or_default(),
        }
    }

    /// The offset of the next byte.
    #[inline]
    pub(crate) fn at(&self) -> usize {
        self.length - self.rest.len()
    }

    /// How much has not been read.
    #[inline]
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// An error about the next byte.
    #[cold]
    pub(crate) fn malformed(&self, flaw: Flaw) -> Malformed {
        Malformed { at: self.at(), flaw }
    }

    /// An error about the byte read last.
    #[cold]
    pub(crate) fn unknown(&self, of: &'static str, byte: u8) -> Malformed {
        Malformed {
            at: self.at().saturating_sub(1),
            flaw: Flaw::UnknownKind { of, byte },
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Malformed> {
        match self.rest.split_first_chunk() {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(*bytes)
            }
            None => Err(self.malformed(Flaw::Short(field))),
        }
    }

    #[inline]
    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, Malformed> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    #[inline]
    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, Malformed> {
        self.array(field).map(u16::from_be_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, Malformed> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(crate) fn i32(&mut self, field: &'static str) -> Result<i32, Malformed> {
        self.array(field).map(i32::from_be_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, Malformed> {
        self.array(field).map(u64::from_be_bytes)
    }

    #[inline]
    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, Malformed> {
        self.array(field).map(i64::from_be_bytes)
    }

    /// The next `length` bytes.
    #[inline]
    pub(crate) fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], Malformed> {
        match self.rest.split_at_checked(length) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err(self.malformed(Flaw::Short(field))),
        }
    }

    /// A text ended by a zero byte.
    pub(crate) fn text(&mut self, field: &'static str) -> Result<&'a str, Malformed> {
        let rest = self.rest;
        let end = rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or_else(|| self.malformed(Flaw::Short(field)))?;
        let text = std::str::from_utf8(rest.get(..end).unwrap_or_default())
            .map_err(|_| self.malformed(Flaw::NotUtf8(field)))?;
        self.rest = rest.get(end + 1..).unwrap_or_default();
        Ok(text)
    }

    /// Refuses bytes after the last field: one frame holds one message.
    #[inline]
    pub(crate) fn end(&self) -> Result<(), Malformed> {
        match self.left() {
            0 => Ok(()),
            left => Err(self.malformed(Flaw::Trailing(left))),
        }
    }
}
