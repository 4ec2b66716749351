//! TLS with libpq's `sslmode` meanings, on rustls with the aws-lc-rs provider.
//!
//! The provider is passed to each configuration. A library must not install a process-wide default: that choice is
//! the binary's.

mod binding;
mod der;
mod verify;

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use self::verify::{Roots, Verifier};
use crate::config::{Config, RootCert, SslMode};
use crate::error::PgError;

/// What is read of a server's certificate: its hash for channel binding, and its public key.
#[cfg(any(test, feature = "testing"))]
pub fn certificate_parts(certificate: &[u8]) -> (Option<Vec<u8>>, Option<&[u8]>) {
    (
        binding::server_end_point(certificate),
        der::public_key(certificate),
    )
}

/// A TLS connection and the hash of the server's certificate for SCRAM-SHA-256-PLUS, if it has one.
pub(crate) struct Encrypted {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) server_end_point: Option<Vec<u8>>,
}

/// Sends SSLRequest and reads the one-byte answer (protocol manual, "SSL Session Encryption").
///
/// Exactly one byte is read: anything that follows it before the handshake would be unencrypted and must not be taken
/// for part of the encrypted session (CVE-2021-23222).
pub(crate) async fn offered(tcp: &mut TcpStream) -> Result<bool, PgError> {
    let mut request = bytes::BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    tcp.write_all(&request).await?;
    match tcp.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // What an 'E' is followed by is not authenticated and therefore not shown (CVE-2024-10977).
        b'E' => Err(PgError::connection(
            "the server answered the request for TLS with an error",
        )),
        other => Err(PgError::protocol(format!(
            "the server answered the request for TLS with byte {other:#04x}"
        ))),
    }
}

/// Does the handshake on a connection whose server has agreed to it.
pub(crate) async fn handshake(tcp: TcpStream, host: &str, config: &Config) -> Result<Encrypted, PgError> {
    let client = client_config(config)?;
    let name = match ServerName::try_from(host.to_owned()) {
        Ok(name) => name,
        Err(_) if config.ssl_mode() == SslMode::VerifyFull => {
            return Err(PgError::tls(format!(
                "{host:?} is not a host name that a certificate can be checked against"
            )));
        }
        // The name is used for nothing but SNI, which an address leaves out.
        Err(_) => ServerName::from(tcp.peer_addr()?.ip()),
    };
    let stream = TlsConnector::from(Arc::new(client))
        .connect(name, tcp)
        .await
        .map_err(|e| failure(&e, config))?;
    let leaf = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let server_end_point = leaf.and_then(|leaf| binding::server_end_point(leaf));
    Ok(Encrypted {
        stream,
        server_end_point,
    })
}

fn client_config(config: &Config) -> Result<ClientConfig, PgError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier::new(
        roots(config)?,
        config.ssl_mode() == SslMode::VerifyFull,
        provider.signature_verification_algorithms,
    );
    let builder = builder(provider)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let Some((cert_file, key_file)) = config.client_certificate() else {
        return Ok(builder.with_no_client_auth());
    };
    let key_file = key_file
        .ok_or_else(|| PgError::tls(format!("sslcert={} is given without sslkey", cert_file.display())))?;
    refuse_open_key(key_file)?;
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|e| unreadable("sslkey", key_file, &e))?;
    builder
        .with_client_auth_cert(certificates("sslcert", cert_file)?, key)
        .map_err(|e| PgError::tls(format!("client certificate {}: {e}", cert_file.display())))
}

/// As libpq: a key that others can read is no proof of who we are. One that root owns may be open to our group.
fn refuse_open_key(file: &Path) -> Result<(), PgError> {
    let metadata =
        std::fs::metadata(file).map_err(|e| PgError::tls(format!("sslkey {}: {e}", file.display())))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.permissions().mode() & forbidden == 0 {
        return Ok(());
    }
    Err(
        PgError::tls(format!("sslkey {}: others may read or change it", file.display()))
            .with_hint(format!("chmod 0600 {} (0640 if root owns it)", file.display())),
    )
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>;

fn builder(provider: Arc<CryptoProvider>) -> Result<Builder, PgError> {
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| PgError::tls(format!("TLS cannot be set up: {e}")))
}

