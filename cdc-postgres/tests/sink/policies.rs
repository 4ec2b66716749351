//! Conflicts that a policy decides: the documented winner on every key, a row in the log for each, and the numbers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_core::TableSchema;
use cdc_core::conflict::{Policy, VersionColumns};
use cdc_core::model::Identity;
use cdc_core::plan::{PlanMode, TxnGroup};
use cdc_core::sink::Applied;
use cdc_core::{Action, Error, Kind, Result};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use crate::changes::{Changes, Of, table};
use crate::on_each;
use crate::target::Target;

fn lww() -> Policy {
    Policy::Lww(VersionColumns {
        version: "ver".into(),
        node: None,
    })
}

/// The stream's content of `table` and its conflicts since the last call, each as one line.
fn state(target: &Target, table: &str) -> (String, String) {
    let rows = format!("SELECT coalesce(string_agg(t::text, ' ' ORDER BY id), '') FROM {table} t");
    let log = "WITH gone AS (DELETE FROM cdc_sync.conflict_log RETURNING *) SELECT coalesce(string_agg( \
               (key ->> 'id') || ' ' || kind || ' ' || winner || ' ' || state, ', ' ORDER BY (key ->> 'id')::int), '') FROM gone";
    (target.sql(&rows), target.sql(log))
}

async fn apply(target: &mut Target, group: TxnGroup, mode: PlanMode) -> Result<Applied> {
    let mut plan = target.plan(group, mode);
    plan.labels = vec![vec!["0/AB".into()]];
    target.sink.begin().await?;
    let applied = match target.sink.apply(&plan).await {
        Ok(applied) => applied,
        Err(error) => {
            target.sink.rollback().await?;
            return Err(error);
        }
    };
    target.commit().await?;
    Ok(applied)
}

/// What each kind of change meets on `t`, whose rows 1, 5 and 8 have version 5 and whose rows 2 and 6 have version 15.
fn changes(t: &Arc<TableSchema>) -> TxnGroup {
    let mut changes = Changes::new();
    for id in ["1", "2", "3"] {
        changes = changes.insert(t, &[id.into(), "blue".into(), "10".into()]);
    }
    for id in ["4", "5", "6"] {
        changes = changes.update(t, &[id.into(), "blue".into(), "10".into()]);
    }
    for id in ["7", "8"] {
        changes = changes.delete(t, &[id.into(), Of::Absent, Of::Absent]);
    }
    changes.group()
}

const SCHEMA: &str = "CREATE TABLE t (id int8 PRIMARY KEY, v text, ver int8)";
const FILL: &str = "TRUNCATE t; INSERT INTO t VALUES (1, 'green', 5), (2, 'green', 15), (5, 'green', 5), (6, 'green', 15), (8, 'green', 5)";

#[test]
fn every_policy_has_its_documented_winner() {
    let expected = [
        (
            Policy::BlueWins,
            "(1,blue,10) (2,blue,10) (3,blue,10) (4,blue,10) (5,blue,10) (6,blue,10)",
            "1 insert_exists blue settled, 2 insert_exists blue settled, 4 update_missing blue settled, \
             7 delete_missing both settled",
            (0, 0),
        ),
        (
            Policy::GreenWins,
            "(1,green,5) (2,green,15) (3,blue,10) (5,blue,10) (6,blue,10)",
            "1 insert_exists green settled, 2 insert_exists green settled, 4 update_missing green settled, \
             7 delete_missing both settled",
            (3, 0),
        ),
        (
            lww(),
            "(1,blue,10) (2,green,15) (3,blue,10) (4,blue,10) (5,blue,10) (6,green,15)",
            "1 insert_exists blue settled, 2 insert_exists green settled, 4 update_missing blue settled, \
             6 update_origin_differs green settled, 7 delete_missing both settled",
            (2, 0),
        ),
        (
            Policy::DeadLetter,
            "(1,green,5) (2,green,15) (3,blue,10) (5,blue,10) (6,blue,10)",
            "1 insert_exists none open, 2 insert_exists none open, 4 update_missing none open, \
             7 delete_missing none open",
            (0, 4),
        ),
    ];
    on_each("policies", SCHEMA, async |mut target| {
        let t = table("t", &["*id", "v", "ver"], Identity::Key);
        for (policy, rows, log, (superseded, dead_lettered)) in &expected {
            target.set_policy("t", policy).await;
            for mode in [PlanMode::Net, PlanMode::Ordered] {
                target.sql(FILL);
                let applied = apply(&mut target, changes(&t), mode).await.unwrap();
                assert_eq!(
                    state(&target, "t"),
                    ((*rows).into(), (*log).into()),
                    "{policy:?} {mode:?}"
                );
                assert_eq!(
                    (applied.superseded, applied.dead_lettered),
                    (*superseded, *dead_lettered),
                    "{policy:?} {mode:?}"
                );
            }
        }
    });
}

