//! Spill: what a stream has to set aside for a while and is too large for memory.
//!
//! ```text
//! segment: header (format, number, length, CRC-32 of the bytes) · bytes     whole records, about 256 KiB, or a larger one
//! ```
//!
//! A spill is of no use to anyone but the process that writes it: after a crash the source sends everything again. So it
//! is never synced, its file has no name, and what it must guarantee is only that what comes back is what was put in.
//! Which segments there are, and with which checksum, is remembered beside the file: one that an earlier, cut off part
//! has left behind, or whose write was lost, is not taken for the one that should be there.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use rkyv::rancor;
use rkyv::util::Align;

use crate::error::{Action, Error, Kind, Result};

/// Bytes after which a segment is written: fewer than twice as many wait for it in memory, whatever a record has.
const SEGMENT_BYTES: usize = 256 << 10;
/// The layout of segments.
const FORMAT: u32 = 1;

/// What precedes the bytes of a segment.
#[derive(rkyv::Archive, rkyv::Serialize, Debug)]
struct Header {
    format: u32,
    crc: u32,
    number: u64,
    length: u64,
}

/// Bytes of an archived header.
const HEADER_BYTES: usize = size_of::<ArchivedHeader>();

/// A segment that was written.
#[derive(Debug, Clone, Copy)]
struct Segment {
    /// where its header is in the file
    at: u64,
    /// what was added before it
    begin: u64,
    length: u64,
    crc: u32,
}

/// Records that are set aside in a file.
#[derive(Debug)]
pub struct Spill<F = File> {
    file: F,
    /// where the file is, for errors
    folder: PathBuf,
    segments: Vec<Segment>,
    /// records that are not written yet
    open: Vec<u8>,
    /// what was added before those
    begin: u64,
}

impl Spill<File> {
    /// An empty spill in a file without a name: in `TMPDIR`, else `/var/tmp` where there is one, since the other place for
    /// temporary files is often memory.
    ///
    /// # Errors
    /// When no file can be made there.
    pub fn create() -> Result<Self> {
        let folder = folder();
        match tempfile::tempfile_in(&folder) {
            Ok(file) => Ok(Self {
                folder,
                ..Self::over(file)
            }),
            Err(error) => Err(not_made(error).object(folder.display().to_string())),
        }
    }
}

fn folder() -> PathBuf {
    let lasting = PathBuf::from("/var/tmp");
    match std::env::var_os("TMPDIR") {
        Some(folder) if !folder.is_empty() => folder.into(),
        _ if lasting.is_dir() => lasting,
        _ => std::env::temp_dir(),
    }
}

impl<F: Read + Write + Seek> Spill<F> {
    /// An empty spill over a file that nobody else uses.
    pub fn over(file: F) -> Self {
        Self {
            file,
            folder: PathBuf::new(),
            segments: Vec::new(),
            open: Vec::new(),
            begin: 0,
        }
    }

    /// Adds a record, given in parts. It is handed out whole, together with others.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&mut self, parts: &[&[u8]]) -> Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length >= SEGMENT_BYTES {
            self.write_open()?;
            return self.write(parts);
        }
        parts.iter().for_each(|part| self.open.extend_from_slice(part));
        if self.open.len() >= SEGMENT_BYTES {
            self.write_open()?;
        }
        Ok(())
    }

    /// Bytes added so far.
    pub fn length(&self) -> u64 {
        self.begin + self.open.len() as u64
    }

    /// Forgets what was added after the first `length` bytes, which must end with a record.
    ///
    /// # Errors
    /// When a segment that is kept in part cannot be read again.
    pub fn cut(&mut self, length: u64) -> Result<()> {
        while length < self.begin {
            let Some(last) = self.segments.pop() else { break };
            self.open.clear();
            if length > last.begin {
                let number = self.segments.len() as u64;
                let read = read(&mut self.file, last, number, &mut self.open);
                read.map_err(|error| self.named(error))?;
            }
            self.begin = last.begin;
        }
        self.open.truncate((length - self.begin) as usize);
        Ok(())
    }

    fn write_open(&mut self) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let mut open = std::mem::take(&mut self.open);
        let written = self.write(&[&open]);
        if written.is_ok() {
            open.clear();
        }
        self.open = open;
        written
    }

    /// Writes a segment.
    fn write(&mut self, parts: &[&[u8]]) -> Result<()> {
        let mut crc = crc32fast::Hasher::new();
        parts.iter().for_each(|part| crc.update(part));
        let segment = Segment {
            at: self.segments.last().map_or(0, Segment::end),
            begin: self.begin,
            length: parts.iter().map(|part| part.len() as u64).sum(),
            crc: crc.finalize(),
        };
        let header = Header {
            format: FORMAT,
            crc: segment.crc,
            number: self.segments.len() as u64,
            length: segment.length,
        };
        let header = rkyv::to_bytes::<rancor::Error>(&header)
            .map_err(|error| Error::bug(format!("a segment's header cannot be made: {error}")))?;
        let sought = self.file.seek(SeekFrom::Start(segment.at));
        sought
            .and_then(|_| self.file.write_all(&header))
            .and_then(|()| parts.iter().try_for_each(|part| self.file.write_all(part)))
            .map_err(|error| self.named(not_written(error)))?;
        self.begin += segment.length;
        self.segments.push(segment);
        Ok(())
    }

    fn named(&self, error: Error) -> Error {
        error.object(self.folder.display().to_string())
    }

    /// How many segments are written. A cut may take some away.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Appends the records of segment `number` to `out`, or, when there are only that many, those that are not written yet;
    /// `false` when no more can follow.
    ///
    /// # Errors
    /// [`Kind::Local`] when the file does not have what was written to it.
    pub fn read(&mut self, number: usize, out: &mut Vec<u8>) -> Result<bool> {
        if let Some(segment) = self.segments.get(number) {
            let read = read(&mut self.file, *segment, number as u64, out);
            return read.map(|()| true).map_err(|error| self.named(error));
        }
        if number == self.segments.len() {
            out.extend_from_slice(&self.open);
        }
        Ok(false)
    }
}

