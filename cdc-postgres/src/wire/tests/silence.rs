//! A server that owes an answer and says nothing.

use std::time::Duration;

use tokio::net::UnixListener;
use tokio::time::{sleep, timeout};

use super::{row, within};
use crate::config::Config;
use crate::error::Kind;
use crate::wire::fake::{Server, complete, ready, welcome};
use crate::wire::silence::PATIENCE;
use crate::wire::{Connection, Purpose};

const STARTED: &str = "2026-02-03 04:05:06.789+00";

/// A connection to a scripted server, which takes further ones at `listener`.
struct Scene {
    _folder: tempfile::TempDir,
    listener: UnixListener,
    server: Server,
    connection: Connection,
}

/// `pid` is what the session is to the server itself; it was announced as 42.
async fn scene(pid: &str) -> Scene {
    PATIENCE.set(Duration::from_millis(100));
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
    let url = format!("postgres://ann:pw@/shop?host={}", folder.path().display());
    let config = Config::parse_with(&url, &|_| None).unwrap();
    let (server, login) = Server::login_with(config, Purpose::Sql);
    let (server, connection) = server.welcomed(login, &row(&[Some(pid), Some(STARTED)])).await;
    Scene {
        _folder: folder,
        listener,
        server,
        connection,
    }
}

/// The other connection, logged in, and what it asks.
async fn asked(listener: &UnixListener) -> (Server, String) {
    let mut asking = Server::accept(listener).await;
    asking.startup().await;
    asking.send(&welcome("11.22")).await;
    asking.settings().await;
    let sql = String::from_utf8(asking.expect(b'Q').await).unwrap();
    (asking, sql)
}

fn answer(value: &str) -> Vec<u8> {
    [row(&[Some(value)]), complete("SELECT 1"), ready(b'I')].concat()
}

#[tokio::test]
async fn an_answer_that_comes_while_the_server_is_asked_wins() {
    let Scene {
        _folder,
        listener,
        mut server,
        mut connection,
    } = scene("42").await;
    let script = async {
        server.expect(b'Q').await;
        // It is never told what the session does.
        let asking = asked(&listener).await;
        server.send(&answer("late")).await;
        asking
    };
    let (value, _asking) = within(async { tokio::join!(connection.single_value("q"), script) }).await;
    assert_eq!(value.unwrap().as_deref(), Some("late"));
}

/// The clock of this test stands still while anything is to be done: nobody is asked in it.
#[tokio::test(start_paused = true)]
async fn a_message_that_comes_slowly_is_no_silence() {
    let Scene {
        _folder,
        listener,
        mut server,
        mut connection,
    } = scene("42").await;
    PATIENCE.set(Duration::from_secs(60));
    let bytes = answer(&"x".repeat(1000));
    let script = async {
        server.expect(b'Q').await;
        for piece in bytes.chunks(50) {
            sleep(Duration::from_secs(20)).await;
            server.send(piece).await;
        }
    };
    let (value, ()) = tokio::join!(connection.single_value("q"), script);
    assert_eq!(value.unwrap().map(|value| value.len()), Some(1000));
    timeout(Duration::ZERO, listener.accept()).await.unwrap_err();
}

/// What the other connection does after it was told that the session waits for its client.
async fn after_it_waits(pid: &str) -> (String, Option<String>) {
    let Scene {
        _folder,
        listener,
        mut server,
        mut connection,
    } = scene(pid).await;
    let script = async {
        server.expect(b'Q').await;
        let (mut asking, sql) = asked(&listener).await;
        asking.send(&answer("t")).await;
        asking.expect(b'Q').await;
        asking.send(&answer("t")).await;
        let next = asking.read().await;
        let ended = (next.0 == b'Q').then(|| String::from_utf8(next.1).unwrap());
        asking.send(&answer("t")).await;
        (sql, ended)
    };
    let (value, told) = within(async { tokio::join!(connection.single_value("q"), script) }).await;
    assert_eq!(value.unwrap_err().kind, Kind::Timeout);
    told
}

#[tokio::test]
async fn a_session_is_known_by_its_start_and_not_by_a_number_alone() {
    let (sql, ended) = after_it_waits("42").await;
    let it = format!("pid = 42 AND backend_start = '{STARTED}'");
    assert!(sql.contains(&it), "{sql}");
    let ended = ended.expect("it is ended");
    assert!(
        ended.contains("pg_terminate_backend(pid)") && ended.contains(&it),
        "{ended}"
    );
}

#[tokio::test]
async fn the_session_behind_a_pooler_is_not_ended() {
    let (sql, ended) = after_it_waits("77").await;
    assert!(sql.contains("pid = 77 AND"), "{sql}");
    assert_eq!(ended, None);
}

#[tokio::test]
async fn a_session_of_which_nothing_is_known_is_not_ended() {
    let Scene {
        _folder,
        listener,
        mut server,
        mut connection,
    } = scene("unknown").await;
    let script = async {
        server.expect(b'Q').await;
        let (mut asking, sql) = asked(&listener).await;
        assert!(sql.contains("pid = 42"), "{sql}");
        // It is gone.
        asking.send(&[complete("SELECT 0"), ready(b'I')].concat()).await;
        assert_eq!(asking.read().await.0, b'X');
    };
    let (value, ()) = within(async { tokio::join!(connection.single_value("q"), script) }).await;
    assert_eq!(value.unwrap_err().kind, Kind::Timeout);
}
