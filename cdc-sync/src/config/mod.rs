//! The job file and everything else that decides how a job runs: flag before environment before file before
//! default.
//!
//! The file is TOML; [`KEYS`] lists its keys. Unknown keys are errors, and all errors of a file are told at once,
//! each with its line.

mod expand;
mod keys;
mod nearest;
mod parse;
mod policy;
mod settings;
mod template;
mod url;
mod value;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use cdc_core::conflict::PolicyRule;
use cdc_core::engine::Partitions;
use cdc_core::{Error, Kind, Result};

pub use expand::Environment;
pub use keys::{KEYS, Key};
pub use parse::parse;
pub use policy::parse_policy_rule;
pub use settings::{Flags, Settings};
pub use template::{template, toml_string};
pub use url::DatabaseUrl;
pub use value::{parse_count, parse_duration, parse_size};

/// The form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// lines for people
    #[default]
    Text,
    /// one JSON object a line
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be \"text\" or \"json\"".to_owned()),
        }
    }
}

/// What a job file says; `None` where it says nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobFile {
    pub(crate) job: Option<String>,
    pub(crate) source_url: Option<DatabaseUrl>,
    pub(crate) target_url: Option<DatabaseUrl>,
    pub(crate) include: Option<Vec<String>>,
    pub(crate) exclude: Option<Vec<String>>,
    pub(crate) partitions: Option<Partitions>,
    pub(crate) rules: Vec<PolicyRule>,
    pub(crate) seed_parallel: Option<usize>,
    pub(crate) seed_part_mb: Option<usize>,
    pub(crate) max_retained_wal: Option<u64>,
    pub(crate) group_rows: Option<usize>,
    pub(crate) group_mb: Option<usize>,
    pub(crate) heartbeat: Option<Duration>,
    pub(crate) sequence_buffer: Option<u32>,
    pub(crate) listen: Option<String>,
    pub(crate) log_format: Option<LogFormat>,
}

/// One thing wrong with a job file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// from 1
    pub line: usize,
    /// from 1, in characters
    pub column: usize,
    /// what is wrong; never a value of the file, which may be a secret
    pub message: String,
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

/// Reads a job file. Placeholders of the keys in `overridden` (`section.name`) need not be replaceable, as what
/// they say does not count.
///
/// # Errors
/// [`Kind::Config`] with every issue of the file.
pub fn load(path: &Path, environment: Environment<'_>, overridden: &[&str]) -> Result<JobFile> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::new(Kind::Config, format!("cannot read the job file: {error}"))
            .object(shown.to_string())
            .remedy("give the path of an existing file with -c, or write one with `cdc-sync init`")
    })?;
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    parse(&text, folder, environment, overridden).map_err(|issues| {
        let count = match issues.len() {
            1 => "1 error".to_owned(),
            n => format!("{n} errors"),
        };
        let lines: Vec<String> = issues.iter().map(|issue| format!("\n  {issue}")).collect();
        Error::new(Kind::Config, format!("{count} in the job file{}", lines.concat()))
            .object(shown.to_string())
            .remedy("`cdc-sync init` writes a job file with every key and its meaning")
    })
}

/// Replaces placeholders in the value of a flag or variable; relative files are looked up where we run.
///
/// # Errors
/// Names the placeholder that cannot be replaced.
pub fn expand_flag(text: &str, environment: Environment<'_>) -> Result<String, String> {
    expand::expand(text, Path::new(""), environment)
}
