//! Typed values as PostgreSQL's input text, for sources of another encoding (PostgreSQL manual, "Data Types").

use std::io::Write as _;

use cdc_core::{Error, Result, Value};

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Appends the text of `value`; `false` for NULL, which has none.
pub(super) fn render(value: &Value<'_>, out: &mut Vec<u8>) -> Result<bool> {
    match value {
        Value::Null => return Ok(false),
        Value::Bool(value) => out.push(if *value { b't' } else { b'f' }),
        Value::Int(value) => write(out, format_args!("{value}")),
        Value::UInt(value) => write(out, format_args!("{value}")),
        Value::Float32(value) => float(f64::from(*value), format_args!("{value:e}"), out),
        Value::Float64(value) => float(*value, format_args!("{value:e}"), out),
        Value::Decimal(text) | Value::Text(text) | Value::Json(text) | Value::Opaque(text) => {
            out.extend_from_slice(text.as_bytes());
        }
        Value::Bytes(bytes) => {
            out.extend_from_slice(b"\\x");
            bytes
                .iter()
                .for_each(|byte| write(out, format_args!("{byte:02x}")));
        }
        Value::Date(i32::MAX) | Value::Timestamp(i64::MAX) | Value::TimestampTz(i64::MAX) => {
            out.extend_from_slice(b"infinity");
        }
        Value::Date(i32::MIN) | Value::Timestamp(i64::MIN) | Value::TimestampTz(i64::MIN) => {
            out.extend_from_slice(b"-infinity");
        }
        Value::Date(days) => {
            let before_christ = date(i64::from(*days), out);
            era(before_christ, out);
        }
        Value::Time(micros) => time(*micros, out),
        Value::Timestamp(micros) => timestamp(*micros, "", out),
        Value::TimestampTz(micros) => timestamp(*micros, "+00", out),
        Value::Uuid(bytes) => {
            for (place, byte) in bytes.iter().enumerate() {
                if matches!(place, 4 | 6 | 8 | 10) {
                    out.push(b'-');
                }
                write(out, format_args!("{byte:02x}"));
            }
        }
        Value::HexBytes(digits) => {
            out.extend_from_slice(b"\\x");
            out.extend_from_slice(digits);
        }
        // A kind of value added to the core is not silently written as something else.
        _ => return Err(Error::bug("a value of a kind that this sink does not know")),
    }
    Ok(true)
}

fn write(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = out.write_fmt(text);
}

/// Rust prints the shortest text that reads back to the same bits; only the special values differ.
fn float(value: f64, finite: std::fmt::Arguments<'_>, out: &mut Vec<u8>) {
    if value.is_finite() {
        write(out, finite);
    } else if value.is_nan() {
        out.extend_from_slice(b"NaN");
    } else {
        out.extend_from_slice(if value > 0.0 { b"Infinity" } else { b"-Infinity" });
    }
}

fn timestamp(micros: i64, zone: &str, out: &mut Vec<u8>) {
    let before_christ = date(micros.div_euclid(MICROS_PER_DAY), out);
    out.push(b' ');
    time(micros.rem_euclid(MICROS_PER_DAY), out);
    out.extend_from_slice(zone.as_bytes());
    era(before_christ, out);
}

fn time(micros: i64, out: &mut Vec<u8>) {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    write(
        out,
        format_args!(
            "{:02}:{:02}:{:02}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
    );
    if fraction != 0 {
        write(out, format_args!(".{fraction:06}"));
    }
}

/// Writes year, month and day; whether the year is before Christ. The proleptic Gregorian calendar in cycles of
/// 400 years, which are 146,097 days (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn date(days_since_1970: i64, out: &mut Vec<u8>) -> bool {
    let days = days_since_1970 + 719_468;
    let (cycle, day_of_cycle) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_cycle + cycle * 400 + i64::from(month <= 2);
    // There is no year 0: it is 1 BC.
    let before_christ = year <= 0;
    let shown = if before_christ { 1 - year } else { year };
    write(out, format_args!("{shown:04}-{month:02}-{day:02}"));
    before_christ
}

fn era(before_christ: bool, out: &mut Vec<u8>) {
    if before_christ {
        out.extend_from_slice(b" BC");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: Value<'_>) -> String {
        let mut out = Vec::new();
        assert!(render(&value, &mut out).unwrap());
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn every_kind_of_value_in_postgresql_s_words() {
        assert_eq!(text(Value::Bool(true)), "t");
        assert_eq!(text(Value::Int(i64::MIN)), "-9223372036854775808");
        assert_eq!(text(Value::UInt(u64::MAX)), "18446744073709551615");
        assert_eq!(text(Value::Float64(f64::NAN)), "NaN");
        assert_eq!(text(Value::Float64(f64::NEG_INFINITY)), "-Infinity");
        assert_eq!(text(Value::Float64(-0.0)), "-0e0");
        assert_eq!(text(Value::Float32(0.1)), "1e-1");
        assert_eq!(text(Value::Decimal("-12.50")), "-12.50");
        assert_eq!(text(Value::Bytes(&[0, 0xff])), "\\x00ff");
        assert_eq!(text(Value::Date(0)), "1970-01-01");
        assert_eq!(text(Value::Date(-719_163)), "0001-12-31 BC");
        assert_eq!(text(Value::Date(11_016)), "2000-02-29");
        assert_eq!(text(Value::Date(i32::MAX)), "infinity");
        assert_eq!(text(Value::Time(MICROS_PER_DAY)), "24:00:00");
        assert_eq!(text(Value::Timestamp(-1)), "1969-12-31 23:59:59.999999");
        assert_eq!(text(Value::TimestampTz(1_000_000)), "1970-01-01 00:00:01+00");
        assert_eq!(text(Value::TimestampTz(i64::MIN)), "-infinity");
        assert_eq!(
            text(Value::Uuid([0x11; 16])),
            "11111111-1111-1111-1111-111111111111"
        );
        assert_eq!(text(Value::HexBytes(b"00ff")), "\\x00ff");
        assert!(!render(&Value::Null, &mut Vec::new()).unwrap());
    }
}
