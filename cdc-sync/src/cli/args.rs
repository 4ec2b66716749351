//! Verbs and flags.

use std::path::PathBuf;
use std::time::Duration;

use cdc_core::conflict::PolicyRule;
use cdc_core::engine::Partitions;
use clap::{Args, Parser, Subcommand, ValueHint};

use crate::config::{LogFormat, parse_count, parse_duration, parse_policy_rule, parse_size};

/// Change-data-capture replication for moving a live database to a new version or server.
#[derive(Debug, Parser)]
#[command(
    name = "cdc-sync",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = include_str!("help/root.txt")
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) verb: Verb,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Look at both databases and say what stands in the way; changes nothing
    #[command(after_help = include_str!("help/check.txt"))]
    Check(Check),
    /// Write a commented job file, and for review the statements that `run` will execute
    #[command(after_help = include_str!("help/init.txt"))]
    Init(Init),
    /// Copy the source to the target and follow it, from wherever the job stands
    #[command(after_help = include_str!("help/run.txt"))]
    Run(Run),
    /// Say where the job stands, whether or not it is running
    #[command(after_help = include_str!("help/status.txt"))]
    Status(Status),
    /// Compare every row of both sides, while the source is written to
    #[command(after_help = include_str!("help/verify.txt"))]
    Verify(Verify),
    /// Copy tables anew, or take tables into the job, while the rest goes on
    #[command(after_help = include_str!("help/resync.txt"))]
    Resync(Resync),
    /// Write the source's rows to the target where `verify` finds differences
    #[command(after_help = include_str!("help/repair.txt"))]
    Repair(Repair),
    /// Give account of the job: settings, positions, timings, what was verified, what was not carried
    #[command(after_help = include_str!("help/report.txt"))]
    Report(Report),
    /// Print the changes of the source as JSON lines, from now on
    #[command(after_help = include_str!("help/tail.txt"))]
    Tail(Tail),
    /// Print the changes of a capture that `tail --capture` wrote, without a server
    #[command(after_help = include_str!("help/replay.txt"))]
    Replay(Replay),
    /// List what conflict policies decided; apply or give up changes that were put aside
    #[command(after_help = include_str!("help/conflicts.txt"))]
    Conflicts(Conflicts),
    /// Drop what the job made on both sides: slot, publication, state
    #[command(after_help = include_str!("help/cleanup.txt"))]
    Cleanup(Cleanup),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Print the manual page of cdc-sync or of one verb
    Man(Man),
}

impl Verb {
    /// Its name: `kind` in JSON.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Check(_) => "check",
            Self::Init(_) => "init",
            Self::Run(_) => "run",
            Self::Status(_) => "status",
            Self::Verify(_) => "verify",
            Self::Resync(_) => "resync",
            Self::Repair(_) => "repair",
            Self::Report(_) => "report",
            Self::Tail(_) => "tail",
            Self::Replay(_) => "replay",
            Self::Conflicts(_) => "conflicts",
            Self::Cleanup(_) => "cleanup",
            Self::Completions(_) => "completions",
            Self::Man(_) => "man",
        }
    }
}

