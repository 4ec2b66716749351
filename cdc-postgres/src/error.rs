//! What can go wrong on a connection, and what to do about it.
//!
//! The answer to "what now" is decided in one place, [`Action::for_sqlstate`], from the SQLSTATE classes of the
//! PostgreSQL manual, Appendix A; only one internal error is told by its words.

mod sqlstate;

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::ops::Deref;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;

pub use sqlstate::{Action, SqlState};

use crate::tls;

/// Where an error comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The server answered a command with an error.
    Server,
    /// The server refused the login: authentication, `pg_hba.conf`, a missing database or role, a missing right to
    /// connect.
    Login,
    /// The connection could not be opened, or broke.
    Connection,
    /// A time limit of ours passed.
    Timeout,
    /// The TLS handshake failed, or encryption was asked for and is not to be had.
    Tls,
    /// The server sent what the protocol does not allow here.
    Protocol,
    /// A size limit of ours was passed.
    Limit,
    /// The call asked for something impossible, for example an option the server's version lacks.
    Usage,
}

/// The content of a [`PgError`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Where the error comes from.
    pub kind: Kind,
    /// What to do about it.
    pub action: Action,
    /// The server's code, if the server said it.
    pub sqlstate: Option<SqlState>,
    /// The server's severity, never translated: `ERROR`, `FATAL` or `PANIC`.
    pub severity: Option<String>,
    /// The primary message.
    pub message: String,
    /// The server's secondary message. It can quote row values.
    pub detail: Option<String>,
    /// The server's or our suggestion of a remedy.
    pub hint: Option<String>,
    /// What was being done, on which server.
    pub context: Option<String>,
    /// The server's call stack (`WHERE`), for example the trigger function an error was raised in.
    pub server_context: Option<String>,
    /// The schema of the object the error is about.
    pub schema: Option<String>,
    /// The table the error is about.
    pub table: Option<String>,
    /// The column the error is about.
    pub column: Option<String>,
    /// The data type the error is about.
    pub data_type: Option<String>,
    /// The constraint that was violated.
    pub constraint: Option<String>,
}

/// An error of a PostgreSQL connection; its fields are those of [`Report`].
///
/// It is displayed as one line and never holds a password.
#[derive(Clone, PartialEq, Eq)]
pub struct PgError(Box<Report>);

impl Deref for PgError {
    type Target = Report;

    fn deref(&self) -> &Report {
        &self.0
    }
}

impl PgError {
    fn new(kind: Kind, action: Action, message: String) -> PgError {
        PgError(Box::new(Report {
            kind,
            action,
            sqlstate: None,
            severity: None,
            message,
            detail: None,
            hint: None,
            context: None,
            server_context: None,
            schema: None,
            table: None,
            column: None,
            data_type: None,
            constraint: None,
        }))
    }

    /// The connection broke or could not be opened.
    pub fn connection(message: impl Into<String>) -> PgError {
        PgError::new(Kind::Connection, Action::Reconnect, message.into())
    }

    /// The server closed the connection without saying why.
    pub(crate) fn closed() -> PgError {
        PgError::connection("the server closed the connection unexpectedly")
    }

    /// A time limit of ours passed.
    pub fn timeout(message: impl Into<String>) -> PgError {
        PgError::new(Kind::Timeout, Action::Reconnect, message.into())
    }

    /// The server sent what the protocol does not allow here.
    pub fn protocol(message: impl Into<String>) -> PgError {
        PgError::new(Kind::Protocol, Action::Stop, message.into())
    }

    /// The codec could not make sense of a message.
    pub(crate) fn malformed(error: &io::Error) -> PgError {
        PgError::protocol(format!("malformed message from the server: {error}"))
    }

    /// The codec could not write a message, for example because a name holds a NUL byte.
    pub(crate) fn encode(error: &io::Error) -> PgError {
        PgError::usage(format!("the message cannot be encoded: {error}"))
    }

    /// The call asked for something impossible.
    pub fn usage(message: impl Into<String>) -> PgError {
        PgError::new(Kind::Usage, Action::Stop, message.into())
    }

    /// A size limit of ours was passed.
    pub fn limit(message: impl Into<String>) -> PgError {
        PgError::new(Kind::Limit, Action::Stop, message.into())
    }

