//! The replication client against real servers: slots, snapshots, the stream, back-pressure, shutdown.

use std::time::{Duration, Instant};

use cdc_postgres::config::Config;
use cdc_postgres::error::{Action, Kind, SqlState};
use cdc_postgres::lsn::Lsn;
use cdc_postgres::walsender::{
    CreateSlot, Frame, Origin, PgoutputOptions, SlotSnapshot, WalSender, WalSenderOptions, parse_frame,
    split_frames,
};
use cdc_postgres::wire::ReplicationSettings;
use testbed::provision::POSTGRES_MAJORS;
use testbed::{PgCluster, StopMode};

fn config(cluster: &PgCluster) -> Config {
    Config::parse_with(&cluster.url("postgres"), &|_| None).unwrap()
}

async fn walsender(cluster: &PgCluster) -> WalSender {
    WalSender::connect(&config(cluster), &WalSenderOptions::default())
        .await
        .unwrap()
}

fn slot(name: &str) -> CreateSlot<'_> {
    CreateSlot {
        name,
        temporary: false,
        snapshot: SlotSnapshot::None,
        failover: false,
    }
}

/// What a stream has brought.
#[derive(Default)]
struct Received {
    /// The type byte of each pgoutput message.
    kinds: String,
    bytes: usize,
    /// The end of the newest commit.
    committed: Lsn,
}

impl Received {
    /// Takes a chunk; whether the server wants a reply.
    fn take(&mut self, chunk: &[u8]) -> bool {
        let mut reply = false;
        for frame in split_frames(chunk) {
            match parse_frame(frame.unwrap()).unwrap() {
                Frame::XLogData { data, .. } => {
                    self.kinds.push(char::from(data[0]));
                    self.bytes += data.len();
                    if data[0] == b'C' {
                        self.committed = Lsn(u64::from_be_bytes(data[10..18].try_into().unwrap()));
                    }
                }
                Frame::Keepalive { reply_requested, .. } => reply |= reply_requested,
            }
        }
        reply
    }

    fn count(&self, kind: char) -> usize {
        self.kinds.matches(kind).count()
    }
}

/// Reads until `done`, confirming each commit.
async fn read_until(stream: &mut WalSender, received: &mut Received, done: impl Fn(&Received) -> bool) {
    let begun = Instant::now();
    let mut chunk = Vec::new();
    while !done(received) {
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "only {:?} came",
            received.kinds.len()
        );
        chunk.clear();
        let read = tokio::time::timeout(Duration::from_secs(120), stream.read_frames(&mut chunk, 1 << 20));
        read.await.expect("nothing comes").unwrap();
        received.take(&chunk);
        let at = received.committed;
        stream.try_send_status(at, at, at, false).await.unwrap();
    }
}