/// What every verb takes.
#[derive(Debug, Args)]
pub(super) struct Common {
    /// Job file (TOML)
    #[arg(short, long, global = true, env = "CDC_SYNC_CONFIG", hide_env_values = true)]
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Job")]
    pub(super) config: Option<String>,
    /// Name of the job [default: from both databases]
    #[arg(long, global = true, env = "CDC_SYNC_JOB", hide_env_values = true)]
    #[arg(value_name = "NAME", help_heading = "Job")]
    pub(super) job: Option<String>,
    /// URL of the database in production (blue); with a password, better in the variable or a job file
    #[arg(long, global = true, env = "CDC_SYNC_SOURCE_URL", hide_env_values = true)]
    #[arg(value_name = "URL", value_hint = ValueHint::Url, help_heading = "Job")]
    pub(super) source: Option<String>,
    /// URL of the database that takes over (green)
    #[arg(long, global = true, env = "CDC_SYNC_TARGET_URL", hide_env_values = true)]
    #[arg(value_name = "URL", value_hint = ValueHint::Url, help_heading = "Job")]
    pub(super) target: Option<String>,
    /// Take tables like this: schema.table or table, with * and ?; repeatable [default: all]
    #[arg(long, global = true, value_name = "PATTERN", help_heading = "Job")]
    pub(super) table: Vec<String>,
    /// Leave tables like this, stronger than --table; repeatable
    #[arg(long, global = true, value_name = "PATTERN", help_heading = "Job")]
    pub(super) exclude: Vec<String>,
    /// What a partitioned table is: its leaves, each a table of its own, or its root, one table however each side
    /// divides it [default: leaves]
    #[arg(long, global = true, value_name = "leaves|root", help_heading = "Job")]
    pub(super) partitions: Option<Partitions>,
    /// Wait this long for a server to come up at start
    #[arg(long, global = true, value_name = "D", default_value = "30s")]
    #[arg(value_parser = parse_duration, help_heading = "Behaviour")]
    pub(super) connect_timeout: Duration,
    /// Give up after this long with exit code 4, state kept (100ms, 30s, 5m, 1h; a bare number is seconds)
    #[arg(long, global = true, value_name = "D", value_parser = parse_duration, help_heading = "Behaviour")]
    pub(super) timeout: Option<Duration>,
    /// Say what would be done, and do nothing
    #[arg(long, global = true, help_heading = "Behaviour")]
    pub(super) dry_run: bool,
    /// Answer yes to every question
    #[arg(long, short, global = true, help_heading = "Behaviour")]
    pub(super) yes: bool,
    /// Never ask: a question that is needed ends with exit code 2
    #[arg(long, global = true, help_heading = "Behaviour")]
    pub(super) non_interactive: bool,
    /// Print one JSON object on stdout
    #[arg(long, global = true, help_heading = "Output")]
    pub(super) json: bool,
    /// Form of the log on stderr: text or json [default: text]
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        hide_possible_values = true,
        help_heading = "Output"
    )]
    pub(super) log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Let warnings fail the check too
    #[arg(long)]
    pub(super) strict: bool,
    /// Judge tables like this under a conflict policy, as `run` takes it; repeatable
    #[arg(long, value_name = "PATTERN=POLICY", value_parser = parse_policy_rule)]
    pub(super) conflict: Vec<PolicyRule>,
    /// Print the statements that give the roles of the URLs the rights they need, and check nothing
    #[arg(long, conflicts_with = "strict")]
    pub(super) print_grants: bool,
}

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Folder to write to; the job file goes to -c FILE if that is given
    #[arg(long, value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
    pub(super) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// End when everything committed on the source by now is on the target; sequences are set ahead
    #[arg(long)]
    pub(super) until_caught_up: bool,
    /// Empty target tables that hold rows before the copy, instead of refusing
    #[arg(long)]
    pub(super) truncate_target: bool,
    /// Wait this long for another instance of the job to go
    #[arg(long, value_name = "D", default_value = "10s", value_parser = parse_duration)]
    pub(super) takeover_timeout: Duration,
    /// After a signal, finish work in flight within this time
    #[arg(long, value_name = "D", default_value = "10s", value_parser = parse_duration)]
    pub(super) shutdown_timeout: Duration,
    /// Serve /livez, /readyz, /status and /metrics on this host:port
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Option<String>,
    /// Folder of the dump and restore programs [default: the newest found]
    #[arg(long = "pg-bin", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) tools_dir: Option<PathBuf>,
    /// Steps by which sequences are set ahead [default: 1000]
    #[arg(long, value_name = "N")]
    pub(super) sequence_buffer: Option<u32>,
    /// Log that the source may hold back during the copy before the job stops (50GB) [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) max_retained_wal: Option<u64>,
    /// Connections that copy the initial data [default: 4]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(super) parallel: Option<usize>,
    /// Who wins conflicts on tables like this: stop, blue_wins, green_wins, dead_letter, lww:COLUMN or
    /// lww:COLUMN,NODE_COLUMN; stronger than the job file, the first that matches holds; repeatable
    #[arg(long, value_name = "PATTERN=POLICY", value_parser = parse_policy_rule)]
    pub(super) conflict: Vec<PolicyRule>,
}

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Repeat until interrupted
    #[arg(long)]
    pub(super) watch: bool,
    /// Exit with code 4 unless this gate is met
    #[arg(long, value_name = "NAME", value_parser = crate::status::GATES)]
    pub(super) gate: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Verify {}

#[derive(Debug, Args)]
pub(super) struct Resync {}

#[derive(Debug, Args)]
pub(super) struct Repair {}

#[derive(Debug, Args)]
pub(super) struct Report {
    /// Write the Markdown to this file instead of stdout
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) markdown: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Tail {
    /// Read this slot instead of a temporary one; it keeps its position unless --consume is given
    #[arg(long, value_name = "NAME")]
    pub(super) slot: Option<String>,
    /// Confirm what was printed, so that the slot does not deliver it again
    #[arg(long, requires = "slot")]
    pub(super) consume: bool,
    /// End when this position is reached
    #[arg(long, value_name = "LSN")]
    pub(super) until_lsn: Option<String>,
    /// End after this many changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) limit: Option<u64>,
    /// Show numbers and booleans as JSON has them instead of as text
    #[arg(long)]
    pub(super) typed: bool,
    /// Write what is read to this new file as well, for `replay`
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) capture: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Replay {
    /// The capture
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) file: PathBuf,
    /// End when this position is reached
    #[arg(long, value_name = "LSN")]
    pub(super) until_lsn: Option<String>,
    /// End after this many changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) limit: Option<u64>,
    /// Show numbers and booleans as JSON has them instead of as text
    #[arg(long)]
    pub(super) typed: bool,
}

#[derive(Debug, Args)]
pub(super) struct Conflicts {
    #[command(subcommand)]
    pub(super) deed: Deed,
}

#[derive(Debug, Subcommand)]
pub(super) enum Deed {
    /// List conflicts, newest first
    List(List),
    /// Show one: the change, the target's row, and what differs
    Show {
        /// Its number
        id: i64,
    },
    /// Apply changes that were put aside
    Retry(Decide),
    /// Give up changes that were put aside
    Discard(Decide),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only those that wait for a decision
    #[arg(long)]
    pub(super) open: bool,
    /// At most this many
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) limit: u32,
}

#[derive(Debug, Args)]
pub(super) struct Decide {
    /// Their numbers
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    pub(super) ids: Vec<i64>,
    /// All that wait for a decision
    #[arg(long)]
    pub(super) all: bool,
}

#[derive(Debug, Args)]
pub(super) struct Cleanup {}

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// The verb
    #[arg(conflicts_with = "dir")]
    pub(super) verb_name: Option<String>,
    /// Write every page into this folder instead
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) dir: Option<PathBuf>,
}
