//! Where the server, the login and the password come from: sockets, encoded URLs, variables, password and service
//! files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use cdc_postgres::config::Config;
use cdc_postgres::error::Kind;
use testbed::PgCluster;
use testbed::postgres::{PASSWORD, PasswordAuth};

use crate::{Landed, WAYS, Way, config};

/// What no name should hold and every name may.
const USER: &str = "us er@:/?#%&+'\"\\ü";
const WORD: &str = "pa:ss@/?#%&+ '\"\\word";
const DATABASE: &str = "d b@:/?#%&+'\"\\ü";

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// A server that asks for a password, with the odd user and the odd database.
fn odd() -> PgCluster {
    let cluster = PgCluster::builder(16)
        .password_auth(PasswordAuth::Scram)
        .start()
        .unwrap();
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let create = format!(
        "CREATE ROLE {} LOGIN REPLICATION PASSWORD '{}'",
        quoted(USER),
        WORD.replace('\'', "''")
    );
    cluster.sql("postgres", &create).unwrap();
    cluster.create_database(DATABASE).unwrap();
    cluster
}

fn environment(variables: &[(&str, String)]) -> impl Fn(&str) -> Option<String> {
    move |name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.clone())
    }
}

/// Connects in every way and expects to be the odd user in the odd database.
async fn lands(cluster: &PgCluster, config: &Config) {
    for way in WAYS {
        let landed = way.connect(config).await.unwrap();
        let expected = Landed {
            encrypted: false,
            user: USER.into(),
            database: DATABASE.into(),
            port: cluster.port(),
        };
        assert_eq!(landed, expected, "{way:?}");
    }
}

#[tokio::test]
async fn any_character_can_stand_in_a_url_a_variable_or_a_file() {
    let cluster = odd();
    let port = cluster.port();
    let (user, word, database) = (encoded(USER), encoded(WORD), encoded(DATABASE));
    lands(
        &cluster,
        &config(&format!("postgres://{user}:{word}@127.0.0.1:{port}/{database}")),
    )
    .await;
    lands(
        &cluster,
        &config(&format!(
            "postgres:///?host=127.0.0.1&port={port}&user={user}&password={word}&dbname={database}"
        )),
    )
    .await;

    let mut variables = vec![
        ("PGHOST", "127.0.0.1".to_owned()),
        ("PGPORT", port.to_string()),
        ("PGUSER", USER.to_owned()),
        ("PGPASSWORD", WORD.to_owned()),
        ("PGDATABASE", DATABASE.to_owned()),
        ("PGSSLMODE", "disable".to_owned()),
    ];
    let from_variables = Config::parse_with("postgres://", &environment(&variables)).unwrap();
    lands(&cluster, &from_variables).await;

    // The password file, with its escapes; the lines before do not fit.
    let folder = tempfile::tempdir().unwrap();
    let escaped = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    let passfile = file(
        &folder,
        "pgpass",
        0o600,
        &format!(
            "# a remark\n127.0.0.1:1:*:*:wrong\n*:{port}:other:*:wrong\n127.0.0.1:{port}:{}:{}:{}\n",
            escaped(DATABASE),
            escaped(USER),
            escaped(WORD)
        ),
    );
    variables.retain(|(name, _)| *name != "PGPASSWORD");
    variables.push(("PGPASSFILE", passfile.display().to_string()));
    let from_file = Config::parse_with("postgres://", &environment(&variables)).unwrap();
    lands(&cluster, &from_file).await;
    let by_parameter = format!(
        "postgres://{user}@127.0.0.1:{port}/{database}?passfile={}",
        passfile.display()
    );
    lands(&cluster, &config(&by_parameter)).await;

    // The service file gives all but the password, and what the URL says comes before it.
    let services = file(
        &folder,
        "services",
        0o644,
        &format!(
            "[other]\nport=1\n[odd]\nhost=127.0.0.1\nport={port}\nuser={USER}\ndbname={DATABASE}\npassfile={}\n",
            passfile.display()
        ),
    );
    let by_service = [
        ("PGSERVICEFILE", services.display().to_string()),
        ("PGUSER", "nobody".to_owned()),
    ];
    let named = Config::parse_with("postgres://?service=odd", &environment(&by_service)).unwrap();
    lands(&cluster, &named).await;
    let mut by_variable = by_service.to_vec();
    by_variable.push(("PGSERVICE", "odd".to_owned()));
    let named = Config::parse_with("postgres://", &environment(&by_variable)).unwrap();
    lands(&cluster, &named).await;
}

fn file(folder: &tempfile::TempDir, name: &str, mode: u32, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

#[tokio::test]
async fn a_password_file_that_others_may_read_is_as_good_as_none() {
    let cluster = odd();
    let folder = tempfile::tempdir().unwrap();
    let line = format!("*:*:*:*:{PASSWORD}\n");
    for (mode, works) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
        let passfile = file(&folder, &format!("pgpass{mode:o}"), mode, &line);
        let url = format!(
            "postgres://postgres@127.0.0.1:{}/postgres?passfile={}",
            cluster.port(),
            passfile.display()
        );
        for way in WAYS {
            let came = way.connect(&config(&url)).await;
            assert_eq!(came.is_ok(), works, "{mode:o} {way:?} {came:?}");
            if let Err(error) = came {
                assert_eq!(error.kind, Kind::Login, "{error}");
                assert!(error.to_string().contains("chmod 0600"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn sockets_are_found_by_their_folder() {
    let cluster = odd();
    let (folder, port) = (cluster.socket_dir().display().to_string(), cluster.port());
    for url in [
        format!("postgres://postgres@/postgres?host={folder}&port={port}"),
        format!("postgres://postgres@{}:{port}/postgres", encoded(&folder)),
        // The first server is down, the second is a socket; encryption is not asked for on it.
        format!("postgres://postgres@/postgres?host=127.0.0.1,{folder}&port=1,{port}&sslmode=verify-full"),
    ] {
        for way in WAYS {
            let landed = way.connect(&config(&url)).await.unwrap();
            assert_eq!((landed.port, landed.encrypted), (port, false), "{url} {way:?}");
        }
    }
    let nowhere = format!("postgres://postgres@/postgres?host=/nowhere&port={port}");
    for way in WAYS {
        let error = way.connect(&config(&nowhere)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Connection, "{error}");
        assert!(
            error.to_string().contains(&format!("/nowhere/.s.PGSQL.{port}")),
            "{error}"
        );
    }
}

/// The SASL library counts no further than 100,000.
#[tokio::test]
async fn too_many_scram_iterations_are_named() {
    let cluster = PgCluster::builder(16)
        .password_auth(PasswordAuth::Scram)
        .start()
        .unwrap();
    for (role, count) in [("slow", 100_000), ("slower", 100_001)] {
        let create = format!(
            "SET scram_iterations = {count}; CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{PASSWORD}'"
        );
        cluster.sql("postgres", &create).unwrap();
    }
    let url = |role: &str| {
        format!(
            "postgres://{role}:{PASSWORD}@127.0.0.1:{}/postgres?connect_timeout=300",
            cluster.port()
        )
    };
    // Counting takes long in a program that was not optimised.
    Way::Sql.connect(&config(&url("slow"))).await.unwrap();
    for way in WAYS {
        let error = way.connect(&config(&url("slower"))).await.unwrap_err();
        assert_eq!(
            (error.kind, error.sqlstate),
            (Kind::Login, None),
            "{way:?} {error}"
        );
        let said = error.to_string();
        assert!(
            said.contains("iteration") && said.contains("scram_iterations"),
            "{way:?} {said}"
        );
    }
}
