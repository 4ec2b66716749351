//! Triggers of green that fire for what a repair writes.

use testbed::Pair;

use super::plant;

#[test]
fn what_a_trigger_keeps_back_or_changes_is_told() {
    let pair = Pair::start(13, 16).unwrap();
    pair.on_blue(
        "CREATE TABLE kept (id int PRIMARY KEY, v text); CREATE TABLE changed (id int PRIMARY KEY, v text);
         INSERT INTO kept SELECT n, 'v' FROM generate_series(1, 9) n;
         INSERT INTO changed SELECT n, 'v' FROM generate_series(1, 9) n",
    )
    .unwrap();
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    plant(
        &pair,
        "UPDATE kept SET v = 'x' WHERE id < 3; DELETE FROM kept WHERE id = 9",
    );
    plant(&pair, "UPDATE changed SET v = 'x' WHERE id < 3");
    pair.on_green(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := NEW.v || ''!''; RETURN NEW; END';
         CREATE TRIGGER keeper BEFORE INSERT ON kept FOR EACH ROW EXECUTE FUNCTION keep();
         CREATE TRIGGER changer BEFORE UPDATE ON changed FOR EACH ROW EXECUTE FUNCTION change();
         ALTER TABLE kept ENABLE ALWAYS TRIGGER keeper; ALTER TABLE changed ENABLE ALWAYS TRIGGER changer",
    )
    .unwrap();
    let repaired = pair.verb(&["repair"], 5).unwrap();
    let said = repaired.to_string();
    assert!(
        said.contains("suppresses the writing of 1 rows: trigger keeper"),
        "{said}"
    );
    assert!(
        said.contains("2 rows of public.changed differ still after they were written"),
        "{said}"
    );
    pair.on_green("DROP TRIGGER keeper ON kept; DROP TRIGGER changer ON changed")
        .unwrap();
    pair.verb(&["repair"], 0).unwrap();
    pair.verb(&["verify"], 0).unwrap();
}
