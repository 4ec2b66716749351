//! Values that a target does not take: the job stops and says which, and goes on where it was once they fit.

use testbed::Pair;

/// Runs to an end with an error about the schema or a value of the target; what it says.
fn stopped(pair: &Pair) -> String {
    let report = pair.verb(&["run", "--until-caught-up"], 13).expect("run");
    report["error"].to_string()
}

fn caught_up(pair: &Pair) {
    pair.verb(&["run", "--until-caught-up"], 0).expect("run");
    pair.assert_equal().expect("both compare");
}

#[test]
fn labels_and_values_that_green_does_not_know_yet_stop_the_stream() {
    let pair = Pair::start(12, 18).expect("two servers");
    pair.on_blue(
        "CREATE TYPE mood AS ENUM ('ok'); CREATE DOMAIN small AS integer CONSTRAINT limited CHECK (VALUE < 10);
         CREATE TABLE t (id integer PRIMARY KEY, m mood, s small); INSERT INTO t VALUES (1, 'ok', 1)",
    )
    .expect("the table");
    caught_up(&pair);
    let widened = [
        (
            "ALTER TYPE mood ADD VALUE 'better' BEFORE 'ok'",
            "UPDATE t SET m = 'better'",
        ),
        (
            "ALTER DOMAIN small DROP CONSTRAINT limited, ALTER DOMAIN small ADD CONSTRAINT limited CHECK (VALUE < 100)",
            "INSERT INTO t VALUES (3, 'better', 99)",
        ),
        (
            "CREATE TYPE size AS ENUM ('s', 'l'); ALTER TABLE t ADD COLUMN size size",
            "UPDATE t SET size = 'l' WHERE id = 1",
        ),
    ];
    for (number, (ddl, change)) in (10..).zip(widened) {
        let ddl = ddl.replace(", ALTER DOMAIN", "; ALTER DOMAIN");
        pair.on_blue(&format!("INSERT INTO t VALUES ({number}, 'ok', 1); {ddl};"))
            .expect("blue changes");
        pair.on_blue(&format!("{change}; INSERT INTO t VALUES ({number}0, 'ok', 1)"))
            .expect("blue changes");
        let error = stopped(&pair);
        assert!(error.contains("public.t"), "{error}");
        // What came before is there, and nothing of what came after.
        let counted = format!("SELECT count(*) FROM t WHERE id IN ({number}, {number}0)");
        assert_eq!(pair.on_green(&counted).expect("green answers"), "1", "{ddl}");
        pair.on_green(&ddl).expect("green follows");
        caught_up(&pair);
    }
}

#[test]
fn what_no_server_reads_stops_the_job_and_was_announced() {
    let pair = Pair::start(12, 18).expect("two servers");
    pair.on_blue(
        "CREATE TABLE defaults (id integer PRIMARY KEY DEFAULT 7);
         CREATE TABLE stored AS SELECT 1 AS id, adbin FROM pg_attrdef; ALTER TABLE stored ADD PRIMARY KEY (id);
         CREATE TABLE named (id integer PRIMARY KEY, relation regclass);
         INSERT INTO named VALUES (1, 'named'), (2, 'named_pkey')",
    )
    .expect("the tables");
    let findings = pair.verb(&["check"], 0).expect("check").to_string();
    assert!(
        findings.contains("PG-TYPE-NO-INPUT") && findings.contains("PG-TYPE-OBJECT-NAMES"),
        "{findings}"
    );
    let error = stopped(&pair);
    assert!(
        error.contains("public.stored") || error.contains("public.named"),
        "{error}"
    );
    // Without the value that nobody reads, the names are left: that of an index is known once there are indexes.
    pair.on_blue("UPDATE stored SET adbin = NULL; DELETE FROM named WHERE id = 2")
        .expect("blue changes");
    caught_up(&pair);
    pair.on_blue("INSERT INTO named VALUES (2, 'named_pkey'), (3, 'stored')")
        .expect("blue changes");
    caught_up(&pair);
    pair.on_blue("CREATE VIEW later AS SELECT 1; INSERT INTO named VALUES (4, 'later')")
        .expect("blue changes");
    let error = stopped(&pair);
    assert!(error.contains("public.named"), "{error}");
    pair.on_green("CREATE VIEW later AS SELECT 1")
        .expect("green follows");
    caught_up(&pair);
}

#[test]
fn the_value_that_green_refuses_is_named_however_many_tables_wait() {
    let pair = Pair::start(12, 18).expect("two servers");
    let tables = |check: &str| -> String {
        let table = |n| format!("CREATE TABLE t{n} (id integer PRIMARY KEY{check});");
        (0..200).map(table).collect()
    };
    let rows: String = (0..200)
        .map(|n| format!("INSERT INTO t{n} VALUES (1);"))
        .collect();
    pair.on_blue(&(tables("") + &rows)).expect("the tables");
    pair.on_green(&tables(" CHECK (id > 1)")).expect("the tables");
    let error = stopped(&pair);
    assert!(error.contains("public.t"), "{error}");
}

/// Sessions of ours have an empty `search_path`: what a function finds by it on blue, it does not find on green.
#[test]
fn functions_that_need_a_search_path_are_named_and_can_be_given_one() {
    let pair = Pair::start(13, 18).expect("two servers");
    pair.on_blue(
        "CREATE FUNCTION plain(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN lower($1); END';
         CREATE FUNCTION lost(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN plain($1); END';
         CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM plain(NEW.v); RETURN NEW; END';
         CREATE TABLE checked (id int PRIMARY KEY, v text CHECK (lost(v) <> ''));
         CREATE TABLE indexed (id int PRIMARY KEY, v text); CREATE INDEX by_lost ON indexed (lost(v));
         CREATE TABLE watched (id int PRIMARY KEY, v text);
         CREATE TRIGGER seen BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION seen();
         ALTER TABLE watched ENABLE ALWAYS TRIGGER seen;
         INSERT INTO checked VALUES (1, 'A'); INSERT INTO indexed VALUES (1, 'A'); INSERT INTO watched VALUES (1, 'A')",
    )
    .expect("the tables");
    let needs = |table: &str| {
        let error = stopped(&pair);
        assert!(
            error.contains(table) && error.contains("plain(text) does not exist"),
            "{table}: {error}"
        );
    };
    needs("checked");
    pair.on_green("ALTER FUNCTION lost SET search_path = public")
        .expect("green mends it");
    caught_up(&pair);
    // In the stream: one that was mended and is not any more, for an index, and one for a trigger.
    pair.on_green("ALTER FUNCTION lost RESET search_path")
        .expect("green forgets it");
    for (table, function) in [("indexed", "lost"), ("watched", "seen")] {
        pair.on_blue(&format!("INSERT INTO {table} VALUES (2, 'B')"))
            .expect("blue writes");
        needs(table);
        pair.on_green(&format!("ALTER FUNCTION {function} SET search_path = public"))
            .expect("green mends it");
        caught_up(&pair);
    }
}
