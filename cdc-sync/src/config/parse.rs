//! From TOML text to a [`JobFile`], collecting every issue.

mod rules;

use std::path::Path;

use toml::de::{DeInteger, DeTable, DeValue};

use super::expand::{Environment, expand};
use super::keys::{KEYS, Key, RULES, Raw};
use super::nearest::nearest;
use super::{Issue, JobFile};

/// Parses the text of a job file as [`load`](super::load) does; its relative files are looked up in `folder`.
///
/// # Errors
/// Every issue, in the order of their lines.
pub fn parse(
    text: &str,
    folder: &Path,
    environment: Environment<'_>,
    overridden: &[&str],
) -> Result<JobFile, Vec<Issue>> {
    let (root, syntax) = DeTable::parse_recoverable(text);
    let mut reading = Reading {
        text,
        folder,
        environment,
        overridden,
        file: JobFile::default(),
        issues: Vec::new(),
    };
    for error in &syntax {
        let at = error.span().map_or(0, |span| span.start);
        reading.issue(at, error.message().to_owned());
    }
    reading.root(root.get_ref());
    if reading.issues.is_empty() {
        return Ok(reading.file);
    }
    reading.issues.sort_by_key(|issue| (issue.line, issue.column));
    Err(reading.issues)
}

struct Reading<'a> {
    text: &'a str,
    folder: &'a Path,
    environment: Environment<'a>,
    overridden: &'a [&'a str],
    file: JobFile,
    issues: Vec<Issue>,
}

impl Reading<'_> {
    fn issue(&mut self, at: usize, message: String) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        self.issues.push(Issue {
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or("").chars().count() + 1,
            message,
        });
    }

    fn root(&mut self, root: &DeTable<'_>) {
        for (name, value) in root {
            let section = name.get_ref().as_ref();
            let known = KEYS.iter().any(|key| key.section == section);
            match (known, value.get_ref()) {
                (true, DeValue::Table(table)) => self.section(section, table),
                (true, other) => {
                    let found = type_name(other);
                    self.issue(
                        name.span().start,
                        format!("`{section}` must be a table `[{section}]`, not {found}"),
                    );
                }
                (false, _) => {
                    let mut sections: Vec<&str> = KEYS.iter().map(|key| key.section).collect();
                    sections.dedup();
                    self.unknown(name.span().start, "table", section, &sections);
                }
            }
        }
    }

    fn section(&mut self, section: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let at = name.span().start;
            let found = KEYS
                .iter()
                .find(|key| key.section == section && key.name == name.get_ref().as_ref());
            let Some(key) = found else {
                let known: Vec<&str> = KEYS
                    .iter()
                    .filter(|key| key.section == section)
                    .map(|key| key.name)
                    .collect();
                self.unknown(at, &format!("key in [{section}]"), name.get_ref(), &known);
                continue;
            };
            let set = if (key.section, key.name) == RULES {
                let rules = self.rules(value.get_ref());
                (key.set)(&mut self.file, rules)
            } else {
                self.set(key, value.get_ref())
            };
            if let Err(message) = set {
                self.issue(value.span().start, format!("{section}.{}: {message}", key.name));
            }
        }
    }

    fn set(&mut self, key: &Key, value: &DeValue<'_>) -> Result<(), String> {
        match self.raw(value) {
            Ok(raw) => (key.set)(&mut self.file, raw),
            Err(_)
                if self
                    .overridden
                    .contains(&format!("{}.{}", key.section, key.name).as_str()) =>
            {
                Ok(())
            }
            Err(message) => Err(message),
        }
    }

    fn raw(&self, value: &DeValue<'_>) -> Result<Raw, String> {
        let expanded = |text: &str| expand(text, self.folder, self.environment);
        Ok(match value {
            DeValue::String(text) => Raw::Text(expanded(text)?),
            DeValue::Integer(number) => Raw::Integer(integer(number)?),
            DeValue::Array(items) => {
                let texts: Option<Vec<&str>> = items.iter().map(|item| item.get_ref().as_str()).collect();
                match texts {
                    Some(texts) => Raw::List(texts.into_iter().map(expanded).collect::<Result<_, _>>()?),
                    None => Raw::Other("a list of other things"),
                }
            }
            other => Raw::Other(type_name(other)),
        })
    }

    fn unknown(&mut self, at: usize, what: &str, found: &str, known: &[&str]) {
        let guess = nearest(found, known.iter().copied())
            .map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
        self.issue(
            at,
            format!("unknown {what}: `{found}`{guess} (known: {})", known.join(", ")),
        );
    }
}

