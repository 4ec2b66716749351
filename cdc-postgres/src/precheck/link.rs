//! What stands between us and the server: a pooler, a balancer over several servers, a weak login.

use cdc_core::engine::{Finding, Severity, Side};
use cdc_core::{Error, Result};

use super::{Findings, Session};
use crate::config::Config;
use crate::error::{PgError, SqlState};
use crate::session::during;
use crate::wire::{AuthMethod, Connection, Purpose};

/// Connections opened to see whether all lead to one server. A balancer that hands them out in turn shows itself at
/// the second.
const TRIES: usize = 3;

/// What one more connection saw.
#[derive(Debug, Clone)]
struct Seen {
    /// the server process that the login named
    announced: i32,
    /// the one that answers
    pid: i32,
    /// when the server was started: two servers do not share the microsecond
    started: String,
    auth: AuthMethod,
    encrypted: bool,
}

/// `PG-POOLER`, `PG-SEVERAL-SERVERS`, `PG-PASSWORD-METHOD`.
pub(super) async fn inspect(session: &Session, config: &Config, side: Side) -> Result<Vec<Finding>> {
    let started = server_start(session).await?;
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        match look(config).await {
            Ok(one) => seen.push(one),
            // That too few connections are left is a finding of its own.
            Err(error) if error.is(SqlState::TOO_MANY_CONNECTIONS) => break,
            Err(error) => return Err(Error::from(error)),
        }
    }
    // A server that was restarted meanwhile is no other one, and has ended our session.
    let started = if seen.iter().all(|seen| seen.started == started) {
        started
    } else {
        server_start(session).await?
    };
    let mut found = Findings::new(side);
    judge(&started, &seen, &mut found);
    Ok(found.list)
}

async fn server_start(session: &Session) -> Result<String> {
    let row = session
        .client
        .query_typed_one("SELECT pg_postmaster_start_time()::text", &[])
        .await
        .map_err(during("asking when the server was started"))?;
    Ok(row.get(0))
}

async fn look(config: &Config) -> Result<Seen, PgError> {
    let mut connection = Connection::connect(config, &Purpose::Sql, &[]).await?;
    let results = connection
        .simple_query("SELECT pg_backend_pid()::text, pg_postmaster_start_time()::text")
        .await?;
    let cell = |place: usize| -> String {
        let row = results.first().and_then(|result| result.rows.first());
        let text = row.and_then(|row| row.text(place).ok().flatten());
        text.unwrap_or_default().to_owned()
    };
    let seen = Seen {
        announced: connection.backend_pid(),
        pid: cell(0).parse().unwrap_or_default(),
        started: cell(1),
        auth: connection.auth_method(),
        encrypted: connection.is_encrypted(),
    };
    connection.close().await;
    Ok(seen)
}

fn judge(started: &str, seen: &[Seen], found: &mut Findings) {
    if seen.iter().any(|seen| seen.started != started) {
        found.add(
            ("PG-SEVERAL-SERVERS", Severity::Fail),
            "the URL",
            "connections to it end on different servers: the parts of a copy would not share a snapshot, nor instances \
             of a job their lock",
            "give one server's own address instead of a balancer's, or target_session_attrs=primary for a list of hosts",
        );
    }
    if seen.iter().any(|seen| seen.announced != seen.pid) {
        found.add(
            ("PG-POOLER", Severity::Warn),
            "the URL",
            "a connection pooler answers in the server's place: it may hand a session's settings and locks to others, \
             and most cannot replicate",
            "give the server's own host and port",
        );
    }
    let (message, severity) = match seen.first().map(|seen| (seen.auth, seen.encrypted)) {
        Some((AuthMethod::Password, false)) => (
            "the password is sent in clear text over a connection without TLS",
            Severity::Warn,
        ),
        Some((AuthMethod::Md5, _)) => (
            "the password is checked by MD5, which later versions of PostgreSQL will drop",
            Severity::Info,
        ),
        _ => return,
    };
    found.add(
        ("PG-PASSWORD-METHOD", severity),
        "the login",
        message,
        "SET password_encryption = 'scram-sha-256'; set the role's password again, and scram-sha-256 in pg_hba.conf",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(change: impl Fn(&mut Seen)) -> Vec<(&'static str, Severity)> {
        let mut seen = Seen {
            announced: 7,
            pid: 7,
            started: "then".into(),
            auth: AuthMethod::Scram,
            encrypted: false,
        };
        change(&mut seen);
        let mut found = Findings::new(Side::Source);
        judge("then", &[seen], &mut found);
        found
            .list
            .iter()
            .map(|finding| (finding.id, finding.severity))
            .collect()
    }

    #[test]
    fn a_link_is_judged_by_what_it_shows() {
        assert!(judged(|_| ()).is_empty());
        assert_eq!(
            judged(|seen| seen.started = "later".into()),
            [("PG-SEVERAL-SERVERS", Severity::Fail)]
        );
        assert_eq!(judged(|seen| seen.announced = 8), [("PG-POOLER", Severity::Warn)]);
        assert_eq!(
            judged(|seen| seen.auth = AuthMethod::Password),
            [("PG-PASSWORD-METHOD", Severity::Warn)]
        );
        let within_tls = |seen: &mut Seen| {
            seen.auth = AuthMethod::Password;
            seen.encrypted = true;
        };
        assert!(judged(within_tls).is_empty());
    }
}
