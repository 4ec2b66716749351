//! Reading behind a server on the same machine.
//!
//! A walsender hands every change to its socket by itself (`WalSndWriteData`, `TCP_NODELAY`). While the receiver's window is
//! open each becomes a packet, and over a loopback device the sender pays for all of its way, which is more than decoding a
//! small row costs it. While the window is closed, changes collect in the sender's buffer and leave together when it opens.
//! So the window is made small there (`Window::NarrowOnLoopback`), and a fast log is read a little behind its end: each read
//! takes one window, and what follows is collected already, so that the window closes again at once. A pause after all was
//! read would leave a small window open for most of the pause.
//! Between machines the kernel collects what the device has not sent, and a small window would be a limit: nothing of this
//! is done.

use std::time::Duration;

use super::frame::{now, parse_frame, split_frames};
use crate::wire::Connection;

/// How many microseconds behind its end a fast log is read. The changes of so long have to fit the sender's buffer, and any
/// change may come so much later.
const BEHIND: i64 = 6_000;
/// A log that brings so many bytes a second is fast: while it is read that far behind, more than a small window takes
/// (16 or 32 KiB). What is slower is handed on as it comes.
const FAST: u128 = 6 << 20;
/// Over how many microseconds that is measured, at least. In less, the rows of one small transaction would pass for a fast
/// log.
const MEASURED: i64 = 4_000;
/// A shorter wait is not worth asking for.
const SHORTEST: i64 = 150;
/// Of larger frames a small window holds too few for collecting them to save anything.
const SMALL: usize = 4 << 10;

/// How the log of a server on this machine comes. All times are the server's own, of its frames, in µs since 2000-01-01 UTC:
/// how fast it writes does not depend on how it is read.
#[derive(Debug)]
pub(super) struct Bursts {
    /// since when is measured
    since: i64,
    /// what has come since
    bytes: usize,
    fast: bool,
    wait: Option<Duration>,
}

impl Bursts {
    /// `None` when the server is on another machine.
    pub(super) fn begin(connection: &mut Connection) -> Option<Bursts> {
        connection
            .channel()
            .stream()
            .is_narrow()
            .then(|| Bursts::measured(0, 0))
    }

    /// Of a log of which so many bytes came since this time.
    fn measured(since: i64, bytes: usize) -> Bursts {
        Bursts {
            since,
            bytes,
            fast: false,
            wait: None,
        }
    }

    /// Notes the frames of a read.
    pub(super) fn note(&mut self, frames: &[u8]) {
        self.note_at(frames, now());
    }

    /// The same at a time by our clock. It is the server's where the machine is; at the other end of a tunnel it is not, and
    /// what seems to come from the future is not waited behind.
    fn note_at(&mut self, frames: &[u8], clock: i64) {
        self.wait = None;
        self.bytes += frames.len();
        let Some((sent, size)) = last_sent(frames) else {
            return;
        };
        let elapsed = sent.saturating_sub(self.since);
        if !(0..MEASURED).contains(&elapsed) {
            self.fast =
                elapsed > 0 && self.bytes as u128 * 1_000_000 / elapsed.unsigned_abs() as u128 >= FAST;
            self.since = sent;
            self.bytes = 0;
        }
        let age = clock.saturating_sub(sent);
        if self.fast && size <= SMALL && (0..=BEHIND - SHORTEST).contains(&age) {
            self.wait = Some(Duration::from_micros(BEHIND.abs_diff(age)));
        }
    }

    /// How long to wait before the next read; asked for once.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        self.wait.take()
    }
}

/// When the last of the frames was sent, and its size.
fn last_sent(frames: &[u8]) -> Option<(i64, usize)> {
    let last = split_frames(frames).last()?.ok()?;
    Some((parse_frame(last).ok()?.time(), last.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: i64 = 800_000_000_000_000;
    const MILLISECOND: i64 = 1_000;

    /// One frame of this size, sent at this time.
    fn frame(sent: i64, size: usize) -> Vec<u8> {
        let mut frame = vec![b'w'];
        for field in [0x10, 0x20, sent] {
            frame.extend(field.to_be_bytes());
        }
        frame.resize(size, 0);
        let mut chunk = u32::try_from(frame.len()).unwrap().to_le_bytes().to_vec();
        chunk.extend(frame);
        chunk
    }

    /// A log of which so many bytes came within this time, up to a frame of this size that was sent this long ago.
    fn wait_after(time: i64, bytes: usize, size: usize, age: i64) -> Option<i64> {
        let mut bursts = Bursts::measured(CLOCK - age - time, bytes);
        bursts.note_at(&frame(CLOCK - age, size), CLOCK);
        let wait = bursts.pause();
        assert_eq!(bursts.pause(), None);
        wait.map(|wait| i64::try_from(wait.as_micros()).unwrap())
    }

    #[test]
    fn only_a_fast_log_of_small_frames_is_read_behind_its_end() {
        const FAST_ENOUGH: usize = 256 << 10;
        let time = 10 * MILLISECOND;
        assert_eq!(wait_after(time, FAST_ENOUGH, 300, 0), Some(BEHIND));
        assert_eq!(wait_after(time, FAST_ENOUGH, 300, 1_000), Some(BEHIND - 1_000));
        // There is more of it already.
        assert_eq!(wait_after(time, FAST_ENOUGH, 300, BEHIND), None);
        assert_eq!(wait_after(time, FAST_ENOUGH, 300, 60_000_000), None);
        // One large value after the other.
        assert_eq!(wait_after(time, FAST_ENOUGH, SMALL, 0), Some(BEHIND));
        assert_eq!(wait_after(time, FAST_ENOUGH, SMALL + 1, 0), None);
        // Of a server at the other end of a tunnel, whose clock is another.
        assert_eq!(wait_after(time, FAST_ENOUGH, 300, -60_000_000), None);
        assert_eq!(wait_after(time, 4_000, 300, 0), None);
        // The rows of a small transaction, right behind its beginning.
        assert_eq!(wait_after(20, 4_000, 300, 0), None);
    }

    #[test]
    fn a_log_is_fast_by_the_time_of_its_server() {
        let mut bursts = Bursts::measured(CLOCK, 0);
        let mut waits = |sent: i64, bytes: usize| {
            // We are always late, so that all of it had been collected.
            bursts.note_at(&frame(CLOCK + sent, bytes), CLOCK + sent + MILLISECOND);
            bursts.pause().is_some()
        };
        // Twice as fast as it has to be, in frames of 3 KiB.
        let (step, size) = (250, 3 << 10);
        let times = || (1..=16).map(|read| read * step);
        let fast: Vec<bool> = times().map(|sent| waits(sent, size)).collect();
        assert_eq!(fast.iter().filter(|waits| **waits).count(), 1, "{fast:?}");
        assert!(times().all(|sent| waits(16 * step + sent, size)));
        // A quarter of it: slow again as soon as it has been measured.
        assert!(times().all(|sent| waits(32 * step + sent, size / 4) == (sent < 16 * step)));
        // The server's clock is put back while it is fast.
        assert_eq!(
            times().map(|sent| waits(48 * step + sent, size)).last(),
            Some(true)
        );
        assert!(!waits(64 * step - 100, size));
    }
}
