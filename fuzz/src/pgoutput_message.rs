//! One message of the output plugin.

use cdc_postgres::pgoutput::{Message, ProtocolVersion};

use crate::limit::within;
use crate::pgoutput_stream;

/// Columns and relations become lists: 40 bytes for a column of at least 10, which a count cannot claim beyond what is
/// there.
fn most_bytes(bytes: &[u8]) -> usize {
    (4 << 10) + 8 * bytes.len()
}

pub(crate) fn run(bytes: &[u8]) {
    within(most_bytes(bytes), || {
        if let Err(malformed) = Message::parse(ProtocolVersion::V1, bytes) {
            assert!(malformed.at <= bytes.len(), "{malformed}");
        }
    });
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    pgoutput_stream::every_message()
}
