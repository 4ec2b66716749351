//! Reading in bursts from a server on the same machine.
//!
//! A walsender hands every change to its socket by itself (`WalSndWriteData`, `TCP_NODELAY`). While the receiver's window is
//! open each becomes a packet, and over a loopback device the sender pays for all of its way: more than half of what a row
//! of 300 bytes costs it. While the window is closed, changes collect in the sender's buffer and leave together when it opens.
//! So the window is made small there (`Window::NarrowOnLoopback`), and a fast log is given the time to fill it. Between
//! machines a network card collects what it has not sent, and a small window would be a limit: nothing of this is done.

use std::time::{Duration, Instant};

use super::frame::{now, parse_frame, split_frames};
use crate::wire::Connection;

/// How long a fast log is left to collect.
const PAUSE: Duration = Duration::from_millis(4);
/// A log of so many bytes a second is fast: in a pause comes more than a small window takes (16 or 32 KiB). What is slower
/// is handed on as it comes.
const FAST: u128 = 12 << 20;
/// What the server sent so many microseconds ago is fresh. Older changes have waited in its buffer, where there may be more:
/// no time for a pause. Both clocks are the same where the machine is; at the other end of a tunnel they are not, and what
/// seems to come from the future is not fresh either.
const FRESH: std::ops::RangeInclusive<i64> = 0..=500;

/// How the log of a server on this machine comes.
#[derive(Debug)]
pub(super) struct Bursts {
    since: Instant,
    is_fast: bool,
    is_fresh: bool,
}

impl Bursts {
    /// `None` when the server is on another machine.
    pub(super) fn begin(connection: &mut Connection) -> Option<Bursts> {
        connection.channel().stream().is_narrow().then(|| Bursts {
            since: Instant::now(),
            is_fast: false,
            is_fresh: false,
        })
    }

    /// Notes that these frames have come since the last time.
    pub(super) fn note(&mut self, frames: &[u8]) {
        let micros = self.since.elapsed().as_micros().max(1);
        self.is_fast = frames.len() as u128 * 1_000_000 / micros >= FAST;
        self.since = Instant::now();
        let last = split_frames(frames).last().and_then(Result::ok);
        let sent = last
            .and_then(|frame| parse_frame(frame).ok())
            .map(|frame| frame.time());
        self.is_fresh = sent.is_some_and(|sent| FRESH.contains(&now().saturating_sub(sent)));
    }

    /// How long to wait before the next read.
    pub(super) fn pause(&self) -> Option<Duration> {
        (self.is_fast && self.is_fresh).then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a log that brought frames of so many bytes in a millisecond, the last of them sent so many microseconds ago.
    fn pause_after(bytes: usize, age: i64) -> Option<Duration> {
        let mut frame = vec![b'w'];
        for field in [0x10, 0x20, now() - age] {
            frame.extend(field.to_be_bytes());
        }
        frame.resize(bytes - 4, 0);
        let mut chunk = u32::try_from(frame.len()).unwrap().to_le_bytes().to_vec();
        chunk.extend(frame);
        let mut bursts = Bursts {
            since: Instant::now().checked_sub(Duration::from_millis(1)).unwrap(),
            is_fast: false,
            is_fresh: false,
        };
        bursts.note(&chunk);
        bursts.pause()
    }

    #[test]
    fn only_a_fast_log_that_was_read_to_its_end_is_left_to_collect() {
        const FAST_ENOUGH: usize = 64 << 10;
        let fresh = || pause_after(FAST_ENOUGH, 0);
        // A thread may be held up between the two looks at the clock: once in many must do.
        assert!((0..1000).any(|_| fresh() == Some(PAUSE)));
        assert_eq!(pause_after(100, 0), None);
        assert_eq!(pause_after(FAST_ENOUGH, 1_000), None);
        assert_eq!(pause_after(FAST_ENOUGH, -60_000_000), None);
    }
}
