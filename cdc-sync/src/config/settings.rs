//! What holds in the end: flag or environment variable, else the job file, else the default.

use std::time::Duration;

use cdc_core::TableSelection;
use cdc_core::conflict::{PolicyRule, PolicyRules};
use cdc_core::engine::Partitions;
use cdc_core::pipeline::PipelineConfig;

use sha2::{Digest, Sha256};

use super::{DatabaseUrl, JobFile, LogFormat};

const MIB: usize = 1 << 20;

/// What the command line (or the environment in its place) says of things a job file can say too.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--job`
    pub job: Option<String>,
    /// `--source`
    pub source: Option<DatabaseUrl>,
    /// `--target`
    pub target: Option<DatabaseUrl>,
    /// `--table`
    pub include: Vec<String>,
    /// `--exclude`
    pub exclude: Vec<String>,
    /// `--partitions`
    pub partitions: Option<Partitions>,
    /// `--conflict`
    pub conflicts: Vec<PolicyRule>,
    /// `--parallel`
    pub parallel: Option<usize>,
    /// `--max-retained-wal`
    pub max_retained_wal: Option<u64>,
    /// `--sequence-buffer`
    pub sequence_buffer: Option<u32>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--log-format`
    pub log_format: Option<LogFormat>,
}

/// How a job runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// the job's name, if one was given
    pub job: Option<String>,
    /// blue
    pub source: Option<DatabaseUrl>,
    /// green
    pub target: Option<DatabaseUrl>,
    /// which tables
    pub selection: TableSelection,
    /// who wins conflicts on which tables
    pub conflicts: PolicyRules,
    /// connections that copy the seed
    pub seed_parallel: usize,
    /// bytes of a table copied by one connection at a time
    pub seed_part_bytes: u64,
    /// retained log, in bytes, at which the seed stops
    pub max_retained_wal: Option<u64>,
    /// limits of the pipeline
    pub pipeline: PipelineConfig,
    /// time between heartbeats; `None` writes none
    pub heartbeat: Option<Duration>,
    /// steps by which sequences are set ahead
    pub sequence_buffer: u32,
    /// where the HTTP endpoints are
    pub listen: Option<String>,
    /// form of the log
    pub log_format: LogFormat,
}

impl Settings {
    /// What the settings come to, as SHA-256 of a stable text without secrets: the same settings give the same number,
    /// whether they come from flags, environment or job file.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        let url = |url: &Option<DatabaseUrl>| url.as_ref().map(ToString::to_string);
        let said: [(&str, String); 10] = [
            ("job", format!("{:?}", self.job)),
            ("source", format!("{:?}", url(&self.source))),
            ("target", format!("{:?}", url(&self.target))),
            ("tables", format!("{:?}", self.selection)),
            ("conflicts", format!("{:?}", self.conflicts)),
            ("seed", format!("{} {}", self.seed_parallel, self.seed_part_bytes)),
            ("max_retained_wal", format!("{:?}", self.max_retained_wal)),
            ("pipeline", format!("{:?}", self.pipeline)),
            ("heartbeat", format!("{:?}", self.heartbeat)),
            ("sequence_buffer", self.sequence_buffer.to_string()),
        ];
        for (name, value) in said {
            hash.update(format!("{name}={value}\n").as_bytes());
        }
        let digest = hash.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Combines what was said.
    pub fn resolve(flags: Flags, file: JobFile) -> Self {
        let given = |patterns: Vec<String>| (!patterns.is_empty()).then_some(patterns);
        let default = PipelineConfig::default();
        Self {
            job: flags.job.or(file.job),
            source: flags.source.or(file.source_url),
            target: flags.target.or(file.target_url),
            selection: TableSelection {
                include: given(flags.include).or(file.include).unwrap_or_default(),
                exclude: given(flags.exclude).or(file.exclude).unwrap_or_default(),
                partitions: flags.partitions.or(file.partitions).unwrap_or_default(),
            },
            // The first rule that matches holds.
            conflicts: PolicyRules(flags.conflicts.into_iter().chain(file.rules).collect()),
            seed_parallel: flags.parallel.or(file.seed_parallel).unwrap_or(4),
            seed_part_bytes: (file.seed_part_mb.unwrap_or(256) * MIB) as u64,
            max_retained_wal: flags.max_retained_wal.or(file.max_retained_wal),
            pipeline: PipelineConfig {
                group_rows: file.group_rows.unwrap_or(default.group_rows),
                group_bytes: file.group_mb.map_or(default.group_bytes, |mb| mb * MIB),
            },
            heartbeat: Some(file.heartbeat.unwrap_or(Duration::from_millis(100)))
                .filter(|every| !every.is_zero()),
            sequence_buffer: flags.sequence_buffer.or(file.sequence_buffer).unwrap_or(1000),
            listen: flags.listen.or(file.listen),
            log_format: flags.log_format.or(file.log_format).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use cdc_core::TableName;
    use cdc_core::conflict::Policy;

    use super::*;

    fn rule(pattern: &str, policy: Policy) -> PolicyRule {
        PolicyRule {
            pattern: pattern.into(),
            policy,
        }
    }

    #[test]
    fn flags_come_before_the_file_and_the_file_before_defaults() {
        let file = JobFile {
            job: Some("file".into()),
            include: Some(vec!["a".into()]),
            exclude: Some(vec!["b".into()]),
            heartbeat: Some(Duration::ZERO),
            sequence_buffer: Some(5),
            group_mb: Some(2),
            rules: vec![rule("t", Policy::BlueWins), rule("u", Policy::BlueWins)],
            ..JobFile::default()
        };
        let flags = Flags {
            job: Some("flag".into()),
            include: vec!["c".into()],
            conflicts: vec![rule("t", Policy::DeadLetter)],
            ..Flags::default()
        };
        let settings = Settings::resolve(flags, file);
        assert_eq!(settings.job.as_deref(), Some("flag"));
        assert_eq!(settings.selection.include, ["c"]);
        assert_eq!(settings.selection.exclude, ["b"]);
        let policy = |name: &str| settings.conflicts.policy(&TableName::new("public", name));
        assert_eq!(
            ["t", "u", "v"].map(policy),
            [Policy::DeadLetter, Policy::BlueWins, Policy::Stop]
        );
        assert_eq!(settings.heartbeat, None);
        assert_eq!(settings.sequence_buffer, 5);
        assert_eq!(settings.pipeline.group_bytes, 2 * MIB);
        assert_eq!(settings.seed_parallel, 4);
        let defaults = Settings::resolve(Flags::default(), JobFile::default());
        assert_eq!(defaults.heartbeat, Some(Duration::from_millis(100)));
        assert_eq!(defaults.sequence_buffer, 1000);
    }
}
