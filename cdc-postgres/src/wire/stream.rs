//! The byte stream to one server: TCP or Unix-domain socket, with or without TLS.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};
use tokio_rustls::client::TlsStream;

use crate::config::{Config, Endpoint, SslMode};
use crate::error::PgError;
use crate::tls;

/// After this much silence the kernel asks the peer whether it is still there, every [`KEEPALIVE_INTERVAL`], so that
/// a peer that vanished without a word (power, NAT table) is noticed within a minute.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// How long what was sent may stay unacknowledged. While it does, the kernel sends no keepalives but repeats it, for a
/// quarter of an hour by default.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// The receive buffer that makes a window small. Linux takes twice as much, and begins with a half or a quarter of that for
/// the window, as its version and `tcp_adv_win_scale` have it.
const NARROW_BUFFER: usize = 32 << 10;
/// The largest segment then: the smallest such window takes two.
#[cfg(target_os = "linux")]
const NARROW_SEGMENT: u32 = 8 << 10;

/// An open byte stream to a server.
#[derive(Debug)]
pub enum Stream {
    /// TCP without encryption.
    Tcp(TcpStream),
    /// A Unix-domain socket.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls {
        /// The encrypted stream.
        stream: Box<TlsStream<TcpStream>>,
        /// The hash of the server's certificate for `tls-server-end-point` channel binding, if it has one.
        server_end_point: Option<Vec<u8>>,
    },
}

impl Stream {
    /// Whether the stream is encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Stream::Tls { .. })
    }

    /// Whether the server may only send a little at a time ([`narrow`]).
    pub(crate) fn is_narrow(&self) -> bool {
        let tcp = match self {
            Stream::Tcp(tcp) => tcp,
            Stream::Tls { stream, .. } => stream.get_ref().0,
            Stream::Unix(_) => return false,
        };
        // Linux takes twice of what was asked for, and says so.
        let is_small = |size| size <= 2 * NARROW_BUFFER;
        cfg!(target_os = "linux")
            && tcp.peer_addr().is_ok_and(is_loopback)
            && SockRef::from(tcp).recv_buffer_size().is_ok_and(is_small)
    }

    /// What SCRAM-SHA-256-PLUS binds to.
    pub(crate) fn server_end_point(&self) -> Option<&[u8]> {
        match self {
            Stream::Tls { server_end_point, .. } => server_end_point.as_deref(),
            _ => None,
        }
    }
}

/// One way to try a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// Do not ask for TLS.
    Plain,
    /// Ask for TLS and go on without it if the server has none.
    IfOffered,
    /// Ask for TLS and give up if the server has none.
    Must,
}

/// The ways in which a server is tried, in order (libpq manual, "SSL Mode Descriptions").
pub(crate) fn attempts(config: &Config, endpoint: &Endpoint) -> &'static [Encryption] {
    use Encryption::{IfOffered, Must, Plain};
    match (endpoint, config.ssl_mode()) {
        // sslmode is ignored for Unix-domain sockets, as in libpq.
        (Endpoint::Unix { .. }, _) | (_, SslMode::Disable) => &[Plain],
        (_, SslMode::Allow) => &[Plain, Must],
        (_, SslMode::Prefer) => &[IfOffered, Plain],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Must],
    }
}

/// How much a server may send before it waits for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// As much as the system finds good.
    Usual,
    /// Little, when the server is on the same machine.
    NarrowOnLoopback,
}

/// Opens the stream to one server in one way. The time limit is the caller's.
pub(crate) async fn open(
    config: &Config,
    endpoint: &Endpoint,
    encryption: Encryption,
    window: Window,
) -> Result<Stream, PgError> {
    match endpoint {
        Endpoint::Unix { .. } => Ok(Stream::Unix(UnixStream::connect(endpoint.to_string()).await?)),
        Endpoint::Tcp { host, port } => {
            let mut tcp = open_tcp(host, *port, window).await?;
            if encryption == Encryption::Plain {
                return Ok(Stream::Tcp(tcp));
            }
            if tls::offered(&mut tcp).await? {
                let tls = tls::handshake(tcp, host, config).await?;
                return Ok(Stream::Tls {
                    stream: Box::new(tls.stream),
                    server_end_point: tls.server_end_point,
                });
            }
            if encryption == Encryption::Must {
                return Err(
                    PgError::tls("the server does not support TLS, but sslmode requires it")
                        .with_hint("set ssl = on in the server's configuration, or sslmode=disable"),
                );
            }
            Ok(Stream::Tcp(tcp))
        }
    }
}

