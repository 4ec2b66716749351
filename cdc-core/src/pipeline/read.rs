//! The source thread: reads chunks, and keeps the source told and alive whatever happens downstream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender};
use tokio::runtime::Runtime;

use super::budget::Budget;
use super::control::Control;
use super::session::Durable;
use crate::error::Result;
use crate::source::{RawChunk, Source};

/// How long a read or a blocked send lasts before the thread looks around.
const TICK: Duration = Duration::from_millis(100);
/// A read that is answered this fast hardly waited.
const AT_ONCE: Duration = Duration::from_micros(500);
/// When all reads for so long were answered at once, the log flows. The packets of one small transaction come at once too,
/// but nothing is to be waited for behind them.
const FLOWING: Duration = Duration::from_millis(2);
/// While the log flows, a read waits this long for more to come, and what has come moves on at once. Handing on the
/// few kilobytes of each packet cost as much in thread switches as all other work together. Much longer would leave an
/// ordinary socket full; a source that can do with it asks for it.
const GATHER: Duration = Duration::from_micros(150);
/// A chunk of this size is worth its thread switch.
const GATHERED_BYTES: usize = 128 << 10;
/// How often the budget is looked at while it is exhausted.
const ROOM_TICK: Duration = Duration::from_millis(5);
/// The longest silence towards the source.
const LIVENESS: Duration = Duration::from_secs(2);

pub(super) struct ReadStage {
    pub(super) source: Box<dyn Source>,
    pub(super) runtime: Runtime,
    pub(super) chunks: Sender<RawChunk>,
    pub(super) emptied: Receiver<RawChunk>,
    /// disconnected when the apply thread has ended
    pub(super) apply_ended: Receiver<()>,
    pub(super) durable: Arc<Durable>,
    pub(super) control: Arc<Control>,
    pub(super) budget: Arc<Budget>,
    pub(super) last_confirm: Instant,
    pub(super) confirmed: u64,
}

impl ReadStage {
    pub(super) fn run(mut self) -> Result<()> {
        let read = self.read_until_stopped();
        // No more input: what is in flight drains, while we stay alive for the source.
        let (unused, _) = crossbeam_channel::bounded(0);
        drop(std::mem::replace(&mut self.chunks, unused));
        let mut told = Ok(());
        while self
            .apply_ended
            .recv_timeout(TICK)
            .is_err_and(|error| error.is_timeout())
        {
            if told.is_ok() && read.is_ok() {
                told = self.confirm_if_due();
            }
            if self.control.expired() {
                break;
            }
        }
        read.and(told)?;
        let position = self.durable.get().1;
        let Self { runtime, source, .. } = &mut self;
        runtime.block_on(async {
            tokio::time::timeout(LIVENESS, async {
                source.confirm(position.as_ref()).await?;
                source.close().await
            })
            .await
            // The positions are safe on the target; the source frees its side when the connection closes.
            .unwrap_or(Ok(()))
        })
    }

    fn read_until_stopped(&mut self) -> Result<()> {
        let mut flowing = false;
        // since when every read was answered at once
        let mut at_once: Option<Instant> = None;
        let mut unused: Option<RawChunk> = None;
        while !self.control.session_ends() {
            if std::mem::take(&mut flowing) {
                std::thread::sleep(self.source.pause().unwrap_or(GATHER));
            }
            if self.budget.exhausted() {
                if !self.wait_for_room()? {
                    return Ok(());
                }
                continue;
            }
            let mut chunk = unused
                .take()
                .or_else(|| self.emptied.try_recv().ok())
                .unwrap_or_default();
            let asked = Instant::now();
            if let Some(read) = self.read(&mut chunk) {
                read?;
                at_once = (asked.elapsed() < AT_ONCE).then(|| at_once.unwrap_or(asked));
                // Also when the source has set aside all that it read.
                flowing = chunk.bytes.len() < GATHERED_BYTES
                    && at_once.is_some_and(|since| since.elapsed() >= FLOWING);
            } else {
                at_once = None;
            }
            self.confirm_if_due()?;
            if chunk.bytes.is_empty() {
                if self
                    .apply_ended
                    .try_recv()
                    .is_err_and(|error| error.is_disconnected())
                {
                    return Ok(());
                }
                unused = Some(chunk);
                continue;
            }
            chunk.received.get_or_insert_with(Instant::now);
            chunk.charge = Some(self.budget.charge(chunk.bytes.len()));
            if !self.send(chunk)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One read; `None` when nothing came for a tick, or the session is to end.
    fn read(&mut self, chunk: &mut RawChunk) -> Option<Result<()>> {
        let Self {
            runtime,
            source,
            control,
            ..
        } = self;
        runtime.block_on(async {
            tokio::select! {
                biased;
                read = tokio::time::timeout(TICK, source.read(chunk)) => read.ok(),
                () = control.session_end() => None,
            }
        })
    }

    /// Waits a moment for the target to take what is under way; `false` when the apply thread has ended.
    fn wait_for_room(&mut self) -> Result<bool> {
        self.confirm_if_due()?;
        let waited = self.apply_ended.recv_timeout(ROOM_TICK);
        Ok(waited.is_err_and(|error| error.is_timeout()))
    }

    /// Hands a chunk on, confirming on a timer while the channel is full; `false` when nobody takes it.
    fn send(&mut self, mut chunk: RawChunk) -> Result<bool> {
        loop {
            match self.chunks.send_timeout(chunk, TICK) {
                Ok(()) => return Ok(true),
                Err(SendTimeoutError::Disconnected(_)) => return Ok(false),
                Err(SendTimeoutError::Timeout(back)) => chunk = back,
            }
            self.confirm_if_due()?;
            if self.control.expired() {
                return Ok(false);
            }
        }
    }

    fn confirm_if_due(&mut self) -> Result<()> {
        let (version, position) = self.durable.get();
        let silence = self.last_confirm.elapsed();
        if silence >= LIVENESS || (version != self.confirmed && silence >= TICK) {
            let Self { runtime, source, .. } = self;
            runtime.block_on(source.confirm(position.as_ref()))?;
            self.confirmed = version;
            self.last_confirm = Instant::now();
        }
        Ok(())
    }
}
