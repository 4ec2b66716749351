//! What stands between `check` and the server: poolers, balancers, weak logins; and time.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use cdc_core::engine::Severity;
use testbed::PgCluster;
use testbed::postgres::PasswordAuth;

use super::{checked, has};

/// What a relay does to the server's first words.
type Edit = fn(&mut [u8]);

/// A port whose connections go to `servers` in turn.
fn relay(servers: Vec<u16>, edit: Edit) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for (server, client) in servers.iter().cycle().zip(listener.incoming()) {
            let (client, server) = (
                client.unwrap(),
                TcpStream::connect(("127.0.0.1", *server)).unwrap(),
            );
            let (to_server, from_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || pass(from_client, to_server, |_| ()));
            thread::spawn(move || pass(server, client, edit));
        }
    });
    port
}

fn pass(mut from: TcpStream, mut to: TcpStream, edit: Edit) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        edit(&mut buffer[..read]);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // The other direction may have closed them.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Gives the client another process number in BackendKeyData, as a pooler does whose sessions are its own.
fn another_process(bytes: &mut [u8]) {
    let key_data = [b'K', 0, 0, 0, 12];
    if let Some(at) = bytes
        .windows(key_data.len())
        .position(|window| window == key_data)
    {
        bytes[at + key_data.len()] ^= 0x40;
    }
}

fn pair() -> [PgCluster; 2] {
    [13, 17].map(|major| {
        let cluster = PgCluster::builder(major).start().unwrap();
        cluster.create_database("app").unwrap();
        cluster
    })
}

#[test]
fn poolers_and_balancers_are_seen() {
    let [source, target] = pair();
    source.sql("app", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let direct = relay(vec![source.port()], |_| ());
    let found = checked(&source.url_at(direct, "app"), &target.url("app"));
    assert!(found.is_empty(), "{found:#?}");

    let pooled = relay(vec![source.port()], another_process);
    let found = checked(&source.url_at(pooled, "app"), &target.url("app"));
    assert!(has(&found, "PG-POOLER"), "{found:#?}");

    let other = PgCluster::builder(13).start().unwrap();
    other.create_database("app").unwrap();
    other.sql("app", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let balanced = relay(vec![source.port(), other.port()], |_| ());
    let found = checked(&source.url_at(balanced, "app"), &target.url("app"));
    let seen = found.iter().find(|finding| finding.id == "PG-SEVERAL-SERVERS");
    assert_eq!(seen.unwrap().severity, Severity::Fail, "{found:#?}");
}

#[test]
fn weak_logins_are_named() {
    let [_, target] = pair();
    for (method, expected) in [
        (PasswordAuth::Clear, Some(Severity::Warn)),
        (PasswordAuth::Md5, Some(Severity::Info)),
        (PasswordAuth::Scram, None),
    ] {
        let source = PgCluster::builder(14).password_auth(method).start().unwrap();
        source.create_database("app").unwrap();
        source.sql("app", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
        let found = checked(&source.url("app"), &target.url("app"));
        let seen = found.iter().find(|finding| finding.id == "PG-PASSWORD-METHOD");
        assert_eq!(
            seen.map(|finding| finding.severity),
            expected,
            "{method:?} {found:#?}"
        );
    }
}

#[test]
fn a_transaction_that_stays_open_is_named() {
    let [source, target] = pair();
    source.sql("app", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let (source_url, target_url) = (source.url("app"), target.url("app"));
    assert!(!has(&checked(&source_url, &target_url), "PG-LONG-TRANSACTION"));
    super::block_on(async {
        let (client, connection) = tokio_postgres::connect(&source_url, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        client
            .batch_execute("BEGIN; INSERT INTO t VALUES (1)")
            .await
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        let look =
            || thread::scope(|scope| scope.spawn(|| checked(&source_url, &target_url)).join().unwrap());
        while !has(&look(), "PG-LONG-TRANSACTION") {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        client.batch_execute("ROLLBACK").await.unwrap();
        assert!(!has(&look(), "PG-LONG-TRANSACTION"));
    });
}
