//! A column's type as the catalog prints it, from what a Relation message says of it.

use tokio_postgres::types::{Kind, Type};

/// The bytes of a length word, which the modifiers of variable-length types include.
const HEADER: i32 = 4;
/// An interval of all fields, and the precision that is none.
const ALL_FIELDS: i32 = 0x7FFF;
const FULL_PRECISION: i32 = 0xFFFF;

/// As `format_type` prints it. Empty for a type that is not built in, whose OID means nothing on another server, and for
/// an interval of some fields.
pub(crate) fn declared(oid: u32, modifier: i32) -> String {
    Type::from_oid(oid).map_or_else(String::new, |of| name(&of, modifier))
}

fn name(of: &Type, modifier: i32) -> String {
    if let Kind::Array(element) = of.kind() {
        let element = name(element, modifier);
        return if element.is_empty() {
            element
        } else {
            element + "[]"
        };
    }
    let length = (modifier >= HEADER).then(|| modifier - HEADER);
    let with_length = |base: &str| match length {
        Some(length) => format!("{base}({length})"),
        None => base.to_owned(),
    };
    let with_precision = |base: &str, zone: &str| match modifier {
        0.. => format!("{base}({modifier}) {zone} time zone"),
        _ => format!("{base} {zone} time zone"),
    };
    match of.name() {
        "bool" => "boolean".to_owned(),
        "int2" => "smallint".to_owned(),
        "int4" => "integer".to_owned(),
        "int8" => "bigint".to_owned(),
        "float4" => "real".to_owned(),
        "float8" => "double precision".to_owned(),
        "numeric" => match super::numeric_precision(modifier) {
            Some((precision, scale)) => format!("numeric({precision},{scale})"),
            None => "numeric".to_owned(),
        },
        "varchar" => with_length("character varying"),
        "bpchar" if length.is_some() => with_length("character"),
        "time" => with_precision("time", "without"),
        "timetz" => with_precision("time", "with"),
        "timestamp" => with_precision("timestamp", "without"),
        "timestamptz" => with_precision("timestamp", "with"),
        "interval" => interval(modifier),
        // Quoted, because `char` is another type.
        "char" => "\"char\"".to_owned(),
        // Their modifiers are only lengths of values, and no other type holds those by rounding.
        other => other.to_owned(),
    }
}

fn interval(modifier: i32) -> String {
    match (modifier, modifier >> 16, modifier & FULL_PRECISION) {
        (..0, _, _) | (_, ALL_FIELDS, FULL_PRECISION) => "interval".to_owned(),
        (_, ALL_FIELDS, precision) => format!("interval({precision})"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_read_as_in_the_catalog() {
        for (oid, modifier, expected) in [
            (23, -1, "integer"),
            (1700, -1, "numeric"),
            (1700, ((10 << 16) | 4) + 4, "numeric(10,4)"),
            (1231, ((10 << 16) | 4) + 4, "numeric(10,4)[]"),
            (1043, 14, "character varying(10)"),
            (1015, -1, "character varying[]"),
            (1042, 9, "character(5)"),
            (1114, 0, "timestamp(0) without time zone"),
            (1184, -1, "timestamp with time zone"),
            (1083, 3, "time(3) without time zone"),
            (1186, -1, "interval"),
            (1186, (0x7FFF << 16) | 3, "interval(3)"),
            (1186, (4 << 16) | 0xFFFF, ""),
            (25, -1, "text"),
            (18, -1, "\"char\""),
            (1002, -1, "\"char\"[]"),
            (100_000, -1, ""),
        ] {
            assert_eq!(declared(oid, modifier), expected);
        }
    }
}
