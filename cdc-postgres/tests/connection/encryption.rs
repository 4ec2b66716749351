//! Each `sslmode` against each kind of server, by every way in which this crate connects.

use cdc_postgres::error::{Kind, SqlState};
use testbed::PgCluster;
use testbed::postgres::{ServerCertificate, TlsFiles};

use crate::{WAYS, Way, config};

const MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// What comes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Plain,
    Encrypted,
    /// TLS fails; a part of the message, and one of the hint
    Tls(&'static str, &'static str),
    /// the server refuses the login; a part of the message
    Refused(&'static str),
}

use Outcome::{Encrypted, Plain, Refused, Tls};

/// A row of the matrix: a server, the files that the client gives, and what comes of each mode in the order of
/// [`MODES`].
struct Situation {
    what: &'static str,
    server: Server,
    root: Option<fn(&TlsFiles) -> &std::path::Path>,
    client: Option<fn(&TlsFiles) -> [&std::path::Path; 2]>,
    role: &'static str,
    outcomes: [Outcome; 6],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    WithoutTls,
    With(ServerCertificate),
}

const NO_TLS: Outcome = Tls("does not support TLS", "ssl = on");
const NO_ROOT: Outcome = Tls("there is no root certificate", "sslrootcert=");
const WRONG_CA: Outcome = Tls("UnknownIssuer", "does not hold the issuer's certificate");
const WRONG_NAME: Outcome = Tls("not valid for name", "subjectAltName");
const EXPIRED: Outcome = Tls("expired", "ssl_cert_file");
const NO_CERTIFICATE: Outcome = Refused("valid client certificate");
const STRANGER: Outcome = Tls("refuses our client certificate", "ssl_ca_file");
const NOT_WITHOUT_TLS: Outcome = Refused("pg_hba.conf");

const SITUATIONS: &[Situation] = &[
    Situation {
        what: "a server without TLS",
        server: Server::WithoutTls,
        root: None,
        client: None,
        role: "postgres",
        outcomes: [Plain, Plain, Plain, NO_TLS, NO_TLS, NO_TLS],
    },
    Situation {
        what: "the right authority",
        server: Server::With(ServerCertificate::Valid),
        root: Some(|files| &files.root_cert),
        client: None,
        role: "postgres",
        outcomes: [Plain, Plain, Encrypted, Encrypted, Encrypted, Encrypted],
    },
    Situation {
        what: "no authority given",
        server: Server::With(ServerCertificate::Valid),
        root: None,
        client: None,
        role: "postgres",
        outcomes: [Plain, Plain, Encrypted, Encrypted, NO_ROOT, NO_ROOT],
    },
    Situation {
        what: "another authority",
        server: Server::With(ServerCertificate::Valid),
        root: Some(|files| &files.other_root_cert),
        client: None,
        role: "postgres",
        outcomes: [Plain, Plain, Encrypted, WRONG_CA, WRONG_CA, WRONG_CA],
    },
    Situation {
        what: "a certificate for another host",
        server: Server::With(ServerCertificate::OtherHost),
        root: Some(|files| &files.root_cert),
        client: None,
        role: "postgres",
        outcomes: [Plain, Plain, Encrypted, Encrypted, Encrypted, WRONG_NAME],
    },
    Situation {
        what: "an expired certificate",
        server: Server::With(ServerCertificate::Expired),
        root: Some(|files| &files.root_cert),
        client: None,
        role: "postgres",
        outcomes: [Plain, Plain, Encrypted, EXPIRED, EXPIRED, EXPIRED],
    },
    Situation {
        what: "an expired certificate that nobody checks",
        server: Server::With(ServerCertificate::Expired),
        root: None,
        client: None,
        role: "postgres",
        outcomes: [Plain, Plain, Encrypted, Encrypted, NO_ROOT, NO_ROOT],
    },
    Situation {
        what: "a client certificate, as the server demands",
        server: Server::With(ServerCertificate::Valid),
        root: Some(|files| &files.root_cert),
        client: Some(|files| [&files.client_cert, &files.client_key]),
        role: "certified",
        outcomes: [
            NOT_WITHOUT_TLS,
            Encrypted,
            Encrypted,
            Encrypted,
            Encrypted,
            Encrypted,
        ],
    },
    Situation {
        what: "no client certificate, though the server demands one",
        server: Server::With(ServerCertificate::Valid),
        root: Some(|files| &files.root_cert),
        client: None,
        role: "certified",
        outcomes: [
            NOT_WITHOUT_TLS,
            NOT_WITHOUT_TLS,
            NO_CERTIFICATE,
            NO_CERTIFICATE,
            NO_CERTIFICATE,
            NO_CERTIFICATE,
        ],
    },
    Situation {
        what: "a client certificate of an authority that the server does not know",
        server: Server::With(ServerCertificate::Valid),
        root: Some(|files| &files.root_cert),
        client: Some(|files| [&files.stranger_cert, &files.stranger_key]),
        role: "certified",
        outcomes: [
            NOT_WITHOUT_TLS,
            NOT_WITHOUT_TLS,
            STRANGER,
            STRANGER,
            STRANGER,
            STRANGER,
        ],
    },
];

