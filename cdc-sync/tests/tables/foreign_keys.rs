//! Seeding into a target that has its tables, for a role for which it checks foreign keys.

use testbed::Pair;

/// Ancestors, a table that refers to itself and is copied in one part however large it is, and a table that is not the
/// job's but refers to one that is.
const SCHEMA: &str = "
    CREATE TABLE a_child (id int PRIMARY KEY, parent int NOT NULL);
    CREATE TABLE b_parent (id int PRIMARY KEY, root int NOT NULL, filler text);
    CREATE TABLE c_root (id int PRIMARY KEY);
    CREATE TABLE chain (id int PRIMARY KEY, next int REFERENCES chain, filler text);
    CREATE TABLE later (id int PRIMARY KEY, next int REFERENCES chain DEFERRABLE INITIALLY DEFERRED);
    ALTER TABLE a_child ADD FOREIGN KEY (parent) REFERENCES b_parent ON DELETE RESTRICT;
    ALTER TABLE b_parent ADD FOREIGN KEY (root) REFERENCES c_root;";
const ROWS: &str = "
    INSERT INTO c_root SELECT n FROM generate_series(1, 1000) n;
    INSERT INTO b_parent SELECT n, 1001 - n, repeat('x', 900) FROM generate_series(1, 1000) n;
    INSERT INTO a_child SELECT n, 1001 - n FROM generate_series(1, 1000) n;
    INSERT INTO chain SELECT n, nullif(n % 2000 + 1, n), repeat('x', 900) FROM generate_series(1, 2000) n;
    INSERT INTO later SELECT n, n FROM generate_series(1, 100) n;";
const OUTSIDE: &str =
    "CREATE TABLE outside (id int PRIMARY KEY, root int REFERENCES c_root ON DELETE CASCADE)";

fn seeds(old: u16, new: u16, occupied: bool) {
    let mut pair = Pair::start(old, new).unwrap();
    pair.on_blue(&format!("{SCHEMA}{ROWS}")).unwrap();
    pair.on_green(&format!("{SCHEMA}{OUTSIDE}")).unwrap();
    if occupied {
        // Other rows than blue's, so that none may stay.
        pair.on_green(&format!("{ROWS}; INSERT INTO c_root VALUES (5001)"))
            .unwrap();
    }
    pair.use_plain_roles().unwrap();
    let mut small = pair
        .command(&["run", "--until-caught-up", "--truncate-target"])
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let job = folder.path().join("job.toml");
    std::fs::write(&job, "[seed]\npart_mb = 1\nparallel = 4\n").unwrap();
    small.arg("-c").arg(&job);
    let ended = testbed::Process::run(small, testbed::pair::LIMIT).unwrap();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    // In order, and not by trying again.
    assert!(!ended.stderr.contains("copying a part again"), "{}", ended.stderr);
    pair.on_green("DROP TABLE outside").unwrap();
    pair.assert_equal().unwrap();
}

#[test]
fn parents_are_copied_before_their_children() {
    seeds(13, 14, false);
}

#[test]
fn tables_that_refer_to_each_other_are_emptied_together() {
    seeds(16, 15, true);
}

/// No order of copying satisfies two tables that refer to each other, which is said before anything is touched.
#[test]
fn a_circle_of_tables_is_refused_unless_nobody_checks_it() {
    let circle = "CREATE TABLE hen (id int PRIMARY KEY, egg int);
        CREATE TABLE egg (id int PRIMARY KEY, hen int REFERENCES hen);
        ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg DEFERRABLE INITIALLY DEFERRED;";
    let mut pair = Pair::start(14, 16).unwrap();
    pair.on_blue(circle).unwrap();
    pair.on_blue("BEGIN; INSERT INTO hen VALUES (1, 1); INSERT INTO egg VALUES (1, 1); COMMIT")
        .unwrap();
    pair.on_green(circle).unwrap();
    pair.use_plain_roles().unwrap();
    let refused = pair.verb(&["run"], 3).unwrap();
    assert!(
        refused["error"]["object"]
            .as_str()
            .unwrap()
            .contains("public.hen"),
        "{refused}"
    );
    assert_eq!(
        pair.on_blue("SELECT count(*) FROM pg_replication_slots").unwrap(),
        "0"
    );
    let checked = pair.verb(&["check"], 3).unwrap().to_string();
    assert!(checked.contains("TARGET-KEY-CYCLE"), "{checked}");
    let role = pair.role_on_green();
    pair.on_green(&format!(
        "GRANT SET ON PARAMETER session_replication_role TO {role}"
    ))
    .unwrap();
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    pair.assert_equal().unwrap();
}
