//! A server's bytes as whoever waits for an answer looks at them: only the kinds of messages, and how two of them begin.

use cdc_postgres::told_by_a_server;

use crate::limit::within;

/// Of a message its first nine bytes are kept.
const MOST_BYTES: usize = 1 << 10;

pub(crate) fn run(bytes: &[u8]) {
    within(MOST_BYTES, || {
        let whole = told_by_a_server(std::iter::once(bytes));
        for size in [1, 3, 7] {
            assert_eq!(whole, told_by_a_server(bytes.chunks(size)));
        }
    });
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = 4 + body.len() as u32;
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let key = message(b'K', &[0, 0, 1, 2, 9, 9, 9, 9]);
    let (idle, within) = (message(b'Z', b"I"), message(b'Z', b"T"));
    let row = message(b'D', b"\0\x01\0\0\0\x01a");
    vec![
        ("begun", [key.clone(), within].concat()),
        ("login", [message(b'R', &[0; 4]), key, idle.clone()].concat()),
        (
            "rows",
            [row.clone(), row, message(b'C', b"SELECT 2\0"), idle].concat(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_tell_the_session() {
        let told = seeds()
            .into_iter()
            .map(|(_, seed)| told_by_a_server(std::iter::once(&seed[..])));
        assert_eq!(
            told.collect::<Vec<_>>(),
            [(Some(258), false), (Some(258), true), (None, true)]
        );
    }
}