#[test]
fn equal_versions_are_decided_by_the_node() {
    let schema = "CREATE TABLE n (id int8 PRIMARY KEY, v text, ver int8, node text)";
    let fill = "TRUNCATE n; INSERT INTO n SELECT i, 'green', 5, 'b' FROM generate_series(1, 6) i";
    on_each("policy_nodes", schema, async |mut target| {
        let n = table("n", &["*id", "v", "ver", "node"], Identity::Key);
        let lww = Policy::Lww(VersionColumns {
            version: "ver".into(),
            node: Some("node".into()),
        });
        target.set_policy("n", &lww).await;
        let row = |id: &'static str, node: Of<'static>| [id.into(), "blue".into(), "5".into(), node];
        for mode in [PlanMode::Net, PlanMode::Ordered] {
            target.sql(fill);
            let mut changes = Changes::new();
            for (insert, update, node) in [("1", "4", "a"), ("2", "5", "b"), ("3", "6", "c")] {
                changes = changes
                    .insert(&n, &row(insert, node.into()))
                    .update(&n, &row(update, node.into()));
            }
            apply(&mut target, changes.group(), mode).await.unwrap();
            let (rows, log) = state(&target, "n");
            assert_eq!(
                rows, "(1,green,5,b) (2,blue,5,b) (3,blue,5,c) (4,green,5,b) (5,blue,5,b) (6,blue,5,c)",
                "{mode:?}"
            );
            assert_eq!(
                log,
                "1 insert_exists green settled, 2 insert_exists blue settled, 3 insert_exists blue settled, \
                 4 update_origin_differs green settled",
                "{mode:?}"
            );
            // A node that is not known decides nothing.
            target.sql(fill);
            for (changes, kind) in [
                (Changes::new().insert(&n, &row("1", Of::Null)), "insert_exists"),
                (
                    Changes::new().update(&n, &row("1", Of::Null)),
                    "update_origin_differs",
                ),
            ] {
                let error = apply(&mut target, changes.group(), mode).await.unwrap_err();
                undecided(&error, kind, "public.n (id=1)");
            }
        }
    });
}

#[test]
fn what_was_in_the_way_is_in_the_log() {
    on_each("policy_log", SCHEMA, async |mut target| {
        let t = table("t", &["*id", "v", "ver"], Identity::Key);
        target.set_policy("t", &Policy::DeadLetter).await;
        target.sql(FILL);
        apply(&mut target, changes(&t), PlanMode::Net).await.unwrap();
        let logged = "SELECT stream || ' ' || position || ' ' || schema_name || '.' || table_name || ' ' || op || ' ' || \
                      policy || ' ' || blue::text || ' ' || green::text FROM cdc_sync.conflict_log \
                      WHERE key ->> 'id' = '1'";
        assert_eq!(
            target.sql(logged),
            "job 0/AB public.t insert dead_letter {\"v\": \"blue\", \"id\": \"1\", \"ver\": \"10\"} \
             {\"v\": \"green\", \"id\": \"1\", \"ver\": \"5\"}"
        );
    });
}

