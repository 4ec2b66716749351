//! A capture: as given, and as given behind a header that is right.

use cdc_core::capture::{CaptureHeader, CaptureReader, CaptureWriter};
use cdc_core::{Position, RawChunk};

use crate::limit::within;

/// A segment grows by doubling, with what is there and not with what is claimed.
fn most_bytes(bytes: &[u8]) -> usize {
    (4 << 10) + 4 * bytes.len()
}

pub(crate) fn run(bytes: &[u8]) {
    read(bytes);
    let mut capture = capture(&[bytes]);
    capture.extend_from_slice(bytes);
    read(&capture);
}

fn read(bytes: &[u8]) {
    within(most_bytes(bytes), || {
        let Ok((mut capture, _)) = CaptureReader::open(bytes) else {
            return;
        };
        let mut chunk = RawChunk::default();
        while let Ok(true) = capture.next(&mut chunk) {
            assert!(chunk.bytes.len() <= bytes.len());
        }
    });
}

fn capture(chunks: &[&[u8]]) -> Vec<u8> {
    let header = CaptureHeader {
        engine: "engine".into(),
        stream: "job".into(),
        from: Position::new("0/0"),
    };
    let mut capture = Vec::new();
    let mut writer = CaptureWriter::begin(&mut capture, &header).unwrap();
    for chunk in chunks {
        writer.add(&RawChunk::new(chunk.to_vec())).unwrap();
    }
    capture
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let whole = capture(&[b"the first chunk", b"", b"the last"]);
    let cut_short = whole.get(..whole.len() - 3).unwrap_or_default().to_vec();
    let mut damaged = whole.clone();
    damaged.extend(20_u32.to_le_bytes());
    damaged.extend(*b"wrong checksum and 8 more bytes");
    vec![
        ("cut-short", cut_short),
        ("damaged", damaged),
        ("empty", capture(&[])),
        ("whole", whole),
    ]
}