/// The roots to check the chain against; `None` if the chain is not checked.
fn roots(config: &Config) -> Result<Option<Roots>, PgError> {
    let checked = matches!(config.ssl_mode(), SslMode::VerifyCa | SslMode::VerifyFull);
    match config.ssl_root_cert() {
        None if checked => Err(PgError::tls(
            "sslmode asks for a check of the server's certificate, but there is no \
             root certificate",
        )
        .with_hint("give sslrootcert=FILE or sslrootcert=system, or put the file at ~/.postgresql/root.crt")),
        None => Ok(None),
        // libpq: a root certificate makes `require` behave like `verify-ca`; the weaker modes never check.
        Some(_) if !config.ssl_mode().must_encrypt() => Ok(None),
        Some(RootCert::File(file)) => {
            let trusted = certificates("sslrootcert", file)?;
            let mut store = RootCertStore::empty();
            for certificate in &trusted {
                store.add(certificate.clone()).map_err(|e| {
                    PgError::tls(format!(
                        "sslrootcert {}: a certificate cannot be used: {e}",
                        file.display()
                    ))
                })?;
            }
            Ok(Some(Roots { store, trusted }))
        }
        Some(RootCert::System) => {
            let found = rustls_native_certs::load_native_certs();
            let mut store = RootCertStore::empty();
            let (added, _) = store.add_parsable_certificates(found.certs);
            if added == 0 {
                let why = found.errors.first().map(|e| format!(": {e}")).unwrap_or_default();
                return Err(PgError::tls(format!(
                    "sslrootcert=system: the system has no root certificates{why}"
                ))
                .with_hint("install the package ca-certificates or give sslrootcert=FILE"));
            }
            Ok(Some(Roots {
                store,
                trusted: Vec::new(),
            }))
        }
    }
}

fn certificates(parameter: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, PgError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|e| unreadable(parameter, file, &e))?;
    if found.is_empty() {
        return Err(PgError::tls(format!(
            "{parameter} {}: the file holds no PEM certificate",
            file.display()
        )));
    }
    Ok(found)
}

fn unreadable(parameter: &str, file: &Path, error: &rustls::pki_types::pem::Error) -> PgError {
    PgError::tls(format!("{parameter} {}: {error}", file.display()))
}

/// What an error of an encrypted stream means when it is the server's objection to our side of the handshake: with TLS
/// 1.3 that comes after we are done with it, in place of the first answer.
pub(crate) fn objection(error: &io::Error) -> Option<PgError> {
    use rustls::AlertDescription as Alert;
    let cause = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::AlertReceived(alert) = cause else {
        return None;
    };
    let about_certificate = matches!(
        alert,
        Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::DecryptError
    );
    about_certificate.then(|| {
        PgError::tls(format!("the server refuses our client certificate: {alert:?}")).with_hint(
            "give a certificate in sslcert and its key in sslkey that an authority of the server's ssl_ca_file has \
             signed and that has not expired",
        )
    })
}

fn failure(error: &io::Error, config: &Config) -> PgError {
    use rustls::CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        UnknownIssuer,
    };
    if let Some(objection) = objection(error) {
        return objection;
    }
    let Some(cause) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    else {
        return PgError::connection(format!("the connection broke during the TLS handshake: {error}"));
    };
    // webpki's own reasons come without a type of ours to match.
    let text = cause.to_string();
    let hint = match cause {
        rustls::Error::InvalidCertificate(UnknownIssuer) => match config.ssl_root_cert() {
            Some(RootCert::File(file)) => {
                Some(format!("{} does not hold the issuer's certificate", file.display()))
            }
            _ => Some("the system's store does not hold the issuer; give sslrootcert=FILE".to_owned()),
        },
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => Some(
            "connect by a name listed in the certificate's subjectAltName (a common name alone is not enough), or use \
             sslmode=verify-ca"
                .to_owned(),
        ),
        rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        ) => Some(
            "the server needs a new certificate (ssl_cert_file, ssl_key_file, then SELECT pg_reload_conf();), unless it \
             is the clock of this machine that is wrong"
                .to_owned(),
        ),
        _ if text.contains("CaUsedAsEndEntity") => {
            Some("the server's certificate is self-signed: name that very certificate in sslrootcert".to_owned())
        }
        _ if text.contains("UnsupportedCertVersion") => Some(
            "the server's certificate is of X.509 version 1, as `openssl x509 -req` makes it without an extension \
             file: issue it again with a subjectAltName"
                .to_owned(),
        ),
        _ => None,
    };
    let error = PgError::tls(format!("TLS handshake failed: {text}"));
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}
