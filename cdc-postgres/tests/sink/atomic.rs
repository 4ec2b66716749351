//! A plan takes place as a whole or not at all, and what came before it in the transaction stays.

use cdc_core::model::Identity;
use cdc_core::plan::PlanMode;
use cdc_core::{Action, CommitOutcome, Kind};

use crate::changes::{Changes, Of, table};
use crate::durable::until;
use crate::on_each;
use crate::target::checkpoint;

const SCHEMA: &str = "CREATE TABLE t (id int8 PRIMARY KEY, v text)";

#[test]
fn a_later_plan_that_fails_takes_nothing_with_it() {
    on_each("savepoints", SCHEMA, async |mut target| {
        let t = table("t", &["*id", "v"], Identity::Key);
        let insert = |ids: std::ops::Range<i32>| {
            let mut changes = Changes::new();
            for id in ids {
                changes = changes.insert(&t, &[(&id.to_string()).into(), "x".into()]);
            }
            changes.group()
        };
        target.sink.begin().await.unwrap();
        for (ids, right) in [
            (0..10, true),
            (5..15, false),
            (9..10, false),
            (10..12, true),
            (11..20, false),
            (20..21, true),
        ] {
            let plan = target.plan(insert(ids), PlanMode::Net);
            let applied = target.sink.apply(&plan).await;
            assert_eq!(applied.is_ok(), right);
            if let Err(error) = applied {
                assert_eq!(error.what_to_do(), Action::Conflict);
            }
        }
        assert_eq!(target.sql("SELECT count(*) FROM t"), "0");
        target.commit().await.unwrap();
        assert_eq!(target.sql("SELECT count(*), max(id) FROM t"), "13|20");
        // A step that is right before one that is not, in one plan.
        target.sink.begin().await.unwrap();
        let both = Changes::new()
            .insert(&t, &["100".into(), Of::Null])
            .truncate(&[&t], false)
            .insert(&t, &["101".into(), Of::Null])
            .delete(&t, &["102".into(), Of::Absent]);
        let plan = target.plan(both.group(), PlanMode::Net);
        assert_eq!(target.sink.apply(&plan).await.unwrap_err().kind(), Kind::Conflict);
        target.sink.rollback().await.unwrap();
        assert_eq!(target.sql("SELECT count(*), max(id) FROM t"), "13|20");
    });
}

#[test]
fn a_plan_that_cannot_be_made_ready_takes_nothing_with_it() {
    let schema = "CREATE TABLE t (id int8 PRIMARY KEY, v text); CREATE TABLE u (id int8 PRIMARY KEY, v text)";
    on_each("unready", schema, async |mut target| {
        let [t, u] = ["t", "u"].map(|name| table(name, &["*id", "v"], Identity::Key));
        let plans = [("1", &t), ("2", &t), ("3", &u), ("4", &t)].map(|(id, table)| {
            let group = Changes::new().insert(table, &[id.into(), "x".into()]).group();
            target.plan(group, PlanMode::Net)
        });
        target.sql("ALTER TABLE u DROP COLUMN v");
        target.sink.begin().await.unwrap();
        for (plan, right) in plans.iter().zip([true, true, false, true]) {
            let applied = target.sink.apply(plan).await;
            assert_eq!(applied.is_ok(), right, "{applied:?}");
            if let Err(error) = applied {
                assert_eq!((error.kind(), error.what_to_do()), (Kind::Schema, Action::Stop));
            }
        }
        target.commit().await.unwrap();
        assert_eq!(
            target.sql("SELECT string_agg(id::text, ' ' ORDER BY id) FROM t"),
            "1 2 4"
        );
    });
}

