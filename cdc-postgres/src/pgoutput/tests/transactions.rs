//! Transactions, what is left out of them, and positions.

use cdc_core::model::TxnKind;
use cdc_core::{Op, TxnId};

use super::super::encode::Old;
use super::super::message::{LogicalMessage, Origin};
use super::*;

fn message(transactional: bool) -> Vec<u8> {
    encode::logical_message(&LogicalMessage {
        transactional,
        lsn: Lsn(0x1F0),
        prefix: "p",
        content: b"hello",
    })
}

fn origin(name: &str, lsn: u64) -> Vec<u8> {
    encode::origin(&Origin {
        commit_lsn: Lsn(lsn),
        name,
    })
}

#[test]
fn a_transaction_carries_its_lsns_time_and_counts() {
    let batch = one(&[t(b'd'), encode::insert(T, &row("1", "a"))]).unwrap();
    let [txn] = batch.txns() else {
        panic!("{:?}", batch.txns())
    };
    assert_eq!(ends(&batch), [(0x200, 0x210)]);
    assert_eq!(txn.kind, TxnKind::Log);
    // 2000-01-01 00:00:01 UTC
    assert_eq!(txn.commit_time_micros, 946_684_801_000_000);
    assert_eq!(txn.time_precision_micros, 1);
    assert_eq!((txn.first, txn.last, txn.rows.clone()), (true, true, 0..1));
    assert_eq!((&txn.origin, txn.seen), (&None, None));
}

#[test]
fn an_empty_transaction_moves_the_position() {
    let mut frames = Frames::default();
    transaction(&mut frames, 0x200, &[]);
    transaction(&mut frames, 0x210, &[]);
    let mut decoder = decoder();
    let batch = decode(&mut decoder, &frames.chunk()).unwrap();
    assert_eq!(ends(&batch), [(0x200, 0x210), (0x210, 0x220)]);
    let mut tracker = decoder.tracker();
    assert_eq!(tracker.position().as_str(), "0/100");
    for txn in batch.txns() {
        tracker.fold(txn).unwrap();
    }
    assert_eq!(tracker.position().as_str(), "0/220");
}

#[test]
fn the_first_origin_counts_and_only_ours_says_what_was_seen() {
    let insert = || encode::insert(T, &row("1", "a"));
    let batch = one(&[
        origin("upstream", 9),
        t(b'd'),
        insert(),
        origin("cdc_sync_5/7/back/app", 0x77),
        insert(),
    ])
    .unwrap();
    assert_eq!(batch.txns()[0].origin.as_deref(), Some("upstream"));
    assert_eq!(batch.txns()[0].seen, None);
    let batch = one(&[origin("cdc_sync_5/7/back/app", 0x77), t(b'd'), insert()]).unwrap();
    assert_eq!(batch.txns()[0].origin.as_deref(), Some("cdc_sync_5/7/back/app"));
    assert_eq!(
        batch.txns()[0].seen,
        Some(TxnId::new(&0x77_u64.to_be_bytes()).unwrap())
    );
}

#[test]
fn what_the_job_itself_applied_here_is_counted_and_left_out() {
    let insert = || encode::insert(T, &row("1", "a"));
    let truncate = encode::truncate(false, false, &[T]);
    let batch = one(&[origin("cdc_sync_5/7/job/app", 0x77), t(b'd'), insert(), truncate]).unwrap();
    assert!(batch.rows().is_empty());
    let counts = batch.txns()[0].counts;
    assert_eq!((counts.read, counts.looped), (2, 2));
    assert!(counts.balanced());
}

#[test]
fn logical_messages_are_counted_and_move_nothing() {
    let mut frames = Frames::default();
    frames.message(Lsn(0x1F0), &message(false));
    let mut decoder = decoder();
    let batch = decode(&mut decoder, &frames.chunk()).unwrap();
    assert!(batch.is_empty());
    let mut frames = Frames::default();
    transaction(&mut frames, 0x200, &[message(true), message(false)]);
    let batch = decode(&mut decoder, &frames.chunk()).unwrap();
    assert_eq!(batch.rows().len(), 0);
    assert_eq!(batch.txns()[0].counts.internal, 3);
    assert_eq!(batch.txns()[0].counts.read, 0);
}

