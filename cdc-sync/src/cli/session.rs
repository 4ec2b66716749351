//! What the verbs share: settings, connections, the job's names, questions to the user.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cdc_core::engine::JobNames;
use cdc_core::{Error, Kind, Result, Site};
use indicatif::MultiProgress;

use super::args::{Cli, Common, Verb};
use crate::config::{self, DatabaseUrl, Flags, JobFile, Settings};
use crate::signals::Stop;
use crate::{engines, job};

/// One invocation of a verb.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) settings: Settings,
    pub(super) config: Option<PathBuf>,
    pub(super) connect_timeout: Duration,
    pub(super) timeout: Option<Duration>,
    pub(super) dry_run: bool,
    pub(super) json: bool,
    pub(super) stop: Stop,
    pub(super) canvas: MultiProgress,
    yes: bool,
    non_interactive: bool,
    job: OnceLock<String>,
}

/// Both databases, connected, and what the job is called on them.
pub(super) struct Sites {
    pub(super) source: Arc<dyn Site>,
    pub(super) target: Arc<dyn Site>,
    pub(super) names: JobNames,
}

/// `--dry-run` is refused where it would promise what it cannot keep.
fn refuse_dry_run(common: &Common, verb: &Verb) -> Result<()> {
    let why = match verb {
        Verb::Verify(_) => {
            "verify changes no data, but it writes markers to the source and holds the stream of the job"
        }
        Verb::Tail(_) => {
            "tail changes no data, but it makes a temporary slot on the source, or reads the given one"
        }
        _ => return Ok(()),
    };
    if !common.dry_run {
        return Ok(());
    }
    Err(
        Error::new(Kind::Config, format!("there is no dry run of it: {why}"))
            .object("--dry-run")
            .remedy("run it without --dry-run"),
    )
}

impl Session {
    /// Reads the job file and combines it with flags and environment.
    pub(super) fn new(cli: Cli, stop: Stop, canvas: MultiProgress) -> Result<(Self, Verb)> {
        let Cli { verb, common } = cli;
        refuse_dry_run(&common, &verb)?;
        if matches!(verb, Verb::Resync(_)) && common.table.is_empty() {
            return Err(Error::new(Kind::Config, "resync needs to be told the tables")
                .object("--table")
                .remedy("give --table schema.table, with * and ? for several; repeatable"));
        }
        let config = given(common.config.clone()).map(PathBuf::from);
        let flags = flags(&common, &verb)?;
        // `init` writes the file that -c names.
        let file = match &config {
            Some(path) if !matches!(verb, Verb::Init(_)) => load(path, &flags)?,
            _ => JobFile::default(),
        };
        let session = Self {
            settings: Settings::resolve(flags, file),
            config,
            connect_timeout: common.connect_timeout,
            timeout: common.timeout,
            dry_run: common.dry_run,
            json: common.json,
            stop,
            canvas,
            yes: common.yes,
            non_interactive: common.non_interactive,
            job: OnceLock::new(),
        };
        if let Some(name) = &session.settings.job {
            session.names_itself(&job::named(name)?);
        }
        Ok((session, verb))
    }

    /// The job's id, as far as it is known.
    pub(super) fn job(&self) -> Option<&str> {
        self.job.get().map(String::as_str)
    }

    fn names_itself(&self, names: &JobNames) {
        // Set twice with the same name when given by the user; the first stays.
        let _ = self.job.set(names.job.clone());
    }

    /// Connects to both databases.
    pub(super) async fn connect(&self) -> Result<Sites> {
        let (source, target) = match (&self.settings.source, &self.settings.target) {
            (Some(source), Some(target)) => (source, target),
            (source, target) => return Err(missing_urls(source.is_none(), target.is_none())),
        };
        let (source, target) = tokio::try_join!(
            self.connect_to(source, "source"),
            self.connect_to(target, "target")
        )?;
        let names = match &self.settings.job {
            Some(name) => job::named(name)?,
            None => job::derived(source.identity(), target.identity()),
        };
        self.names_itself(&names);
        Ok(Sites {
            source,
            target,
            names,
        })
    }

    /// Connects to the target, and to the source if it can be reached; otherwise says why not.
    pub(super) async fn connect_target(&self) -> Result<(Result<Arc<dyn Site>>, Arc<dyn Site>, JobNames)> {
        let (source, target) = match (&self.settings.source, &self.settings.target) {
            (Some(source), Some(target)) => (source, target),
            (source, target) => return Err(missing_urls(source.is_none(), target.is_none())),
        };
        let (source, target) = tokio::join!(
            self.connect_to(source, "source"),
            self.connect_to(target, "target")
        );
        let target = target?;
        let names = match (&self.settings.job, source.as_ref()) {
            (Some(name), _) => job::named(name)?,
            (None, Ok(source)) => job::derived(source.identity(), target.identity()),
            (None, Err(_)) => {
                // The name comes from both databases.
                let remedy =
                    "name the job with --job: what the target knows of it is told without the source";
                return source
                    .map_err(|error| error.remedy(remedy))
                    .and(Err(Error::bug("no source")));
            }
        };
        self.names_itself(&names);
        Ok((source, target, names))
    }

