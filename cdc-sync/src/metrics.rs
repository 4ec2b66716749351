//! `/metrics`: the numbers of a running instance in the Prometheus text format.

use std::fmt::{Display, Write};

use cdc_core::pipeline::LagHistogram;

use crate::exit;
use crate::monitor::Observation;
use crate::status::{PHASES, staleness_ms, state_name};

/// Upper bounds of the latency buckets, in microseconds: 1 ms to 60 s.
const BUCKETS_MICROS: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];

/// Renders an observation.
pub fn render(seen: &Observation) -> String {
    let mut page = Page {
        text: String::with_capacity(8 << 10),
        labels: format!("job=\"{}\",stream=\"forward\"", escape(&seen.facts.job)),
    };
    page.identity(seen);
    page.lags(seen);
    page.work(seen);
    page.conflicts(seen);
    page.seed_and_slot(seen);
    page.text
}

/// The media type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

struct Page {
    text: String,
    labels: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, more: &str, value: impl Display) {
        let comma = if more.is_empty() { "" } else { "," };
        let labels = std::mem::take(&mut self.labels);
        self.write(format_args!("{name}{{{labels}{comma}{more}}} {value}\n"));
        self.labels = labels;
    }

    /// Writing to a string cannot fail.
    fn write(&mut self, arguments: std::fmt::Arguments<'_>) {
        let _ = self.text.write_fmt(arguments);
    }

    fn gauge(&mut self, name: &str, help: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.head(name, "gauge", help);
            self.sample(name, "", value);
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.sample(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, durations: &LagHistogram) {
        self.head(name, "histogram", help);
        for micros in BUCKETS_MICROS {
            let bound = format!("le=\"{}\"", micros as f64 / 1e6);
            self.sample(&format!("{name}_bucket"), &bound, durations.at_most(micros));
        }
        self.sample(&format!("{name}_bucket"), "le=\"+Inf\"", durations.count());
        self.sample(&format!("{name}_sum"), "", durations.sum_micros() as f64 / 1e6);
        self.sample(&format!("{name}_count"), "", durations.count());
    }

    fn identity(&mut self, seen: &Observation) {
        self.head("cdc_sync_build_info", "gauge", "The version that runs.");
        let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
        self.sample("cdc_sync_build_info", &version, 1);
        self.head("cdc_sync_state", "gauge", "1 for the state the stream is in.");
        for phase in PHASES {
            let state = format!("state=\"{}\"", state_name(phase));
            self.sample("cdc_sync_state", &state, u8::from(phase == seen.stats.phase));
        }
        let ready = is_ready(seen);
        self.gauge(
            "cdc_sync_ready",
            "Whether the target follows the source.",
            Some(u8::from(ready)),
        );
    }

    fn lags(&mut self, seen: &Observation) {
        let stats = &seen.stats;
        let seconds = |micros: u64| micros as f64 / 1e6;
        self.gauge(
            "cdc_sync_heartbeat_lag_seconds",
            "Newest heartbeat: written on the source until seen committed on the target, by one clock.",
            stats.heartbeat.last_micros().map(seconds),
        );
        self.histogram(
            "cdc_sync_heartbeat_lag_histogram_seconds",
            "Heartbeat lags of this run.",
            &stats.heartbeat,
        );
        self.histogram(
            "cdc_sync_commit_latency_seconds",
            "Commit on the source until commit on the target, by two clocks.",
            &stats.commit_latency,
        );
        self.gauge(
            "cdc_sync_staleness_seconds",
            "Age of the newest applied transaction's commit on the source, by two clocks.",
            staleness_ms(stats.applied_commit_micros).map(|ms| ms / 1e3),
        );
        if let Some(bytes) = seen.facts.lag_bytes {
            self.head(
                "cdc_sync_lag_bytes",
                "gauge",
                "Log of the source not applied yet.",
            );
            self.sample("cdc_sync_lag_bytes", "stage=\"apply\"", bytes);
        }
        self.gauge(
            "cdc_sync_last_applied_commit_timestamp_seconds",
            "Commit time on the source of the newest applied transaction.",
            (stats.applied_commit_micros > 0).then(|| stats.applied_commit_micros as f64 / 1e6),
        );
        self.head(
            "cdc_sync_stage_duration_seconds",
            "summary",
            "Time of target transactions, begin to committed.",
        );
        let applying = "stage=\"apply\"";
        let (sum, count) = (seconds(stats.apply_time.sum_micros()), stats.apply_time.count());
        self.sample("cdc_sync_stage_duration_seconds_sum", applying, sum);
        self.sample("cdc_sync_stage_duration_seconds_count", applying, count);
    }

    fn work(&mut self, seen: &Observation) {
        let stats = &seen.stats;
        let changes = &stats.changes;
        self.counter(
            "cdc_sync_transactions_total",
            "Source transactions applied over the life of the stream.",
            stats.transactions,
        );
        self.head(
            "cdc_sync_batches_total",
            "counter",
            "Groups committed over the life of the stream.",
        );
        self.sample("cdc_sync_batches_total", "result=\"ok\"", stats.groups);
        self.head(
            "cdc_sync_bytes_total",
            "counter",
            "Value bytes decoded in this run.",
        );
        self.sample("cdc_sync_bytes_total", "direction=\"read\"", stats.decoded_bytes);
        self.head(
            "cdc_sync_changes_total",
            "counter",
            "Row changes decoded in this run, by operation.",
        );
        for (op, count) in stats.decoded.iter() {
            self.sample("cdc_sync_changes_total", &format!("op=\"{}\"", op.name()), count);
        }
        self.counter(
            "cdc_sync_changes_read_total",
            "Row changes read over the life of the stream: the sum of the accounted ones.",
            changes.read,
        );
        self.head(
            "cdc_sync_changes_accounted_total",
            "counter",
            "Row changes by outcome over the life of the stream.",
        );
        for (outcome, count) in [
            ("applied", changes.applied),
            ("loop", changes.looped),
            ("filtered", changes.filtered),
            ("superseded", changes.superseded),
            ("dead_letter", changes.dead_lettered),
        ] {
            let outcome = format!("outcome=\"{outcome}\"");
            self.sample("cdc_sync_changes_accounted_total", &outcome, count);
        }
        self.counter(
            "cdc_sync_changes_coalesced_total",
            "Applied row changes that were merged into a later one.",
            changes.coalesced,
        );
        self.gauge(
            "cdc_sync_batch_rows",
            "Rows of the newest group.",
            Some(stats.last_group_rows),
        );
        self.counter(
            "cdc_sync_ordered_fallbacks_total",
            "Tables found to need changes applied in order.",
            stats.ordered_fallbacks,
        );
        self.counter(
            "cdc_sync_restarts_total",
            "Times the stream was restarted after a fault.",
            stats.restarts,
        );
        self.head(
            "cdc_sync_errors_total",
            "counter",
            "Faults that were met by trying again, by class.",
        );
        for (kind, count) in &stats.faults {
            self.sample(
                "cdc_sync_errors_total",
                &format!("class=\"{}\"", exit::name(*kind)),
                count,
            );
        }
    }

    fn conflicts(&mut self, seen: &Observation) {
        self.head(
            "cdc_sync_conflicts_total",
            "counter",
            "Conflicts that a policy decided over the life of the stream, by kind.",
        );
        for (kind, count) in &seen.facts.conflicts {
            let kind = format!("kind=\"{}\"", escape(kind));
            self.sample("cdc_sync_conflicts_total", &kind, count);
        }
        self.gauge(
            "cdc_sync_dead_letter_rows",
            "Changes that were put aside and wait for a decision.",
            Some(seen.facts.open_conflicts),
        );
    }

    fn seed_and_slot(&mut self, seen: &Observation) {
        let seed = &seen.seed;
        self.counter(
            "cdc_sync_snapshot_rows_copied_total",
            "Rows copied by the seed.",
            seed.rows,
        );
        self.gauge(
            "cdc_sync_snapshot_rows_estimated",
            "Rows to copy, as the source estimates.",
            Some(seed.estimated_rows),
        );
        self.counter(
            "cdc_sync_snapshot_bytes_total",
            "Bytes copied by the seed.",
            seed.bytes,
        );
        self.head(
            "cdc_sync_snapshot_tables",
            "gauge",
            "Tables by the state of their seed.",
        );
        for (phase, count) in [
            ("todo", seed.tables.todo),
            ("copying", seed.tables.copying),
            ("live", seed.tables.live),
        ] {
            self.sample("cdc_sync_snapshot_tables", &format!("phase=\"{phase}\""), count);
        }
        let slot = seen.facts.slot.as_ref();
        self.gauge(
            "cdc_sync_slot_retained_bytes",
            "Log that the source holds back for the stream.",
            slot.map(|slot| slot.retained_bytes),
        );
        self.gauge(
            "cdc_sync_slot_safe_bytes",
            "Log that can still be written before it is cut.",
            slot.and_then(|slot| slot.safe_bytes),
        );
    }
}

