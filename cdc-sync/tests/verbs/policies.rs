//! One table under each policy, through the binary: conflicts are provoked on green, and each key has the documented winner.

use serde_json::Value;

use testbed::Pair;

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

/// The findings about policies, as `id severity object`.
fn found(pair: &Pair, policy: &str, code: i32) -> Vec<String> {
    let report = pair.verb(&["check", "--conflict", policy], code).unwrap();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap().iter();
    findings
        .map(|finding| {
            ["id", "severity", "object"]
                .map(|key| text(finding, key))
                .join(" ")
        })
        .filter(|finding| finding.starts_with("POLICY"))
        .collect()
}

/// What `check` warns of does happen, and does not once its advice is followed.
#[test]
fn what_a_policy_cannot_do_is_found_and_happens() {
    let pair = Pair::start(17, 16).unwrap();
    pair.on_blue(
        "CREATE TABLE large (id int PRIMARY KEY, n int, doc text); ALTER TABLE large ALTER doc SET STORAGE EXTERNAL; \
         INSERT INTO large SELECT n, 0, repeat('b', 9000) FROM generate_series(1, 2) n; \
         CREATE TABLE numbered (id int PRIMARY KEY, no int GENERATED ALWAYS AS IDENTITY, v int); \
         INSERT INTO numbered (id, v) VALUES (1, 0), (2, 0); \
         CREATE TABLE partly (id int PRIMARY KEY, v int, active boolean); \
         CREATE UNIQUE INDEX when_active ON partly (v) WHERE active; INSERT INTO partly VALUES (1, 1, true)",
    )
    .unwrap();
    assert_eq!(
        found(&pair, "large=blue_wins", 0),
        ["POLICY-LARGE-VALUES warn public.large"]
    );
    assert_eq!(found(&pair, "large=green_wins", 0), [""; 0]);
    assert_eq!(
        found(&pair, "numbered=dead_letter", 3),
        ["POLICY-IDENTITY fail public.numbered.no"]
    );
    assert_eq!(
        found(&pair, "partly=green_wins", 0),
        ["POLICY-UNDECIDED warn public.partly"]
    );
    let run = [
        "run",
        "--until-caught-up",
        "--conflict",
        "large=blue_wins",
        "--conflict",
        "partly=green_wins",
    ];
    pair.verb(&run, 0).unwrap();
    // Whose value the large one is depends on whether blue's update carries it.
    let mixed = "SELECT string_agg(n || left(doc, 1), ' ' ORDER BY id) FROM large";
    for (identity, rows) in [("DEFAULT", "1g 1g"), ("FULL", "2b 2b")] {
        pair.on_green("UPDATE large SET doc = repeat('g', 9000)").unwrap();
        pair.on_blue(&format!(
            "ALTER TABLE large REPLICA IDENTITY {identity}; UPDATE large SET n = n + 1"
        ))
        .unwrap();
        pair.verb(&run, 0).unwrap();
        assert_eq!(pair.on_green(mixed).unwrap(), rows, "{identity}");
    }
    assert_eq!(found(&pair, "large=blue_wins", 0), [""; 0]);
    // A row of green that violates what no policy looks at.
    pair.on_green("INSERT INTO partly VALUES (2, 2, true)").unwrap();
    pair.on_blue("INSERT INTO partly VALUES (3, 2, true)").unwrap();
    let stopped = pair.verb(&run, 8).unwrap();
    assert!(stopped.to_string().contains("when_active"), "{stopped}");
    pair.on_green("DROP INDEX when_active").unwrap();
    assert_eq!(found(&pair, "partly=green_wins", 0), [""; 0]);
    pair.verb(&run, 0).unwrap();
    // A number that nobody may overwrite.
    let numbered = [run.as_slice(), &["--conflict", "numbered=blue_wins"]].concat();
    pair.verb(&numbered, 3).unwrap();
    pair.on_green("ALTER TABLE numbered ALTER no SET GENERATED BY DEFAULT")
        .unwrap();
    assert_eq!(found(&pair, "numbered=blue_wins", 0), [""; 0]);
    pair.on_blue("UPDATE numbered SET v = 7 WHERE id = 1").unwrap();
    pair.verb(&numbered, 0).unwrap();
    assert_eq!(pair.on_green("SELECT v FROM numbered WHERE id = 1").unwrap(), "7");
}
