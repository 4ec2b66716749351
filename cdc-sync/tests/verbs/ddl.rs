//! DDL on blue in mid-stream: the job stops at the transaction that first shows it, with nothing of it applied, says what to
//! run on green, and goes on there. What the log does not show must at least not stop it.

use serde_json::Value;
use testbed::Pair;

use super::end;

/// Every stop is met with this row of the last transaction before it on green, and without that of the transaction.
const MARKED: &str = "SELECT coalesce(max(n), 0) FROM seen";

struct Change {
    /// in one script, statement by statement
    ddl: &'static str,
    /// what precedes the DDL in the job's backlog, and what follows it in one transaction
    before: &'static str,
    after: &'static str,
    /// what the error is about, and part of what it says
    object: &'static str,
    says: &'static str,
    /// parts of the statements
    statements: &'static [&'static str],
}

fn text<'a>(report: &'a Value, key: &str) -> &'a str {
    report["error"][key].as_str().unwrap_or_default()
}

/// What is to be run on green, as it is printed.
fn printed(stopped: &Value) -> &str {
    let statements = text(stopped, "remedy")
        .split_once("run on the target: ")
        .and_then(|(_, rest)| rest.split_once(" Then run again"));
    statements.unwrap_or_else(|| panic!("{stopped}")).0
}

/// Makes the change and follows the advice.
fn change(pair: &Pair, number: usize, change: &Change) -> Value {
    let before = format!("{}; INSERT INTO seen VALUES ({})", change.before, 2 * number);
    pair.on_blue(&before).unwrap();
    pair.on_blue(change.ddl).unwrap();
    let after = format!(
        "BEGIN; INSERT INTO seen VALUES ({}); {}; COMMIT",
        2 * number + 1,
        change.after
    );
    pair.on_blue(&after).unwrap();
    let stopped = pair.verb(&["run", "--until-caught-up"], 13).unwrap();
    let (object, said) = (text(&stopped, "object"), text(&stopped, "message"));
    assert!(object.starts_with(change.object), "{}: {stopped}", change.ddl);
    assert!(said.contains(change.says), "{}: {stopped}", change.ddl);
    assert!(
        said.contains("at the transaction after 0/"),
        "{}: {stopped}",
        change.ddl
    );
    assert_eq!(
        pair.on_green(MARKED).unwrap(),
        (2 * number).to_string(),
        "{stopped}"
    );
    // Again, nothing is passed over.
    let statements = printed(&stopped);
    for part in change.statements {
        assert!(statements.contains(part), "{part} is not in {stopped}");
    }
    stopped
}

fn mended(pair: &Pair, number: usize, with: &Change) {
    let stopped = change(pair, number, with);
    pair.on_green(printed(&stopped)).unwrap();
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    assert_eq!(pair.on_green(MARKED).unwrap(), (2 * number + 1).to_string());
}

const CHANGE: Change = Change {
    ddl: "",
    before: "SELECT",
    after: "SELECT",
    object: "",
    says: "",
    statements: &[],
};

fn begun(old: u16, new: u16, schema: &str) -> Pair {
    let pair = Pair::start(old, new).unwrap();
    pair.on_blue(&format!("CREATE TABLE seen (n int PRIMARY KEY); {schema}"))
        .unwrap();
    end(super::following(&pair, &[]));
    pair
}