impl Segment {
    fn end(&self) -> u64 {
        self.at + HEADER_BYTES as u64 + self.length
    }
}

/// Appends the bytes of a segment to `out`; after an error nothing is added.
fn read<F: Read + Seek>(file: &mut F, segment: Segment, number: u64, out: &mut Vec<u8>) -> Result<()> {
    let begin = out.len();
    // Reading to the end would double what a large record takes while it grows.
    out.reserve(segment.length as usize);
    let mut header = Align([0; HEADER_BYTES]);
    let bytes = file
        .seek(SeekFrom::Start(segment.at))
        .and_then(|_| file.read_exact(&mut header.0))
        .and_then(|()| file.by_ref().take(segment.length).read_to_end(out));
    let found = match bytes {
        Ok(bytes) => bytes as u64,
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => 0,
        Err(error) => {
            out.truncate(begin);
            return Err(local("what was set aside cannot be read", error)
                .remedy("nothing of it is committed on the target: run again, with TMPDIR on a sound disk"));
        }
    };
    let intact = found == segment.length
        && rkyv::access::<ArchivedHeader, rancor::Error>(&header.0).is_ok_and(|header| {
            header.format == FORMAT
                && header.number == number
                && header.length == segment.length
                && header.crc == segment.crc
        })
        && crc32fast::hash(out.get(begin..).unwrap_or_default()) == segment.crc;
    if intact {
        return Ok(());
    }
    out.truncate(begin);
    Err(Error::new(
        Kind::Local,
        format!("segment {number} of what was set aside is not as it was written"),
    )
    .remedy("nothing of it is committed on the target: run again, with TMPDIR on a sound disk"))
}

/// ENFILE and EMFILE: the system, or this process, has as many files open as it may.
const TOO_MANY_FILES: [Option<i32>; 2] = [Some(23), Some(24)];

#[cold]
fn not_made(error: std::io::Error) -> Error {
    let what = "a file to set changes aside in cannot be made";
    if TOO_MANY_FILES.contains(&error.raw_os_error()) {
        return local(what, error)
            .remedy("each large transaction that runs on the source needs one: raise the limit of open files")
            .action(Action::Wait);
    }
    if is_full(&error) {
        return no_room(what, error);
    }
    local(what, error).remedy("set TMPDIR to a folder in which this user may make files")
}

