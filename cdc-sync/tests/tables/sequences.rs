//! Sequences near their limits, descending, cached, cycling and owned by columns, set when a job is drained.

use testbed::Pair;

const SEQUENCES: &str = "
    CREATE TABLE identity (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int);
    INSERT INTO identity (v) SELECT n FROM generate_series(1, 10) n;
    CREATE SEQUENCE big START 9223372036854770000;
    CREATE SEQUENCE down AS smallint INCREMENT -1 START -31000 CACHE 20;
    CREATE SEQUENCE wheel AS smallint MAXVALUE 100 CYCLE;
    CREATE SEQUENCE tens INCREMENT 10 CACHE 50;
    CREATE SEQUENCE unused START 7;
    SELECT nextval('big'), nextval('down'), nextval('wheel'), nextval('tens')";

/// What green gives next must be a value that blue has not given, whatever its session had cached.
#[test]
fn sequences_go_on_behind_the_last_value_of_blue() {
    let pair = Pair::start(12, 17).unwrap();
    pair.on_blue(SEQUENCES).unwrap();
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    for (sequence, next) in [
        ("big", "9223372036854771001"),
        ("down", "-32020"),
        ("wheel", "1"),
        ("tens", "10501"),
        ("unused", "7"),
    ] {
        let given = pair.on_green(&format!("SELECT nextval('{sequence}')")).unwrap();
        assert_eq!(given, next, "{sequence}");
    }
    let row = "INSERT INTO identity (v) VALUES (0) RETURNING id";
    assert_eq!(pair.on_green(row).unwrap(), "1011");
}

#[test]
fn a_sequence_without_a_value_left_is_named_before_any_is_set() {
    let pair = Pair::start(12, 17).unwrap();
    pair.on_blue(SEQUENCES).unwrap();
    pair.on_blue("SELECT setval('big', 9223372036854775000)").unwrap();
    let refused = pair.verb(&["run", "--until-caught-up"], 13).unwrap();
    let error = &refused["error"];
    assert_eq!(error["object"], "sequence public.big", "{refused}");
    assert!(
        error["remedy"].as_str().unwrap().contains("--sequence-buffer"),
        "{refused}"
    );
    assert_eq!(pair.on_green("SELECT is_called FROM tens").unwrap(), "f");
    let fewer = ["run", "--until-caught-up", "--sequence-buffer", "500"];
    let drained = pair.verb(&fewer, 0).unwrap();
    assert_eq!(drained["caught_up"], true, "{drained}");
    assert_eq!(
        pair.on_green("SELECT nextval('big')").unwrap(),
        "9223372036854775501"
    );
}
