//! `tail`: prints changes as they come.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdc_core::capture::{CaptureHeader, CaptureWriter};
use cdc_core::engine::{JobNames, Side, TailStream};
use cdc_core::model::Position;
use cdc_core::source::{RawChunk, Source};
use cdc_core::{Batch, Decoder, Error, Kind, Result, Site};

use super::args::Tail;
use super::session::Session;
use crate::output::{self, Printed, Report};
use crate::tail::{Line, Printer, View};
use crate::{exit, job};

/// How often the server is told that we are alive, well below its patience.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

pub(super) async fn tail(session: &Session, args: &Tail) -> Result<Report> {
    let site = session.bounded(session.connect_source()).await?;
    let names = session
        .bounded(Names::choose(session, args, site.as_ref()))
        .await?;
    let stream = site.tail(&names.names, &session.settings.selection, args.slot.as_deref());
    let ended = match session.bounded(stream).await {
        Ok(stream) => print(session, args, stream).await,
        Err(error) => Err(error),
    };
    let tidied = names.tidy(site.as_ref()).await;
    ended.and(tidied)?;
    Ok(Report::new(exit::OK, &serde_json::json!({}), String::new()))
}

/// Prints until the end that was asked for.
async fn print(session: &Session, args: &Tail, stream: TailStream) -> Result<()> {
    let view = if args.typed { View::Typed } else { View::Text };
    let until = until(args.until_lsn.as_deref(), stream.decoder.as_ref())?;
    let printer = Printer::new(stream.decoder.tracker(), view, args.limit, until);
    let capture = match &args.capture {
        Some(path) => Some(Capture::begin(path, &stream)?),
        None => None,
    };
    let mut tailing = Tailing {
        capture,
        source: stream.source,
        decoder: stream.decoder,
        printer,
        batch: Batch::new(),
        chunk: RawChunk::default(),
        printed: None,
        consume: args.consume,
    };
    let limit = async {
        match session.timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let has_goal = args.limit.is_some() || args.until_lsn.is_some() || session.timeout.is_some();
    let ended = tokio::select! {
        ended = tailing.until_done() => ended,
        () = limit => Ok(()),
        () = session.stop.wait() => stopped(has_goal),
    };
    let closed = tailing.close().await;
    ended.and(closed)
}

/// The position to end at.
pub(super) fn until(given: Option<&str>, decoder: &dyn Decoder) -> Result<Option<Position>> {
    let Some(until) = given.map(Position::new) else {
        return Ok(None);
    };
    decoder.tracker().has_reached(&until).map_err(|error| {
        Error::new(Kind::Config, error.message().to_owned())
            .object(format!("--until-lsn {until}"))
            .remedy("give a position as the source writes it, such as 0/16B3748")
    })?;
    Ok(Some(until))
}

/// Lines as text.
pub(super) fn rendered(lines: &[Line]) -> Result<String> {
    let mut text = String::new();
    for line in lines {
        let line =
            serde_json::to_string(line).map_err(|error| Error::bug("a line is not JSON").caused_by(error))?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

/// A tail without an end of its own is ended by a signal.
fn stopped(has_goal: bool) -> Result<()> {
    if has_goal {
        return Err(Error::new(
            Kind::Interrupted,
            "interrupted before the end that was asked for",
        ));
    }
    Ok(())
}

/// Under which names the log is opened.
struct Names {
    names: JobNames,
    /// they are ours alone: what is made under them goes with us
    own: bool,
}

impl Names {
    /// A job that has run lends what it has made, which is not touched. Otherwise names of our own, so that two
    /// tails do not take away each other's.
    async fn choose(session: &Session, args: &Tail, site: &dyn Site) -> Result<Self> {
        if let Some(job) = session.job() {
            let names = job::named(job)?;
            if args.slot.is_some() || site.retention(&names).await?.is_some() {
                return Ok(Self { names, own: false });
            }
        }
        let names = job::named(&format!("tail_{}", std::process::id()))?;
        Ok(Self {
            names,
            own: args.slot.is_none(),
        })
    }

    async fn tidy(&self, site: &dyn Site) -> Result<()> {
        if self.own {
            let tidied = site.cleanup(Side::Source, &self.names, false);
            tidied
                .await
                .map_err(|error| error.context("removing what was made for the tail"))?;
        }
        Ok(())
    }
}

/// The file that what is read is written to.
struct Capture {
    path: PathBuf,
    writer: CaptureWriter<BufWriter<File>>,
}

impl Capture {
    /// Makes the file. One that exists is somebody's.
    fn begin(path: &Path, stream: &TailStream) -> Result<Self> {
        let named = |error: Error| error.object(path.display().to_string());
        let file = File::create_new(path).map_err(|error| {
            named(Error::new(Kind::Config, "the capture cannot be made").caused_by(error))
                .remedy("give the path of a file that does not exist, in a folder that can be written")
        })?;
        let header = CaptureHeader {
            engine: stream.engine.to_owned(),
            stream: stream.start.stream.clone(),
            from: stream.start.from.clone(),
        };
        Ok(Self {
            path: path.to_owned(),
            writer: CaptureWriter::begin(BufWriter::new(file), &header).map_err(named)?,
        })
    }

    /// Makes what was written durable: what is confirmed is not sent again.
    fn store(&mut self) -> Result<()> {
        let stored = self.writer.output().and_then(|out| {
            let synced = out.get_ref().sync_data();
            synced.map_err(|error| Error::new(Kind::Local, "the capture cannot be written").caused_by(error))
        });
        stored.map_err(|error| self.named(error))
    }

    fn named(&self, error: Error) -> Error {
        error.object(self.path.display().to_string())
    }
}

struct Tailing {
    capture: Option<Capture>,
    source: Box<dyn Source>,
    decoder: Box<dyn Decoder>,
    printer: Printer,
    batch: Batch,
    chunk: RawChunk,
    /// after the last transaction that was printed whole
    printed: Option<Position>,
    consume: bool,
}

impl Tailing {
    /// Prints until the end that was asked for, or until nobody reads.
    async fn until_done(&mut self) -> Result<()> {
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        while !self.printer.done() {
            tokio::select! {
                read = self.source.read(&mut self.chunk) => {
                    read?;
                    if self.print()? == Printed::ReaderGone {
                        return Ok(());
                    }
                }
                _ = alive.tick() => self.confirm().await?,
            }
        }
        Ok(())
    }

    fn print(&mut self) -> Result<Printed> {
        if let Some(capture) = &mut self.capture {
            capture
                .writer
                .add(&self.chunk)
                .map_err(|error| capture.named(error))?;
        }
        self.batch.clear();
        self.decoder.decode(&mut self.chunk, &mut self.batch)?;
        self.chunk.bytes.clear();
        let text = rendered(&self.printer.lines(&self.batch)?)?;
        let printed = if text.is_empty() {
            Printed::Read
        } else {
            output::data(&text)
        };
        if printed == Printed::Read {
            self.printed = Some(self.printer.complete().clone());
        }
        Ok(printed)
    }

    /// Tells the server that we are alive and, with --consume, what was printed.
    async fn confirm(&mut self) -> Result<()> {
        if let Some(capture) = &mut self.capture {
            capture.store()?;
        }
        let consumed = self.printed.as_ref().filter(|_| self.consume);
        self.source.confirm(consumed).await
    }

    async fn close(&mut self) -> Result<()> {
        self.confirm().await?;
        self.source.close().await
    }
}