#[cold]
fn not_written(error: std::io::Error) -> Error {
    let what = "changes cannot be set aside";
    if is_full(&error) {
        return no_room(what, error);
    }
    local(what, error)
        .remedy("set TMPDIR to a folder on a sound disk, where files may be as large as it takes")
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// A full disk may have room again: the stream waits for it.
fn no_room(what: &str, error: std::io::Error) -> Error {
    local(what, error)
        .remedy("free space where temporary files are kept, or set TMPDIR to a folder with more")
        .action(Action::Wait)
}

#[cold]
fn local(what: &str, error: std::io::Error) -> Error {
    Error::new(Kind::Local, what).caused_by(error)
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor};

    use proptest::prelude::*;

    use super::*;

    /// What is done to a spill.
    #[derive(Debug, Clone)]
    enum Step {
        Add(u8, usize),
        /// back to what it was after this share of the additions that still stand
        Cut(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let add = (any::<u8>(), 0..SEGMENT_BYTES * 5 / 4).prop_map(|(byte, length)| Step::Add(byte, length));
        let cut = any::<prop::sample::Index>().prop_map(Step::Cut);
        prop::collection::vec(prop_oneof![4 => add, 1 => cut], 0..12)
    }

    /// Does the steps; returns what is to come out.
    fn run<F: Read + Write + Seek>(spill: &mut Spill<F>, steps: &[Step]) -> Result<Vec<u8>> {
        let (mut model, mut ends) = (Vec::new(), vec![0]);
        for step in steps {
            match step {
                Step::Add(byte, length) => {
                    spill.add(&[&vec![*byte; length / 3], &vec![!*byte; length - length / 3]])?;
                    model.resize(model.len() + length / 3, *byte);
                    model.resize(model.len() + length - length / 3, !*byte);
                    ends.push(model.len());
                }
                Step::Cut(at) => {
                    ends.truncate(at.index(ends.len()) + 1);
                    model.truncate(*ends.last().unwrap());
                    spill.cut(model.len() as u64)?;
                }
            }
            assert_eq!(spill.length(), model.len() as u64);
        }
        Ok(model)
    }

    /// What comes out, and how it ended.
    fn drain<F: Read + Write + Seek>(spill: &mut Spill<F>) -> (Vec<u8>, Result<bool>) {
        let mut out = Vec::new();
        for number in 0.. {
            match spill.read(number, &mut out) {
                Ok(true) => {}
                ended => return (out, ended),
            }
        }
        unreachable!("segments are numbered without end")
    }

    /// A file on a system that loses writes: each is kept whole, in part or not at all, as after a power cut before it
    /// was synced.
    struct Lossy {
        file: Cursor<Vec<u8>>,
        /// how much of which write arrives, in 255ths
        kept: std::iter::Cycle<std::vec::IntoIter<u8>>,
    }

    impl Write for Lossy {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let kept = bytes.len() * usize::from(self.kept.next().unwrap()) / 255;
            let after = self.file.position() + bytes.len() as u64;
            self.file.write_all(&bytes[..kept])?;
            self.file.set_position(after);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for Lossy {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.file.read(bytes)
        }
    }

    impl Seek for Lossy {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.file.seek(to)
        }
    }

    /// A device on which there never is room.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for Full {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("it fails"))
        }
    }

    impl Seek for Full {
        fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
            Ok(0)
        }
    }

    #[test]
    fn what_may_pass_is_waited_for_and_each_error_says_where_and_what_to_do() {
        let mut spill = Spill::over(Full);
        spill.folder = "/somewhere".into();
        let full = spill.add(&[&[0; SEGMENT_BYTES]]).unwrap_err();
        let segment = Segment {
            at: 0,
            begin: 0,
            length: 1,
            crc: 0,
        };
        spill.segments.push(segment);
        let unread = spill.read(0, &mut Vec::new()).unwrap_err();
        for (error, action) in [(&full, Action::Wait), (&unread, Action::Stop)] {
            assert_eq!(error.what_to_do(), action);
            assert_eq!(error.object_name(), Some("/somewhere"));
            assert!(error.remedy_text().is_some());
        }
        let made = |code| not_made(io::Error::from_raw_os_error(code));
        let [system, process, full, denied] = [23, 24, 28, 13].map(made);
        for (error, action, remedy) in [
            (system, Action::Wait, "open files"),
            (process, Action::Wait, "open files"),
            (full, Action::Wait, "free space"),
            (denied, Action::Stop, "may make files"),
        ] {
            assert_eq!(error.what_to_do(), action);
            assert!(
                error.remedy_text().is_some_and(|text| text.contains(remedy)),
                "{error:?}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_added_and_not_cut_off_comes_out(steps in steps()) {
            let mut spill = Spill::over(Cursor::new(Vec::new()));
            let model = run(&mut spill, &steps).unwrap();
            prop_assert!(spill.open.capacity() <= 4 * SEGMENT_BYTES);
            let (out, ended) = drain(&mut spill);
            prop_assert!(ended.is_ok());
            prop_assert!(out == model);
        }

        /// Nothing else ever comes out: neither zeros nor what an earlier part has left in the same place.
        #[test]
        fn what_a_file_system_loses_is_noticed(
            steps in steps(),
            kept in prop::collection::vec(prop_oneof![3 => Just(255), 1 => any::<u8>()], 1..8),
        ) {
            let loses = kept.iter().any(|kept| *kept < 255);
            let file = Cursor::new(Vec::new());
            let mut spill = Spill::over(Lossy { file, kept: kept.into_iter().cycle() });
            match run(&mut spill, &steps) {
                Err(error) => prop_assert!(loses && error.kind() == Kind::Local),
                Ok(model) => {
                    let (out, ended) = drain(&mut spill);
                    prop_assert!(model.starts_with(&out));
                    prop_assert_eq!(ended.is_ok(), out == model);
                    prop_assert!(loses || ended.is_ok());
                }
            }
        }
    }
}
