//! One message of the output plugin.
#![no_main]

use cdc_postgres::pgoutput::{Message, ProtocolVersion};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(malformed) = Message::parse(ProtocolVersion::V1, bytes) {
        assert!(malformed.at <= bytes.len(), "{malformed}");
    }
});
