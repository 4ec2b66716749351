//! Durations and sizes as people write them.

use std::time::Duration;

/// Clocks can still be counted on from now.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A duration such as `100ms`, `30s`, `5m`, `1h 30m`; a bare number is seconds.
///
/// # Errors
/// Says what is expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let duration = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text)
            .map_err(|error| format!("not a duration such as `100ms`, `30s`, `5m` or `1h`: {error}"))?,
    };
    if duration > LONGEST {
        return Err("longer than a hundred years; leave it out for no limit".to_owned());
    }
    Ok(duration)
}

/// A number of bytes such as `512MiB`, `50GB`; a bare number is bytes.
///
/// # Errors
/// Says what is expected.
pub fn parse_size(text: &str) -> Result<u64, String> {
    text.trim()
        .parse::<bytesize::ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| "not a size such as `512MiB`, `50GB` or a number of bytes".to_owned())
}

/// A number of at least one.
///
/// # Errors
/// Says what is expected.
pub fn parse_count(text: &str) -> Result<usize, String> {
    match text.trim().parse::<usize>() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("not a whole number of at least 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert!(parse_duration("soon").is_err());
        assert!(parse_duration("-1s").is_err());
        assert!(parse_duration("18446744073709551615").is_err());
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("1MiB"), Ok(1 << 20));
        assert_eq!(parse_size("50GB"), Ok(50_000_000_000));
        assert!(parse_size("large").is_err());
        assert!(parse_count("0").is_err());
        assert_eq!(parse_count("4"), Ok(4));
    }
}
