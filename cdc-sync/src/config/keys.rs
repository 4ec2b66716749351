//! The keys of a job file: the one table that parsing, error messages, `init` and the documentation follow.

use std::time::Duration;

use cdc_core::conflict::PolicyRule;
use cdc_core::engine::Partitions;

use super::url::DatabaseUrl;
use super::value::{parse_duration, parse_size};
use super::{JobFile, LogFormat};

/// A value of the file, its strings expanded.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    Text(String),
    Integer(i64),
    List(Vec<String>),
    /// `[[tables.rule]]`
    Rules(Vec<PolicyRule>),
    /// anything else, by the name of its type
    Other(&'static str),
}

/// One key.
pub struct Key {
    /// the table it stands in
    pub section: &'static str,
    /// its name
    pub name: &'static str,
    /// what it does, for people
    pub doc: &'static str,
    /// its value as `init` writes it: the default where there is one
    pub example: &'static str,
    pub(super) set: fn(&mut JobFile, Raw) -> Result<(), String>,
}

/// Section and name of the key that is a list of tables with keys of their own.
pub(super) const RULES: (&str, &str) = ("tables", "rule");

/// The table of keys, in the order `init` writes them.
pub const KEYS: &[Key] = &[
    Key {
        section: "job",
        name: "name",
        doc: "Name of the job; part of slot and publication. Default: the source database and a hash of both sides.",
        example: "\"shop\"",
        set: |file, raw| text(raw).map(|name| file.job = Some(name)),
    },
    Key {
        section: "source",
        name: "url",
        doc: "The database in production (blue). Keep passwords out of this file: ${env:NAME} and ${file:/path}\n\
              are replaced in any string; inside a URL what is inserted must be percent-encoded.",
        example: "\"${env:CDC_SYNC_SOURCE_URL}\"",
        set: |file, raw| text(raw).map(|url| file.source_url = Some(DatabaseUrl::new(url))),
    },
    Key {
        section: "target",
        name: "url",
        doc: "The database that takes over (green).",
        example: "\"${env:CDC_SYNC_TARGET_URL}\"",
        set: |file, raw| text(raw).map(|url| file.target_url = Some(DatabaseUrl::new(url))),
    },
    Key {
        section: "tables",
        name: "include",
        doc: "Tables to replicate: patterns of schema.table or table, with * and ?. Empty: all.",
        example: "[]",
        set: |file, raw| list(raw).map(|patterns| file.include = Some(patterns)),
    },
    Key {
        section: "tables",
        name: "exclude",
        doc: "Tables to leave, stronger than include.",
        example: "[]",
        set: |file, raw| list(raw).map(|patterns| file.exclude = Some(patterns)),
    },
    Key {
        section: "tables",
        name: "partitions",
        doc: "What a partitioned table is: \"leaves\", each leaf partition a table of its own, or \"root\", one table\n\
              however each side divides it.",
        example: "\"leaves\"",
        set: |file, raw| {
            text(raw)?
                .parse::<Partitions>()
                .map(|partitions| file.partitions = Some(partitions))
        },
    },
    Key {
        section: RULES.0,
        name: RULES.1,
        doc: "Who wins when a change meets a target that is not as the source's log makes it: the first rule that\n\
              matches a table holds, and without one the stream stops. conflict is \"stop\", \"blue_wins\", \"green_wins\",\n\
              \"lww\" (the higher version wins; needs version, a column or { column = \"…\", node = \"…\" }) or\n\
              \"dead_letter\" (put aside for `cdc-sync conflicts`).",
        example: "[[tables.rule]]\nmatch = \"public.accounts\"\nconflict = \"lww\"\nversion = \"cdc_ts\"",
        set: |file, raw| rules(raw).map(|rules| file.rules = rules),
    },
    Key {
        section: "seed",
        name: "parallel",
        doc: "Connections that copy the initial data.",
        example: "4",
        set: |file, raw| count(raw, 64).map(|n| file.seed_parallel = Some(n)),
    },
    Key {
        section: "seed",
        name: "max_retained_wal",
        doc: "Log that the source may hold back for the seed before the job stops. Default: no limit.",
        example: "\"50GB\"",
        set: |file, raw| size(raw).map(|bytes| file.max_retained_wal = Some(bytes)),
    },
    Key {
        section: "seed",
        name: "part_mb",
        doc: "Tables larger than this many MiB are copied in parts, in parallel.",
        example: "256",
        set: |file, raw| count(raw, 1 << 20).map(|mb| file.seed_part_mb = Some(mb)),
    },
    Key {
        section: "apply",
        name: "group_rows",
        doc: "Rows after which a group of source transactions is applied.",
        example: "50000",
        set: |file, raw| count(raw, 10_000_000).map(|n| file.group_rows = Some(n)),
    },
    Key {
        section: "apply",
        name: "group_mb",
        doc: "MiB of values after which a group of source transactions is applied.",
        example: "16",
        set: |file, raw| count(raw, 1024).map(|mb| file.group_mb = Some(mb)),
    },
    Key {
        section: "heartbeat",
        name: "interval",
        doc: "Time between heartbeat rows on the source, by which lag is measured. \"0s\" writes none.",
        example: "\"100ms\"",
        set: |file, raw| duration(raw).map(|every| file.heartbeat = Some(every)),
    },
    Key {
        section: "sequences",
        name: "buffer",
        doc: "Steps by which run --until-caught-up sets sequences ahead of the source.",
        example: "1000",
        set: |file, raw| {
            integer(raw, 0, i64::from(u32::MAX)).map(|n| file.sequence_buffer = u32::try_from(n).ok())
        },
    },
    Key {
        section: "http",
        name: "listen",
        doc: "Address of /livez, /readyz, /status and /metrics while running. Default: none.",
        example: "\"127.0.0.1:9187\"",
        set: |file, raw| text(raw).map(|address| file.listen = Some(address)),
    },
    Key {
        section: "log",
        name: "format",
        doc: "Form of the log on stderr: \"text\" or \"json\".",
        example: "\"text\"",
        set: |file, raw| {
            text(raw)?
                .parse::<LogFormat>()
                .map(|format| file.log_format = Some(format))
        },
    },
];

