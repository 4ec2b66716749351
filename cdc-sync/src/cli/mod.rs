//! The command line: from arguments to an exit code.

mod args;
mod check;
mod cleanup;
mod conflicts;
mod human;
mod init;
mod manual;
mod repair;
mod replay;
mod report;
mod resync;
mod run;
mod session;
mod status;
mod tail;
mod verify;

use std::future::Future;

use cdc_core::{Error, Kind, Result};
use clap::{CommandFactory, Parser};

use crate::output::{self, Report};
use crate::{exit, logging, progress, redact, signals};
use args::{Cli, Verb};
use session::Session;

/// Runs the command line of this process and returns its exit code.
pub fn main() -> u8 {
    match Cli::try_parse() {
        Ok(cli) => dispatch(cli),
        Err(error) => unparsable(&error),
    }
}

/// Help and version go to stdout with exit code 0; wrong usage goes to stderr, and with `--json` also to stdout.
fn unparsable(error: &clap::Error) -> u8 {
    // Arguments are echoed in usage errors, and a URL in the wrong place holds a password.
    let text = redact::redact(&error.to_string()).into_owned();
    if !error.use_stderr() {
        output::data(&text);
        return exit::OK;
    }
    let asked_for_help = error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !asked_for_help && std::env::args_os().any(|argument| argument == "--json") {
        let message = text
            .trim_start_matches("error: ")
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        let error = Error::new(Kind::Config, message).remedy("see cdc-sync --help");
        output::data(&format!("{}\n", Report::failed(error).envelope("usage", None)));
    }
    output::notice(&text);
    exit::USAGE
}

fn dispatch(cli: Cli) -> u8 {
    let kind = cli.verb.name();
    let json = cli.common.json;
    let outcome = match &cli.verb {
        Verb::Completions(args) => manual::completions(args, Cli::command()),
        Verb::Man(args) => manual::man(args, Cli::command()),
        _ => connected(cli),
    };
    outcome.unwrap_or_else(|error| {
        let report = Report::failed(error);
        output::finish(kind, None, json, &report);
        report.exit
    })
}

/// Runs a verb that works on databases.
fn connected(cli: Cli) -> Result<u8> {
    let kind = cli.verb.name();
    let stop = signals::listen()?;
    let canvas = progress::canvas();
    let (session, verb) = Session::new(cli, stop, canvas.clone())?;
    let level = if matches!(verb, Verb::Run(_)) {
        "info"
    } else {
        "warn"
    };
    logging::start(session.settings.log_format, level, canvas);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Local, "cannot start an I/O runtime").caused_by(error))?;
    let report = runtime.block_on(perform(&session, &verb));
    // Work on blocking threads that did not end in time dies with the process; state survives that by design.
    runtime.shutdown_background();
    if !prints_as_it_goes(&verb) || report.error.is_some() {
        output::finish(kind, session.job(), session.json, &report);
    }
    Ok(report.exit)
}

/// Whether nothing is left to print at the end but an error.
fn prints_as_it_goes(verb: &Verb) -> bool {
    match verb {
        Verb::Tail(_) | Verb::Replay(_) => true,
        Verb::Status(args) => args.watch,
        _ => false,
    }
}

async fn perform(session: &Session, verb: &Verb) -> Report {
    let performed = match verb {
        Verb::Run(args) => return run::run(session, args).await,
        Verb::Tail(args) => tail::tail(session, args).await,
        Verb::Replay(args) => session.bounded(replay::replay(session, args)).await,
        Verb::Status(args) if args.watch => status::watch(session, args).await,
        Verb::Status(args) => session.bounded(status::status(session, args)).await,
        Verb::Check(args) => session.bounded(check::check(session, args)).await,
        Verb::Init(args) => session.bounded(init::init(session, args)).await,
        Verb::Verify(_) => verify::verify(session).await,
        Verb::Report(args) => session.bounded(report::report(session, args)).await,
        Verb::Repair(_) => repair::repair(session).await,
        Verb::Resync(_) => resync::resync(session).await,
        Verb::Conflicts(args) => session.bounded(conflicts::conflicts(session, args)).await,
        Verb::Cleanup(_) => session.bounded(cleanup::cleanup(session)).await,
        Verb::Completions(_) | Verb::Man(_) => Err(Error::bug("a verb without databases was connected")),
    };
    performed.unwrap_or_else(Report::failed)
}

impl Session {
    /// Ends `work` when a stop is asked for or `--timeout` passes; dropping it leaves nothing half done.
    async fn bounded<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = async {
            match self.timeout {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            done = work => done,
            () = self.stop.wait() => Err(interrupted()),
            () = limit => Err(Error::new(Kind::Deadline, "the time limit passed")
                .remedy("run it again, with a longer --timeout")),
        }
    }
}

fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted")
}
