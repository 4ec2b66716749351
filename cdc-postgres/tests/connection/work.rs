//! Pipelines and COPY.

use std::time::Duration;

use cdc_postgres::error::{Action, SqlState};
use cdc_postgres::wire::{Format, Stage, TransactionStatus};
use testbed::PgCluster;

use crate::{connect, state, value};

#[tokio::test]
async fn a_pipeline_applies_rows_and_reports_them() {
    let cluster = PgCluster::builder(18).start().unwrap();
    let mut connection = connect(&cluster.url("postgres")).await.unwrap();
    connection
        .simple_query("CREATE TABLE public.t (id int PRIMARY KEY, v text)")
        .await
        .unwrap();

    let mut pipeline = connection.pipeline().await.unwrap();
    pipeline.execute("BEGIN").await.unwrap();
    pipeline
        .parse("insert", "INSERT INTO public.t VALUES ($1, $2)", &[23, 25])
        .await
        .unwrap();
    for id in 0..50_000u32 {
        let (id, text) = (id.to_string(), (id % 2 == 0).then(|| format!("value {id}")));
        pipeline
            .bind_execute(
                "insert",
                [Some(id.as_bytes()), text.as_deref().map(str::as_bytes)],
            )
            .await
            .unwrap();
    }
    pipeline
        .parse(
            "update",
            "UPDATE public.t SET v = 'x' WHERE id < $1 RETURNING id, v",
            &[],
        )
        .await
        .unwrap();
    pipeline
        .bind_execute_as("update", &[Format::Binary], [Some(&2i32.to_be_bytes()[..])])
        .await
        .unwrap();
    pipeline.execute("COMMIT").await.unwrap();
    let mut done = pipeline.take_completions();
    done.extend(pipeline.finish().await.unwrap());
    assert_eq!(done.len(), 50_003);
    assert!(done[1..=50_000].iter().all(|completion| completion.affected == 1));
    let update = &done[50_001];
    assert_eq!((update.affected, update.rows.len()), (2, 2));
    assert_eq!(update.rows[1].text(1).unwrap(), Some("x"));
    assert_eq!(connection.transaction_status(), TransactionStatus::Idle);
    assert_eq!(
        value(&mut connection, "SELECT count(v) FROM public.t").await,
        "25001"
    );

    // A failure in the middle: its number, its object, and a session that can go on.
    let mut pipeline = connection.pipeline().await.unwrap();
    pipeline.execute("BEGIN").await.unwrap();
    for id in [60_000, 60_001, 7, 60_002] {
        pipeline
            .bind_execute("insert", [Some(id.to_string().as_bytes()), None])
            .await
            .unwrap();
    }
    let failed = pipeline.finish().await.unwrap_err();
    assert_eq!((failed.index, failed.stage), (3, Stage::Execute));
    assert!(failed.error.is(SqlState::UNIQUE_VIOLATION) && failed.error.action == Action::Conflict);
    assert_eq!(failed.error.table.as_deref(), Some("t"));
    assert_eq!(failed.error.constraint.as_deref(), Some("t_pkey"));
    assert_eq!(connection.transaction_status(), TransactionStatus::Failed);
    connection.simple_query("ROLLBACK").await.unwrap();

    let mut pipeline = connection.pipeline().await.unwrap();
    pipeline
        .bind_execute("insert", [Some(&b"not a number"[..]), None])
        .await
        .unwrap();
    let failed = pipeline.finish().await.unwrap_err();
    assert_eq!(
        (failed.index, failed.stage, failed.error.action),
        (0, Stage::Bind, Action::Stop)
    );
    let mut pipeline = connection.pipeline().await.unwrap();
    pipeline.parse("bad", "SELECT * FROM nowhere", &[]).await.unwrap();
    pipeline.bind_execute("bad", []).await.unwrap();
    let failed = pipeline.finish().await.unwrap_err();
    assert_eq!(
        (failed.index, failed.stage, failed.parsed),
        (0, Stage::Parse(0), 0)
    );
    assert_eq!(
        value(&mut connection, "SELECT count(*) FROM public.t").await,
        "50000"
    );
}

#[tokio::test]
async fn a_pipeline_with_a_notice_for_each_statement_does_not_deadlock() {
    let cluster = PgCluster::builder(18).start().unwrap();
    let mut connection = connect(&cluster.url("postgres")).await.unwrap();
    connection
        .simple_query(
            "CREATE FUNCTION public.loud(text) RETURNS int LANGUAGE plpgsql AS
             $$ BEGIN RAISE NOTICE '%', repeat('n', 500); RETURN 1; END $$",
        )
        .await
        .unwrap();
    let run = async {
        let mut pipeline = connection.pipeline().await.unwrap();
        pipeline
            .parse("loud", "SELECT public.loud($1)", &[])
            .await
            .unwrap();
        let value = vec![b'v'; 500];
        let mut done = 0;
        for _ in 0..100_000 {
            pipeline.bind_execute("loud", [Some(&value[..])]).await.unwrap();
            done += pipeline.take_completions().len();
        }
        done + pipeline.finish().await.unwrap().len()
    };
    let done = tokio::time::timeout(Duration::from_secs(120), run)
        .await
        .expect("both sides wait to write");
    assert_eq!(done, 100_000);
}

#[tokio::test]
async fn copy_in_loads_rows_and_reports_the_bad_one() {
    let cluster = PgCluster::builder(18).start().unwrap();
    let mut connection = connect(&cluster.url("postgres")).await.unwrap();
    connection
        .simple_query("CREATE TABLE public.t (id int, v text)")
        .await
        .unwrap();
    let rows = |from: u32| -> Vec<u8> {
        (from..from + 20_000)
            .flat_map(|id| format!("{id}\t{}\n", "v".repeat(80)).into_bytes())
            .collect()
    };
    let mut copy = connection.copy_in("COPY public.t FROM STDIN").await.unwrap();
    for block in 0..20 {
        let data = rows(block * 20_000);
        let (small, large) = data.split_at(1000);
        copy.send(small).await.unwrap();
        copy.send(large).await.unwrap();
    }
    assert_eq!(copy.finish().await.unwrap(), 400_000);

    // Sent without end, so that only an error that is read while writing can end it.
    let mut copy = connection.copy_in("COPY public.t FROM STDIN").await.unwrap();
    copy.send(b"bad\trow\n").await.unwrap();
    let data = rows(0);
    let feed = async {
        loop {
            if let Err(error) = copy.send(&data).await {
                return error;
            }
        }
    };
    let failed = tokio::time::timeout(Duration::from_secs(60), feed)
        .await
        .expect("the error is never seen");
    assert_eq!(failed.sqlstate, Some(state("22P02")), "{failed}");
    assert!(
        failed
            .server_context
            .as_deref()
            .is_some_and(|c| c.contains("line 1")),
        "{failed}"
    );
    drop(copy);
    assert_eq!(
        value(&mut connection, "SELECT count(*) FROM public.t").await,
        "400000"
    );

    let mut copy = connection.copy_in("COPY public.t FROM STDIN").await.unwrap();
    copy.send(&data).await.unwrap();
    copy.abort("changed our mind").await.unwrap();
    let mut copy = connection.copy_in("COPY public.t FROM STDIN").await.unwrap();
    copy.send(&data).await.unwrap();
    drop(copy);
    assert_eq!(
        value(&mut connection, "SELECT count(*) FROM public.t").await,
        "400000"
    );
}
