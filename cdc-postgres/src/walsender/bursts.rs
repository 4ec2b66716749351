//! Reading in bursts from a server on the same machine.
//!
//! A walsender hands every change to its socket by itself (`WalSndWriteData`, `TCP_NODELAY`). While the receiver's window is
//! open each becomes a packet, and over a loopback device the sender pays for all of its way, which is up to half of what a
//! row of 300 bytes costs it. While the window is closed, changes collect in the sender's buffer and leave together when it
//! opens. So the window is made small there (`Window::NarrowOnLoopback`), and a fast log is given the time to fill it.
//! Between machines the kernel collects what the device has not sent, and a small window would be a limit: nothing of this
//! is done.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::frame::{now, parse_frame, split_frames};
use crate::wire::Connection;

/// How long a fast log is left to collect.
const PAUSE: Duration = Duration::from_millis(4);
/// A log that brings so many bytes a second is fast: in a pause, more than a small window takes (16 or 32 KiB). What is
/// slower is handed on as it comes.
const FAST: u128 = 12 << 20;
/// What the server sent so many microseconds ago is fresh. Older changes have waited in its buffer, where there may be more:
/// no time for a pause. Both clocks are the same where the machine is; at the other end of a tunnel they are not, and what
/// seems to come from the future is not fresh either.
const FRESH: RangeInclusive<i64> = 0..=500;
/// Of larger frames a small window holds too few for collecting them to save anything.
const SMALL: usize = 4 << 10;

/// How the log of a server on this machine comes.
#[derive(Debug)]
pub(super) struct Bursts {
    /// when all that had been sent was read, at least a pause ago
    since: Instant,
    /// what has come since
    bytes: usize,
    pauses: bool,
}

impl Bursts {
    /// `None` when the server is on another machine.
    pub(super) fn begin(connection: &mut Connection) -> Option<Bursts> {
        connection.channel().stream().is_narrow().then(|| Bursts {
            since: Instant::now(),
            bytes: 0,
            pauses: false,
        })
    }

    /// Notes the frames of a read.
    pub(super) fn note(&mut self, frames: &[u8]) {
        self.note_at(frames, Instant::now(), now());
    }

    /// The same at a time, and by a clock in µs since 2000-01-01 UTC.
    fn note_at(&mut self, frames: &[u8], at: Instant, clock: i64) {
        self.bytes += frames.len();
        self.pauses = false;
        let elapsed = at.saturating_duration_since(self.since);
        // Over less than a pause the rows of one small transaction would pass for a fast log.
        if elapsed < PAUSE || !may_collect(frames, clock) {
            return;
        }
        self.pauses = self.bytes as u128 * 1_000_000 / elapsed.as_micros().max(1) >= FAST;
        self.bytes = 0;
        self.since = at;
    }

    /// How long to wait before the next read; asked for once.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        std::mem::take(&mut self.pauses).then_some(PAUSE)
    }
}

/// Whether the last of the frames was sent just now, so that the server has no more, and more like it would fit a window.
fn may_collect(frames: &[u8], clock: i64) -> bool {
    let last = split_frames(frames).last().and_then(Result::ok);
    let sent = last
        .filter(|frame| frame.len() <= SMALL)
        .and_then(|frame| parse_frame(frame).ok())
        .map(|frame| frame.time());
    sent.is_some_and(|sent| FRESH.contains(&clock.saturating_sub(sent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After so many bytes in this time, the last of them sent so many microseconds ago in a small frame.
    fn pause_after(time: Duration, bytes: usize, age: i64) -> Option<Duration> {
        pause_after_frame(time, bytes, 300, age)
    }

    /// The same with a frame of this size.
    fn pause_after_frame(time: Duration, bytes: usize, size: usize, age: i64) -> Option<Duration> {
        const CLOCK: i64 = 800_000_000_000_000;
        let mut frame = vec![b'w'];
        for field in [0x10, 0x20, CLOCK - age] {
            frame.extend(field.to_be_bytes());
        }
        frame.resize(size, 0);
        let mut chunk = u32::try_from(frame.len()).unwrap().to_le_bytes().to_vec();
        chunk.extend(frame);
        let since = Instant::now();
        let mut bursts = Bursts {
            since,
            bytes: bytes - chunk.len(),
            pauses: false,
        };
        bursts.note_at(&chunk, since + time, CLOCK);
        let pause = bursts.pause();
        assert_eq!(bursts.pause(), None);
        pause
    }

    #[test]
    fn only_a_fast_log_that_was_read_to_its_end_is_left_to_collect() {
        const FAST_ENOUGH: usize = 256 << 10;
        assert_eq!(pause_after(PAUSE, FAST_ENOUGH, 0), Some(PAUSE));
        assert_eq!(pause_after(PAUSE, FAST_ENOUGH, 500), Some(PAUSE));
        assert_eq!(pause_after(PAUSE, FAST_ENOUGH, 501), None);
        // One large value after the other.
        assert_eq!(pause_after_frame(PAUSE, FAST_ENOUGH, SMALL, 0), Some(PAUSE));
        assert_eq!(pause_after_frame(PAUSE, FAST_ENOUGH, SMALL + 1, 0), None);
        // Of a server at the other end of a tunnel, whose clock is another.
        assert_eq!(pause_after(PAUSE, FAST_ENOUGH, -60_000_000), None);
        assert_eq!(pause_after(PAUSE, 4_000, 0), None);
        // The rows of a small transaction, right behind its beginning.
        assert_eq!(pause_after(Duration::from_micros(20), 4_000, 0), None);
    }
}
