//! `replay`: prints the changes of a capture.

use std::fs::File;
use std::io::BufReader;

use cdc_core::capture::CaptureReader;
use cdc_core::source::StreamStart;
use cdc_core::{Batch, Error, Kind, RawChunk, Result};

use super::args::Replay;
use super::session::Session;
use super::tail::{rendered, until};
use crate::output::{self, Printed, Report};
use crate::tail::{Printer, View};
use crate::{engines, exit};

pub(super) async fn replay(session: &Session, args: &Replay) -> Result<Report> {
    print(session, args)
        .await
        .map_err(|error| error.object(args.file.display().to_string()))?;
    Ok(Report::new(exit::OK, &serde_json::json!({}), String::new()))
}

/// Prints until the end of the capture, or the one that was asked for.
async fn print(session: &Session, args: &Replay) -> Result<()> {
    let file = File::open(&args.file)
        .map_err(|error| Error::new(Kind::Config, "the capture cannot be opened").caused_by(error))?;
    let (mut capture, header) = CaptureReader::open(BufReader::new(file))?;
    let start = StreamStart {
        from: header.from,
        stream: header.stream,
        selection: session.settings.selection.clone(),
        seeded_to: Default::default(),
        aside: Default::default(),
        peer: None,
    };
    let mut decoder = engines::decoder(&header.engine, &start)?;
    let view = if args.typed { View::Typed } else { View::Text };
    let until = until(args.until_lsn.as_deref(), decoder.as_ref())?;
    let mut printer = Printer::new(decoder.tracker(), view, args.limit, until);
    let (mut chunk, mut batch) = (RawChunk::default(), Batch::new());
    while !printer.done() && capture.next(&mut chunk)? {
        batch.clear();
        decoder.decode(&mut chunk, &mut batch)?;
        let text = rendered(&printer.lines(&batch)?)?;
        if !text.is_empty() && output::data(&text) == Printed::ReaderGone {
            return Ok(());
        }
        // Lets a signal or the time limit end it.
        tokio::task::yield_now().await;
    }
    Ok(())
}
