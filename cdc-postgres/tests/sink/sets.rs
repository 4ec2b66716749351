//! Every operation as net sets and as ordered statements: the same effect.

use cdc_core::model::{Identity, TxnKind};
use cdc_core::plan::{PlanMode, Step};

use crate::changes::{Changes, Of, table};
use crate::on_each;

const KEYED: &str = "CREATE TABLE t (id int8 PRIMARY KEY, a int4, b text)";

/// Inserts, updates and deletes of `rows` keys each, in ranges of their own.
fn mixed(rows: usize) -> Changes {
    let t = table("t", &["*id", "a", "b"], Identity::Key);
    let mut changes = Changes::new();
    for n in 0..rows {
        let (id, a) = (n.to_string(), (n * 2).to_string());
        changes = changes.insert(&t, &[(&id).into(), (&a).into(), "new".into()]);
        let id = (10_000_000 + n).to_string();
        changes = changes.update(&t, &[(&id).into(), (&a).into(), Of::Unchanged]);
        let id = (20_000_000 + n).to_string();
        changes = changes.update(&t, &[(&id).into(), Of::Null, "x\\N\t'\"{}".into()]);
        let id = (30_000_000 + n).to_string();
        changes = changes.delete(&t, &[(&id).into(), Of::Absent, Of::Absent]);
        let (old, new) = ((40_000_000 + n).to_string(), (50_000_000 + n).to_string());
        changes = changes.update_from(
            &t,
            &[(&old).into(), Of::Absent, Of::Absent],
            &[(&new).into(), "7".into(), "moved".into()],
        );
    }
    changes
}

const SUMMARY: &str =
    "SELECT id / 10000000, count(*), count(a), sum(a), min(b), max(b) FROM t GROUP BY 1 ORDER BY 1";

fn all_operations(name: &str, mode: PlanMode, sizes: &[usize]) {
    on_each(name, KEYED, async |mut target| {
        for rows in sizes {
            target.sql("TRUNCATE t");
            for range in [1, 2, 3, 4] {
                target.sql(&format!(
                    "INSERT INTO t SELECT {range}0000000 + n, 1, 'old' FROM generate_series(0, {rows} - 1) n"
                ));
            }
            let applied = target.apply(mixed(*rows).group(), mode).await.unwrap();
            let operations = if mode == PlanMode::Net { 6 } else { 5 };
            assert_eq!(applied, (rows * operations) as u64);
            let sum = rows * (rows - 1);
            let moved = 7 * rows;
            assert_eq!(
                target.sql(SUMMARY),
                format!(
                    "0|{rows}|{rows}|{sum}|new|new\n1|{rows}|{rows}|{sum}|old|old\n\
                     2|{rows}|0||x\\N\t'\"{{}}|x\\N\t'\"{{}}\n5|{rows}|{rows}|{moved}|moved|moved"
                ),
                "{rows} rows, {mode:?}"
            );
        }
    });
}

#[test]
fn all_operations_as_net_sets() {
    // Below and above where sets and COPY begin; more than a statement takes.
    all_operations("net_sets", PlanMode::Net, &[1, 3, 4, 5, 12_345]);
}

#[test]
fn all_operations_in_order() {
    all_operations("ordered", PlanMode::Ordered, &[1, 3, 2_000]);
}

#[test]
fn large_values_are_split_over_statements() {
    on_each("large", KEYED, async |mut target| {
        let t = table("t", &["*id", "a", "b"], Identity::Key);
        let large = "x".repeat(3 << 20);
        let mut changes = Changes::new();
        for n in 0..8 {
            changes = changes.insert(&t, &[(&n.to_string()).into(), "1".into(), (&large).into()]);
        }
        target.apply(changes.group(), PlanMode::Net).await.unwrap();
        let larger = "y".repeat(5 << 20);
        let mut changes = Changes::new();
        for n in 0..8 {
            changes = changes.update(&t, &[(&n.to_string()).into(), "2".into(), (&larger).into()]);
        }
        assert_eq!(target.apply(changes.group(), PlanMode::Net).await.unwrap(), 8);
        assert_eq!(
            target.sql("SELECT count(*), min(length(b)), max(left(b, 1)) FROM t"),
            "8|5242880|y"
        );
    });
}

