//! One error type: what went wrong, what to do about it, and where.
//!
//! An [`Error`] says its [`Kind`] (what the operator is told and which exit code follows), its [`Action`]
//! (what the engine does by itself), the object and position it happened at, and the remedy. Row values and
//! secrets never enter an error.

use std::fmt;

/// The result of everything fallible in cdc-sync.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong; decides the exit code of the binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Wrong usage or configuration.
    Config,
    /// A server could not be reached, or an established connection was lost.
    Unreachable,
    /// A server refused the login.
    Login,
    /// A precondition is not met (a `check` finding of severity fail).
    Check,
    /// A time limit or gate was not met; state is kept.
    Deadline,
    /// The position is lost or refused: the slot, its history or the source identity do not match.
    PositionLost,
    /// Another instance holds the job.
    Fenced,
    /// A conflict under policy `stop`.
    Conflict,
    /// A value, constraint or type error on the target.
    Data,
    /// The schemas of source and target do not match, or a table or column is missing.
    Schema,
    /// The outside sent bytes that break its protocol.
    Protocol,
    /// The server lacks a resource (disk, memory, connections) or is read-only.
    Resource,
    /// A right is missing.
    Permission,
    /// Comparison could not be completed.
    Unverifiable,
    /// Stopped on request before the goal was reached.
    Interrupted,
    /// A local file or process failed.
    Local,
    /// An invariant of cdc-sync broke.
    Bug,
}

/// What the engine does about an error without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Try again from the last checkpoint after a short, jittered pause (deadlock, serialization, lock timeout).
    Retry,
    /// Reconnect, re-read the checkpoint, go on: the outcome of work in flight is unknown.
    Reconnect,
    /// Wait with a long backoff until the operator or time mends it (disk full, read-only).
    Wait,
    /// Redo in smaller pieces or in order: a constraint objected.
    Conflict,
    /// Stop: it will not go away by itself.
    Stop,
}

/// An error with its context. One pointer wide.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    action: Action,
    message: String,
    object: Option<String>,
    position: Option<String>,
    remedy: Option<String>,
    code: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error that stops the engine.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            action: Action::Stop,
            message: message.into(),
            object: None,
            position: None,
            remedy: None,
            code: None,
            source: None,
        }))
    }

    /// An invariant of cdc-sync that does not hold.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Kind::Bug, message)
            .remedy("this is a defect of cdc-sync: please report it with this message")
    }

    /// Sets what the engine does about it.
    #[must_use]
    pub fn action(mut self, action: Action) -> Self {
        self.0.action = action;
        self
    }

    /// Names the object (table, column, slot, constraint, file) it is about, unless one is named already.
    #[must_use]
    pub fn object(mut self, object: impl Into<String>) -> Self {
        self.0.object.get_or_insert_with(|| object.into());
        self
    }

    /// Names the source position it happened at, unless one is named already.
    #[must_use]
    pub fn at(mut self, position: impl fmt::Display) -> Self {
        self.0.position.get_or_insert_with(|| position.to_string());
        self
    }

    /// Says what the reader should do next, unless that is said already.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy.get_or_insert_with(|| remedy.into());
        self
    }

    /// Puts another remedy in the place of the one there is.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// Attaches the server's own code (an SQLSTATE).
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.0.code = Some(code.into());
        self
    }

    /// Attaches the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// Puts `context: ` before the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.message = format!("{context}: {}", self.0.message);
        self
    }

    /// The same, without what caused it.
    #[must_use]
    pub fn without_cause(&self) -> Self {
        let inner = &*self.0;
        Self(Box::new(Inner {
            kind: inner.kind,
            action: inner.action,
            message: inner.message.clone(),
            object: inner.object.clone(),
            position: inner.position.clone(),
            remedy: inner.remedy.clone(),
            code: inner.code.clone(),
            source: None,
        }))
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What the engine does about it.
    pub fn what_to_do(&self) -> Action {
        self.0.action
    }

    /// The message without object, position and remedy.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The object it is about.
    pub fn object_name(&self) -> Option<&str> {
        self.0.object.as_deref()
    }

    /// The source position it happened at.
    pub fn position(&self) -> Option<&str> {
        self.0.position.as_deref()
    }

    /// The next step for the reader.
    pub fn remedy_text(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }

    /// The server's own code (an SQLSTATE).
    pub fn server_code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        if let Some(object) = &inner.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&inner.message)?;
        if let Some(code) = &inner.code {
            write!(f, " (SQLSTATE {code})")?;
        }
        if let Some(position) = &inner.position {
            write!(f, " at {position}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} [{:?}, {:?}]", self.0.kind, self.0.action)?;
        if let Some(remedy) = &self.0.remedy {
            write!(f, "\n  remedy: {remedy}")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, "\n  cause: {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
