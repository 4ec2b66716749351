use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn parse_env(url: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::parse_with(url, &|name| {
        env.iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned())
    })
}

fn parse(url: &str) -> Config {
    parse_env(url, &[("USER", "os")]).unwrap()
}

fn tcp(host: &str, port: u16) -> Endpoint {
    Endpoint::Tcp {
        host: host.into(),
        port,
    }
}

#[test]
fn a_full_url_is_understood() {
    let config = parse(
        "postgresql://ann:s%40cret@db.example:6000/shop?sslmode=verify-full&sslrootcert=/r.pem&sslcert=/c.pem&\
         sslkey=/k.pem&application_name=app&options=-c%20geqo%3Doff&target_session_attrs=primary&connect_timeout=7&\
         channel_binding=require",
    );
    assert_eq!(config.endpoints(), [tcp("db.example", 6000)]);
    assert_eq!(
        (config.user(), config.database(), config.application_name()),
        ("ann", "shop", "app")
    );
    assert_eq!(
        config.password_for(&config.endpoints()[0]).as_deref(),
        Some("s@cret")
    );
    assert_eq!(config.options(), Some("-c geqo=off"));
    assert_eq!(config.ssl_mode(), SslMode::VerifyFull);
    assert_eq!(config.ssl_root_cert(), Some(&RootCert::File("/r.pem".into())));
    assert_eq!(
        config.client_certificate(),
        Some((Path::new("/c.pem"), Some(Path::new("/k.pem"))))
    );
    assert_eq!(config.target_session_attrs(), TargetSessionAttrs::Primary);
    assert_eq!(config.channel_binding(), ChannelBinding::Require);
    assert_eq!(config.connect_timeout(), Some(Duration::from_secs(7)));
}

#[test]
fn defaults_are_those_of_libpq() {
    let config = parse("postgres://h");
    assert_eq!(config.endpoints(), [tcp("h", 5432)]);
    assert_eq!((config.user(), config.database()), ("os", "os"));
    assert_eq!(
        (config.ssl_mode(), config.ssl_root_cert()),
        (SslMode::Prefer, None)
    );
    assert_eq!(config.connect_timeout(), Some(DEFAULT_CONNECT_TIMEOUT));
    assert_eq!(config.application_name(), "cdc-sync");
    assert_eq!(parse("postgres://h/?connect_timeout=0").connect_timeout(), None);
    assert_eq!(
        parse("postgres://h/?connect_timeout=1").connect_timeout(),
        Some(Duration::from_secs(2))
    );
    assert!(
        parse_env("postgres://h/d", &[])
            .unwrap_err()
            .to_string()
            .contains("PGUSER")
    );
}

#[test]
fn several_hosts_pair_with_their_ports() {
    let config = parse("postgres://u@h1:1,[::1],h3:3/d");
    assert_eq!(config.endpoints(), [tcp("h1", 1), tcp("::1", 5432), tcp("h3", 3)]);
    let config = parse("postgres:///d?host=h1,h2&port=7");
    assert_eq!(config.endpoints(), [tcp("h1", 7), tcp("h2", 7)]);
    let error = parse_env("postgres:///d?host=h1,h2,h3&port=7,8", &[("USER", "u")])
        .unwrap_err()
        .to_string();
    assert!(error.contains("2 ports for 3 hosts"), "{error}");
}

#[test]
fn a_socket_directory_comes_encoded_or_as_a_parameter() {
    let want = Endpoint::Unix {
        directory: "/run/pg".into(),
        port: 5433,
    };
    for url in [
        "postgres://%2Frun%2Fpg:5433/d",
        "postgres:///d?host=/run/pg&port=5433",
    ] {
        assert_eq!(parse(url).endpoints(), std::slice::from_ref(&want));
    }
    assert_eq!(want.to_string(), "/run/pg/.s.PGSQL.5433");
    assert_eq!(
        parse("postgres:///d?host=/run/pg").redacted(),
        "postgres://os@/d?host=/run/pg&port=5432"
    );
}

