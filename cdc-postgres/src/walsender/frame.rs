//! Frames of the copy-both stream (protocol manual, "Streaming Replication Protocol").

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};

use crate::error::PgError;
use crate::lsn::Lsn;

/// Seconds from the Unix epoch to PostgreSQL's (2000-01-01 UTC).
const PG_EPOCH_SECONDS: u64 = 946_684_800;

/// A frame from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// XLogData: one message of the output plugin.
    XLogData {
        /// The WAL position of the message; 0 for those that have none (Relation, Type).
        start: Lsn,
        /// The server's current end of WAL.
        wal_end: Lsn,
        /// The server's clock, in µs since 2000-01-01 UTC.
        time: i64,
        /// The output plugin's message.
        data: &'a [u8],
    },
    /// Primary keepalive message.
    Keepalive {
        /// How far the server has sent.
        wal_end: Lsn,
        /// The server's clock, in µs since 2000-01-01 UTC.
        time: i64,
        /// The server wants a status update at once.
        reply_requested: bool,
    },
}

impl Frame<'_> {
    /// The server's clock when it sent the frame, in µs since 2000-01-01 UTC.
    pub fn time(&self) -> i64 {
        match self {
            Frame::XLogData { time, .. } | Frame::Keepalive { time, .. } => *time,
        }
    }
}

/// Reads the payload of one CopyData message.
#[inline]
pub fn parse_frame(payload: &[u8]) -> Result<Frame<'_>, PgError> {
    let (&tag, rest) = payload.split_first().ok_or_else(|| malformed("it is empty"))?;
    match tag {
        b'w' => {
            let short = || malformed("XLogData is shorter than its header");
            // The header as a whole first: there is one of these for each row.
            let (header, data) = rest.split_first_chunk::<24>().ok_or_else(short)?;
            let (start, header) = take_u64(header).ok_or_else(short)?;
            let (wal_end, header) = take_u64(header).ok_or_else(short)?;
            let (time, _) = take_u64(header).ok_or_else(short)?;
            Ok(Frame::XLogData {
                start: Lsn(start),
                wal_end: Lsn(wal_end),
                time: time.cast_signed(),
                data,
            })
        }
        b'k' => {
            let short = || malformed("the keepalive is too short");
            let (wal_end, rest) = take_u64(rest).ok_or_else(short)?;
            let (time, rest) = take_u64(rest).ok_or_else(short)?;
            let reply = rest.first().ok_or_else(short)?;
            Ok(Frame::Keepalive {
                wal_end: Lsn(wal_end),
                time: time.cast_signed(),
                reply_requested: *reply != 0,
            })
        }
        other => Err(malformed(&format!("unknown type {other:#04x}"))),
    }
}

#[cold]
fn malformed(what: &str) -> PgError {
    PgError::protocol(format!("malformed replication frame: {what}"))
}

#[inline]
fn take_u64(input: &[u8]) -> Option<(u64, &[u8])> {
    let (bytes, rest) = input.split_first_chunk()?;
    Some((u64::from_be_bytes(*bytes), rest))
}

/// The payloads in a chunk that [`read_frames`](crate::walsender::WalSender::read_frames) filled: each is preceded by
/// its length as a little-endian `u32`. A chunk that was cut off yields an error at the cut.
#[inline]
pub fn split_frames(chunk: &[u8]) -> impl Iterator<Item = Result<&[u8], PgError>> {
    let mut rest = chunk;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let split = rest.split_first_chunk::<4>().and_then(|(length, after)| {
            after.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
        });
        Some(match split {
            Some((payload, after)) => {
                rest = after;
                Ok(payload)
            }
            None => {
                rest = &[];
                Err(cut_off())
            }
        })
    })
}

#[cold]
fn cut_off() -> PgError {
    PgError::protocol("the chunk of replication frames is cut off")
}

/// Writes a standby status update as a CopyData message.
pub(super) fn write_status(
    out: &mut BytesMut,
    written: Lsn,
    flushed: Lsn,
    applied: Lsn,
    reply_requested: bool,
) {
    const BODY: u32 = 1 + 3 * 8 + 8 + 1;
    out.put_u8(b'd');
    out.put_u32(4 + BODY);
    out.put_u8(b'r');
    out.put_u64(written.0);
    out.put_u64(flushed.0);
    out.put_u64(applied.0);
    out.put_i64(now());
    out.put_u8(u8::from(reply_requested));
}

/// Our clock in µs since 2000-01-01 UTC; 0 for a clock before that.
pub(super) fn now() -> i64 {
    let since_unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since_pg = since_unix.saturating_sub(std::time::Duration::from_secs(PG_EPOCH_SECONDS));
    i64::try_from(since_pg.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xlog_data(data: &[u8]) -> Vec<u8> {
        let mut frame = vec![b'w'];
        for field in [0x10_u64, 0x20, u64::MAX] {
            frame.extend(field.to_be_bytes());
        }
        frame.extend(data);
        frame
    }

    #[test]
    fn frames_are_read_field_by_field() {
        let frame = xlog_data(b"B...");
        let want = Frame::XLogData {
            start: Lsn(0x10),
            wal_end: Lsn(0x20),
            time: -1,
            data: b"B...",
        };
        assert_eq!(parse_frame(&frame), Ok(want));
        let mut keepalive = vec![b'k'];
        keepalive.extend(5u64.to_be_bytes());
        keepalive.extend(7i64.to_be_bytes());
        keepalive.push(1);
        let want = Frame::Keepalive {
            wal_end: Lsn(5),
            time: 7,
            reply_requested: true,
        };
        assert_eq!(parse_frame(&keepalive), Ok(want));
    }

    #[test]
    fn a_frame_cut_anywhere_in_its_header_is_an_error() {
        let data = xlog_data(b"");
        let keepalive = [&b"k"[..], &[0; 17]].concat();
        for frame in [data.as_slice(), &keepalive] {
            assert!(parse_frame(frame).is_ok());
            for end in 0..frame.len() {
                assert!(parse_frame(&frame[..end]).is_err(), "{end}");
            }
        }
        assert!(parse_frame(b"x").is_err());
    }

    #[test]
    fn chunks_split_into_payloads_and_report_a_cut() {
        let chunk = [
            &3u32.to_le_bytes()[..],
            b"abc",
            &0u32.to_le_bytes(),
            &1u32.to_le_bytes(),
            b"z",
        ]
        .concat();
        let frames: Vec<&[u8]> = split_frames(&chunk).map(Result::unwrap).collect();
        assert_eq!(frames, [&b"abc"[..], b"", b"z"]);
        for end in 1..chunk.len() {
            let last = split_frames(&chunk[..end]).last().unwrap();
            assert_eq!(last.is_ok(), end == 7 || end == 11, "{end}");
        }
    }

    #[test]
    fn a_status_update_has_the_layout_of_the_protocol() {
        let mut out = BytesMut::new();
        write_status(&mut out, Lsn(3), Lsn(2), Lsn(1), true);
        assert_eq!(out.len(), 1 + 4 + 34);
        assert_eq!(&out[..14], b"d\0\0\0\x26r\0\0\0\0\0\0\0\x03");
        assert_eq!(&out[14..30], b"\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01");
        assert_eq!(out[38], 1);
        let clock = i64::from_be_bytes(out[30..38].try_into().unwrap());
        assert!(clock > 800_000_000_000_000, "{clock}");
    }
}