#[test]
fn what_is_on_the_target_already_is_left_out_whole() {
    let mut frames = Frames::default();
    let messages = [
        t(b'd'),
        message(true),
        origin("o", 1),
        encode::insert(T, &row("1", "a")),
        encode::truncate(false, false, &[T]),
    ];
    // Ends exactly at the start.
    transaction(&mut frames, 0xF0, &messages);
    frames.keepalive(Lsn(0x180), false);
    let mut decoder = decoder();
    let batch = decode(&mut decoder, &frames.chunk()).unwrap();
    assert!(batch.txns().is_empty() && batch.rows().is_empty());
    assert_eq!(batch.idle().unwrap().as_str(), "0/180");
    // But what it announced is known.
    let mut frames = Frames::default();
    transaction(&mut frames, 0x200, &[encode::insert(T, &row("2", "b"))]);
    let batch = decode(&mut decoder, &frames.chunk()).unwrap();
    assert_eq!(rows_of(&batch), ["Insert public.t - / '2','b',null"]);
    assert_eq!(batch.txns()[0].counts.read, 1);
}

#[test]
fn a_start_within_a_commit_is_refused() {
    let mut frames = Frames::default();
    transaction(&mut frames, 0xF8, &[]);
    let shown = decode(&mut decoder(), &frames.chunk()).unwrap_err().to_string();
    assert!(shown.contains("started at 0/100"), "{shown}");
}

/// Only a table of the selection can have lost its name to one that is not.
#[test]
fn a_table_that_gets_a_name_that_is_not_selected_is_not_left_out() {
    let mut start = start();
    start.selection.include = vec!["public.t".into()];
    let decoded = |messages: &[Vec<u8>]| {
        let mut frames = Frames::default();
        transaction(&mut frames, 0x200, messages);
        decode(
            &mut PgDecoder::new(ProtocolVersion::V1, &start).unwrap(),
            &frames.chunk(),
        )
    };
    let u = encode::relation(&table(T, "public", "u", b'd'));
    let error = decoded(&[t(b'd'), encode::insert(T, &row("1", "a")), u.clone()]).unwrap_err();
    assert_eq!(error.object_name(), Some("table public.t"));
    assert!(error.to_string().contains("public.u"), "{error}");
    decoded(&[u, encode::insert(T, &row("1", "a"))]).unwrap();
}

#[test]
fn tables_not_selected_and_tables_already_seeded_are_counted_only() {
    let mut start = start();
    start.selection.exclude = vec!["public.no".into()];
    start
        .seeded_to
        .insert(named("public", "late"), Position::new("0/300"));
    let mut decoder = PgDecoder::new(ProtocolVersion::V1, &start).unwrap();
    let messages = [
        t(b'd'),
        encode::relation(&table(2, "public", "no", b'd')),
        encode::relation(&table(3, "public", "late", b'd')),
        encode::insert(T, &row("1", "a")),
        encode::insert(2, &row("1", "a")),
        encode::insert(3, &row("1", "a")),
        encode::delete(2, Old::Key(&row("1", "a"))),
        encode::truncate(true, true, &[T, 2, 3]),
        encode::truncate(false, false, &[2]),
    ];
    let mut frames = Frames::default();
    transaction(&mut frames, 0x2F0, &messages);
    transaction(&mut frames, 0x300, &messages);
    let batch = decode(&mut decoder, &frames.chunk()).unwrap();
    let [before, after] = batch.txns() else {
        panic!("{:?}", batch.txns())
    };
    assert_eq!((before.counts.read, before.counts.filtered), (8, 6));
    assert_eq!((after.counts.read, after.counts.filtered), (8, 4));
    assert_eq!((before.rows.clone(), after.rows.clone()), (0..2, 2..5));
    let tables = |row: usize| -> Vec<String> {
        let truncation = batch.event(row).unwrap().truncation().unwrap();
        assert!(truncation.cascade && truncation.restart_identity);
        truncation
            .tables
            .iter()
            .map(|table| table.name.to_string())
            .collect()
    };
    assert_eq!(tables(1), ["public.t"]);
    assert_eq!(tables(4), ["public.t", "public.late"]);
}

