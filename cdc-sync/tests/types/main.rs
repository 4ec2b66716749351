//! Everything that PostgreSQL can hold, from server to server: by the seed and by the stream, between databases whose
//! settings print and read values in different ways.

mod encodings;
mod objects;
mod random;
mod tables;
mod values;
mod walk;

use testbed::{Pair, compare};

use tables::Tables;

/// What the databases of a pair are set to. Whoever let a session have these would write other values than it read.
const BLUE: &[(&str, &str)] = &[
    ("IntervalStyle", "sql_standard"),
    ("TimeZone", "Asia/Kathmandu"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "0"),
    ("client_encoding", "LATIN1"),
    ("xmlbinary", "hex"),
    ("xmloption", "document"),
    ("array_nulls", "off"),
    ("search_path", "own, ext, plain, public"),
    ("quote_all_identifiers", "on"),
    ("standard_conforming_strings", "off"),
    ("escape_string_warning", "off"),
    ("default_transaction_isolation", "serializable"),
];
const GREEN: &[(&str, &str)] = &[
    ("IntervalStyle", "iso_8601"),
    ("TimeZone", "America/St_Johns"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "-15"),
    ("client_encoding", "SJIS"),
    ("xmlbinary", "base64"),
    ("xmloption", "document"),
    ("array_nulls", "off"),
    ("search_path", "ext, own"),
    ("quote_all_identifiers", "on"),
    ("standard_conforming_strings", "off"),
    ("escape_string_warning", "off"),
    ("transform_null_equals", "on"),
];

/// Locales that print money otherwise. Which of them a server knows is up to its machine; every one knows POSIX.
const MONEY: &[&str] = &["ja_JP.utf8", "de_DE.utf8", "fr_FR.utf8", "en_GB.utf8", "POSIX"];

/// Sets the databases against each other: on blue for the database, on green for the role. The styles of dates are
/// those of blue and green.
fn set_against_each_other(pair: &Pair, styles: [&str; 2]) {
    let value = |name: &str, value: &str| match name {
        // Lists of names, each quoted for itself.
        "search_path" => value.to_owned(),
        _ => format!("'{value}'"),
    };
    let statements = |whose: &str, settings: &[(&str, &str)]| -> String {
        settings
            .iter()
            .map(|(name, to)| format!("ALTER {whose} SET {name} = {};\n", value(name, to)))
            .collect()
    };
    let money = MONEY
        .iter()
        .find(|locale| pair.on_blue(&format!("SET lc_monetary = '{locale}'")).is_ok());
    let (mut blue, mut green) = (BLUE.to_vec(), GREEN.to_vec());
    blue.push(("DateStyle", styles[0]));
    green.push(("DateStyle", styles[1]));
    blue.push(("lc_monetary", money.expect("every server knows POSIX")));
    let database = format!("DATABASE {}", Pair::DATABASE);
    pair.on_green(&statements(&format!("ROLE {}", pair.role_on_green()), &green))
        .expect("green is set");
    pair.on_blue(&statements(&database, &blue)).expect("blue is set");
}

/// Takes every value through the seed, then through inserts, updates and deletes, and compares after each.
fn carry_everything(pair: &Pair, tables: &Tables) {
    let [blue, green] = pair.urls();
    for (step, script) in [
        ("seed", tables.filled()),
        ("inserts", tables.inserted()),
        ("updates", tables.updated()),
        ("deletes", tables.deleted()),
    ] {
        pair.on_blue(&script).expect(step);
        let run = pair.verb(&["run", "--until-caught-up"], 0).expect(step);
        assert_eq!(run["caught_up"], true, "{step}: {run}");
        let differences = compare::databases(&blue, &green).expect(step);
        assert_eq!(differences, [], "{step}");
    }
    // Once more with `verify`, which must see no difference in any way of printing a value either.
    pair.assert_equal().expect("both compare");
    let rows = compare::row_counts(&blue).expect("blue counts");
    let empty: Vec<_> = rows.iter().filter(|(_, rows)| **rows == 0).collect();
    assert!(empty.is_empty(), "nothing is left to compare in {empty:?}");
}

#[test]
fn every_type_of_the_oldest_server_arrives_on_the_newest() {
    let pair = Pair::start(12, 18).expect("two servers");
    set_against_each_other(&pair, ["SQL, DMY", "Postgres, MDY"]);
    let mut tables = Tables::of(12);
    pair.on_blue(&format!("{}{}", tables::CLEAN, values::CREATE))
        .expect("the types");
    walk::every_type_is_accounted_for(&pair, &tables);
    tables.create(&pair);
    assert!(tables.keyed() > 50, "only {} types are keys", tables.keyed());
    carry_everything(&pair, &tables);
    // What the schema says in quotes was copied by the same rules as the rows.
    let texts = format!(
        "{}SELECT pg_get_expr(adbin, adrelid), col_description(adrelid, adnum) FROM pg_attrdef
         WHERE adrelid = 'own.\"A thing\"'::regclass",
        tables::CLEAN
    );
    let [blue, green] = [pair.on_blue(&texts), pair.on_green(&texts)].map(|texts| texts.expect("an answer"));
    assert!(blue.contains('\\'), "{blue}");
    assert_eq!(blue, green);
}

/// On 14 nobody but a superuser may set `session_replication_role`.
#[test]
fn every_type_arrives_for_roles_that_are_no_superusers() {
    if !testbed::runs_long_tier() {
        return;
    }
    let mut pair = Pair::start(12, 14).expect("two servers");
    pair.on_blue(&format!("{}{}", tables::CLEAN, values::CREATE))
        .expect("the types");
    let mut tables = Tables::of(12);
    tables.create(&pair);
    pair.use_plain_roles().expect("the roles");
    set_against_each_other(&pair, ["SQL, DMY", "Postgres, MDY"]);
    carry_everything(&pair, &tables);
}

#[test]
fn every_type_of_the_newest_server_arrives_where_types_have_other_numbers() {
    let pair = Pair::start(18, 18).expect("two servers");
    set_against_each_other(&pair, ["German", "SQL, MDY"]);
    let mut tables = Tables::of(18);
    pair.on_blue(&format!("{}{}", tables::CLEAN, values::CREATE))
        .expect("the types");
    pair.on_green(&format!("{}{}", tables::CLEAN, values::CREATE_OTHERWISE))
        .expect("the types");
    walk::every_type_is_accounted_for(&pair, &tables);
    tables.create(&pair);
    assert!(tables.keyed() > 60, "only {} types are keys", tables.keyed());
    pair.on_green(&tables.created()).expect("the tables");
    carry_everything(&pair, &tables);
}
