//! tokio-postgres over our own stream, so that hosts, TLS, passwords and session settings are the same for both.

use std::convert::Infallible;
use std::future::{Ready, poll_fn, ready};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::attempts::{Attempt, Attempts};
use super::connection::Connection;
use super::session::{self, Purpose};
use super::silence::{self, Backend, Owed, Silent};
use super::stream::{self, Encryption, Stream, Window};
use crate::config::{self, Config, TargetSessionAttrs};
use crate::error::{Kind, PgError};

/// A client, and what goes with it.
#[derive(Debug)]
pub(crate) struct OpenedClient {
    pub(crate) client: tokio_postgres::Client,
    pub(crate) driver: JoinHandle<Result<(), PgError>>,
    pub(crate) owed: Owed,
}

impl Config {
    /// Opens a tokio-postgres client, with `extra` settings of the session, and starts the task that drives it.
    ///
    /// The task ends when the client is dropped or the connection breaks; its result then tells why.
    pub async fn connect_client(
        &self,
        extra: &[(&str, &str)],
    ) -> Result<(tokio_postgres::Client, JoinHandle<Result<(), PgError>>), PgError> {
        let OpenedClient { client, driver, .. } = self.open_client(extra).await?;
        Ok((client, driver))
    }

    /// The same, with the account of what the server owes it.
    pub(crate) async fn open_client(&self, extra: &[(&str, &str)]) -> Result<OpenedClient, PgError> {
        let mut attempts = Attempts::new(self);
        while let Some(attempt) = attempts.next() {
            match attempts.limited(try_once(self, &attempt, extra)).await {
                Ok(opened) => return Ok(opened),
                Err(error) => attempts.failed(&attempt, error),
            }
        }
        Err(attempts.into_error())
    }
}

async fn try_once(
    config: &Config,
    attempt: &Attempt,
    extra: &[(&str, &str)],
) -> Result<OpenedClient, PgError> {
    if attempt.wanted != TargetSessionAttrs::Any {
        // tokio-postgres cannot say what kind of server it is connected to; a connection of ours can.
        Connection::try_once(config, attempt, &Purpose::Sql, &[])
            .await?
            .close()
            .await;
    }
    let stream = stream::open(config, &attempt.endpoint, attempt.encryption, Window::Usual).await?;
    let owed = Owed::new();
    let mut settings = tokio_postgres::Config::new();
    settings
        .user(config.user())
        .dbname(config.database())
        .application_name(config.application_name())
        .options(session::as_options(config.options(), extra))
        .channel_binding(match config.channel_binding() {
            config::ChannelBinding::Disable => tokio_postgres::config::ChannelBinding::Disable,
            config::ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
            config::ChannelBinding::Require => tokio_postgres::config::ChannelBinding::Require,
        })
        // The stream is already as encrypted as it will be. "Direct" makes the library skip its own SSLRequest and
        // take the stream from `Bound`, from which it learns what to bind SCRAM to.
        .ssl_mode(SslMode::Require)
        .ssl_negotiation(SslNegotiation::Direct);
    if let Some(password) = config.password_for(&attempt.endpoint) {
        settings.password(password);
    }
    let (client, connection) = settings
        .connect_raw(stream, Bind(owed.clone()))
        .await
        .map_err(|error| login_error(error, config, attempt))?;
    let version = connection
        .parameter("server_version")
        .and_then(super::ServerVersion::parse);
    let (tell, told) = oneshot::channel();
    let silent = (config.clone(), attempt.endpoint.clone(), attempt.encryption);
    let driver = tokio::spawn(drive(connection, owed.clone(), silent, told));
    if let Some(version) = version {
        // The library takes text for UTF-8: its sessions keep that encoding, and read no values of tables.
        let after = session::after_startup(version, &Purpose::Sql, None, None);
        let answer = client.simple_query(&after).await?;
        let row = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) if row.len() > 1 => Some(row),
            _ => None,
        });
        let backend = row.and_then(|row| Backend::read(|place| row.try_get(place).ok()?));
        // The driver has ended if nobody takes it.
        let _ = tell.send(backend);
    }
    Ok(OpenedClient { client, driver, owed })
}

/// Drives a client, and asks the server by another connection when it owes an answer and says nothing.
async fn drive(
    connection: impl Future<Output = Result<(), tokio_postgres::Error>>,
    owed: Owed,
    (config, endpoint, encryption): (config::Config, config::Endpoint, Encryption),
    mut told: oneshot::Receiver<Option<Backend>>,
) -> Result<(), PgError> {
    let mut connection = pin!(connection);
    let mut backend = None;
    let is_silent = || {
        owed.silence()
            .is_some_and(|silence| silence >= silence::patience())
    };
    loop {
        match timeout(silence::patience() / 4, &mut connection).await {
            Ok(ended) => return ended.map_err(PgError::from),
            Err(_) if is_silent() => {}
            Err(_) => continue,
        }
        if backend.is_none() {
            backend = told.try_recv().ok();
        }
        // Before the end of the login there is a limit of its own.
        let (Some(backend), Some(announced_pid)) = (&backend, owed.pid()) else {
            continue;
        };
        let silent = Silent {
            config: config.clone(),
            endpoint: endpoint.clone(),
            encryption,
            announced_pid,
            backend: backend.clone(),
        };
        let mut asked = silent.expect_work();
        let ended = poll_fn(|cx| match connection.as_mut().poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Ok(Some(ended))),
            Poll::Pending if !is_silent() => Poll::Ready(Ok(None)),
            Poll::Pending => asked.as_mut().poll(cx).map_ok(|()| None),
        });
        if let Some(ended) = ended.await? {
            return ended.map_err(PgError::from);
        }
        owed.forgive();
    }
}

/// What the library itself refuses while it logs in is about the login: a missing password, an unknown method.
fn login_error(error: tokio_postgres::Error, config: &Config, attempt: &Attempt) -> PgError {
    let error = PgError::from(error);
    if error.kind != Kind::Usage {
        return error.at_login();
    }
    if config.password_for(&attempt.endpoint).is_none() {
        return super::login::password_missing(config, "");
    }
    PgError::login(error.message.clone())
}

/// Gives tokio-postgres the stream as it is.
struct Bind(Owed);

impl TlsConnect<Stream> for Bind {
    type Stream = Bound;
    type Error = Infallible;
    type Future = Ready<Result<Bound, Infallible>>;

    fn connect(self, stream: Stream) -> Self::Future {
        ready(Ok(Bound(stream, self.0)))
    }
}

/// A stream that tells what SCRAM can be bound to, and keeps account of what the server owes.
struct Bound(Stream, Owed);

impl TlsStream for Bound {
    fn channel_binding(&self) -> ChannelBinding {
        match self.0.server_end_point() {
            Some(hash) => ChannelBinding::tls_server_end_point(hash.to_vec()),
            None => ChannelBinding::none(),
        }
    }
}

impl AsyncRead for Bound {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Bound(stream, owed) = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(stream).poll_read(cx, buf);
        let read = buf.filled().get(before..).unwrap_or_default();
        if !read.is_empty() {
            owed.read(read);
        }
        polled
    }
}

impl AsyncWrite for Bound {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Bound(stream, owed) = self.get_mut();
        let polled = Pin::new(stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = &polled {
            owed.wrote(buf.get(..*written).unwrap_or_default());
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}