#[tokio::test]
async fn a_slot_its_snapshot_and_its_stream_fit_together() {
    for major in POSTGRES_MAJORS {
        let cluster = PgCluster::builder(major).start().unwrap();
        let sql = |script: &str| cluster.sql("postgres", script).unwrap();
        // Names that need quoting twice in START_REPLICATION.
        sql(
            r#"CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2);
               CREATE PUBLICATION "a""b'c.d,e\f" FOR TABLE t; CREATE PUBLICATION "Plain" FOR TABLE t"#,
        );
        let mut setup = walsender(&cluster).await;
        let system = setup.identify_system().await.unwrap();
        assert_eq!(
            system.system_id.to_string(),
            sql("SELECT system_identifier FROM pg_control_system()")
        );
        assert_eq!((system.timeline, system.dbname.as_str()), (1, "postgres"));
        assert!(!system.xlogpos.is_zero());
        assert_eq!(setup.show("wal_level").await.unwrap(), "logical");

        let export = CreateSlot {
            snapshot: SlotSnapshot::Export,
            ..slot("s_1")
        };
        let created = setup.create_logical_slot(&export).await.unwrap();
        assert_eq!(created.slot, "s_1");
        sql("INSERT INTO t VALUES (3)");
        let (client, _driver) = config(&cluster).connect_client(&[]).await.unwrap();
        client
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .unwrap();
        let snapshot = created.snapshot_name.unwrap();
        client
            .batch_execute(&format!("SET TRANSACTION SNAPSHOT '{snapshot}'"))
            .await
            .unwrap();
        let seen: i64 = client
            .query_one("SELECT count(*) FROM public.t", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(seen, 2, "{major}: the snapshot is the slot's");
        client.batch_execute("COMMIT").await.unwrap();

        // The stream brings exactly what the snapshot lacks.
        let mut options = PgoutputOptions::new(vec!["a\"b'c.d,e\\f".into(), "Plain".into()]);
        options.messages = major >= 14;
        options.origin = (major >= 16).then_some(Origin::None);
        setup
            .start_logical_replication("s_1", created.consistent_point, &options)
            .await
            .unwrap();
        sql("UPDATE t SET id = 4 WHERE id = 3");
        sql("BEGIN; DELETE FROM t; TRUNCATE t; COMMIT");
        let mut received = Received::default();
        read_until(&mut setup, &mut received, |r| r.count('C') >= 3).await;
        // How often the server describes the table is its own affair.
        assert_eq!(received.kinds.replace('R', ""), "BICBUCBDDDTC", "{major}");

        // Confirmed once the server has read it; free as soon as stop returns.
        let confirmed = format!(
            "SELECT confirmed_flush_lsn = '{}' FROM pg_replication_slots WHERE slot_name = 's_1'",
            received.committed
        );
        let begun = Instant::now();
        while sql(&confirmed) != "t" {
            assert!(begun.elapsed() < Duration::from_secs(60), "never confirmed");
        }
        setup.stop(Duration::from_secs(60)).await.unwrap();
        assert_eq!(
            sql("SELECT active FROM pg_replication_slots WHERE slot_name = 's_1'"),
            "f"
        );

        let mut last = walsender(&cluster).await;
        last.drop_slot("s_1", false).await.unwrap();
        let gone = last
            .start_logical_replication("s_1", Lsn::ZERO, &options)
            .await
            .unwrap_err();
        assert_eq!(
            (gone.sqlstate, gone.action),
            (Some(SqlState::UNDEFINED_OBJECT), Action::Stop),
            "{gone}"
        );
        // The connection is still good, and a temporary slot dies with it.
        let temporary = CreateSlot {
            temporary: true,
            ..slot("s_2")
        };
        assert_eq!(
            last.create_logical_slot(&temporary).await.unwrap().snapshot_name,
            None
        );
        assert_eq!(sql("SELECT count(*) FROM pg_replication_slots"), "1");
        last.close().await;
        let begun = Instant::now();
        while sql("SELECT count(*) FROM pg_replication_slots") != "0" {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the temporary slot stays"
            );
        }
    }
}

#[tokio::test]
async fn a_slot_serves_one_stream_and_says_who_holds_it() {
    let cluster = PgCluster::builder(18).start().unwrap();
    cluster
        .sql("postgres", "CREATE PUBLICATION p FOR ALL TABLES")
        .unwrap();
    let mut first = walsender(&cluster).await;
    first
        .create_logical_slot(&CreateSlot {
            failover: true,
            ..slot("s")
        })
        .await
        .unwrap();
    let again = first.create_logical_slot(&slot("s")).await.unwrap_err();
    assert_eq!(again.sqlstate, SqlState::new("42710"), "{again}");
    let options = PgoutputOptions::new(vec!["p".into()]);
    first
        .start_logical_replication("s", Lsn::ZERO, &options)
        .await
        .unwrap();
    assert_eq!(first.identify_system().await.unwrap_err().kind, Kind::Usage);
    let mut second = walsender(&cluster).await;
    let busy = second
        .start_logical_replication("s", Lsn::ZERO, &options)
        .await
        .unwrap_err();
    assert_eq!(
        (busy.sqlstate, busy.action),
        (Some(SqlState::OBJECT_IN_USE), Action::Wait),
        "{busy}"
    );
    assert!(
        busy.to_string().contains(&first.backend_pid().to_string()),
        "{busy}"
    );
    let busy = second.drop_slot("s", false).await.unwrap_err();
    assert_eq!(busy.action, Action::Wait);
    let (dropped, stopped) = tokio::join!(second.drop_slot("s", true), first.stop(Duration::from_secs(60)));
    dropped.unwrap();
    stopped.unwrap();
}

