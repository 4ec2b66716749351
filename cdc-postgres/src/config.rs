//! Where a server is and how to log in: URLs with libpq's parameters, `PG*` variables, service and password files.

mod choices;
mod endpoint;
mod sources;
mod url;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::choices::{ChannelBinding, SslMode, TargetSessionAttrs};
use self::choices::{choice, name_of};
pub use self::endpoint::Endpoint;
use self::endpoint::{DEFAULT_SOCKETS, endpoints};
use self::sources::{Env, variable};

/// Time allowed for one attempt to reach and log in to one server when `connect_timeout` is not given.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The variables by which a libpq program (`pg_dump`, `pg_restore`, `psql`) finds its server.
///
/// Remove them all from a child's environment before adding those of [`Config::to_libpq_env`]: a `PGSERVICE` left
/// over would win over them.
pub const LIBPQ_VARIABLES: &[&str] = &[
    "PGAPPNAME",
    "PGCHANNELBINDING",
    "PGCLIENTENCODING",
    "PGCONNECT_TIMEOUT",
    "PGDATABASE",
    "PGHOST",
    "PGHOSTADDR",
    "PGOPTIONS",
    "PGPASSFILE",
    "PGPASSWORD",
    "PGPORT",
    "PGREQUIREAUTH",
    "PGREQUIRESSL",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGSSLCERT",
    "PGSSLCERTMODE",
    "PGSSLKEY",
    "PGSSLMODE",
    "PGSSLNEGOTIATION",
    "PGSSLROOTCERT",
    "PGTARGETSESSIONATTRS",
    "PGUSER",
];

/// A connection parameter that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Parameter {
    ApplicationName,
    ChannelBinding,
    ConnectTimeout,
    Dbname,
    Host,
    Options,
    Passfile,
    Password,
    Port,
    Service,
    Sslcert,
    Sslkey,
    Sslmode,
    Sslrootcert,
    TargetSessionAttrs,
    User,
}

impl Parameter {
    /// Parameter, its name in a URL, and its environment variable.
    const ALL: &'static [(Parameter, &'static str, &'static str)] = &[
        (Parameter::ApplicationName, "application_name", "PGAPPNAME"),
        (Parameter::ChannelBinding, "channel_binding", "PGCHANNELBINDING"),
        (Parameter::ConnectTimeout, "connect_timeout", "PGCONNECT_TIMEOUT"),
        (Parameter::Dbname, "dbname", "PGDATABASE"),
        (Parameter::Host, "host", "PGHOST"),
        (Parameter::Options, "options", "PGOPTIONS"),
        (Parameter::Passfile, "passfile", "PGPASSFILE"),
        (Parameter::Password, "password", "PGPASSWORD"),
        (Parameter::Port, "port", "PGPORT"),
        (Parameter::Service, "service", "PGSERVICE"),
        (Parameter::Sslcert, "sslcert", "PGSSLCERT"),
        (Parameter::Sslkey, "sslkey", "PGSSLKEY"),
        (Parameter::Sslmode, "sslmode", "PGSSLMODE"),
        (Parameter::Sslrootcert, "sslrootcert", "PGSSLROOTCERT"),
        (
            Parameter::TargetSessionAttrs,
            "target_session_attrs",
            "PGTARGETSESSIONATTRS",
        ),
        (Parameter::User, "user", "PGUSER"),
    ];

    fn named(name: &str) -> Option<Parameter> {
        Parameter::ALL
            .iter()
            .find(|(_, known, _)| *known == name)
            .map(|(parameter, _, _)| *parameter)
    }

    fn name(self) -> &'static str {
        Parameter::ALL
            .iter()
            .find(|(parameter, _, _)| *parameter == self)
            .map_or("?", |(_, name, _)| name)
    }
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    message: String,
}

impl ConfigError {
    fn new(message: impl Into<String>) -> ConfigError {
        ConfigError {
            message: message.into(),
        }
    }

    fn unknown_parameter(name: &str, place: &str) -> ConfigError {
        let known: Vec<&str> = Parameter::ALL.iter().map(|(_, known, _)| *known).collect();
        ConfigError::new(format!(
            "unknown connection parameter {name:?} {place}; known are {}",
            known.join(", ")
        ))
    }

