//! What counts as durable is durable, and a commit whose answer was lost is waited for.

use std::time::{Duration, Instant};

use cdc_core::engine::{SeedPhase, SeedTable};
use cdc_core::model::Identity;
use cdc_core::plan::PlanMode;
use cdc_core::seed::{BulkFormat, TablePart};
use cdc_core::{Action, CommitOutcome, Engine, Kind, Position, TableName};
use cdc_postgres::PgEngine;
use testbed::{Gate, PgCluster, Proxy};

use crate::changes::{Changes, Of, table};
use crate::on_each;
use crate::target::{STREAM, checkpoint, site};

/// Notes the setting of every session that writes to the table.
const SCHEMA: &str = "CREATE TABLE t (id int8 PRIMARY KEY, v text); CREATE TABLE seen (who text, is_set text); \
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
        INSERT INTO public.seen VALUES (TG_RELNAME, current_setting('synchronous_commit')); RETURN NULL; END $$; \
    CREATE TRIGGER note AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION note(); \
    ALTER TABLE t ENABLE ALWAYS TRIGGER note";
const NOTE_STATE: &str = "CREATE TRIGGER note AFTER INSERT ON cdc_sync.seed \
    FOR EACH STATEMENT EXECUTE FUNCTION public.note(); \
    CREATE TRIGGER note AFTER UPDATE ON cdc_sync.fence FOR EACH STATEMENT EXECUTE FUNCTION public.note()";

#[test]
fn a_commit_is_durable_whatever_the_database_is_set_to() {
    for (name, setting, effective) in [
        ("durable_off", "off", "local"),
        ("durable_strict", "remote_apply", "remote_apply"),
    ] {
        on_each(name, SCHEMA, async |target| {
            target.sql(&format!(
                "{NOTE_STATE}; ALTER DATABASE {name} SET synchronous_commit = {setting}"
            ));
            let (cluster, database) = (target.cluster, target.database.clone());
            drop(target.fence);
            // Sessions that begin now have the database's setting.
            let site = site(cluster, &database).await;
            let fence = site.take_fence(STREAM, Duration::from_secs(60)).await.unwrap();
            let seed = SeedTable {
                table: TableName::new("public", "t"),
                phase: SeedPhase::Live,
                position: Position::new("0/1"),
                rows: 0,
                bytes: 0,
            };
            site.store_seed(STREAM, fence.epoch(), &seed).await.unwrap();
            let part = TablePart {
                table: seed.table.clone(),
                columns: vec!["id".into()],
                range: None,
                index: 0,
                of: 1,
            };
            let mut loader = site
                .loader(
                    STREAM,
                    fence.epoch(),
                    &part,
                    BulkFormat("postgres.copy.text".into()),
                )
                .await
                .unwrap();
            loader.write(bytes::Bytes::from_static(b"1\n")).await.unwrap();
            loader.finish().await.unwrap();
            let t = table("t", &["*id", "v"], Identity::Key);
            let facts = site.target_tables(&cdc_core::TableSelection::default()).await;
            let mut planner = crate::target::planner(facts.unwrap());
            let group = Changes::new().insert(&t, &["2".into(), Of::Null]).group();
            let plan = planner.compile(group, PlanMode::Net).unwrap();
            let mut sink = site.sink(STREAM, fence.epoch()).await.unwrap();
            sink.begin().await.unwrap();
            sink.apply(&plan).await.unwrap();
            assert_eq!(sink.commit(&checkpoint(1)).await.unwrap(), CommitOutcome::Done);
            let seen = cluster
                .sql(&database, "SELECT who, is_set FROM seen ORDER BY 1, 2")
                .unwrap();
            assert_eq!(
                seen,
                format!("fence|{effective}\nseed|{effective}\nt|{effective}\nt|{effective}")
            );
        });
    }
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "no {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_commit_whose_answer_was_lost_is_waited_for_by_who_applies() {
    let schema = format!(
        "CREATE TABLE t (id int8 PRIMARY KEY, v text); {}",
        Gate::at_commit("t")
    );
    on_each("doubtful", &schema, async |mut target| {
        let (cluster, database) = (target.cluster, target.database.clone());
        let t = table("t", &["*id", "v"], Identity::Key);
        let group = Changes::new().insert(&t, &["1".into(), Of::Null]).group();
        let plan = target.plan(group, PlanMode::Net);
        let proxy = Proxy::start(cluster.port()).unwrap();
        let applying = PgEngine
            .connect(&cluster.url_at(proxy.port(), &database), Duration::from_secs(60))
            .await
            .unwrap();
        let gate = Gate::shut(cluster, &database).unwrap();
        let mut sink = applying.sink(STREAM, target.fence.epoch()).await.unwrap();
        sink.begin().await.unwrap();
        sink.apply(&plan).await.unwrap();
        let first = checkpoint(1);
        let (outcome, ()) = tokio::join!(sink.commit(&first), async {
            until("a COMMIT at the gate", || {
                Gate::waiting(cluster, &database).unwrap() > 0
            })
            .await;
            proxy.cut_all();
        });
        assert_eq!(outcome.unwrap(), CommitOutcome::Unknown);
        // Who only looks is not held up.
        let seen = target.site.stream_state(STREAM).await.unwrap();
        assert_eq!(seen.checkpoint, Some(checkpoint(0)));
        // Who applies gives up after a while, to look whether it is to stop, and waits again.
        let error = applying.stream_state(STREAM).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.what_to_do()),
            (Kind::Unreachable, Action::Reconnect),
            "{error:?}"
        );
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%FOR NO KEY UPDATE' \
                     AND wait_event_type = 'Lock' AND datname = current_database()";
        let (state, ()) = tokio::join!(applying.stream_state(STREAM), async {
            until("a wait for the COMMIT", || {
                cluster.sql(&database, waits).unwrap() != "0"
            })
            .await;
            gate.open();
        });
        assert_eq!(state.unwrap().checkpoint, Some(checkpoint(1)));
        assert_eq!(target.sql("SELECT count(*) FROM t"), "1");
    });
}