#[test]
fn the_environment_fills_what_the_url_leaves_out() {
    let env = [
        ("PGHOST", "envhost"),
        ("PGPORT", "6543"),
        ("PGUSER", "envuser"),
        ("PGPASSWORD", "envpw"),
        ("PGDATABASE", "envdb"),
        ("PGSSLMODE", "require"),
        ("PGAPPNAME", "envapp"),
        ("PGOPTIONS", "-c a=b"),
        ("PGSSLROOTCERT", ""),
    ];
    let config = parse_env("postgres://", &env).unwrap();
    assert_eq!(config.endpoints(), [tcp("envhost", 6543)]);
    assert_eq!(
        (config.user(), config.database(), config.application_name()),
        ("envuser", "envdb", "envapp")
    );
    assert_eq!(
        config.password_for(&config.endpoints()[0]).as_deref(),
        Some("envpw")
    );
    assert_eq!(
        (config.ssl_mode(), config.options()),
        (SslMode::Require, Some("-c a=b"))
    );
    assert_eq!(config.ssl_root_cert(), None);

    let config = parse_env("postgres://u:p@h/d?sslmode=disable", &env).unwrap();
    assert_eq!(
        (config.user(), config.database(), config.ssl_mode()),
        ("u", "d", SslMode::Disable)
    );
    // The port is a setting of its own, so it still comes from the environment.
    assert_eq!(config.endpoints(), [tcp("h", 6543)]);
}

#[test]
fn service_goes_before_environment_and_after_the_url() {
    let home = tempfile::tempdir().unwrap();
    fs::write(
        home.path().join(".pg_service.conf"),
        "[prod]\nhost=svc\nport=1234\nuser=svcuser\n",
    )
    .unwrap();
    let home = home.path().to_str().unwrap();
    let env = [
        ("HOME", home),
        ("PGSERVICE", "prod"),
        ("PGHOST", "envhost"),
        ("PGDATABASE", "envdb"),
    ];
    let config = parse_env("postgres://me@/", &env).unwrap();
    assert_eq!(config.endpoints(), [tcp("svc", 1234)]);
    assert_eq!((config.user(), config.database()), ("me", "envdb"));
}

#[test]
fn files_in_the_home_directory_are_found() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join(".postgresql");
    fs::create_dir(&dir).unwrap();
    for name in ["root.crt", "postgresql.crt", "postgresql.key"] {
        fs::write(dir.join(name), "").unwrap();
    }
    let passfile = home.path().join(".pgpass");
    fs::write(&passfile, "h:5432:d:u:pw1\nlocalhost:5432:*:u:pw2\n").unwrap();
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
    let env = [("HOME", home.path().to_str().unwrap())];
    let config = parse_env("postgres://u@h/d", &env).unwrap();
    assert_eq!(
        config.ssl_root_cert(),
        Some(&RootCert::File(dir.join("root.crt")))
    );
    assert_eq!(
        config.client_certificate(),
        Some((
            dir.join("postgresql.crt").as_path(),
            Some(dir.join("postgresql.key").as_path())
        ))
    );
    assert_eq!(
        config.password_for(&config.endpoints()[0]).as_deref(),
        Some("pw1")
    );
    assert_eq!(
        config.with_database("other").password_for(&config.endpoints()[0]),
        None
    );
    let socket = parse_env("postgres://u@/d?host=/var/run/postgresql", &env).unwrap();
    assert_eq!(
        socket.password_for(&socket.endpoints()[0]).as_deref(),
        Some("pw2")
    );
}

