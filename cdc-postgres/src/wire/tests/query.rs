//! Simple queries.

use std::time::Duration;

use super::{row, within};
use crate::error::{Action, Kind, SqlState};
use crate::wire::fake::{Server, complete, error, message, ready};
use crate::wire::{Purpose, TransactionStatus};

#[tokio::test]
async fn results_may_arrive_split_anywhere() {
    let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
    let header = message(
        b'T',
        b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xFF\xFF\xFF\xFF\xFF\xFF\0\0",
    );
    let bytes = [
        header,
        row(&[Some("x")]),
        message(b'S', b"TimeZone\0Mars\0"),
        row(&[None]),
        complete("SELECT 2"),
        message(b'I', b""),
        complete("BEGIN"),
        ready(b'T'),
    ]
    .concat();
    for at in 0..=bytes.len() {
        let script = async {
            assert_eq!(server.expect(b'Q').await, b"q\0");
            server.send_split(&bytes, at).await;
        };
        let (results, ()) = tokio::join!(connection.simple_query("q"), script);
        let results = results.unwrap();
        assert_eq!(results.len(), 3);
        assert_eq!(
            (results[0].affected, results[0].columns[0].name.as_str()),
            (2, "a")
        );
        assert_eq!(
            results[0].rows.iter().map(|row| row.get(0)).collect::<Vec<_>>(),
            [Some(&b"x"[..]), None]
        );
        assert!(results[0].rows[0].text(1).is_err());
        assert_eq!(connection.transaction_status(), TransactionStatus::InTransaction);
        assert_eq!(connection.parameter("TimeZone"), Some("Mars"));
    }
}

#[tokio::test]
async fn an_error_leaves_the_connection_usable_and_a_fatal_one_does_not() {
    let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
    let script = async {
        server.expect(b'Q').await;
        server
            .send(&[error("ERROR", "42601", "syntax"), ready(b'E')].concat())
            .await;
        server.expect(b'Q').await;
        server.send(&[complete("ROLLBACK"), ready(b'I')].concat()).await;
        server.expect(b'Q').await;
        server
            .send(&error("FATAL", "57P01", "terminating connection"))
            .await;
    };
    let client = async {
        let failed = connection.simple_query("bad").await.unwrap_err();
        assert!(failed.is(SqlState::new("42601").unwrap()) && !failed.is_fatal());
        assert_eq!(connection.transaction_status(), TransactionStatus::Failed);
        connection.simple_query("ROLLBACK").await.unwrap();
        let failed = connection.simple_query("x").await.unwrap_err();
        assert_eq!((failed.action, failed.is_fatal()), (Action::Reconnect, true));
        assert_eq!(
            connection.simple_query("y").await.unwrap_err().kind,
            Kind::Connection
        );
    };
    within(async { tokio::join!(script, client) }).await;
}

#[tokio::test]
async fn a_query_that_was_dropped_is_waited_for_by_the_next() {
    let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(1), connection.simple_query("slow"))
            .await
            .is_err()
    );
    let script = async {
        assert_eq!(server.expect(b'Q').await, b"slow\0");
        server.send(&[complete("UPDATE 9"), ready(b'I')].concat()).await;
        assert_eq!(server.expect(b'Q').await, b"next\0");
        server.send(&[complete("UPDATE 1"), ready(b'I')].concat()).await;
    };
    let (results, ()) = tokio::join!(connection.simple_query("next"), script);
    assert_eq!(results.unwrap()[0].affected, 1);
}
