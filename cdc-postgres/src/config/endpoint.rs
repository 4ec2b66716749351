//! Where servers listen: lists of hosts, ports and socket directories.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::{ConfigError, Parameter};

/// One server of the list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A host name or IP address, and a port.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// A Unix-domain socket in a directory.
    Unix {
        /// The directory.
        directory: PathBuf,
        /// The number in the socket's name.
        port: u16,
    },
}

impl Endpoint {
    fn new(host: &str, port: u16) -> Endpoint {
        if host.starts_with('/') {
            Endpoint::Unix {
                directory: PathBuf::from(host),
                port,
            }
        } else {
            Endpoint::Tcp {
                host: host.to_owned(),
                port,
            }
        }
    }

    /// The host name, the address, or the socket's directory.
    pub fn host(&self) -> String {
        match self {
            Endpoint::Tcp { host, .. } => host.clone(),
            Endpoint::Unix { directory, .. } => directory.display().to_string(),
        }
    }

    /// The port, or the number in the socket's name.
    pub fn port(&self) -> u16 {
        match self {
            Endpoint::Tcp { port, .. } | Endpoint::Unix { port, .. } => *port,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "{host}:{port}"),
            Endpoint::Unix { directory, port } => write!(f, "{}/.s.PGSQL.{port}", directory.display()),
        }
    }
}

/// Directories a server of the packagers, and one built from source, puts its socket in.
pub(super) const DEFAULT_SOCKETS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// The host and port lists; one port serves all hosts, an empty one means 5432.
pub(super) fn endpoints(given: &mut BTreeMap<Parameter, String>) -> Result<Vec<Endpoint>, ConfigError> {
    let hosts = given.remove(&Parameter::Host).unwrap_or_default();
    let ports = given.remove(&Parameter::Port).unwrap_or_default();
    let hosts: Vec<&str> = hosts.split(',').map(str::trim).collect();
    let ports = ports
        .split(',')
        .map(|port| parse_port(port.trim()))
        .collect::<Result<Vec<u16>, _>>()?;
    if ports.len() != 1 && ports.len() != hosts.len() {
        return Err(ConfigError::new(format!(
            "{} ports for {} hosts: give one port for all hosts, or one for each",
            ports.len(),
            hosts.len()
        )));
    }
    let default_host = DEFAULT_SOCKETS
        .iter()
        .find(|d| Path::new(d).is_dir())
        .copied()
        .unwrap_or("localhost");
    Ok(hosts
        .iter()
        .zip(ports.iter().cycle())
        .map(|(host, port)| Endpoint::new(if host.is_empty() { default_host } else { host }, *port))
        .collect())
}

fn parse_port(port: &str) -> Result<u16, ConfigError> {
    if port.is_empty() {
        return Ok(5432);
    }
    // The text is not quoted: after a badly encoded password it is a piece of it.
    port.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
        ConfigError::new(
            "the port is not a number from 1 to 65535 (or the password holds a reserved character, which must be \
             percent-encoded: '/' as %2F, '@' as %40, ':' as %3A, '?' as %3F)",
        )
    })
}
