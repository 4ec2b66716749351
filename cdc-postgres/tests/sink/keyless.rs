//! Tables without a key: exactly one of the rows that are equal.

use std::time::{Duration, Instant};

use cdc_core::model::Identity;
use cdc_core::plan::PlanMode;
use cdc_core::{Action, Kind};

use crate::changes::{Changes, Of, table};
use crate::on_each;

#[test]
fn one_of_many_equal_rows_is_taken() {
    let schema = "CREATE TABLE d (a int4, b text); \
                  INSERT INTO d SELECT 1, 'x' FROM generate_series(1, 3); \
                  INSERT INTO d SELECT NULL, NULL FROM generate_series(1, 3); INSERT INTO d VALUES (1, NULL), (NULL, '')";
    on_each("keyless", schema, async |mut target| {
        let d = table("d", &["a", "b"], Identity::Full);
        let (one, none): ([Of<'_>; 2], [Of<'_>; 2]) = (["1".into(), "x".into()], [Of::Null, Of::Null]);
        let changes = Changes::new()
            .delete(&d, &one)
            .update_from(&d, &one, &["2".into(), "x".into()])
            .delete(&d, &none)
            .update_from(&d, &none, &[Of::Null, "y".into()]);
        assert_eq!(target.apply(changes.group(), PlanMode::Net).await.unwrap(), 4);
        assert_eq!(
            target.sql(
                "SELECT coalesce(a::text, '-'), coalesce(b, '-'), count(*) FROM d GROUP BY 1, 2 ORDER BY 1, 2"
            ),
            "-||1\n-|-|1\n-|y|1\n1|-|1\n1|x|1\n2|x|1"
        );
        let gone = Changes::new().delete(&d, &["9".into(), Of::Null]);
        let error = target.apply(gone.group(), PlanMode::Net).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.object_name()),
            (Kind::Conflict, Some("public.d"))
        );
        assert!(error.message().starts_with("delete_missing"), "{error}");
    });
}

#[test]
fn types_without_equality_and_values_that_are_merely_equal() {
    let schema = "CREATE EXTENSION citext; \
                  CREATE TABLE e (j json, p point, x xml, n numeric, c public.citext, f float8); \
                  INSERT INTO e VALUES \
                  ('{\"a\": 1}', '(1,2)', '<a/>', 1.0, 'Ab', 0), ('{\"a\":1}', '(1,2)', '<a/>', 1.0, 'Ab', 0), \
                  ('{\"a\": 1}', '(1,2)', '<a/>', 1.00, 'Ab', 0), ('{\"a\": 1}', '(1,2)', '<a/>', 1.0, 'aB', 0), \
                  ('{\"a\": 1}', '(1,2)', '<a/>', 1.0, 'Ab', '-0')";
    on_each("equality", schema, async |mut target| {
        let facts = target.facts("e");
        let has: Vec<bool> = facts.columns.iter().map(|column| column.has_equality).collect();
        assert_eq!(has, [false, false, false, true, true, true]);
        assert!(facts.columns.iter().all(|column| !column.byte_comparable));
        let e = table("e", &["j", "p", "x", "n", "c", "f"], Identity::Full);
        let row = |j, n, c, f| -> [Of<'_>; 6] {
            [
                Of::Text(j),
                "(1,2)".into(),
                "<a/>".into(),
                Of::Text(n),
                Of::Text(c),
                Of::Text(f),
            ]
        };
        let rows = [
            row("{\"a\": 1}", "1.00", "Ab", "0"),
            row("{\"a\": 1}", "1.0", "aB", "0"),
            row("{\"a\": 1}", "1.0", "Ab", "-0"),
            row("{\"a\":1}", "1.0", "Ab", "0"),
        ];
        for old in rows {
            let mut new = old;
            new[1] = "(3,4)".into();
            let changes = Changes::new().update_from(&e, &old, &new);
            assert_eq!(
                target.apply(changes.group(), PlanMode::Net).await.unwrap(),
                1,
                "{old:?}"
            );
        }
        assert_eq!(
            target.sql("SELECT j, n, c, f FROM e WHERE p::text = '(1,2)'"),
            "{\"a\": 1}|1.0|Ab|0",
            "the row that no change named"
        );
        // Equal, though written otherwise: a source of another version may.
        let changes = Changes::new().delete(&e, &row("{\"a\": 1}", "1.000", "AB", "0"));
        assert_eq!(target.apply(changes.group(), PlanMode::Net).await.unwrap(), 1);
    });
}