fn integer(number: &DeInteger<'_>) -> Result<i64, String> {
    i64::from_str_radix(number.as_str(), number.radix()).map_err(|_| "does not fit in 64 bits".to_owned())
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use cdc_core::engine::Partitions;

    use crate::config::{DatabaseUrl, LogFormat};

    fn parsed(text: &str) -> Result<JobFile, Vec<Issue>> {
        let environment = |name: &str| (name == "PW").then(|| "s3cret".to_owned());
        parse(text, Path::new("/nowhere"), &environment, &["target.url"])
    }

    #[test]
    fn every_key_is_read() {
        let file = parsed(
            r#"
[job]
name = "shop"
[source]
url = "db://u:${env:PW}@h/shop"
[tables]
include = ["public.*"]
exclude = ["public.audit_*", "tmp"]
partitions = "root"
[seed]
parallel = 8
max_retained_wal = "50GB"
part_mb = 128
[apply]
group_rows = 1000
group_mb = 4
[heartbeat]
interval = "250ms"
[sequences]
buffer = 10
[http]
listen = "127.0.0.1:9187"
[log]
format = "json"
"#,
        );
        let expected = JobFile {
            job: Some("shop".into()),
            source_url: Some(DatabaseUrl::new("db://u:s3cret@h/shop")),
            target_url: None,
            include: Some(vec!["public.*".into()]),
            exclude: Some(vec!["public.audit_*".into(), "tmp".into()]),
            partitions: Some(Partitions::Root),
            seed_parallel: Some(8),
            seed_part_mb: Some(128),
            max_retained_wal: Some(50_000_000_000),
            group_rows: Some(1000),
            group_mb: Some(4),
            heartbeat: Some(Duration::from_millis(250)),
            sequence_buffer: Some(10),
            rules: Vec::new(),
            listen: Some("127.0.0.1:9187".into()),
            log_format: Some(LogFormat::Json),
        };
        assert_eq!(
            parsed(&crate::config::template(None, &[])).map(|_| ()),
            Err(missing_environment())
        );
        assert_eq!(file, Ok(expected));
    }

    /// The template as written refers to the environment, which the test has not.
    fn missing_environment() -> Vec<Issue> {
        let text = crate::config::template(None, &[]);
        let line = text
            .lines()
            .position(|line| line.starts_with("url"))
            .map_or(0, |at| at + 1);
        vec![Issue {
            line,
            column: 7,
            message: "source.url: environment variable CDC_SYNC_SOURCE_URL is not set".into(),
        }]
    }

    #[test]
    fn all_issues_are_told_at_once_with_their_lines() {
        let text = "[job]\nnmae = \"x\"\n\n[sourec]\nurl = \"x\"\n[seed]\nparallel = \"four\"\npart_mb = 0\n\
                    [log]\nformat = \"yaml\"\n[http]\nlisten = \"${env:GONE}\"\n[tables]\ninclude = [1]\n";
        let issues = parsed(text).expect_err("many issues");
        let shown: Vec<String> = issues.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "line 2, column 1: unknown key in [job]: `nmae`; did you mean `name`? (known: name)",
                "line 4, column 2: unknown table: `sourec`; did you mean `source`? (known: job, source, target, \
                 tables, seed, apply, heartbeat, sequences, http, log)",
                "line 7, column 12: seed.parallel: must be a whole number, not a string",
                "line 8, column 11: seed.part_mb: must be from 1 to 1048576, not 0",
                "line 10, column 10: log.format: must be \"text\" or \"json\"",
                "line 12, column 10: http.listen: environment variable GONE is not set",
                "line 14, column 11: tables.include: must be a list of strings, not a list of other things",
            ]
        );
    }

    #[test]
    fn syntax_errors_have_lines_too_and_do_not_hide_others() {
        let issues = parsed("[job]\nname = \n[seed]\nparalel = 1\n").expect_err("two issues");
        let lines: Vec<usize> = issues.iter().map(|issue| issue.line).collect();
        assert!(lines.contains(&2) && lines.contains(&4), "{issues:?}");
    }

    #[test]
    fn a_key_that_a_flag_overrides_needs_no_environment() {
        assert!(parsed("[target]\nurl = \"${env:GONE}\"\n").is_ok());
        assert!(parsed("[source]\nurl = \"${env:GONE}\"\n").is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        let file = parsed("[source]\nurl = \"db://u:${env:PW}@h/shop\"\n");
        assert!(!format!("{file:?}").contains("s3cret"));
    }
}
