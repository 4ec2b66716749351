//! One writer: draws transactions, runs them at the given pace, and books what was committed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Config;
use super::mix::{self, Choice, Transaction};
use super::rng::Rng;
use super::schema::Table;
use super::session::{Outcome, Session};
use super::tally::{Effect, Tally};
use crate::blocking::runtime;

/// A writer and what it shares with the workload.
pub(super) struct Writer {
    id: u32,
    url: String,
    choice: Choice,
    outage: Duration,
    /// Time between two transactions of this writer.
    interval: Duration,
    /// When its first one is due.
    first: Instant,
    rng: Rng,
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
}

impl Writer {
    pub(super) fn new(
        id: u32,
        url: &str,
        config: &Config,
        begun: Instant,
        stop: Arc<AtomicBool>,
        tally: Arc<Mutex<Tally>>,
    ) -> Writer {
        let every = if config.rate > 0.0 { 1.0 / config.rate } else { 0.0 };
        Writer {
            id,
            url: url.to_owned(),
            choice: Choice {
                truncate: config.truncate,
                pgbench_scale: config.pgbench_scale,
            },
            outage: config.outage,
            interval: Duration::from_secs_f64(every * f64::from(config.threads)),
            first: begun + Duration::from_secs_f64(every * f64::from(id)),
            rng: Rng::new(config.seed, u64::from(id)),
            stop,
            tally,
        }
    }

    pub(super) fn run(self) -> Result<()> {
        let id = self.id;
        runtime()?
            .block_on(self.write())
            .with_context(|| format!("writer {id} of the workload failed"))
    }

    async fn write(mut self) -> Result<()> {
        let mut session = Session::open(&self.url).await?;
        let resilient = !self.outage.is_zero();
        let mut number = if resilient {
            session.last_transaction(self.id).await?
        } else {
            0
        };
        let mut due = self.first;
        while !self.stop.load(Ordering::Relaxed) {
            // Due times follow from the start, not from the last transaction, so the rate does not drift;
            // a writer that was held up catches up.
            tokio::time::sleep_until(due.into()).await;
            due += self.interval;
            let mut transaction = mix::draw(&mut self.rng, self.choice);
            if resilient {
                number += 1;
                let sql = format!(
                    "UPDATE shop.writers SET last_transaction = {number} WHERE id = {}",
                    self.id
                );
                transaction.push(Effect::Update(Table::Writers), sql);
            }
            mix::finish(&mut transaction, &mut self.rng);
            if resilient {
                session = self.run_split(session, &transaction, number).await?;
            } else {
                self.run_whole(&session, &transaction).await?;
            }
        }
        Ok(())
    }

    /// Runs it in one round trip; a lost connection is the end.
    async fn run_whole(&self, session: &Session, transaction: &Transaction) -> Result<()> {
        match session.run(&sql_of(transaction), transaction.steps.len()).await? {
            Outcome::Done(counts) => self.book_done(transaction, &counts),
            Outcome::Refused => self.book(|tally| tally.refused += 1),
            Outcome::Lost(error) => {
                return Err(error).context("whether the last transaction was committed is unknown");
            }
        }
        Ok(())
    }

    /// Runs everything up to COMMIT first, so that the row counts are known before the outcome is at stake.
    async fn run_split(&self, session: Session, transaction: &Transaction, number: u64) -> Result<Session> {
        let Some((end, body)) = transaction.steps.split_last() else {
            bail!("a transaction without an end")
        };
        let body_sql = body
            .iter()
            .map(|step| step.sql.as_str())
            .collect::<Vec<_>>()
            .join(";\n");
        let counts = match session.run(&body_sql, body.len()).await? {
            Outcome::Done(counts) => counts,
            Outcome::Refused => {
                self.book(|tally| tally.refused += 1);
                return Ok(session);
            }
            // COMMIT was never sent, so it is rolled back.
            Outcome::Lost(error) => return Ok(self.reopen(&session, error).await?.0),
        };
        match session.run(&end.sql, 1).await? {
            Outcome::Done(_) => {
                self.book_done(transaction, &counts);
                Ok(session)
            }
            Outcome::Refused => bail!("the server refused {}", end.sql),
            Outcome::Lost(error) => {
                let (session, last) = self.reopen(&session, error).await?;
                if last == number && transaction.commits {
                    self.book_done(transaction, &counts);
                }
                Ok(session)
            }
        }
    }

    /// Opens a new session in place of a lost one, and reads the number of the last committed transaction.
    async fn reopen(&self, lost: &Session, error: anyhow::Error) -> Result<(Session, u64)> {
        let deadline = Instant::now() + self.outage;
        let mut last_error = error;
        while Instant::now() < deadline {
            match self.try_reopen(lost).await {
                Ok(opened) => {
                    self.book(|tally| tally.reconnects += 1);
                    return Ok(opened);
                }
                Err(error) => last_error = error,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(last_error).with_context(|| format!("the server did not come back within {:?}", self.outage))
    }

    async fn try_reopen(&self, lost: &Session) -> Result<(Session, u64)> {
        let session = Session::open(&self.url).await?;
        // The server may still be about to carry out the COMMIT that it was sent: only when the old backend
        // is gone does the row tell the truth.
        while !session.has_ended(lost).await? {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let last = session.last_transaction(self.id).await?;
        Ok((session, last))
    }

    fn book_done(&self, transaction: &Transaction, counts: &[u64]) {
        self.book(|tally| {
            if transaction.commits {
                let effects = transaction.steps.iter().map(|step| step.effect);
                tally.commit(effects.zip(counts.iter().copied()));
            } else {
                tally.rolled_back += 1;
            }
        });
    }

    fn book(&self, entry: impl FnOnce(&mut Tally)) {
        entry(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn sql_of(transaction: &Transaction) -> String {
    transaction
        .steps
        .iter()
        .map(|step| step.sql.as_str())
        .collect::<Vec<_>>()
        .join(";\n")
}
