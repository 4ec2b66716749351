//! Settings of a session, the choice of a server, and the end of statements and sessions.

use std::time::{Duration, Instant};

use cdc_postgres::error::{Action, Kind, SqlState};
use cdc_postgres::wire::{Connection, Purpose, ReplicationSettings};
use testbed::postgres::PASSWORD;
use testbed::provision::POSTGRES_MAJORS;
use testbed::{PgCluster, StopMode};

use crate::{WAYS, config, connect, state, value, with_logins};

/// Name, what the server and the role say, and what our sessions say.
const SETTINGS: &[(&str, &str, &str)] = &[
    ("DateStyle", "SQL, DMY", "ISO, DMY"),
    ("IntervalStyle", "sql_standard", "postgres"),
    ("TimeZone", "Asia/Tokyo", "UTC"),
    ("extra_float_digits", "0", "3"),
    ("bytea_output", "escape", "hex"),
    ("client_encoding", "LATIN1", "UTF8"),
    ("lc_monetary", "'POSIX'", "C"),
    ("array_nulls", "off", "on"),
    ("xmloption", "document", "content"),
    ("quote_all_identifiers", "on", "off"),
    ("standard_conforming_strings", "off", "on"),
    ("search_path", "public", ""),
    ("statement_timeout", "2s", "0"),
    ("lock_timeout", "2s", "0"),
    ("idle_in_transaction_session_timeout", "2s", "0"),
];

#[tokio::test]
async fn sessions_have_our_settings_whatever_the_server_says() {
    for major in POSTGRES_MAJORS {
        let mut settings = SETTINGS.to_vec();
        if major >= 14 {
            settings.push(("idle_session_timeout", "2s", "0"));
        }
        if major >= 17 {
            settings.push(("transaction_timeout", "2s", "0"));
        }
        // Both ways in which an administrator can set them; the role's win over the server's.
        let mut builder = PgCluster::builder(major).setting("wal_sender_timeout", "2s");
        let mut role = String::from("CREATE ROLE tuned LOGIN SUPERUSER REPLICATION;");
        for (name, theirs, _) in &settings {
            if name.contains("timeout") {
                builder = builder.setting(name, theirs);
            } else {
                role.push_str(&format!("ALTER ROLE tuned SET {name} = {};", theirs));
            }
        }
        let role = role.replace("Asia/Tokyo", "'Asia/Tokyo'");
        let cluster = builder.start().unwrap();
        cluster.sql("postgres", &role).unwrap();

        let url = cluster.url("postgres").replace("postgres@", "tuned@");
        let url = format!(
            "{url}?options=-c%20geqo%3Doff%20-c%20statement_timeout%3D5s&application_name=it%27s%20us"
        );
        let replication = Purpose::Replication(ReplicationSettings {
            wal_sender_timeout: "7min".into(),
            logical_decoding_work_mem: "333MB".into(),
        });
        settings.extend([
            ("geqo", "", "off"),
            ("application_name", "", "it's us"),
            ("work_mem", "", "5MB"),
        ]);
        for purpose in [&Purpose::Sql, &replication] {
            let mut settings = settings.clone();
            if *purpose == replication {
                settings.push(("wal_sender_timeout", "", "7min"));
                if major == 13 {
                    settings.push(("logical_decoding_work_mem", "", "333MB"));
                }
            }
            let extra = [("work_mem", "5MB")];
            let mut connection = Connection::connect(&config(&url), purpose, &extra).await.unwrap();
            for (name, _, ours) in &settings {
                let found = value(&mut connection, &format!("SELECT current_setting('{name}')")).await;
                assert!(
                    same_setting(name, &found, ours),
                    "{major} {purpose:?} {name}: {found}"
                );
            }
        }
        let (client, _driver) = config(&url).connect_client(&[("work_mem", "5MB")]).await.unwrap();
        for (name, _, ours) in &settings {
            let row = client
                .query_one("SELECT current_setting($1)", &[name])
                .await
                .unwrap();
            assert!(
                same_setting(name, row.get(0), ours),
                "{major} client {name}: {}",
                row.get::<_, &str>(0)
            );
        }
    }
}

/// The order of day and month stays the user's; `DateStyle` ISO never uses it for output.
fn same_setting(name: &str, found: &str, ours: &str) -> bool {
    found == ours
        || (name == "DateStyle" && found.starts_with("ISO"))
        || (name == "search_path" && found == "\"\"")
}

