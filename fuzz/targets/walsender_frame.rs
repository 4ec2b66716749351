//! Frames of the copy-both stream, as a reader cuts them from what arrives.
#![no_main]

use cdc_postgres::walsender::{parse_frame, split_frames};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = parse_frame(bytes);
    let mut taken = 0;
    for payload in split_frames(bytes).map_while(Result::ok) {
        taken += 4 + payload.len();
        let _ = parse_frame(payload);
    }
    assert!(taken <= bytes.len());
});