#[tokio::test]
async fn a_missing_publication_ends_the_stream() {
    // Up to 17 an error; from 18 on the server warns and leaves the changes out, which must not pass for a stream.
    for major in [12, 17, 18] {
        let cluster = PgCluster::builder(major).start().unwrap();
        cluster
            .sql(
                "postgres",
                "CREATE TABLE t (id int); CREATE PUBLICATION p FOR TABLE t",
            )
            .unwrap();
        let mut stream = walsender(&cluster).await;
        stream.create_logical_slot(&slot("s")).await.unwrap();
        let missing = PgoutputOptions::new(vec!["p".into(), "missing".into()]);
        stream
            .start_logical_replication("s", Lsn::ZERO, &missing)
            .await
            .unwrap();
        cluster.sql("postgres", "INSERT INTO t VALUES (1)").unwrap();
        let mut received = Received::default();
        let mut chunk = Vec::new();
        let failed = loop {
            assert!(
                !received.kinds.contains('C'),
                "{major}: the transaction came without the publication"
            );
            match stream.read_frames(&mut chunk, 1 << 20).await {
                Ok(_) => {
                    received.take(&chunk);
                    chunk.clear();
                }
                Err(failed) => break failed,
            }
        };
        assert_eq!(
            (failed.kind, failed.action),
            (Kind::Server, Action::Stop),
            "{major}: {failed}"
        );
        assert!(failed.to_string().contains("\"missing\""), "{major}: {failed}");
    }
}

#[tokio::test]
async fn slot_creation_waits_for_writers_and_can_be_cancelled() {
    for major in [12, 18] {
        let cluster = PgCluster::builder(major).start().unwrap();
        let (writer, _driver) = config(&cluster).connect_client(&[]).await.unwrap();
        writer
            .batch_execute("BEGIN; CREATE TABLE public.open (id int)")
            .await
            .unwrap();
        let mut creator = walsender(&cluster).await;
        let token = creator.cancel_token();
        let pid = creator.backend_pid();
        let wanted = slot("s");
        let (cancelled, ()) = tokio::join!(creator.create_logical_slot(&wanted), async {
            let (watch, _driver) = config(&cluster).connect_client(&[]).await.unwrap();
            let waiting =
                "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'transactionid'";
            let begun = Instant::now();
            while watch.query_one(waiting, &[&pid]).await.unwrap().get::<_, i64>(0) == 0 {
                assert!(
                    begun.elapsed() < Duration::from_secs(60),
                    "the slot creation never waits"
                );
            }
            token.cancel().await.unwrap();
        });
        assert!(cancelled.unwrap_err().is(SqlState::QUERY_CANCELED));
        writer.batch_execute("COMMIT").await.unwrap();
        creator.create_logical_slot(&wanted).await.unwrap();
    }
}

/// A stream with a transaction of some 60 MB waiting in it.
async fn loaded_stream(major: u16, ssl: bool, wal_sender_timeout: &str) -> (PgCluster, WalSender) {
    let mut builder = PgCluster::builder(major);
    if ssl {
        builder = builder.ssl().hba("hostnossl all all 127.0.0.1/32 reject");
    }
    let cluster = builder.start().unwrap();
    cluster
        .sql(
            "postgres",
            "CREATE TABLE t (id int, v text); CREATE PUBLICATION p FOR TABLE t",
        )
        .unwrap();
    let settings = ReplicationSettings {
        wal_sender_timeout: wal_sender_timeout.into(),
        ..ReplicationSettings::default()
    };
    let options = WalSenderOptions {
        settings,
        ..WalSenderOptions::default()
    };
    let mut stream = WalSender::connect(&config(&cluster), &options).await.unwrap();
    stream.create_logical_slot(&slot("s")).await.unwrap();
    cluster
        .sql(
            "postgres",
            "INSERT INTO t SELECT i, repeat('v', 1000) FROM generate_series(1, 60000) i",
        )
        .unwrap();
    stream
        .start_logical_replication("s", Lsn::ZERO, &PgoutputOptions::new(vec!["p".into()]))
        .await
        .unwrap();
    (cluster, stream)
}

