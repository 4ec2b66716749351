//! What the target refuses: named by kind, table, key and column, and the transaction usable after it.

use std::time::Duration;

use cdc_core::model::Identity;
use cdc_core::plan::{PlanMode, TxnGroup};
use cdc_core::{Action, Engine, Error, Kind};
use cdc_postgres::PgEngine;

use crate::changes::{Changes, Of, table};
use crate::on_each;
use crate::target::{STREAM, Target};

/// Applies `group`, which must fail, and then something right in the same transaction.
async fn refused(target: &mut Target, group: TxnGroup, mode: PlanMode) -> Error {
    let plan = target.plan(group, mode);
    target.sink.begin().await.unwrap();
    let error = target.sink.apply(&plan).await.unwrap_err();
    let after = table("after", &["*id"], Identity::Key);
    let next = Changes::new().insert(&after, &["1".into()]);
    let plan = target.plan(next.group(), PlanMode::Net);
    assert_eq!(target.sink.apply(&plan).await.unwrap().rows, 1);
    target.commit().await.unwrap();
    assert_eq!(
        target.sql("WITH d AS (DELETE FROM after RETURNING 1) SELECT count(*) FROM d"),
        "1"
    );
    error
}

const SCHEMA: &str = "CREATE TABLE after (id int PRIMARY KEY); \
    CREATE TABLE t (id int8 PRIMARY KEY, u text UNIQUE, v varchar(5), n int4 CHECK (n > 0)); \
    INSERT INTO t SELECT n, 'u' || n, 'v', 1 FROM generate_series(1, 10) n";
const COLUMNS: [&str; 4] = ["*id", "u", "v", "n"];

#[test]
fn missing_rows_are_conflicts() {
    on_each("missing", SCHEMA, async |mut target| {
        let t = table("t", &COLUMNS, Identity::Key);
        let content = target.sql("SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM t");
        for (mode, rows) in [(PlanMode::Net, 1), (PlanMode::Net, 9), (PlanMode::Ordered, 9)] {
            let (mut updates, mut deletes) = (Changes::new(), Changes::new());
            for n in 0..rows {
                // The last of them is not there.
                let id = if n == rows - 1 { 99 } else { n + 1 }.to_string();
                updates = updates.update(&t, &[(&id).into(), Of::Unchanged, "w".into(), Of::Unchanged]);
                deletes = deletes.delete(&t, &[(&id).into(), Of::Absent, Of::Absent, Of::Absent]);
            }
            for (changes, kind) in [(updates, "update_missing"), (deletes, "delete_missing")] {
                let error = refused(&mut target, changes.group(), mode).await;
                assert_eq!((error.kind(), error.what_to_do()), (Kind::Conflict, Action::Stop));
                assert!(error.message().starts_with(kind), "{error}");
                let object = if mode == PlanMode::Net && rows > 3 {
                    "public.t"
                } else {
                    "public.t (id=99)"
                };
                assert_eq!(error.object_name(), Some(object));
                assert_eq!(
                    target.sql("SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM t"),
                    content
                );
            }
        }
    });
}

