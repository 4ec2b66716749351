//! Pipelines of the extended protocol.

use super::within;
use crate::error::{Action, Kind, SqlState};
use crate::wire::fake::{Server, complete, error, message, notice, ready};
use crate::wire::{Format, Purpose, Stage, TransactionStatus};

/// Answers a pipeline until its Sync, message by message, never reading ahead; `answer` may replace an answer to the
/// n-th message. After an error it skips to the Sync as servers do.
async fn serve_pipeline(
    server: &mut Server,
    padding: &[u8],
    answer: impl Fn(u64, u8) -> Option<Vec<u8>>,
) -> u64 {
    let mut count = 0;
    let mut skipping = false;
    loop {
        let (tag, _) = server.read().await;
        if tag == b'S' {
            let failed = answer(count, tag);
            server
                .send(&[failed.unwrap_or_default(), ready(b'I')].concat())
                .await;
            return count;
        }
        if !skipping {
            let normal = match tag {
                b'P' => message(b'1', b""),
                b'B' => message(b'2', b""),
                b'E' => [padding, &complete("INSERT 0 1")].concat(),
                b'C' => message(b'3', b""),
                other => panic!("unexpected {other}"),
            };
            let replaced = answer(count, tag);
            skipping = replaced.is_some();
            server.send(&replaced.unwrap_or(normal)).await;
        }
        count += 1;
    }
}

#[tokio::test]
async fn a_pipeline_never_deadlocks_and_keeps_its_memory() {
    // Each statement's answer is larger than the statement, and the server reads nothing while it cannot write: some
    // 60 MB each way, through socket buffers of a few hundred kB.
    const STATEMENTS: u64 = 60_000;
    let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
    let padding = notice(&"n".repeat(1000));
    let value = vec![b'v'; 900];
    let client = async {
        let mut pipeline = connection.pipeline().await.unwrap();
        pipeline.parse("s", "INSERT …", &[]).await.unwrap();
        let mut seen = 0;
        for _ in 0..STATEMENTS {
            pipeline
                .bind_execute("s", [Some(&value[..]), None])
                .await
                .unwrap();
            let taken = pipeline.take_completions();
            assert!(taken.iter().all(|completion| completion.affected == 1));
            seen += taken.len();
        }
        assert_eq!(pipeline.len(), STATEMENTS);
        assert!(seen > 50_000, "completions are read on the way: {seen}");
        seen += pipeline.finish().await.unwrap().len();
        assert_eq!(seen, 60_000);
        assert!(connection.channel.outgoing.capacity() < 1024 * 1024);
        assert!(connection.channel.incoming.capacity() < 1024 * 1024);
    };
    within(async { tokio::join!(client, serve_pipeline(&mut server, &padding, |_, _| None)) }).await;
}

#[tokio::test]
async fn a_failed_pipeline_names_statement_and_step() {
    // Messages: P0 B1 E2 P3 B4 E5 B6 E7 S8
    for (at, stage, index, parsed) in [
        (0, Stage::Parse(0), 0, 0),
        (1, Stage::Bind, 0, 1),
        (2, Stage::Execute, 0, 1),
        (3, Stage::Parse(1), 1, 1),
        (4, Stage::Bind, 1, 2),
        (5, Stage::Execute, 1, 2),
        (6, Stage::Bind, 2, 2),
        (7, Stage::Execute, 2, 2),
        (8, Stage::Sync, 3, 2),
    ] {
        let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
        let client = async {
            let mut pipeline = connection.pipeline().await.unwrap();
            pipeline.parse("a", "…", &[]).await.unwrap();
            pipeline.bind_execute("a", []).await.unwrap();
            pipeline.parse("b", "…", &[25]).await.unwrap();
            pipeline
                .bind_execute_as("b", &[Format::Text], [Some(&b"1"[..])])
                .await
                .unwrap();
            pipeline.bind_execute("b", [Some(&b"2"[..])]).await.unwrap();
            let failed = pipeline.finish().await.unwrap_err();
            assert_eq!(
                (failed.stage, failed.index, failed.parsed),
                (stage, index, parsed)
            );
            assert!(failed.error.is(SqlState::UNIQUE_VIOLATION));
            assert_eq!(connection.transaction_status(), TransactionStatus::Idle);
        };
        let script = serve_pipeline(&mut server, b"", |count, _| {
            (count == at).then(|| error("ERROR", "23505", "duplicate"))
        });
        within(async { tokio::join!(client, script) }).await;
    }
}

