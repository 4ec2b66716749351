//! The settings every session of ours runs with, whatever the role, the database or the server's configuration say.

use super::silence::Backend;
use super::stream::Window;
use super::version::{Feature, ServerVersion};

/// Settings known to every server version we speak to; they go into the startup packet.
///
/// Formats: a value must have one text form on both sides, or text passed from one to the other changes its meaning
/// (`DateStyle` "SQL, DMY" turns the 3rd of April into the 4th of March). `lc_monetary`, `array_nulls` and
/// `quote_all_identifiers` (names of types and relations are values, too) belong here for the same reason. `search_path` is empty so that no object of a user's schema can stand in for a built-in one
/// (CVE-2018-1058). Time limits: the server's defaults would end a long snapshot, or the stream itself.
const SETTINGS: &[(&str, &str)] = &[
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("array_nulls", "on"),
    ("xmloption", "content"),
    ("quote_all_identifiers", "off"),
    ("standard_conforming_strings", "on"),
    ("search_path", ""),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Ordinary SQL.
    Sql,
    /// A walsender (`replication=database`): replication commands, and SQL by the simple protocol only.
    Replication(ReplicationSettings),
}

impl Purpose {
    /// How much the server may send ahead of what is read.
    pub(super) fn window(&self) -> Window {
        match self {
            Purpose::Sql => Window::Usual,
            Purpose::Replication(_) => Window::NarrowOnLoopback,
        }
    }
}

/// Settings of a walsender session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationSettings {
    /// `wal_sender_timeout` (PostgreSQL 12 and later), in the server's syntax. `0` is without limit.
    pub wal_sender_timeout: String,
    /// `logical_decoding_work_mem` on PostgreSQL 13, in the server's syntax: what the server may hold in memory before it
    /// writes transactions in progress to disk. Later servers send them instead, from their own setting on.
    pub logical_decoding_work_mem: String,
}

impl Default for ReplicationSettings {
    fn default() -> ReplicationSettings {
        ReplicationSettings {
            wal_sender_timeout: "60s".into(),
            logical_decoding_work_mem: "256MB".into(),
        }
    }
}

/// The settings for the startup packet: ours, then `extra`, which may replace ours.
///
/// The server applies them after the user's `options`, so that ours win over those.
pub(super) fn at_startup<'a>(extra: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = (&'a str, &'a str)> {
    SETTINGS
        .iter()
        .copied()
        .filter(|(name, _)| !replaced(name, extra))
        .chain(extra.iter().copied())
}

fn replaced(name: &str, extra: &[(&str, &str)]) -> bool {
    extra.iter().any(|(other, _)| name.eq_ignore_ascii_case(other))
}

/// The same settings in the form of `options`, behind the user's own, for a client that cannot send others.
pub(super) fn as_options(user: Option<&str>, extra: &[(&str, &str)]) -> String {
    let mut options = user.unwrap_or_default().to_owned();
    for (name, value) in at_startup(extra) {
        if !options.is_empty() {
            options.push(' ');
        }
        options.push_str("-c ");
        options.push_str(name);
        options.push('=');
        for c in value.chars() {
            if c.is_whitespace() || c == '\\' {
                options.push('\\');
            }
            options.push(c);
        }
    }
    options
}

/// A role or database may have `synchronous_commit = off`: then COMMIT is answered before it is durable, and what
/// depends on it (the slot's confirmed position) would run ahead of what a crash leaves. Stricter values stay.
const DURABLE_COMMIT: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'local', false) \
     WHERE pg_catalog.current_setting('synchronous_commit') = 'off'";

