//! Latencies in a histogram with log-linear buckets: 1/32 relative error, a fixed 8 KiB, no allocation.

use serde::Serialize;

const SUB_BUCKET_BITS: u32 = 5;
const SUB_BUCKETS: usize = 1 << SUB_BUCKET_BITS;
const BUCKETS: usize = SUB_BUCKETS * (64 - SUB_BUCKET_BITS as usize + 1);

/// Counts of durations in microseconds.
#[derive(Debug, Clone)]
pub struct LagHistogram {
    counts: Box<[u32; BUCKETS]>,
    total: u64,
    sum_micros: u64,
    max_micros: u64,
    last_micros: u64,
}

impl Default for LagHistogram {
    fn default() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            total: 0,
            sum_micros: 0,
            max_micros: 0,
            last_micros: 0,
        }
    }
}

/// Percentiles of a [`LagHistogram`], in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct LagSummary {
    /// median
    pub p50: f64,
    /// 99th percentile
    pub p99: f64,
    /// largest
    pub max: f64,
}

impl LagHistogram {
    /// Adds one duration.
    pub fn record(&mut self, micros: u64) {
        if let Some(count) = self.counts.get_mut(bucket(micros)) {
            *count = count.saturating_add(1);
        }
        self.total += 1;
        self.sum_micros = self.sum_micros.saturating_add(micros);
        self.max_micros = self.max_micros.max(micros);
        self.last_micros = micros;
    }

    /// How many durations were added.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The sum of all durations, in microseconds.
    pub fn sum_micros(&self) -> u64 {
        self.sum_micros
    }

    /// The newest duration, in microseconds.
    pub fn last_micros(&self) -> Option<u64> {
        (self.total > 0).then_some(self.last_micros)
    }

    /// How many durations were at most `micros`, to the histogram's precision.
    pub fn at_most(&self, micros: u64) -> u64 {
        self.counts
            .iter()
            .take(bucket(micros) + 1)
            .map(|count| u64::from(*count))
            .sum()
    }

    /// The duration that the fraction `quantile` (0 to 1) of durations do not pass, in microseconds; `None`
    /// when empty.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        let rank = (self.total as f64 * quantile).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.counts
            .iter()
            .position(|count| {
                seen += u64::from(*count);
                seen >= rank
            })
            .map(|index| upper_bound(index).min(self.max_micros))
    }

    /// Median, 99th percentile and maximum; `None` when empty.
    pub fn summary(&self) -> Option<LagSummary> {
        let ms = |micros: u64| micros as f64 / 1000.0;
        Some(LagSummary {
            p50: ms(self.quantile(0.5)?),
            p99: ms(self.quantile(0.99)?),
            max: ms(self.max_micros),
        })
    }
}

fn bucket(micros: u64) -> usize {
    if micros < SUB_BUCKETS as u64 {
        return micros as usize;
    }
    let shift = 63 - micros.leading_zeros() - SUB_BUCKET_BITS;
    let sub = (micros >> shift) as usize - SUB_BUCKETS;
    SUB_BUCKETS * (shift as usize + 1) + sub
}

fn upper_bound(bucket: usize) -> u64 {
    if bucket < SUB_BUCKETS {
        return bucket as u64;
    }
    let shift = bucket / SUB_BUCKETS - 1;
    let sub = (bucket % SUB_BUCKETS + SUB_BUCKETS) as u64;
    ((sub + 1) << shift).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_lies_at_or_below_its_buckets_bound_and_within_a_32nd_of_it() {
        for micros in (0..64).flat_map(|bit| [1u64 << bit, (1u64 << bit) - 1, (1u64 << bit) | 0x2b]) {
            let bound = upper_bound(bucket(micros));
            assert!(bound >= micros, "{micros} above {bound}");
            assert!(bound - micros <= micros / 32 + 1, "{micros} far below {bound}");
        }
    }

    #[test]
    fn quantiles_of_a_known_distribution() {
        let mut lag = LagHistogram::default();
        assert_eq!(lag.summary(), None);
        (1..=1000).for_each(|ms| lag.record(ms * 1000));
        let summary = lag.summary().expect("not empty");
        assert!((500.0..=516.0).contains(&summary.p50), "{summary:?}");
        assert!((990.0..=1000.0).contains(&summary.p99), "{summary:?}");
        assert_eq!(summary.max, 1000.0);
    }
}
