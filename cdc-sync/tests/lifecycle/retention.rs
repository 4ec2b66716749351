//! What blue holds back until the stream follows is limited at every step, and asking for it disturbs nothing.

use testbed::Pair;
use testbed::pair::LIMIT;

use super::{Hold, end, error};

#[test]
fn the_limit_holds_while_indexes_are_built() {
    let pair = Pair::start(14, 18).expect("two servers");
    pair.on_blue("CREATE TABLE t (id serial PRIMARY KEY, v text); CREATE INDEX t_v ON t (left(v, 10))")
        .expect("blue has a table");
    let hold = Hold::statements(&pair, &["CREATE INDEX"]);
    let mut running = pair
        .spawn(&["run", "--until-caught-up", "--max-retained-wal", "20MB"])
        .expect("run starts");
    hold.wait(&mut running);
    pair.on_blue("INSERT INTO t (v) SELECT repeat('x', 1000) FROM generate_series(1, 40000)")
        .expect("blue writes");
    let report = end(&mut running, 4);
    assert!(error(&report).contains("the limit is 20000000"), "{report}");
}

#[test]
fn a_question_that_fails_in_mid_seed_does_not_throw_the_copy_away() {
    let table = "CREATE TABLE t (id int PRIMARY KEY)";
    let pair = Pair::start(14, 18).expect("two servers");
    pair.on_blue(&format!("{table}; INSERT INTO t VALUES (1)"))
        .expect("blue has a table");
    pair.on_green(table).expect("green has a table");
    let hold = Hold::rows(&pair, "t");
    let mut running = pair.spawn(&["run", "--until-caught-up"]).expect("run starts");
    hold.wait(&mut running);
    let rename = |from: &str, to: &str| {
        pair.on_blue(&format!(
            "SET allow_system_table_mods = on; ALTER VIEW pg_catalog.{from} RENAME TO {to}"
        ))
        .expect("blue renames its view");
    };
    rename("pg_replication_slots", "pg_hidden_slots");
    running
        .wait_for("cannot ask the source what it retains", LIMIT)
        .expect("it is said");
    rename("pg_hidden_slots", "pg_replication_slots");
    hold.release("row");
    end(&mut running, 0);
    let said = running.stderr();
    assert!(!said.contains("seed interrupted"), "{said}");
}
