//! A server for tests: one end of a socket pair, and a script that says what it reads and writes.

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::connection::Connection;
use super::session::Purpose;
use super::stream::{Encryption, Stream};
use crate::config::Config;
use crate::error::PgError;

pub(crate) struct Server {
    socket: UnixStream,
}

/// A configuration with a password, independent of the environment.
pub(crate) fn config() -> Config {
    Config::parse_with("postgres://ann:pw@fake/shop", &|_| None).unwrap()
}

/// One message.
pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.put_u32(u32::try_from(body.len() + 4).unwrap());
    out.extend(body);
    out
}

pub(crate) fn error(severity: &str, code: &str, text: &str) -> Vec<u8> {
    fields(b'E', severity, code, text)
}

pub(crate) fn notice(text: &str) -> Vec<u8> {
    fields(b'N', "NOTICE", "00000", text)
}

fn fields(tag: u8, severity: &str, code: &str, text: &str) -> Vec<u8> {
    message(
        tag,
        format!("S{severity}\0V{severity}\0C{code}\0M{text}\0\0").as_bytes(),
    )
}

pub(crate) fn ready(status: u8) -> Vec<u8> {
    message(b'Z', &[status])
}

pub(crate) fn complete(tag: &str) -> Vec<u8> {
    message(b'C', format!("{tag}\0").as_bytes())
}

/// What a server of this version says after a login without a password.
pub(crate) fn welcome(version: &str) -> Vec<u8> {
    [
        message(b'R', &0u32.to_be_bytes()),
        message(b'S', format!("server_version\0{version}\0").as_bytes()),
        message(b'K', &[0, 0, 0, 42, 0, 0, 0, 7]),
        ready(b'I'),
    ]
    .concat()
}

impl Server {
    /// Starts a login of `purpose`; the script decides how it goes.
    pub(crate) fn login(purpose: Purpose) -> (Server, impl Future<Output = Result<Connection, PgError>>) {
        Server::login_with(config(), purpose)
    }

    pub(crate) fn login_with(
        config: Config,
        purpose: Purpose,
    ) -> (Server, impl Future<Output = Result<Connection, PgError>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let login = async move {
            let endpoint = config.endpoints()[0].clone();
            Connection::log_in(
                Stream::Unix(theirs),
                &config,
                &endpoint,
                Encryption::Plain,
                &purpose,
                &[],
            )
            .await
        };
        (Server { socket: ours }, login)
    }

    /// A connection that is logged in; version 11 has no settings to make after the login but that for commits.
    pub(crate) async fn connected(purpose: Purpose) -> (Server, Connection) {
        let (server, login) = Server::login(purpose);
        server.welcomed(login, &[]).await
    }

    /// The same; `backend` is the row by which the session learns what it is.
    pub(crate) async fn welcomed(
        mut self,
        login: impl Future<Output = Result<Connection, PgError>>,
        backend: &[u8],
    ) -> (Server, Connection) {
        let (connection, ()) = tokio::join!(login, async {
            self.startup().await;
            self.send(&welcome("11.22")).await;
            self.say_settings(backend).await;
        });
        (self, connection.unwrap())
    }

    /// Answers the statements after the login.
    pub(crate) async fn settings(&mut self) {
        self.say_settings(&[]).await;
    }

    async fn say_settings(&mut self, backend: &[u8]) {
        let sql = self.expect(b'Q').await;
        assert!(String::from_utf8_lossy(&sql).contains("pg_backend_pid()"));
        self.send(&[backend, &complete("SELECT 1"), &ready(b'I')].concat())
            .await;
    }

    /// The next connection to a socket.
    pub(crate) async fn accept(listener: &UnixListener) -> Server {
        let (socket, _) = listener.accept().await.unwrap();
        Server { socket }
    }

    /// Reads the startup packet; its parameters as `name=value`.
    pub(crate) async fn startup(&mut self) -> Vec<String> {
        let length = self.socket.read_u32().await.unwrap();
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        self.socket.read_exact(&mut body).await.unwrap();
        assert_eq!(&body[..4], [0, 3, 0, 0], "protocol 3.0");
        let words: Vec<String> = body[4..]
            .split(|b| *b == 0)
            .map(|word| String::from_utf8(word.to_vec()).unwrap())
            .collect();
        words
            .chunks(2)
            .filter(|pair| pair.len() == 2)
            .map(|pair| pair.join("="))
            .collect()
    }

    /// Reads one message.
    pub(crate) async fn read(&mut self) -> (u8, Vec<u8>) {
        let tag = self.socket.read_u8().await.unwrap();
        let length = self.socket.read_u32().await.unwrap();
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        self.socket.read_exact(&mut body).await.unwrap();
        (tag, body)
    }

    /// Reads one message, which must be of this type.
    pub(crate) async fn expect(&mut self, tag: u8) -> Vec<u8> {
        let (found, body) = self.read().await;
        assert_eq!(
            char::from(found),
            char::from(tag),
            "{}",
            String::from_utf8_lossy(&body)
        );
        body
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // A client that has seen enough may have hung up.
        let _ = self.socket.write_all(bytes).await;
    }

    /// Sends a part, lets the client see it, then sends the rest.
    pub(crate) async fn send_split(&mut self, bytes: &[u8], at: usize) {
        self.send(&bytes[..at]).await;
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        self.send(&bytes[at..]).await;
    }

    /// All that the client still sends until it closes.
    pub(crate) async fn rest(&mut self) -> BytesMut {
        let mut rest = BytesMut::new();
        while self.socket.read_buf(&mut rest).await.is_ok_and(|n| n > 0) {}
        rest
    }
}