#[test]
fn of_our_own_tables_only_our_beats_and_markers_are_read() {
    let beat = |id: u32, table: &'static str| {
        let mut relation = table_of(id, table);
        relation.columns[0].name = "beat";
        relation.columns[1].name = "stream";
        relation.columns[1].key = true;
        encode::relation(&relation)
    };
    let batch = one(&[
        beat(1, "heartbeat"),
        beat(2, "marker"),
        beat(3, "checkpoint"),
        encode::insert(1, &row("1", "job")),
        encode::update(1, Some(Old::Key(&row("1", "job"))), &row("2", "job")),
        encode::update(1, None, &row("2", "other")),
        encode::insert(2, &row("9", "job")),
        encode::insert(2, &row("9", "jobs")),
        encode::insert(2, &[text("9"), Field::Null, Field::Null]),
        encode::delete(2, Old::Key(&row("9", "job"))),
        encode::insert(3, &row("1", "job")),
        encode::truncate(false, false, &[1, 3]),
    ])
    .unwrap();
    assert_eq!(
        rows_of(&batch),
        [
            "Insert cdc_sync.heartbeat - / '1','job',null",
            "Update cdc_sync.heartbeat '1','job',absent / '2','job',null",
            "Insert cdc_sync.marker - / '9','job',null",
        ]
    );
    let counts = batch.txns()[0].counts;
    assert_eq!((counts.read, counts.filtered, counts.internal), (0, 0, 10));
}

fn table_of(id: u32, name: &str) -> Relation<'_> {
    table(id, "cdc_sync", name, b'd')
}

#[test]
fn a_beat_without_a_stream_is_refused() {
    let shown = refused(&[encode::relation(&table_of(1, "marker"))]);
    assert!(
        shown.contains("cdc_sync.marker") && shown.contains("stream"),
        "{shown}"
    );
}

#[test]
fn a_transaction_over_chunks_is_continued_wherever_it_is_cut() {
    let mut frames = Frames::default();
    transaction(
        &mut frames,
        0x200,
        &[encode::relation(&table(9, "public", "u", b'd'))],
    );
    transaction(
        &mut frames,
        0x300,
        &[
            origin("cdc_sync_5/7/back/app", 0x77),
            t(b'd'),
            encode::insert(T, &row("1", "a")),
            encode::update(T, None, &row("1", "b")),
            encode::truncate(false, false, &[T]),
        ],
    );
    transaction(&mut frames, 0x400, &[encode::insert(T, &row("2", "c"))]);
    let whole = decode(&mut decoder(), &frames.chunk()).unwrap();
    for cut in 1..frames.ends.len() {
        let mut decoder = decoder();
        let (mut rows, mut read, mut folded) = (Vec::new(), 0, Vec::new());
        let mut open = None;
        for chunk in frames.cut(&[cut]) {
            let batch = decode(&mut decoder, &chunk).unwrap();
            for txn in batch.txns() {
                assert_eq!(txn.first, open.is_none(), "cut {cut}");
                let (commit, end) = transaction_lsns(&txn.id).unwrap();
                assert!(open.is_none_or(|open| open == commit));
                assert_eq!(end.is_zero(), !txn.last);
                open = (!txn.last).then_some(commit);
                read += txn.counts.read;
                if txn.last {
                    folded.push((commit.0, end.0));
                }
                if commit == Lsn(0x300) {
                    assert_eq!(txn.origin.as_deref(), Some("cdc_sync_5/7/back/app"), "cut {cut}");
                    assert!(txn.seen.is_some());
                }
            }
            rows.extend(rows_of(&batch));
        }
        assert_eq!(open, None);
        assert_eq!(rows, rows_of(&whole), "cut {cut}");
        assert_eq!(folded, ends(&whole));
        assert_eq!(read, 4);
    }
}

