//! The log sequence number of the **source** server.
//!
//! A target's WAL positions are another space. Nothing here converts one into the other, and the sink never makes
//! an [`Lsn`] of a number its own server gave it: reporting a target position to the source's slot would discard
//! WAL that was never applied.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

/// A byte position in the source's write-ahead log (`pg_lsn`).
///
/// Positions of a protocol message are "last byte + 1", as in the standby status update: a position `p` says that
/// all WAL below `p` is meant.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `0/0`, which the protocol uses for "none" (`InvalidXLogRecPtr`).
    pub const ZERO: Lsn = Lsn(0);

    /// Whether this is [`Lsn::ZERO`].
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Bytes of WAL from `earlier` up to `self`; 0 if `earlier` is ahead.
    pub const fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl From<u64> for Lsn {
    fn from(raw: u64) -> Lsn {
        Lsn(raw)
    }
}

impl From<Lsn> for u64 {
    fn from(lsn: Lsn) -> u64 {
        lsn.0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an LSN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseLsnError {
    /// There is no `/`, or there are several.
    Shape(String),
    /// One half is not 1 to 8 hexadecimal digits.
    Half {
        /// The whole text.
        text: String,
        /// The half that is wrong.
        half: String,
    },
}

impl fmt::Display for ParseLsnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParseLsnError::Shape(text) => {
                write!(
                    f,
                    "{text:?} is not an LSN: expected two hexadecimal numbers with one '/', as in 16/B374D848"
                )
            }
            ParseLsnError::Half { text, half } => {
                write!(
                    f,
                    "{text:?} is not an LSN: {half:?} is not 1 to 8 hexadecimal digits"
                )
            }
        }
    }
}

impl std::error::Error for ParseLsnError {}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Lsn, ParseLsnError> {
        let mut halves = text.split('/');
        let (Some(high), Some(low), None) = (halves.next(), halves.next(), halves.next()) else {
            return Err(ParseLsnError::Shape(text.to_owned()));
        };
        let half = |digits: &str| {
            parse_half(digits).map_err(|_| ParseLsnError::Half {
                text: text.to_owned(),
                half: digits.to_owned(),
            })
        };
        Ok(Lsn((u64::from(half(high)?) << 32) | u64::from(half(low)?)))
    }
}

fn parse_half(digits: &str) -> Result<u32, ParseIntError> {
    // `from_str_radix` takes a sign, an LSN has none.
    if digits.starts_with('+') || digits.len() > 8 {
        return "".parse();
    }
    u32::from_str_radix(digits, 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        for (text, raw) in [
            ("0/0", 0),
            ("16/B374D848", 0x16_B374_D848),
            ("FFFFFFFF/FFFFFFFF", u64::MAX),
            ("1/A", 0x1_0000_000A),
        ] {
            let lsn: Lsn = text.parse().unwrap();
            assert_eq!(lsn, Lsn(raw));
            assert_eq!(lsn.to_string(), text);
        }
        assert_eq!("0a/0000000b".parse::<Lsn>().unwrap().to_string(), "A/B");
    }

    #[test]
    fn bad_text_names_the_bad_half() {
        assert_eq!("16".parse::<Lsn>(), Err(ParseLsnError::Shape("16".into())));
        assert_eq!("1/2/3".parse::<Lsn>(), Err(ParseLsnError::Shape("1/2/3".into())));
        for (text, half) in [
            ("/1", ""),
            ("1/", ""),
            ("1/G", "G"),
            ("+1/2", "+1"),
            ("1/123456789", "123456789"),
            (" 1/2", " 1"),
        ] {
            let want = ParseLsnError::Half {
                text: text.into(),
                half: half.into(),
            };
            assert_eq!(text.parse::<Lsn>(), Err(want));
        }
    }

    #[test]
    fn order_is_numeric_and_distance_saturates() {
        assert!(Lsn(0x1_0000_0000) > Lsn(0xFFFF_FFFF));
        assert_eq!(Lsn(10).bytes_since(Lsn(4)), 6);
        assert_eq!(Lsn(4).bytes_since(Lsn(10)), 0);
        assert!(Lsn::ZERO.is_zero());
    }
}
