//! A logged-in connection.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::attempts::{Attempt, Attempts, limited};
use super::channel::{Channel, Incoming, MAX_MESSAGE};
use super::copy::CopyIn;
use super::login::{self, AuthMethod, Session};
use super::notice;
use super::pipeline::Pipeline;
use super::rows::{self, QueryResult, Row};
use super::session::{self, Purpose};
use super::silence::{self, Backend, Silent};
use super::stream::{self, Encryption, Stream, Window};
use super::version::{Feature, ServerVersion};
use crate::config::{Config, Endpoint, TargetSessionAttrs};
use crate::error::PgError;

/// Where the session stands, from the last ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// Not in a transaction.
    Idle,
    /// In a transaction.
    InTransaction,
    /// In a transaction that failed: only ROLLBACK is accepted.
    Failed,
}

/// What the server still owes us, or we the server, when a call was given up half-way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Debts {
    /// ReadyForQuery messages that are to come.
    pub(super) ready: u32,
    /// Extended-protocol messages were sent without a Sync behind them.
    pub(super) unsynced: bool,
    /// The server waits for COPY data.
    pub(super) copying: bool,
    /// A message was written in part and can no longer be completed.
    pub(super) torn: bool,
}

/// A connection to one server, logged in.
///
/// Every call may be dropped before it ends: the next call first brings the connection back in step, waiting for the
/// server to finish what it was told to do. A transaction that was open stays open.
#[derive(Debug)]
pub struct Connection {
    pub(super) channel: Channel,
    pub(super) debts: Debts,
    pub(super) status: TransactionStatus,
    session: Session,
    /// what the session is to the server itself
    backend: Option<Backend>,
    endpoint: Endpoint,
    encryption: Encryption,
    config: Config,
}

impl Connection {
    /// Connects to the first server of the list that lets us in and is of the wanted kind (`target_session_attrs`).
    ///
    /// `extra` are further settings of the session, for example `("session_replication_role", "replica")`.
    /// Each attempt has the time limit of `connect_timeout`.
    pub async fn connect(
        config: &Config,
        purpose: &Purpose,
        extra: &[(&str, &str)],
    ) -> Result<Connection, PgError> {
        let mut attempts = Attempts::new(config);
        while let Some(attempt) = attempts.next() {
            match attempts
                .limited(Connection::try_once(config, &attempt, purpose, extra))
                .await
            {
                Ok(connection) => return Ok(connection),
                Err(error) => attempts.failed(&attempt, error),
            }
        }
        Err(attempts.into_error())
    }

    pub(super) async fn try_once(
        config: &Config,
        attempt: &Attempt,
        purpose: &Purpose,
        extra: &[(&str, &str)],
    ) -> Result<Connection, PgError> {
        let stream = stream::open(config, &attempt.endpoint, attempt.encryption, purpose.window()).await?;
        let connection = Connection::log_in(
            stream,
            config,
            &attempt.endpoint,
            attempt.encryption,
            purpose,
            extra,
        )
        .await?;
        connection.fits(attempt.wanted).await
    }

    /// Logs in on an open stream.
    pub(super) async fn log_in(
        stream: Stream,
        config: &Config,
        endpoint: &Endpoint,
        encryption: Encryption,
        purpose: &Purpose,
        extra: &[(&str, &str)],
    ) -> Result<Connection, PgError> {
        let mut channel = Channel::new(stream, MAX_LOGIN_MESSAGE);
        let session = login::login(&mut channel, config, endpoint, purpose, extra).await?;
        channel.set_max_message(MAX_MESSAGE);
        let mut connection = Connection {
            channel,
            debts: Debts::default(),
            status: TransactionStatus::Idle,
            session,
            backend: None,
            endpoint: endpoint.clone(),
            encryption,
            config: config.clone(),
        };
        let encoding = connection.parameter("server_encoding");
        let sql = session::after_startup(connection.session.version, purpose, encoding, config.options());
        let results = connection.simple_query(&sql).await?;
        let row = results.last().and_then(|result| result.rows.first());
        connection.backend = row.and_then(|row| Backend::read(|place| row.text(place).ok()?));
        Ok(connection)
    }

    /// Hands the connection back if the server is of the wanted kind.
    async fn fits(mut self, wanted: TargetSessionAttrs) -> Result<Connection, PgError> {
        let (about_recovery, want) = match wanted {
            TargetSessionAttrs::Any => return Ok(self),
            TargetSessionAttrs::ReadWrite => (false, false),
            TargetSessionAttrs::ReadOnly => (false, true),
            TargetSessionAttrs::Primary => (true, false),
            // A standby is preferred by asking for one first, and for any after that.
            TargetSessionAttrs::Standby | TargetSessionAttrs::PreferStandby => (true, true),
        };
        if self.is_restricted(about_recovery).await? == want {
            return Ok(self);
        }
        let is = match (about_recovery, want) {
            (true, true) => "not a standby",
            (true, false) => "a standby",
            (false, true) => "not read-only",
            (false, false) => "read-only",
        };
        let error = PgError::connection(format!("the server is {is}"));
        self.close().await;
        Err(error.with_hint("target_session_attrs asks for another kind of server"))
    }

