//! A simple follower to compare latencies with, for `cargo xtask bench-latency --floor`: one thread that reads what has come
//! of the stream and sends its rows with an asynchronous COMMIT, in one flight of prepared statements. It checks, stores and
//! confirms nothing, and knows only the table `lag` and the publication `native`: about the least that a process beside the
//! servers can do.
//!
//! `cdc-floor BLUE GREEN` says `ready` when everything that is written from then on will arrive, and runs until it is killed.

use std::error::Error;

use cdc_postgres::config::Config;
use cdc_postgres::lsn::Lsn;
use cdc_postgres::walsender::{
    CreateSlot, Frame, PgoutputOptions, SlotSnapshot, WalSender, WalSenderOptions, parse_frame, split_frames,
};
use cdc_postgres::wire::{Connection, Purpose};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let urls: Vec<String> = std::env::args().skip(1).collect();
    let [blue, green] = urls.as_slice() else {
        return Err("cdc-floor BLUE GREEN".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (mut source, mut target) = open(&Config::parse(blue)?, &Config::parse(green)?).await?;
        println!("ready");
        follow(&mut source, &mut target).await
    })
}

async fn open(blue: &Config, green: &Config) -> Result<(WalSender, Connection)> {
    let mut source = WalSender::connect(blue, &WalSenderOptions::default()).await?;
    let slot = CreateSlot {
        name: "floor",
        temporary: true,
        snapshot: SlotSnapshot::None,
        failover: false,
    };
    let created = source.create_logical_slot(&slot).await?;
    let options = PgoutputOptions::new(vec!["native".to_owned()]);
    source
        .start_logical_replication(&created.slot, created.consistent_point, &options)
        .await?;
    let settings = [
        ("session_replication_role", "replica"),
        ("synchronous_commit", "off"),
    ];
    let mut target = Connection::connect(green, &Purpose::Sql, &settings).await?;
    let mut flight = target.pipeline().await?;
    flight.parse("begin", "BEGIN", &[]).await?;
    let insert = "INSERT INTO public.lag VALUES ($1::bigint)";
    flight.parse("insert", insert, &[]).await?;
    flight.parse("commit", "COMMIT", &[]).await?;
    flight.finish().await.map_err(|failure| failure.error)?;
    Ok((source, target))
}

async fn follow(source: &mut WalSender, target: &mut Connection) -> Result<()> {
    let mut frames = Vec::new();
    // Those whose transaction is not whole yet come last.
    let mut rows: Vec<Vec<u8>> = Vec::new();
    loop {
        frames.clear();
        source.read_frames(&mut frames, 256 << 10).await?;
        let mut whole = 0;
        for payload in split_frames(&frames) {
            let data = match parse_frame(payload?)? {
                Frame::XLogData { data, .. } => data,
                Frame::Keepalive { reply_requested, .. } => {
                    if reply_requested {
                        source.try_send_status(Lsn(0), Lsn(0), Lsn(0), false).await?;
                    }
                    continue;
                }
            };
            match data.first() {
                Some(b'I') => rows.push(only_value(data).ok_or("not a row of lag")?.to_vec()),
                Some(b'C') => whole = rows.len(),
                _ => {}
            }
        }
        if whole == 0 {
            continue;
        }
        let mut flight = target.pipeline().await?;
        flight.bind_execute("begin", []).await?;
        for row in rows.drain(..whole) {
            flight.bind_execute("insert", [Some(row.as_slice())]).await?;
        }
        flight.bind_execute("commit", []).await?;
        flight.finish().await.map_err(|failure| failure.error)?;
    }
}

/// The value of an Insert message of one column (manual, "Logical Replication Message Formats"): the kind, the
/// relation, `N`, the number of columns, and for each `t`, the length and the bytes.
fn only_value(message: &[u8]) -> Option<&[u8]> {
    let length = u32::from_be_bytes(message.get(9..13)?.try_into().ok()?);
    message.get(13..)?.get(..length as usize)
}
