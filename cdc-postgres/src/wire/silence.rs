//! A server that owes an answer and says nothing: at work, or out of reach without a sign of it?
//!
//! TCP notices a machine that is gone ([`super::stream`]). It does not notice a peer that takes every byte and passes
//! nothing on: a hung proxy, a stopped process, a load balancer that forgot the connection. So after [`patience`] the
//! server is asked by another connection what the session does. At work, it is waited for, however long it takes; gone
//! or itself waiting for us, it never answers.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::session::{self, Purpose};
use super::stream::{self, Encryption, Window};
use crate::config::{Config, Endpoint};
use crate::error::PgError;

/// How long a connection that owes an answer may say nothing before the server is asked.
#[cfg(not(any(feature = "failpoints", test)))]
pub(crate) fn patience() -> Duration {
    Duration::from_secs(60)
}

/// The same, shorter where a test asks for it.
#[cfg(all(feature = "failpoints", not(test)))]
pub(crate) fn patience() -> Duration {
    static PATIENCE: std::sync::LazyLock<Duration> = std::sync::LazyLock::new(|| {
        let told = std::env::var("CDC_SYNC_PATIENCE_MS").ok();
        told.and_then(|ms| ms.parse().ok())
            .map_or(Duration::from_secs(60), Duration::from_millis)
    });
    *PATIENCE
}

#[cfg(test)]
thread_local! {
    /// The same, for the test on this thread.
    pub(crate) static PATIENCE: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::from_secs(60)) };
}

#[cfg(test)]
pub(crate) fn patience() -> Duration {
    PATIENCE.get()
}

/// How long the other connection and its question may take.
const ASKING: Duration = Duration::from_secs(10);
/// Between two looks: a server that just answers is seen waiting for the next command.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A session that is idle waits for its client; a walsender that has sent all, for the log.
const WAITS: &str = "COALESCE(wait_event_type IN ('Client', 'Activity'), false)";

/// A session as the server itself knows it. A number alone is given to another session later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    pub(crate) pid: i32,
    /// `backend_start`, in the form of our sessions
    pub(crate) started: String,
}

impl Backend {
    /// The columns of a query by which a session learns what it is.
    pub(super) const SELF: &str = "pg_catalog.pg_backend_pid(), (SELECT backend_start \
         FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()))";

    /// From the first two columns of that query's row.
    pub(super) fn read<'r>(column: impl Fn(usize) -> Option<&'r str>) -> Option<Backend> {
        Some(Backend {
            pid: column(0)?.parse().ok()?,
            started: column(1)?.to_owned(),
        })
    }
}

/// The session of which an answer is awaited.
#[derive(Clone, Debug)]
pub(crate) struct Silent {
    pub(crate) config: Config,
    pub(crate) endpoint: Endpoint,
    pub(crate) encryption: Encryption,
    /// what it was announced as at the login
    pub(crate) announced_pid: i32,
    /// what it was when it was asked itself
    pub(crate) backend: Option<Backend>,
}

impl Silent {
    /// Returns when the server is at work on what it was told.
    ///
    /// The caller goes on reading meanwhile, and drops this as soon as anything comes: then the server is not silent.
    ///
    /// # Errors
    /// When no answer is to come: the server cannot be reached, has ended the session, or waits for us. A session that
    /// waits for us is ended, so that it lets go of its locks.
    ///
    /// Boxed, because the other connection may come to the same.
    pub(crate) fn expect_work(self) -> Pin<Box<dyn Future<Output = Result<(), PgError>> + Send>> {
        Box::pin(async move { self.ask().await })
    }

    async fn ask(&self) -> Result<(), PgError> {
        let seconds = patience().as_secs_f32();
        let lost = |why: &str| {
            PgError::timeout(format!(
                "{} has said nothing for {seconds} s: {why}",
                self.endpoint
            ))
        };
        match tokio::time::timeout(ASKING, self.look()).await {
            Ok(Ok(State::AtWork)) => Ok(()),
            Ok(Ok(State::Gone)) => Err(lost("its session has ended")),
            Ok(Ok(State::Waits)) => Err(lost("it waits for us, so something between us got lost")),
            Ok(Err(error)) => Err(lost(&format!(
                "asking it by another connection failed: {}",
                error.message
            ))),
            Err(_) => Err(lost("it does not answer another connection either")),
        }
    }

