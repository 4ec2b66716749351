//! A capture: as given, and as given behind a header that is right.
#![no_main]

use cdc_core::capture::{CaptureHeader, CaptureReader, CaptureWriter};
use cdc_core::{Position, RawChunk};
use libfuzzer_sys::fuzz_target;

fn read(bytes: &[u8]) {
    let Ok((mut capture, _)) = CaptureReader::open(bytes) else {
        return;
    };
    let mut chunk = RawChunk::default();
    while let Ok(true) = capture.next(&mut chunk) {
        assert!(chunk.bytes.len() <= bytes.len());
    }
    // What is claimed is not what is allocated.
    assert!(chunk.bytes.capacity() <= 2 * bytes.len() + 64);
}

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    let header = CaptureHeader {
        engine: "engine".into(),
        stream: "job".into(),
        from: Position::new("0/0"),
    };
    let mut capture = Vec::new();
    let mut writer = CaptureWriter::begin(&mut capture, &header).unwrap();
    writer.add(&RawChunk::new(bytes.to_vec())).unwrap();
    drop(writer);
    capture.extend_from_slice(bytes);
    read(&capture);
});
