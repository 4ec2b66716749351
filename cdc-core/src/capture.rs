//! Captures: bytes of a log in a file, as they were read, to be decoded again without a server.
//!
//! ```text
//! magic, 8 bytes · format, 4 · header segment (engine, stream, position) · segments, one a chunk
//! segment: length of the bytes, 4 · their CRC-32, 4 · bytes
//! ```
//!
//! Integers are little-endian, texts preceded by their length. What follows a capture that was cut short is told by its
//! last segment: those before it are whole.

use std::io::{ErrorKind, Read, Write};

use crate::error::{Error, Kind, Result};
use crate::model::Position;
use crate::source::RawChunk;

/// The first bytes of every capture; the last of them a text file would not survive.
const MAGIC: [u8; 8] = *b"cdc-cap\n";
/// The layout that this version writes and reads.
const FORMAT: u32 = 1;
/// The most bytes that a segment may claim: a chunk is never larger.
const MAX_SEGMENT_BYTES: u32 = (1 << 31) - 1;
/// The most bytes that the header segment may claim.
const MAX_HEADER_BYTES: u32 = 64 << 10;

/// What a capture was taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureHeader {
    /// the engine, by its first URL scheme
    pub engine: String,
    /// the stream, by which heartbeats and markers are told from those of others
    pub stream: String,
    /// the position that the first transaction comes after
    pub from: Position,
}

/// Writes a capture.
#[derive(Debug)]
pub struct CaptureWriter<W> {
    out: W,
}

impl<W: Write> CaptureWriter<W> {
    /// Begins a capture.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn begin(out: W, header: &CaptureHeader) -> Result<Self> {
        let mut body = Vec::new();
        for text in [&header.engine, &header.stream, header.from.as_str()] {
            body.extend((text.len() as u32).to_le_bytes());
            body.extend_from_slice(text.as_bytes());
        }
        let mut writer = Self { out };
        let begun = writer.out.write_all(&MAGIC);
        begun
            .and_then(|()| writer.out.write_all(&FORMAT.to_le_bytes()))
            .map_err(not_written)?;
        writer.segment(&body)?;
        Ok(writer)
    }

    /// Adds what was read, before it is decoded.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn add(&mut self, chunk: &RawChunk) -> Result<()> {
        self.segment(&chunk.bytes)
    }

    fn segment(&mut self, bytes: &[u8]) -> Result<()> {
        let length = u32::try_from(bytes.len())
            .ok()
            .filter(|length| *length <= MAX_SEGMENT_BYTES)
            .ok_or_else(|| Error::bug("a chunk of more than 2 GiB"))?;
        let written = self.out.write_all(&length.to_le_bytes());
        written
            .and_then(|()| self.out.write_all(&crc32fast::hash(bytes).to_le_bytes()))
            .and_then(|()| self.out.write_all(bytes))
            .map_err(not_written)
    }

    /// Hands everything on to the output, and gives it back.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn output(&mut self) -> Result<&mut W> {
        self.out.flush().map_err(not_written)?;
        Ok(&mut self.out)
    }
}

fn not_written(error: std::io::Error) -> Error {
    Error::new(Kind::Local, "the capture cannot be written").caused_by(error)
}

/// Reads a capture.
#[derive(Debug)]
pub struct CaptureReader<R> {
    input: R,
    /// segments read so far, without the header
    segments: u64,
}

impl<R: Read> CaptureReader<R> {
    /// Reads what a capture was taken from.
    ///
    /// # Errors
    /// [`Kind::Config`] when `input` is no capture or one of another format; [`Kind::Data`] when it is damaged.
    pub fn open(input: R) -> Result<(Self, CaptureHeader)> {
        let mut reader = Self { input, segments: 0 };
        let (mut magic, mut format) = ([0; MAGIC.len()], [0; 4]);
        if !reader.fill(&mut magic)? || magic != MAGIC {
            return Err(Error::new(
                Kind::Config,
                "it is not a capture of `tail --capture`",
            ));
        }
        if !reader.fill(&mut format)? {
            return Err(Error::new(Kind::Data, "the capture ends in its first bytes"));
        }
        let format = u32::from_le_bytes(format);
        if format != FORMAT {
            return Err(Error::new(
                Kind::Config,
                format!("the capture has format {format}; this version reads {FORMAT}"),
            )
            .remedy("read it with the version that wrote it"));
        }
        let mut body = Vec::new();
        if !reader.segment(&mut body, MAX_HEADER_BYTES)? {
            return Err(Error::new(Kind::Data, "the capture ends before its header"));
        }
        let header =
            header(&body).ok_or_else(|| Error::new(Kind::Data, "the capture's header is malformed"))?;
        Ok((reader, header))
    }

    /// Fills `chunk` with the next segment; `false` at the end.
    ///
    /// # Errors
    /// [`Kind::Data`] when the segment is damaged or the capture ends inside it. All before it are whole.
    pub fn next(&mut self, chunk: &mut RawChunk) -> Result<bool> {
        chunk.bytes.clear();
        let more = self.segment(&mut chunk.bytes, MAX_SEGMENT_BYTES)?;
        self.segments += u64::from(more);
        Ok(more)
    }

