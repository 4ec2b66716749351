//! The copy-both stream, against a scripted server.

use std::time::Duration;

use super::*;
use crate::error::{Action, Kind};
use crate::wire::fake::{Server, complete, error, message, notice, ready};

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("the client hangs")
}

fn xlog_data(start: u64, data: &[u8]) -> Vec<u8> {
    [&b"w"[..], &start.to_be_bytes(), &[0; 16], data].concat()
}

fn keepalive() -> Vec<u8> {
    [&b"k"[..], &[0; 17]].concat()
}

/// A stream that has just started.
async fn streaming(max_frame_bytes: usize) -> (Server, WalSender) {
    let (mut server, connection) =
        Server::connected(Purpose::Replication(ReplicationSettings::default())).await;
    let mut walsender = WalSender::over(connection, max_frame_bytes);
    let options = PgoutputOptions::new(vec!["p".into()]);
    let script = async {
        let command = String::from_utf8(server.expect(b'Q').await).unwrap();
        assert_eq!(
            command,
            "START_REPLICATION SLOT \"s\" LOGICAL 0/A (\"proto_version\" '1', \"publication_names\" '\"p\"')\0"
        );
        server.send(&message(b'W', b"\0\0\0")).await;
    };
    let (started, ()) = tokio::join!(
        walsender.start_logical_replication("s", Lsn(10), &options),
        script
    );
    started.unwrap();
    (server, walsender)
}

fn frames(chunk: &[u8]) -> Vec<Vec<u8>> {
    split_frames(chunk).map(|frame| frame.unwrap().to_vec()).collect()
}

#[tokio::test]
async fn frames_may_arrive_split_anywhere() {
    let sent = [xlog_data(1, b"Babc"), keepalive(), xlog_data(2, b"")];
    let mut bytes: Vec<u8> = notice("between the frames");
    for frame in &sent {
        bytes.extend(message(b'd', frame));
    }
    let (mut server, mut walsender) = streaming(1000).await;
    for at in 0..=bytes.len() {
        let client = async {
            let mut chunk = Vec::new();
            let mut taken = 0;
            while taken < sent.len() {
                taken += walsender.read_frames(&mut chunk, 1 << 20).await.unwrap();
            }
            assert_eq!(frames(&chunk), sent, "{at}");
        };
        within(async { tokio::join!(client, server.send_split(&bytes, at)) }).await;
    }
}

#[tokio::test]
async fn a_dropped_read_loses_nothing() {
    let frame = message(b'd', &xlog_data(1, &[7; 500]));
    let (mut server, mut walsender) = streaming(1000).await;
    let mut chunk = Vec::new();
    for part in frame.chunks(100) {
        let read =
            tokio::time::timeout(Duration::from_millis(1), walsender.read_frames(&mut chunk, 1000)).await;
        assert!(read.is_err() && chunk.is_empty());
        server.send(part).await;
    }
    assert_eq!(walsender.read_frames(&mut chunk, 1000).await.unwrap(), 1);
    assert_eq!(frames(&chunk), [xlog_data(1, &[7; 500])]);
}

#[tokio::test]
async fn a_chunk_is_bounded_and_a_large_frame_comes_alone() {
    let (mut server, mut walsender) = streaming(100_000).await;
    let sizes = [400, 400, 400, 5000, 10];
    for size in sizes {
        server.send(&message(b'd', &xlog_data(1, &vec![0; size]))).await;
    }
    let mut counts = Vec::new();
    while counts.iter().sum::<usize>() < sizes.len() {
        let mut chunk = Vec::new();
        counts.push(walsender.read_frames(&mut chunk, 1000).await.unwrap());
        assert!(chunk.len() <= 1000 || frames(&chunk).len() == 1);
    }
    assert_eq!(counts, [2, 1, 1, 1]);
}

#[tokio::test]
async fn a_frame_above_the_limit_is_named_and_not_read() {
    for in_blocks in [false, true] {
        names_what_is_too_large(in_blocks).await;
    }
}