    /// Encryption failed or cannot be had.
    pub(crate) fn tls(message: impl Into<String>) -> PgError {
        PgError::new(Kind::Tls, Action::Wait, message.into())
    }

    /// We cannot log in the way the server asks.
    pub(crate) fn login(message: impl Into<String>) -> PgError {
        PgError::new(Kind::Login, Action::Wait, message.into())
    }

    /// Says what was being done; the first to say it, who is closest to the cause, wins.
    pub fn during(mut self, context: impl Into<String>) -> PgError {
        self.0.context.get_or_insert_with(|| context.into());
        self
    }

    /// Adds a remedy if there is none yet.
    pub fn with_hint(mut self, hint: impl Into<String>) -> PgError {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Adds a detail if there is none yet.
    pub(crate) fn with_detail(mut self, detail: impl Into<String>) -> PgError {
        self.0.detail.get_or_insert_with(|| detail.into());
        self
    }

    /// An error that the server sent while we were logging in. What it says about rights and names is about the
    /// login then.
    pub(crate) fn at_login(mut self) -> PgError {
        let refused = |code: SqlState| {
            ["28", "3D000", "42501"]
                .iter()
                .any(|prefix| code.starts_with(prefix))
        };
        // The words of PgBouncer, which has no SQLSTATE of its own for it.
        if self.0.message.starts_with("unsupported startup parameter") {
            self.0.kind = Kind::Login;
            self.0.action = Action::Wait;
            return self.with_hint(
                "a connection pooler answers, which does not hand on settings of the session: give the server's own host \
                 and port",
            );
        }
        match self.0.sqlstate {
            Some(code) if refused(code) => {
                self.0.kind = Kind::Login;
                self.0.action = Action::Wait;
                let hint = login_hint(code, &self.0.message);
                self.with_hint(hint)
            }
            _ => self,
        }
    }

    /// Whether the server gave this SQLSTATE.
    pub fn is(&self, code: SqlState) -> bool {
        self.0.sqlstate == Some(code)
    }

    /// Whether the connection cannot be used any more after this error.
    pub fn is_fatal(&self) -> bool {
        match self.0.kind {
            Kind::Server => matches!(self.0.severity.as_deref(), Some("FATAL" | "PANIC")),
            Kind::Usage => false,
            _ => true,
        }
    }

    /// Reads an ErrorResponse (protocol manual, "Error and Notice Message Fields").
    pub(crate) fn from_fields(mut fields: ErrorFields<'_>) -> PgError {
        let mut error = PgError::new(Kind::Server, Action::Stop, String::new());
        let report = &mut *error.0;
        // A malformed tail must not hide the fields before it.
        while let Ok(Some(field)) = fields.next() {
            let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                // 'S' is translated, 'V' (9.6 and later) is not.
                b'S' if report.severity.is_none() => report.severity = Some(text()),
                b'V' => report.severity = Some(text()),
                b'C' => report.sqlstate = SqlState::new(&text()),
                b'M' => report.message = text(),
                b'D' => report.detail = Some(text()),
                b'H' => report.hint = Some(text()),
                b'W' => report.server_context = Some(text()),
                b's' => report.schema = Some(text()),
                b't' => report.table = Some(text()),
                b'c' => report.column = Some(text()),
                b'd' => report.data_type = Some(text()),
                b'n' => report.constraint = Some(text()),
                _ => {}
            }
        }
        if report.message.is_empty() {
            report.message = "the server sent an error without a message".into();
        }
        error.classified()
    }

    fn classified(mut self) -> PgError {
        if let Some(code) = self.0.sqlstate {
            self.0.action = Action::for_sqlstate(code);
        }
        if self.is(SqlState::INTERNAL) && self.0.message.starts_with(LOCK_RACE) {
            self.0.action = Action::Retry;
        }
        self
    }
}

impl From<io::Error> for PgError {
    fn from(error: io::Error) -> PgError {
        if let Some(objection) = tls::objection(&error) {
            objection
        } else if error.kind() == io::ErrorKind::UnexpectedEof {
            PgError::closed()
        } else {
            PgError::connection(error.to_string())
        }
    }
}

/// What PostgreSQL (18 was seen doing so) says, as an internal error, when a row is updated between the moment at which
/// another transaction that had share-locked and updated it is marked as aborted and the moment at which it is no longer
/// listed as running: the first lets the update go ahead (`DoesMultiXactIdConflict`), the second keeps the aborted one
/// among the updaters (`MultiXactIdExpand`). Internal messages are never translated.
const LOCK_RACE: &str = "new multixact has more than one updating member";

