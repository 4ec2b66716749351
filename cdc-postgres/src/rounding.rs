//! Types of a target that would change a value of the source's type without an error: an assignment rounds, cuts off,
//! pads, drops or prints it anew. All other differences keep the value or refuse it.

/// Types that read one value from several texts, such as `7` and `007`.
const READ_LOOSELY: &[&str] = &[
    "smallint", "integer", "bigint", "boolean", "uuid", "jsonb", "bytea", "inet", "cidr", "money",
];

/// What happens to a value of type `from` in a column of type `to`, both as `format_type` prints them; `None` when it
/// is kept or refused.
pub(crate) fn effect(from: &str, to: &str) -> Option<&'static str> {
    if from == to {
        return None;
    }
    let (from, to) = (Parsed::new(from), Parsed::new(to));
    let from_text = matches!(from.base.as_str(), "text" | "character varying" | "character");
    let from_integer = matches!(from.base.as_str(), "smallint" | "integer" | "bigint");
    let (changes, effect) = match to.base.as_str() {
        "numeric" => (
            from_text || (to.is_limited() && !from_integer && !(from.base == "numeric" && from.fits(&to, 1))),
            "digits after the point are rounded",
        ),
        "real" => (
            !matches!(from.base.as_str(), "real" | "smallint"),
            "digits are rounded",
        ),
        "double precision" => (
            from_text || matches!(from.base.as_str(), "numeric" | "bigint"),
            "digits are rounded",
        ),
        "date" => (
            from_text || from.base.starts_with("timestamp"),
            "the time of day is dropped",
        ),
        base if base.starts_with("time ") && from.base.starts_with("timestamp") => {
            (true, "the date is dropped")
        }
        "name" | "\"char\"" => (true, "it is cut off"),
        base if base.ends_with(" without time zone") && from.base.ends_with(" with time zone") => {
            (true, "the time zone is dropped")
        }
        base if base.starts_with("time") || base.starts_with("interval") => {
            let fewer_fields = base.starts_with("interval ") && from.base != to.base;
            (
                from_text || fewer_fields || (to.is_limited() && !from.fits(&to, 0)),
                "fractions are rounded",
            )
        }
        "character" => (true, "it is filled up with blanks"),
        "character varying" => (
            to.is_limited() && !(from.base == to.base && from.fits(&to, 0)),
            "blanks beyond the length are cut off",
        ),
        base => (
            from_text && READ_LOOSELY.contains(&base),
            "text is read as a value, and not kept as it was written",
        ),
    };
    changes.then_some(effect)
}

/// Whether a column of type `to` holds every value of type `from` as it is. Types of which nothing is known hold no other's.
pub(crate) fn holds(from: &str, to: &str) -> bool {
    if from == to {
        return true;
    }
    if effect(from, to).is_some() {
        return false;
    }
    let (from, to) = (Parsed::new(from), Parsed::new(to));
    let wider: &[&str] = match from.base.as_str() {
        "smallint" => &["integer", "bigint", "numeric", "real", "double precision"],
        "integer" => &["bigint", "numeric", "double precision"],
        "bigint" => &["numeric"],
        "real" => &["double precision"],
        "character varying" | "character" => &["text", "character varying"],
        "json" => &["text"],
        _ => &[],
    };
    match to.base.as_str() {
        "numeric" if from.base == "numeric" => from.whole_digits() <= to.whole_digits(),
        "numeric" => wider.contains(&"numeric") && !to.is_limited(),
        base => {
            let same = from.base == base && base != "bit";
            wider.contains(&base) || (same && (!to.is_limited() || from.fits(&to, 0)))
        }
    }
}

/// A type's name and what stands in its parentheses.
struct Parsed {
    base: String,
    modifiers: Vec<i32>,
}

