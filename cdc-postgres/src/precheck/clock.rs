//! How far a server's clock is from ours, so that two servers' clocks can be compared.

use std::time::{SystemTime, UNIX_EPOCH};

use cdc_core::Result;
use cdc_core::engine::Severity;

use super::{Findings, Session};
use crate::session::during;

/// Questions asked; the one with the shortest way there and back is believed.
const SAMPLES: usize = 5;

/// Difference from which commit times of the two sides mislead, in microseconds.
const TOLERATED: i64 = 1_000_000;

/// The server's clock less ours, in microseconds, good to half of the shortest way there and back.
pub(super) async fn offset(session: &Session) -> Result<i64> {
    let mut best: Option<(i64, i64)> = None;
    for _ in 0..SAMPLES {
        let asked = now();
        let row = session
            .client
            .query_typed_one(
                "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8",
                &[],
            )
            .await
            .map_err(during("reading the server's clock"))?;
        let answered = now();
        let sample = (
            answered - asked,
            row.get::<_, i64>(0) - asked - (answered - asked) / 2,
        );
        best = Some(best.map_or(sample, |best| best.min(sample)));
    }
    Ok(best.map_or(0, |(_, offset)| offset))
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// `PG-CLOCK-OFFSET`.
pub(super) fn judge(source: i64, target: i64, found: &mut Findings) {
    let apart = source.saturating_sub(target);
    if apart.abs() >= TOLERATED {
        let direction = if apart > 0 { "ahead of" } else { "behind" };
        found.add(
            ("PG-CLOCK-OFFSET", Severity::Warn),
            "the servers' clocks",
            format!(
                "the source's is {:.1} s {direction} the target's: lag by commit time is wrong by that much, and \
                 functions of time jump when the target takes over",
                apart.unsigned_abs() as f64 / 1e6
            ),
            "let both machines take their time from the same source (NTP, chrony)",
        );
    }
}

#[cfg(test)]
mod tests {
    use cdc_core::engine::Side;

    use super::*;

    #[test]
    fn clocks_may_differ_by_less_than_a_second() {
        let judged = |source, target| {
            let mut found = Findings::new(Side::Both);
            judge(source, target, &mut found);
            found.list.first().map(|finding| finding.message.clone())
        };
        assert_eq!(judged(5, 5 + TOLERATED - 1), None);
        assert!(judged(0, 2_500_000).unwrap().contains("2.5 s behind"));
        assert!(judged(TOLERATED, 0).unwrap().contains("1.0 s ahead of"));
    }
}
