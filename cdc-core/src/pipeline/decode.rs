//! The decode thread: chunks to batches. No I/O, no clock.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::budget::Budget;
use super::pool::BatchPool;
use super::stats::StreamStats;
use crate::batch::{Batch, OpCounts};
use crate::error::{Error, Result};
use crate::model::TxnSeq;
use crate::source::{Decoder, RawChunk};

/// Capacity that an emptied chunk keeps.
pub(super) const RETAINED_CHUNK_BYTES: usize = 1 << 20;

pub(super) struct DecodeStage {
    pub(super) decoder: Box<dyn Decoder>,
    pub(super) chunks: Receiver<RawChunk>,
    pub(super) emptied: Sender<RawChunk>,
    pub(super) batches: Sender<Arc<Batch>>,
    pub(super) pool: Arc<BatchPool>,
    pub(super) budget: Arc<Budget>,
    pub(super) stats: Arc<StreamStats>,
}

impl DecodeStage {
    pub(super) fn run(&mut self) -> Result<()> {
        let mut seq = TxnSeq::default();
        while let Ok(mut chunk) = self.chunks.recv() {
            let mut shared = self.pool.take();
            let batch = Arc::get_mut(&mut shared)
                .ok_or_else(|| Error::bug("a batch that is read by someone was handed back"))?;
            let read = chunk.bytes.len() as u64;
            self.decoder.decode(&mut chunk, batch)?;
            if let Some(at) = chunk.received {
                batch.set_received(at);
            }
            batch.hold(self.budget.charge(batch.footprint()));
            // What waits to be filled again is not counted: it must not keep the memory of a large frame.
            chunk.bytes.clear();
            chunk.bytes.shrink_to(RETAINED_CHUNK_BYTES);
            chunk.charge = None;
            self.pool.fit();
            // A full return channel means enough chunks are in circulation.
            let _ = self.emptied.try_send(chunk);
            if cfg!(debug_assertions) {
                batch.verify()?;
            }
            for txn in batch.txns_mut() {
                seq.0 += u64::from(txn.first);
                txn.seq = seq;
            }
            let ops = OpCounts::of(batch.rows());
            self.stats.update(|stats| {
                stats.decoded_bytes += read;
                stats.decoded.add(&ops);
            });
            if batch.is_empty() {
                self.pool.give(shared);
            } else if self.batches.send(shared).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}
