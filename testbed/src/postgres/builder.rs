//! What a cluster is to be like, and its first start.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, bail, ensure};

use super::{PASSWORD, PgCluster, ServerCertificate, tls};
use crate::port::Port;
use crate::provision::{postgres_server, postgres_tools, server_user};
use crate::watchdog::Watchdog;

/// Settings of every cluster: small, with room for replication, and loopback only.
const DEFAULTS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("wal_level", "logical"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("max_worker_processes", "20"),
    ("max_connections", "100"),
    ("shared_buffers", "64MB"),
    ("max_wal_size", "1GB"),
    // Commit times are what `lww` compares, and cost nothing to speak of.
    ("track_commit_timestamp", "on"),
    ("log_line_prefix", "%m [%p] %q%a %u@%d "),
    ("timezone", "UTC"),
];

/// Settings that make a cluster fast and unable to survive a crash of the machine. A crash of the server
/// itself, [`PgCluster::crash`] included, is survived: what it wrote is in the page cache.
const NOT_DURABLE: &[(&str, &str)] = &[("fsync", "off"), ("full_page_writes", "off")];

/// How TCP clients prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordAuth {
    /// SCRAM-SHA-256.
    Scram,
    /// MD5 challenge.
    Md5,
    /// The password in clear.
    Clear,
}

/// Describes a cluster. Without further calls: trust authentication, no TLS, `wal_level = logical`,
/// `fsync = off`.
#[derive(Clone, Debug)]
pub struct Builder {
    major: u16,
    settings: Vec<(String, String)>,
    durable: bool,
    password: Option<PasswordAuth>,
    ssl: Option<ServerCertificate>,
    hba: Vec<String>,
    /// the port of the primary
    standby_of: Option<u16>,
}

impl Builder {
    pub(super) fn new(major: u16) -> Builder {
        Builder {
            major,
            settings: Vec::new(),
            durable: false,
            password: None,
            ssl: None,
            hba: Vec::new(),
            standby_of: None,
        }
    }

