//! Dates and times in ISO form: `2026-01-31`, `0044-03-15 BC`, `13:45:00.25`, `2026-01-31 13:45:00+05:30`.

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// Days since 1970-01-01.
pub(super) fn date(text: &str) -> Option<i32> {
    match text {
        "infinity" => Some(i32::MAX),
        "-infinity" => Some(i32::MIN),
        _ => {
            let (text, bc) = era(text);
            i32::try_from(calendar_day(text, bc)?).ok()
        }
    }
}

/// Microseconds since midnight, 24:00 included.
pub(super) fn time_of_day(text: &str) -> Option<i64> {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = clock.split(':');
    let (hour, minute, second) = (two(parts.next()?)?, two(parts.next()?)?, two(parts.next()?)?);
    if parts.next().is_some() || minute > 59 || second > 59 {
        return None;
    }
    let micros = ((hour * 60 + minute) * 60 + second) * MICROS_PER_SECOND + micros(text, fraction)?;
    (micros <= MICROS_PER_DAY).then_some(micros)
}

/// Microseconds since 1970-01-01 00:00 without zone. The last years of the server's range lie beyond ours.
pub(super) fn timestamp(text: &str) -> Option<i64> {
    infinite(text).or_else(|| {
        let (text, bc) = era(text);
        local(text, bc)
    })
}

/// Microseconds since 1970-01-01 00:00 UTC.
pub(super) fn timestamp_tz(text: &str) -> Option<i64> {
    infinite(text).or_else(|| {
        let (text, bc) = era(text);
        // The date has minus signs of its own.
        let clock = text.find(' ')?;
        let sign = clock + text.get(clock..)?.find(['+', '-'])?;
        let (time, zone) = text.split_at_checked(sign)?;
        local(time, bc)?.checked_sub(offset(zone)?)
    })
}

fn infinite(text: &str) -> Option<i64> {
    match text {
        "infinity" => Some(i64::MAX),
        "-infinity" => Some(i64::MIN),
        _ => None,
    }
}

fn era(text: &str) -> (&str, bool) {
    match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    }
}

fn local(text: &str, bc: bool) -> Option<i64> {
    let (day, time) = text.split_once(' ')?;
    calendar_day(day, bc)?
        .checked_mul(MICROS_PER_DAY)?
        .checked_add(time_of_day(time)?)
}

/// `+05`, `-05:30`, `+05:30:21`: microseconds east of Greenwich.
fn offset(zone: &str) -> Option<i64> {
    let (sign, digits) = match zone.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let mut parts = digits.split(':');
    let hours = two(parts.next()?)?;
    let minutes = parts.next().map_or(Some(0), two)?;
    let seconds = parts.next().map_or(Some(0), two)?;
    if parts.next().is_some() || minutes > 59 || seconds > 59 {
        return None;
    }
    Some(sign * ((hours * 60 + minutes) * 60 + seconds) * MICROS_PER_SECOND)
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar, which the server uses for all dates.
fn calendar_day(text: &str, bc: bool) -> Option<i64> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, two(parts.next()?)?, two(parts.next()?)?);
    if parts.next().is_some() || !(4..=7).contains(&year.len()) {
        return None;
    }
    let year = digits(year)?;
    if year == 0 || !(1..=12).contains(&month) {
        return None;
    }
    // 1 BC is the year 0.
    let year = if bc { 1 - year } else { year };
    if day < 1 || day > month_length(year, month) {
        return None;
    }
    // Years are counted from March on, so that the leap day comes last; 400 years are one cycle of 146,097 days.
    let year = if month <= 2 { year - 1 } else { year };
    let (cycle, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(cycle * 146_097 + year * 365 + year / 4 - year / 100 + day_of_year - 719_468)
}

fn month_length(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// 1 to 6 digits after the point, if there is one.
fn micros(text: &str, fraction: &str) -> Option<i64> {
    if fraction.is_empty() {
        return (!text.contains('.')).then_some(0);
    }
    let missing = 6_usize.checked_sub(fraction.len())?;
    Some(digits(fraction)? * 10_i64.pow(missing as u32))
}

fn two(text: &str) -> Option<i64> {
    if text.len() == 2 { digits(text) } else { None }
}

/// At most seven digits.
fn digits(text: &str) -> Option<i64> {
    if text.is_empty() || text.len() > 7 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_all_eras() {
        for (text, days) in [
            ("1970-01-01", 0),
            ("2000-01-01", 10_957),
            ("2000-02-29", 11_016),
            ("1582-10-10", -141_432),
            ("0001-01-01", -719_162),
            ("0001-12-31 BC", -719_163),
            ("0044-03-15 BC", -735_160),
            ("4714-11-24 BC", -2_440_588),
            ("5874897-12-31", 2_145_042_905),
            ("infinity", i32::MAX),
            ("-infinity", i32::MIN),
        ] {
            assert_eq!(date(text), Some(days), "{text}");
        }
    }

    #[test]
    fn times_and_instants() {
        assert_eq!(time_of_day("23:59:59.999999"), Some(MICROS_PER_DAY - 1));
        assert_eq!(time_of_day("24:00:00"), Some(MICROS_PER_DAY));
        assert_eq!(time_of_day("00:00:00.1"), Some(100_000));
        assert_eq!(timestamp("2000-01-01 00:00:00"), Some(946_684_800_000_000));
        assert_eq!(
            timestamp("0001-12-31 23:59:59.999999 BC"),
            Some(-719_162 * MICROS_PER_DAY - 1)
        );
        assert_eq!(timestamp("infinity"), Some(i64::MAX));
        assert_eq!(
            timestamp_tz("2000-01-01 05:30:21+05:30:21"),
            Some(946_684_800_000_000)
        );
        assert_eq!(timestamp_tz("1999-12-31 19:00:00-05"), Some(946_684_800_000_000));
        assert_eq!(timestamp_tz("-infinity"), Some(i64::MIN));
        assert_eq!(
            timestamp_tz("4714-11-24 00:00:00+00 BC"),
            timestamp("4714-11-24 00:00:00 BC")
        );
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "01/02/2026",
            "2026-1-2",
            "2026-02-30",
            "1900-02-29",
            "0000-01-01",
            "2026-13-01",
            "-2026-01-01",
        ] {
            assert_eq!(date(text), None, "{text}");
        }
        for text in [
            "",
            "24:00:00.000001",
            "12:60:00",
            "12:00",
            "12:00:00.",
            "12:00:00.1234567",
            "+1:00:00",
        ] {
            assert_eq!(time_of_day(text), None, "{text}");
        }
        assert_eq!(timestamp("294276-12-31 23:59:59"), None);
        for text in [
            "2000-01-01 00:00:00",
            "2000-01-01 00:00:00+5",
            "2000-01-01",
            "2000-01-01 00:00:00+00:00:00:00",
        ] {
            assert_eq!(timestamp_tz(text), None, "{text}");
        }
    }
}
