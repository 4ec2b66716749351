//! Startup and authentication.

use super::within;
use crate::config::Config;
use crate::error::{Action, Kind, PgError, SqlState};
use crate::wire::fake::{self, Server, complete, error, message, notice, ready, welcome};
use crate::wire::{AuthMethod, Connection, Purpose};

/// Runs a login against a script.
async fn login(script: impl AsyncFnOnce(&mut Server)) -> Result<Connection, PgError> {
    login_with(fake::config(), script).await
}

async fn login_with(config: Config, script: impl AsyncFnOnce(&mut Server)) -> Result<Connection, PgError> {
    let (mut server, login) = Server::login_with(config, Purpose::Sql);
    let script = async {
        let parameters = server.startup().await;
        assert!(
            parameters.contains(&"user=ann".to_owned()) && parameters.contains(&"search_path=".to_owned())
        );
        script(&mut server).await;
        // Kept open so that the end of the stream is not what ends the login.
        server
    };
    let (connection, server) = within(async { tokio::join!(login, script) }).await;
    drop(server);
    connection
}

#[tokio::test]
async fn a_login_may_arrive_split_anywhere() {
    let bytes = [
        notice("hello"),
        message(b'v', &[0, 3, 0, 0, 0, 0, 0, 0]),
        welcome("10.3 (Debian)"),
    ]
    .concat();
    for at in 0..=bytes.len() {
        let connection = login(async |server| {
            server.send_split(&bytes, at).await;
            server.settings().await;
        })
        .await
        .unwrap();
        assert_eq!(connection.server_version_num(), 100_003);
        assert_eq!(
            (connection.backend_pid(), connection.auth_method()),
            (42, AuthMethod::None)
        );
        assert_eq!(connection.parameter("server_version"), Some("10.3 (Debian)"));
    }
}

#[tokio::test]
async fn versions_after_13_get_their_own_time_limits() {
    let connection = login(async |server| {
        server.send(&welcome("18.4")).await;
        let sql = String::from_utf8(server.expect(b'Q').await).unwrap();
        assert!(
            sql.contains("transaction_timeout") && sql.contains("idle_session_timeout"),
            "{sql}"
        );
        server.send(&[complete("SELECT 1"), ready(b'I')].concat()).await;
    })
    .await;
    assert!(connection.is_ok());
}

#[tokio::test]
async fn refusals_at_login_keep_their_code() {
    for (code, kind, action) in [
        ("28P01", Kind::Login, Action::Wait),
        ("3D000", Kind::Login, Action::Wait),
        ("53300", Kind::Server, Action::Reconnect),
        ("57P03", Kind::Server, Action::Reconnect),
    ] {
        let refusal = error("FATAL", code, "no");
        let failed = login(async |server| server.send(&refusal).await)
            .await
            .unwrap_err();
        assert_eq!((failed.kind, failed.action), (kind, action), "{failed}");
        assert_eq!(failed.sqlstate, SqlState::new(code));
    }
}