    /// Whether the server is in recovery, or its transactions read-only.
    async fn is_restricted(&mut self, recovery: bool) -> Result<bool, PgError> {
        let on = |connection: &Connection, name| connection.parameter(name) == Some("on");
        if self.session.version.has(Feature::ReportsRecovery) {
            let standby = on(self, "in_hot_standby");
            return Ok(standby || (!recovery && on(self, "default_transaction_read_only")));
        }
        let sql = if recovery {
            "SELECT pg_catalog.pg_is_in_recovery()"
        } else {
            "SHOW transaction_read_only"
        };
        let answer = self.single_value(sql).await?;
        Ok(matches!(answer.as_deref(), Some("t" | "on")))
    }

    /// The server's version.
    pub fn server_version(&self) -> ServerVersion {
        self.session.version
    }

    /// The server's version as `server_version_num`, for example 180004.
    pub fn server_version_num(&self) -> u32 {
        self.session.version.0
    }

    /// The process id of the session's backend.
    pub fn backend_pid(&self) -> i32 {
        self.session.backend_pid
    }

    /// What the server knows the session as; `None` behind a pooler, which may hand it on to others.
    pub(crate) fn backend(&self) -> Option<&Backend> {
        let announced = self.session.backend_pid;
        self.backend.as_ref().filter(|ours| ours.pid == announced)
    }

    /// How the server checked our identity.
    pub fn auth_method(&self) -> AuthMethod {
        self.session.auth
    }