    fn value(parameter: Parameter, value: &str, expected: &str) -> ConfigError {
        ConfigError::new(format!("{} is {value:?}; expected {expected}", parameter.name()))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Where the trusted root certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCert {
    /// A PEM file.
    File(PathBuf),
    /// The operating system's store (`sslrootcert=system`).
    System,
}

/// A password: never displayed.
#[derive(Clone, PartialEq, Eq)]
struct Secret(String);

/// Everything needed to connect to one database of one server (or the first fitting of several servers).
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    endpoints: Vec<Endpoint>,
    user: String,
    password: Option<Secret>,
    passfile: Option<PathBuf>,
    database: String,
    application_name: String,
    options: Option<String>,
    ssl_mode: SslMode,
    ssl_root_cert: Option<RootCert>,
    ssl_cert: Option<PathBuf>,
    ssl_key: Option<PathBuf>,
    channel_binding: ChannelBinding,
    target_session_attrs: TargetSessionAttrs,
    connect_timeout: Option<Duration>,
}

impl Config {
    /// Reads a `postgres://` or `postgresql://` URL; what it leaves out comes from the service file, the process's
    /// `PG*` variables and libpq's defaults, in this order.
    pub fn parse(url: &str) -> Result<Config, ConfigError> {
        Config::parse_with(url, &|name| match name {
            "USER" => sources::system_user().or_else(|| std::env::var("USER").ok()),
            _ => std::env::var(name).ok(),
        })
    }

    /// [`Config::parse`] with another environment.
    pub fn parse_with(url: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        let mut settings: BTreeMap<Parameter, String> = url::parse(url)?.into_iter().collect();
        let service = settings
            .get(&Parameter::Service)
            .cloned()
            .or_else(|| variable(env, "PGSERVICE"));
        if let Some(service) = service {
            for (parameter, value) in sources::service(&service, env)? {
                settings.entry(parameter).or_insert(value);
            }
        }
        for (parameter, _, name) in Parameter::ALL {
            if let Some(value) = variable(env, name) {
                settings.entry(*parameter).or_insert(value);
            }
        }
        // An empty value means "not given", as in libpq.
        settings.retain(|_, value| !value.is_empty());
        // Texts of the protocol, file names and the environment of a libpq program end at one.
        if let Some((parameter, _)) = settings.iter().find(|(_, value)| value.contains('\0')) {
            let name = parameter.name();
            return Err(ConfigError::new(format!("{name} must not hold a NUL character")));
        }
        Config::from_settings(settings, env)
    }

    fn from_settings(mut given: BTreeMap<Parameter, String>, env: Env<'_>) -> Result<Config, ConfigError> {
        let user = given
            .remove(&Parameter::User)
            .or_else(|| variable(env, "USER"))
            .ok_or_else(|| {
                ConfigError::new(
                    "no user name: give one in the URL (postgres://user@host/database) or in PGUSER",
                )
            })?;
        let home = |name: &str| sources::home_file(env, name);
        let mut path = |parameter| given.remove(&parameter).map(PathBuf::from);
        let (ssl_cert, ssl_key) = match (path(Parameter::Sslcert), path(Parameter::Sslkey)) {
            (None, None) => {
                let pair = home(".postgresql/postgresql.crt").zip(home(".postgresql/postgresql.key"));
                pair.map_or((None, None), |(cert, key)| (Some(cert), Some(key)))
            }
            (Some(cert), key) => (Some(cert), key.or_else(|| home(".postgresql/postgresql.key"))),
            (cert, key) => (cert.or_else(|| home(".postgresql/postgresql.crt")), key),
        };
        let passfile = path(Parameter::Passfile).or_else(|| home(".pgpass"));
        let ssl_root_cert = match given.remove(&Parameter::Sslrootcert) {
            Some(system) if system == "system" => Some(RootCert::System),
            Some(file) => Some(RootCert::File(file.into())),
            None => home(".postgresql/root.crt").map(RootCert::File),
        };
        let ssl_mode = choice(&mut given, Parameter::Sslmode, SslMode::ALL)?;
        // The system's store says nothing about who runs the server unless its name is checked too.
        let ssl_mode = match (ssl_mode, &ssl_root_cert) {
            (None, Some(RootCert::System)) => SslMode::VerifyFull,
            (Some(weak), Some(RootCert::System)) if weak != SslMode::VerifyFull => {
                return Err(ConfigError::new(format!(
                    "sslmode={} is too weak for sslrootcert=system; use sslmode=verify-full",
                    name_of(SslMode::ALL, weak)
                )));
            }
            (mode, _) => mode.unwrap_or(SslMode::Prefer),
        };
        Ok(Config {
            endpoints: endpoints(&mut given)?,
            password: given.remove(&Parameter::Password).map(Secret),
            passfile,
            database: given.remove(&Parameter::Dbname).unwrap_or_else(|| user.clone()),
            user,
            application_name: given
                .remove(&Parameter::ApplicationName)
                .unwrap_or_else(|| "cdc-sync".to_owned()),
            options: given.remove(&Parameter::Options),
            ssl_mode,
            ssl_root_cert,
            ssl_cert,
            ssl_key,
            channel_binding: choice(&mut given, Parameter::ChannelBinding, ChannelBinding::ALL)?
                .unwrap_or(ChannelBinding::Prefer),
            target_session_attrs: choice(&mut given, Parameter::TargetSessionAttrs, TargetSessionAttrs::ALL)?
                .unwrap_or(TargetSessionAttrs::Any),
            connect_timeout: connect_timeout(&mut given)?,
        })
    }