const TYPES: &[Change] = &[
    // Of these the value would arrive cut or rounded, without an error.
    Change {
        before: "INSERT INTO narrow (id, code) VALUES (2, 'short')",
        ddl: "ALTER TABLE narrow ALTER code TYPE varchar(50)",
        after: "INSERT INTO narrow (id, code) VALUES (3, 'blank     ')",
        object: "table public.narrow, column code",
        says: "character varying(50) on the source and character varying(5) on the target",
        statements: &["ALTER COLUMN \"code\" TYPE character varying(50)"],
    },
    Change {
        ddl: "ALTER TABLE narrow ALTER code TYPE text COLLATE \"C\"",
        after: "UPDATE narrow SET code = 'long, and longer than fifty characters, which it may be by now' WHERE id = 1",
        object: "table public.narrow, column code",
        says: "text on the source",
        statements: &["ALTER COLUMN \"code\" TYPE text COLLATE"],
        ..CHANGE
    },
    Change {
        before: "INSERT INTO narrow (id, amount) VALUES (4, 0.01)",
        ddl: "ALTER TABLE narrow ALTER amount TYPE numeric(12,4)",
        after: "INSERT INTO narrow (id, amount) VALUES (5, 1.2345)",
        object: "table public.narrow, column amount",
        says: "digits after the point are rounded",
        statements: &["TYPE numeric(12,4)"],
    },
    Change {
        ddl: "ALTER TABLE narrow ALTER at TYPE timestamp",
        after: "INSERT INTO narrow (id, at) VALUES (6, '2024-02-29 12:00:00.123456')",
        object: "table public.narrow, column at",
        says: "fractions are rounded",
        statements: &["TYPE timestamp without time zone"],
        ..CHANGE
    },
    Change {
        ddl: "ALTER TABLE narrow ALTER number TYPE text",
        after: "INSERT INTO narrow (id, number) VALUES (7, '007')",
        object: "table public.narrow, column number",
        says: "text is read as a value",
        statements: &["ALTER COLUMN \"number\" TYPE text"],
        ..CHANGE
    },
    // These values are taken as long as they fit, and then refused.
    Change {
        before: "INSERT INTO narrow (id) VALUES (8)",
        ddl: "ALTER TABLE narrow ALTER id TYPE bigint",
        after: "INSERT INTO narrow (id) VALUES (9), (5000000000)",
        object: "public.narrow (id=5000000000)",
        says: "SQLSTATE 22003",
        statements: &["ALTER COLUMN \"id\" TYPE bigint"],
    },
    Change {
        ddl: "ALTER TABLE narrow ALTER amount TYPE numeric(20,4)",
        after: "UPDATE narrow SET amount = 123456789012 WHERE id = 5",
        object: "public.narrow (id=5)",
        says: "SQLSTATE 22003",
        statements: &["TYPE numeric(20,4)"],
        ..CHANGE
    },
];

#[test]
fn a_changed_type_stops_the_job_before_a_value_is_cut_or_refused() {
    let pair = begun(
        13,
        18,
        "CREATE TABLE narrow (id int PRIMARY KEY, code varchar(5), amount numeric(12,2), at timestamp(0), number int);
         INSERT INTO narrow VALUES (1, 'one', 1.23, '2024-01-01', 1)",
    );
    for (number, with) in (1..).zip(TYPES) {
        mended(&pair, number, with);
    }
    pair.assert_equal().unwrap();
}

const NAMES: &[Change] = &[
    Change {
        before: "INSERT INTO people VALUES (2, 'b', 'two', 'x')",
        ddl: "ALTER TABLE people RENAME name TO full_name",
        after: "UPDATE people SET full_name = 'deux' WHERE id = 2; INSERT INTO people VALUES (3, 'c', 'three', 'x')",
        object: "table public.people, column full_name",
        statements: &["ALTER TABLE \"public\".\"people\" RENAME COLUMN \"name\" TO \"full_name\";"],
        ..CHANGE
    },
    // Several things at once, rows between and after them.
    Change {
        ddl: "SELECT",
        after: "INSERT INTO people VALUES (4, 'd', 'four', 'x'); INSERT INTO grown VALUES (1, 'old shape');
            ALTER TABLE wide ADD more text DEFAULT 'more', ALTER n TYPE bigint; ALTER TABLE wide RENAME word TO words;
            ALTER TABLE wide DROP needed; UPDATE people SET note = 'y'; INSERT INTO wide VALUES (3, 'three', 5000000000, 'x');
            UPDATE wide SET words = words || '!', more = NULL; ALTER TABLE grown ADD extra int;
            INSERT INTO grown VALUES (2, 'new shape', 2); UPDATE grown SET extra = 1 WHERE id = 1; DELETE FROM wide WHERE id = 1",
        object: "table public.wide, column words",
        statements: &[
            "RENAME COLUMN \"word\" TO \"words\"",
            "ADD COLUMN more text",
            "DROP COLUMN \"needed\"",
            "TYPE bigint",
            "ADD COLUMN extra integer",
        ],
        ..CHANGE
    },
];

