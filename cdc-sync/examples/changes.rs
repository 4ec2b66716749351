//! Embeds a source alone: prints what is committed on a database, as JSON lines, until so many changes were seen.
//!
//! ```sh
//! cargo run -p cdc-sync --example changes -- postgres://me@blue/shop 10
//! ```

use std::time::Duration;

use cdc_core::engine::{Engine, JobNames, Side};
use cdc_core::source::RawChunk;
use cdc_core::{Batch, Result, TableSelection};
use cdc_postgres::PgEngine;
use cdc_sync::tail::{Printer, View};

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let limit = |text: String| text.parse::<u64>().ok();
    let (Some(url), Some(limit)) = (arguments.next(), arguments.next().and_then(limit)) else {
        eprintln!("usage: changes SOURCE_URL HOW_MANY");
        std::process::exit(2);
    };
    let site = PgEngine.connect(&url, Duration::from_secs(30)).await?;
    let names = JobNames {
        job: "example".into(),
        slot: "cdc_sync_example".into(),
    };
    // A slot of our own that goes with the connection, read from now on.
    let mut stream = site.tail(&names, &TableSelection::default(), None).await?;
    eprintln!("reading {}", site.display_url());
    let mut printer = Printer::new(stream.decoder.tracker(), View::Typed, Some(limit), None);
    let (mut chunk, mut batch) = (RawChunk::default(), Batch::new());
    while !printer.done() {
        chunk.bytes.clear();
        // Nobody is told a position: what was read is not given up by anyone.
        stream.source.confirm(None).await?;
        stream.source.read(&mut chunk).await?;
        batch.clear();
        stream.decoder.decode(&mut chunk, &mut batch)?;
        for line in printer.lines(&batch)? {
            println!("{}", serde_json::to_string(&line).unwrap_or_default());
        }
    }
    stream.source.close().await?;
    site.cleanup(Side::Source, &names, false).await?;
    Ok(())
}
