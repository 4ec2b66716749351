//! Every kind of difference in every kind of table, while no instance runs; killed in the middle, and repeated.

use serde_json::json;
use testbed::pair::LIMIT;
use testbed::{Pair, Process};

use super::{Session, counts, differing, plant, wait_for_green};

const SCHEMA: &str = r#"
    CREATE TABLE plain (id int PRIMARY KEY, t text, f float8, c char(8), n numeric, b bytea, j json, d date,
        s timestamptz, a text[]);
    INSERT INTO plain SELECT i, 'v' || i, 0, 'c', 1.50, '\x0001ff', '{"a":  1}', '2024-04-03', 'epoch', '{a,NULL,""}'
        FROM generate_series(1, 2000) i;
    UPDATE plain SET f = 'NaN', d = '0044-03-15 BC', t = E'\\ \n\t''"' WHERE id % 7 = 0;
    CREATE SCHEMA "Sch'ema";
    CREATE TABLE "Sch'ema"."Qu""oted é" ("Key ""x""" text, "order" int, "sel'ect" text, PRIMARY KEY ("order", "Key ""x"""));
    INSERT INTO "Sch'ema"."Qu""oted é" SELECT 'k''' || i, i % 10, 'v' FROM generate_series(1, 200) i;
    CREATE TABLE computed (k text PRIMARY KEY, n bigint GENERATED ALWAYS AS IDENTITY, v int,
        doubled int GENERATED ALWAYS AS (v * 2) STORED);
    INSERT INTO computed (k, v) SELECT 'k' || i, i FROM generate_series(1, 100) i;
    CREATE TABLE keyless (a int, b text);
    ALTER TABLE keyless REPLICA IDENTITY FULL;
    INSERT INTO keyless SELECT i % 10, nullif('b' || i % 3, 'b1') FROM generate_series(1, 300) i;
    CREATE TABLE parts (id int, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('eu');
    CREATE TABLE parts_us PARTITION OF parts FOR VALUES IN ('us');
    INSERT INTO parts SELECT i, (ARRAY['eu', 'us'])[i % 2 + 1], 'v' FROM generate_series(1, 400) i;
    CREATE TABLE numbers (k numeric PRIMARY KEY, v text);
    INSERT INTO numbers SELECT (i || '.0')::numeric, 'v' FROM generate_series(1, 50) i;
    CREATE TABLE parent (id int PRIMARY KEY, v text);
    CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent ON DELETE CASCADE);
    INSERT INTO parent SELECT i, 'v' FROM generate_series(1, 100) i;
    INSERT INTO child SELECT i, i FROM generate_series(1, 100) i;
    CREATE TABLE same (id int PRIMARY KEY); INSERT INTO same SELECT generate_series(1, 100);
    CREATE UNLOGGED TABLE scratch (id int);
    CREATE ROLE of_blue_alone; GRANT SELECT ON plain TO of_blue_alone;
    CREATE MATERIALIZED VIEW summary AS SELECT 1 AS one; SELECT lo_create(4711)"#;

/// What is planted, and how many rows are inserted, updated and deleted to mend it.
const PLANTED: &[(&str, &str, [u64; 3])] = &[
    (
        "public.plain",
        "DELETE FROM plain WHERE id <= 700; \
         INSERT INTO plain SELECT 10000 + i, 'x' FROM generate_series(1, 300) i; \
         UPDATE plain SET t = t || ' ' WHERE id BETWEEN 701 AND 1300; \
         UPDATE plain SET f = '-0', n = 1.5 WHERE id = 1301; UPDATE plain SET t = NULL WHERE id = 1302; \
         UPDATE plain SET j = '{\"a\": 1}' WHERE id = 1303; UPDATE plain SET a = '{a,\"NULL\",\"\"}' WHERE id = 1304; \
         UPDATE plain SET n = 1.5 WHERE id = 1305; UPDATE plain SET f = '-0' WHERE id = 1306",
        [700, 606, 300],
    ),
    (
        "Sch'ema.Qu\"oted é",
        r#"DELETE FROM "Sch'ema"."Qu""oted é" WHERE "order" = 3;
           UPDATE "Sch'ema"."Qu""oted é" SET "sel'ect" = NULL WHERE "order" = 4"#,
        [20, 20, 0],
    ),
    // An identity column that an UPDATE may not set, and one that is right.
    (
        "public.computed",
        "DELETE FROM computed WHERE k IN ('k1', 'k2', 'k3'); \
         INSERT INTO computed (k, n, v) OVERRIDING SYSTEM VALUE VALUES ('k1', 4711, 1); \
         UPDATE computed SET v = 0 WHERE k = 'k9'",
        [2, 2, 0],
    ),
    (
        "public.keyless",
        "DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE a = 1 AND b IS NULL LIMIT 2); \
         INSERT INTO keyless VALUES (2, 'b2'), (2, 'b2'), (2, 'b2'), (NULL, NULL), (3, '')",
        [2, 0, 5],
    ),
    (
        "public.parts_eu",
        "UPDATE parts_eu SET v = 'x' WHERE id <= 10",
        [0, 5, 0],
    ),
    (
        "public.parts_us",
        "DELETE FROM parts_us WHERE id <= 10",
        [5, 0, 0],
    ),
    // Equal by value, not by text.
    (
        "public.numbers",
        "UPDATE numbers SET k = 7.00 WHERE k = 7; UPDATE numbers SET v = 'x' WHERE k = 8",
        [1, 1, 1],
    ),
    ("public.parent", "DELETE FROM parent WHERE id <= 10", [10, 0, 0]),
    (
        "public.child",
        "DELETE FROM child WHERE id <= 20; INSERT INTO child VALUES (500, 50), (501, 77777)",
        [20, 0, 2],
    ),
    ("public.same", "SELECT", [0, 0, 0]),
];

