//! The types a column can have, in terms no engine owns, and the encodings of its bytes.

/// What a column holds, independent of the engine it lives in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DataType {
    /// true or false
    Bool,
    /// A signed integer of 16, 32 or 64 bits, or an unsigned one.
    Int {
        /// width in bits
        bits: u8,
        /// whether negative values exist
        signed: bool,
    },
    /// IEEE 754 single precision
    Float32,
    /// IEEE 754 double precision
    Float64,
    /// An exact decimal; precision and scale where the column declares them.
    Decimal {
        /// total digits and digits after the point
        precision: Option<(u32, i32)>,
    },
    /// Character data, UTF-8 in the canonical encoding.
    Text,
    /// Bytes
    Bytes,
    /// A calendar date
    Date,
    /// A time of day without zone
    Time,
    /// A date and time without zone
    Timestamp,
    /// An instant
    TimestampTz,
    /// A UUID
    Uuid,
    /// A JSON document as text
    Json,
    /// A type only its own engine understands, by that engine's name for it; carried as text.
    Opaque(Box<str>),
}

/// How a column's bytes in a batch are to be read. Sinks compare encodings: a cell whose encoding the sink
/// speaks natively passes through without being parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Encoding(&'static str);

impl Encoding {
    /// The core's own typed encoding; see [`super::encode_canonical`].
    pub const CANONICAL: Self = Self("canonical");

    /// Names an engine's encoding, such as its wire text form.
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// The name.
    pub fn name(self) -> &'static str {
        self.0
    }
}
