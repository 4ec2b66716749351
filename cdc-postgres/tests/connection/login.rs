//! Logins and TLS.

use cdc_postgres::config::LIBPQ_VARIABLES;
use cdc_postgres::error::{Kind, SqlState};
use cdc_postgres::wire::{AuthMethod, Connection, Purpose};
use testbed::PgCluster;
use testbed::postgres::{PASSWORD, PasswordAuth};
use testbed::provision::postgres_tools;

use crate::{config, connect, state, value, with_logins};

#[tokio::test]
async fn every_kind_of_login_works_and_fails_with_its_reason() {
    for major in [12, 18] {
        let cluster = with_logins(major);
        let url = |role: &str, password: &str, more: &str| {
            format!(
                "postgres://{role}:{password}@127.0.0.1:{}/postgres?{more}",
                cluster.port()
            )
        };
        for (role, method) in [
            ("trusted", AuthMethod::None),
            ("hashed", AuthMethod::Md5),
            ("clear", AuthMethod::Password),
            ("scrammed", AuthMethod::Scram),
        ] {
            let url = url(role, PASSWORD, "sslmode=disable");
            let mut connection = connect(&url).await.unwrap();
            assert_eq!(
                (connection.auth_method(), connection.is_encrypted()),
                (method, false)
            );
            assert_eq!(value(&mut connection, "SELECT current_user").await, role);
            assert_eq!(connection.server_version().major(), u32::from(major));
            let (client, _driver) = config(&url).connect_client(&[]).await.unwrap();
            let row = client.query_one("SELECT current_user::text", &[]).await.unwrap();
            assert_eq!(row.get::<_, &str>(0), role);
            if method == AuthMethod::None {
                continue;
            }
            let refused = connect(&url.replace(PASSWORD, "wr0ng-password"))
                .await
                .unwrap_err();
            assert_eq!(
                (refused.kind, refused.sqlstate),
                (Kind::Login, Some(state("28P01"))),
                "{refused}"
            );
            assert!(!format!("{refused} {refused:?}").contains("wr0ng"), "{refused}");
            let refused = connect(&url.replace(&format!(":{PASSWORD}"), ""))
                .await
                .unwrap_err();
            assert_eq!((refused.kind, refused.sqlstate), (Kind::Login, None), "{refused}");
            assert!(refused.to_string().contains("PGPASSWORD"), "{refused}");
            let refused = config(&url.replace(&format!(":{PASSWORD}"), ""))
                .connect_client(&[])
                .await
                .unwrap_err();
            assert_eq!((refused.kind, refused.sqlstate), (Kind::Login, None), "{refused}");
            assert!(refused.to_string().contains("PGPASSWORD"), "{refused}");
            let refused = config(&url.replace(PASSWORD, "wr0ng-password"))
                .connect_client(&[])
                .await
                .unwrap_err();
            assert_eq!(
                (refused.kind, refused.sqlstate),
                (Kind::Login, Some(state("28P01"))),
                "{refused}"
            );
        }
        let url = cluster.url("postgres");
        let missing = config(&url).with_database("missing");
        let missing = Connection::connect(&missing, &Purpose::Sql, &[])
            .await
            .unwrap_err();
        assert_eq!(
            (missing.kind, missing.sqlstate),
            (Kind::Login, Some(SqlState::UNKNOWN_DATABASE)),
            "{missing}"
        );
        let missing = config(&url)
            .with_database("missing")
            .connect_client(&[])
            .await
            .unwrap_err();
        assert_eq!(
            (missing.kind, missing.sqlstate),
            (Kind::Login, Some(SqlState::UNKNOWN_DATABASE)),
            "{missing}"
        );
        let stranger = connect(&url.replace("postgres@", "stranger@")).await.unwrap_err();
        assert_eq!(stranger.kind, Kind::Login, "{stranger}");
    }
}