fn plant_all(pair: &Pair) {
    for (_, script, _) in PLANTED {
        plant(pair, script);
    }
}

#[test]
fn what_is_planted_is_repaired_exactly_also_after_a_kill() {
    let pair = Pair::start(12, 18).unwrap();
    // Without a job there is nothing to go by.
    pair.verb(&["repair"], 2).unwrap();
    pair.on_blue(SCHEMA).unwrap();
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    let untouched = pair.verb(&["repair"], 0).unwrap();
    assert_eq!(
        untouched["totals"],
        json!({ "inserted": 0, "updated": 0, "deleted": 0 })
    );

    plant_all(&pair);
    let image = "SELECT md5(string_agg(p::text, ',' ORDER BY id)) FROM plain p";
    let before = pair.on_green(image).unwrap();
    let planned = pair.verb(&["repair", "--dry-run"], 5).unwrap();
    assert_eq!(
        (&planned["dry_run"], &planned["alignment"]),
        (&json!(true), &json!("stopped"))
    );
    assert_eq!(counts(&planned, "public.plain"), [700, 606, 300, 1606]);
    assert_eq!(pair.on_green(image).unwrap(), before, "a dry run writes nothing");
    needs_an_answer(&pair);
    assert_eq!(pair.on_green(image).unwrap(), before, "nothing was confirmed");

    let position = pair.on_green(CHECKPOINT).unwrap();
    let repaired = pair.verb(&["repair"], 0).unwrap();
    for (table, _, [inserted, updated, deleted]) in PLANTED {
        let wanted = match *table {
            // The row with another text of the key is found by its value, and updated.
            "public.numbers" => [0, 0, 0, 0],
            _ => [*inserted, *updated, *deleted, 0],
        };
        let found = counts(&repaired, table);
        if *table == "public.numbers" {
            assert_eq!((found[0] + found[1], found[3]), (2, 0), "{repaired:#}");
        } else {
            assert_eq!(found, wanted, "{table}\n{repaired:#}");
        }
    }
    pair.assert_equal().unwrap();
    assert_eq!(
        pair.on_green(CHECKPOINT).unwrap(),
        position,
        "the stream's account is its own"
    );

    killed_in_the_middle(&pair);
    not_applied_is_left_alone(&pair);
    everything_is_accounted_for(&pair);
}

/// The report has what was done above, and what was not carried.
fn everything_is_accounted_for(pair: &Pair) {
    let report = pair.verb(&["report"], 0).unwrap();
    assert_eq!(report["accounting"]["balanced"], true, "{report:#}");
    let timings = &report["timings"];
    assert!(
        timings["begun"].is_string() && timings["last_applied_commit"].is_string(),
        "{timings:#}"
    );
    assert!(
        timings["seeded"]["facts"]["rows"].as_u64().unwrap() > 3000,
        "{timings:#}"
    );
    assert_eq!(timings["caught_up"].as_array().unwrap().len(), 2, "{timings:#}");
    // Three that wrote to the end; the one that was killed did not come to tell.
    assert_eq!(
        (
            &report["repair"]["exit"],
            &report["repair"]["facts"]["totals"]["updated"]
        ),
        (&json!(0), &json!(99))
    );
    assert_eq!(
        (
            &report["verify"]["exit"],
            &report["verify"]["facts"]["differences"]
        ),
        (&json!(0), &json!(0))
    );
    let left: Vec<&str> = report["not_carried"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["id"].as_str().unwrap())
        .collect();
    for id in ["PG-MATVIEW", "PG-LARGE-OBJECTS", "PG-UNLOGGED", "PG-ROLE-MISSING"] {
        assert!(left.contains(&id), "{left:?}");
    }
    assert_eq!(report["config_sha256"].as_str().unwrap().len(), 64);
    assert_eq!(report["missing"], json!([]));
    let mut command = pair.command(&["report"]).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    command.arg("--markdown").arg(file.path());
    assert_eq!(Process::run(command, LIMIT).unwrap().code(), Some(0));
    let markdown = std::fs::read_to_string(file.path()).unwrap();
    for section in [
        "## State",
        "## Timings",
        "## Changes",
        "## Tables",
        "## Last verify",
        "## Not carried",
        "public.plain",
    ] {
        assert!(markdown.contains(section), "{section}\n{markdown}");
    }
    source_is_down(pair);
}

