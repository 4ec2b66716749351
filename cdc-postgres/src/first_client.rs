//! The first connection to a server that may be starting, or out of reach.

use std::time::Duration;

use cdc_core::{Error, Result};
use tokio::time::Instant;

use crate::config::Config;
use crate::error::{Action, Kind};
use crate::wire::OpenedClient;

/// How often a server that is not there yet is tried.
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// What an attempt has at least.
const LEAST: Duration = Duration::from_millis(100);

/// Tries to connect until `timeout` is over, or until an answer that time does not change.
pub(crate) async fn first_client(config: &Config, timeout: Duration) -> Result<OpenedClient> {
    let deadline = Instant::now() + timeout;
    let mut answered = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = config.connect_timeout().map_or(left, |limit| limit.min(left));
        let attempt = config.with_connect_timeout(limit.max(LEAST));
        let error = match attempt.open_client(&[]).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        // The last attempt may have had a moment only: what was answered before says more than that it was too short.
        let is_answer = error.kind != Kind::Timeout;
        if error.action != Action::Reconnect || Instant::now() + RETRY_EVERY >= deadline {
            return Err(Error::from(answered.filter(|_| !is_answer).unwrap_or(error)));
        }
        if is_answer {
            answered = Some(error);
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;
    use crate::wire::fake::{Server, error};

    #[tokio::test]
    async fn an_answer_says_more_than_the_attempt_that_time_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        let url = format!("postgres://ann@/shop?host={}", folder.path().display());
        let config = Config::parse_with(&url, &|_| None).unwrap();
        let (failed, _silent) = tokio::join!(first_client(&config, Duration::from_secs(2)), async {
            let mut starting = Server::accept(&listener).await;
            starting.startup().await;
            starting
                .send(&error("FATAL", "57P03", "the database system is starting up"))
                .await;
            drop(starting);
            Server::accept(&listener).await
        });
        let failed = failed.err().unwrap().to_string();
        assert!(failed.contains("is starting up"), "{failed}");
    }
}
