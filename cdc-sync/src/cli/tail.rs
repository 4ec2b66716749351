//! `tail`: prints changes as they come.

use std::time::Duration;

use cdc_core::engine::{JobNames, Side, TailStream};
use cdc_core::model::Position;
use cdc_core::source::{RawChunk, Source};
use cdc_core::{Batch, Decoder, Error, Kind, Result, Site};

use super::args::Tail;
use super::session::Session;
use crate::output::{self, Printed, Report};
use crate::tail::{Printer, View};
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
    let until = args.until_lsn.as_deref().map(Position::new);
    let tracker = stream.decoder.tracker();
    if let Some(until) = &until {
        let readable = tracker.has_reached(until);
        readable.map_err(|error| {
            Error::new(Kind::Config, error.message().to_owned())
                .object(format!("--until-lsn {until}"))
                .remedy("give a position as the source writes it, such as 0/16B3748")
        })?;
    }
    let printer = Printer::new(tracker, view, args.limit, until);
    let mut tailing = Tailing {
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

struct Tailing {
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
        self.batch.clear();
        self.decoder.decode(&mut self.chunk, &mut self.batch)?;
        self.chunk.bytes.clear();
        let mut text = String::new();
        for line in self.printer.lines(&self.batch)? {
            let line = serde_json::to_string(&line)
                .map_err(|error| Error::bug("a line is not JSON").caused_by(error))?;
            text.push_str(&line);
            text.push('\n');
        }
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
        let consumed = self.printed.as_ref().filter(|_| self.consume);
        self.source.confirm(consumed).await
    }

    async fn close(&mut self) -> Result<()> {
        self.confirm().await?;
        self.source.close().await
    }
}
