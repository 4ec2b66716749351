//! Values of many types as SQL literals, with a liking for those that replication gets wrong: empty and NULL,
//! text that looks like an escape of COPY, NaN and infinities, arrays with quotes, lower bounds or NULLs.

use super::rng::Rng;

/// Quotes text for SQL (`standard_conforming_strings` is on).
pub(super) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The literal that `make` gives, or NULL in one of ten cases.
pub(super) fn nullable(rng: &mut Rng, make: impl FnOnce(&mut Rng) -> String) -> String {
    if rng.chance(10) {
        "NULL".to_owned()
    } else {
        make(rng)
    }
}

pub(super) fn text(rng: &mut Rng) -> String {
    const TRAPS: &[&str] = &[
        "",
        " ",
        "\\N",
        "\\.",
        "\\",
        "a\\tb",
        "tab\there",
        "line\nend",
        "carriage\rreturn",
        "it's quoted",
        "\"double\"",
        "NULL",
        "null",
        "{curly,comma}",
        "Größe ∑ 漢字 🐘",
        "combining e\u{301}",
        "nul-like \\000 \\x00",
        "'; DROP TABLE nothing; --",
        "$1 $$ %s {0}",
    ];
    if rng.chance(25) {
        return quote(rng.pick(TRAPS));
    }
    let words = (0..rng.between(1, 6))
        .map(|_| word(rng))
        .collect::<Vec<_>>()
        .join(" ");
    quote(&words)
}

pub(super) fn word(rng: &mut Rng) -> String {
    (0..rng.between(2, 9))
        .map(|_| char::from(b'a' + rng.below(26) as u8))
        .collect()
}

pub(super) fn numeric(rng: &mut Rng) -> String {
    const TRAPS: &[&str] = &[
        "'NaN'",
        "0",
        "0.000",
        "-1.500",
        "123456789012345678901234567890.123456789",
        "1e-30",
        "99999999999999999999",
    ];
    if rng.chance(20) {
        rng.pick(TRAPS).to_owned()
    } else {
        money(rng)
    }
}

/// Fits `numeric(10,2)`.
pub(super) fn money(rng: &mut Rng) -> String {
    let sign = if rng.chance(20) { "-" } else { "" };
    format!("{sign}{}.{:02}", rng.below(1_000_000), rng.below(100))
}

pub(super) fn float(rng: &mut Rng) -> String {
    const TRAPS: &[&str] = &[
        "'NaN'",
        "'Infinity'",
        "'-Infinity'",
        "'-0'",
        "'1e-307'",
        "'1.7976931348623157e308'",
        "'0.1'",
    ];
    if rng.chance(20) {
        return rng.pick(TRAPS).to_owned();
    }
    // Any finite bit pattern; Rust prints the shortest text that reads back as the same double.
    let value = f64::from_bits(rng.next() & !(1 << 62));
    format!("'{value:e}'")
}

pub(super) fn timestamptz(rng: &mut Rng) -> String {
    const TRAPS: &[&str] = &[
        "'infinity'",
        "'-infinity'",
        "'0044-03-15 12:00:00+00 BC'",
        "'2024-02-29 23:59:59.999999+05:45'",
    ];
    if rng.chance(10) {
        return rng.pick(TRAPS).to_owned();
    }
    format!(
        "to_timestamp({}.{:06})",
        rng.between(1_000_000_000, 2_000_000_000),
        rng.below(1_000_000)
    )
}

pub(super) fn date(rng: &mut Rng) -> String {
    const TRAPS: &[&str] = &["'infinity'", "'0001-01-01 BC'", "'5874897-12-31'", "'2000-02-29'"];
    if rng.chance(10) {
        return rng.pick(TRAPS).to_owned();
    }
    format!("date '1970-01-01' + {}", rng.below(40_000))
}

pub(super) fn interval(rng: &mut Rng) -> String {
    let sign = if rng.chance(30) { "-" } else { "" };
    format!(
        "'{} mons {sign}{} days {}:{:02}:{:02}.{:06}'",
        rng.below(30),
        rng.below(60),
        rng.below(100),
        rng.below(60),
        rng.below(60),
        rng.below(1_000_000)
    )
}

pub(super) fn inet(rng: &mut Rng) -> String {
    match rng.below(3) {
        0 => format!("'10.{}.{}.{}'", rng.below(256), rng.below(256), rng.below(256)),
        1 => format!("'192.168.{}.1/{}'", rng.below(256), rng.between(8, 31)),
        _ => format!("'2001:db8::{:x}/{}'", rng.below(65_536), rng.between(32, 128)),
    }
}

pub(super) fn bytea(rng: &mut Rng) -> String {
    let bytes: String = (0..rng.below(40))
        .map(|_| format!("{:02x}", rng.below(256)))
        .collect();
    format!("'\\x{bytes}'")
}

pub(super) fn uuid(rng: &mut Rng) -> String {
    format!("'{:016x}{:016x}'", rng.next(), rng.next())
}

pub(super) fn boolean(rng: &mut Rng) -> String {
    rng.chance(50).to_string()
}

pub(super) fn integer(rng: &mut Rng) -> String {
    const TRAPS: &[&str] = &["0", "-1", "2147483647", "-2147483648"];
    if rng.chance(10) {
        rng.pick(TRAPS).to_owned()
    } else {
        rng.below(1_000_000).to_string()
    }
}

pub(super) fn jsonb(rng: &mut Rng) -> String {
    match rng.below(6) {
        0 => "'{}'".to_owned(),
        1 => "'null'".to_owned(),
        2 => r#"'{"quote": "\"", "slash": "\\", "line": "a\nb", "elephant": "\ud83d\udc18"}'"#.to_owned(),
        3 => format!("'[1.50, {}, true, null, \"x\", [[]]]'", rng.below(1000)),
        _ => format!(
            "'{{\"{}\": {}, \"nested\": {{\"b\": [1, 2], \"a\": \"{}\"}}}}'",
            word(rng),
            rng.below(100_000),
            word(rng)
        ),
    }
}

pub(super) fn text_array(rng: &mut Rng) -> String {
    const TRAPS: &[&str] = &[
        "'{}'",
        r#"'{"a\"b","c\\d","e,f","{g}",NULL,"NULL",""," "}'"#,
        r#"'{{a,b},{c,d}}'"#,
        r#"'[0:1]={first,second}'"#,
    ];
    if rng.chance(30) {
        return rng.pick(TRAPS).to_owned();
    }
    let items: Vec<String> = (0..rng.between(1, 4)).map(|_| text(rng)).collect();
    format!("ARRAY[{}]::text[]", items.join(","))
}

pub(super) fn int_array(rng: &mut Rng) -> String {
    const TRAPS: &[&str] = &["'{}'", "'{NULL}'", "'{{1,2},{3,4}}'", "'[-1:1]={7,8,9}'"];
    if rng.chance(30) {
        return rng.pick(TRAPS).to_owned();
    }
    let items: Vec<String> = (0..rng.between(1, 6))
        .map(|_| rng.below(100_000).to_string())
        .collect();
    format!("'{{{}}}'", items.join(","))
}

pub(super) fn order_state(rng: &mut Rng) -> String {
    quote(rng.pick(&["new", "paid", "shipped", "on hold", "it's lost"]))
}
