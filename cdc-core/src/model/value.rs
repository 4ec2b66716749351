//! A typed value, borrowed from the bytes of a batch. Built only where source and target differ in encoding.

/// One value on its way between engines of different encodings.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Value<'a> {
    /// SQL NULL
    Null,
    /// true or false
    Bool(bool),
    /// a signed integer
    Int(i64),
    /// an unsigned integer
    UInt(u64),
    /// IEEE 754 single precision, bit-exact
    Float32(f32),
    /// IEEE 754 double precision, bit-exact
    Float64(f64),
    /// an exact decimal in digits (`-12.50`), or `NaN`, `Infinity`, `-Infinity`
    Decimal(&'a str),
    /// character data
    Text(&'a str),
    /// bytes
    Bytes(&'a [u8]),
    /// bytes as pairs of hexadecimal digits, which a log that is text carries; checked by the reader
    HexBytes(&'a [u8]),
    /// days since 1970-01-01; [`i32::MIN`] and [`i32::MAX`] are minus and plus infinity
    Date(i32),
    /// microseconds since midnight, 86,400,000,000 (24:00) included
    Time(i64),
    /// microseconds since 1970-01-01 00:00 without zone; [`i64::MIN`] and [`i64::MAX`] are the infinities
    Timestamp(i64),
    /// microseconds since 1970-01-01 00:00 UTC; [`i64::MIN`] and [`i64::MAX`] are the infinities
    TimestampTz(i64),
    /// a UUID in network order
    Uuid([u8; 16]),
    /// a JSON document
    Json(&'a str),
    /// the text form of a type only its own engine understands
    Opaque(&'a str),
}