/// Tries all addresses of a name.
async fn open_tcp(host: &str, port: u16, window: Window) -> Result<TcpStream, PgError> {
    let addresses = lookup_host((host, port))
        .await
        .map_err(|e| PgError::connection(format!("the host name cannot be resolved: {e}")))?;
    let mut last = None;
    for address in addresses {
        match connect(address, window).await {
            Ok(tcp) => {
                // Small messages (status updates, Sync) must not wait for an acknowledgement.
                tcp.set_nodelay(true)?;
                let keepalive = TcpKeepalive::new()
                    .with_time(KEEPALIVE_IDLE)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(KEEPALIVE_PROBES);
                SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
                #[cfg(target_os = "linux")]
                SockRef::from(&tcp).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
                return Ok(tcp);
            }
            Err(error) => last = Some(PgError::connection(format!("{error} (address {address})"))),
        }
    }
    Err(last.unwrap_or_else(|| PgError::connection("the host name has no address")))
}

async fn connect(address: SocketAddr, window: Window) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if window == Window::NarrowOnLoopback && is_loopback(address) {
        narrow(&SockRef::from(&socket));
    }
    socket.connect(address).await
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Makes the window small. Segments must be smaller still, and that can be agreed upon only while connecting: a window
/// below the size of a segment (64 KiB on a loopback device) opens by a timer alone.
#[cfg(target_os = "linux")]
fn narrow(socket: &SockRef<'_>) {
    if socket.set_tcp_mss(NARROW_SEGMENT).is_ok() {
        // Without it the window is as usual, and so is everything else.
        let _ = socket.set_recv_buffer_size(NARROW_BUFFER);
    }
}

#[cfg(not(target_os = "linux"))]
fn narrow(_socket: &SockRef<'_>) {}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls { stream, .. } => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls { stream, .. } => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls { stream, .. } => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
            Stream::Tls { stream, .. } => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_peer_that_vanished_is_noticed_within_a_minute() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let tcp = open_tcp("127.0.0.1", port, Window::Usual).await.unwrap();
        let socket = SockRef::from(&tcp);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn segments_for_a_narrow_window_are_small_and_it_opens_again() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        const SENT: usize = 8 << 20;
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let usual = open_tcp("127.0.0.1", port, Window::Usual).await.unwrap();
        assert!(!Stream::Tcp(usual).is_narrow());
        server.accept().await.unwrap();

        let tcp = open_tcp("127.0.0.1", port, Window::NarrowOnLoopback)
            .await
            .unwrap();
        let mut stream = Stream::Tcp(tcp);
        assert!(stream.is_narrow());
        let (mut peer, _) = server.accept().await.unwrap();
        assert!(SockRef::from(&peer).tcp_mss().unwrap() <= NARROW_SEGMENT);
        let sending = tokio::spawn(async move {
            peer.set_nodelay(true).unwrap();
            for row in 0..SENT / 256 {
                peer.write_all(&[row.to_le_bytes()[0]; 256]).await.unwrap();
            }
        });
        // Opened by a timer alone, the window lets through 100 kB a second.
        let mut received = Vec::new();
        let reading = stream.read_to_end(&mut received);
        let all = tokio::time::timeout(Duration::from_secs(30), reading).await;
        all.expect("the window opens by a timer alone").unwrap();
        sending.await.unwrap();
        let rows = received.chunks_exact(256).enumerate();
        assert_eq!(received.len(), SENT);
        assert!(
            rows.into_iter()
                .all(|(row, bytes)| bytes.iter().all(|byte| *byte == row.to_le_bytes()[0]))
        );
    }
}