/// What happens between the first commit and the crash.
#[derive(Clone, Copy)]
enum Then {
    Nothing,
    /// another commit, which waits
    Commits,
    /// the sink breaks, and its site reads the checkpoint to go on from
    GoesOn,
    /// another process takes the stream over
    TakenOver,
}

/// Commits a first group, then kills all processes of the server; returns the groups that the checkpoint has after that.
async fn left_after_crash(cluster: &mut PgCluster, database: &str, soon: bool, then: Then) -> u64 {
    cluster.create_database(database).unwrap();
    {
        let applying = site(cluster, database).await;
        applying.prepare_state().await.unwrap();
        let fence = applying
            .take_fence(STREAM, Duration::from_secs(60))
            .await
            .unwrap();
        applying
            .start_stream(fence.epoch(), &checkpoint(0), &[], false)
            .await
            .unwrap();
        let mut sink = applying.sink(STREAM, fence.epoch()).await.unwrap();
        cluster.freeze_wal_writer().unwrap();
        sink.begin().await.unwrap();
        let first = checkpoint(1);
        let committed = match soon {
            true => sink.commit_soon(&first),
            false => sink.commit(&first),
        };
        assert_eq!(committed.await.unwrap(), CommitOutcome::Done);
        let others = site(cluster, database).await;
        let seen = others.stream_state(STREAM).await.unwrap().checkpoint;
        assert_eq!(seen.as_ref(), Some(&first), "others see it at once");
        match then {
            Then::Nothing => {}
            Then::Commits => {
                sink.begin().await.unwrap();
                assert_eq!(sink.commit(&checkpoint(2)).await.unwrap(), CommitOutcome::Done);
            }
            Then::GoesOn => {
                drop(sink);
                let read = applying.stream_state(STREAM).await.unwrap().checkpoint;
                assert_eq!(read, Some(first));
            }
            Then::TakenOver => {
                drop((sink, fence));
                let epoch = others.take_fence(STREAM, Duration::from_secs(60)).await.unwrap();
                assert_eq!(epoch.epoch(), 2);
            }
        }
        cluster.crash().unwrap();
    }
    cluster.start_again().unwrap();
    let site = site(cluster, database).await;
    let left = site.stream_state(STREAM).await.unwrap().checkpoint;
    left.expect("the stream's start was durable").groups
}

/// What a commit is told to have made durable is there after a crash, and all before it; what was only said to come soon
/// is not, and then its checkpoint is gone with it. Whoever goes on from a checkpoint finds it there as well.
#[test]
fn what_is_committed_soon_is_durable_with_the_next_commit() {
    for major in [12, 18] {
        // A worker's own commit would make durable what was committed before.
        let builder = PgCluster::builder(major).setting("autovacuum", "off");
        let mut cluster = builder.start().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for (database, soon, then, left) in [
            ("at_once", false, Then::Nothing, 1),
            ("soon", true, Then::Nothing, 0),
            ("both", true, Then::Commits, 2),
            ("goes_on", true, Then::GoesOn, 1),
            ("taken_over", true, Then::TakenOver, 1),
        ] {
            let found = runtime.block_on(left_after_crash(&mut cluster, database, soon, then));
            assert_eq!(found, left, "{database} on {major}");
        }
    }
}

/// A standby that is away may keep a commit from being durable for long. Whoever is to go on applying looks in between
/// whether it is to stop.
#[test]
fn what_does_not_become_durable_is_waited_for_in_turns() {
    let cluster = PgCluster::builder(18).start().unwrap();
    cluster.create_database("standby").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let applying = site(&cluster, "standby").await;
        applying.prepare_state().await.unwrap();
        let fence = applying
            .take_fence(STREAM, Duration::from_secs(60))
            .await
            .unwrap();
        applying
            .start_stream(fence.epoch(), &checkpoint(0), &[], false)
            .await
            .unwrap();
        let mut sink = applying.sink(STREAM, fence.epoch()).await.unwrap();
        // The first one also stores what a sink needs once.
        sink.begin().await.unwrap();
        let first = sink.commit(&checkpoint(1)).await.unwrap();
        assert_eq!(first, CommitOutcome::Done);
        cluster.hold_durable_commits().unwrap();
        sink.begin().await.unwrap();
        let soon = sink.commit_soon(&checkpoint(2)).await.unwrap();
        assert_eq!(soon, CommitOutcome::Done);
        drop(sink);
        let error = applying.stream_state(STREAM).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.what_to_do()),
            (Kind::Unreachable, Action::Reconnect),
            "{error:?}"
        );
        cluster.release_durable_commits().unwrap();
        let state = applying.stream_state(STREAM).await.unwrap();
        assert_eq!(state.checkpoint, Some(checkpoint(2)));
    });
}
