//! Parameters whose value is one of a few words.

use std::collections::BTreeMap;

use super::{ConfigError, Parameter};

/// How far a connection is encrypted and the server's certificate checked (libpq manual, "SSL Support").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never encrypt.
    Disable,
    /// Try without encryption first, with it if that is refused.
    Allow,
    /// Encrypt if the server can; libpq's default.
    Prefer,
    /// Encrypt; check the certificate's chain only if there is a root certificate file.
    Require,
    /// Encrypt and check the certificate's chain.
    VerifyCa,
    /// Encrypt, check the chain, and check that the certificate names the host.
    VerifyFull,
}

impl SslMode {
    pub(super) const ALL: &'static [(&'static str, SslMode)] = &[
        ("disable", SslMode::Disable),
        ("allow", SslMode::Allow),
        ("prefer", SslMode::Prefer),
        ("require", SslMode::Require),
        ("verify-ca", SslMode::VerifyCa),
        ("verify-full", SslMode::VerifyFull),
    ];

    /// Whether a connection without encryption is never used.
    pub(crate) fn must_encrypt(self) -> bool {
        matches!(self, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull)
    }
}

/// Which of several servers will do (libpq manual, `target_session_attrs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSessionAttrs {
    /// The first that lets us in.
    Any,
    /// One whose transactions may write.
    ReadWrite,
    /// One whose transactions may not write.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One that is in recovery.
    Standby,
    /// One that is in recovery, else any.
    PreferStandby,
}

impl TargetSessionAttrs {
    pub(super) const ALL: &'static [(&'static str, TargetSessionAttrs)] = &[
        ("any", TargetSessionAttrs::Any),
        ("read-write", TargetSessionAttrs::ReadWrite),
        ("read-only", TargetSessionAttrs::ReadOnly),
        ("primary", TargetSessionAttrs::Primary),
        ("standby", TargetSessionAttrs::Standby),
        ("prefer-standby", TargetSessionAttrs::PreferStandby),
    ];
}

/// Whether SCRAM is bound to the TLS connection (libpq manual, `channel_binding`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If both sides can.
    Prefer,
    /// Refuse every other login.
    Require,
}

impl ChannelBinding {
    pub(super) const ALL: &'static [(&'static str, ChannelBinding)] = &[
        ("disable", ChannelBinding::Disable),
        ("prefer", ChannelBinding::Prefer),
        ("require", ChannelBinding::Require),
    ];
}

/// The name of `wanted` in a table of names.
pub(super) fn name_of<T: PartialEq>(table: &[(&'static str, T)], wanted: T) -> &'static str {
    table
        .iter()
        .find(|(_, value)| *value == wanted)
        .map_or("?", |(name, _)| name)
}

/// Takes a parameter out of `given` and looks its value up.
pub(super) fn choice<T: Copy>(
    given: &mut BTreeMap<Parameter, String>,
    parameter: Parameter,
    table: &[(&'static str, T)],
) -> Result<Option<T>, ConfigError> {
    let Some(value) = given.remove(&parameter) else {
        return Ok(None);
    };
    match table.iter().find(|(name, _)| *name == value) {
        Some((_, choice)) => Ok(Some(*choice)),
        None => {
            let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
            Err(ConfigError::value(parameter, &value, &names.join(", ")))
        }
    }
}
