//! Groups that go to the target together with their COMMIT.

use std::time::{Duration, Instant};

use cdc_core::model::Identity;
use cdc_core::plan::{PlanMode, TxnGroup};
use cdc_core::{Action, CommitOutcome, Engine, Kind};
use cdc_postgres::PgEngine;
use testbed::Proxy;
use testbed::proxy::{Act, Aim, Direction, Place};

use crate::changes::{Changes, Of, table};
use crate::durable::until;
use crate::on_each;
use crate::target::{STREAM, Target, checkpoint};

const SCHEMA: &str = "CREATE TABLE t (id int8 PRIMARY KEY, v text, u int4 UNIQUE)";

/// What became of a group, and the groups of the checkpoint that is stored then.
async fn at_once(
    target: &mut Target,
    group: TxnGroup,
    mode: PlanMode,
    groups: u64,
) -> (Option<CommitOutcome>, u64) {
    let plan = target.plan(group, mode);
    let outcome = target.sink.apply_at_once(&plan, &checkpoint(groups), true).await;
    let state = target.site.stream_state(STREAM).await.unwrap();
    (outcome.unwrap(), state.checkpoint.unwrap().groups)
}

#[test]
fn every_operation_arrives() {
    // Sets begin with 33 rows.
    for (name, mode, count) in [
        ("at_once_net", PlanMode::Net, 8),
        ("at_once_net_sets", PlanMode::Net, 50),
        ("at_once_ordered", PlanMode::Ordered, 8),
    ] {
        let schema = "CREATE TABLE t (id int8 PRIMARY KEY, v text, u int4 UNIQUE); \
            CREATE TABLE numbered (id int8 PRIMARY KEY, n int8 GENERATED ALWAYS AS IDENTITY, big text); \
            CREATE TABLE bare (a int4, b text)";
        on_each(name, schema, async |mut target| {
            let t = table("t", &["*id", "v", "u"], Identity::Key);
            let numbered = table("numbered", &["*id", "n", "big"], Identity::Key);
            let bare = table("bare", &["a", "b"], Identity::Full);
            let mut first = Changes::new();
            for n in 1..=count {
                let id = n.to_string();
                first = first.insert(&t, &[(&id).into(), "old".into(), Of::Null]);
                first = first.insert(&numbered, &[(&id).into(), (&id).into(), "kept".into()]);
                first = first.insert(&bare, &["1".into(), Of::Null]);
            }
            let done = (Some(CommitOutcome::Done), 1);
            assert_eq!(at_once(&mut target, first.group(), mode, 1).await, done);
            let mut second = Changes::new();
            for n in 1..=count - 2 {
                let id = n.to_string();
                second = second.update(&t, &[(&id).into(), "new".into(), (&id).into()]);
            }
            for n in 1..=6 {
                let id = n.to_string();
                // A row that no UPDATE may change is written anew, with what the change does not say.
                second = second.update(
                    &numbered,
                    &[(&id).into(), (&format!("1{id}")).into(), Of::Unchanged],
                );
            }
            second = second.update_from(
                &t,
                &[(&(count - 1).to_string()).into()],
                &["70".into(), "moved".into(), Of::Null],
            );
            second = second.delete(&t, &[(&count.to_string()).into()]);
            second = second.delete(&bare, &["1".into(), Of::Null]);
            let done = (Some(CommitOutcome::Done), 2);
            assert_eq!(at_once(&mut target, second.group(), mode, 2).await, done);
            let updated = (1..=count - 2).map(|n| format!("{n}:new:{n} "));
            assert_eq!(
                target.sql("SELECT string_agg(concat_ws(':', id, v, u), ' ' ORDER BY id) FROM t"),
                updated.collect::<String>() + "70:moved"
            );
            let kept: Vec<String> = (1..=count)
                .map(|n| {
                    if n <= 6 {
                        format!("{n}:1{n}:kept")
                    } else {
                        format!("{n}:{n}:kept")
                    }
                })
                .collect();
            assert_eq!(
                target.sql("SELECT string_agg(concat_ws(':', id, n, big), ' ' ORDER BY id) FROM numbered"),
                kept.join(" ")
            );
            assert_eq!(target.sql("SELECT count(*) FROM bare"), (count - 1).to_string());
        });
    }
}