#[test]
fn a_keepalive_is_an_idle_position_only_between_transactions() {
    let idle = |frames: &Frames| {
        let batch = decode(&mut decoder(), &frames.chunk()).unwrap();
        batch.idle().map(|position| position.as_str().to_owned())
    };
    let mut frames = Frames::default();
    assert_eq!(idle(frames.keepalive(Lsn(0x180), true)).as_deref(), Some("0/180"));
    frames.message(Lsn(0x200), &begin(0x200));
    assert_eq!(idle(&frames), None);
    frames.keepalive(Lsn(0x1F0), false);
    assert_eq!(idle(&frames), None);
    frames.message(Lsn(0x200), &commit_at(0x200));
    assert_eq!(idle(&frames), None);
    // Sent before the commit was, and arriving after it.
    frames.keepalive(Lsn(0x1F0), false);
    assert_eq!(idle(&frames).as_deref(), Some("0/210"));
    frames.keepalive(Lsn(0x280), false);
    assert_eq!(idle(&frames).as_deref(), Some("0/280"));
    transaction(&mut frames, 0x300, &[]);
    assert_eq!(idle(&frames), None);

    // A server that starts to send again from behind the checkpoint.
    let mut frames = Frames::default();
    frames.keepalive(Lsn(0x10), false);
    assert_eq!(idle(&frames).as_deref(), Some("0/100"));
}

#[test]
fn the_order_of_messages_is_checked() {
    let decode_all = |messages: &[Vec<u8>]| {
        let mut frames = Frames::default();
        for message in messages {
            frames.message(Lsn(0x1F0), message);
        }
        decode(&mut decoder(), &frames.chunk())
    };
    let refuse = |messages: &[Vec<u8>]| {
        let error = decode_all(messages).unwrap_err();
        assert_eq!(error.kind(), cdc_core::Kind::Protocol, "{error}");
        assert!(error.to_string().contains("at 0/1F0"), "{error}");
    };
    refuse(&[begin(0x200), begin(0x300)]);
    refuse(&[commit_at(0x200)]);
    refuse(&[begin(0x200), commit_at(0x300)]);
    refuse(&[t(b'd'), encode::insert(T, &row("1", "a"))]);
    refuse(&[t(b'd'), encode::truncate(false, false, &[T])]);
    refuse(&[origin("o", 1)]);
    let mut ends_before = commit_at(0x200);
    ends_before[17] = 0;
    ends_before[16] = 2;
    refuse(&[begin(0x200), ends_before]);
    let mut far_future = begin(0x200);
    far_future[9..17].copy_from_slice(&i64::MAX.to_be_bytes());
    refuse(&[far_future]);
    // A relation announced between transactions does no harm.
    assert!(decode_all(&[t(b'd')]).is_ok());
}

#[test]
fn numbers_of_one_batch_are_not_used_in_another() {
    let mut decoder = decoder();
    let mut frames = Frames::default();
    let other = encode::relation(&table(2, "public", "u", b'd'));
    transaction(
        &mut frames,
        0x200,
        &[
            other,
            t(b'd'),
            encode::insert(2, &row("1", "u")),
            encode::insert(T, &row("1", "t")),
        ],
    );
    let first = decode(&mut decoder, &frames.chunk()).unwrap();
    assert_eq!(first.tables().len(), 2);
    // Another batch of the same generation.
    let mut frames = Frames::default();
    transaction(
        &mut frames,
        0x300,
        &[
            encode::insert(T, &row("2", "t")),
            encode::insert(2, &row("2", "u")),
        ],
    );
    let second = decode(&mut decoder, &frames.chunk()).unwrap();
    assert_eq!(second.generation(), first.generation());
    assert_eq!(
        rows_of(&second),
        [
            "Insert public.t - / '2','t',null",
            "Insert public.u - / '2','u',null"
        ]
    );
    assert_eq!(second.event(0).unwrap().op(), Op::Insert);
}
