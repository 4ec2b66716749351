//! The script of a schema, as `pg_restore` prints it, divided into statements.

use cdc_postgres::schema_statements;

use crate::limit::within;

/// A statement is a part of the script; their list grows by doubling, and words are looked at in lower case.
fn most_bytes(script: &str) -> usize {
    (4 << 10) + 64 * script.len()
}

pub(crate) fn run(bytes: &[u8]) {
    let Ok(script) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut found = Vec::new();
    within(most_bytes(script), || found = schema_statements(script));
    let Some((_, ended)) = found.split_last() else {
        return;
    };
    for statement in &found {
        let said = statement.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
        assert!(!said.is_empty() && script.contains(statement));
    }
    // What a semicolon has ended is one statement by itself, too; the last one may be open.
    for statement in ended {
        assert_eq!(schema_statements(&format!("{statement};")), [*statement]);
    }
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let seeds = [
        (
            "atomic",
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END;\nSELECT 1;",
        ),
        ("comments", "-- a;\n/* b; /* c */ ; */ SELECT 1 /* d; */; -- e"),
        ("dollars", "CREATE FUNCTION f() AS $a$ ; $b$ ; $a$; DO $$;$$;"),
        ("psql", "\\restrict abc\nSET a = 1;\n\\unrestrict abc\n"),
        ("quotes", "SELECT ';', \";\", E'\\';', 'it''s;'; SELECT U&'a;';"),
        ("rule", "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2);"),
        ("vertical_tab", "SELECT 1;\u{b};\u{b} SELECT 2;"),
    ];
    seeds
        .map(|(name, script)| (name, script.as_bytes().to_vec()))
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_statements() {
        let counts = seeds().into_iter().map(|(name, seed)| {
            let script = String::from_utf8(seed).unwrap();
            (name, schema_statements(&script).len())
        });
        let expected = [
            ("atomic", 2),
            ("comments", 1),
            ("dollars", 2),
            ("psql", 1),
            ("quotes", 2),
            ("rule", 1),
            ("vertical_tab", 2),
        ];
        assert_eq!(counts.collect::<Vec<_>>(), expected);
    }
}
