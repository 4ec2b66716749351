//! Certificates for a cluster: an authority, a server certificate for localhost, a client certificate for
//! the superuser.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
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
}

/// Makes the certificates in `folder`; returns the client's part and the server's settings.
pub(super) fn make(
    folder: &Path,
    user: Option<&ServerUser>,
) -> Result<(TlsFiles, Vec<(&'static str, String)>)> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::<String>::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name
        .push(DnType::CommonName, "testbed authority");
    let root_cert = folder.join("root.crt");
    fs::write(&root_cert, ca.self_signed(&ca_key)?.pem())?;
    let issuer = Issuer::new(ca, ca_key);

    let issue = |name: &str, common_name: &str, alternatives: &[&str], usage| -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = alternatives.iter().map(|&n| n.to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![usage];
        let cert_path = folder.join(format!("{name}.crt"));
        let key_path = folder.join(format!("{name}.key"));
        fs::write(&cert_path, params.signed_by(&key, &issuer)?.pem())?;
        fs::write(&key_path, key.serialize_pem())?;
        // Servers and clients alike refuse a key that others can read.
        fs::set_permissions(&key_path, fs::Permissions::from_mode(0o600))?;
        Ok((cert_path, key_path))
    };
    let (server_cert, server_key) = issue(
        "server",
        "localhost",
        &["localhost", "127.0.0.1"],
        ExtendedKeyUsagePurpose::ServerAuth,
    )?;
    if let Some(user) = user {
        chown(&server_key, Some(user.uid), Some(user.gid)).context("cannot hand the key to the server")?;
    }
    let (client_cert, client_key) = issue("client", "postgres", &[], ExtendedKeyUsagePurpose::ClientAuth)?;
    let settings = vec![
        ("ssl", "on".to_owned()),
        ("ssl_cert_file", server_cert.display().to_string()),
        ("ssl_key_file", server_key.display().to_string()),
        ("ssl_ca_file", root_cert.display().to_string()),
    ];
    Ok((
        TlsFiles {
            root_cert,
            client_cert,
            client_key,
        },
        settings,
    ))
}
