//! A seeded workload on PostgreSQL that keeps its own exact account of the row changes it commits.
//!
//! The account is the oracle for "nothing lost, nothing twice": it counts what logical decoding of the same
//! transactions must send, table by table, and it never guesses. The row counts are the server's own command
//! tags; rows that a cascade deletes are locked and counted before. A transaction whose COMMIT got no answer
//! makes the workload fail, unless it may wait for the server to return and ask there (see
//! [`Config::outage`]).

mod mix;
mod pgbench;
mod rng;
mod schema;
mod session;
mod shapes;
mod tally;
mod values;
mod writer;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

pub use schema::{Fill, prepare};
pub use tally::{Changes, Totals};

use tally::Tally;
use writer::Writer;

/// How the workload writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Decides which statements are run with which values. With several writers the order in which they
    /// meet in the server remains open.
    pub seed: u64,
    /// Writers, each with its own connection; at most 64.
    pub threads: u32,
    /// Transactions a second of all writers together; 0 writes as fast as the server takes it.
    pub rate: f64,
    /// Whether `shop.scratch` is truncated now and then.
    pub truncate: bool,
    /// The scale that the pgbench tables were made with: half the transactions are then pgbench's.
    pub pgbench_scale: Option<u32>,
    /// How long a lost connection may be retried. With more than zero, each transaction also updates the
    /// writer's row of `shop.writers` (counted like any other change), by which the writer finds out after a
    /// lost COMMIT whether it took effect; and COMMIT takes a round trip of its own.
    pub outage: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            seed: 1,
            threads: 2,
            rate: 0.0,
            truncate: true,
            pgbench_scale: None,
            outage: Duration::ZERO,
        }
    }
}

/// A running workload. Dropping it stops it.
pub struct Workload {
    begun: Instant,
    stop: Arc<AtomicBool>,
    tallies: Vec<Arc<Mutex<Tally>>>,
    writers: Vec<JoinHandle<Result<()>>>,
}

impl Workload {
    /// Starts to write to a database that [`prepare`] has filled.
    pub fn start(url: &str, config: &Config) -> Result<Workload> {
        ensure!(
            (1..=64).contains(&config.threads),
            "a workload has 1 to 64 threads, not {}",
            config.threads
        );
        ensure!(
            config.rate.is_finite() && config.rate >= 0.0,
            "the rate {} is not usable",
            config.rate
        );
        let mut workload = Workload {
            begun: Instant::now(),
            stop: Arc::new(AtomicBool::new(false)),
            tallies: Vec::new(),
            writers: Vec::new(),
        };
        for id in 0..config.threads {
            let tally = Arc::new(Mutex::new(Tally::default()));
            workload.tallies.push(tally.clone());
            let writer = Writer::new(id, url, config, workload.begun, workload.stop.clone(), tally);
            workload.writers.push(std::thread::spawn(move || writer.run()));
        }
        Ok(workload)
    }

    /// What has been committed up to now, give or take the transactions under way.
    pub fn progress(&self) -> Totals {
        let mut totals = Totals {
            elapsed: self.begun.elapsed(),
            ..Totals::default()
        };
        for tally in &self.tallies {
            tally
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .add_to(&mut totals);
        }
        totals
    }

    /// Whether a writer has ended early; [`Workload::stop`] then tells why.
    pub fn has_failed(&self) -> bool {
        self.writers.iter().any(JoinHandle::is_finished)
    }

    /// Lets each writer end its transaction, and returns the exact totals.
    ///
    /// # Errors
    /// When a writer failed: then no exact totals exist.
    pub fn stop(mut self) -> Result<Totals> {
        self.join()?;
        Ok(self.progress())
    }

    fn join(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let mut result = Ok(());
        for writer in self.writers.drain(..) {
            let ended = writer
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a writer of the workload panicked")));
            result = result.and(ended);
        }
        result
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // Whoever wants the result has taken it with `stop`.
        let _ = self.join();
    }
}
