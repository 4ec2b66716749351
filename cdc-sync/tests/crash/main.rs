//! The binary, killed with SIGKILL at seeded moments, between real servers: nothing lost, nothing twice, every
//! change accounted for.

mod ahead;
mod confirmed;
mod doubt;
mod fence;
mod kills;
mod pairs;
mod streamed;

use std::time::Duration;

/// Asserts the accounting: everything read has one outcome, and as much was read as was written.
fn assert_accounted(run: &serde_json::Value, written: u64) {
    let count = |key: &str| run["changes"][key].as_u64().expect(key);
    let outcomes: u64 = ["applied", "loop", "filtered", "superseded", "dead_lettered"]
        .map(count)
        .iter()
        .sum();
    assert_eq!(count("read"), outcomes, "{run}");
    assert_eq!(count("read"), written, "read against written: {run}");
}

/// Small, seeded, good enough to spread moments (Knuth's MMIX generator).
struct Moments(u64);

impl Moments {
    /// A duration between the two.
    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let share = (self.0 >> 33) as f64 / f64::from(1_u32 << 31);
        least + (most - least).mul_f64(share)
    }
}