async fn names_what_is_too_large(in_blocks: bool) {
    let (mut server, mut walsender) = streaming(1000).await;
    walsender.in_blocks = in_blocks;
    let mut insert = xlog_data(0x16_B374_D848, b"I");
    if in_blocks {
        insert.extend(700u32.to_be_bytes());
    }
    insert.extend(16_384u32.to_be_bytes());
    let mut huge = vec![b'd'];
    huge.extend(500_000_000u32.to_be_bytes());
    huge.extend(insert);
    server.send(&message(b'd', &keepalive())).await;
    server.send(&huge).await;
    let mut chunk = Vec::new();
    assert_eq!(
        walsender.read_frames(&mut chunk, 1000).await.unwrap(),
        1,
        "the frame before it is handed out"
    );
    for _ in 0..2 {
        let failed = walsender.read_frames(&mut chunk, 1000).await.unwrap_err();
        assert_eq!((failed.kind, failed.action), (Kind::Limit, Action::Stop));
        let text = failed.to_string();
        for part in ["499999996 bytes", "1000 bytes", "16/B374D848", "'I'", "OID 16384"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[tokio::test]
async fn garbage_in_the_stream_is_a_protocol_error() {
    for (bytes, kind) in [
        (b"d\0\0\0\x03".to_vec(), Kind::Protocol),
        (b"d\x80\0\0\0".to_vec(), Kind::Protocol),
        (message(b'D', b"\0\0"), Kind::Protocol),
        (message(b'?', b""), Kind::Protocol),
        ([&b"d"[..], &0x7FFF_FFFFu32.to_be_bytes()].concat(), Kind::Limit),
    ] {
        let (mut server, mut walsender) = streaming(1000).await;
        server.send(&bytes).await;
        let failed = within(walsender.read_frames(&mut Vec::new(), 1000))
            .await
            .unwrap_err();
        assert_eq!(failed.kind, kind, "{bytes:?}: {failed}");
    }
}

#[tokio::test]
async fn the_end_of_the_stream_comes_after_its_frames() {
    let last = message(b'd', &xlog_data(1, b"last"));
    for (end, action) in [
        (message(b'c', b""), Action::Reconnect),
        (complete("COPY 0"), Action::Reconnect),
        (error("FATAL", "57P01", "terminating"), Action::Reconnect),
        (error("ERROR", "55000", "slot invalidated"), Action::Stop),
        (Vec::new(), Action::Reconnect),
    ] {
        let (mut server, mut walsender) = streaming(1000).await;
        server.send(&[last.clone(), end].concat()).await;
        drop(server);
        let mut chunk = Vec::new();
        assert_eq!(walsender.read_frames(&mut chunk, 1000).await.unwrap(), 1);
        assert_eq!(frames(&chunk), [xlog_data(1, b"last")]);
        for _ in 0..2 {
            assert_eq!(
                walsender.read_frames(&mut chunk, 1000).await.unwrap_err().action,
                action
            );
        }
    }
}

#[tokio::test]
async fn a_warning_that_changes_are_left_out_ends_the_stream() {
    let warn = |code: &str| {
        message(
            b'N',
            format!("SWARNUNG\0VWARNING\0C{code}\0Mskipped\0\0").as_bytes(),
        )
    };
    let (mut server, mut walsender) = streaming(1000).await;
    server
        .send(&[warn("01000"), message(b'd', &keepalive()), warn("55000")].concat())
        .await;
    let mut chunk = Vec::new();
    assert_eq!(walsender.read_frames(&mut chunk, 1000).await.unwrap(), 1);
    assert_eq!(
        walsender.read_frames(&mut chunk, 1000).await.unwrap_err().action,
        Action::Stop
    );
}

#[tokio::test]
async fn status_updates_go_out_without_reading_and_never_wait() {
    let (mut server, mut walsender) = streaming(1000).await;
    assert!(
        walsender
            .try_send_status(Lsn(3), Lsn(2), Lsn(1), false)
            .await
            .unwrap()
    );
    let status = server.expect(b'd').await;
    assert_eq!((status.len(), status[0], status[33]), (34, b'r', 0));

    // A server that reads nothing: the socket fills up, the queue stays bounded, and no call waits.
    let mut queued = false;
    for _ in 0..100_000 {
        queued |= !within(walsender.try_send_status(Lsn(3), Lsn(2), Lsn(1), true))
            .await
            .unwrap();
    }
    assert!(queued);
    assert!(walsender.connection.channel().outgoing.len() <= 4096 + 64);

    // Reading writes the rest.
    let mut chunk = Vec::new();
    let script = async {
        for _ in 0..200 {
            server.expect(b'd').await;
        }
        server.send(&message(b'd', &keepalive())).await;
    };
    let (read, ()) = within(async { tokio::join!(walsender.read_frames(&mut chunk, 1000), script) }).await;
    assert_eq!(read.unwrap(), 1);
}

#[tokio::test]
async fn stop_waits_for_the_slot_to_be_free() {
    let (mut server, walsender) = streaming(1000).await;
    let script = async {
        server.expect(b'c').await;
        let late = message(b'd', &xlog_data(1, b"late"));
        server
            .send(
                &[
                    late,
                    message(b'c', b""),
                    complete("COPY 0"),
                    complete("START_STREAMING"),
                    ready(b'I'),
                ]
                .concat(),
            )
            .await;
        server.rest().await
    };
    let (stopped, rest) =
        within(async { tokio::join!(walsender.stop(Duration::from_secs(30)), script) }).await;
    stopped.unwrap();
    assert_eq!(&rest[..], b"X\0\0\0\x04");
}

#[tokio::test]
async fn stop_gives_up_at_its_deadline() {
    let (mut server, walsender) = streaming(1000).await;
    let stopped = walsender.stop(Duration::from_millis(20)).await;
    assert_eq!(stopped.unwrap_err().kind, Kind::Timeout);
    assert_eq!(
        &server.rest().await[..],
        b"c\0\0\0\x04",
        "closed without waiting any longer"
    );
}

#[tokio::test]
async fn a_refused_start_leaves_the_connection_for_commands() {
    let (mut server, connection) =
        Server::connected(Purpose::Replication(ReplicationSettings::default())).await;
    let mut walsender = WalSender::over(connection, 1000);
    assert_eq!(
        walsender.read_frames(&mut Vec::new(), 1).await.unwrap_err().kind,
        Kind::Usage
    );
    let script = async {
        server.expect(b'Q').await;
        server
            .send(&[error("ERROR", "55006", "slot is active for PID 7"), ready(b'I')].concat())
            .await;
        server.expect(b'Q').await;
        server
            .send(&[complete("DROP_REPLICATION_SLOT"), ready(b'I')].concat())
            .await;
    };
    let client = async {
        let options = PgoutputOptions::new(vec!["p".into()]);
        let failed = walsender
            .start_logical_replication("s", Lsn::ZERO, &options)
            .await
            .unwrap_err();
        assert_eq!(failed.action, Action::Wait);
        assert!(failed.to_string().contains("slot s"), "{failed}");
        walsender.drop_slot("s", true).await.unwrap();
        assert!(walsender.show("a; b").await.is_err());
    };
    within(async { tokio::join!(script, client) }).await;
}
