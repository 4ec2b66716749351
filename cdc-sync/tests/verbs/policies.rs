//! One table under each policy, through the binary: conflicts are provoked on green, and each key has the documented winner.

use serde_json::Value;

use super::shop;

const POLICIES: [&str; 4] = ["blue_wins", "green_wins", "lww:ver", "dead_letter"];

/// The name of a policy's table.
fn table(policy: &str) -> String {
    format!("t_{}", policy.split(':').next().unwrap_or_default())
}

#[test]
fn each_policy_has_its_winner_on_every_key() {
    let pair = shop(14, 18);
    for policy in POLICIES {
        let table = table(policy);
        pair.on_blue(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, v text, ver int NOT NULL); \
             INSERT INTO {table} SELECT n, 'seed', 1 FROM generate_series(4, 8) n"
        ))
        .unwrap();
    }
    let flags: Vec<String> = POLICIES
        .iter()
        .flat_map(|policy| {
            [
                "--conflict".to_owned(),
                format!("public.{}={policy}", table(policy)),
            ]
        })
        .collect();
    let run: Vec<&str> = ["run", "--until-caught-up"]
        .into_iter()
        .chain(flags.iter().map(String::as_str))
        .collect();
    pair.verb(&run, 0).unwrap();
    for policy in POLICIES {
        let table = table(policy);
        // Green: 1 older and 2 newer than what blue inserts; 4 and 7 gone; 6 newer than what blue updates.
        pair.on_green(&format!(
            "INSERT INTO {table} VALUES (1, 'green', 5), (2, 'green', 15); DELETE FROM {table} WHERE id IN (4, 7); \
             UPDATE {table} SET v = 'green', ver = 15 WHERE id = 6"
        ))
        .unwrap();
        pair.on_blue(&format!(
            "INSERT INTO {table} SELECT n, 'blue', 10 FROM generate_series(1, 3) n; \
             UPDATE {table} SET v = 'blue', ver = 10 WHERE id IN (4, 5, 6); DELETE FROM {table} WHERE id IN (7, 8)"
        ))
        .unwrap();
    }
    let report = pair.verb(&run, 0).unwrap();
    for (policy, rows) in POLICIES.into_iter().zip([
        "(1,blue,10) (2,blue,10) (3,blue,10) (4,blue,10) (5,blue,10) (6,blue,10)",
        "(1,green,5) (2,green,15) (3,blue,10) (5,blue,10) (6,blue,10)",
        "(1,blue,10) (2,green,15) (3,blue,10) (4,blue,10) (5,blue,10) (6,green,15)",
        "(1,green,5) (2,green,15) (3,blue,10) (5,blue,10) (6,blue,10)",
    ]) {
        let found = format!(
            "SELECT string_agg(t::text, ' ' ORDER BY id) FROM {} t",
            table(policy)
        );
        assert_eq!(pair.on_green(&found).unwrap(), rows, "{policy}");
    }
    let count = |key: &str| report["changes"][key].as_u64().unwrap();
    assert_eq!(
        (count("superseded"), count("dead_lettered")),
        (3 + 2, 4),
        "{report}"
    );
    assert_eq!(count("read"), 4 * 8);
    assert_eq!(
        count("read"),
        count("applied") + count("superseded") + count("dead_lettered")
    );

    let listed = pair.verb(&["conflicts", "list"], 0).unwrap();
    let listed = listed["conflicts"].as_array().unwrap();
    assert_eq!(listed.len(), 4 + 4 + 5 + 4, "{listed:#?}");
    assert!(
        listed
            .iter()
            .all(|one| one["position"].as_str().is_some_and(|at| at.contains('/')))
    );
    let of = |kind: &str| -> Vec<&Value> { listed.iter().filter(|one| one["kind"] == kind).collect() };
    assert_eq!(of("update_origin_differs").len(), 1);
    assert_eq!(of("delete_missing").len(), 4);

    // What was put aside is applied when the operator says so: blue's rows, as under blue_wins.
    let retried = pair.verb(&["conflicts", "retry", "--all"], 0).unwrap();
    assert_eq!(
        retried["conflicts"].as_array().map(Vec::len),
        Some(4),
        "{retried}"
    );
    let found = "SELECT string_agg(t::text, ' ' ORDER BY id) FROM t_dead_letter t";
    assert_eq!(
        pair.on_green(found).unwrap(),
        "(1,blue,10) (2,blue,10) (3,blue,10) (4,blue,10) (5,blue,10) (6,blue,10)"
    );
    let open = pair.verb(&["conflicts", "list", "--open"], 0).unwrap();
    assert_eq!(open["conflicts"].as_array().map(Vec::len), Some(0), "{open}");
}