#[test]
fn the_outcome_does_not_depend_on_what_is_grouped() {
    on_each("policy_groups", SCHEMA, async |mut target| {
        let t = table("t", &["*id", "v", "ver"], Identity::Key);
        let row = |id: &'static str, v: &'static str, ver: &'static str| -> [Of<'static>; 3] {
            [id.into(), v.into(), ver.into()]
        };
        let gone = [Of::from("2"), Of::Absent, Of::Absent];
        let parts = || {
            [
                Changes::new().insert(&t, &row("1", "a", "10")),
                Changes::new().update(&t, &row("1", "b", "11")),
                Changes::new().insert(&t, &row("2", "a", "10")),
                Changes::new().delete(&t, &gone),
                Changes::new().update_from(&t, &row("5", "green", "5"), &row("9", "moved", "12")),
                Changes::new().update(&t, &row("9", "again", "13")),
            ]
        };
        let whole = || {
            Changes::new()
                .insert(&t, &row("1", "a", "10"))
                .update(&t, &row("1", "b", "11"))
                .insert(&t, &row("2", "a", "10"))
                .delete(&t, &gone)
                .update_from(&t, &row("5", "green", "5"), &row("9", "moved", "12"))
                .update(&t, &row("9", "again", "13"))
        };
        for policy in [Policy::BlueWins, Policy::GreenWins, lww(), Policy::DeadLetter] {
            target.set_policy("t", &policy).await;
            target.sql(FILL);
            for part in parts() {
                apply(&mut target, part.group(), PlanMode::Net).await.unwrap();
            }
            let one_by_one = state(&target, "t");
            target.sql(FILL);
            apply(&mut target, whole().group(), PlanMode::Net).await.unwrap();
            assert_eq!(state(&target, "t"), one_by_one, "{policy:?}");
        }
    });
}

#[test]
fn rows_in_the_way_by_other_unique_keys() {
    let schema = "CREATE TABLE w (id int8 PRIMARY KEY, a text UNIQUE, b text UNIQUE, ver int8)";
    let fill = "TRUNCATE w; INSERT INTO w SELECT n, 'a' || n, 'b' || n, 5 FROM generate_series(1, 5) n";
    let before = "(1,a1,b1,5) (2,a2,b2,5) (3,a3,b3,5) (4,a4,b4,5) (5,a5,b5,5)";
    let kinds = |winner: &str, state: &str| {
        format!(
            "4 update_exists {winner} {state}, 10 insert_exists {winner} {state}, \
             11 multiple_unique_conflicts {winner} {state}"
        )
    };
    on_each("policy_unique", schema, async |mut target| {
        let w = table("w", &["*id", "a", "b", "ver"], Identity::Key);
        let group = || {
            Changes::new()
                .insert(&w, &["10".into(), "a1".into(), "x".into(), "9".into()])
                .insert(&w, &["11".into(), "a2".into(), "b3".into(), "9".into()])
                .update(&w, &["4".into(), "a5".into(), "b4".into(), "9".into()])
                .group()
        };
        for (policy, rows, log) in [
            (
                Policy::BlueWins,
                "(4,a5,b4,9) (10,a1,x,9) (11,a2,b3,9)",
                kinds("blue", "settled"),
            ),
            (Policy::GreenWins, before, kinds("green", "settled")),
            (Policy::DeadLetter, before, kinds("none", "open")),
        ] {
            target.set_policy("w", &policy).await;
            target.sql(fill);
            apply(&mut target, group(), PlanMode::Net).await.unwrap();
            assert_eq!(state(&target, "w"), (rows.into(), log), "{policy:?}");
        }
        target.set_policy("w", &lww()).await;
        target.sql(fill);
        let error = apply(&mut target, group(), PlanMode::Net).await.unwrap_err();
        undecided(&error, "insert_exists", "public.w (id=10)");
        assert_eq!(state(&target, "w"), (before.into(), String::new()));
    });
}

fn undecided(error: &Error, kind: &str, object: &str) {
    assert_eq!(
        (error.kind(), error.what_to_do()),
        (Kind::Conflict, Action::Stop),
        "{error}"
    );
    assert!(error.message().starts_with(kind), "{error}");
    assert_eq!(error.object_name(), Some(object));
    assert!(error.remedy_text().is_some());
}

#[test]
fn what_cannot_be_decided_stops() {
    on_each("policy_undecided", SCHEMA, async |mut target| {
        let t = table("t", &["*id", "v", "ver"], Identity::Key);
        target.sql(FILL);
        // A value that the change does not carry cannot be invented.
        for policy in [Policy::BlueWins, lww()] {
            target.set_policy("t", &policy).await;
            let update = Changes::new().update(&t, &["77".into(), Of::Unchanged, "10".into()]);
            let error = apply(&mut target, update.group(), PlanMode::Net)
                .await
                .unwrap_err();
            undecided(&error, "update_missing", "public.t (id=77)");
        }
        // Nor can a version that is not known be compared.
        let insert = Changes::new().insert(&t, &["1".into(), "blue".into(), Of::Null]);
        let error = apply(&mut target, insert.group(), PlanMode::Net)
            .await
            .unwrap_err();
        undecided(&error, "insert_exists", "public.t (id=1)");
        // Without a key there is no row that could win.
        target.sql("CREATE TABLE nokey (v text)");
        target.set_policy("nokey", &Policy::BlueWins).await;
        let nokey = table("nokey", &["v"], Identity::Full);
        let insert = Changes::new().insert(&nokey, &["x".into()]);
        let error = target.try_plan(insert.group()).unwrap_err();
        assert_eq!(error.kind(), Kind::Schema);
    });
}

