//! From errors of this crate to those of the core: one place, so that the same failure has the same kind and exit
//! code wherever it is met.

use cdc_core::{Action, Error, Kind, Position};

use crate::config::ConfigError;
use crate::error::{self as pg, PgError, SqlState};
use crate::lsn::Lsn;

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Error {
        Error::new(Kind::Config, error.to_string())
    }
}

/// The server's detail and context stay behind: they quote rows.
impl From<PgError> for Error {
    fn from(error: PgError) -> Error {
        let kind = match error.kind {
            pg::Kind::Server => error.sqlstate.map_or(Kind::Protocol, kind_for_sqlstate),
            pg::Kind::Login => Kind::Login,
            pg::Kind::Connection | pg::Kind::Timeout | pg::Kind::Tls => Kind::Unreachable,
            pg::Kind::Protocol => Kind::Protocol,
            pg::Kind::Limit => Kind::Data,
            pg::Kind::Usage => Kind::Config,
        };
        let action = match error.action {
            pg::Action::Retry => Action::Retry,
            pg::Action::Reconnect => Action::Reconnect,
            pg::Action::Wait => Action::Wait,
            pg::Action::Conflict => Action::Conflict,
            pg::Action::Stop => Action::Stop,
        };
        let mut mapped = Error::new(kind, error.message.clone()).action(action);
        if let Some(context) = &error.context {
            mapped = mapped.context(context);
        }
        if let Some(code) = error.sqlstate {
            mapped = mapped.code(code.to_string());
        }
        if let Some(object) = object(&error) {
            mapped = mapped.object(object);
        }
        if let Some(hint) = &error.hint {
            mapped = mapped.remedy(hint);
        }
        mapped
    }
}

/// SQLSTATE prefixes and the kind of error they are; the longest prefix that fits decides.
const KINDS: &[(&str, Kind)] = &[
    ("08", Kind::Unreachable),
    ("57P", Kind::Unreachable),
    ("25P03", Kind::Unreachable),
    ("25P04", Kind::Unreachable),
    ("53300", Kind::Unreachable),
    ("28", Kind::Login),
    ("3D000", Kind::Login),
    ("42501", Kind::Permission),
    ("23505", Kind::Conflict),
    ("23P01", Kind::Conflict),
    ("22", Kind::Data),
    ("23", Kind::Data),
    ("21", Kind::Data),
    ("54", Kind::Data),
    ("0A", Kind::Schema),
    ("2B", Kind::Schema),
    ("3F", Kind::Schema),
    ("42", Kind::Schema),
    // Deadlocks, serialization failures, lock timeouts, cancelled statements; disk, memory, read-only servers.
    ("40", Kind::Resource),
    ("57", Kind::Resource),
    ("55", Kind::Resource),
    ("53", Kind::Resource),
    ("58", Kind::Resource),
    ("25006", Kind::Resource),
    // What a trigger or function raised by itself.
    ("P0", Kind::Data),
    ("38", Kind::Data),
    ("39", Kind::Data),
    ("XX", Kind::Resource),
];

fn kind_for_sqlstate(code: SqlState) -> Kind {
    KINDS
        .iter()
        .filter(|(prefix, _)| code.starts_with(prefix))
        .max_by_key(|(prefix, _)| prefix.len())
        .map_or(Kind::Protocol, |(_, kind)| *kind)
}

/// The most exact object that the server names.
fn object(error: &PgError) -> Option<String> {
    let table = error.table.as_deref().map(|table| match &error.schema {
        Some(schema) => format!("table {schema}.{table}"),
        None => format!("table {table}"),
    });
    let detail = match (&error.column, &error.constraint, &error.data_type) {
        (Some(column), _, _) => Some(format!("column {column}")),
        (_, Some(constraint), _) => Some(format!("constraint {constraint}")),
        (_, _, Some(data_type)) => Some(format!("type {data_type}")),
        _ => None,
    };
    match (table, detail) {
        (Some(table), Some(detail)) => Some(format!("{table}, {detail}")),
        (table, detail) => table.or(detail),
    }
}

/// Quotation marks of the languages that the server speaks.
const QUOTES: [char; 11] = [
    '"', '\u{ab}', '\u{bb}', '\u{201c}', '\u{201d}', '\u{201e}', '\u{2039}', '\u{203a}', '\u{300c}',
    '\u{300d}', '\u{201f}',
];

/// The message of an error of the server without the value that it quotes, which that of a data exception (class 22)
/// does. Names of columns and constraints, which other classes quote, stay.
pub(crate) fn message_without_value(error: &PgError) -> String {
    if error.sqlstate.is_some_and(|code| code.starts_with("22")) {
        without_value(&error.message)
    } else {
        error.message.clone()
    }
}

/// Cuts what stands between the outermost quotes.
fn without_value(message: &str) -> String {
    match (message.find(QUOTES), message.rfind(QUOTES)) {
        (Some(first), Some(last)) if first < last => {
            let before = message.get(..first).unwrap_or_default();
            let after = message.get(last..).unwrap_or_default().trim_start_matches(QUOTES);
            format!("{before}\"…\"{after}")
        }
        (Some(first), _) => format!("{}…", message.get(..first).unwrap_or_default()),
        _ => message.to_owned(),
    }
}

/// Reads a position of a PostgreSQL source.
pub(crate) fn position_lsn(position: &Position) -> Result<Lsn, Error> {
    position
        .as_str()
        .parse()
        .map_err(|error: crate::lsn::ParseLsnError| Error::new(Kind::PositionLost, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_have_the_kind_of_their_longest_prefix() {
        for (code, kind) in [
            ("42501", Kind::Permission),
            ("42P01", Kind::Schema),
            ("23505", Kind::Conflict),
            ("23502", Kind::Data),
            ("22P02", Kind::Data),
            ("57014", Kind::Resource),
            ("57P01", Kind::Unreachable),
            ("53100", Kind::Resource),
            ("53300", Kind::Unreachable),
            ("28P01", Kind::Login),
            ("P0001", Kind::Data),
            ("01000", Kind::Protocol),
        ] {
            assert_eq!(kind_for_sqlstate(SqlState::new(code).unwrap()), kind, "{code}");
        }
    }

    #[test]
    fn quoted_values_are_cut_from_messages() {
        for (message, without) in [
            (
                "invalid input syntax for type integer: \"12: \"x\"\"",
                "invalid input syntax for type integer: \"…\"",
            ),
            (
                "value \"99999999999\" is out of range for type integer",
                "value \"…\" is out of range for type integer",
            ),
            (
                "Wert \u{bb}99\u{ab} ist außerhalb des gültigen Bereichs",
                "Wert \"…\" ist außerhalb des gültigen Bereichs",
            ),
            ("division by zero", "division by zero"),
            ("cut off: \"12", "cut off: …"),
        ] {
            assert_eq!(without_value(message), without);
        }
    }

    #[test]
    fn context_and_action_survive() {
        let error = Error::from(PgError::connection("reset by peer").during("stream from db:5432"));
        assert_eq!(error.kind(), Kind::Unreachable);
        assert_eq!(error.what_to_do(), Action::Reconnect);
        assert_eq!(error.to_string(), "stream from db:5432: reset by peer");
        let error = Error::from(PgError::limit("a frame of 1 GB").with_hint("raise the limit"));
        assert_eq!((error.kind(), error.what_to_do()), (Kind::Data, Action::Stop));
        assert_eq!(error.remedy_text(), Some("raise the limit"));
    }
}