/// A server with a role that needs a client certificate.
fn start(major: u16, server: Server) -> PgCluster {
    let mut builder = PgCluster::builder(major)
        .hba("hostssl all certified 127.0.0.1/32 cert map=certified")
        .hba("host all certified 127.0.0.1/32 reject");
    if let Server::With(certificate) = server {
        builder = builder.ssl_with(certificate);
    }
    let cluster = match server {
        // Lines for TLS are refused where there is none.
        Server::WithoutTls => PgCluster::builder(major).start().unwrap(),
        Server::With(_) => builder.start().unwrap(),
    };
    std::fs::write(
        cluster.data_dir().join("pg_ident.conf"),
        "certified postgres certified\n",
    )
    .unwrap();
    cluster
        .sql(
            "postgres",
            "CREATE ROLE certified LOGIN REPLICATION; SELECT pg_reload_conf()",
        )
        .unwrap();
    cluster
}

async fn try_mode(cluster: &PgCluster, situation: &Situation, mode: &str, way: Way) -> Result<(), String> {
    let mut url = format!(
        "postgres://{}@localhost:{}/postgres?sslmode={mode}",
        situation.role,
        cluster.port()
    );
    if let Some(files) = cluster.tls() {
        if let Some(root) = situation.root {
            url.push_str(&format!("&sslrootcert={}", root(files).display()));
        }
        if let Some(client) = situation.client {
            let [cert, key] = client(files).map(|path| path.display().to_string());
            url.push_str(&format!("&sslcert={cert}&sslkey={key}"));
        }
    }
    let place = MODES.iter().position(|known| *known == mode).unwrap();
    let expected = situation.outcomes[place];
    let came = way.connect(&config(&url)).await;
    let fits = match (&came, expected) {
        (Ok(landed), Plain) => !landed.encrypted,
        (Ok(landed), Encrypted) => landed.encrypted,
        (Err(error), Tls(message, hint)) => {
            let hinted = error.hint.as_deref().is_some_and(|text| text.contains(hint));
            // The exit code that users see: 12.
            let kind = cdc_core::Error::from(error.clone()).kind();
            (error.kind, kind) == (Kind::Tls, cdc_core::Kind::Unreachable)
                && error.message.contains(message)
                && hinted
        }
        (Err(error), Refused(message)) => {
            let refused = error.kind == Kind::Login && error.is(SqlState::INVALID_AUTHORIZATION);
            let kind = cdc_core::Error::from(error.clone()).kind();
            refused && kind == cdc_core::Kind::Login && error.message.contains(message)
        }
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(format!(
        "{} {mode} {way:?}: expected {expected:?}, came to {came:?}",
        situation.what
    ))
}

#[tokio::test]
async fn each_mode_against_each_server() {
    for major in [12, 18] {
        let mut wrong = Vec::new();
        let mut servers: Vec<(Server, PgCluster)> = Vec::new();
        for situation in SITUATIONS {
            if !servers.iter().any(|(server, _)| *server == situation.server) {
                servers.push((situation.server, start(major, situation.server)));
            }
            let (_, cluster) = servers
                .iter()
                .find(|(server, _)| *server == situation.server)
                .unwrap();
            for mode in MODES {
                for way in WAYS {
                    wrong.extend(try_mode(cluster, situation, mode, way).await.err());
                }
            }
        }
        assert!(wrong.is_empty(), "{major}:\n{}", wrong.join("\n"));
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    use std::os::unix::fs::PermissionsExt;

    let cluster = start(16, Server::With(ServerCertificate::Valid));
    let files = cluster.tls().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("open.key");
    std::fs::copy(&files.client_key, &open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let empty = folder.path().join("empty.crt");
    std::fs::write(&empty, "").unwrap();
    let cert = files.client_cert.display();
    let (key, open, empty) = (files.client_key.display(), open.display(), empty.display());
    for (more, parts) in [
        (
            "sslrootcert=/nowhere/root.crt".to_owned(),
            ["sslrootcert", "/nowhere/root.crt"],
        ),
        (
            format!("sslrootcert={empty}"),
            ["sslrootcert", "no PEM certificate"],
        ),
        (format!("sslcert={cert}"), ["sslcert", "without sslkey"]),
        (
            format!("sslcert=/nowhere/c.crt&sslkey={key}"),
            ["sslcert", "/nowhere/c.crt"],
        ),
        (
            format!("sslcert={cert}&sslkey=/nowhere/c.key"),
            ["sslkey", "/nowhere/c.key"],
        ),
        (
            format!("sslcert={cert}&sslkey={open}"),
            ["others may read", "chmod 0600"],
        ),
    ] {
        for way in WAYS {
            let url = format!("{}?sslmode=require&{more}", cluster.url("postgres"));
            let error = way.connect(&config(&url)).await.unwrap_err();
            assert_eq!(error.kind, Kind::Tls, "{more} {way:?} {error}");
            for part in parts {
                assert!(error.to_string().contains(part), "{more} {way:?} {error}");
            }
        }
    }
}