fn text(raw: Raw) -> Result<String, String> {
    match raw {
        Raw::Text(text) if text.is_empty() => Err("must not be empty".to_owned()),
        Raw::Text(text) => Ok(text),
        other => Err(format!("must be a string, not {}", other.type_name())),
    }
}

fn list(raw: Raw) -> Result<Vec<String>, String> {
    match raw {
        Raw::List(items) => match items.iter().find(|item| item.is_empty()) {
            Some(_) => Err("must not hold an empty pattern".to_owned()),
            None => Ok(items),
        },
        other => Err(format!("must be a list of strings, not {}", other.type_name())),
    }
}

fn rules(raw: Raw) -> Result<Vec<PolicyRule>, String> {
    match raw {
        Raw::Rules(rules) => Ok(rules),
        other => Err(format!(
            "must be tables `[[tables.rule]]`, not {}",
            other.type_name()
        )),
    }
}

fn integer(raw: Raw, least: i64, most: i64) -> Result<i64, String> {
    match raw {
        Raw::Integer(n) if (least..=most).contains(&n) => Ok(n),
        Raw::Integer(n) => Err(format!("must be from {least} to {most}, not {n}")),
        other => Err(format!("must be a whole number, not {}", other.type_name())),
    }
}

fn count(raw: Raw, most: i64) -> Result<usize, String> {
    integer(raw, 1, most).map(|n| usize::try_from(n).unwrap_or(usize::MAX))
}

fn size(raw: Raw) -> Result<u64, String> {
    match raw {
        Raw::Integer(bytes) => u64::try_from(bytes).map_err(|_| "must not be negative".to_owned()),
        other => parse_size(&text(other)?),
    }
}

fn duration(raw: Raw) -> Result<Duration, String> {
    parse_duration(&text(raw)?)
}

impl Raw {
    fn type_name(&self) -> &'static str {
        match self {
            Raw::Text(_) => "a string",
            Raw::Integer(_) => "a whole number",
            Raw::List(_) => "a list",
            Raw::Rules(_) => "a list of tables",
            Raw::Other(name) => name,
        }
    }
}