#[test]
fn a_key_of_the_source_that_is_none_on_the_target() {
    on_each(
        "half_key",
        "CREATE TABLE h (id int4, v text); INSERT INTO h VALUES (1, 'a'), (2, 'b')",
        async |mut target| {
            let h = table("h", &["*id", "v"], Identity::Key);
            let changes = Changes::new()
                .update(&h, &["1".into(), "c".into()])
                .delete(&h, &["2".into(), Of::Absent]);
            assert_eq!(target.apply(changes.group(), PlanMode::Net).await.unwrap(), 2);
            assert_eq!(target.sql("SELECT * FROM h"), "1|c");
        },
    );
}

#[test]
fn a_citext_key_uses_its_own_equality_and_its_index() {
    let schema = "CREATE EXTENSION citext; CREATE TABLE c (k public.citext PRIMARY KEY, v text); \
                  INSERT INTO c SELECT 'K' || n, 'old' FROM generate_series(1, 5000) n; ANALYZE c";
    on_each("citext", schema, async |mut target| {
        let c = table("c", &["*k", "v"], Identity::Key);
        let mut changes = Changes::new();
        for n in 1..=10 {
            changes = changes.update(&c, &[(&format!("k{n}")).into(), "new".into()]);
        }
        assert_eq!(target.apply(changes.group(), PlanMode::Net).await.unwrap(), 10);
        // By the index: a scan of ours might be counted only after `before`.
        let count =
            "SET enable_seqscan = off; SELECT count(*) FROM c WHERE v = 'new' AND k >= ''::public.citext";
        assert_eq!(target.sql(count), "10");
        let scans =
            "SELECT pg_stat_clear_snapshot(); SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'c'";
        let before = target.sql(scans);
        let again = Changes::new()
            .delete(&c, &["K1".into(), Of::Absent])
            .delete(&c, &["k2".into(), Of::Absent]);
        assert_eq!(target.apply(again.group(), PlanMode::Net).await.unwrap(), 2);
        assert_eq!(target.sql(scans), before);
    });
}

/// A session of green that changes the same row at the same moment: the row is waited for. By its key it is there after
/// that; one of several that may be equal has to be looked for again, which the pipeline does (`tests/lifecycle` of
/// cdc-sync).
#[test]
fn a_row_that_somebody_else_changes_meanwhile_is_waited_for() {
    let schema = "CREATE TABLE k (id int PRIMARY KEY, v text, own int); CREATE TABLE f (id int, v text, own int); \
                  INSERT INTO k VALUES (1, 'a', 0); INSERT INTO f VALUES (1, 'a', 0)";
    on_each("meanwhile", schema, async |mut target| {
        let keyed = table("k", &["*id", "v"], Identity::Key);
        let full = table("f", &["id", "v"], Identity::Full);
        let (old, new): ([Of<'_>; 2], [Of<'_>; 2]) = (["1".into(), "a".into()], ["1".into(), "b".into()]);
        for (name, changes) in [
            ("k", Changes::new().update(&keyed, &new)),
            ("f", Changes::new().update_from(&full, &old, &new)),
            ("k", Changes::new().delete(&keyed, &["1".into(), Of::Absent])),
            ("f", Changes::new().delete(&full, &new)),
        ] {
            let url = target.cluster.url(&target.database);
            let green = testbed::postgres::connect(&url).await.unwrap();
            let update = format!("BEGIN; UPDATE {name} SET own = own + 1 WHERE id = 1");
            green.batch_execute(&update).await.unwrap();
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                           AND wait_event_type = 'Lock'";
            let (cluster, database) = (target.cluster, target.database.clone());
            let commits = async {
                let deadline = Instant::now() + Duration::from_secs(60);
                while cluster.sql(&database, waiting).unwrap() != "1" {
                    assert!(Instant::now() < deadline, "the row is not waited for");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                green.batch_execute("COMMIT").await.unwrap();
            };
            let group = changes.group();
            let (applied, ()) = tokio::join!(target.apply(group.clone(), PlanMode::Net), commits);
            if name == "k" {
                assert_eq!(applied.unwrap(), 1);
                continue;
            }
            // Whether the server finds it where it is now depends on its version.
            if let Err(error) = applied {
                assert_eq!((error.kind(), error.what_to_do()), (Kind::Conflict, Action::Stop));
                assert_eq!(target.apply(group, PlanMode::Ordered).await.unwrap(), 1);
            }
        }
        let left = "SELECT (SELECT count(*) FROM k) + (SELECT count(*) FROM f)";
        assert_eq!(target.sql(left), "0");
    });
}