#[tokio::test]
async fn the_right_server_of_several_is_found() {
    for major in [12, 18] {
        let primary = PgCluster::builder(major).start().unwrap();
        // A server that was told to be a standby waits for WAL in recovery, and answers queries.
        let mut standby = PgCluster::builder(major).start().unwrap();
        standby.stop(StopMode::Fast).unwrap();
        std::fs::write(standby.data_dir().join("standby.signal"), "").unwrap();
        standby.start_again().unwrap();
        primary.create_database("read_only").unwrap();
        primary
            .sql(
                "postgres",
                "ALTER DATABASE read_only SET default_transaction_read_only = on",
            )
            .unwrap();

        let hosts = format!(
            "127.0.0.1:1,127.0.0.1:{},127.0.0.1:{}",
            standby.port(),
            primary.port()
        );
        let url = |database: &str, attrs: &str| {
            config(&format!(
                "postgres://postgres@{hosts}/{database}?target_session_attrs={attrs}"
            ))
        };
        for (attrs, want) in [
            ("any", &standby),
            ("read-write", &primary),
            ("read-only", &standby),
            ("primary", &primary),
            ("standby", &standby),
            ("prefer-standby", &standby),
        ] {
            let connection = Connection::connect(&url("postgres", attrs), &Purpose::Sql, &[])
                .await
                .unwrap();
            assert_eq!(connection.endpoint().port(), want.port(), "{major} {attrs}");
            for way in WAYS {
                let landed = way.connect(&url("postgres", attrs)).await.unwrap();
                assert_eq!(landed.port, want.port(), "{major} {attrs} {way:?}");
            }
        }
        // With the standby gone, only the primary is left, and it is not of the wanted kind.
        drop(standby);
        let none = Connection::connect(&url("postgres", "standby"), &Purpose::Sql, &[])
            .await
            .unwrap_err();
        assert_eq!(none.action, Action::Reconnect);
        assert!(none.to_string().contains("not a standby"), "{none}");
        assert!(
            Connection::connect(&url("postgres", "prefer-standby"), &Purpose::Sql, &[])
                .await
                .is_ok()
        );
        let read_only = Connection::connect(&url("read_only", "read-only"), &Purpose::Sql, &[])
            .await
            .unwrap();
        assert_eq!(read_only.endpoint().port(), primary.port());
        let none = Connection::connect(&url("read_only", "read-write"), &Purpose::Sql, &[])
            .await
            .unwrap_err();
        assert!(none.to_string().contains("the server is read-only"), "{none}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_in_time() {
    // Takes the connection and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "postgres://u@127.0.0.1:{}/d",
        listener.local_addr().unwrap().port()
    );
    let config = config(&url).with_connect_timeout(Duration::from_millis(200));
    let begun = Instant::now();
    let late = Connection::connect(&config, &Purpose::Sql, &[])
        .await
        .unwrap_err();
    assert_eq!(
        (late.kind, late.action),
        (Kind::Timeout, Action::Reconnect),
        "{late}"
    );
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn statements_are_cancelled_and_sessions_ended_with_their_reason() {
    for major in [12, 18] {
        let mut cluster = with_logins(major);
        let url = format!(
            "postgres://scrammed:{PASSWORD}@127.0.0.1:{}/postgres?sslmode=require",
            cluster.port()
        );
        let mut connection = connect(&url).await.unwrap();
        let token = connection.cancel_token();
        let (cancelled, sent) = tokio::join!(connection.simple_query("SELECT pg_sleep(600)"), async {
            // Until the statement runs there is nothing to cancel.
            let mut watch = connect(&cluster.url("postgres")).await.unwrap();
            let running =
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(6%' AND state = 'active'
                           AND pid <> pg_backend_pid()";
            let waiting = async {
                while value(&mut watch, running).await != "1" {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), waiting)
                .await
                .expect("the statement runs");
            token.cancel().await
        });
        sent.unwrap();
        assert!(cancelled.unwrap_err().is(SqlState::QUERY_CANCELED));

        let pid = connection.backend_pid();
        cluster
            .sql("postgres", &format!("SELECT pg_terminate_backend({pid})"))
            .unwrap();
        let ended = connection.simple_query("SELECT 1").await.unwrap_err();
        assert_eq!(
            (ended.sqlstate, ended.action),
            (Some(state("57P01")), Action::Reconnect),
            "{ended}"
        );

        let mut connection = connect(&url).await.unwrap();
        cluster.crash().unwrap();
        let ended = connection.simple_query("SELECT 1").await.unwrap_err();
        assert_eq!(
            (ended.kind, ended.action),
            (Kind::Connection, Action::Reconnect),
            "{ended}"
        );
        assert_eq!(connect(&url).await.unwrap_err().action, Action::Reconnect);
    }
}