    /// Sets a configuration parameter; the last value of a name wins.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Builder {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With `true`, the server's own defaults for `fsync` and `full_page_writes`, as in production: for
    /// measurements.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Builder {
        self.durable = durable;
        self
    }

    /// Asks TCP clients for a password, which is [`PASSWORD`] for the superuser.
    #[must_use]
    pub fn password_auth(mut self, method: PasswordAuth) -> Builder {
        self.password = Some(method);
        self
    }

    /// Offers TLS, with the certificates of [`PgCluster::tls`]. To demand it, add an [`Builder::hba`] line.
    #[must_use]
    pub fn ssl(self) -> Builder {
        self.ssl_with(ServerCertificate::Valid)
    }

    /// As [`Builder::ssl`], with a server certificate that something may be the matter with.
    #[must_use]
    pub fn ssl_with(mut self, certificate: ServerCertificate) -> Builder {
        self.ssl = Some(certificate);
        self
    }

    /// Adds a line to `pg_hba.conf`, ahead of the general ones.
    #[must_use]
    pub fn hba(mut self, line: &str) -> Builder {
        self.hba.push(line.to_owned());
        self
    }

    /// A copy of `primary` (of the same major version) that follows its WAL, instead of a new cluster.
    #[must_use]
    pub fn standby_of(mut self, primary: &PgCluster) -> Builder {
        self.standby_of = Some(primary.port());
        self
    }

    /// Makes the cluster and starts it; returns when it takes connections.
    ///
    /// # Errors
    /// When the server cannot be provisioned, or does not start: with the last lines of its log.
    pub fn start(&self) -> Result<PgCluster> {
        let install = postgres_server(self.major)?;
        let user = server_user()?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("cdc-sync-pg{}-", self.major))
            .tempdir()
            .context("cannot create a folder for the cluster")?;
        let root = folder.path().to_owned();
        // The server's user must enter it, and other users must reach its socket.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
        if let Some(user) = &user {
            chown(&root, Some(user.uid), Some(user.gid)).context("cannot hand the folder to the server")?;
        }
        let watchdog = Some(Watchdog::start(&root)?);
        let (port, folder) = (Port::reserve()?, Some(folder));
        let password = self.password.is_some();
        let mut cluster = PgCluster {
            install,
            user,
            port,
            password,
            tls: None,
            folder,
            root,
            postmaster: None,
            watchdog,
        };
        match self.standby_of {
            None => self.initdb(&cluster)?,
            Some(primary) => base_backup(&cluster, primary)?,
        }
        cluster.tls = self.configure(&cluster)?;
        cluster.launch()?;
        if password {
            cluster.sql("postgres", &format!("ALTER ROLE postgres PASSWORD '{PASSWORD}'"))?;
        }
        Ok(cluster)
    }

    fn initdb(&self, cluster: &PgCluster) -> Result<()> {
        let output = cluster
            .command("initdb")
            .args([
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-locale",
                "--no-sync",
                "-D",
            ])
            .arg(cluster.data_dir())
            .output()
            .with_context(|| {
                format!(
                    "cannot run initdb in {}: the folder must be open to the user that servers run as ({})",
                    cluster.install.bin.display(),
                    cluster.user.as_ref().map_or("yourself", |u| u.name.as_str())
                )
            })?;
        if !output.status.success() {
            bail!(
                "initdb of PostgreSQL {} failed:\n{}{}",
                cluster.version(),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Writes `postgresql.conf` (appended: later lines win) and `pg_hba.conf`.
    fn configure(&self, cluster: &PgCluster) -> Result<Option<super::TlsFiles>> {
        let mut lines = String::from("\n# testbed\n");
        let mut set = |name: &str, value: &str| -> Result<()> {
            ensure!(!value.contains('\n'), "the value of {name} has a line end");
            writeln!(lines, "{name} = '{}'", value.replace('\'', "''"))?;
            Ok(())
        };
        set("port", &cluster.port().to_string())?;
        set("unix_socket_directories", &cluster.root.display().to_string())?;
        for (name, value) in DEFAULTS {
            set(name, value)?;
        }
        if !self.durable {
            for (name, value) in NOT_DURABLE {
                set(name, value)?;
            }
        }
        if let Some(primary) = self.standby_of {
            let conninfo = format!("host=127.0.0.1 port={primary} user=postgres");
            set("primary_conninfo", &conninfo)?;
        }
        let method = match self.password {
            None => "trust",
            Some(PasswordAuth::Scram) => "scram-sha-256",
            Some(PasswordAuth::Md5) => "md5",
            Some(PasswordAuth::Clear) => "password",
        };
        if matches!(self.password, Some(PasswordAuth::Scram | PasswordAuth::Md5)) {
            set("password_encryption", method)?;
        }
        let mut files = None;
        if let Some(certificate) = self.ssl {
            let (tls, settings) = tls::make(&cluster.root, cluster.user.as_ref(), certificate)?;
            for (name, value) in settings {
                set(name, &value)?;
            }
            files = Some(tls);
        }
        for (name, value) in &self.settings {
            set(name, value)?;
        }
        let mut hba: String = self.hba.iter().map(|line| format!("{line}\n")).collect();
        hba.push_str("local all all trust\nlocal replication all trust\n");
        for database in ["all", "replication"] {
            writeln!(hba, "host {database} all 127.0.0.1/32 {method}")?;
        }
        let conf = cluster.data_dir().join("postgresql.conf");
        let written = fs::read_to_string(&conf).context("initdb made no postgresql.conf")?;
        fs::write(&conf, written + &lines)?;
        fs::write(cluster.data_dir().join("pg_hba.conf"), hba)?;
        Ok(files)
    }
}

/// Copies a running primary, with what makes the copy its standby.
fn base_backup(cluster: &PgCluster, primary: u16) -> Result<()> {
    let mut command = postgres_tools()?.command("pg_basebackup");
    command
        .arg("-d")
        .arg(format!("host=127.0.0.1 port={primary} user=postgres"))
        .args(["-X", "stream", "-c", "fast", "--no-sync", "-D"])
        .arg(cluster.data_dir())
        .current_dir(&cluster.root);
    if let Some(user) = &cluster.user {
        command.uid(user.uid).gid(user.gid);
    }
    let output = command.output().context("cannot run pg_basebackup")?;
    ensure!(
        output.status.success(),
        "pg_basebackup failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // What `-R` would write has options of the newest libpq, which older servers do not know.
    fs::write(cluster.data_dir().join("standby.signal"), "")?;
    Ok(())
}