    /// The servers, in the order in which they are tried; at least one.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Host name, address or socket directory of the first server.
    pub fn host(&self) -> String {
        self.endpoints.first().map(Endpoint::host).unwrap_or_default()
    }

    /// Port of the first server.
    pub fn port(&self) -> u16 {
        self.endpoints.first().map_or(5432, Endpoint::port)
    }

    /// The user to log in as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The name shown in `pg_stat_activity`.
    pub fn application_name(&self) -> &str {
        &self.application_name
    }

    /// Command-line options for the server session (`options`), as given by the user.
    pub fn options(&self) -> Option<&str> {
        self.options.as_deref()
    }

    /// How far connections are encrypted.
    pub fn ssl_mode(&self) -> SslMode {
        self.ssl_mode
    }

    /// The trusted root certificates, if any are given or `~/.postgresql/root.crt` exists.
    pub fn ssl_root_cert(&self) -> Option<&RootCert> {
        self.ssl_root_cert.as_ref()
    }

    /// The client certificate's file and its key's.
    pub(crate) fn client_certificate(&self) -> Option<(&Path, Option<&Path>)> {
        self.ssl_cert
            .as_deref()
            .map(|cert| (cert, self.ssl_key.as_deref()))
    }

    /// Whether SCRAM is bound to the TLS connection.
    pub fn channel_binding(&self) -> ChannelBinding {
        self.channel_binding
    }

    /// Which of several servers will do.
    pub fn target_session_attrs(&self) -> TargetSessionAttrs {
        self.target_session_attrs
    }

    /// Time allowed for one attempt to reach and log in to one server; `None` is without limit.
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    /// The same server and login, another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Config {
        Config {
            database: database.to_owned(),
            ..self.clone()
        }
    }

    /// The same server and database, another name in `pg_stat_activity`.
    #[must_use]
    pub fn with_application_name(&self, name: &str) -> Config {
        Config {
            application_name: name.to_owned(),
            ..self.clone()
        }
    }

    /// The same with another time limit for one attempt to connect.
    #[must_use]
    pub fn with_connect_timeout(&self, limit: Duration) -> Config {
        Config {
            connect_timeout: Some(limit),
            ..self.clone()
        }
    }

    /// The password for a server: the one given, else the password file's.
    pub fn password_for(&self, endpoint: &Endpoint) -> Option<String> {
        if let Some(Secret(password)) = &self.password {
            return Some(password.clone());
        }
        // For the default socket directories libpq looks up "localhost".
        let host = match endpoint {
            Endpoint::Unix { directory, .. } if DEFAULT_SOCKETS.iter().any(|d| directory == Path::new(d)) => {
                "localhost".to_owned()
            }
            _ => endpoint.host(),
        };
        sources::password(
            self.passfile.as_deref()?,
            &host,
            endpoint.port(),
            &self.database,
            &self.user,
        )
    }

    /// What to do when a password is asked for and there is none.
    pub(crate) fn password_hint(&self) -> String {
        match &self.passfile {
            Some(file) if sources::is_open(file) => format!(
                "the password file is ignored while others may read it: chmod 0600 {}",
                file.display()
            ),
            _ => "put the password in the URL, in PGPASSWORD, or in ~/.pgpass (mode 0600)".to_owned(),
        }
    }