    /// Connects to the source alone.
    pub(super) async fn connect_source(&self) -> Result<Arc<dyn Site>> {
        match &self.settings.source {
            Some(url) => self.connect_to(url, "source").await,
            None => Err(missing_urls(true, false)),
        }
    }

    async fn connect_to(&self, url: &DatabaseUrl, side: &str) -> Result<Arc<dyn Site>> {
        match engines::connect(url, self.connect_timeout).await {
            Ok(site) => Ok(Arc::from(site)),
            Err(error) => {
                let error = if error.kind() == Kind::Unreachable && error.remedy_text().is_none() {
                    error.remedy(
                        "start the server, see to host, port and network, or wait longer: --connect-timeout",
                    )
                } else {
                    error
                };
                Err(error.object(side).context(side))
            }
        }
    }

    /// Flags that name this job to the next command, to be pasted as they are but for a password, which is not
    /// shown. What the environment or the job file gives need not be said again.
    pub(super) fn suffix(&self, names: &JobNames) -> String {
        if let Some(path) = &self.config {
            return format!("-c {}", path.display());
        }
        let mut flags = format!("--job {}", names.job);
        for (flag, variable, url) in [
            ("--source", "CDC_SYNC_SOURCE_URL", &self.settings.source),
            ("--target", "CDC_SYNC_TARGET_URL", &self.settings.target),
        ] {
            if let (None, Some(url)) = (std::env::var_os(variable), url) {
                flags.push_str(&format!(" {flag} '{}'", url.to_string().replace('\'', "%27")));
            }
        }
        flags
    }

    /// Asks whether to go on.
    ///
    /// # Errors
    /// [`Kind::Config`] when there is nobody to ask, [`Kind::Interrupted`] when the answer is no.
    pub(super) async fn confirm(&self, question: &str) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        if self.non_interactive || !std::io::stdin().is_terminal() {
            return Err(
                Error::new(Kind::Config, format!("this has to be confirmed: {question}"))
                    .remedy("add --yes to confirm it"),
            );
        }
        let prompt = format!("{question} [y/N] ");
        let read = tokio::task::spawn_blocking(move || {
            let mut stderr = std::io::stderr().lock();
            stderr.write_all(prompt.as_bytes())?;
            stderr.flush()?;
            let mut answer = String::new();
            std::io::stdin().read_line(&mut answer)?;
            Ok::<_, std::io::Error>(answer)
        });
        let answer = read.await.ok().and_then(|read| read.ok()).unwrap_or_default();
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(());
        }
        Err(Error::new(
            Kind::Interrupted,
            "not confirmed: nothing was changed",
        ))
    }
}

/// An empty variable is one that is not set.
fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn flags(common: &Common, verb: &Verb) -> Result<Flags> {
    let mut flags = Flags {
        job: given(common.job.clone()),
        source: url(common.source.clone(), "--source")?,
        target: url(common.target.clone(), "--target")?,
        include: common.table.clone(),
        exclude: common.exclude.clone(),
        partitions: common.partitions,
        log_format: common.log_format,
        ..Flags::default()
    };
    if let Verb::Check(check) = verb {
        flags.conflicts = check.conflict.clone();
    }
    if let Verb::Run(run) = verb {
        flags.conflicts = run.conflict.clone();
        flags.parallel = run.parallel;
        flags.max_retained_wal = run.max_retained_wal;
        flags.sequence_buffer = run.sequence_buffer;
        flags.listen = given(run.listen.clone());
    }
    Ok(flags)
}

/// A URL of a flag or variable; placeholders are replaced as in a job file.
fn url(text: Option<String>, flag: &str) -> Result<Option<DatabaseUrl>> {
    let Some(text) = given(text) else {
        return Ok(None);
    };
    let expanded = config::expand_flag(&text, &environment)
        .map_err(|message| Error::new(Kind::Config, message).object(flag))?;
    Ok(Some(DatabaseUrl::new(expanded)))
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn load(path: &Path, flags: &Flags) -> Result<JobFile> {
    let mut overridden = Vec::new();
    if flags.source.is_some() {
        overridden.push("source.url");
    }
    if flags.target.is_some() {
        overridden.push("target.url");
    }
    config::load(path, &environment, &overridden)
}

fn missing_urls(source: bool, target: bool) -> Error {
    let (what, how) = match (source, target) {
        (true, true) => (
            "the URLs of source and target are missing",
            "give --source and --target, set CDC_SYNC_SOURCE_URL and CDC_SYNC_TARGET_URL, or name a job file \
             with -c",
        ),
        (true, false) => (
            "the URL of the source is missing",
            "give --source, set CDC_SYNC_SOURCE_URL, or name a job file with -c",
        ),
        (false, _) => (
            "the URL of the target is missing",
            "give --target, set CDC_SYNC_TARGET_URL, or name a job file with -c",
        ),
    };
    Error::new(Kind::Config, what).remedy(how)
}