impl Parsed {
    /// Of an array, its elements' type.
    fn new(name: &str) -> Self {
        let name = name.trim_end_matches("[]");
        let parts = name
            .split_once('(')
            .and_then(|(before, rest)| Some((before, rest.split_once(')')?)));
        match parts {
            Some((before, (inside, after))) => Self {
                base: format!("{before}{after}"),
                modifiers: inside
                    .split(',')
                    .filter_map(|number| number.trim().parse().ok())
                    .collect(),
            },
            None => Self {
                base: name.to_owned(),
                modifiers: Vec::new(),
            },
        }
    }

    fn is_limited(&self) -> bool {
        !self.modifiers.is_empty()
    }

    /// Digits before the point; of a numeric without limits more than any other has.
    fn whole_digits(&self) -> i32 {
        let places = (self.modifiers.first(), self.modifiers.get(1));
        match places {
            (Some(precision), scale) => precision - scale.unwrap_or(&0),
            (None, _) => i32::MAX,
        }
    }

    /// Whether the modifier at `place` allows no more than that of `other`, none being no limit.
    fn fits(&self, other: &Self, place: usize) -> bool {
        self.is_limited()
            && self.modifiers.get(place).unwrap_or(&0) <= other.modifiers.get(place).unwrap_or(&0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_types_keep_and_other_kinds_refuse() {
        for (from, to) in [
            ("integer", "bigint"),
            ("integer", "numeric(12,2)"),
            ("numeric(10,2)", "numeric(12,2)"),
            ("numeric(10,2)", "numeric"),
            ("real", "double precision"),
            ("character varying(10)", "character varying(20)"),
            ("character varying(10)", "character varying"),
            ("character varying(10)", "text"),
            ("timestamp(3) without time zone", "timestamp without time zone"),
            ("timestamp(0) with time zone", "timestamp(3) with time zone"),
            ("text", "citext"),
            ("boolean", "integer"),
            ("integer[]", "bigint[]"),
            ("date", "timestamp without time zone"),
        ] {
            assert_eq!(effect(from, to), None, "{from} to {to}");
        }
    }

    #[test]
    fn a_type_that_is_wide_enough_needs_no_change() {
        for (from, to) in [
            ("integer", "bigint"),
            ("bigint", "numeric"),
            ("numeric(10,2)", "numeric(12,2)"),
            ("character varying(10)", "text"),
            ("timestamp(3) without time zone", "timestamp without time zone"),
            ("s.mood", "s.mood"),
        ] {
            assert!(holds(from, to), "{from} to {to}");
        }
        for (from, to) in [
            ("bigint", "integer"),
            ("numeric(12,2)", "numeric(10,2)"),
            ("numeric(12,4)", "numeric(12,2)"),
            ("numeric", "numeric(12,2)"),
            ("bigint", "numeric(12,2)"),
            ("text", "character varying(10)"),
            ("text", "integer"),
            ("boolean", "integer"),
            ("s.mood", "integer"),
        ] {
            assert!(!holds(from, to), "{from} to {to}");
        }
    }

    #[test]
    fn what_changes_values_is_told() {
        for (from, to) in [
            ("numeric", "numeric(12,2)"),
            ("numeric(12,4)", "numeric(12,2)"),
            ("numeric(12,4)", "numeric(12)"),
            ("double precision", "real"),
            ("double precision", "numeric(12,2)"),
            ("numeric", "double precision"),
            ("bigint", "double precision"),
            ("timestamp without time zone", "timestamp(0) without time zone"),
            ("timestamp with time zone", "timestamp without time zone"),
            ("timestamp without time zone", "date"),
            ("timestamp without time zone", "time without time zone"),
            ("timestamp with time zone", "time with time zone"),
            ("text", "name"),
            ("integer", "\"char\""),
            ("time with time zone", "time without time zone"),
            ("interval", "interval day to second(3)"),
            ("text", "integer"),
            ("text", "numeric"),
            ("character varying(10)", "date"),
            ("text", "timestamp with time zone"),
            ("text", "character varying(10)"),
            ("character varying(20)", "character varying(10)"),
            ("character(5)", "character(10)"),
            ("numeric[]", "numeric(12,2)[]"),
        ] {
            assert!(effect(from, to).is_some(), "{from} to {to}");
        }
    }
}
