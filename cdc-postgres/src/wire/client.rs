//! tokio-postgres over our own stream, so that hosts, TLS, passwords and session settings are the same for both.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::attempts::{Attempt, Attempts};
use super::connection::Connection;
use super::session::{self, Purpose};
use super::stream::{self, Stream};
use crate::config::{self, Config, TargetSessionAttrs};
use crate::error::{Kind, PgError};

impl Config {
    /// Opens a tokio-postgres client, with `extra` settings of the session, and starts the task that drives it.
    ///
    /// The task ends when the client is dropped or the connection breaks; its result then tells why.
    pub async fn connect_client(
        &self,
        extra: &[(&str, &str)],
    ) -> Result<(tokio_postgres::Client, JoinHandle<Result<(), PgError>>), PgError> {
        let mut attempts = Attempts::new(self);
        while let Some(attempt) = attempts.next() {
            match attempts.limited(try_once(self, &attempt, extra)).await {
                Ok(client) => return Ok(client),
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
) -> Result<(tokio_postgres::Client, JoinHandle<Result<(), PgError>>), PgError> {
    if attempt.wanted != TargetSessionAttrs::Any {
        // tokio-postgres cannot say what kind of server it is connected to; a connection of ours can.
        Connection::try_once(config, attempt, &Purpose::Sql, &[])
            .await?
            .close()
            .await;
    }
    let stream = stream::open(config, &attempt.endpoint, attempt.encryption).await?;
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
        .connect_raw(stream, Bind)
        .await
        .map_err(|error| login_error(error, config, attempt))?;
    let version = connection
        .parameter("server_version")
        .and_then(super::ServerVersion::parse);
    let driver = tokio::spawn(async move { connection.await.map_err(PgError::from) });
    // The library takes text for UTF-8: its sessions keep that encoding, and read no values of tables.
    let after = version.and_then(|version| session::after_startup(version, &Purpose::Sql, None));
    if let Some(sql) = after {
        client.batch_execute(&sql).await?;
    }
    Ok((client, driver))
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
struct Bind;

impl TlsConnect<Stream> for Bind {
    type Stream = Bound;
    type Error = Infallible;
    type Future = Ready<Result<Bound, Infallible>>;

    fn connect(self, stream: Stream) -> Self::Future {
        ready(Ok(Bound(stream)))
    }
}

/// A stream that tells what SCRAM can be bound to.
struct Bound(Stream);

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
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Bound {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}
