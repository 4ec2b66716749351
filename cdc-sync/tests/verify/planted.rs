//! Differences planted in two databases without a job.

use cdc_sync::verify::{Alignment, VerifyReport};

use super::{DATABASE, compare, pair, table};

const SCHEMA: &str = "
    CREATE TABLE by_int (id int PRIMARY KEY, v text, f float8, c char(8), n numeric);
    CREATE TABLE by_text (k text, d date, v int, PRIMARY KEY (k, d));
    CREATE TABLE keyless (v text, j json);
    CREATE TABLE computed (id int PRIMARY KEY, double int GENERATED ALWAYS AS (id * 2) STORED);
    INSERT INTO by_int SELECT i, 'v' || i, 0, 'c', 1.0 FROM generate_series(-2000, 2000) i;
    INSERT INTO by_text SELECT 'k' || i, date '2026-01-01' + i, i FROM generate_series(1, 3000) i;
    INSERT INTO keyless SELECT 'v' || i % 1000, '{}' FROM generate_series(1, 3000) i;
    INSERT INTO computed SELECT generate_series(1, 100);";

fn tally(report: &VerifyReport, name: &str) -> (u64, u64, u64) {
    let table = table(report, name);
    assert_eq!(table.unverifiable, None);
    (table.missing, table.extra, table.different)
}

#[test]
fn differences_are_counted_by_kind_and_named() {
    let (source, target) = pair(12, 18);
    for cluster in [&source, &target] {
        cluster.sql(DATABASE, SCHEMA).unwrap();
    }
    let equal = compare(&source, &target);
    assert_eq!(
        (equal.alignment, equal.exit_code(), equal.tables.len()),
        (Alignment::None, 0, 4)
    );
    assert_eq!(equal.notes.len(), 1);
    assert_eq!(
        (
            table(&equal, "by_int").source_rows,
            table(&equal, "by_int").target_rows
        ),
        (4001, 4001)
    );

    // One of each kind, among them what the server's own operators call equal.
    target
        .sql(
            DATABASE,
            "DELETE FROM by_int WHERE id = -7; INSERT INTO by_int VALUES (9999); UPDATE by_int SET f = '-0' WHERE id = 5;
             UPDATE by_int SET n = 1.00 WHERE id = 6; UPDATE by_int SET v = NULL WHERE id = 7;
             UPDATE by_text SET v = NULL WHERE k = 'k77'; UPDATE by_text SET k = 'K78' WHERE k = 'k78';
             DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless WHERE v = 'v3');
             INSERT INTO keyless VALUES ('v4', '{}'), ('v4', '{ }')",
        )
        .unwrap();
    source
        .sql(
            DATABASE,
            "UPDATE by_int SET v = '' WHERE id = 7; UPDATE by_int SET v = v || ' ' WHERE id = 8",
        )
        .unwrap();
    let found = compare(&source, &target);
    assert_eq!(found.exit_code(), 5);
    assert_eq!(tally(&found, "by_int"), (1, 1, 4));
    let keys: Vec<_> = table(&found, "by_int")
        .keys
        .iter()
        .map(|key| key.0[0].1.clone().unwrap())
        .collect();
    assert_eq!(keys, ["-7", "5", "6", "7", "8", "9999"]);
    assert_eq!(tally(&found, "by_text"), (1, 1, 1));
    assert_eq!(tally(&found, "keyless"), (1, 2, 0));
    assert_eq!(tally(&found, "computed"), (0, 0, 0));
    assert_eq!(found.differences, 12);

    // A thousand of each kind; a hundred are named.
    target
        .sql(
            DATABASE,
            "DELETE FROM by_int WHERE id < -1000; INSERT INTO by_int SELECT i FROM generate_series(20000, 20999) i;
             UPDATE by_text SET v = -1 WHERE v > 2000; TRUNCATE keyless",
        )
        .unwrap();
    let many = compare(&source, &target);
    assert_eq!(tally(&many, "by_int"), (1001, 1001, 4));
    assert_eq!(table(&many, "by_int").keys.len(), 100);
    assert_eq!(tally(&many, "by_text"), (1, 1, 1001));
    assert_eq!(tally(&many, "keyless"), (3000, 0, 0));
}

#[test]
fn what_cannot_be_compared_is_said() {
    let (source, target) = pair(15, 15);
    for cluster in [&source, &target] {
        cluster
            .sql(
                DATABASE,
                "CREATE TABLE same (id int PRIMARY KEY); CREATE TABLE narrower (id int PRIMARY KEY, v int);
                 CREATE TABLE retyped (id int PRIMARY KEY, v int); INSERT INTO retyped VALUES (9, 1), (10, 1)",
            )
            .unwrap();
    }
    source
        .sql(DATABASE, "CREATE TABLE here (id int PRIMARY KEY)")
        .unwrap();
    target
        .sql(
            DATABASE,
            "CREATE TABLE there (id int PRIMARY KEY); ALTER TABLE narrower DROP COLUMN v;
             ALTER TABLE retyped ALTER COLUMN id TYPE text; ALTER TABLE same ADD COLUMN extra int",
        )
        .unwrap();
    let report = compare(&source, &target);
    assert_eq!(
        (report.exit_code(), report.unverifiable, report.differences),
        (10, 3, 0)
    );
    for (name, part) in [
        ("here", "not on the target"),
        ("there", "not on the source"),
        ("narrower", "column v"),
    ] {
        assert!(
            table(&report, name).unverifiable.as_ref().unwrap().contains(part),
            "{report:#?}"
        );
    }
    assert_eq!(table(&report, "retyped").source_rows, 2);
    target
        .sql(DATABASE, "UPDATE retyped SET v = 2 WHERE id = '9'")
        .unwrap();
    let report = compare(&source, &target);
    assert_eq!(
        report.exit_code(),
        5,
        "differences win over what was not compared"
    );
}

#[test]
fn text_that_a_collation_calls_equal_is_different() {
    let (source, target) = pair(18, 18);
    let icu = source
        .sql(
            DATABASE,
            "SELECT count(*) > 0 FROM pg_collation WHERE collprovider = 'i'",
        )
        .unwrap();
    assert_eq!(icu, "t", "this server knows no ICU collations");
    for (cluster, text) in [(&source, "Straße"), (&target, "STRASSE")] {
        cluster
            .sql(
                DATABASE,
                &format!(
                    "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false);
                     CREATE TABLE t (k text COLLATE loose PRIMARY KEY, v text COLLATE loose);
                     INSERT INTO t VALUES ('a', '{text}'), ('{text}', 'x'), ('z', 'z'), ('B', 'b')"
                ),
            )
            .unwrap();
    }
    let report = compare(&source, &target);
    assert_eq!(tally(&report, "t"), (1, 1, 1));
}
