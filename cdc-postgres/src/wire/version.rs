//! What differs between the server versions, in one table.

use std::fmt;

use crate::error::PgError;

/// A server's version as `server_version_num` gives it: 120022 is 12.22.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerVersion(pub u32);

/// Something that only newer servers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// `wal_sender_timeout` can be set by a session.
    SessionWalSenderTimeout,
    /// `logical_decoding_work_mem`.
    DecodingWorkMem,
    /// pgoutput: logical messages are sent on request.
    PgoutputMessages,
    /// pgoutput: values in binary on request.
    PgoutputBinary,
    /// pgoutput: transactions are sent while they run (protocol version 2).
    PgoutputStreaming,
    /// TID range scans, so that ranges of `ctid` are read without reading the whole table.
    TidRangeScan,
    /// `idle_session_timeout`.
    IdleSessionTimeout,
    /// The session reports `in_hot_standby` and `default_transaction_read_only`.
    ReportsRecovery,
    /// Replication slot options in parentheses.
    SlotOptionList,
    /// pgoutput: prepared transactions are sent when they are prepared (protocol version 3).
    PgoutputTwoPhase,
    /// pgoutput: changes can be filtered by origin.
    PgoutputOrigin,
    /// Slots that are copied to standbys.
    FailoverSlots,
    /// `transaction_timeout`.
    TransactionTimeout,
}

impl Feature {
    /// The first major version that has it.
    pub const fn since(self) -> u32 {
        match self {
            Feature::SessionWalSenderTimeout => 12,
            Feature::DecodingWorkMem => 13,
            Feature::PgoutputMessages
            | Feature::PgoutputBinary
            | Feature::PgoutputStreaming
            | Feature::TidRangeScan
            | Feature::IdleSessionTimeout
            | Feature::ReportsRecovery => 14,
            Feature::SlotOptionList | Feature::PgoutputTwoPhase => 15,
            Feature::PgoutputOrigin => 16,
            Feature::FailoverSlots | Feature::TransactionTimeout => 17,
        }
    }
}

impl ServerVersion {
    /// The major version, 10 and later.
    pub const fn major(self) -> u32 {
        self.0 / 10_000
    }

    /// Whether the server has this.
    pub const fn has(self, feature: Feature) -> bool {
        self.major() >= feature.since()
    }

    /// An error that names the missing version, if the server lacks `feature`.
    pub(crate) fn require(self, feature: Feature, what: &str) -> Result<(), PgError> {
        if self.has(feature) {
            return Ok(());
        }
        Err(PgError::usage(format!(
            "{what} needs PostgreSQL {}, the server is {self}",
            feature.since()
        )))
    }

    /// Reads the parameter `server_version`: `18.4`, `15.18 (Debian 15.18-1)`, `19beta1`, `9.6.24`.
    pub(crate) fn parse(text: &str) -> Option<ServerVersion> {
        let number = |text: &str| {
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            text.get(..end)?.parse::<u32>().ok()
        };
        let mut parts = text.split('.');
        let major = number(parts.next()?)?;
        let minor = parts.next().and_then(number).unwrap_or(0);
        if major >= 10 {
            return Some(ServerVersion(major.checked_mul(10_000)?.checked_add(minor)?));
        }
        let patch = parts.next().and_then(number).unwrap_or(0);
        Some(ServerVersion(
            major * 10_000 + minor.checked_mul(100)?.checked_add(patch)?,
        ))
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.major() >= 10 {
            write!(f, "{}.{}", self.major(), self.0 % 10_000)
        } else {
            write!(f, "{}.{}.{}", self.major(), self.0 / 100 % 100, self.0 % 100)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_texts_of_all_kinds_are_read() {
        for (text, number, shown) in [
            ("18.4", 180_004, "18.4"),
            ("15.18 (Debian 15.18-1.pgdg120+1)", 150_018, "15.18"),
            ("19beta1", 190_000, "19.0"),
            ("17rc1", 170_000, "17.0"),
            ("9.6.24", 90_624, "9.6.24"),
        ] {
            let version = ServerVersion::parse(text).unwrap();
            assert_eq!((version.0, version.to_string().as_str()), (number, shown));
        }
        for text in ["", "x", "99999999999"] {
            assert_eq!(ServerVersion::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_feature_is_there_from_its_version_on() {
        assert!(!ServerVersion(160_009).has(Feature::FailoverSlots));
        assert!(ServerVersion(170_000).has(Feature::FailoverSlots));
        let error = ServerVersion(130_001)
            .require(Feature::PgoutputMessages, "messages")
            .unwrap_err()
            .to_string();
        assert_eq!(error, "messages needs PostgreSQL 14, the server is 13.1");
    }
}
