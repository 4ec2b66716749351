//! What a broken or hostile server could send.

use super::{row, within};
use crate::wire::Purpose;
use crate::wire::fake::{Server, complete, error, message, notice, ready, welcome};

#[tokio::test]
async fn damaged_messages_are_errors_or_answers_but_never_a_panic_or_a_hang() {
    let login = [
        message(b'v', &[0, 3, 0, 0, 0, 0, 0, 0]),
        message(b'R', b"\0\0\0\x0ASCRAM-SHA-256\0\0"),
        welcome("11.1"),
    ];
    let header = message(
        b'T',
        b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xFF\xFF\xFF\xFF\xFF\xFF\0\0",
    );
    let answer = [
        header,
        row(&[Some("x"), None]),
        notice("n"),
        error("ERROR", "42601", "e"),
        complete("SELECT 1"),
        ready(b'I'),
    ];
    // A fixed sequence (xorshift): the same damage in each run.
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below).unwrap()).unwrap()
    };
    for round in 0..20_000 {
        let mut bytes = if round % 2 == 0 {
            login.concat()
        } else {
            answer.concat()
        };
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                1 => bytes.truncate(at + 1),
                _ => bytes.insert(at, u8::try_from(random(256)).unwrap()),
            }
        }
        // The server closes after the bytes, so that no call waits for what will not come.
        if round % 2 == 0 {
            let (mut server, login) = Server::login(Purpose::Sql);
            let script = async move {
                server.startup().await;
                server.send(&bytes).await;
            };
            let _ = within(async { tokio::join!(login, script) }).await;
        } else {
            let (mut server, mut connection) = Server::connected(Purpose::Sql).await;
            server.send(&bytes).await;
            drop(server);
            let _ = within(connection.simple_query("q")).await;
            let _ = within(connection.simple_query("q")).await;
        }
    }
}
