//! What the source makes of streamed transactions, without a server.

use cdc_core::source::Decoder;
use cdc_core::{RawChunk, Result};

use super::{LaneDecoder, Streamed};
use crate::pgoutput::PgDecoder;

/// Decodes a transaction that still runs, with the marks that its frames have in the spill.
pub fn lane_decoder(decoder: PgDecoder) -> impl Decoder {
    LaneDecoder(decoder)
}

/// Frames of version 2 in, frames of version 1 out, as the source reads them.
#[derive(Debug, Default)]
pub struct StreamedFrames(Streamed);

impl StreamedFrames {
    /// Looks at the frames of `chunk`; leaves in it what is handed on at once.
    ///
    /// # Errors
    /// [`Protocol`](cdc_core::Kind::Protocol) when no server would send them.
    pub fn sift(&mut self, chunk: &mut RawChunk) -> Result<()> {
        self.0.sift(&mut chunk.bytes, 0)
    }

    /// Appends what is handed on next to `chunk`; `false` when more has to be sifted first. The server would say that
    /// those subtransactions were rolled back for which `rolled_back` holds.
    ///
    /// # Errors
    /// As [`StreamedFrames::sift`].
    pub fn next(&mut self, rolled_back: impl Fn(u32) -> bool, chunk: &mut RawChunk) -> Result<bool> {
        if !self.0.has_more() {
            return Ok(false);
        }
        if let Some((doubtful, _)) = self.0.doubtful() {
            let found = doubtful.iter().copied().filter(|xid| rolled_back(*xid));
            let found = found.collect();
            self.0.settle(found);
        }
        self.0.fill(&mut chunk.bytes)?;
        Ok(true)
    }
}