#[test]
fn an_older_delete_leaves_the_newer_row() {
    on_each("policy_delete", SCHEMA, async |mut target| {
        // Only a full old image says which version was deleted.
        let t = table("t", &["id", "v", "ver"], Identity::Full);
        target.set_policy("t", &lww()).await;
        target.sql(FILL);
        let gone = |id: &'static str| -> [Of<'static>; 3] { [id.into(), "blue".into(), "10".into()] };
        let deletes = Changes::new().delete(&t, &gone("1")).delete(&t, &gone("2"));
        let applied = apply(&mut target, deletes.group(), PlanMode::Net).await.unwrap();
        assert_eq!(applied.superseded, 1);
        assert_eq!(
            state(&target, "t"),
            (
                "(2,green,15) (5,green,5) (6,green,15) (8,green,5)".into(),
                "2 delete_origin_differs green settled".into()
            )
        );
    });
}

/// Whether a row is newer is decided about the row that is written, also when that was waited for.
#[test]
fn a_row_that_becomes_newer_meanwhile_is_not_overwritten() {
    on_each("policy_race", SCHEMA, async |mut target| {
        let keyed = table("t", &["*id", "v", "ver"], Identity::Key);
        let full = table("t", &["id", "v", "ver"], Identity::Full);
        target.set_policy("t", &lww()).await;
        let row: [Of<'_>; 3] = ["1".into(), "blue".into(), "7".into()];
        for changes in [
            Changes::new().update(&keyed, &row),
            Changes::new().insert(&keyed, &row),
            Changes::new().delete(&full, &row),
        ] {
            target.sql(FILL);
            let url = target.cluster.url(&target.database);
            let green = testbed::postgres::connect(&url).await.unwrap();
            green
                .batch_execute("BEGIN; UPDATE t SET v = 'newer', ver = 10 WHERE id = 1")
                .await
                .unwrap();
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
            let (applied, ()) = tokio::join!(apply(&mut target, changes.group(), PlanMode::Net), commits);
            assert_eq!(applied.unwrap_err().what_to_do(), Action::Retry);
            assert_eq!(target.sql("SELECT t::text FROM t WHERE id = 1"), "(1,newer,10)");
        }
    });
}

/// What is not enforced, or not at once, or under another idea of equality, is in nobody's way.
#[test]
fn only_unique_keys_that_hold_are_in_the_way() {
    let schema = "CREATE TABLE w (id int8 PRIMARY KEY, a text UNIQUE DEFERRABLE INITIALLY DEFERRED, b text)";
    on_each("policy_keys", schema, async |mut target| {
        let w = table("w", &["*id", "a", "b"], Identity::Key);
        target.sql("INSERT INTO w VALUES (1, 'x', 'same'), (2, 'y', 'same')");
        let index = "CREATE UNIQUE INDEX CONCURRENTLY w_b ON w (b)";
        target.cluster.sql(&target.database, index).unwrap_err();
        target.set_policy("w", &Policy::BlueWins).await;
        let changes = Changes::new()
            .update(&w, &["1".into(), "y".into(), "same".into()])
            .update(&w, &["2".into(), "x".into(), "same".into()])
            .insert(&w, &["3".into(), "z".into(), "same".into()]);
        apply(&mut target, changes.group(), PlanMode::Net).await.unwrap();
        assert_eq!(
            state(&target, "w"),
            ("(1,y,same) (2,x,same) (3,z,same)".into(), String::new())
        );
    });
}

/// One change of a row: its key, and the version that also is its value, since no writer writes two rows of one version.
type Written = (String, String, [String; 2]);

fn upserts(t: &Arc<TableSchema>, rows: &[Written]) -> TxnGroup {
    let changes = rows.iter().fold(Changes::new(), |changes, (id, v, [ver, node])| {
        let row: [Of<'_>; 4] = [
            id.as_str().into(),
            v.as_str().into(),
            ver.as_str().into(),
            node.as_str().into(),
        ];
        changes.insert(t, &row)
    });
    changes.group()
}

/// Versions of rows `1` to `count`: few enough that most meet an equal, an older and a newer one.
fn drawn(runner: &mut TestRunner, count: usize) -> Vec<Written> {
    let version = (0..4_u8, "[ab]");
    let one = |id: usize| {
        let (ver, node) = version.new_tree(runner).unwrap().current();
        (id.to_string(), format!("{node}{ver}"), [ver.to_string(), node])
    };
    (1..=count).map(one).collect()
}

/// What makes two sides agree: the version and then the node decide, whoever is asked, in whatever order and however often
/// the changes come.
#[test]
fn versions_decide_alike_in_every_order_and_again() {
    let schema = "CREATE TABLE l (id int8 PRIMARY KEY, v text, ver int8 NOT NULL, node text NOT NULL)";
    on_each("policy_laws", schema, async |mut target| {
        let l = table("l", &["*id", "v", "ver", "node"], Identity::Key);
        let lww = Policy::Lww(VersionColumns {
            version: "ver".into(),
            node: Some("node".into()),
        });
        target.set_policy("l", &lww).await;
        let mut runner = TestRunner::deterministic();
        let count = if testbed::runs_long_tier() { 1_000 } else { 60 };
        let written: Vec<Vec<Written>> = (0..3).map(|_| drawn(&mut runner, count)).collect();
        let newest: Vec<String> = (0..count)
            .map(|row| {
                let of_row = written.iter().map(|rows| &rows[row]);
                let winner = of_row.max_by_key(|(_, _, version)| version.clone()).unwrap();
                let (id, v, [ver, node]) = winner;
                format!("({id},{v},{ver},{node})")
            })
            .collect();
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            target.sql("TRUNCATE l");
            for part in order.into_iter().chain([order[0], order[2]]) {
                apply(&mut target, upserts(&l, &written[part]), PlanMode::Net)
                    .await
                    .unwrap();
            }
            assert_eq!(state(&target, "l").0, newest.join(" "), "{order:?}");
        }
    });
}