#[test]
fn what_does_not_hit_its_row_is_not_committed() {
    let schema = format!(
        "{SCHEMA}; CREATE TABLE deaf (id int8 PRIMARY KEY); \
         CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER swallow BEFORE INSERT ON deaf FOR EACH ROW EXECUTE FUNCTION swallow(); \
         ALTER TABLE deaf ENABLE ALWAYS TRIGGER swallow"
    );
    on_each("at_once_missed", &schema, async |mut target| {
        target.sql("INSERT INTO t VALUES (1, 'old', 1)");
        let t = table("t", &["*id", "v", "u"], Identity::Key);
        let deaf = table("deaf", &["*id"], Identity::Key);
        let with = |changes: Changes| changes.insert(&t, &["5".into(), Of::Null, Of::Null]).group();
        let new = Changes::new;
        let groups = [
            with(new().update(&t, &["2".into(), "new".into(), Of::Null])),
            with(new().delete(&t, &["2".into()])),
            with(new().insert(&t, &["1".into(), "again".into(), Of::Null])),
            with(new().insert(&deaf, &["1".into()])),
            with(new().insert(&t, &["6".into(), Of::Null, "no number".into()])),
        ];
        for group in groups {
            // For a second after one that failed none is tried.
            target.sink = target.site.sink(STREAM, target.fence.epoch()).await.unwrap();
            assert_eq!(
                at_once(&mut target, group.clone(), PlanMode::Net, 1).await,
                (None, 0)
            );
            assert_eq!(target.sql("SELECT id, v, u FROM t"), "1|old|1");
            // The same session tells why.
            let error = target.apply(group, PlanMode::Ordered).await.unwrap_err();
            assert!(matches!(error.kind(), Kind::Conflict | Kind::Data), "{error:?}");
        }
        target.sql("UPDATE cdc_sync.fence SET epoch = epoch + 1");
        target.sink = target.site.sink(STREAM, target.fence.epoch()).await.unwrap();
        assert_eq!(
            at_once(&mut target, with(new()), PlanMode::Net, 1).await,
            (None, 0)
        );
        let error = target.apply(with(new()), PlanMode::Net).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Fenced, "{error:?}");
    });
}