    async fn look(&self) -> Result<State, PgError> {
        let stream = stream::open(&self.config, &self.endpoint, self.encryption, Window::Usual).await?;
        let mut asking = Connection::log_in(
            stream,
            &self.config,
            &self.endpoint,
            self.encryption,
            &Purpose::Sql,
            &[],
        )
        .await?;
        let mut state = self.state(&mut asking).await?;
        if state == State::Waits {
            tokio::time::sleep(LOOK_AGAIN).await;
            state = self.state(&mut asking).await?;
        }
        if state == State::Waits && self.is_ours_alone() {
            let end = format!(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE {} AND {WAITS}",
                self.is_it()
            );
            // Where the right is missing, the server's own limits end it.
            let _ = asking.simple_query(&end).await;
        }
        asking.close().await;
        Ok(state)
    }

    async fn state(&self, asking: &mut Connection) -> Result<State, PgError> {
        let sql = format!(
            "SELECT {WAITS} FROM pg_catalog.pg_stat_activity WHERE {}",
            self.is_it()
        );
        Ok(match asking.single_value(&sql).await?.as_deref() {
            None => State::Gone,
            Some("t") => State::Waits,
            Some(_) => State::AtWork,
        })
    }

    /// The condition by which the server finds the session.
    fn is_it(&self) -> String {
        match &self.backend {
            Some(Backend { pid, started }) => {
                format!("pid = {pid} AND backend_start = {}", session::literal(started))
            }
            None => format!("pid = {}", self.announced_pid),
        }
    }

    /// A pooler announces numbers of its own, and hands the server's sessions on to others of its clients: one that
    /// waits there may be another's by now.
    fn is_ours_alone(&self) -> bool {
        self.backend
            .as_ref()
            .is_some_and(|ours| ours.pid == self.announced_pid)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AtWork,
    Waits,
    Gone,
}

/// What a server's bytes, which come in these parts, tell of a session: the process, and whether an answer is owed.
#[cfg(any(test, feature = "testing"))]
pub fn told_by_a_server<'a>(parts: impl Iterator<Item = &'a [u8]>) -> (Option<i32>, bool) {
    let owed = Owed::new();
    parts.for_each(|part| owed.read(part));
    (owed.pid(), owed.is_settled())
}

/// Whether the server owes answers on a connection of which only the bytes are seen: how often it has to say that it is
/// ready (manual, "Message Flow"), and when either side last said something.
#[derive(Clone, Debug)]
pub(crate) struct Owed(Arc<Mutex<Account>>);

#[derive(Debug)]
struct Account {
    /// ReadyForQuery messages to come, that of the login included
    ready: u64,
    last: Instant,
    /// what the server announced the session as
    pid: Option<i32>,
    /// whether it was in no transaction when it last was ready
    outside: bool,
    ours: Frames,
    theirs: Frames,
}

impl Owed {
    pub(crate) fn new() -> Owed {
        Owed(Arc::new(Mutex::new(Account {
            ready: 1,
            last: Instant::now(),
            pid: None,
            outside: false,
            ours: Frames::new(0),
            theirs: Frames::new(1),
        })))
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wrote(&self, bytes: &[u8]) {
        let mut account = self.account();
        let Account {
            ready, last, ours, ..
        } = &mut *account;
        *last = Instant::now();
        ours.take(bytes, |kind, _| *ready += u64::from(matches!(kind, b'Q' | b'S')));
    }

    pub(crate) fn read(&self, bytes: &[u8]) {
        let mut account = self.account();
        let Account {
            ready,
            last,
            pid,
            outside,
            theirs,
            ..
        } = &mut *account;
        *last = Instant::now();
        theirs.take(bytes, |kind, begin| match kind {
            READY => {
                *ready = ready.saturating_sub(1);
                *outside = begin == b"I";
            }
            BACKEND_KEY => *pid = begin.try_into().ok().map(i32::from_be_bytes),
            _ => {}
        });
    }

    /// What the server announced the session as (BackendKeyData).
    pub(crate) fn pid(&self) -> Option<i32> {
        self.account().pid
    }

    /// How long an answer has been awaited in silence; `None` when none is owed.
    pub(crate) fn silence(&self) -> Option<Duration> {
        let account = self.account();
        (account.ready > 0).then(|| account.last.elapsed())
    }

    /// Whether the server has answered all that was sent, and the session is in no transaction.
    pub(crate) fn is_settled(&self) -> bool {
        let account = self.account();
        account.ready == 0 && account.outside
    }

    /// Begins to wait anew.
    pub(crate) fn forgive(&self) {
        self.account().last = Instant::now();
    }
}

const BACKEND_KEY: u8 = b'K';
const READY: u8 = b'Z';

/// Tells the types of the messages in a stream of bytes, and of one of them how its body begins.
#[derive(Debug)]
struct Frames {
    header: Vec<u8>,
    /// bytes of its type: none in a client's first message
    typed: usize,
    /// bytes of the message under way that are to come
    body: usize,
}

impl Frames {
    fn new(typed: usize) -> Frames {
        Frames {
            header: Vec::with_capacity(9),
            typed,
            body: 0,
        }
    }

