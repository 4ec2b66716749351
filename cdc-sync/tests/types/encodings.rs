//! Databases of other encodings than UTF-8.

use testbed::Pair;
use testbed::{PgCluster, compare};

/// Two empty databases of these encodings.
fn pair(blue: &str, green: &str) -> Pair {
    let pair = Pair::start(12, 18).expect("two servers");
    for (cluster, encoding) in [(&pair.blue, blue), (&pair.green, green)] {
        recreate(cluster, encoding);
    }
    pair
}

fn recreate(cluster: &PgCluster, encoding: &str) {
    for statement in [
        format!("DROP DATABASE {}", Pair::DATABASE),
        format!(
            "CREATE DATABASE {} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'",
            Pair::DATABASE
        ),
    ] {
        cluster.sql("postgres", &statement).expect("the database");
    }
}

/// Text of every kind, and as a key. `{}` is a character beyond ASCII.
const TABLES: &str = "
    CREATE TABLE texts (id integer PRIMARY KEY, t text, v varchar(20), c character(8), a text[], n name);
    CREATE TABLE keyed (k text PRIMARY KEY, n integer);
    CREATE TABLE whole (t text, c character(8)); ALTER TABLE whole REPLICA IDENTITY FULL;";

/// Statements that fill the tables, with `character` in every value; the second part is for the stream.
fn changes(character: &str) -> [String; 4] {
    [
        format!(
            "INSERT INTO texts SELECT n, E'caf{character} ' || n, E'{character}', E'{character}', ARRAY[E'{character}', NULL],
                 E'{character}' FROM generate_series(1, 3) n;
             INSERT INTO keyed SELECT E'{character}' || n, n FROM generate_series(1, 3) n;
             INSERT INTO whole SELECT E'{character}' || n, E'{character}' FROM generate_series(1, 3) n;"
        ),
        format!(
            "INSERT INTO texts SELECT n, E'{character} ' || n, E'{character}', E'{character}', ARRAY[E'{character}', NULL],
                 E'{character}' FROM generate_series(11, 13) n;
             INSERT INTO keyed SELECT E'{character}' || n, n FROM generate_series(11, 13) n;
             INSERT INTO whole SELECT E'{character}' || n, E'{character}' FROM generate_series(11, 13) n;"
        ),
        format!(
            "UPDATE texts SET t = t || E'{character}', a = a || E'{character}'::text; UPDATE keyed SET n = -n;
             UPDATE keyed SET k = E'x{character}' WHERE n = -2; UPDATE whole SET c = c || E'{character}'"
        ),
        format!(
            "DELETE FROM texts WHERE id = 1; DELETE FROM keyed WHERE k = E'{character}11';
             DELETE FROM whole WHERE t = E'{character}12'"
        ),
    ]
}

fn carry(pair: &Pair, encoding: &str, characters: &str) {
    let set = format!("SET client_encoding = '{encoding}';");
    pair.on_blue(TABLES).expect("the tables");
    for script in changes(characters) {
        pair.on_blue(&format!("{set}{script}")).expect("the change");
        pair.verb(&["run", "--until-caught-up"], 0).expect("run");
        pair.assert_equal().expect("both compare");
    }
    let [blue, _] = pair.urls();
    assert!(
        compare::row_counts(&blue)
            .expect("blue counts")
            .values()
            .all(|rows| *rows > 0)
    );
}

#[test]
fn bytes_of_no_encoding_stay_as_they_are() {
    let pair = pair("SQL_ASCII", "SQL_ASCII");
    // é in Latin 1, a stray continuation byte, and a byte that UTF-8 never has.
    carry(&pair, "SQL_ASCII", "\\xe9\\x80\\xff");
    let stored = "SET client_encoding = 'SQL_ASCII'; SELECT encode(convert_to(k, 'SQL_ASCII'), 'hex') FROM keyed WHERE n = -2";
    assert_eq!(pair.on_green(stored).expect("green answers"), "78e980ff");
}

#[test]
fn bytes_of_no_encoding_are_refused_where_text_has_one() {
    let pair = pair("SQL_ASCII", "UTF8");
    pair.on_blue(TABLES).expect("the tables");
    let report = pair.verb(&["check"], 3).expect("check");
    assert!(report.to_string().contains("PG-ENCODING"), "{report}");
}

#[test]
fn text_is_converted_to_utf8() {
    let pair = pair("LATIN1", "UTF8");
    carry(&pair, "LATIN1", "\\xe9\\xff\\xa0");
    let stored = "SELECT encode(convert_to(k, 'UTF8'), 'hex') FROM keyed WHERE n = -2";
    assert_eq!(pair.on_green(stored).expect("green answers"), "78c3a9c3bfc2a0");
}