#[test]
fn a_set_that_does_not_hit_all_its_rows_is_not_committed() {
    let schema = "CREATE TABLE t (id int8 PRIMARY KEY, v text, u int4 UNIQUE); CREATE TABLE other (id int8 PRIMARY KEY); \
        INSERT INTO t SELECT n, 'old' FROM generate_series(1, 99) n; \
        CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS \
            'BEGIN IF NEW.id = 150 THEN RETURN NULL; END IF; RETURN NEW; END'";
    on_each("at_once_sets", schema, async |mut target| {
        let t = table("t", &["*id", "v", "u"], Identity::Key);
        let other = table("other", &["*id"], Identity::Key);
        let begun = || Changes::new().insert(&other, &["1".into()]);
        let change = |changes: Changes, operation: &str, id: &str| match operation {
            "update" => changes.update(&t, &[id.into(), "new".into(), Of::Null]),
            "delete" => changes.delete(&t, &[id.into(), Of::Null, Of::Null]),
            _ => changes.insert(&t, &[id.into(), "new".into(), Of::Null]),
        };
        // Row 100 is not there, and row 150 will not be.
        for (groups, operation, rows) in [
            (1, "update", 51..=100),
            (2, "delete", 51..=100),
            (3, "insert", 101..=150),
        ] {
            let numbers: Vec<String> = rows.map(|n| n.to_string()).collect();
            let group = |numbers: &[String]| {
                let changes = numbers
                    .iter()
                    .fold(begun(), |changes, id| change(changes, operation, id));
                changes.group()
            };
            let whole = target.plan(group(&numbers), PlanMode::Net);
            // The planner would have seen a trigger.
            target.sql("CREATE TRIGGER swallow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION swallow()");
            target.sql("ALTER TABLE t ENABLE ALWAYS TRIGGER swallow");
            target.sink = target.site.sink(STREAM, target.fence.epoch()).await.unwrap();
            let before = target.sql("SELECT count(*), md5(string_agg(t::text, ' ' ORDER BY id)) FROM t");
            let outcome = target.sink.apply_at_once(&whole, &checkpoint(groups), true).await;
            assert_eq!(outcome.unwrap(), None, "{operation}");
            target.sql("DROP TRIGGER swallow ON t");
            let after = target.sql("SELECT count(*), md5(string_agg(t::text, ' ' ORDER BY id)) FROM t");
            assert_eq!(after, before, "{operation}");
            assert_eq!(target.sql("SELECT count(*) FROM other"), "0");

            // Without the last row it is.
            let rest = numbers.split_last().unwrap().1;
            target.sink = target.site.sink(STREAM, target.fence.epoch()).await.unwrap();
            let done = (Some(CommitOutcome::Done), groups);
            assert_eq!(
                at_once(&mut target, group(rest), PlanMode::Net, groups).await,
                done,
                "{operation}"
            );
            target.sql("DELETE FROM other");
            target.sql("DELETE FROM t WHERE id > 50");
            target.sql("INSERT INTO t SELECT n, 'old' FROM generate_series(51, 99) n");
        }
    });
}

#[test]
fn a_session_that_is_lost_before_the_group_is_sent_is_not_made_anew_in_passing() {
    let schema = format!("{SCHEMA}; CREATE TABLE other (id int8 PRIMARY KEY)");
    on_each("at_once_unsent", &schema, async |mut target| {
        let t = table("t", &["*id", "v", "u"], Identity::Key);
        let other = table("other", &["*id"], Identity::Key);
        let first = Changes::new().insert(&t, &["1".into(), Of::Null, Of::Null]);
        let second = Changes::new().insert(&other, &["1".into()]);
        let [first, second] = [first, second].map(|changes| target.plan(changes.group(), PlanMode::Net));
        let proxy = Proxy::start(target.cluster.port()).unwrap();
        let url = target.cluster.url_at(proxy.port(), &target.database);
        let applying = PgEngine.connect(&url, Duration::from_secs(60)).await.unwrap();
        let mut sink = applying.sink(STREAM, target.fence.epoch()).await.unwrap();
        let done = sink.apply_at_once(&first, &checkpoint(1), false).await.unwrap();
        assert_eq!(done, Some(CommitOutcome::Done));
        proxy.cut_all();
        // Its table is asked for first. The checkpoint may be another one by now: it is read anew.
        let error = sink
            .apply_at_once(&second, &checkpoint(2), false)
            .await
            .unwrap_err();
        assert_eq!(error.what_to_do(), Action::Reconnect, "{error:?}");
        assert_eq!(target.sql("SELECT count(*) FROM other"), "0");
    });
}

