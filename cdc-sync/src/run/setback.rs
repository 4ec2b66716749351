//! What keeps tables that are set aside from coming back is no reason to stop the others: it is told, and tried again.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cdc_core::pipeline::Setback;
use cdc_core::{Error, Kind, TableName};

use super::RunContext;
use super::advice::advised;
use super::retry::in_time;

/// The operator may mend the cause at any moment, and an attempt may copy a large table.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often the log tells the same again.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Whether an error met beside the stream ends the job's stream too: a stop, the time limit, another instance.
pub(super) fn is_of_job(context: &RunContext, error: &Error) -> bool {
    context.control.stopping() || error.kind() == Kind::Fenced || in_time(context.settings.deadline).is_err()
}

/// Failed attempts in a row.
#[derive(Debug, Default)]
pub(super) struct Setbacks(Option<Newest>);

#[derive(Debug)]
struct Newest {
    /// the tables that were set aside then
    aside: Vec<TableName>,
    pause: Duration,
    again: Instant,
    said: String,
    told: Instant,
}

impl Setbacks {
    /// Whether it is too early for another attempt with these tables.
    pub(super) fn pauses(&self, aside: &[TableName]) -> bool {
        let early = |newest: &Newest| newest.aside == aside && Instant::now() < newest.again;
        self.0.as_ref().is_some_and(early)
    }

    /// Notes a failed attempt for all who ask, and tells it in the log. `retained` are the bytes of log that are held back
    /// for the next attempt.
    pub(super) async fn add(
        &mut self,
        context: &RunContext,
        aside: Vec<TableName>,
        error: Error,
        retained: Option<u64>,
    ) -> Error {
        let error = advised(context, error).await;
        let now = Instant::now();
        let before = self.0.take();
        let pause = before
            .as_ref()
            .map_or(FIRST_PAUSE, |before| (before.pause * 2).min(LONGEST_PAUSE));
        let said = error.to_string();
        let known = before.filter(|before| before.said == said && before.told.elapsed() < TOLD_EVERY);
        if known.is_none() {
            tracing::warn!(
                %error,
                remedy = error.remedy_text(),
                retained,
                ?pause,
                "tables that are set aside do not come back; the others are followed, and it is tried again"
            );
        }
        context.stats.update(|stats| {
            stats.fault(&error);
            stats.setback = Some(Setback {
                error: Arc::new(error.without_cause()),
                retained_bytes: retained,
                at: SystemTime::now(),
            });
        });
        self.0 = Some(Newest {
            aside,
            pause,
            again: now + pause,
            said,
            told: known.map_or(now, |before| before.told),
        });
        error
    }

    /// Notes that an attempt got through, or that nothing is set aside any more.
    pub(super) fn end(&mut self, context: &RunContext) {
        if self.0.take().is_some() {
            context.stats.update(|stats| stats.setback = None);
        }
    }
}
