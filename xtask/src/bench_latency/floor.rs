//! The least that a process beside the servers can take: one thread that reads a transaction of the stream and sends it on
//! with its COMMIT, asynchronous, in one flight of prepared statements. It checks, stores and confirms nothing, and knows
//! only the table `lag`: what cdc-sync takes beyond it is its own, what the floor takes beyond the native subscription
//! is the price of being outside of green.

use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail, ensure};
use cdc_postgres::config::Config;
use cdc_postgres::lsn::Lsn;
use cdc_postgres::walsender::{
    CreateSlot, Frame, PgoutputOptions, SlotSnapshot, WalSender, WalSenderOptions, parse_frame, split_frames,
};
use cdc_postgres::wire::{Connection, Purpose};
use tokio::sync::oneshot;

/// It as a running thread.
pub(super) struct Floor {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<()>>,
}

impl Floor {
    /// Follows `blue` from now on; returns when everything that is written from then on will arrive.
    pub(super) fn start(blue: &str, green: &str) -> Result<Floor> {
        let (blue, green) = (Config::parse(blue)?, Config::parse(green)?);
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let (mut source, mut target) = open(&blue, &green).await?;
                ready.send(())?;
                tokio::select! {
                    ended = follow(&mut source, &mut target) => ended,
                    _ = stopped => Ok(()),
                }
            })
        });
        let floor = Floor { stop, thread };
        match is_ready.recv() {
            Ok(()) => Ok(floor),
            Err(_) => {
                floor.stop()?;
                bail!("the floor ended")
            }
        }
    }

    pub(super) fn stop(self) -> Result<()> {
        let _ = self.stop.send(());
        let ended = self.thread.join();
        ended.map_err(|_| anyhow!("the floor panicked"))?
    }
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
    flight
        .parse("insert", "INSERT INTO public.lag VALUES ($1::bigint)", &[])
        .await?;
    flight.parse("commit", "COMMIT", &[]).await?;
    flight.finish().await.map_err(|failure| failure.error)?;
    Ok((source, target))
}

async fn follow(source: &mut WalSender, target: &mut Connection) -> Result<()> {
    let mut frames = Vec::new();
    let mut rows: Vec<Vec<u8>> = Vec::new();
    loop {
        frames.clear();
        source.read_frames(&mut frames, 256 << 10).await?;
        let mut flight = target.pipeline().await?;
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
                Some(b'I') => rows.push(only_value(data).context("a row of lag")?.to_vec()),
                Some(b'C') if !rows.is_empty() => {
                    flight.bind_execute("begin", []).await?;
                    for row in rows.drain(..) {
                        flight.bind_execute("insert", [Some(row.as_slice())]).await?;
                    }
                    flight.bind_execute("commit", []).await?;
                }
                _ => {}
            }
        }
        if flight.is_empty() {
            continue;
        }
        let done = flight.finish().await.map_err(|failure| failure.error)?;
        ensure!(!done.is_empty(), "green answered nothing");
    }
}

/// The value of an Insert message of one column (manual, "Logical Replication Message Formats"): the kind, the
/// relation, `N`, the number of columns, and for each `t`, the length and the bytes.
fn only_value(message: &[u8]) -> Option<&[u8]> {
    let length = u32::from_be_bytes(message.get(9..13)?.try_into().ok()?);
    message.get(13..)?.get(..length as usize)
}
