//! Everything that a server says from the login on: to a query, to COPY, and to a replication stream. The first byte says which.
//!
//! Whatever comes: no panic, no wait for what will not come, and no more memory than what came takes a few times over.

use cdc_postgres::config::Config;
use cdc_postgres::wire::hearing::{Work, hear};
use tokio::runtime::{Builder, Runtime};

use crate::limit::within;

thread_local! {
    static CONFIG: Config = Config::parse_with("postgres://ann:pw@fake/shop", &|_| None).expect("a URL");
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// What is read at a time, and what came: in the buffer, which grows by doubling, as a message, and as what is made of it.
fn most_bytes(bytes: &[u8]) -> usize {
    (256 << 10) + 64 * bytes.len()
}

pub(crate) fn run(bytes: &[u8]) {
    heard(bytes);
}

/// Bytes of values, rows or frames, if the server let us in.
fn heard(bytes: &[u8]) -> Option<usize> {
    let (kind, said) = bytes.split_first()?;
    let work = match kind % 3 {
        0 => Work::Query,
        1 => Work::Copy,
        _ => Work::Stream,
    };
    let mut heard = None;
    within(most_bytes(bytes), || {
        let session = |config: &Config| RUNTIME.with(|runtime| runtime.block_on(hear(config, work, said)));
        heard = CONFIG.with(session).ok();
    });
    heard
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = 4 + body.len() as u32;
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// A login without a password, and the answer to the first statement, by which the session learns what it is.
fn login(version: &str) -> Vec<u8> {
    let idle = message(b'Z', b"I");
    [
        message(b'R', &[0; 4]),
        message(b'S', format!("server_version\0{version}\0").as_bytes()),
        message(b'K', &[0, 0, 0, 42, 0, 0, 0, 7]),
        idle.clone(),
        message(b'C', b"SELECT 1\0"),
        idle,
    ]
    .concat()
}

fn seed(work: u8, said: &[&[u8]]) -> Vec<u8> {
    [&[work][..], &login("18.4"), &said.concat()].concat()
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let (idle, done) = (message(b'Z', b"I"), message(b'C', b"SELECT 1\0"));
    let described = message(
        b'T',
        b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xFF\xFF\xFF\xFF\xFF\xFF\0\0",
    );
    let row = message(b'D', b"\0\x01\0\0\0\x02ab");
    let refused = message(b'E', b"SERROR\0VERROR\0C42601\0Mno\0\0");
    let notice = message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mlook\0\0");
    let (copy_out, line) = (message(b'H', b"\0\0\x01\0\0"), message(b'd', b"ab\tc\n"));
    let (copy_both, copied) = (message(b'W', b"\0\0\0"), message(b'c', b""));
    let keepalive = message(b'd', &[&b"k"[..], &[0; 17]].concat());
    let change = message(b'd', &[&b"w"[..], &[0; 24], b"B"].concat());
    let scram = message(b'R', b"\0\0\0\x0ASCRAM-SHA-256\0\0");
    let challenge = message(b'R', b"\0\0\0\x0Br=abc,s=QSXCR+Q6sek8bf92,i=4096");
    let older = message(b'v', &[0, 3, 0, 0, 0, 0, 0, 0]);
    vec![
        ("query", seed(0, &[&described, &notice, &row, &done, &idle])),
        ("query_refused", seed(0, &[&refused, &idle])),
        ("copy", seed(1, &[&copy_out, &line, &line, &copied, &done, &idle])),
        ("copy_refused", seed(1, &[&copy_out, &line, &refused, &idle])),
        ("stream", seed(2, &[&copy_both, &keepalive, &change, &copied])),
        ("login_scram", [&[0][..], &older, &scram, &challenge].concat()),
        ("login_refused", [&[0][..], &refused].concat()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_heard_to_their_end() {
        let heard: Vec<_> = seeds().iter().map(|(name, seed)| (*name, heard(seed))).collect();
        let expected = [
            ("query", Some(2)),
            ("query_refused", None),
            ("copy", Some(10)),
            ("copy_refused", None),
            // Two frames of 18 and 26 bytes, each behind its length.
            ("stream", Some(52)),
            ("login_scram", None),
            ("login_refused", None),
        ];
        assert_eq!(heard, expected);
    }
}