#[tokio::test]
async fn a_reader_that_stalls_keeps_its_stream_by_status_updates() {
    for (major, ssl) in [(12, false), (18, true)] {
        let (cluster, mut stream) = loaded_stream(major, ssl, "6s").await;
        // Three timeouts without reading a byte; only the timer speaks.
        let mut timer = tokio::time::interval(Duration::from_millis(500));
        let stall = Instant::now();
        while stall.elapsed() < Duration::from_secs(18) {
            timer.tick().await;
            stream
                .try_send_status(Lsn(1), Lsn(1), Lsn(1), false)
                .await
                .unwrap();
        }
        let mut received = Received::default();
        read_until(&mut stream, &mut received, |r| r.count('C') == 1).await;
        assert_eq!(received.count('I'), 60_000);
        assert!(received.bytes > 60_000_000);
        stream.stop(Duration::from_secs(60)).await.unwrap();
        assert!(
            !cluster
                .log()
                .unwrap()
                .contains("terminating walsender process due to replication timeout")
        );
    }
}

#[tokio::test]
async fn a_reader_that_stalls_in_silence_loses_its_stream() {
    // What the test above would show if the updates did nothing.
    let (cluster, mut stream) = loaded_stream(18, false, "6s").await;
    let begun = Instant::now();
    while !cluster
        .log()
        .unwrap()
        .contains("terminating walsender process due to replication timeout")
    {
        assert!(begun.elapsed() < Duration::from_secs(60), "the server is patient");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut chunk = Vec::new();
    let lost = loop {
        match stream.read_frames(&mut chunk, 1 << 20).await {
            Ok(_) => chunk.clear(),
            Err(lost) => break lost,
        }
    };
    assert_eq!(lost.action, Action::Reconnect, "{lost}");
}

#[tokio::test]
async fn a_reader_with_a_small_chunk_gets_everything_in_order() {
    let (_cluster, mut stream) = loaded_stream(18, true, "60s").await;
    let mut received = Received::default();
    let mut chunk = Vec::new();
    while received.count('C') == 0 {
        chunk.clear();
        // Half of the reads are given up at once: none may lose or repeat a frame.
        let patience = if received.kinds.len() % 2 == 0 {
            Duration::ZERO
        } else {
            Duration::from_secs(60)
        };
        if tokio::time::timeout(patience, stream.read_frames(&mut chunk, 5000))
            .await
            .is_ok_and(|read| read.is_ok())
        {
            assert!(chunk.len() <= 5000);
            if received.take(&chunk) {
                stream
                    .try_send_status(Lsn(1), Lsn(1), Lsn(1), false)
                    .await
                    .unwrap();
            }
        } else {
            assert!(chunk.is_empty());
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(received.kinds, format!("BR{}C", "I".repeat(60_000)));
}

/// Over TCP the testbed's servers are on this machine.
#[tokio::test]
async fn a_fast_log_of_a_server_on_this_machine_is_left_to_collect() {
    let begun = Instant::now();
    let mut pauses = 0;
    // A machine that is busy may see a slow log: then the next one will do.
    while pauses == 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "no read asked for a pause"
        );
        let (_cluster, mut stream) = loaded_stream(18, false, "60s").await;
        let mut received = Received::default();
        let mut chunk = Vec::new();
        while received.count('C') == 0 {
            chunk.clear();
            stream.read_frames(&mut chunk, 1 << 20).await.unwrap();
            received.take(&chunk);
            if let Some(pause) = stream.pause() {
                pauses += 1;
                tokio::time::sleep(pause).await;
            }
        }
        assert_eq!(received.kinds, format!("BR{}C", "I".repeat(60_000)));
    }
}

#[tokio::test]
async fn a_stream_in_the_middle_of_a_transaction_stops_in_time() {
    let (cluster, mut stream) = loaded_stream(18, false, "60s").await;
    let mut chunk = Vec::new();
    stream.read_frames(&mut chunk, 1 << 20).await.unwrap();
    stream.stop(Duration::from_secs(60)).await.unwrap();
    assert_eq!(
        cluster
            .sql("postgres", "SELECT active FROM pg_replication_slots")
            .unwrap(),
        "f"
    );
}

#[tokio::test]
async fn a_server_that_shuts_down_ends_the_stream_when_all_is_confirmed() {
    for major in [12, 18] {
        let (mut cluster, mut stream) = loaded_stream(major, false, "60s").await;
        let stop = std::thread::spawn(move || cluster.stop(StopMode::Fast).map(|()| cluster));
        let mut received = Received::default();
        let mut chunk = Vec::new();
        let ended = loop {
            chunk.clear();
            match stream.read_frames(&mut chunk, 1 << 20).await {
                Ok(_) => {
                    received.take(&chunk);
                    let at = received.committed;
                    stream.try_send_status(at, at, at, false).await.unwrap();
                }
                Err(ended) => break ended,
            }
        };
        assert_eq!(ended.action, Action::Reconnect, "{ended}");
        assert_eq!(
            (received.count('I'), received.count('C')),
            (60_000, 1),
            "{major}: {ended}"
        );
        let mut cluster = stop.join().unwrap().unwrap();
        cluster.start_again().unwrap();
        // Servers before 17 may forget the last confirmations when they restart: the position that the client stored
        // decides.
        let mut again = walsender(&cluster).await;
        again
            .start_logical_replication("s", received.committed, &PgoutputOptions::new(vec!["p".into()]))
            .await
            .unwrap();
        cluster.sql("postgres", "INSERT INTO t VALUES (0, '')").unwrap();
        let mut received = Received::default();
        read_until(&mut again, &mut received, |r| r.count('C') == 1).await;
        assert_eq!(received.kinds.len(), 4, "{major}: what was confirmed came again");
    }
}

#[tokio::test]
async fn a_row_above_the_limit_is_named() {
    let cluster = PgCluster::builder(18).start().unwrap();
    cluster
        .sql(
            "postgres",
            "CREATE TABLE t (id int, v text); CREATE PUBLICATION p FOR TABLE t",
        )
        .unwrap();
    let options = WalSenderOptions {
        max_frame_bytes: 1 << 20,
        ..WalSenderOptions::default()
    };
    let mut stream = WalSender::connect(&config(&cluster), &options).await.unwrap();
    stream.create_logical_slot(&slot("s")).await.unwrap();
    cluster
        .sql(
            "postgres",
            "INSERT INTO t VALUES (1, 'small'); INSERT INTO t VALUES (2, repeat('v', 2000000))",
        )
        .unwrap();
    stream
        .start_logical_replication("s", Lsn::ZERO, &PgoutputOptions::new(vec!["p".into()]))
        .await
        .unwrap();
    let mut received = Received::default();
    let mut chunk = Vec::new();
    let failed = loop {
        match stream.read_frames(&mut chunk, 1 << 20).await {
            Ok(_) => {
                received.take(&chunk);
                chunk.clear();
            }
            Err(failed) => break failed,
        }
    };
    assert!(received.kinds.starts_with("BRIC"));
    let oid = cluster.sql("postgres", "SELECT 't'::regclass::oid").unwrap();
    assert_eq!((failed.kind, failed.action), (Kind::Limit, Action::Stop));
    assert!(failed.to_string().contains(&format!("OID {oid}")), "{failed}");
}