#[test]
fn a_set_that_meets_a_unique_violation_is_to_be_planned_in_order() {
    on_each("unique", SCHEMA, async |mut target| {
        let t = table("t", &COLUMNS, Identity::Key);
        // u moves on by one key: right only from the last to the first, and back only from the first to the last. What
        // touched the rows before, in the other order, decides about the order of the set.
        let (mut changes, mut back) = (Changes::new(), Changes::new());
        for n in 1..=9 {
            let (last, id) = ((10 - n).to_string(), n.to_string());
            changes = changes.update(&t, &[(&id).into(), Of::Unchanged, "w".into(), Of::Unchanged]);
            back = back.update(&t, &[(&last).into(), Of::Unchanged, "x".into(), Of::Unchanged]);
        }
        for n in 1..=9 {
            let (last, id) = ((10 - n).to_string(), n.to_string());
            let (next, own) = (format!("u{}", if n == 1 { 100 } else { 11 - n }), format!("u{n}"));
            changes = changes.update(
                &t,
                &[(&last).into(), (&next).into(), Of::Unchanged, Of::Unchanged],
            );
            back = back.update(&t, &[(&id).into(), (&own).into(), Of::Unchanged, Of::Unchanged]);
        }
        for group in [changes.group(), back.group()] {
            let error = refused(&mut target, group.clone(), PlanMode::Net).await;
            assert_eq!(
                (error.kind(), error.what_to_do()),
                (Kind::Conflict, Action::Conflict),
                "{error:?}"
            );
            assert_eq!(
                (error.server_code(), error.object_name()),
                (Some("23505"), Some("public.t"))
            );
            target.apply(group, PlanMode::Ordered).await.unwrap();
        }
        assert_eq!(target.sql("SELECT count(*) FROM t WHERE u = 'u' || id"), "10");
        // By COPY, and as single statements.
        for rows in [10, 1] {
            let mut inserts = Changes::new();
            for n in 10..10 + rows {
                let id = n.to_string();
                inserts = inserts.insert(&t, &[(&id).into(), Of::Null, Of::Null, Of::Null]);
            }
            let error = refused(&mut target, inserts.group(), PlanMode::Net).await;
            assert_eq!(
                (error.what_to_do(), error.object_name()),
                (Action::Conflict, Some("public.t")),
                "{rows} rows"
            );
        }
    });
}

#[test]
fn a_row_that_exists_is_named() {
    on_each("exists", SCHEMA, async |mut target| {
        let t = table("t", &COLUMNS, Identity::Key);
        let insert = Changes::new().insert(&t, &["3".into(), "x".into(), Of::Null, Of::Null]);
        let error = refused(&mut target, insert.group(), PlanMode::Ordered).await;
        assert_eq!((error.kind(), error.what_to_do()), (Kind::Conflict, Action::Stop));
        assert!(error.message().starts_with("insert_exists"), "{error}");
        assert!(error.message().contains("t_pkey"), "{error}");
        assert_eq!(error.object_name(), Some("public.t (id=3)"));
        let update = Changes::new().update(&t, &["3".into(), "u4".into(), Of::Unchanged, Of::Unchanged]);
        let error = refused(&mut target, update.group(), PlanMode::Ordered).await;
        assert!(error.message().starts_with("update_exists"), "{error}");
        assert!(error.message().contains("(u)=(u4)"), "{error}");
    });
}

#[test]
fn refused_values_are_named_but_not_quoted() {
    on_each("refused", SCHEMA, async |mut target| {
        let t = table("t", &COLUMNS, Identity::Key);
        let cases: [(&str, [Of<'_>; 4], &str); 5] = [
            (
                "too long",
                ["11".into(), "u11".into(), "secret".into(), "1".into()],
                "22001",
            ),
            (
                "no number",
                ["11".into(), "u11".into(), "v".into(), "secret".into()],
                "22P02",
            ),
            (
                "out of range",
                ["11".into(), "u11".into(), "v".into(), "99999999999".into()],
                "22003",
            ),
            (
                "check",
                ["11".into(), "u11".into(), "v".into(), "-1".into()],
                "23514",
            ),
            ("null", [Of::Null, "u11".into(), "v".into(), "1".into()], "23502"),
        ];
        for (what, cells, code) in cases {
            for (mode, rows) in [(PlanMode::Net, 1), (PlanMode::Net, 7), (PlanMode::Ordered, 7)] {
                let mut changes = Changes::new();
                for n in 1..rows {
                    let (id, u) = ((20 + n).to_string(), format!("u{}", 20 + n));
                    changes = changes.insert(&t, &[(&id).into(), (&u).into(), Of::Null, Of::Null]);
                }
                let error = refused(&mut target, changes.insert(&t, &cells).group(), mode).await;
                assert_eq!(
                    (error.kind(), error.what_to_do()),
                    (Kind::Data, Action::Stop),
                    "{what}: {error:?}"
                );
                assert_eq!(error.server_code(), Some(code));
                assert!(
                    error.object_name().unwrap().starts_with("public.t"),
                    "{what}: {error:?}"
                );
                let shown = format!("{error:?}");
                assert!(
                    !shown.contains("secret") && !shown.contains("99999999999"),
                    "{shown}"
                );
                let names_column = error.message().contains("column n: ");
                let can_name = mode == PlanMode::Ordered && target.cluster.major() >= 14;
                assert_eq!(
                    names_column,
                    ["22P02", "22003"].contains(&code) && can_name,
                    "{error:?}"
                );
            }
            // Longer than an UPDATE by set may cut it.
            let mut changes = Changes::new();
            for n in 1..=5 {
                changes = changes.update(
                    &t,
                    &[
                        (&n.to_string()).into(),
                        Of::Unchanged,
                        "secret".into(),
                        Of::Unchanged,
                    ],
                );
            }
            let error = refused(&mut target, changes.group(), PlanMode::Net).await;
            assert_eq!(error.server_code(), Some("22001"));
        }
    });
}

#[test]
fn deadlocks_are_for_another_try_and_a_full_disk_is_waited_for() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text); \
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
        RAISE EXCEPTION 'as asked' USING ERRCODE = NEW.v; END $$; \
        CREATE TRIGGER fail BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION fail(); \
        ALTER TABLE t ENABLE ALWAYS TRIGGER fail";
    on_each("sqlstates", schema, async |mut target| {
        assert!(target.facts("t").order_visible);
        let t = table("t", &["*id", "v"], Identity::Key);
        for (code, kind, action) in [
            ("40P01", Kind::Resource, Action::Retry),
            ("40001", Kind::Resource, Action::Retry),
            ("53100", Kind::Resource, Action::Wait),
            ("25006", Kind::Resource, Action::Wait),
            ("23503", Kind::Data, Action::Stop),
            ("P0001", Kind::Data, Action::Stop),
            ("42883", Kind::Schema, Action::Stop),
        ] {
            let group = Changes::new().insert(&t, &["1".into(), code.into()]).group();
            let error = target.apply(group, PlanMode::Net).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.what_to_do()),
                (kind, action),
                "{code}: {error:?}"
            );
        }
    });
}

