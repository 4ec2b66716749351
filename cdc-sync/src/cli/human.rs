//! Numbers as people read them.

use bytesize::ByteSize;

/// `1234567` as `1,234,567`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes with a binary unit.
pub(super) fn bytes(number: u64) -> String {
    ByteSize::b(number).to_string()
}

/// Milliseconds, or seconds where there are many; `unknown` without a number.
pub(super) fn millis(ms: Option<f64>) -> String {
    match ms {
        None => "unknown".to_owned(),
        Some(ms) if ms < 1.0 => format!("{ms:.2} ms"),
        Some(ms) if ms < 10_000.0 => format!("{ms:.0} ms"),
        Some(ms) => format!("{:.0} s", ms / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(12_345_678), "12,345,678");
        assert_eq!(bytes(1 << 20), "1.0 MiB");
        assert_eq!(millis(Some(12.4)), "12 ms");
        assert_eq!(millis(Some(61_000.0)), "61 s");
        assert_eq!(millis(None), "unknown");
    }
}
