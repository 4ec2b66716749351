//! Reading in bursts from a server on the same machine.
//!
//! A walsender hands every change to its socket by itself (`WalSndWriteData`, `TCP_NODELAY`). While the receiver's window is
//! open each becomes a packet, and over a loopback device the sender pays for all of its way: more than half of what a row
//! of 300 bytes costs it. While the window is closed, changes collect in the sender's buffer and leave together when it opens.
//! So the window is made small there, and a fast log is given the time to fill it. Between machines a network card collects
//! what it has not sent, and a small window would be a limit: nothing of this is done.

use std::time::{Duration, Instant};

use crate::wire::Connection;

/// The receive buffer that is asked for; Linux takes twice as much and has half of that for the window.
const WINDOW: usize = 32 << 10;
/// How long a fast log is left to collect.
const PAUSE: Duration = Duration::from_millis(1);
/// A log of so many bytes a second fills the window in the time of a pause.
const FAST: u128 = 12 << 20;

/// How fast the log of a server on this machine comes.
#[derive(Debug)]
pub(super) struct Bursts {
    since: Instant,
    is_fast: bool,
}

impl Bursts {
    /// Makes the window of a connection small; `None` when the server is on another machine.
    pub(super) fn begin(connection: &mut Connection) -> Option<Bursts> {
        let is_small = connection.channel().read_in_bursts(WINDOW);
        is_small.then(|| Bursts {
            since: Instant::now(),
            is_fast: false,
        })
    }

    /// Notes that so many bytes have come since the last time.
    pub(super) fn note(&mut self, bytes: usize) {
        let micros = self.since.elapsed().as_micros().max(1);
        self.is_fast = bytes as u128 * 1_000_000 / micros >= FAST;
        self.since = Instant::now();
    }

    /// How long to wait before the next read.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.is_fast.then_some(PAUSE)
    }
}