#[tokio::test]
async fn garbage_at_login_is_a_protocol_error() {
    let huge = [&b"R"[..], &0x7FFF_FFFFu32.to_be_bytes()].concat();
    for (bytes, kind) in [
        (b"R\0\0\0\x03".to_vec(), Kind::Protocol),
        (b"R\xFF\xFF\xFF\xFF".to_vec(), Kind::Protocol),
        (huge, Kind::Limit),
        (message(b'?', b"x"), Kind::Protocol),
        (message(b'W', b"\0\0\0"), Kind::Protocol),
        (message(b'R', b""), Kind::Protocol),
        (message(b'v', b""), Kind::Protocol),
        (message(b'v', &[0, 4, 0, 0, 0, 0, 0, 0]), Kind::Protocol),
        (message(b'R', &7u32.to_be_bytes()), Kind::Login),
        (welcome("no version"), Kind::Protocol),
    ] {
        let failed = login(async |server| server.send(&bytes).await).await.unwrap_err();
        assert_eq!(failed.kind, kind, "{bytes:?}: {failed}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_means_reconnect() {
    let (mut server, login) = Server::login(Purpose::Sql);
    let (failed, ()) = tokio::join!(login, async move {
        server.startup().await;
    });
    assert_eq!(failed.unwrap_err().action, Action::Reconnect);
}

#[tokio::test]
async fn passwords_are_sent_as_asked() {
    let clear = login(async |server| {
        server.send(&message(b'R', &3u32.to_be_bytes())).await;
        assert_eq!(server.expect(b'p').await, b"pw\0");
        server.send(&welcome("11.0")).await;
        server.settings().await;
    });
    assert_eq!(clear.await.unwrap().auth_method(), AuthMethod::Password);
    let md5 = login(async |server| {
        server.send(&message(b'R', &[0, 0, 0, 5, 1, 2, 3, 4])).await;
        let answer = String::from_utf8(server.expect(b'p').await).unwrap();
        assert!(answer.starts_with("md5") && answer.len() == 36, "{answer}");
        server.send(&welcome("11.0")).await;
        server.settings().await;
    });
    assert_eq!(md5.await.unwrap().auth_method(), AuthMethod::Md5);
}

#[tokio::test]
async fn a_missing_password_says_where_to_put_it() {
    let config = Config::parse_with("postgres://ann@fake/shop", &|_| None).unwrap();
    let failed = login_with(config, async |server| {
        server.send(&message(b'R', &3u32.to_be_bytes())).await
    })
    .await
    .unwrap_err();
    assert_eq!(failed.kind, Kind::Login);
    assert!(failed.to_string().contains(".pgpass"), "{failed}");
}

/// Plays SCRAM up to the server's first message, with `iterations`.
async fn scram_challenge(server: &mut Server, iterations: u32) {
    server.send(&message(b'R', b"\0\0\0\x0ASCRAM-SHA-256\0\0")).await;
    let initial = String::from_utf8_lossy(&server.expect(b'p').await).into_owned();
    let nonce = initial.rsplit("r=").next().unwrap().to_owned();
    let challenge = format!("r={nonce}x,s=c2FsdHNhbHQ=,i={iterations}");
    server
        .send(&message(
            b'R',
            &[&11u32.to_be_bytes()[..], challenge.as_bytes()].concat(),
        ))
        .await;
}

#[tokio::test]
async fn too_many_scram_iterations_are_explained() {
    let failed = login(async |server| scram_challenge(server, 100_001).await)
        .await
        .unwrap_err();
    assert_eq!(failed.kind, Kind::Login);
    assert!(
        failed.to_string().contains("scram_iterations") && failed.to_string().contains("100001"),
        "{failed}"
    );
}

#[tokio::test]
async fn a_server_that_skips_its_own_proof_is_refused() {
    let failed = login(async |server| {
        scram_challenge(server, 4096).await;
        server.expect(b'p').await;
        server.send(&welcome("18.0")).await;
    })
    .await
    .unwrap_err();
    assert_eq!(failed.kind, Kind::Protocol, "{failed}");
    let failed = login(async |server| {
        scram_challenge(server, 4096).await;
        server.expect(b'p').await;
        server.send(&message(b'R', b"\0\0\0\x0Cv=AAAA")).await;
    })
    .await
    .unwrap_err();
    assert_eq!(failed.kind, Kind::Login, "{failed}");
}

#[tokio::test]
async fn channel_binding_that_is_required_is_not_given_up() {
    let config =
        Config::parse_with("postgres://ann:pw@fake/shop?channel_binding=require", &|_| None).unwrap();
    for request in [
        message(b'R', b"\0\0\0\x0ASCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
        message(b'R', &3u32.to_be_bytes()),
        welcome("18.0"),
    ] {
        let failed = login_with(config.clone(), async |server| server.send(&request).await)
            .await
            .unwrap_err();
        assert_eq!(failed.kind, Kind::Login, "{failed}");
    }
}