    /// Bytes of the message under way that are kept: type, length, the number in BackendKeyData, the state of the
    /// transaction in ReadyForQuery.
    fn kept(&self) -> usize {
        let begin = match self.header.first() {
            Some(&BACKEND_KEY) if self.header.len() > 4 && self.typed == 1 => 4,
            Some(&READY) if self.header.len() > 4 && self.typed == 1 => 1,
            _ => 0,
        };
        self.typed + 4 + begin
    }

    /// `seen` is called for each message whose header is complete.
    fn take(&mut self, mut bytes: &[u8], mut seen: impl FnMut(u8, &[u8])) {
        while !bytes.is_empty() {
            let skipped = self.body.min(bytes.len());
            self.body -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let wanted = (self.kept() - self.header.len()).min(bytes.len());
            let (header, rest) = bytes.split_at_checked(wanted).unwrap_or((bytes, &[]));
            self.header.extend_from_slice(header);
            bytes = rest;
            if self.header.len() < self.kept() {
                continue;
            }
            let (length, begin) = self
                .header
                .get(self.typed..)
                .and_then(|bytes| bytes.split_first_chunk())
                .map_or((0, &[][..]), |(length, begin)| {
                    (u32::from_be_bytes(*length), begin)
                });
            self.body = usize::try_from(length).map_or(0, |length| length.saturating_sub(4 + begin.len()));
            if self.typed == 1 {
                seen(self.header.first().copied().unwrap_or_default(), begin);
            }
            self.typed = 1;
            self.header.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: usize) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend((body as u32 + 4).to_be_bytes());
        bytes.resize(5 + body, b'Z');
        bytes
    }

    #[test]
    fn a_session_is_settled_when_nothing_is_owed_and_no_transaction_is_open() {
        for chunk in [1, 3, 100] {
            let owed = Owed::new();
            let ready = |state: u8| {
                let message = [&[b'Z', 0, 0, 0, 5][..], &[state]].concat();
                message.chunks(chunk).for_each(|bytes| owed.read(bytes));
            };
            assert!(!owed.is_settled(), "the login is not answered");
            ready(b'I');
            assert!(owed.is_settled());
            owed.wrote(&[0, 0, 0, 4]);
            for (state, settled) in [(b'T', false), (b'E', false), (b'I', true)] {
                owed.wrote(&message(b'Q', 3));
                assert!(!owed.is_settled(), "a question is not answered");
                ready(state);
                assert_eq!(owed.is_settled(), settled, "{}", char::from(state));
            }
        }
    }

    #[test]
    fn an_answer_is_owed_until_as_many_are_ready_as_were_asked() {
        for chunk in [1, 2, 5, 1000] {
            let owed = Owed::new();
            let all =
                |messages: &[Vec<u8>], take: &dyn Fn(&[u8])| messages.concat().chunks(chunk).for_each(take);
            let mut startup = vec![0, 0, 0, 9];
            startup.resize(9, b'S');
            all(&[startup, message(b'p', 30)], &|bytes| owed.wrote(bytes));
            assert!(owed.silence().is_some());
            all(
                &[message(b'R', 4), message(b'K', 8), message(b'Z', 1)],
                &|bytes| owed.read(bytes),
            );
            assert_eq!(owed.pid(), Some(i32::from_be_bytes(*b"ZZZZ")));
            assert!(owed.silence().is_none());
            all(
                &[message(b'P', 70), message(b'S', 0), message(b'Q', 9)],
                &|bytes| owed.wrote(bytes),
            );
            all(
                &[message(b'D', 300), message(b'Z', 1), message(b'T', 5)],
                &|bytes| owed.read(bytes),
            );
            assert!(owed.silence().is_some());
            all(&[message(b'Z', 1)], &|bytes| owed.read(bytes));
            assert!(owed.silence().is_none());
        }
    }
}