    fn segment(&mut self, bytes: &mut Vec<u8>, limit: u32) -> Result<bool> {
        let (mut length, mut crc) = ([0; 4], [0; 4]);
        if !self.fill(&mut length)? {
            return Ok(false);
        }
        let length = u32::from_le_bytes(length);
        if length > limit {
            return Err(self.damaged(format!("claims {length} bytes, more than there can be")));
        }
        if !self.fill(&mut crc)? {
            return Err(self.cut_short());
        }
        // Grows with what is there, not with what is claimed.
        let read = self.input.by_ref().take(u64::from(length)).read_to_end(bytes);
        match read {
            Ok(read) if read == length as usize => {}
            Ok(_) => return Err(self.cut_short()),
            Err(error) => return Err(not_read(error)),
        }
        if crc32fast::hash(bytes) != u32::from_le_bytes(crc) {
            return Err(self.damaged("has another checksum than it was written with".to_owned()));
        }
        Ok(true)
    }

    /// Fills `bytes`; `false` at the end of the input.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(self.cut_short()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(not_read(error)),
            }
        }
        Ok(true)
    }

    #[cold]
    fn cut_short(&self) -> Error {
        self.damaged("is cut short, as when the writer was killed".to_owned())
    }

    #[cold]
    fn damaged(&self, what: String) -> Error {
        Error::new(
            Kind::Data,
            format!("segment {} of the capture {what}", self.segments + 1),
        )
        .remedy("the segments before it are whole and were handed out")
    }
}

fn not_read(error: std::io::Error) -> Error {
    Error::new(Kind::Local, "the capture cannot be read").caused_by(error)
}

fn header(body: &[u8]) -> Option<CaptureHeader> {
    let (engine, rest) = text(body)?;
    let (stream, rest) = text(rest)?;
    let (from, rest) = text(rest)?;
    rest.is_empty().then(|| CaptureHeader {
        engine,
        stream,
        from: Position::new(from),
    })
}

fn text(body: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = body.split_first_chunk()?;
    let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some((String::from_utf8(text.to_vec()).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> CaptureHeader {
        CaptureHeader {
            engine: "engine".into(),
            stream: "job".into(),
            from: Position::new("0/15"),
        }
    }

    fn written(chunks: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = CaptureWriter::begin(&mut out, &header()).unwrap();
        for chunk in chunks {
            writer.add(&RawChunk::new(chunk.clone())).unwrap();
        }
        writer.output().unwrap();
        out
    }

    /// What can be read, and how reading ended.
    fn read(bytes: &[u8]) -> (Vec<Vec<u8>>, Result<()>) {
        let mut chunks = Vec::new();
        let mut reader = match CaptureReader::open(bytes) {
            Ok((reader, found)) => {
                assert_eq!(found, header());
                reader
            }
            Err(error) => return (chunks, Err(error)),
        };
        let mut chunk = RawChunk::default();
        loop {
            match reader.next(&mut chunk) {
                Ok(true) => chunks.push(chunk.bytes.clone()),
                Ok(false) => return (chunks, Ok(())),
                Err(error) => return (chunks, Err(error)),
            }
        }
    }

    #[test]
    fn what_is_no_capture_or_of_another_format_is_refused() {
        let (_, ended) = read(b"GIF89a and more");
        assert_eq!(ended.unwrap_err().kind(), Kind::Config);
        let mut newer = written(&[]);
        newer[8] = 2;
        let error = read(&newer).1.unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.message().contains("format 2"), "{error}");
    }

    #[test]
    fn a_claimed_length_is_not_believed() {
        let mut capture = written(&[]);
        capture.extend(u32::MAX.to_le_bytes());
        assert!(read(&capture).1.unwrap_err().message().contains("claims"));
        let mut capture = written(&[]);
        capture.extend(MAX_SEGMENT_BYTES.to_le_bytes());
        capture.extend([0; 16]);
        assert!(read(&capture).1.unwrap_err().message().contains("cut short"));
    }

    proptest! {
        #[test]
        fn what_was_added_is_read(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..5)) {
            let (read, ended) = read(&written(&chunks));
            prop_assert!(ended.is_ok());
            prop_assert_eq!(read, chunks);
        }

        #[test]
        fn damage_is_noticed_and_what_precedes_it_is_whole(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 1..5),
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let whole = written(&chunks);
            let mut damaged = whole.clone();
            let at = at.index(whole.len());
            damaged[at] ^= 1 << bit;
            let (read, ended) = read(&damaged);
            prop_assert!(ended.is_err());
            prop_assert!(chunks.starts_with(&read));
        }

        #[test]
        fn a_cut_is_noticed_unless_it_is_between_segments(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 1..5),
            at in any::<prop::sample::Index>(),
        ) {
            let whole = written(&chunks);
            let length = at.index(whole.len());
            let (read, ended) = read(&whole[..length]);
            prop_assert!(chunks.starts_with(&read));
            prop_assert_eq!(ended.is_ok(), length == written(&read).len());
        }
    }
}