/// `run` does not look for it before: a policy that hides rows must fail what it would cut short.
#[test]
fn rows_that_the_role_may_not_see_are_refused_and_not_missed() {
    let schema = "CREATE ROLE half_blind LOGIN; \
        CREATE TABLE h (id int PRIMARY KEY, v text); INSERT INTO h SELECT n, 'green' FROM generate_series(1, 5) n; \
        ALTER TABLE h ENABLE ROW LEVEL SECURITY; CREATE POLICY low ON h USING (id < 3) WITH CHECK (true); \
        GRANT SELECT, INSERT, UPDATE, DELETE ON h TO half_blind";
    on_each("row_security", schema, async |mut target| {
        target.sql(
            "GRANT USAGE ON SCHEMA cdc_sync TO half_blind; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA cdc_sync TO half_blind",
        );
        let url = target
            .cluster
            .url(&target.database)
            .replace("postgres@", "half_blind@");
        let site = PgEngine.connect(&url, Duration::from_secs(60)).await.unwrap();
        target.sink = site.sink(STREAM, target.fence.epoch()).await.unwrap();
        let h = table("h", &["*id", "v"], Identity::Key);
        let content = target.sql("SELECT string_agg(h::text, ' ' ORDER BY id) FROM h");
        let inserts = |count: usize| {
            (0..count).fold(Changes::new(), |changes, n| {
                changes.insert(&h, &[(&(100 + n).to_string()).into(), "blue".into()])
            })
        };
        let changes = || {
            [
                Changes::new().update(&h, &["5".into(), "blue".into()]),
                Changes::new().delete(&h, &["5".into(), Of::Absent]),
                inserts(1),
                // By COPY.
                inserts(100),
            ]
        };
        for mode in [PlanMode::Net, PlanMode::Ordered] {
            for changes in changes() {
                let error = target.apply(changes.group(), mode).await.unwrap_err();
                assert_eq!(error.kind(), Kind::Permission, "{mode:?}: {error:?}");
                let named = error.to_string().contains("\"h\"")
                    || error.object_name().is_some_and(|name| name.contains("public.h"));
                assert!(named, "{mode:?}: {error:?}");
                let now = target.sql("SELECT string_agg(h::text, ' ' ORDER BY id) FROM h");
                assert_eq!(now, content, "{mode:?}");
            }
        }
    });
}
