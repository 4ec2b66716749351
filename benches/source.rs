//! What a slot gives when all of it is thrown away, for `cargo xtask bench-inserts`: our reader with the options that cdc-sync
//! asks for, and nothing behind it.
//!
//! `cdc-source BLUE SLOT PUBLICATION END text|binary` reads up to the log position END, confirms nothing, and prints bytes
//! read, the seconds until the first change came, and CPU seconds of blue's walsender.

use std::error::Error;
use std::time::{Duration, Instant};

use cdc_postgres::config::Config;
use cdc_postgres::lsn::Lsn;
use cdc_postgres::walsender::{
    Frame, PgoutputOptions, Streaming, WalSender, WalSenderOptions, parse_frame, split_frames,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [blue, slot, publication, end, format] = arguments.as_slice() else {
        return Err("cdc-source BLUE SLOT PUBLICATION END text|binary".into());
    };
    let mut options = PgoutputOptions::new(vec![publication.clone()]);
    options.proto_version = 2;
    options.messages = true;
    options.streaming = Streaming::On;
    options.binary = format == "binary";
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(read(&Config::parse(blue)?, slot, &options, end.parse()?))
}

async fn read(blue: &Config, slot: &str, options: &PgoutputOptions, end: Lsn) -> Result<()> {
    let mut source = WalSender::connect(blue, &WalSenderOptions::default()).await?;
    source.start_logical_replication(slot, Lsn(0), options).await?;
    let (began, mut first) = (Instant::now(), None);
    let (mut frames, mut bytes, mut reached) = (Vec::new(), 0, false);
    while !reached {
        frames.clear();
        source.read_frames(&mut frames, 256 << 10).await?;
        bytes += frames.len();
        for payload in split_frames(&frames) {
            match parse_frame(payload?)? {
                Frame::XLogData { .. } => {
                    first.get_or_insert_with(|| began.elapsed());
                }
                Frame::Keepalive {
                    wal_end,
                    reply_requested,
                    ..
                } => {
                    reached |= wal_end >= end;
                    if reply_requested {
                        source.try_send_status(Lsn(0), Lsn(0), Lsn(0), false).await?;
                    }
                }
            }
        }
        // What comes next is left to collect, as the reader thread leaves it.
        let gather = Duration::from_micros(150);
        if frames.len() < 128 << 10 {
            std::thread::sleep(source.pause().unwrap_or(gather));
        }
    }
    let first = first.unwrap_or_default().as_secs_f64();
    println!("{bytes} {first:.2} {}", cpu_seconds(source.backend_pid())?);
    Ok(())
}

/// What a process of this machine has used: user and system time, in hundredths of a second (proc(5), `/proc/pid/stat`).
fn cpu_seconds(process: i32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, after_name) = stat.rsplit_once(')').ok_or("no process name in stat")?;
    let ticks = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<f64>);
    Ok(ticks.sum::<std::result::Result<f64, _>>()? / 100.0)
}
