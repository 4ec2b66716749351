//! Hitting one connection at one place: found by what its client sends, counted in bytes or in messages of
//! PostgreSQL's protocol (manual, "Message Formats").

use super::Direction;

/// Which connection is hit, where, and how. It is hit once.
#[derive(Clone, Copy, Debug)]
pub struct Aim {
    /// What the client sends; counting begins behind it.
    pub text: &'static str,
    /// How many connections that send it are let pass first.
    pub skip: u32,
    /// The way that is counted.
    pub direction: Direction,
    /// Where.
    pub place: Place,
    /// What happens there.
    pub act: Act,
}

/// A place on a way through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// After so many bytes.
    Bytes(u64),
    /// So many bytes after (or before) the end of this message; the first that ends is number 0.
    Message {
        /// which message
        number: u64,
        /// bytes from its end
        off: i64,
    },
    /// Nowhere: what passes is only counted.
    Nowhere,
}

/// What happens to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Both ends are closed.
    Cut,
    /// It stays open and passes nothing any more, either way.
    Freeze,
    /// The client's end is closed; what it has sent is held back and reaches the server after
    /// [`Proxy::release`](super::Proxy::release).
    Hold,
}

/// What has passed on a connection behind the text of an aim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Bytes.
    pub bytes: u64,
    /// Messages that have ended.
    pub messages: u64,
}

/// One connection as an aim sees it.
#[derive(Debug, Default)]
pub(super) struct Trace {
    /// The last bytes of the client, in which the text may have begun.
    tail: Vec<u8>,
    /// The number of the aim whose text was found.
    found: Option<u64>,
    to_server: Way,
    to_client: Way,
}

#[derive(Debug, Default)]
struct Way {
    frames: Frames,
    passed: Passed,
    /// Bytes until the place of the aim, once it is known.
    left: Option<u64>,
}

impl Trace {
    /// Looks for the text of aim `number` in `bytes` of the client. When it ends there, lets it pass, returns where it
    /// ends and begins to count.
    pub(super) fn find(&mut self, number: u64, text: &str, bytes: &[u8]) -> Option<usize> {
        if self.found == Some(number) {
            return None;
        }
        let before = self.tail.len();
        self.tail.extend_from_slice(bytes);
        let place = self
            .tail
            .windows(text.len())
            .position(|window| window == text.as_bytes());
        let end = place.map(|place| (place + text.len()).saturating_sub(before));
        let keep = self.tail.len().saturating_sub(text.len());
        self.tail.drain(..keep);
        if let Some(end) = end {
            self.pass(Direction::ToServer, bytes.get(..end).unwrap_or_default());
            self.found = Some(number);
            self.tail.clear();
            for way in [&mut self.to_server, &mut self.to_client] {
                way.passed = Passed::default();
                way.left = None;
            }
        }
        end
    }

    /// Whether the text of aim `number` was found.
    pub(super) fn is_found(&self, number: u64) -> bool {
        self.found == Some(number)
    }

    /// What has passed one way since then.
    pub(super) fn passed(&self, direction: Direction) -> Passed {
        match direction {
            Direction::ToServer => self.to_server.passed,
            Direction::ToClient => self.to_client.passed,
        }
    }

    /// Lets bytes pass without an aim.
    pub(super) fn pass(&mut self, direction: Direction, bytes: &[u8]) {
        self.pass_to(direction, bytes, Place::Nowhere);
    }

    /// Lets bytes pass up to the place; returns how many, and whether the place is reached.
    pub(super) fn pass_to(&mut self, direction: Direction, bytes: &[u8], place: Place) -> (usize, bool) {
        let way = match direction {
            Direction::ToServer => &mut self.to_server,
            Direction::ToClient => &mut self.to_client,
        };
        for (index, byte) in bytes.iter().enumerate() {
            if way.is_at(place) {
                return (index, true);
            }
            way.take(*byte, direction == Direction::ToServer);
        }
        let is_at = way.is_at(place);
        if direction == Direction::ToServer && std::mem::take(&mut way.frames.asked_for_tls) {
            self.to_client.frames.single = true;
        }
        (bytes.len(), is_at)
    }
}