/// What to do about a refused login. Messages come in the server's language: only what is the same in all of them, or
/// makes the advice better but not right, is looked for.
fn login_hint(code: SqlState, message: &str) -> &'static str {
    match code.as_str() {
        "28P01" => "see to user and password: in the URL, in PGPASSWORD, or in ~/.pgpass (mode 0600)",
        "3D000" => "correct the database in the URL, or: CREATE DATABASE …;",
        "42501" => {
            "GRANT CONNECT ON DATABASE … TO the role of the URL; to read the log also ALTER ROLE … REPLICATION;"
        }
        _ if message.contains("pg_hba.conf") => {
            "add a line for this user, database, address and encryption to the server's pg_hba.conf, then: SELECT \
             pg_reload_conf();"
        }
        _ if message.contains("certificate") => {
            "give a client certificate for this user in sslcert and its key in sslkey"
        }
        _ => "see that the role exists and may log in (ALTER ROLE … LOGIN;) and what pg_hba.conf asks of it",
    }
}

/// What to do about a password that is stored with more SCRAM iterations than the SASL library counts.
pub(crate) const SCRAM_ITERATIONS_HINT: &str =
    "set scram_iterations to at most 100000 on the server and set the password again";

impl From<tokio_postgres::Error> for PgError {
    fn from(error: tokio_postgres::Error) -> PgError {
        if let Some(db) = error.as_db_error() {
            return PgError::from_db_error(db);
        }
        let kind = error.to_string();
        let cause = error.source();
        let broken = cause.and_then(|cause| cause.downcast_ref::<io::Error>());
        if let Some(objection) = broken.and_then(tls::objection) {
            return objection;
        }
        let message = cause.map_or_else(|| kind.clone(), |cause| format!("{kind}: {cause}"));
        // The library's own kind is private; its text is the only way to tell a malformed message, whose cause is an
        // io::Error too, from a broken socket.
        if kind == "error parsing response from server" || kind == "unexpected message from server" {
            PgError::protocol(message)
        } else if kind == "authentication error" {
            // The SASL library's own objections, which are io::Errors as well.
            let error = PgError::login(&*message);
            if message.contains("iteration count") {
                return error.with_hint(SCRAM_ITERATIONS_HINT);
            }
            error
        } else if error.is_closed() || broken.is_some() {
            PgError::connection(message)
        } else {
            PgError::usage(message)
        }
    }
}

impl PgError {
    fn from_db_error(db: &tokio_postgres::error::DbError) -> PgError {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let mut error = PgError::new(Kind::Server, Action::Stop, db.message().to_owned());
        let report = &mut *error.0;
        report.sqlstate = SqlState::new(db.code().code());
        report.severity = Some(match db.parsed_severity() {
            Some(severity) => severity.to_string(),
            None => db.severity().to_owned(),
        });
        report.detail = owned(db.detail());
        report.hint = owned(db.hint());
        report.server_context = owned(db.where_());
        report.schema = owned(db.schema());
        report.table = owned(db.table());
        report.column = owned(db.column());
        report.data_type = owned(db.datatype());
        report.constraint = owned(db.constraint());
        error.classified()
    }
}

/// Longest part of a server text that is displayed, in characters: a detail can quote a whole row.
const DISPLAYED: usize = 600;

/// `text` on one line, cut to a readable length.
fn one_line(text: &str) -> Cow<'_, str> {
    if text.len() <= DISPLAYED && !text.contains(['\n', '\r']) {
        return Cow::Borrowed(text);
    }
    let mut line: String = text
        .chars()
        .take(DISPLAYED)
        .map(|c| if c == '\n' || c == '\r' { ' ' } else { c })
        .collect();
    if text.chars().nth(DISPLAYED).is_some() {
        line.push('…');
    }
    Cow::Owned(line)
}

