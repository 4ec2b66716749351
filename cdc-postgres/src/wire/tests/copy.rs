//! COPY in.

use super::within;
use crate::error::{Kind, SqlState};
use crate::wire::Purpose;
use crate::wire::fake::{Server, complete, error, message, ready};

/// Reads COPY data up to its end; its bytes and the tag that ended it.
async fn read_copy(server: &mut Server) -> (Vec<u8>, u8) {
    let mut data = Vec::new();
    loop {
        match server.read().await {
            (b'd', body) => data.extend(body),
            (end, _) => return (data, end),
        }
    }
}

fn copy_in_response() -> Vec<u8> {
    message(b'G', &[0, 0, 0])
}

#[tokio::test]
async fn copy_sends_pieces_of_all_sizes() {
    let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
    let pieces = [1, 0, 16 * 1024 - 1, 16 * 1024, 300 * 1024, 7, 2_000_000].map(|size| vec![b'x'; size]);
    let client = async {
        let mut copy = connection.copy_in("COPY t FROM STDIN").await.unwrap();
        for piece in &pieces {
            copy.send(piece).await.unwrap();
        }
        assert_eq!(copy.finish().await.unwrap(), 5);
    };
    let script = async {
        server.expect(b'Q').await;
        server.send(&copy_in_response()).await;
        let (data, end) = read_copy(&mut server).await;
        assert_eq!((data.len(), end), (pieces.iter().map(Vec::len).sum(), b'c'));
        server.send(&[complete("COPY 5"), ready(b'I')].concat()).await;
    };
    within(async { tokio::join!(client, script) }).await;
}

#[tokio::test]
async fn an_error_amid_a_copy_is_seen_at_once() {
    let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
    let client = async {
        let mut copy = connection.copy_in("COPY t FROM STDIN").await.unwrap();
        let data = vec![b'x'; 100_000];
        let mut sent = 0;
        let failed = loop {
            assert!(sent < 10_000, "the error was never seen");
            if let Err(failed) = copy.send(&data).await {
                break failed;
            }
            sent += 1;
        };
        assert!(failed.is(SqlState::new("22P02").unwrap()), "{failed}");
        drop(copy);
        connection.simple_query("SELECT 1").await.unwrap();
    };
    let script = async {
        server.expect(b'Q').await;
        server.send(&copy_in_response()).await;
        server.expect(b'd').await;
        server
            .send(&[error("ERROR", "22P02", "bad row"), ready(b'I')].concat())
            .await;
        let (_, next) = read_copy(&mut server).await;
        assert_eq!(next, b'Q');
        server.send(&[complete("SELECT 1"), ready(b'I')].concat()).await;
    };
    within(async { tokio::join!(client, script) }).await;
}

#[tokio::test]
async fn a_copy_that_is_given_up_fails_on_the_server() {
    for dropped in [false, true] {
        let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
        let client = async {
            let mut copy = connection.copy_in("COPY t FROM STDIN").await.unwrap();
            copy.send(b"1\n").await.unwrap();
            if dropped {
                drop(copy);
            } else {
                copy.abort("changed our mind").await.unwrap();
            }
            connection.simple_query("SELECT 1").await.unwrap();
        };
        let script = async {
            server.expect(b'Q').await;
            server.send(&copy_in_response()).await;
            assert_eq!(read_copy(&mut server).await, (b"1\n".to_vec(), b'f'));
            server
                .send(&[error("ERROR", "57014", "COPY from stdin failed"), ready(b'I')].concat())
                .await;
            server.expect(b'Q').await;
            server.send(&[complete("SELECT 1"), ready(b'I')].concat()).await;
        };
        within(async { tokio::join!(client, script) }).await;
    }
}

#[tokio::test]
async fn a_statement_that_is_no_copy_is_an_error() {
    let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
    let script = async {
        server.expect(b'Q').await;
        server.send(&[complete("UPDATE 1"), ready(b'I')].concat()).await;
    };
    let (copy, ()) = tokio::join!(connection.copy_in("UPDATE t"), script);
    assert_eq!(copy.unwrap_err().kind, Kind::Usage);
}