#[test]
fn a_transaction_that_is_rolled_back_leaves_the_sink_usable() {
    on_each("rolled_back", SCHEMA, async |mut target| {
        let t = table("t", &["*id", "v"], Identity::Key);
        let group = Changes::new().insert(&t, &["1".into(), Of::Null]).group();
        target.sink.rollback().await.unwrap();
        for _ in 0..2 {
            target.sink.begin().await.unwrap();
            target.sink.rollback().await.unwrap();
            target.sink.begin().await.unwrap();
            let plan = target.plan(group.clone(), PlanMode::Net);
            target.sink.apply(&plan).await.unwrap();
            target.sink.rollback().await.unwrap();
        }
        assert_eq!(target.sql("SELECT count(*) FROM t"), "0");
        target.apply(group, PlanMode::Net).await.unwrap();
        // A checkpoint alone: an idle position.
        target.sink.begin().await.unwrap();
        target.commit().await.unwrap();
        assert_eq!(target.sql("SELECT count(*) FROM cdc_sync.checkpoint"), "1");
    });
}

#[test]
fn a_checkpoint_that_does_not_follow_the_stored_one_is_refused() {
    on_each("checkpoints", SCHEMA, async |mut target| {
        let t = table("t", &["*id", "v"], Identity::Key);
        for groups in [0, 2, 7] {
            target.sink.begin().await.unwrap();
            let plan = target.plan(
                Changes::new().insert(&t, &["1".into(), Of::Null]).group(),
                PlanMode::Net,
            );
            target.sink.apply(&plan).await.unwrap();
            let error = target.sink.commit(&checkpoint(groups)).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.what_to_do()),
                (Kind::Fenced, Action::Stop),
                "{error:?}"
            );
        }
        target.sql("DELETE FROM cdc_sync.checkpoint");
        target.sink.begin().await.unwrap();
        assert_eq!(
            target.sink.commit(&checkpoint(1)).await.unwrap_err().kind(),
            Kind::Fenced
        );
        assert_eq!(target.sql("SELECT count(*) FROM t"), "0");
    });
}

/// A commit that runs for a while, so that the session can be ended in it.
const SLOW_COMMIT: &str = "CREATE TABLE t (id int8 PRIMARY KEY, v text); \
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(600); RETURN NULL; END $$; \
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED \
    FOR EACH ROW EXECUTE FUNCTION slow(); ALTER TABLE t ENABLE ALWAYS TRIGGER slow";
/// Ends the session that is in its COMMIT; waits for it to come there.
const END_COMMIT: &str = "DO $$ BEGIN FOR i IN 1..600 LOOP \
    PERFORM pg_stat_clear_snapshot(); \
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity \
        WHERE datname = current_database() AND query = 'COMMIT' AND wait_event = 'PgSleep'; \
    IF FOUND THEN RETURN; END IF; PERFORM pg_sleep(0.1); END LOOP; RAISE EXCEPTION 'nobody commits'; END $$";

#[test]
fn a_commit_whose_answer_is_lost_is_unknown() {
    on_each("lost", SLOW_COMMIT, async |mut target| {
        let t = table("t", &["*id", "v"], Identity::Key);
        target.sink.begin().await.unwrap();
        let plan = target.plan(
            Changes::new().insert(&t, &["1".into(), Of::Null]).group(),
            PlanMode::Net,
        );
        target.sink.apply(&plan).await.unwrap();
        let (cluster, database) = (target.cluster, target.database.clone());
        let ender = std::thread::spawn(move || cluster.sql(&database, END_COMMIT).unwrap());
        assert_eq!(
            target.sink.commit(&checkpoint(1)).await.unwrap(),
            CommitOutcome::Unknown
        );
        ender.join().unwrap();
        // A new session of the same sink goes on from what the checkpoint says.
        assert_eq!(
            target.site.stream_state("job").await.unwrap().checkpoint,
            Some(checkpoint(0))
        );
        target.sink.begin().await.unwrap();
        target.commit().await.unwrap();
    });
}

