//! Bytes that no server sends.

use cdc_core::Kind;
use proptest::prelude::*;

use super::super::encode::Old;
use super::super::message::{LogicalMessage, Message, Origin, TypeName};
use super::super::{Flaw, Malformed};
use super::*;

/// What is around a message: the frame's length and the header of XLogData.
const FRAME_BYTES: usize = 4 + 25;

/// One of every message, in an order that makes sense.
fn every_message() -> Vec<Vec<u8>> {
    vec![
        begin(0x200),
        encode::origin(&Origin {
            commit_lsn: Lsn(3),
            name: "o",
        }),
        encode::type_name(&TypeName {
            oid: 20_000,
            namespace: "app",
            name: "mood",
        }),
        t(b'f'),
        encode::insert(T, &[text("1"), Field::Null, Field::Unchanged]),
        encode::update(
            T,
            Some(Old::Full(&row("1", "a"))),
            &[text("1"), Field::Unchanged, Field::Null],
        ),
        encode::update(T, Some(Old::Key(&row("1", "a"))), &row("2", "b")),
        encode::update(T, None, &row("2", "b")),
        encode::delete(T, Old::Full(&row("2", "b"))),
        encode::truncate(true, true, &[T]),
        encode::logical_message(&LogicalMessage {
            transactional: true,
            lsn: Lsn(1),
            prefix: "p",
            content: b"c",
        }),
        commit_at(0x200),
    ]
}

fn decode_messages(messages: &[&[u8]]) -> Result<Batch> {
    let mut frames = Frames::default();
    for message in messages {
        frames.message(Lsn(0x1F0), message);
    }
    decode(&mut decoder(), &frames.chunk())
}

#[test]
fn a_message_cut_anywhere_is_an_error() {
    let messages = every_message();
    let all: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
    assert!(decode_messages(&all).is_ok());
    for (number, message) in messages.iter().enumerate() {
        for end in 0..message.len() {
            let mut cut = all[..=number].to_vec();
            cut[number] = &message[..end];
            let error = decode_messages(&cut).unwrap_err();
            assert_eq!(
                error.kind(),
                Kind::Protocol,
                "message {number} cut at {end}: {error}"
            );
        }
        let longer = [message.as_slice(), b"x"].concat();
        let mut long = all[..=number].to_vec();
        long[number] = &longer;
        let shown = decode_messages(&long).unwrap_err().to_string();
        assert!(
            shown.contains("follow its last field"),
            "message {number}: {shown}"
        );
    }
}

#[test]
fn unknown_tags_are_named_with_their_place() {
    // Those of protocol versions 2 and 3 among them.
    for tag in [b'S', b'E', b'c', b'A', b'b', b'P', b'K', b'r', b'p', 0] {
        assert_eq!(
            Message::parse(ProtocolVersion::V1, &[tag, 0, 0]).unwrap_err(),
            Malformed {
                at: 0,
                flaw: Flaw::UnknownTag(tag)
            }
        );
    }
    let error = decode_messages(&[b"S\0\0\0\x01\x01"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pgoutput version 1, message 'S': unknown message tag 'S' 0x53 (byte 0) at 0/1F0"
    );
}

#[test]
fn counts_are_bounded_by_the_message_before_anything_is_allocated() {
    let mut relation = t(b'd');
    let count = relation.len() - (3 * 10 + "id".len() + "note".len() + "doc".len()) - 2;
    relation[count..count + 2].copy_from_slice(&u16::MAX.to_be_bytes());
    let flaw = |bytes: &[u8]| Message::parse(ProtocolVersion::V1, bytes).unwrap_err().flaw;
    assert_eq!(
        flaw(&relation),
        Flaw::Count {
            of: "columns",
            count: 65_535
        }
    );
    let mut truncate = encode::truncate(false, false, &[T]);
    truncate[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(
        flaw(&truncate),
        Flaw::Count {
            of: "relations",
            count: u32::MAX as usize
        }
    );
    let mut insert = encode::insert(T, &row("1", "a"));
    insert[9..13].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(refused(&[t(b'd'), insert]).contains("ends inside the column value"));
}

#[test]
fn flags_with_an_unknown_meaning_are_refused() {
    for (message, flag) in [
        (commit_at(0x200), 1),
        (encode::truncate(false, false, &[T]), 5),
        (every_message().swap_remove(10), 1),
        (t(b'd'), t(b'd').len() - (3 * 10 + 9) - 3),
    ] {
        let mut odd = message;
        odd[flag] |= 0x80;
        let error = Message::parse(ProtocolVersion::V1, &odd).unwrap_err();
        assert!(
            matches!(error.flaw, Flaw::UnknownKind { .. }) && error.at == flag,
            "{error:?}"
        );
    }
}

#[test]
fn a_broken_frame_is_an_error() {
    let mut decoder = decoder();
    for bytes in [&b"\x01"[..], b"\x05\0\0\0ab", b"\x01\0\0\0z", b"\0\0\0\0"] {
        let chunk = RawChunk::new(bytes.to_vec());
        assert_eq!(decode(&mut decoder, &chunk).unwrap_err().kind(), Kind::Protocol);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_decoder_panic(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..6)) {
        let mut frames = Frames::default();
        for payload in &payloads {
            frames.frame(payload);
        }
        let _ = decode(&mut decoder(), &frames.chunk());
    }

    #[test]
    fn no_damage_to_a_message_makes_the_decoder_panic(
        number in 0usize..12, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut messages = every_message();
        let length = messages[number].len();
        messages[number][at.index(length)] = byte;
        messages[number].truncate(cut.index(length) + 1);
        let all: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        if let Ok(batch) = decode_messages(&all) {
            // What was taken lies within what was sent.
            prop_assert!(batch.bytes() <= messages.iter().map(|message| FRAME_BYTES + message.len()).sum());
        }
    }
}