#[test]
fn large_and_small_rows_arrive_together() {
    on_each("mixed_sizes", KEYED, async |mut target| {
        let t = table("t", &["*id", "a", "b"], Identity::Key);
        let values = ["small\t\\".to_owned(), "large\n".repeat(5_000)];
        // Whatever the first, the last and the one in the middle say of the others.
        for large in [&[0, 3, 6][..], &[1, 2, 4, 5], &[], &[0, 1, 2, 3, 4, 5, 6]] {
            target.sql("TRUNCATE t");
            let mut changes = Changes::new();
            for n in 0..7 {
                let value = &values[usize::from(large.contains(&n))];
                changes = changes.insert(&t, &[(&n.to_string()).into(), Of::Null, value.into()]);
            }
            assert_eq!(target.apply(changes.group(), PlanMode::Net).await.unwrap(), 7);
            let sums = "SELECT count(*), count(a), count(*) FILTER (WHERE b = repeat(E'large\\n', 5000)), \
                        count(*) FILTER (WHERE b = E'small\\t\\\\') FROM t";
            assert_eq!(
                target.sql(sums),
                format!("7|0|{}|{}", large.len(), 7 - large.len())
            );
        }
    });
}

#[test]
fn net_windows_upsert_and_delete_what_may_be_missing() {
    on_each("window", KEYED, async |mut target| {
        let t = table("t", &["*id", "a", "b"], Identity::Key);
        for mode in [PlanMode::Net, PlanMode::Ordered] {
            for rows in [1, 10] {
                target.sql("TRUNCATE t; INSERT INTO t SELECT n, 1, 'old' FROM generate_series(0, 4) n");
                let mut changes = Changes::of_kind(TxnKind::NetWindow);
                for n in 0..rows {
                    let id = n.to_string();
                    changes = changes.upsert(&t, &[(&id).into(), Of::Null, "up".into()]);
                    let gone = (100 + n).to_string();
                    changes = changes.delete(&t, &[(&gone).into(), Of::Absent, Of::Absent]);
                }
                target.apply(changes.group(), mode).await.unwrap();
                let expected = format!("{rows}|0\n");
                let up = target.sql("SELECT count(*), count(a) FROM t WHERE b = 'up'");
                assert_eq!(up + "\n", expected, "{mode:?}");
            }
        }
    });
}

/// A net change of nothing is none; in order the row is touched.
#[test]
fn an_update_of_nothing_is_no_net_change() {
    on_each("nothing", KEYED, async |mut target| {
        let t = table("t", &["*id", "a", "b"], Identity::Key);
        target.sql("INSERT INTO t VALUES (1, 7, 'here')");
        let changes = || Changes::new().update(&t, &["1".into(), Of::Unchanged, Of::Unchanged]);
        for (mode, rows) in [(PlanMode::Net, 0), (PlanMode::Ordered, 1)] {
            assert_eq!(target.apply(changes().group(), mode).await.unwrap(), rows);
        }
        assert_eq!(target.sql("TABLE t"), "1|7|here");
    });
}

