//! Tables that the job does not have: their rows on green are green's own.

use testbed::Pair;

use super::counts;

#[test]
fn what_the_job_does_not_have_is_left_as_it_is() {
    let pair = Pair::start(14, 18).unwrap();
    let schema =
        "CREATE TABLE data (id int PRIMARY KEY, v int); CREATE TABLE config (id int PRIMARY KEY, v text)";
    pair.on_blue(schema).unwrap();
    pair.on_blue(
        "INSERT INTO data SELECT n, n FROM generate_series(1, 50) n; INSERT INTO config VALUES (1, 'blue')",
    )
    .unwrap();
    pair.on_green(schema).unwrap();
    pair.on_green("INSERT INTO config VALUES (1, 'green'), (2, 'green'), (3, 'green')")
        .unwrap();
    pair.verb(&["run", "--exclude", "config", "--until-caught-up"], 0)
        .unwrap();
    // Made on both sides since, and differing there as well.
    let late = "CREATE TABLE late (id int PRIMARY KEY, v text); INSERT INTO late VALUES";
    pair.on_blue(&format!("{late} (1, 'blue'), (2, 'blue')")).unwrap();
    pair.on_green(&format!("{late} (1, 'green'), (3, 'green')"))
        .unwrap();
    pair.on_green("DELETE FROM data WHERE id = 7").unwrap();

    let of_green = "SELECT (SELECT string_agg(id || v, ',' ORDER BY id) FROM config) || ' ' \
                    || (SELECT string_agg(id || v, ',' ORDER BY id) FROM late)";
    let before = pair.on_green(of_green).unwrap();
    // Without the --exclude that the job began with.
    let repaired = pair.verb(&["repair"], 10).unwrap();
    assert_eq!(counts(&repaired, "public.data"), [1, 0, 0, 0]);
    let said = repaired.to_string();
    for table in ["public.config", "public.late"] {
        assert!(said.contains(&format!("resync --table '{table}'")), "{said}");
    }
    pair.verb(&["repair", "--table", "late"], 10).unwrap();
    assert_eq!(pair.on_green(of_green).unwrap(), before);
    // Nor is such a table said to be equal.
    let verified = pair.verb(&["verify"], 10).unwrap();
    assert_eq!(verified["differences"], 0);
    pair.verb(&["verify", "--table", "data"], 0).unwrap();
}