/// What the target knows is told without the source.
fn source_is_down(pair: &Pair) {
    let [_, green] = pair.urls();
    let job = pair.on_green("SELECT stream FROM cdc_sync.stream").unwrap();
    let mut command = testbed::process::cdc_sync().unwrap();
    let nobody = "postgres://nobody@127.0.0.1:1/app";
    command.args([
        "report",
        "--json",
        "--connect-timeout",
        "8s",
        "--source",
        nobody,
        "--target",
        &green,
    ]);
    command.args(["--job", &job]);
    let ended = Process::run(command, LIMIT).unwrap();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["source"], serde_json::Value::Null);
    assert!(
        report["missing"][0]
            .as_str()
            .unwrap()
            .contains("could not be reached"),
        "{report:#}"
    );
    assert!(report["timings"]["begun"].is_string(), "{report:#}");
}

const CHECKPOINT: &str = "SELECT (c.*)::text FROM cdc_sync.checkpoint c";

/// Without --yes and with nobody to ask.
fn needs_an_answer(pair: &Pair) {
    let [blue, green] = pair.urls();
    let mut command = testbed::process::cdc_sync().unwrap();
    command.args([
        "repair",
        "--non-interactive",
        "--source",
        &blue,
        "--target",
        &green,
    ]);
    let refused = Process::run(command, LIMIT).unwrap();
    assert_eq!(refused.code(), Some(2), "{}", refused.stderr);
    assert!(
        refused
            .stderr
            .contains("would insert 700, update 606, delete 300  public.plain"),
        "{}",
        refused.stderr
    );
}

/// The second transaction of several waits for a lock when the process dies: the first stays, the second is undone, and
/// a repetition does the rest.
fn killed_in_the_middle(pair: &Pair) {
    plant(pair, "UPDATE plain SET t = 'planted' WHERE id <= 1500");
    let locked = Session::on_green(pair, "BEGIN; SELECT FROM plain WHERE id = 750 FOR UPDATE");
    let mut repair = pair.spawn(&["repair"]).unwrap();
    wait_for_green(pair, "SELECT count(*) = 1000 FROM plain WHERE t = 'planted'");
    repair.kill9().unwrap();
    locked.end("ROLLBACK");
    assert_eq!(
        pair.on_green("SELECT count(*) FROM plain WHERE t = 'planted'")
            .unwrap(),
        "1000"
    );
    assert!(differing(pair) > 0);
    let repaired = pair.verb(&["repair"], 0).unwrap();
    assert_eq!(counts(&repaired, "public.plain"), [0, 1000, 0, 0]);
    pair.assert_equal().unwrap();
}

/// Without a running instance, a table that the stream has changes for is not compared and not written.
fn not_applied_is_left_alone(pair: &Pair) {
    pair.on_blue("UPDATE parent SET v = 'new' WHERE id = 5").unwrap();
    plant(
        pair,
        "UPDATE parent SET v = 'planted'; DELETE FROM same WHERE id = 1",
    );
    let planned = pair.verb(&["repair", "--table", "parent"], 10).unwrap();
    let reason = planned["tables"][0]["unverifiable"].as_str().unwrap();
    assert!(reason.contains("1 changes are not applied yet"), "{reason}");
    let repaired = pair.verb(&["repair", "--table", "same"], 0).unwrap();
    assert_eq!(counts(&repaired, "public.same"), [1, 0, 0, 0]);
    assert_eq!(
        pair.on_green("SELECT count(*) FROM parent WHERE v = 'planted'")
            .unwrap(),
        "100"
    );
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    let repaired = pair.verb(&["repair"], 0).unwrap();
    assert_eq!(counts(&repaired, "public.parent"), [0, 99, 0, 0]);
    pair.assert_equal().unwrap();
}