#[tokio::test]
async fn an_error_stops_a_long_pipeline_early() {
    let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
    let value = vec![b'v'; 10_000];
    let client = async {
        let mut pipeline = connection.pipeline().await.unwrap();
        let mut added = 0;
        let refused = loop {
            assert!(added < 10_000, "the error was never seen");
            if let Err(refused) = pipeline.bind_execute("s", [Some(&value[..])]).await {
                break refused;
            }
            added += 1;
        };
        assert!(refused.is(SqlState::UNIQUE_VIOLATION));
        assert!(pipeline.bind_execute("s", []).await.is_err());
        assert_eq!(pipeline.finish().await.unwrap_err().index, 5);
    };
    let script = serve_pipeline(&mut server, b"", |count, _| {
        (count == 11).then(|| error("ERROR", "23505", "duplicate"))
    });
    within(async { tokio::join!(client, script) }).await;
}

#[tokio::test]
async fn a_dropped_pipeline_is_ended_by_the_next_call() {
    let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
    let client = async {
        let mut pipeline = connection.pipeline().await.unwrap();
        pipeline.execute("INSERT …").await.unwrap();
        // A call that cannot be encoded leaves nothing in the buffer.
        assert_eq!(
            pipeline.parse("nul\0", "", &[]).await.unwrap_err().kind,
            Kind::Usage
        );
        drop(pipeline);
        connection.simple_query("ROLLBACK").await.unwrap();
    };
    let script = async {
        assert_eq!(serve_pipeline(&mut server, b"", |_, _| None).await, 3);
        assert_eq!(server.expect(b'Q').await, b"ROLLBACK\0");
        server.send(&[complete("ROLLBACK"), ready(b'I')].concat()).await;
    };
    within(async { tokio::join!(client, script) }).await;
}

#[tokio::test]
async fn several_syncs_are_answered_in_order() {
    let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
    let client = async {
        let mut pipeline = connection.pipeline().await.unwrap();
        for _ in 0..3 {
            pipeline.bind_execute("s", []).await.unwrap();
            pipeline.sync().await.unwrap();
        }
        assert_eq!(pipeline.finish().await.unwrap().len(), 3);
        // An empty pipeline costs nothing.
        assert_eq!(connection.pipeline().await.unwrap().finish().await.unwrap(), []);
    };
    let script = async {
        for _ in 0..3 {
            assert_eq!(serve_pipeline(&mut server, b"", |_, _| None).await, 2);
        }
    };
    within(async { tokio::join!(client, script) }).await;
}

#[tokio::test]
async fn a_broken_pipeline_tells_how_far_it_came() {
    let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
    let client = async {
        let mut pipeline = connection.pipeline().await.unwrap();
        pipeline.bind_execute("s", []).await.unwrap();
        pipeline.bind_execute("s", []).await.unwrap();
        let failed = pipeline.finish().await.unwrap_err();
        assert_eq!((failed.index, failed.stage), (1, Stage::Connection));
        assert_eq!(failed.error.action, Action::Reconnect);
    };
    let script = async move {
        for answer in [message(b'2', b""), complete("INSERT 0 1"), message(b'2', b"")] {
            server.read().await;
            server.send(&answer).await;
        }
        server.read().await;
        server.read().await;
    };
    within(async { tokio::join!(client, script) }).await;
}