/// What a trigger keeps back never arrives, however often it is tried; what others write meanwhile does.
#[test]
fn a_change_that_a_trigger_keeps_back_stops() {
    let keeps = "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
                 CREATE TRIGGER kept BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION keep(); \
                 ALTER TABLE t DISABLE TRIGGER kept";
    on_each("policy_kept_back", SCHEMA, async |mut target| {
        let t = table("t", &["*id", "v", "ver"], Identity::Key);
        target.sql(keeps);
        let row = |id: &'static str| -> [Of<'static>; 3] { [id.into(), "blue".into(), "20".into()] };
        for policy in [Policy::BlueWins, Policy::GreenWins, lww(), Policy::DeadLetter] {
            for changes in [
                Changes::new().update(&t, &row("5")),
                Changes::new().insert(&t, &row("9")),
                Changes::new().delete(&t, &[Of::from("5"), Of::Absent, Of::Absent]),
            ] {
                target.sql(&format!(
                    "ALTER TABLE t DISABLE TRIGGER kept; {FILL}; ALTER TABLE t ENABLE ALWAYS TRIGGER kept"
                ));
                target.set_policy("t", &policy).await;
                let error = apply(&mut target, changes.group(), PlanMode::Ordered)
                    .await
                    .unwrap_err();
                assert_eq!(
                    (error.kind(), error.what_to_do()),
                    (Kind::Data, Action::Stop),
                    "{policy:?}: {error}"
                );
                assert!(error.message().contains("trigger kept"), "{error}");
                let object = error.object_name().unwrap();
                assert!(
                    ["public.t (id=5)", "public.t (id=9)"].contains(&object),
                    "{error}"
                );
            }
        }
        // Where somebody else writes it is not known who it was.
        let url = target.cluster.url(&target.database);
        let green = testbed::postgres::connect(&url).await.unwrap();
        green
            .batch_execute("BEGIN; INSERT INTO t VALUES (30, 'green', 1)")
            .await
            .unwrap();
        let update = Changes::new().update(&t, &row("5"));
        let error = apply(&mut target, update.group(), PlanMode::Ordered)
            .await
            .unwrap_err();
        assert_eq!(error.what_to_do(), Action::Retry, "{error}");
        green.batch_execute("ROLLBACK").await.unwrap();
    });
}
