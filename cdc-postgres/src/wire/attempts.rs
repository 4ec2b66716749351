//! Which server to try in which way, and when to give up (libpq manual, "Specifying Multiple Hosts" and
//! `target_session_attrs`).

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use super::stream::{self, Encryption};
use crate::config::{Config, Endpoint, TargetSessionAttrs};
use crate::error::{Kind, PgError, SqlState};

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) endpoint: Endpoint,
    pub(super) encryption: Encryption,
    /// What kind of server will do in this round.
    pub(super) wanted: TargetSessionAttrs,
    round: usize,
}

impl Attempt {
    fn is_like(&self, other: &Attempt) -> bool {
        self.round == other.round && self.endpoint == other.endpoint
    }
}

/// The attempts still to make, and what became of the others.
#[derive(Debug)]
pub(super) struct Attempts {
    rest: VecDeque<Attempt>,
    limit: Option<Duration>,
    /// One for each server of the current round.
    failures: Vec<(Attempt, PgError)>,
}

impl Attempts {
    pub(super) fn new(config: &Config) -> Attempts {
        let rounds = match config.target_session_attrs() {
            TargetSessionAttrs::PreferStandby => vec![TargetSessionAttrs::Standby, TargetSessionAttrs::Any],
            wanted => vec![wanted],
        };
        let mut rest = VecDeque::new();
        for (round, wanted) in rounds.into_iter().enumerate() {
            for endpoint in config.endpoints() {
                for encryption in stream::attempts(config, endpoint) {
                    let endpoint = endpoint.clone();
                    rest.push_back(Attempt {
                        endpoint,
                        encryption: *encryption,
                        wanted,
                        round,
                    });
                }
            }
        }
        Attempts {
            rest,
            limit: config.connect_timeout(),
            failures: Vec::new(),
        }
    }

    pub(super) fn next(&mut self) -> Option<Attempt> {
        self.rest.pop_front()
    }

    /// Runs an attempt within its time limit.
    pub(super) async fn limited<T>(
        &self,
        attempt: impl Future<Output = Result<T, PgError>>,
    ) -> Result<T, PgError> {
        limited(self.limit, attempt).await
    }

    /// Notes a failure and strikes out what it makes pointless.
    pub(super) fn failed(&mut self, attempt: &Attempt, error: PgError) {
        // Only what another encryption could cure: the handshake, or a line of pg_hba.conf for the other kind.
        let curable = error.kind == Kind::Tls || error.is(SqlState::INVALID_AUTHORIZATION);
        if !curable {
            self.rest.retain(|other| !other.is_like(attempt));
        }
        let another_way = self.rest.front().is_some_and(|other| other.is_like(attempt));
        // A server that is there and refuses us speaks for all of them, as in libpq.
        if !another_way && matches!(error.kind, Kind::Login | Kind::Usage) {
            self.rest.clear();
        }
        let error = error.during(format!("connect to {}", attempt.endpoint));
        self.failures
            .retain(|(earlier, _)| earlier.round == attempt.round);
        match self.failures.last_mut() {
            // Of two ways to the same server the first failure is the one to show, unless the second got further.
            Some((earlier, shown)) if earlier.is_like(attempt) => {
                if !curable {
                    *shown = error;
                }
            }
            _ => self.failures.push((attempt.clone(), error)),
        }
    }

    /// One error for all failures: the last, with what the others said.
    pub(super) fn into_error(mut self) -> PgError {
        let Some((_, last)) = self.failures.pop() else {
            return PgError::usage("there is no server to connect to");
        };
        if self.failures.is_empty() {
            return last;
        }
        let others: Vec<String> = self.failures.iter().map(|(_, error)| error.to_string()).collect();
        last.with_hint(format!("the other servers: {}", others.join("; ")))
    }
}

/// Runs an attempt to connect within a time limit.
pub(super) async fn limited<T>(
    limit: Option<Duration>,
    attempt: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    let Some(limit) = limit else { return attempt.await };
    tokio::time::timeout(limit, attempt).await.unwrap_or_else(|_| {
        Err(PgError::timeout(format!(
            "no connection within {} s",
            limit.as_secs_f32()
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(url: &str) -> Attempts {
        Attempts::new(&Config::parse_with(url, &|_| None).unwrap())
    }

    /// Fails every attempt with `error`; the ports and encryptions tried.
    fn tried(url: &str, error: impl Fn(&Attempt) -> PgError) -> (Vec<(u16, Encryption)>, PgError) {
        let mut attempts = attempts(url);
        let mut tried = Vec::new();
        while let Some(attempt) = attempts.next() {
            tried.push((attempt.endpoint.port(), attempt.encryption));
            attempts.failed(&attempt, error(&attempt));
        }
        (tried, attempts.into_error())
    }

    #[test]
    fn the_next_server_is_tried_when_one_is_down() {
        let (tried, error) = tried("postgres://u@h:1,h:2/d", |_| PgError::connection("refused"));
        assert_eq!(tried, [(1, Encryption::IfOffered), (2, Encryption::IfOffered)]);
        let text = error.to_string();
        assert!(
            text.contains("connect to h:2") && text.contains("connect to h:1"),
            "{text}"
        );
    }

    #[test]
    fn a_refused_login_ends_the_search() {
        let (tried, _) = tried("postgres://u@h:1,h:2/d", |_| PgError::login("no"));
        assert_eq!(tried, [(1, Encryption::IfOffered)]);
    }

    #[test]
    fn another_encryption_is_tried_for_what_it_can_cure() {
        let (both, error) = tried("postgres://u@h:1,h:2/d?sslmode=prefer", |a| {
            PgError::tls(format!("{:?}", a.encryption))
        });
        use Encryption::{IfOffered, Must, Plain};
        assert_eq!(both, [(1, IfOffered), (1, Plain), (2, IfOffered), (2, Plain)]);
        assert_eq!(error.message, "IfOffered");
        let (allow, _) = tried("postgres://u@h:1/d?sslmode=allow", |_| PgError::tls("x"));
        assert_eq!(allow, [(1, Plain), (1, Must)]);
        for mode in ["require", "verify-ca"] {
            assert_eq!(
                tried(&format!("postgres://u@h:1/d?sslmode={mode}"), |_| PgError::tls(
                    "x"
                ))
                .0,
                [(1, Must)]
            );
        }
        assert_eq!(
            tried("postgres://u@%2Frun:1/d?sslmode=require", |_| PgError::tls("x")).0,
            [(1, Plain)]
        );
    }

    #[test]
    fn prefer_standby_makes_a_second_round_for_any_server() {
        let mut attempts =
            attempts("postgres://u@h:1,h:2/d?sslmode=disable&target_session_attrs=prefer-standby");
        let mut wanted = Vec::new();
        while let Some(attempt) = attempts.next() {
            wanted.push((attempt.endpoint.port(), attempt.wanted));
            attempts.failed(&attempt, PgError::connection("x"));
        }
        use TargetSessionAttrs::{Any, Standby};
        assert_eq!(wanted, [(1, Standby), (2, Standby), (1, Any), (2, Any)]);
    }
}