impl Way {
    fn is_at(&mut self, place: Place) -> bool {
        match place {
            Place::Bytes(bytes) => self.passed.bytes >= bytes,
            Place::Message { number, off } => {
                if self.left.is_none() {
                    // Where a message without a body ends is known only when it has ended.
                    let rest = match self.passed.messages {
                        now if now == number => self.frames.rest(),
                        now if now > number => Some(0),
                        _ => None,
                    };
                    self.left = rest.map(|rest| rest.saturating_add_signed(off));
                }
                self.left == Some(0)
            }
            Place::Nowhere => false,
        }
    }

    fn take(&mut self, byte: u8, from_client: bool) {
        self.passed.bytes += 1;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        self.frames.take(byte, from_client);
        if self.frames.rest() == Some(0) {
            self.passed.messages += 1;
            self.frames.header.clear();
        }
    }
}

/// Finds the ends of messages.
#[derive(Debug, Default)]
struct Frames {
    /// The header of the message under way: its type, unless it is the client's first, and its length.
    header: Vec<u8>,
    /// Bytes of the message under way after its header.
    body: u64,
    /// Whether the client's first message, which has no type, is over.
    begun: bool,
    /// The client has asked for TLS; the server answers with one byte.
    asked_for_tls: bool,
    single: bool,
}

/// The code in place of a protocol version by which TLS is asked for.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

impl Frames {
    fn take(&mut self, byte: u8, from_client: bool) {
        if std::mem::take(&mut self.single) {
            return;
        }
        let typed = usize::from(!from_client || self.begun);
        if self.header.len() < typed + 4 {
            self.header.push(byte);
            if let Some(length) = self
                .header
                .get(typed..)
                .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
            {
                self.body = u64::from(u32::from_be_bytes(length)).saturating_sub(4);
            }
            return;
        }
        self.body = self.body.saturating_sub(1);
        if typed == 0 {
            // Kept whole, to tell what it is.
            self.header.push(byte);
            if self.body == 0 {
                self.asked_for_tls = self.header == TLS_REQUEST;
                self.begun = !self.asked_for_tls;
            }
        }
    }

    /// Bytes up to the end of the message under way, once its length is known.
    fn rest(&self) -> Option<u64> {
        (self.header.len() >= 5 || (self.header.len() == 4 && self.body > 0 && !self.begun))
            .then_some(self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with a type.
    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend((body.len() as u32 + 4).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn session() -> Vec<u8> {
        let mut bytes = TLS_REQUEST.to_vec();
        bytes.extend([0, 0, 0, 13, 0, 3, 0, 0, b'u', b's', b'e', b'r', 0]);
        bytes.extend(message(b'Q', b"SELECT text\0"));
        bytes.extend(message(b'S', b""));
        bytes.extend(message(b'd', &[7; 300]));
        bytes
    }

    /// The index at which a place behind "text" is reached, however the bytes are cut into chunks.
    fn reached(place: Place) -> Option<usize> {
        let bytes = session();
        let results: Vec<Option<usize>> = [1, 3, 7, 1000]
            .map(|chunk| {
                let mut trace = Trace::default();
                let mut at = 0;
                for chunk in bytes.chunks(chunk) {
                    let begin = trace.find(1, "text", chunk).unwrap_or(0);
                    let found = trace.is_found(1);
                    if !found {
                        trace.pass(Direction::ToServer, chunk);
                    } else {
                        let (passed, hit) = trace.pass_to(Direction::ToServer, &chunk[begin..], place);
                        if hit {
                            return Some(at + begin + passed);
                        }
                    }
                    at += chunk.len();
                }
                None
            })
            .into();
        assert!(
            results.iter().all(|result| *result == results[0]),
            "{place:?}: {results:?}"
        );
        results[0]
    }

    #[test]
    fn places_are_counted_behind_the_text() {
        let text_ends = session().windows(4).position(|window| window == b"text").unwrap() + 4;
        // The query ends with one more byte, the Sync with five, the CopyData with 305.
        assert_eq!(reached(Place::Bytes(0)), Some(text_ends));
        assert_eq!(reached(Place::Bytes(200)), Some(text_ends + 200));
        for off in [-1, 0, 1] {
            let at = |number| reached(Place::Message { number, off });
            assert_eq!(at(0), Some((text_ends + 1).saturating_add_signed(off as isize)));
            assert_eq!(
                at(1),
                Some((text_ends + 6).saturating_add_signed(off.max(0) as isize))
            );
        }
        let last = Place::Message { number: 2, off: -1 };
        assert_eq!(reached(last), Some(text_ends + 310));
        assert_eq!(reached(Place::Nowhere), None);
    }
}
