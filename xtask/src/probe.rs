//! Lag as a user sees it: a row committed on blue until it can be read on the follower, by one clock, the same
//! way for every follower.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use tokio_postgres::NoTls;

/// Time between probes.
const EVERY: Duration = Duration::from_millis(50);
/// Longest wait for one probe.
const LIMIT: Duration = Duration::from_secs(60);

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Lag {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

/// Writes rows into `public.lag_probe` of blue.
pub(crate) struct Probe {
    blue: String,
    next: Cell<i64>,
}

impl Probe {
    pub(crate) fn new(blue: &str) -> Result<Self> {
        Ok(Self {
            blue: blue.to_owned(),
            next: Cell::new(0),
        })
    }

    /// Rows written so far.
    pub(crate) fn written(&self) -> u64 {
        self.next.get() as u64
    }

    /// Writes probes for `during` and waits for each on the follower.
    pub(crate) fn measure(&self, follower: &str, during: Duration) -> Result<Lag> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut lags = runtime.block_on(self.probe(follower, during))?;
        lags.sort_by(f64::total_cmp);
        ensure!(!lags.is_empty(), "no probe was written");
        let at =
            |quantile: f64| lags[((lags.len() as f64 * quantile).ceil() as usize).clamp(1, lags.len()) - 1];
        Ok(Lag {
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        })
    }

    async fn probe(&self, follower: &str, during: Duration) -> Result<Vec<f64>> {
        let (blue, connection) = tokio_postgres::connect(&self.blue, NoTls).await?;
        let blue_driver = tokio::spawn(connection);
        let (green, connection) = tokio_postgres::connect(follower, NoTls).await?;
        let green_driver = tokio::spawn(connection);
        let insert = blue.prepare("INSERT INTO public.lag_probe VALUES ($1)").await?;
        let find = green
            .prepare("SELECT FROM public.lag_probe WHERE id = $1")
            .await?;
        let began = Instant::now();
        let mut lags = Vec::new();
        while began.elapsed() < during {
            let id = self.next.get() + 1;
            blue.execute(&insert, &[&id]).await?;
            self.next.set(id);
            let committed = Instant::now();
            while green.query_opt(&find, &[&id]).await?.is_none() {
                ensure!(
                    committed.elapsed() < LIMIT,
                    "a row was not on the follower within {LIMIT:?}"
                );
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            lags.push(committed.elapsed().as_secs_f64() * 1000.0);
            tokio::time::sleep(EVERY).await;
        }
        drop((blue, green));
        blue_driver.await??;
        green_driver.await??;
        Ok(lags)
    }
}