#[test]
fn wrong_values_name_the_right_ones() {
    let wrong = |url: &str| parse_env(url, &[("USER", "u")]).unwrap_err().to_string();
    assert!(wrong("postgres://h/d?sslmode=verify_ca").contains("verify-ca"));
    assert!(wrong("postgres://h/d?target_session_attrs=master").contains("read-write"));
    assert!(wrong("postgres://h/d?connect_timeout=soon").contains("seconds"));
    assert!(wrong("postgres://h/d?sslrootcert=system&sslmode=require").contains("verify-full"));
    assert!(wrong("mysql://h/d").contains("postgres://"));
    for url in [
        "postgres://u:secret/x",
        "postgres://h:0/d",
        "postgres://h:65536/d",
    ] {
        let error = wrong(url);
        assert!(error.contains("65535") && !error.contains("secret"), "{error}");
    }
    assert_eq!(
        parse("postgres://h/d?sslrootcert=system").ssl_mode(),
        SslMode::VerifyFull
    );
}

#[test]
fn a_nul_is_refused_wherever_it_comes_from() {
    for (url, parameter) in [
        ("postgres://u\0x@h/d", "user"),
        ("postgres://u:secret\0x@h/d", "password"),
        ("postgres://h\0x/d", "host"),
        ("postgres://h/d\0x", "dbname"),
        ("postgres://h/d?options=-c a=b\0x", "options"),
    ] {
        let error = parse_env(url, &[("USER", "os")]).unwrap_err().to_string();
        assert_eq!(error, format!("{parameter} must not hold a NUL character"));
    }
    let folder = tempfile::tempdir().unwrap();
    let services = folder.path().join("services");
    fs::write(&services, "[shop]\nhost=h\0x\n").unwrap();
    let env = [("USER", "os"), ("PGSERVICEFILE", services.to_str().unwrap())];
    let error = parse_env("postgres:///d?service=shop", &env)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "host must not hold a NUL character");
}

#[test]
fn what_is_shown_is_a_url_of_the_same() {
    for url in [
        "postgres://u@a%40b%3Fc=%25:7/d",
        "postgres://u@[fe80::1%25eth0],h/d",
        "postgres://u%2F:p@h/d%2Fe?host=/run/pg,h&port=5,6",
    ] {
        let (config, again) = (parse(url), parse(&parse(url).redacted()));
        assert_eq!(again.endpoints(), config.endpoints(), "{}", config.redacted());
        assert_eq!(
            (again.user(), again.database()),
            (config.user(), config.database())
        );
    }
}

#[test]
fn the_password_is_never_shown() {
    let config = parse("postgres://u:topsecret@h1:1,h2:2/d?options=-c%20my.key%3Dtopsecret&sslmode=require");
    let shown = format!("{config:?} {}", config.redacted());
    assert!(!shown.contains("topsecret"), "{shown}");
    assert_eq!(config.redacted(), "postgres://u@h1:1,h2:2/d?sslmode=require");
    let again = parse(&config.redacted());
    assert_eq!(
        (again.endpoints(), again.user(), again.database()),
        (config.endpoints(), "u", "d")
    );
}

#[test]
fn libpq_programs_get_the_same_login() {
    let config = parse("postgres://u:pw@h1:1,h2:2/d?sslmode=verify-ca&sslrootcert=/r.pem&connect_timeout=9");
    let env: BTreeMap<String, String> = config.to_libpq_env().into_iter().collect();
    for (name, value) in [
        ("PGHOST", "h1,h2"),
        ("PGPORT", "1,2"),
        ("PGUSER", "u"),
        ("PGPASSWORD", "pw"),
        ("PGDATABASE", "d"),
        ("PGSSLMODE", "verify-ca"),
        ("PGSSLROOTCERT", "/r.pem"),
        ("PGCONNECT_TIMEOUT", "9"),
    ] {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(env.keys().all(|name| LIBPQ_VARIABLES.contains(&name.as_str())));
    // Reading them back gives the same configuration.
    let again = Config::parse_with("postgres://", &|name| env.get(name).cloned()).unwrap();
    assert_eq!(
        again.with_application_name("x"),
        config.with_application_name("x")
    );
}