#[test]
fn identity_and_generated_columns() {
    let schema = "CREATE TABLE t (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int4, b text, \
                  c int8 GENERATED ALWAYS AS (a * 2) STORED); \
                  CREATE TABLE u (k text PRIMARY KEY, n int8 GENERATED ALWAYS AS IDENTITY, v text, extra text DEFAULT 'kept')";
    on_each("identities", schema, async |mut target| {
        let t = table("t", &["*id", "a", "b"], Identity::Key);
        let u = table("u", &["*k", "n", "v"], Identity::Key);
        for (mode, rows) in [(PlanMode::Net, 2), (PlanMode::Net, 6), (PlanMode::Ordered, 6)] {
            target.sql("TRUNCATE t, u");
            let mut changes = Changes::new();
            for n in 0..rows {
                let id = (1000 + n).to_string();
                changes = changes.insert(&t, &[(&id).into(), "1".into(), "t".into()]);
                changes = changes.insert(&u, &[(&id).into(), (&id).into(), "u".into()]);
            }
            target.apply(changes.group(), mode).await.unwrap();
            assert_eq!(
                target.sql("SELECT count(*), min(id), sum(c) FROM t"),
                format!("{rows}|1000|{}", rows * 2)
            );
            let mut changes = Changes::new();
            for n in 0..rows {
                let (id, moved) = ((1000 + n).to_string(), (2000 + n).to_string());
                changes = changes.update_from(
                    &t,
                    &[(&id).into(), Of::Absent, Of::Absent],
                    &[(&moved).into(), "5".into(), Of::Unchanged],
                );
                changes = changes.update(&u, &[(&id).into(), (&id).into(), "same".into()]);
            }
            let applied = target.apply(changes.group(), mode).await;
            // What the source did not send cannot be inserted: the planner leaves such a key change to order.
            applied.unwrap();
            assert_eq!(
                target.sql("SELECT count(*), min(id), sum(c), min(b) FROM t"),
                format!("{rows}|2000|{}|t", rows * 10)
            );
            assert_eq!(
                target.sql("SELECT count(*), min(n), min(v), min(extra) FROM u"),
                format!("{rows}|1000|same|kept")
            );
            // An identity column that changes, and is not part of the key.
            let mut changes = Changes::new();
            for n in 0..rows {
                let (id, moved) = ((1000 + n).to_string(), (3000 + n).to_string());
                changes = changes.update(&u, &[(&id).into(), (&moved).into(), Of::Unchanged]);
            }
            let group = changes.group();
            if target.apply(group.clone(), mode).await.is_err() {
                assert_eq!(mode, PlanMode::Net);
                target.apply(group, PlanMode::Ordered).await.unwrap();
            }
            assert_eq!(
                target.sql("SELECT count(*), min(n), min(v), min(extra) FROM u"),
                format!("{rows}|3000|same|kept")
            );
        }
    });
}

#[test]
fn truncate_restarts_and_refuses_what_others_refer_to() {
    let schema = "CREATE TABLE t (id serial PRIMARY KEY); CREATE TABLE parent (id int PRIMARY KEY); \
                  CREATE TABLE child (id int REFERENCES parent); \
                  INSERT INTO t SELECT FROM generate_series(1, 3); INSERT INTO parent VALUES (1)";
    on_each("truncating", schema, async |mut target| {
        let t = table("t", &["*id"], Identity::Key);
        let (parent, child) = (
            table("parent", &["*id"], Identity::Key),
            table("child", &["id"], Identity::Nothing),
        );
        let changes = Changes::new().truncate(&[&t], true).insert(&t, &["1".into()]);
        target.apply(changes.group(), PlanMode::Net).await.unwrap();
        assert_eq!(target.sql("SELECT count(*), nextval('t_id_seq') FROM t"), "1|1");
        let error = target
            .apply(Changes::new().truncate(&[&parent], false).group(), PlanMode::Net)
            .await
            .unwrap_err();
        assert_eq!(error.object_name(), Some("public.parent"));
        assert!(error.message().contains("child"), "{error}");
        let both = Changes::new().truncate(&[&parent, &child], false);
        let plan = target.plan(both.group(), PlanMode::Net);
        assert!(matches!(plan.steps.as_slice(), [Step::Truncate { .. }]));
        target.apply_plan(&plan).await.unwrap();
        assert_eq!(target.sql("SELECT count(*) FROM parent"), "0");
    });
}