/// Whether the target follows the source: what `/readyz` answers.
pub fn is_ready(seen: &Observation) -> bool {
    use cdc_core::pipeline::Phase;
    matches!(seen.stats.phase, Phase::Synced | Phase::Held)
}

fn escape(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use cdc_core::engine::JobNames;
    use cdc_core::pipeline::{Phase, StreamStats};

    use super::*;
    use crate::monitor::Monitor;

    fn page() -> String {
        let stats = Arc::new(StreamStats::default());
        stats.update(|stats| {
            stats.phase = Phase::Synced;
            stats.changes.read = 5;
            stats.changes.applied = 5;
            stats.fault(&cdc_core::Error::new(cdc_core::Kind::Unreachable, "gone"));
            stats.heartbeat.record(12_000);
            stats.heartbeat.record(700_000);
            stats.applied_commit_micros = 1_700_000_000_000_000;
        });
        let names = JobNames {
            job: "shop\"1".into(),
            slot: "cdc_sync_shop".into(),
        };
        let monitor = Monitor::new(names, stats);
        monitor.saw_lag(Some(42));
        monitor.saw_conflicts([("update_missing".to_owned(), 7)].into(), 3);
        render(&monitor.observe())
    }

    #[test]
    fn the_numbers_are_there_under_their_names() {
        let page = page();
        for line in [
            "cdc_sync_state{job=\"shop\\\"1\",stream=\"forward\",state=\"synced\"} 1",
            "cdc_sync_state{job=\"shop\\\"1\",stream=\"forward\",state=\"seeding\"} 0",
            "cdc_sync_ready{job=\"shop\\\"1\",stream=\"forward\"} 1",
            "cdc_sync_heartbeat_lag_seconds{job=\"shop\\\"1\",stream=\"forward\"} 0.7",
            "cdc_sync_heartbeat_lag_histogram_seconds_bucket{job=\"shop\\\"1\",stream=\"forward\",le=\"0.025\"} 1",
            "cdc_sync_heartbeat_lag_histogram_seconds_bucket{job=\"shop\\\"1\",stream=\"forward\",le=\"+Inf\"} 2",
            "cdc_sync_heartbeat_lag_histogram_seconds_sum{job=\"shop\\\"1\",stream=\"forward\"} 0.712",
            "cdc_sync_lag_bytes{job=\"shop\\\"1\",stream=\"forward\",stage=\"apply\"} 42",
            "cdc_sync_changes_accounted_total{job=\"shop\\\"1\",stream=\"forward\",outcome=\"applied\"} 5",
            "cdc_sync_conflicts_total{job=\"shop\\\"1\",stream=\"forward\",kind=\"update_missing\"} 7",
            "cdc_sync_dead_letter_rows{job=\"shop\\\"1\",stream=\"forward\"} 3",
            "cdc_sync_errors_total{job=\"shop\\\"1\",stream=\"forward\",class=\"unreachable\"} 1",
            "cdc_sync_changes_total{job=\"shop\\\"1\",stream=\"forward\",op=\"upsert\"} 0",
            "cdc_sync_last_applied_commit_timestamp_seconds{job=\"shop\\\"1\",stream=\"forward\"} 1700000000",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }

    #[test]
    fn the_page_is_well_formed() {
        let page = page();
        assert!(page.ends_with('\n'));
        let mut declared = HashSet::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().unwrap_or("");
                assert!(declared.insert(name.to_owned()), "{name} declared twice");
            } else if !line.starts_with('#') {
                let name = line.split('{').next().unwrap_or("");
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|suffix| name.strip_suffix(suffix).filter(|base| declared.contains(*base)))
                    .unwrap_or(name);
                assert!(declared.contains(family), "{name} without a type");
                let value = line.rsplit(' ').next().unwrap_or("");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
    }
}
