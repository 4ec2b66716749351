//! Certificates for a cluster: an authority, a server certificate for localhost, a client certificate for
//! the superuser.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use crate::provision::ServerUser;

/// Files that a client of a TLS cluster needs; they live in the cluster's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority that signed the server's certificate (`sslrootcert`).
    pub root_cert: PathBuf,
    /// A certificate with the superuser's name (`sslcert`).
    pub client_cert: PathBuf,
    /// Its key (`sslkey`).
    pub client_key: PathBuf,
    /// An authority that signed nothing that the server has or knows.
    pub other_root_cert: PathBuf,
    /// A certificate with the superuser's name, signed by that other authority.
    pub stranger_cert: PathBuf,
    /// Its key.
    pub stranger_key: PathBuf,
}

/// What is the matter with a server's certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerCertificate {
    /// Nothing: it names localhost and 127.0.0.1.
    #[default]
    Valid,
    /// It has expired.
    Expired,
    /// It names another host.
    OtherHost,
}

/// An authority and the folder that it issues certificates to.
struct Authority<'a> {
    folder: &'a Path,
    root_cert: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority<'_> {
    fn new<'a>(folder: &'a Path, file: &str, name: &str) -> Result<Authority<'a>> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let root_cert = folder.join(file);
        fs::write(&root_cert, params.self_signed(&key)?.pem())?;
        Ok(Authority {
            folder,
            root_cert,
            issuer: Issuer::new(params, key),
        })
    }

    /// Signs a certificate and writes it and its key to files of this name.
    fn issue(&self, file: &str, name: &str, mut params: CertificateParams) -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()?;
        params.distinguished_name.push(DnType::CommonName, name);
        let cert_path = self.folder.join(format!("{file}.crt"));
        let key_path = self.folder.join(format!("{file}.key"));
        fs::write(&cert_path, params.signed_by(&key, &self.issuer)?.pem())?;
        fs::write(&key_path, key.serialize_pem())?;
        // Servers and clients alike refuse a key that others can read.
        fs::set_permissions(&key_path, fs::Permissions::from_mode(0o600))?;
        Ok((cert_path, key_path))
    }

    fn issue_client(&self, file: &str) -> Result<(PathBuf, PathBuf)> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(file, "postgres", params)
    }
}

/// The server's certificate, before it is signed.
fn server_params(certificate: ServerCertificate) -> Result<CertificateParams> {
    let names: &[&str] = match certificate {
        ServerCertificate::OtherHost => &["other.example"],
        ServerCertificate::Valid | ServerCertificate::Expired => &["localhost", "127.0.0.1"],
    };
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    if certificate == ServerCertificate::Expired {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    }
    Ok(params)
}

/// Makes the certificates in `folder`; returns the client's part and the server's settings.
pub(super) fn make(
    folder: &Path,
    user: Option<&ServerUser>,
    certificate: ServerCertificate,
) -> Result<(TlsFiles, Vec<(&'static str, String)>)> {
    let authority = Authority::new(folder, "root.crt", "testbed authority")?;
    let other = Authority::new(folder, "other-root.crt", "another authority")?;
    let (server_cert, server_key) = authority.issue("server", "localhost", server_params(certificate)?)?;
    if let Some(user) = user {
        chown(&server_key, Some(user.uid), Some(user.gid)).context("cannot hand the key to the server")?;
    }
    let (client_cert, client_key) = authority.issue_client("client")?;
    let (stranger_cert, stranger_key) = other.issue_client("stranger")?;
    let settings = vec![
        ("ssl", "on".to_owned()),
        ("ssl_cert_file", server_cert.display().to_string()),
        ("ssl_key_file", server_key.display().to_string()),
        ("ssl_ca_file", authority.root_cert.display().to_string()),
    ];
    Ok((
        TlsFiles {
            root_cert: authority.root_cert,
            client_cert,
            client_key,
            other_root_cert: other.root_cert,
            stranger_cert,
            stranger_key,
        },
        settings,
    ))
}
