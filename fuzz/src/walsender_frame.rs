//! Frames of the copy-both stream, as a reader cuts them from what arrives.

use cdc_postgres::lsn::Lsn;
use cdc_postgres::pgoutput::encode::Frames;
use cdc_postgres::walsender::{parse_frame, split_frames};

use crate::limit::within;

/// Nothing is copied; an error has a text.
const MOST_BYTES: usize = 4 << 10;

pub(crate) fn run(bytes: &[u8]) {
    within(MOST_BYTES, || {
        let _ = parse_frame(bytes);
        let mut taken = 0;
        for payload in split_frames(bytes).map_while(Result::ok) {
            taken += 4 + payload.len();
            let _ = parse_frame(payload);
        }
        assert!(taken <= bytes.len());
    });
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut frames = Frames::default();
    frames
        .message(Lsn(0x15), b"B and what follows")
        .keepalive(Lsn(0x20), true)
        .message(Lsn(0), b"")
        .frame(b"x is no frame")
        .frame(b"");
    let mut seeds = vec![("frames", frames.bytes.clone())];
    // Without the lengths before them.
    let mut payloads = split_frames(&frames.bytes).map_while(Result::ok);
    for name in ["xlogdata", "keepalive"] {
        seeds.extend(payloads.next().map(|payload| (name, payload.to_vec())));
    }
    let cut = frames.bytes.len() / 2;
    seeds.extend(frames.bytes.get(..cut).map(|half| ("cut-off", half.to_vec())));
    seeds
}