/// Whether a renamed column and one that was dropped beside a new one are told apart, and a new name of a table.
#[test]
fn renamed_and_dropped_columns_and_tables_stop_the_job() {
    let pair = begun(
        12,
        17,
        "CREATE TABLE people (id int PRIMARY KEY, code text, name text, note text);
         INSERT INTO people VALUES (1, 'a', 'one', 'x');
         CREATE TABLE gone (id int PRIMARY KEY, a text, b text, needed int NOT NULL);
         INSERT INTO gone VALUES (1, 'a', 'b', 1);
         CREATE TABLE old (id int PRIMARY KEY, v text); INSERT INTO old VALUES (1, 'one');
         CREATE TABLE moving (id int PRIMARY KEY, v text); INSERT INTO moving VALUES (1, 'one')",
    );
    mended(&pair, 1, &NAMES[0]);
    // A nullable column that is gone stops nothing: the rows of green have what blue's have, and more.
    pair.on_blue("ALTER TABLE gone DROP b; INSERT INTO gone VALUES (2, 'a', 2)")
        .unwrap();
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    mended(
        &pair,
        2,
        &Change {
            before: "INSERT INTO gone VALUES (3, 'a', 3)",
            ddl: "ALTER TABLE gone DROP needed",
            after: "INSERT INTO gone VALUES (4, 'a')",
            object: "public.gone (id=4)",
            says: "SQLSTATE 23502",
            statements: &["DROP COLUMN \"b\";", "DROP COLUMN \"needed\";"],
        },
    );
    // A place that is empty on blue, before a new column, may be that of the column or older: both are told.
    let doubtful = change(
        &pair,
        3,
        &Change {
            ddl: "ALTER TABLE gone DROP a, ADD z text",
            after: "INSERT INTO gone VALUES (5, 'z')",
            object: "table public.gone, column z",
            statements: &["either dropped or renamed to \"z\"", "RENAME COLUMN \"a\" TO"],
            ..CHANGE
        },
    );
    // Run as it stands it changes nothing.
    assert!(pair.on_green(printed(&doubtful)).is_err());
    pair.on_green("ALTER TABLE gone DROP a; ALTER TABLE gone ADD z text")
        .unwrap();
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    pair.assert_equal().unwrap();
    for (number, (table, ddl, now)) in (4..).zip([
        ("old", "ALTER TABLE old RENAME TO \"New\"", "\"New\""),
        (
            "moving",
            "CREATE SCHEMA s; ALTER TABLE moving SET SCHEMA s",
            "s.moving",
        ),
    ]) {
        mended(
            &pair,
            number,
            &Change {
                before: format!("INSERT INTO {table} VALUES (2, 'before')").leak(),
                ddl,
                after: format!("UPDATE {now} SET v = 'after'; INSERT INTO {now} VALUES (3, 'after')").leak(),
                object: format!("table {}", if table == "old" { "public.New" } else { now }).leak(),
                says: "no such table",
                statements: &["UPDATE cdc_sync.seed"],
            },
        );
    }
    // A new name without a row stops it where it has caught up with it.
    pair.on_blue("ALTER TABLE \"New\" RENAME TO newer").unwrap();
    let stopped = pair.verb(&["run", "--until-caught-up"], 13).unwrap();
    pair.on_green(printed(&stopped)).unwrap();
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    pair.assert_equal().unwrap();
}

/// A transaction that is too large for a group is applied in parts: what comes before it has been committed by then, and it
/// has when what follows cannot be applied, so that neither meets green as it is after the change.
const BESIDE_LARGE: &[Change] = &[
    Change {
        before: "INSERT INTO people SELECT n, 'name', 'x' FROM generate_series(2, 120000) n",
        ddl: "ALTER TABLE people RENAME name TO full_name",
        after: "UPDATE people SET full_name = 'deux' WHERE id = 2",
        object: "table public.people, column full_name",
        statements: &["RENAME COLUMN \"name\" TO \"full_name\""],
        ..CHANGE
    },
    Change {
        before: "UPDATE people SET note = 'y' WHERE id < 10",
        ddl: "SELECT",
        after: "INSERT INTO other SELECT generate_series(1, 120000); ALTER TABLE people RENAME note TO notes;
            UPDATE people SET notes = 'z' WHERE id < 10",
        object: "table public.people, column notes",
        statements: &["RENAME COLUMN \"note\" TO \"notes\""],
        ..CHANGE
    },
];