#[test]
fn a_connection_that_is_lost_before_the_commit_is_an_error() {
    on_each("cut", SCHEMA, async |mut target| {
        let t = table("t", &["*id", "v"], Identity::Key);
        let plan = target.plan(
            Changes::new().insert(&t, &["1".into(), Of::Null]).group(),
            PlanMode::Net,
        );
        target.sink.begin().await.unwrap();
        target.sink.apply(&plan).await.unwrap();
        target.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND state = 'idle in transaction'",
        );
        let error = target.sink.apply(&plan).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.what_to_do()),
            (Kind::Unreachable, Action::Reconnect),
            "{error:?}"
        );
        target.sink.rollback().await.unwrap();
        target.sink.begin().await.unwrap();
        target.sink.apply(&plan).await.unwrap();
        target.commit().await.unwrap();
        assert_eq!(target.sql("SELECT count(*) FROM t"), "1");
    });
}

#[test]
fn a_plan_that_was_dropped_halfway_can_be_rolled_back() {
    on_each("dropped", SCHEMA, async |mut target| {
        let t = table("t", &["*id", "v"], Identity::Key);
        let large = "x".repeat(1 << 20);
        let mut changes = Changes::new();
        for id in 0..64 {
            changes = changes.insert(&t, &[(&id.to_string()).into(), (&large).into()]);
        }
        let plan = target.plan(changes.group(), PlanMode::Net);
        for polls in [0, 1, 2, 5, 9] {
            target.sink.begin().await.unwrap();
            {
                let mut applying = target.sink.apply(&plan);
                for _ in 0..polls {
                    let polled =
                        std::future::poll_fn(|cx| std::task::Poll::Ready(applying.as_mut().poll(cx))).await;
                    if polled.is_ready() {
                        break;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            }
            target.sink.rollback().await.unwrap();
            assert_eq!(target.sql("SELECT count(*) FROM t"), "0");
        }
        assert_eq!(target.apply_plan(&plan).await.unwrap(), 64);
    });
}

/// What is dropped while the server works on it is ended there, and nothing of it is in the next transaction.
#[test]
fn an_abandoned_transaction_is_ended_wherever_it_was() {
    on_each("abandoned", SCHEMA, async |mut target| {
        let t = table("t", &["*id", "v"], Identity::Key);
        let mut plan = |id: &str| {
            let group = Changes::new().insert(&t, &[id.into(), "v".into()]).group();
            target.plan(group, PlanMode::Net)
        };
        let (dropped, kept, in_the_way) = (plan("1"), plan("2"), plan("3"));
        let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 't'::regclass AND NOT granted)";
        let database = target.database.clone();
        let waits = || target.cluster.sql(&database, waits).unwrap() == "t";
        let other = testbed::postgres::connect(&target.cluster.url(&database))
            .await
            .unwrap();

        other.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
        target.sink.begin().await.unwrap();
        tokio::select! {
            applied = target.sink.apply(&dropped) => panic!("the table is locked: {applied:?}"),
            () = until("an apply that waits", waits) => {}
        }
        target.sink.abandon().await.unwrap();
        assert!(!waits(), "it still waits on the server");
        other.batch_execute("COMMIT").await.unwrap();
        assert_eq!(target.apply_plan(&kept).await.unwrap(), 1);
        assert_eq!(target.sql("SELECT id FROM t"), "2");

        target.sink.begin().await.unwrap();
        assert!(!target.sink.is_in_the_way().await.unwrap(), "it holds nothing");
        target.sink.apply(&in_the_way).await.unwrap();
        assert!(!target.sink.is_in_the_way().await.unwrap(), "nobody waits");
        let (locked, ()) = tokio::join!(other.batch_execute("BEGIN; LOCK TABLE t; COMMIT"), async {
            until("a session that waits", waits).await;
            assert!(target.sink.is_in_the_way().await.unwrap(), "somebody waits");
            target.sink.abandon().await.unwrap();
        });
        locked.unwrap();
        assert_eq!(target.sql("SELECT id FROM t"), "2");
    });
}
