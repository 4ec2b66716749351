//! What a change brings about on green beside itself: what triggers see, what goes with a row, what is checked when.

use testbed::Pair;

/// A pair whose job logs in as a role for which triggers fire and foreign keys are checked.
fn watched(schema: &str) -> Pair {
    let mut pair = Pair::start(13, 18).unwrap();
    pair.on_blue(schema).unwrap();
    pair.use_plain_roles().unwrap();
    follow(&pair);
    pair
}

fn follow(pair: &Pair) {
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    pair.assert_equal().unwrap();
}

/// An UPDATE may not set such a column. To remove the row and insert it again would take what refers to it along.
#[test]
fn rows_that_refer_to_one_with_an_identity_stay() {
    let pair = watched(
        "CREATE TABLE p (k text PRIMARY KEY, n bigint GENERATED ALWAYS AS IDENTITY, v text, w text);
         CREATE TABLE taken (id int PRIMARY KEY, k text REFERENCES p ON DELETE CASCADE);
         CREATE TABLE emptied (id int PRIMARY KEY, k text REFERENCES p ON DELETE SET NULL);
         CREATE TABLE kept (id int PRIMARY KEY, k text REFERENCES p ON DELETE RESTRICT);
         INSERT INTO p (k, v) SELECT n, n FROM generate_series(1, 50) n;
         INSERT INTO taken SELECT n, n FROM generate_series(1, 50) n;
         INSERT INTO emptied SELECT n, n FROM generate_series(1, 50) n;
         INSERT INTO kept SELECT n, n FROM generate_series(1, 9) n;",
    );
    pair.on_blue(
        "UPDATE p SET v = 'x' WHERE k = '1'; UPDATE p SET w = 'y'; \
         UPDATE p SET v = NULL WHERE k > '3'",
    )
    .unwrap();
    follow(&pair);
    // Green has given the row another number: nothing of it is taken away for that, and it is told.
    pair.on_green("UPDATE p SET n = DEFAULT WHERE k = '2'").unwrap();
    pair.on_blue("UPDATE p SET v = 'z' WHERE k = '2'").unwrap();
    let report = pair.verb(&["run", "--until-caught-up"], 8).unwrap();
    assert_eq!(report["error"]["object"], "public.p (k=2)", "{report}");
    for table in ["taken", "emptied"] {
        let there = format!("SELECT count(*) FROM {table} WHERE k = '2'");
        assert_eq!(pair.on_green(&there).unwrap(), "1");
    }
}

/// Without the actions the number of the row becomes blue's.
#[test]
fn a_row_gets_the_identity_that_it_has_on_blue() {
    let pair = watched(
        "CREATE TABLE p (k text PRIMARY KEY, n bigint GENERATED ALWAYS AS IDENTITY, v text);
         CREATE TABLE c (id int PRIMARY KEY, k text REFERENCES p);
         INSERT INTO p (k, v) VALUES ('a', 1), ('b', 2); INSERT INTO c VALUES (1, 'a'), (2, 'b')",
    );
    pair.on_green("UPDATE p SET n = DEFAULT WHERE k = 'a'").unwrap();
    pair.on_blue("UPDATE p SET v = 'x'").unwrap();
    follow(&pair);
}

/// What the trigger reads lies in a table that has none, whose changes would otherwise be merged and applied first. It never
/// raises: a group that fails is applied in order.
#[test]
fn a_trigger_sees_the_other_tables_as_it_did_on_blue() {
    let pair = watched(
        "CREATE TABLE rate (currency text PRIMARY KEY, rate int);
         CREATE TABLE ord (id int PRIMARY KEY, currency text, amount int, price int);
         CREATE FUNCTION price() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             SELECT NEW.amount * rate INTO STRICT NEW.price FROM public.rate WHERE currency = NEW.currency;
             RETURN NEW; END $$;
         CREATE TRIGGER price BEFORE INSERT OR UPDATE ON ord FOR EACH ROW EXECUTE FUNCTION price();
         INSERT INTO rate VALUES ('x', 1)",
    );
    pair.on_blue(
        "BEGIN; UPDATE rate SET rate = 2; INSERT INTO ord VALUES (1, 'x', 10); UPDATE rate SET rate = 3; \
         INSERT INTO rate SELECT n, n FROM generate_series(1, 50) n; \
         INSERT INTO ord SELECT 1 + n, n, n FROM generate_series(1, 50) n; \
         UPDATE rate SET rate = 4; \
         UPDATE ord SET amount = amount + 1 WHERE id BETWEEN 10 AND 20; COMMIT",
    )
    .unwrap();
    follow(&pair);
}

/// The hen has no egg yet when another table is emptied, and is not asked for it.
#[test]
fn to_empty_a_table_checks_nothing_of_others() {
    let pair = watched(
        "CREATE TABLE egg (id int PRIMARY KEY);
         CREATE TABLE hen (id int PRIMARY KEY, egg int REFERENCES egg DEFERRABLE INITIALLY DEFERRED);
         CREATE TABLE log (id int PRIMARY KEY, hen int REFERENCES hen DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO egg VALUES (1); INSERT INTO hen VALUES (1, 1); INSERT INTO log VALUES (1, 1)",
    );
    pair.on_blue(
        "BEGIN; INSERT INTO hen VALUES (2, 2); TRUNCATE log; INSERT INTO log VALUES (2, 2); \
         INSERT INTO egg VALUES (2); COMMIT; \
         BEGIN; INSERT INTO log VALUES (3, 2); COMMIT; TRUNCATE log",
    )
    .unwrap();
    follow(&pair);
}