#[test]
fn a_change_beside_a_large_transaction_stops_the_job_between_them() {
    let pair = begun(
        13,
        18,
        "CREATE TABLE people (id int PRIMARY KEY, name text, note text); INSERT INTO people VALUES (1, 'one', 'x');
         CREATE TABLE other (id int PRIMARY KEY)",
    );
    for (number, with) in (1..).zip(BESIDE_LARGE) {
        mended(&pair, number, with);
    }
    pair.assert_equal().unwrap();
}

#[test]
fn several_changes_in_one_transaction_stop_before_all_of_it() {
    let pair = begun(
        16,
        18,
        "CREATE TABLE people (id int PRIMARY KEY, code text, full_name text, note text);
         INSERT INTO people VALUES (1, 'a', 'one', 'x');
         CREATE TABLE wide (id int PRIMARY KEY, needed int, word text, n int); INSERT INTO wide VALUES (1, 1, 'one', 1);
         CREATE TABLE grown (id int PRIMARY KEY, v text)",
    );
    mended(&pair, 1, &NAMES[1]);
    pair.assert_equal().unwrap();
}

/// What the log does not show, or shows and green can follow.
const QUIET: &str = "ALTER TABLE keyed ALTER v SET DEFAULT 'new', ALTER v SET NOT NULL, ADD CHECK (length(v) < 100);;
    INSERT INTO keyed (id, other) VALUES (3, 30); UPDATE keyed SET v = 'x' WHERE id = 1;;
    ALTER TABLE keyed DROP CONSTRAINT keyed_pkey; INSERT INTO keyed (id, other) VALUES (4, 40);
    ALTER TABLE keyed ADD PRIMARY KEY (other); UPDATE keyed SET v = 'by the other' WHERE other = 20;;
    UPDATE keyed SET other = other + 1 WHERE other > 20;; DELETE FROM keyed WHERE other = 10;;
    ALTER TABLE keyed REPLICA IDENTITY FULL;; UPDATE keyed SET v = 'full' WHERE id = 3; DELETE FROM keyed WHERE id = 4;;
    ALTER TABLE keyed ALTER id SET NOT NULL; CREATE UNIQUE INDEX by_id ON keyed (id);
    ALTER TABLE keyed REPLICA IDENTITY USING INDEX by_id; UPDATE keyed SET v = 'index' WHERE id = 3;;
    ALTER TABLE keyed REPLICA IDENTITY NOTHING; INSERT INTO keyed (id, other) VALUES (5, 50);
    ALTER TABLE keyed REPLICA IDENTITY DEFAULT;; TRUNCATE keyed; INSERT INTO keyed (id, other) VALUES (6, 60), (7, 70)";

#[test]
fn defaults_and_keys_change_without_a_stop() {
    let pair = begun(
        15,
        16,
        "CREATE TABLE keyed (id int PRIMARY KEY, other int NOT NULL, v text);
         INSERT INTO keyed VALUES (1, 10, 'a'), (2, 20, 'b')",
    );
    // Each step by itself, so that what a later one hides is seen.
    for statement in QUIET.split(";;") {
        pair.on_blue(statement).unwrap();
        pair.verb(&["run", "--until-caught-up"], 0).unwrap();
        let rows = "SELECT string_agg(concat_ws(' ', id, other, v), ',' ORDER BY id) FROM keyed";
        assert_eq!(
            pair.on_blue(rows).unwrap(),
            pair.on_green(rows).unwrap(),
            "{statement}"
        );
    }
    let report = pair.verb(&["verify"], 0).unwrap();
    assert_eq!(report["differences"], 0, "{report}");
}