impl fmt::Display for PgError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &*self.0;
        if let Some(context) = &report.context {
            write!(f, "{}: ", one_line(context))?;
        }
        match (&report.severity, report.sqlstate) {
            (Some(severity), Some(code)) => write!(f, "{severity} {code}: ")?,
            (None, Some(code)) => write!(f, "{code}: ")?,
            _ => {}
        }
        f.write_str(&one_line(&report.message))?;
        let object = match (&report.schema, &report.table) {
            (Some(schema), Some(table)) => Some(format!("{schema}.{table}")),
            (_, table) => table.clone(),
        };
        let parts = [
            ("", &report.detail),
            ("table ", &object),
            ("column ", &report.column),
            ("constraint ", &report.constraint),
            ("in ", &report.server_context),
            ("hint: ", &report.hint),
        ];
        let mut opened = false;
        for (label, text) in parts
            .iter()
            .filter_map(|(label, text)| Some((label, text.as_deref()?)))
        {
            write!(f, "{}{label}{}", if opened { "; " } else { " (" }, one_line(text))?;
            opened = true;
        }
        if opened { f.write_str(")") } else { Ok(()) }
    }
}

impl fmt::Debug for PgError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PgError({:?}, {:?}: {self})", self.0.kind, self.0.action)
    }
}

impl StdError for PgError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> PgError {
        let mut error = PgError::new(Kind::Server, Action::Stop, "duplicate key\nvalue".into());
        error.0.severity = Some("ERROR".into());
        error.0.sqlstate = Some(SqlState::UNIQUE_VIOLATION);
        error.0.detail = Some("Key (id)=(1) already exists.".into());
        error.0.schema = Some("public".into());
        error.0.table = Some("t".into());
        error.0.constraint = Some("t_pkey".into());
        error.classified()
    }

    #[test]
    fn display_is_one_line_with_the_code_and_the_object() {
        let error = sample()
            .during("apply to db.example:5432")
            .during("later and further away");
        assert_eq!(
            error.to_string(),
            "apply to db.example:5432: ERROR 23505: duplicate key value (Key (id)=(1) already exists.; \
             table public.t; constraint t_pkey)"
        );
        assert_eq!(error.action, Action::Conflict);
    }

    #[test]
    fn long_server_texts_are_cut_on_a_character_border() {
        let mut error = sample();
        error.0.detail = Some("ü".repeat(100_000));
        let line = error.to_string();
        assert!(line.len() < 3 * DISPLAYED, "{}", line.len());
        assert!(line.contains('…'));
    }

    #[test]
    fn the_race_of_row_locks_is_for_another_try_and_other_internal_errors_are_not() {
        let internal = |message: &str| {
            let mut error = PgError::new(Kind::Server, Action::Stop, message.into());
            error.0.sqlstate = SqlState::new("XX000");
            error.classified().action
        };
        let seen = "new multixact has more than one updating member: 0 3[6165 (keysh), 6165 (nokeyupd), 6168 (nokeyupd)]";
        assert_eq!(internal(seen), Action::Retry);
        assert_eq!(internal("cache lookup failed for relation 16384"), Action::Stop);
    }

    #[test]
    fn login_refusals_are_told_apart_from_the_same_codes_later() {
        let refused = |code: &str| {
            let mut error = sample();
            error.0.sqlstate = SqlState::new(code);
            error.classified()
        };
        assert_eq!(refused("28P01").at_login().kind, Kind::Login);
        assert_eq!(refused("3D000").at_login().kind, Kind::Login);
        let rights = refused("42501");
        assert_eq!((rights.kind, rights.action), (Kind::Server, Action::Stop));
        assert_eq!(rights.at_login().kind, Kind::Login);
        assert_eq!(refused("53300").at_login().action, Action::Reconnect);
        let mut pooler = refused("08P01");
        pooler.0.message = "unsupported startup parameter: IntervalStyle".into();
        let pooler = pooler.at_login();
        assert_eq!((pooler.kind, pooler.action), (Kind::Login, Action::Wait));
        assert!(pooler.to_string().contains("the server's own host"), "{pooler}");
    }

    #[test]
    fn a_broken_socket_means_reconnect_and_a_bad_message_means_stop() {
        let reset = PgError::from(io::Error::from(io::ErrorKind::ConnectionReset));
        assert_eq!((reset.kind, reset.action), (Kind::Connection, Action::Reconnect));
        let garbage = PgError::malformed(&io::Error::new(io::ErrorKind::InvalidInput, "length < 4"));
        assert_eq!((garbage.kind, garbage.action), (Kind::Protocol, Action::Stop));
    }
}