    /// The configuration as a URL without the password and without `options`, which can hold secrets too.
    pub fn redacted(&self) -> String {
        let mut query: Vec<(&str, String)> = Vec::new();
        // A socket directory is more readable as a parameter.
        let sockets = self
            .endpoints
            .iter()
            .any(|endpoint| matches!(endpoint, Endpoint::Unix { .. }));
        let authority = if sockets {
            query.push(("host", join(&self.endpoints, Endpoint::host)));
            query.push((
                "port",
                join(&self.endpoints, |endpoint| endpoint.port().to_string()),
            ));
            String::new()
        } else {
            join(&self.endpoints, url::authority)
        };
        if self.ssl_mode != SslMode::Prefer {
            query.push(("sslmode", name_of(SslMode::ALL, self.ssl_mode).to_owned()));
        }
        if self.target_session_attrs != TargetSessionAttrs::Any {
            let name = name_of(TargetSessionAttrs::ALL, self.target_session_attrs);
            query.push(("target_session_attrs", name.to_owned()));
        }
        let query: Vec<String> = query
            .iter()
            .map(|(name, value)| {
                format!(
                    "{name}={}",
                    url::encode(value).replace("%2F", "/").replace("%2C", ",")
                )
            })
            .collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let (user, database) = (url::encode(&self.user), url::encode(&self.database));
        format!(
            "postgres://{user}@{authority}/{database}{mark}{}",
            query.join("&")
        )
    }

    /// The same login for a libpq program, so that no password stands in its arguments. See [`LIBPQ_VARIABLES`].
    pub fn to_libpq_env(&self) -> Vec<(String, String)> {
        let path = |path: &Path| path.display().to_string();
        let root_cert = self.ssl_root_cert.as_ref().map(|root| match root {
            RootCert::File(file) => path(file),
            RootCert::System => "system".to_owned(),
        });
        let attrs = name_of(TargetSessionAttrs::ALL, self.target_session_attrs);
        let limit = self.connect_timeout.map_or(0, |limit| limit.as_secs().max(2));
        let all = [
            ("PGHOST", Some(join(&self.endpoints, Endpoint::host))),
            (
                "PGPORT",
                Some(join(&self.endpoints, |endpoint| endpoint.port().to_string())),
            ),
            ("PGUSER", Some(self.user.clone())),
            (
                "PGPASSWORD",
                self.password.as_ref().map(|Secret(password)| password.clone()),
            ),
            ("PGPASSFILE", self.passfile.as_deref().map(path)),
            ("PGDATABASE", Some(self.database.clone())),
            ("PGAPPNAME", Some(self.application_name.clone())),
            ("PGOPTIONS", self.options.clone()),
            ("PGSSLMODE", Some(name_of(SslMode::ALL, self.ssl_mode).to_owned())),
            ("PGSSLROOTCERT", root_cert),
            ("PGSSLCERT", self.ssl_cert.as_deref().map(path)),
            ("PGSSLKEY", self.ssl_key.as_deref().map(path)),
            (
                "PGCHANNELBINDING",
                Some(name_of(ChannelBinding::ALL, self.channel_binding).to_owned()),
            ),
            ("PGTARGETSESSIONATTRS", Some(attrs.to_owned())),
            ("PGCONNECT_TIMEOUT", Some(limit.to_string())),
        ];
        all.into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config({})", self.redacted())
    }
}

fn join(endpoints: &[Endpoint], part: impl Fn(&Endpoint) -> String) -> String {
    endpoints.iter().map(part).collect::<Vec<_>>().join(",")
}

fn connect_timeout(given: &mut BTreeMap<Parameter, String>) -> Result<Option<Duration>, ConfigError> {
    let Some(value) = given.remove(&Parameter::ConnectTimeout) else {
        return Ok(Some(DEFAULT_CONNECT_TIMEOUT));
    };
    match value.trim().parse::<i32>() {
        Ok(seconds) if seconds <= 0 => Ok(None),
        // libpq's floor: one second is too short on a slow network when the clock just ticks over.
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds.max(2).unsigned_abs().into()))),
        Err(_) => Err(ConfigError::value(
            Parameter::ConnectTimeout,
            &value,
            "a number of seconds, 0 for no limit",
        )),
    }
}

#[cfg(test)]
mod tests;
