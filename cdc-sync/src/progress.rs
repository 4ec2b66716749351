//! Progress on stderr: bars where a person looks, JSON lines where a program does.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use cdc_core::engine::SeedPhase;
use cdc_core::pipeline::{Phase, StatsSnapshot};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::monitor::{Monitor, SeedTotals};
use crate::run::{Reporter, SeedProgress, TableProgress};
use crate::status::state_name;

/// Time between lines of the seed.
const SEED_EVERY: Duration = Duration::from_secs(1);
/// Time between lines of the stream; a change of state has its line at once.
const STREAM_EVERY: Duration = Duration::from_secs(10);

/// Shows progress and hands it to the monitor.
#[derive(Debug)]
pub struct Progress {
    monitor: Arc<Monitor>,
    look: Look,
}

#[derive(Debug)]
enum Look {
    Bars(Mutex<Bars>),
    Lines(Mutex<Lines>),
}

/// Where bars are drawn: nowhere unless stderr is a terminal.
pub fn canvas() -> MultiProgress {
    let bars = MultiProgress::new();
    if !std::io::stderr().is_terminal() {
        bars.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bars
}

impl Progress {
    /// Shows progress on `canvas` if stderr is a terminal, as lines otherwise.
    pub fn new(monitor: Arc<Monitor>, canvas: MultiProgress) -> Self {
        let look = if std::io::stderr().is_terminal() {
            Look::Bars(Mutex::new(Bars::new(canvas)))
        } else {
            Look::Lines(Mutex::default())
        };
        Self { monitor, look }
    }

    /// Takes the bars away.
    pub fn finish(&self) {
        if let Look::Bars(bars) = &self.look {
            lock(bars).clear();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reporter for Progress {
    fn seed(&self, progress: &SeedProgress) {
        self.monitor.saw_seed(progress);
        match &self.look {
            Look::Bars(bars) => lock(bars).seed(progress),
            Look::Lines(lines) => {
                for line in lock(lines).seed(progress, Instant::now()) {
                    crate::output::notice(&format!("{line}\n"));
                }
            }
        }
    }

    fn stream(&self, stats: &StatsSnapshot, lag_bytes: Option<u64>) {
        self.monitor.saw_lag(lag_bytes);
        match &self.look {
            Look::Bars(bars) => lock(bars).stream(stats, lag_bytes),
            Look::Lines(lines) => {
                if let Some(line) = lock(lines).stream(stats, lag_bytes, Instant::now()) {
                    crate::output::notice(&format!("{line}\n"));
                }
            }
        }
    }

    fn holds(&self, holds: bool) {
        self.monitor.saw_hold(holds);
    }

    fn note(&self, message: &str) {
        tracing::info!("{message}");
    }
}

/// Decides which lines are written when.
#[derive(Debug, Default)]
struct Lines {
    seed_at: Option<Instant>,
    live: HashMap<String, bool>,
    stream_at: Option<(Instant, Phase)>,
}

impl Lines {
    fn seed(&mut self, progress: &SeedProgress, now: Instant) -> Vec<serde_json::Value> {
        let mut lines = Vec::new();
        for table in &progress.tables {
            let live = table.phase == SeedPhase::Live;
            let before = self.live.insert(table.table.to_string(), live);
            if before == Some(false) && live {
                lines.push(serde_json::json!({
                    "progress": "table",
                    "table": table.table.to_string(),
                    "rows": table.rows,
                    "bytes": table.bytes,
                }));
            }
        }
        if self.seed_at.is_none_or(|at| now - at >= SEED_EVERY) || !lines.is_empty() {
            self.seed_at = Some(now);
            let totals = SeedTotals::from(progress);
            lines.push(serde_json::json!({
                "progress": "seed",
                "seconds": progress.began.elapsed().as_secs_f64(),
                "tables": totals.tables,
                "rows": totals.rows,
                "estimated_rows": totals.estimated_rows,
                "bytes": totals.bytes,
                "retained_bytes": progress.retention.as_ref().map(|kept| kept.retained_bytes),
                "safe_bytes": progress.retention.as_ref().and_then(|kept| kept.safe_bytes),
            }));
        }
        lines
    }

    fn stream(
        &mut self,
        stats: &StatsSnapshot,
        lag_bytes: Option<u64>,
        now: Instant,
    ) -> Option<serde_json::Value> {
        let due = self
            .stream_at
            .is_none_or(|(at, phase)| phase != stats.phase || now - at >= STREAM_EVERY);
        if !due {
            return None;
        }
        self.stream_at = Some((now, stats.phase));
        let lag = stats.heartbeat.summary();
        Some(serde_json::json!({
            "progress": "stream",
            "state": state_name(stats.phase),
            "lag_ms": lag,
            "lag_bytes": lag_bytes,
            "transactions": stats.transactions,
            "read": stats.changes.read,
            "applied": stats.changes.applied,
        }))
    }
}

/// Bars: one for the whole seed, one for each table being copied, one line for the stream.
#[derive(Debug)]
struct Bars {
    canvas: MultiProgress,
    total: Option<ProgressBar>,
    tables: HashMap<String, ProgressBar>,
    stream: Option<ProgressBar>,
    last: Option<(Instant, u64)>,
}

impl Bars {
    fn new(canvas: MultiProgress) -> Self {
        Self {
            canvas,
            total: None,
            tables: HashMap::new(),
            stream: None,
            last: None,
        }
    }

    fn clear(&mut self) {
        let bars = self.total.take().into_iter().chain(self.stream.take());
        for bar in bars.chain(self.tables.drain().map(|(_, bar)| bar)) {
            bar.finish_and_clear();
        }
    }

    fn seed(&mut self, progress: &SeedProgress) {
        let whole: u64 = progress.tables.iter().map(|table| table.disk_bytes).sum();
        let done: u64 = progress.tables.iter().map(done_bytes).sum();
        let totals = SeedTotals::from(progress);
        let canvas = &self.canvas;
        let total = self.total.get_or_insert_with(|| bar(canvas, "seed"));
        total.set_length(whole.max(1));
        total.set_position(done);
        let retained = progress.retention.as_ref().map_or_else(String::new, |kept| {
            format!(" · source retains {}", ByteSize::b(kept.retained_bytes))
        });
        let tables = &totals.tables;
        let count = tables.live + tables.copying + tables.todo;
        let live = tables.live;
        total.set_message(format!("{} rows, {live}/{count} tables{retained}", totals.rows));
        for table in &progress.tables {
            let name = table.table.to_string();
            if table.phase == SeedPhase::Copying {
                let bar = self
                    .tables
                    .entry(name.clone())
                    .or_insert_with(|| bar(canvas, &name));
                bar.set_length(table.disk_bytes.max(1));
                bar.set_position(done_bytes(table));
                bar.set_message(format!("{} rows", table.rows));
            } else if let Some(bar) = self.tables.remove(&name) {
                bar.finish_and_clear();
            }
        }
    }

    fn stream(&mut self, stats: &StatsSnapshot, lag_bytes: Option<u64>) {
        if let Some(total) = self.total.take() {
            total.finish_and_clear();
        }
        self.tables.drain().for_each(|(_, bar)| bar.finish_and_clear());
        let now = Instant::now();
        let rate = self.last.map_or(0.0, |(at, before)| {
            let seconds = now.duration_since(at).as_secs_f64().max(0.001);
            stats.changes.read.saturating_sub(before) as f64 / seconds
        });
        self.last = Some((now, stats.changes.read));
        let canvas = &self.canvas;
        let line = self.stream.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{spinner} {msg}");
            let bar = canvas.add(ProgressBar::new_spinner());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar
        });
        line.set_message(stream_line(stats, lag_bytes, rate));
        line.tick();
    }
}

/// Bytes on the wire are not bytes on disk: only a finished table counts whole.
fn done_bytes(table: &TableProgress) -> u64 {
    match table.phase {
        SeedPhase::Todo => 0,
        SeedPhase::Copying | SeedPhase::Aside => table.bytes.min(table.disk_bytes / 100 * 99),
        SeedPhase::Live => table.disk_bytes,
    }
}

fn bar(canvas: &MultiProgress, name: &str) -> ProgressBar {
    let template = "{prefix:24!} [{bar:24}] {percent:>3} % {eta:>4} {wide_msg}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = canvas.add(ProgressBar::new(1));
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(name.to_owned());
    bar
}

fn stream_line(stats: &StatsSnapshot, lag_bytes: Option<u64>, rate: f64) -> String {
    let mut parts = vec![state_name(stats.phase).to_owned()];
    if let Some(lag) = stats.heartbeat.summary() {
        parts.push(format!("lag p50 {:.0} ms, p99 {:.0} ms", lag.p50, lag.p99));
    }
    if let Some(bytes) = lag_bytes {
        parts.push(format!("{} behind", ByteSize::b(bytes)));
    }
    parts.push(format!("{rate:.0} changes/s"));
    parts.push(format!("{} transactions", stats.transactions));
    parts.join(" · ")
}

#[cfg(test)]
mod tests {
    use cdc_core::TableName;

    use super::*;

    fn progress(phase: SeedPhase) -> SeedProgress {
        SeedProgress {
            tables: vec![TableProgress {
                table: TableName::new("public", "t"),
                phase,
                estimated_rows: 10,
                disk_bytes: 1000,
                rows: 4,
                bytes: 2000,
                parts: (0, 1),
            }],
            began: Instant::now(),
            retention: None,
        }
    }

    #[test]
    fn lines_of_the_seed_come_once_a_second_and_when_a_table_is_done() {
        let mut lines = Lines::default();
        let start = Instant::now();
        assert_eq!(lines.seed(&progress(SeedPhase::Copying), start).len(), 1);
        assert!(lines.seed(&progress(SeedPhase::Copying), start).is_empty());
        let done = lines.seed(&progress(SeedPhase::Live), start);
        assert_eq!(done[0]["progress"], "table");
        assert_eq!(done[1]["tables"]["live"], 1);
        assert_eq!(
            lines.seed(&progress(SeedPhase::Live), start + SEED_EVERY).len(),
            1
        );
    }

    #[test]
    fn tables_live_from_an_earlier_run_are_not_announced() {
        let lines = Lines::default().seed(&progress(SeedPhase::Live), Instant::now());
        assert!(lines.iter().all(|line| line["progress"] == "seed"));
    }

    #[test]
    fn a_change_of_state_has_its_line_at_once() {
        let mut lines = Lines::default();
        let now = Instant::now();
        let mut stats = StatsSnapshot {
            phase: Phase::CatchingUp,
            ..StatsSnapshot::default()
        };
        assert!(lines.stream(&stats, None, now).is_some());
        assert!(lines.stream(&stats, None, now).is_none());
        stats.phase = Phase::Synced;
        stats.heartbeat.record(12_000);
        let line = lines.stream(&stats, Some(5), now).expect("a line");
        assert_eq!(line["state"], "synced");
        assert!(line["lag_ms"]["p99"].is_number());
    }

    #[test]
    fn bars_never_run_over() {
        for phase in [SeedPhase::Todo, SeedPhase::Copying, SeedPhase::Live] {
            let progress = progress(phase);
            assert!(done_bytes(&progress.tables[0]) <= 1000);
        }
    }
}
