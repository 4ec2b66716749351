//! A spill whose file is not left alone: nothing else comes out than what was added.

use std::cell::RefCell;
use std::io::{Cursor, Read, Result, Seek, SeekFrom, Write};
use std::rc::Rc;

use cdc_core::Kind;
use cdc_core::spill::Spill;

use crate::limit::within;

/// The most steps of one input.
const STEPS: usize = 8;
/// Lengths and places in the file are in this unit, so that two bytes are enough for records that are larger than a segment.
const UNIT: usize = 5;
/// The file, what is to come out, what has come out: each of at most eight records of 320 KiB (2.5 MiB), in a buffer that grows
/// by doubling, one of which is just being copied (17.5); and what the spill keeps in memory (1).
const MOST_BYTES: usize = 20 << 20;

pub(crate) fn run(bytes: &[u8]) {
    within(MOST_BYTES, || {
        let disk = Disk::default();
        let (mut spill, mut model) = (Spill::over(disk.clone()), Model::default());
        let mut rest = bytes;
        for _ in 0..STEPS {
            let Some(([kind, byte, low, high], after)) = rest.split_first_chunk() else {
                break;
            };
            rest = after;
            let number = usize::from(u16::from_le_bytes([*low, *high]));
            let done = match kind % 8 {
                0..=3 => spill.add(&[model.add(number * UNIT, *byte)]),
                4 => spill.cut(model.cut(number)),
                5 => disk.lose(number * UNIT),
                // A header begins where a segment does, mostly at the beginning.
                kind => {
                    let (bytes, after) = rest.split_at(rest.len().min(usize::from(*byte)));
                    rest = after;
                    disk.overwrite(if kind == 6 { 0 } else { number * UNIT }, bytes)
                }
            };
            if let Err(error) = done {
                return model.refused(&disk, &error);
            }
            assert_eq!(spill.length(), model.bytes.len() as u64);
        }
        let mut out = Vec::new();
        for number in 0.. {
            let more = spill.read(number, &mut out);
            assert!(model.bytes.starts_with(&out));
            match more {
                Ok(true) => {}
                Ok(false) => return assert!(out.len() == model.bytes.len()),
                Err(error) => return model.refused(&disk, &error),
            }
        }
    });
}

/// What is to come out.
#[derive(Default)]
struct Model {
    bytes: Vec<u8>,
    /// where records end
    ends: Vec<usize>,
}

impl Model {
    fn add(&mut self, length: usize, byte: u8) -> &[u8] {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(&vec![byte; length]);
        self.ends.push(self.bytes.len());
        self.bytes.get(begin..).unwrap_or_default()
    }

    fn cut(&mut self, number: usize) -> u64 {
        self.ends.truncate(number % (self.ends.len() + 1));
        self.bytes.truncate(self.ends.last().copied().unwrap_or_default());
        self.bytes.len() as u64
    }

    fn refused(&self, disk: &Disk, error: &cdc_core::Error) {
        assert!(disk.0.borrow().changed, "{error}");
        assert_eq!(error.kind(), Kind::Local);
    }
}

/// A file that somebody else can write to.
#[derive(Clone, Default)]
struct Disk(Rc<RefCell<Contents>>);

#[derive(Default)]
struct Contents {
    file: Cursor<Vec<u8>>,
    changed: bool,
}

impl Disk {
    fn lose(&self, from: usize) -> cdc_core::Result<()> {
        let mut contents = self.0.borrow_mut();
        contents.changed = true;
        contents.file.get_mut().truncate(from);
        Ok(())
    }

    fn overwrite(&self, at: usize, bytes: &[u8]) -> cdc_core::Result<()> {
        let mut contents = self.0.borrow_mut();
        contents.changed = true;
        let there = contents.file.get_mut().iter_mut().skip(at);
        there.zip(bytes).for_each(|(there, byte)| *there = *byte);
        Ok(())
    }
}

impl Read for Disk {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        self.0.borrow_mut().file.read(bytes)
    }
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.borrow_mut().file.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Seek for Disk {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.0.borrow_mut().file.seek(to)
    }
}

/// One step, with what is written into the file.
fn step(kind: u8, byte: u8, number: u16, bytes: &[u8]) -> Vec<u8> {
    [&[kind, byte][..], &number.to_le_bytes(), bytes].concat()
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let add = |byte, number| step(0, byte, number, b"");
    let cut = |number| step(4, 0, number, b"");
    // Two records each fill a segment of more than 256 KiB.
    let two_segments = [add(1, 40_000), add(2, 40_000), add(3, 30_000), add(4, 50_000)].concat();
    let header = [[1; 4], [0; 4], [0; 4], [0; 4], [0, 0, 4, 0], [0; 4]].concat();
    vec![
        (
            "cut",
            [
                two_segments.as_slice(),
                &cut(3),
                &add(5, 60_000),
                &cut(1),
                &add(6, 7),
            ]
            .concat(),
        ),
        ("damaged", [&two_segments[..], &step(7, 1, 50_000, b"x")].concat()),
        (
            "header",
            [&two_segments[..], &step(6, 24, 0, &header), &cut(1)].concat(),
        ),
        ("lost", [&two_segments[..], &step(5, 0, 60_000, b"")].concat()),
        ("whole", [&two_segments[..], &add(5, 1)].concat()),
    ]
}