#[tokio::test]
async fn tls_follows_sslmode() {
    for major in [12, 18] {
        let cluster = with_logins(major);
        let files = cluster.tls().unwrap();
        let root = format!("sslrootcert={}", files.root_cert.display());
        let url = |role: &str, host: &str, more: &str| {
            format!(
                "postgres://{role}:{PASSWORD}@{host}:{}/postgres?{more}",
                cluster.port()
            )
        };
        for (host, more) in [
            ("127.0.0.1", "sslmode=prefer".to_owned()),
            ("127.0.0.1", "sslmode=require".to_owned()),
            ("127.0.0.1", format!("sslmode=require&{root}")),
            ("localhost", format!("sslmode=verify-ca&{root}")),
            ("localhost", format!("sslmode=verify-full&{root}")),
            (
                "127.0.0.1",
                format!("sslmode=verify-full&{root}&channel_binding=require"),
            ),
        ] {
            let url = url("scrammed", host, &more);
            let connection = connect(&url).await.unwrap();
            assert!(connection.is_encrypted(), "{more}");
            assert_eq!(connection.auth_method(), AuthMethod::ScramPlus, "{more}");
            let (client, _driver) = config(&url).connect_client(&[]).await.unwrap();
            let row = client
                .query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[])
                .await
                .unwrap();
            assert!(row.get::<_, bool>(0), "{more}");
        }
        let unbound = connect(&url(
            "scrammed",
            "127.0.0.1",
            "sslmode=require&channel_binding=disable",
        ))
        .await
        .unwrap();
        assert_eq!(unbound.auth_method(), AuthMethod::Scram);

        // A root that did not sign the server's certificate: the client's own certificate.
        let other = format!("sslrootcert={}", files.client_cert.display());
        for mode in ["require", "verify-ca", "verify-full"] {
            let refused = connect(&url("trusted", "localhost", &format!("sslmode={mode}&{other}")))
                .await
                .unwrap_err();
            assert_eq!(refused.kind, Kind::Tls, "{refused}");
        }
        let no_root = connect(&url("trusted", "localhost", "sslmode=verify-full"))
            .await
            .unwrap_err();
        assert!(no_root.to_string().contains("sslrootcert"), "{no_root}");

        // Client certificates; their role needs no password.
        let certificate = format!(
            "sslcert={}&sslkey={}",
            files.client_cert.display(),
            files.client_key.display()
        );
        let certified = connect(&url(
            "certified",
            "127.0.0.1",
            &format!("sslmode=require&{certificate}"),
        ))
        .await;
        assert!(certified.is_ok(), "{certified:?}");
        assert!(
            connect(&url("certified", "127.0.0.1", "sslmode=require"))
                .await
                .is_err()
        );

        // prefer goes on without TLS, allow with it, where pg_hba.conf wants it so.
        let plain = connect(&url("refuses_tls", "127.0.0.1", "sslmode=prefer"))
            .await
            .unwrap();
        assert!(!plain.is_encrypted());
        let encrypted = connect(&url("needs_tls", "127.0.0.1", "sslmode=allow"))
            .await
            .unwrap();
        assert!(encrypted.is_encrypted());
        let refused = connect(&url("needs_tls", "127.0.0.1", "sslmode=disable"))
            .await
            .unwrap_err();
        assert_eq!(
            refused.sqlstate,
            Some(SqlState::INVALID_AUTHORIZATION),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn tls_that_the_server_lacks_is_an_error_only_if_required() {
    let cluster = PgCluster::builder(18).start().unwrap();
    let url = |mode: &str| format!("{}?sslmode={mode}", cluster.url("postgres"));
    assert!(!connect(&url("prefer")).await.unwrap().is_encrypted());
    let refused = connect(&url("require")).await.unwrap_err();
    assert_eq!(refused.kind, Kind::Tls, "{refused}");
    // A Unix-domain socket is never encrypted.
    let socket = format!(
        "postgres://postgres@/postgres?host={}&port={}&sslmode=require",
        cluster.socket_dir().display(),
        cluster.port()
    );
    assert!(!connect(&socket).await.unwrap().is_encrypted());
}

#[tokio::test]
async fn libpq_programs_log_in_with_our_environment() {
    let cluster = PgCluster::builder(18)
        .password_auth(PasswordAuth::Scram)
        .start()
        .unwrap();
    let config = config(&format!("{}?options=-c%20geqo%3Doff", cluster.url("postgres")));
    let mut psql = postgres_tools().unwrap().command("psql");
    for name in LIBPQ_VARIABLES {
        psql.env_remove(name);
    }
    psql.envs(config.to_libpq_env())
        .args(["-XAtc", "SELECT current_user, current_setting('geqo')"]);
    let output = psql.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "postgres|off",
        "{output:?}"
    );
}