/// The connection breaks a byte behind so many messages of the second group; the rest of it arrives later.
async fn breaks_in_the_second_group(
    target: &mut Target,
    proxy: &Proxy,
    after: u64,
) -> Box<dyn cdc_core::Site> {
    let t = table("t", &["*id", "v", "u"], Identity::Key);
    let mut plan = |id: &str| {
        let group = Changes::new().insert(&t, &[id.into(), Of::Null, Of::Null]);
        target.plan(group.group(), PlanMode::Net)
    };
    let (first, second) = (plan("1"), plan("2"));
    // Bind and Execute of the insert, the checkpoint and the COMMIT, and the Sync.
    proxy.aim(Aim {
        text: "INSERT INTO \"public\".\"t\"",
        skip: 0,
        direction: Direction::ToServer,
        place: Place::Message {
            number: 7 + after,
            off: 1,
        },
        act: Act::Hold,
    });
    let url = target.cluster.url_at(proxy.port(), &target.database);
    let applying = PgEngine.connect(&url, Duration::from_secs(60)).await.unwrap();
    let mut sink = applying.sink(STREAM, target.fence.epoch()).await.unwrap();
    let done = sink.apply_at_once(&first, &checkpoint(1), false).await.unwrap();
    assert_eq!(done, Some(CommitOutcome::Done));
    let lost = sink.apply_at_once(&second, &checkpoint(2), false).await.unwrap();
    assert_eq!(lost, Some(CommitOutcome::Unknown));
    assert!(proxy.has_hit());
    applying
}

/// The session that applied, which waits for the rest of a message.
const FORMER: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'COMMIT' \
    AND state = 'idle' AND backend_type = 'client backend'";

#[test]
fn a_group_that_arrives_late_is_not_committed_behind_its_successors_back() {
    on_each("at_once_late", SCHEMA, async |mut target| {
        let (cluster, database) = (target.cluster, target.database.clone());
        let proxy = Proxy::start(cluster.port()).unwrap();
        let applying = breaks_in_the_second_group(&mut target, &proxy, 0).await;
        assert_eq!(target.sql(FORMER), "1");
        // The successor goes on from what it reads, so that must stay as it is.
        let state = applying.stream_state(STREAM).await.unwrap();
        assert_eq!(state.checkpoint, Some(checkpoint(1)));
        proxy.release();
        until("end of the former session", || {
            cluster.sql(&database, FORMER).unwrap() == "0"
        })
        .await;
        assert_eq!(target.sql("SELECT id FROM t"), "1");
        let state = applying.stream_state(STREAM).await.unwrap();
        assert_eq!(state.checkpoint, Some(checkpoint(1)));
    });
}

#[test]
fn a_group_that_arrives_while_its_successor_waits_counts() {
    on_each("at_once_meanwhile", SCHEMA, async |mut target| {
        let (cluster, database) = (target.cluster, target.database.clone());
        let proxy = Proxy::start(cluster.port()).unwrap();
        let applying = breaks_in_the_second_group(&mut target, &proxy, 0).await;
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
            AND query LIKE '%backend_start::text = $2' AND pid <> pg_backend_pid()";
        let (state, ()) = tokio::join!(applying.stream_state(STREAM), async {
            until("wait for the former session", || {
                cluster.sql(&database, waits).unwrap() != "0"
            })
            .await;
            proxy.release();
        });
        // A slow machine may have ended the session before.
        let stored = state.unwrap().checkpoint.unwrap().groups;
        assert_eq!(target.sql("SELECT count(*) FROM t"), stored.to_string());
    });
}

#[test]
fn a_group_of_which_a_part_arrived_keeps_nobody_waiting() {
    on_each("at_once_part", SCHEMA, async |mut target| {
        let proxy = Proxy::start(target.cluster.port()).unwrap();
        // Bind and Execute of BEGIN and of the fence have passed: it is held, and the rest never comes.
        let applying = breaks_in_the_second_group(&mut target, &proxy, 4).await;
        let deadline = Instant::now() + Duration::from_secs(120);
        let state = loop {
            match applying.stream_state(STREAM).await {
                Ok(state) => break state,
                Err(error) => assert_eq!(error.what_to_do(), Action::Reconnect, "{error:?}"),
            }
            assert!(Instant::now() < deadline, "it waits for ever");
        };
        assert_eq!(state.checkpoint, Some(checkpoint(1)));
        assert_eq!(target.sql("SELECT id FROM t"), "1");
    });
}
