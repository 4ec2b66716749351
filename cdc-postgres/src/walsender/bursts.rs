//! Reading in bursts from a server on the same machine.
//!
//! A walsender hands every change to its socket by itself (`WalSndWriteData`, `TCP_NODELAY`). While the receiver's window is
//! open each becomes a packet, and over a loopback device the sender pays for all of its way: more than half of what a row
//! of 300 bytes costs it. While the window is closed, changes collect in the sender's buffer and leave together when it opens.
//! So the window is made small there (`Window::NarrowOnLoopback`), and a fast log is given the time to fill it. Between
//! machines a network card collects what it has not sent, and a small window would be a limit: nothing of this is done.

use std::time::{Duration, Instant};

use crate::wire::Connection;

/// How long a fast log is left to collect. A thread that sleeps for so long wakes up 60 us late, which is little beside it.
const PAUSE: Duration = Duration::from_millis(1);
/// A log of so many bytes a second fills a small window (16 or 32 KiB) in little more than a pause. What is slower goes
/// with the latency of the network.
const FAST: u128 = 12 << 20;

/// How fast the log of a server on this machine comes.
#[derive(Debug)]
pub(super) struct Bursts {
    since: Instant,
    is_fast: bool,
}

impl Bursts {
    /// `None` when the server is on another machine.
    pub(super) fn begin(connection: &mut Connection) -> Option<Bursts> {
        connection.channel().stream().is_narrow().then(|| Bursts {
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
