//! The connection layer against real servers: logins, TLS, session settings, pipeline, COPY, cancel.

mod encryption;
mod login;
mod places;
mod session;
mod work;

use cdc_postgres::config::Config;
use cdc_postgres::error::{PgError, SqlState};
use cdc_postgres::wire::{Connection, Purpose, ReplicationSettings};
use testbed::PgCluster;
use testbed::postgres::{Builder, PASSWORD};

/// A configuration that takes nothing from the environment of the test.
fn config(url: &str) -> Config {
    Config::parse_with(url, &|_| None).unwrap()
}

/// The ways in which this crate connects.
const WAYS: [Way; 3] = [Way::Sql, Way::Replication, Way::Client];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// our own connection for SQL
    Sql,
    /// our own connection for the log
    Replication,
    /// tokio-postgres over our stream
    Client,
}

impl Way {
    /// Connects; whether the connection is encrypted, its user, its database and its server's port.
    async fn connect(self, config: &Config) -> Result<Landed, PgError> {
        let sql = "SELECT ssl::text, current_user::text, current_database()::text, current_setting('port') \
                   FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let texts: Vec<String> = if self == Way::Client {
            let (client, _driver) = config.connect_client(&[]).await?;
            let row = client.query_one(sql, &[]).await?;
            (0..4).map(|column| row.get(column)).collect()
        } else {
            let purpose = match self {
                Way::Replication => Purpose::Replication(ReplicationSettings::default()),
                _ => Purpose::Sql,
            };
            let mut connection = Connection::connect(config, &purpose, &[]).await?;
            let results = connection.simple_query(sql).await?;
            let row = &results[0].rows[0];
            (0..4)
                .map(|column| row.text(column).unwrap().unwrap().to_owned())
                .collect()
        };
        Ok(Landed {
            encrypted: texts[0] == "true",
            user: texts[1].clone(),
            database: texts[2].clone(),
            port: texts[3].parse().unwrap(),
        })
    }
}

/// Where a connection came out.
#[derive(Debug, PartialEq, Eq)]
struct Landed {
    encrypted: bool,
    user: String,
    database: String,
    port: u16,
}

async fn connect(url: &str) -> Result<Connection, PgError> {
    Connection::connect(&config(url), &Purpose::Sql, &[]).await
}

/// The first value of a query.
async fn value(connection: &mut Connection, sql: &str) -> String {
    let results = connection.simple_query(sql).await.unwrap();
    results[0].rows[0].text(0).unwrap().unwrap_or("NULL").to_owned()
}

fn state(code: &str) -> SqlState {
    SqlState::new(code).unwrap()
}

/// A server with a role for each kind of login.
fn with_logins(major: u16) -> PgCluster {
    let mut builder: Builder = PgCluster::builder(major)
        .ssl()
        .setting("password_encryption", "scram-sha-256")
        .hba("hostssl all needs_tls 127.0.0.1/32 scram-sha-256")
        .hba("hostnossl all needs_tls 127.0.0.1/32 reject")
        .hba("hostnossl all refuses_tls 127.0.0.1/32 trust")
        .hba("host all refuses_tls 127.0.0.1/32 reject")
        .hba("hostssl all certified 127.0.0.1/32 cert map=certified");
    for (role, method) in [
        ("trusted", "trust"),
        ("hashed", "md5"),
        ("clear", "password"),
        ("scrammed", "scram-sha-256"),
    ] {
        builder = builder.hba(&format!("host all {role} 127.0.0.1/32 {method}"));
        builder = builder.hba(&format!("host replication {role} 127.0.0.1/32 {method}"));
    }
    let mut cluster = builder.start().unwrap();
    let ident = cluster.data_dir().join("pg_ident.conf");
    std::fs::write(ident, "certified postgres certified\n").unwrap();
    let sql = format!(
        "CREATE ROLE trusted LOGIN; CREATE ROLE refuses_tls LOGIN; CREATE ROLE certified LOGIN;
         CREATE ROLE clear LOGIN PASSWORD '{PASSWORD}'; CREATE ROLE scrammed LOGIN REPLICATION PASSWORD '{PASSWORD}';
         CREATE ROLE needs_tls LOGIN PASSWORD '{PASSWORD}';
         SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN PASSWORD '{PASSWORD}'; SELECT pg_reload_conf();"
    );
    cluster.sql("postgres", &sql).unwrap();
    assert!(cluster.is_running());
    cluster
}