/// The statements for what cannot go into the startup packet: settings that only some versions know, which would be
/// refused there, and one that depends on its value. The row of the last one begins with what the session is to the
/// server ([`Backend`]).
///
/// A walsender gets one statement: that of PostgreSQL 14 and older takes no list of them. It commits nothing.
///
/// What `options` of the user say of the walsender's own settings stays.
///
/// `server_encoding` is that of the database, as it reports it. Bytes of no stated encoding are not converted, but any
/// `client_encoding` other than their own makes the server refuse those that are not valid in it (`pg_any_to_server`
/// and `pg_server_to_any` of its sources): they pass as they are.
pub(super) fn after_startup(
    version: ServerVersion,
    purpose: &Purpose,
    server_encoding: Option<&str>,
    options: Option<&str>,
) -> String {
    let mut settings: Vec<(&str, &str)> = Vec::new();
    if server_encoding == Some("SQL_ASCII") {
        settings.push(("client_encoding", "SQL_ASCII"));
    }
    let mut add = |feature, name, value| {
        if version.has(feature) {
            settings.push((name, value));
        }
    };
    add(Feature::IdleSessionTimeout, "idle_session_timeout", "0");
    add(Feature::TransactionTimeout, "transaction_timeout", "0");
    if let Purpose::Replication(replication) = purpose {
        let mut add_unless_set = |feature, name, value| {
            if !options.is_some_and(|options| sets(options, name)) {
                add(feature, name, value);
            }
        };
        let timeout = &replication.wal_sender_timeout;
        add_unless_set(Feature::SessionWalSenderTimeout, "wal_sender_timeout", timeout);
        if !version.has(Feature::PgoutputStreaming) {
            let memory = &replication.logical_decoding_work_mem;
            add_unless_set(Feature::DecodingWorkMem, "logical_decoding_work_mem", memory);
        }
    }
    let calls = settings.iter().map(|(name, value)| {
        format!(
            "pg_catalog.set_config({}, {}, false)",
            literal(name),
            literal(value)
        )
    });
    let calls: Vec<String> = std::iter::once(Backend::SELF.to_owned()).chain(calls).collect();
    let calls = format!("SELECT {}", calls.join(", "));
    if *purpose == Purpose::Sql {
        format!("{DURABLE_COMMIT}; {calls}")
    } else {
        calls
    }
}

/// Whether the options of a session (`-c name=value`, `--name=value`) set `name`.
fn sets(options: &str, name: &str) -> bool {
    let options = options.to_ascii_lowercase().replace('-', "_");
    options.contains(&format!("{name}="))
}

/// `text` as an SQL string literal; `standard_conforming_strings` is on in all our sessions.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `name` as a quoted SQL identifier.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_settings_replace_ours() {
        let extra = [("datestyle", "SQL"), ("session_replication_role", "replica")];
        let all: Vec<_> = at_startup(&extra).collect();
        assert_eq!(
            all.iter()
                .filter(|(name, _)| name.eq_ignore_ascii_case("datestyle"))
                .count(),
            1
        );
        assert!(all.contains(&("datestyle", "SQL")) && all.contains(&("search_path", "")));
    }

    #[test]
    fn options_escape_spaces_and_follow_the_users() {
        let options = as_options(Some("-c geqo=off"), &[("application.note", "a b\\c")]);
        assert!(
            options.starts_with("-c geqo=off -c client_encoding=UTF8 "),
            "{options}"
        );
        assert!(options.ends_with(" -c application.note=a\\ b\\\\c"), "{options}");
        assert!(options.contains("-c search_path= "), "{options}");
    }

    #[test]
    fn later_settings_depend_on_version_and_purpose() {
        let replication = Purpose::Replication(ReplicationSettings::default());
        let own = Backend::SELF;
        let sql =
            |version, purpose: &Purpose| after_startup(ServerVersion(version), purpose, Some("UTF8"), None);
        assert_eq!(sql(110_000, &replication), format!("SELECT {own}"));
        assert_eq!(
            sql(130_000, &Purpose::Sql),
            format!("{DURABLE_COMMIT}; SELECT {own}")
        );
        assert!(sql(180_000, &Purpose::Sql).starts_with(DURABLE_COMMIT));
        assert_eq!(
            sql(120_000, &replication),
            format!("SELECT {own}, pg_catalog.set_config('wal_sender_timeout', '60s', false)")
        );
        let all = sql(180_000, &replication);
        for name in [
            "idle_session_timeout",
            "transaction_timeout",
            "wal_sender_timeout",
        ] {
            assert!(all.contains(name), "{all}");
        }
        let memory = "logical_decoding_work_mem";
        assert!(!all.contains(memory) && sql(130_000, &replication).contains(memory));
        let bytes = after_startup(ServerVersion(110_000), &replication, Some("SQL_ASCII"), None);
        assert_eq!(
            bytes,
            format!("SELECT {own}, pg_catalog.set_config('client_encoding', 'SQL_ASCII', false)")
        );
    }

    #[test]
    fn the_users_word_on_the_walsender_stays() {
        let replication = Purpose::Replication(ReplicationSettings::default());
        for options in [
            "-c wal_sender_timeout=5s",
            "-cwal_sender_timeout=5s",
            "--wal-sender-timeout=5s",
        ] {
            let sql = after_startup(ServerVersion(130_000), &replication, None, Some(options));
            assert!(!sql.contains("wal_sender_timeout"), "{options}: {sql}");
            assert!(sql.contains("logical_decoding_work_mem"), "{options}: {sql}");
        }
    }

    #[test]
    fn quoting_doubles_the_quote() {
        assert_eq!(literal("a'b\\c\"d"), "'a''b\\c\"d'");
        assert_eq!(identifier("a\"b'c.d"), "\"a\"\"b'c.d\"");
    }
}