    /// Whether the connection is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.channel.stream().is_encrypted()
    }

    /// A setting that the server reports (ParameterStatus), for example `server_encoding`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.session.parameters.get(name).map(String::as_str)
    }

    /// All settings that the server reports.
    pub fn parameters(&self) -> &BTreeMap<String, String> {
        &self.session.parameters
    }

    /// The server of the list that this is a connection to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Where the session stands; true once the last call has returned.
    pub fn transaction_status(&self) -> TransactionStatus {
        self.status
    }

    /// Whether no answer is owed for a call that was dropped.
    pub(crate) fn is_settled(&self) -> bool {
        self.debts == Debts::default()
    }

    /// Whether the server waits for a command outside a transaction.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_settled() && self.status == TransactionStatus::Idle
    }

    /// What is needed to cancel this connection's statement from elsewhere.
    pub fn cancel_token(&self) -> CancelToken {
        CancelToken {
            config: self.config.clone(),
            endpoint: self.endpoint.clone(),
            encryption: self.encryption,
            backend_pid: self.session.backend_pid,
            key: self.session.cancel_key,
        }
    }

    /// Asks the server to cancel the statement that this connection runs.
    pub async fn cancel(&self) -> Result<(), PgError> {
        self.cancel_token().cancel().await
    }

    /// Runs one or more statements by the simple query protocol; one result for each.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<QueryResult>, PgError> {
        self.settle().await?;
        self.send_query(sql)?;
        let mut results = Vec::new();
        let mut current = QueryResult::default();
        let mut failure = None;
        loop {
            match self.receive().await? {
                Message::RowDescription(body) => current.columns = rows::columns(&body)?,
                Message::DataRow(body) => current.rows.push(Row::new(&body)?),
                Message::CommandComplete(body) => {
                    let tag = rows::tag(&body)?;
                    current.tag = tag.to_owned();
                    current.affected = rows::affected(tag);
                    results.push(std::mem::take(&mut current));
                }
                Message::EmptyQueryResponse => results.push(QueryResult::default()),
                Message::ErrorResponse(body) => {
                    failure.get_or_insert(PgError::from_fields(body.fields()));
                }
                Message::ReadyForQuery(body) => {
                    self.ready(body.status());
                    return failure.map_or(Ok(results), Err);
                }
                _ => return Err(self.out_of_step("a simple query")),
            }
        }
    }

    /// The first column of the first row of a query, as text.
    pub(crate) async fn single_value(&mut self, sql: &str) -> Result<Option<String>, PgError> {
        let results = self.simple_query(sql).await?;
        match results.first().and_then(|result| result.rows.first()) {
            Some(row) => Ok(row.text(0)?.map(str::to_owned)),
            None => Ok(None),
        }
    }

    /// Starts a pipeline of the extended protocol. See [`Pipeline`].
    pub async fn pipeline(&mut self) -> Result<Pipeline<'_>, PgError> {
        self.settle().await?;
        Ok(Pipeline::new(self))
    }

    /// Starts `COPY … FROM STDIN`. See [`CopyIn`].
    pub async fn copy_in(&mut self, sql: &str) -> Result<CopyIn<'_>, PgError> {
        self.settle().await?;
        self.send_query(sql)?;
        CopyIn::start(self).await
    }

    /// Ends the session.
    pub async fn close(self) {
        self.channel.close().await;
    }

    /// Takes the connection apart for the copy-both mode of replication.
    pub(crate) fn channel(&mut self) -> &mut Channel {
        &mut self.channel
    }

    pub(crate) fn send_query(&mut self, sql: &str) -> Result<(), PgError> {
        self.channel
            .push(|buf| frontend::query(sql, buf))
            .map_err(|e| PgError::encode(&e))?;
        self.debts.ready += 1;
        Ok(())
    }

    /// Notes a ReadyForQuery.
    pub(crate) fn ready(&mut self, status: u8) {
        self.debts.ready = self.debts.ready.saturating_sub(1);
        self.status = match status {
            b'T' => TransactionStatus::InTransaction,
            b'E' => TransactionStatus::Failed,
            _ => TransactionStatus::Idle,
        };
    }

    /// The next message that is part of an answer; what the server says unasked is handled here.
    pub(crate) async fn receive(&mut self) -> Result<Message, PgError> {
        match self.receive_any().await? {
            Incoming::Known(message) => Ok(message),
            _ => Err(self.out_of_step("an ordinary command")),
        }
    }

    /// The same, CopyBothResponse included.
    pub(crate) async fn receive_any(&mut self) -> Result<Incoming, PgError> {
        loop {
            let received = self
                .attended(|connection, cx| connection.channel.poll_receive(cx))
                .await;
            let message = received.inspect_err(|_| self.debts.torn = true)?;
            if let Some(message) = self.sift(message)? {
                return Ok(message);
            }
        }
    }

    /// Polls `work` until it is done. Each time no byte has come or gone for [`silence::patience`], the server is asked
    /// whether it is at work; otherwise it is an error.
    pub(super) async fn attended<T>(
        &mut self,
        mut work: impl FnMut(&mut Connection, &mut Context<'_>) -> Poll<Result<T, PgError>>,
    ) -> Result<T, PgError> {
        let mut since = Instant::now();
        loop {
            let until = since.max(self.channel.moved()) + silence::patience();
            if let Ok(done) = timeout_at(until, poll_fn(|cx| work(self, cx))).await {
                return done;
            }
            if self.channel.moved() + silence::patience() > until {
                continue;
            }
            if let Some(done) = self.asking(&mut work).await? {
                return Ok(done);
            }
            since = Instant::now();
        }
    }

    /// Asks whether the server is at work, unless something comes meanwhile.
    async fn asking<T>(
        &mut self,
        work: &mut impl FnMut(&mut Connection, &mut Context<'_>) -> Poll<Result<T, PgError>>,
    ) -> Result<Option<T>, PgError> {
        let mut asked = self.as_silent().expect_work();
        let moved = self.channel.moved();
        poll_fn(|cx| match work(self, cx) {
            Poll::Ready(done) => Poll::Ready(done.map(Some)),
            Poll::Pending if self.channel.moved() > moved => Poll::Ready(Ok(None)),
            Poll::Pending => match asked.as_mut().poll(cx) {
                Poll::Ready(Err(error)) => {
                    self.debts.torn = true;
                    Poll::Ready(Err(error))
                }
                asked => asked.map_ok(|()| None),
            },
        })
        .await
    }

    /// Asks whether the server is at work, for a caller that reads by other means. What comes meanwhile is kept for it.
    pub(crate) async fn expect_work(&mut self) -> Result<(), PgError> {
        let filled = |connection: &mut Connection, cx: &mut Context<'_>| {
            // An end of the stream is told by the next read, behind what came before it.
            connection.channel.poll_fill(cx).map(|_| Ok(()))
        };
        self.asking(&mut { filled }).await.map(|_| ())
    }

    /// What is needed to ask the server about the session of this connection.
    fn as_silent(&self) -> Silent {
        Silent {
            config: self.config.clone(),
            endpoint: self.endpoint.clone(),
            encryption: self.encryption,
            announced_pid: self.session.backend_pid,
            backend: self.backend.clone(),
        }
    }

    /// When a byte last came.
    pub(crate) fn heard(&self) -> Instant {
        self.channel.heard()
    }

    /// Handles what the server says unasked, and gives back all else.
    pub(crate) fn sift(&mut self, message: Incoming) -> Result<Option<Incoming>, PgError> {
        match message {
            Incoming::Known(Message::NoticeResponse(body)) => notice(body.fields()),
            Incoming::Known(Message::ParameterStatus(body)) => {
                let malformed = |e| PgError::malformed(&e);
                let name = body.name().map_err(malformed)?.to_owned();
                self.session
                    .parameters
                    .insert(name, body.value().map_err(malformed)?.to_owned());
            }
            Incoming::Known(Message::NotificationResponse(_)) => {}
            // With a FATAL error the session is over: nothing more will come, no ReadyForQuery either.
            Incoming::Known(Message::ErrorResponse(body)) => {
                let error = PgError::from_fields(body.fields());
                if error.is_fatal() {
                    self.debts.torn = true;
                    return Err(error);
                }
                return Ok(Some(Incoming::Known(Message::ErrorResponse(body))));
            }
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    /// The server sent what does not belong to `what`: from here on nothing on this connection can be trusted.
    pub(crate) fn out_of_step(&mut self, what: &str) -> PgError {
        self.debts.torn = true;
        PgError::protocol(format!(
            "the server sent a message that does not belong to {what}"
        ))
    }

    /// Brings a connection on which a call was dropped back to where the server waits for a command.
    pub(crate) async fn settle(&mut self) -> Result<(), PgError> {
        if self.debts.torn {
            return Err(PgError::connection(
                "the connection broke in an earlier call; open a new one",
            ));
        }
        if self.debts.copying {
            self.fail_copy("the copy was given up")?;
        }
        if self.debts.unsynced {
            frontend::sync(&mut self.channel.outgoing);
            self.debts.unsynced = false;
            self.debts.ready += 1;
        }
        while self.debts.ready > 0 {
            match self.receive().await? {
                Message::ReadyForQuery(body) => self.ready(body.status()),
                Message::CopyInResponse(_) => self.fail_copy("the copy was given up")?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn fail_copy(&mut self, reason: &str) -> Result<(), PgError> {
        self.debts.copying = false;
        self.channel
            .push(|buf| frontend::copy_fail(reason, buf))
            .map_err(|e| PgError::encode(&e))
    }

    /// Writes what waits in the buffer and `more` behind it, while it reads and hands over every message that comes.
    ///
    /// Returns once all is written; what the server still has to say is left for later. This is what keeps a pipeline
    /// of any length from the deadlock in which both sides wait to write.
    pub(super) async fn pump(
        &mut self,
        mut more: &[u8],
        mut on_message: impl FnMut(&mut Connection, Message) -> Result<(), PgError>,
    ) -> Result<(), PgError> {
        let pumping = |connection: &mut Connection, cx: &mut Context<'_>| {
            loop {
                while let Some(message) = connection.channel.buffered()? {
                    match connection.sift(message)? {
                        Some(Incoming::Known(message)) => on_message(connection, message)?,
                        Some(_) => return Poll::Ready(Err(connection.out_of_step("an ordinary command"))),
                        None => {}
                    }
                }
                let written = connection.channel.poll_drain_with(cx, &mut more);
                match (written, connection.channel.poll_fill(cx)) {
                    (_, Poll::Ready(read)) => read?,
                    (Poll::Ready(()), Poll::Pending) => return Poll::Ready(Ok(())),
                    (Poll::Pending, Poll::Pending) => return Poll::Pending,
                }
            }
        };
        let result = self.attended(pumping).await;
        result.inspect_err(|error: &PgError| self.debts.torn |= error.is_fatal())
    }
}

/// No honest server sends more than this before it knows who we are.
const MAX_LOGIN_MESSAGE: usize = 1024 * 1024;

/// Cancels a session's running statement from outside (protocol manual, "Canceling Requests in Progress").
#[derive(Clone, Debug)]
pub struct CancelToken {
    config: Config,
    endpoint: Endpoint,
    encryption: Encryption,
    backend_pid: i32,
    key: i32,
}

impl CancelToken {
    /// Sends the request and waits until the server has taken it; whether it came in time, it does not say.
    pub async fn cancel(&self) -> Result<(), PgError> {
        let context = || format!("cancel on {}", self.endpoint);
        limited(self.config.connect_timeout(), async {
            let mut stream =
                stream::open(&self.config, &self.endpoint, self.encryption, Window::Usual).await?;
            let mut request = BytesMut::new();
            frontend::cancel_request(self.backend_pid, self.key, &mut request);
            stream.write_all(&request).await?;
            stream.flush().await?;
            // The server closes the connection when it has passed the signal on.
            match stream.read_u8().await {
                Ok(_) => Err(PgError::protocol("the server answered a cancel request")),
                Err(_) => Ok(()),
            }
        })
        .await
        .map_err(|e| e.during(context()))
    }
}
