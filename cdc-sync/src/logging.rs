//! The log: stderr, text or JSON, without secrets, and without tearing progress bars apart.

use std::io::{self, Write};

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::LogFormat;
use crate::redact::redact;

/// Chooses what is logged, such as `debug` or `cdc_sync=trace,info`.
pub const FILTER_VARIABLE: &str = "CDC_SYNC_LOG";

/// Starts logging; `level` holds where [`FILTER_VARIABLE`] says nothing. Bars are hidden while a line is written.
pub fn start(format: LogFormat, level: &str, bars: MultiProgress) {
    let filter = EnvFilter::builder()
        .with_default_directive(level.parse().unwrap_or_default())
        .with_env_var(FILTER_VARIABLE)
        .from_env_lossy();
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        .with_writer(Lines { bars });
    // A second subscriber in one process (an embedder's) wins over ours; there is nothing to do about it.
    let _ = match format {
        LogFormat::Text => base.try_init(),
        LogFormat::Json => base.json().flatten_event(true).try_init(),
    };
}

#[derive(Debug, Clone)]
struct Lines {
    bars: MultiProgress,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line {
            text: Vec::new(),
            bars: self.bars.clone(),
        }
    }
}

/// Gathers one event and writes it whole.
#[derive(Debug)]
struct Line {
    text: Vec<u8>,
    bars: MultiProgress,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.text.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(&self.text);
        let line = redact(&text);
        self.bars.suspend(|| crate::output::notice(&line));
    }
}
