//! `--listen`: `/livez`, `/readyz`, `/status` and `/metrics` of a running instance. Read-only, GET and HEAD only.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cdc_core::{Error, Kind, Result};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::metrics;
use crate::monitor::{Monitor, Observation};
use crate::output::Report;

/// Connections served at a time; more wait in the system's queue.
const CONNECTIONS: usize = 32;
/// A connection that takes longer is closed: nobody holds a place by doing nothing.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest request head.
const HEAD_BYTES: usize = 16 << 10;
/// After a failed accept (out of descriptors), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Endpoints that listen but do not answer yet.
#[derive(Debug)]
pub struct Endpoints {
    listener: TcpListener,
}

impl Endpoints {
    /// Listens on `address`: `host:port`, or a port on the loopback interface.
    ///
    /// # Errors
    /// [`Kind::Config`] when that is not possible.
    pub async fn bind(address: &str) -> Result<Self> {
        let full = match address.parse::<u16>() {
            Ok(port) => format!("127.0.0.1:{port}"),
            Err(_) => address.to_owned(),
        };
        let listener = TcpListener::bind(&full).await.map_err(|error| {
            Error::new(Kind::Config, "cannot listen for HTTP")
                .object(format!("--listen {address}"))
                .remedy("give a free host:port of this machine, such as 127.0.0.1:9187")
                .caused_by(error)
        })?;
        Ok(Self { listener })
    }

    /// The address, with the port that the system chose for port 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Answers until dropped.
    pub async fn serve(self, monitor: Arc<Monitor>) -> Infallible {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // Closed only by us, which we never do.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                continue;
            };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "HTTP connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let monitor = Arc::clone(&monitor);
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let answer = answer(&request, &monitor);
                    async { Ok::<_, Infallible>(answer) }
                });
                let connection = http1::Builder::new()
                    .keep_alive(false)
                    .max_buf_size(HEAD_BYTES)
                    .serve_connection(TokioIo::new(stream), service);
                // A client that breaks off or breaks the protocol only loses its own answer.
                let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
                drop(place);
            });
        }
    }
}

fn answer(request: &Request<Incoming>, monitor: &Monitor) -> Response<String> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n".to_owned());
    }
    page(request.uri().path(), &monitor.observe())
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

fn page(path: &str, seen: &Observation) -> Response<String> {
    match path {
        "/livez" => respond(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => {
            let status = if metrics::is_ready(seen) {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            let state = crate::status::state_name(seen.stats.phase);
            respond(status, TEXT, format!("{state}\n"))
        }
        "/status" => {
            let job = &seen.facts.job;
            let status = seen.facts.status(&format!("--job {job}"));
            let report = Report::new(crate::exit::OK, &status, String::new());
            let object = report.envelope("status", Some(job));
            respond(StatusCode::OK, JSON, format!("{object}\n"))
        }
        "/metrics" => respond(StatusCode::OK, metrics::CONTENT_TYPE, metrics::render(seen)),
        _ => respond(
            StatusCode::NOT_FOUND,
            TEXT,
            "there are /livez, /readyz, /status and /metrics\n".to_owned(),
        ),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use cdc_core::engine::JobNames;
    use cdc_core::pipeline::{Phase, StreamStats};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test]
    async fn endpoints_answer() {
        let stats = Arc::new(StreamStats::default());
        let names = JobNames {
            job: "shop".into(),
            slot: "cdc_sync_shop".into(),
        };
        let monitor = Arc::new(Monitor::new(names, Arc::clone(&stats)));
        let endpoints = Endpoints::bind("127.0.0.1:0").await.expect("a free port");
        let address = endpoints.address().expect("an address");
        let server = tokio::spawn(endpoints.serve(monitor));
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n");

        assert!(ask(address, &get("/livez")).await.starts_with("HTTP/1.1 200"));
        let waiting = ask(address, &get("/readyz")).await;
        assert!(
            waiting.starts_with("HTTP/1.1 503") && waiting.ends_with("starting\n"),
            "{waiting}"
        );
        stats.update(|stats| stats.phase = Phase::Synced);
        assert!(ask(address, &get("/readyz")).await.starts_with("HTTP/1.1 200"));
        let status = ask(address, &get("/status?x=1")).await;
        assert!(
            status.contains("\"kind\":\"status\",\"job\":\"shop\""),
            "{status}"
        );
        let metrics = ask(address, &get("/metrics")).await;
        assert!(
            metrics.contains("version=0.0.4") && metrics.contains("cdc_sync_ready{"),
            "{metrics}"
        );
        assert!(ask(address, &get("/")).await.starts_with("HTTP/1.1 404"));
        let posted = ask(
            address,
            "POST /status HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
        assert!(posted.starts_with("HTTP/1.1 405"), "{posted}");
        let long = format!("GET /{} HTTP/1.1\r\nhost: h\r\n\r\n", "x".repeat(2 * HEAD_BYTES));
        assert!(ask(address, &long).await.starts_with("HTTP/1.1 4"));
        server.abort();
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_had_is_a_usage_error() {
        let error = Endpoints::bind("256.0.0.1:1").await.expect_err("no such address");
        assert_eq!(error.kind(), Kind::Config);
    }
}
