//! Startup and authentication (protocol manual, "Start-up").

use std::collections::BTreeMap;

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding as ScramBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::channel::{Channel, Incoming};
use super::notice;
use super::session::{self, Purpose};
use super::version::ServerVersion;
use crate::config::{ChannelBinding, Config, Endpoint};
use crate::error::{PgError, SCRAM_ITERATIONS_HINT};

/// Highest SCRAM iteration count that the SASL library accepts.
const MAX_SCRAM_ITERATIONS: u32 = 100_000;

/// How the server checked who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// It did not ask (`trust`, `peer`, a client certificate).
    None,
    /// A password in clear text.
    Password,
    /// A password hashed with MD5.
    Md5,
    /// SCRAM-SHA-256.
    Scram,
    /// SCRAM-SHA-256-PLUS: bound to the TLS connection.
    ScramPlus,
}

/// What the server said of itself while we logged in.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) version: ServerVersion,
    pub(super) backend_pid: i32,
    pub(super) cancel_key: i32,
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) auth: AuthMethod,
}

/// Logs in on an open stream and waits until the server takes commands.
pub(super) async fn login(
    channel: &mut Channel,
    config: &Config,
    endpoint: &Endpoint,
    purpose: &Purpose,
    extra: &[(&str, &str)],
) -> Result<Session, PgError> {
    let mut parameters = vec![
        ("user", config.user()),
        ("database", config.database()),
        ("application_name", config.application_name()),
    ];
    if let Purpose::Replication(_) = purpose {
        parameters.push(("replication", "database"));
    }
    if let Some(options) = config.options() {
        parameters.push(("options", options));
    }
    parameters.extend(session::at_startup(extra));
    channel
        .push(|buf| frontend::startup_message(parameters, buf))
        .map_err(|e| PgError::encode(&e))?;
    let password = config.password_for(endpoint);
    let auth = authenticate(channel, config, password.as_deref()).await?;
    if config.channel_binding() == ChannelBinding::Require && auth != AuthMethod::ScramPlus {
        return Err(PgError::login(
            "channel_binding=require, but the server did not bind the login to TLS",
        ));
    }
    settle(channel, auth).await
}

/// The next message of the login; an error and an early end are turned into ours.
async fn next(channel: &mut Channel) -> Result<Message, PgError> {
    loop {
        match channel.receive().await? {
            Incoming::Known(Message::ErrorResponse(body)) => {
                return Err(PgError::from_fields(body.fields()).at_login());
            }
            Incoming::Known(Message::NoticeResponse(body)) => notice(body.fields()),
            Incoming::Known(message) => return Ok(message),
            // We ask for 3.0, which every server has; some poolers answer with what else they speak.
            Incoming::NegotiateVersion(version) if version >> 16 == 3 || version < 0x1_0000 => {
                tracing::debug!(version, "the server proposes another protocol version");
            }
            Incoming::NegotiateVersion(version) => {
                return Err(PgError::protocol(format!(
                    "the server speaks protocol version {}.{}, not 3.0",
                    version >> 16,
                    version & 0xFFFF
                )));
            }
            Incoming::CopyBoth => return Err(unexpected("CopyBothResponse")),
        }
    }
}

fn unexpected(what: &str) -> PgError {
    PgError::protocol(format!("the server sent {what} during the login"))
}

/// The server asks for a password, by `method` if that is known, and there is none.
pub(super) fn password_missing(config: &Config, method: &str) -> PgError {
    let by = if method.is_empty() {
        String::new()
    } else {
        format!(" ({method})")
    };
    PgError::login(format!("the server asks for a password{by} and none is given"))
        .with_hint(config.password_hint())
}

async fn authenticate(
    channel: &mut Channel,
    config: &Config,
    password: Option<&str>,
) -> Result<AuthMethod, PgError> {
    let method = match next(channel).await? {
        Message::AuthenticationOk => return Ok(AuthMethod::None),
        // An impostor could ask for the password in clear text or weakly hashed.
        Message::AuthenticationCleartextPassword | Message::AuthenticationMd5Password(_)
            if config.channel_binding() == ChannelBinding::Require =>
        {
            return Err(PgError::login(
                "channel_binding=require, but the server asks for a plain password",
            ));
        }
        Message::AuthenticationCleartextPassword => {
            let password = password.ok_or_else(|| password_missing(config, "clear text"))?;
            send_password(channel, password.as_bytes())?;
            AuthMethod::Password
        }
        Message::AuthenticationMd5Password(body) => {
            let password = password.ok_or_else(|| password_missing(config, "md5"))?;
            let hash = md5_hash(config.user().as_bytes(), password.as_bytes(), body.salt());
            send_password(channel, hash.as_bytes())?;
            AuthMethod::Md5
        }
        Message::AuthenticationSasl(body) => scram(channel, config, password, &body).await?,
        Message::AuthenticationGss | Message::AuthenticationSspi | Message::AuthenticationKerberosV5 => {
            return Err(
                PgError::login("the server asks for GSSAPI or Kerberos, which is not supported")
                    .with_hint("add a line with scram-sha-256 or cert for this user to pg_hba.conf"),
            );
        }
        _ => return Err(unexpected("something else than an authentication request")),
    };
    match next(channel).await? {
        Message::AuthenticationOk => Ok(method),
        _ => Err(unexpected("something else than the end of the authentication")),
    }
}

fn send_password(channel: &mut Channel, password: &[u8]) -> Result<(), PgError> {
    channel
        .push(|buf| frontend::password_message(password, buf))
        .map_err(|e| PgError::encode(&e))
}

async fn scram(
    channel: &mut Channel,
    config: &Config,
    password: Option<&str>,
    offered: &AuthenticationSaslBody,
) -> Result<AuthMethod, PgError> {
    let offered: Vec<&str> = offered
        .mechanisms()
        .collect()
        .map_err(|e| PgError::malformed(&e))?;
    let plus = offered.contains(&SCRAM_SHA_256_PLUS);
    let binding = channel
        .stream()
        .server_end_point()
        .filter(|_| config.channel_binding() != ChannelBinding::Disable);
    let (method, mechanism, binding) = match binding {
        Some(hash) if plus => (
            AuthMethod::ScramPlus,
            SCRAM_SHA_256_PLUS,
            ScramBinding::tls_server_end_point(hash.to_vec()),
        ),
        _ if config.channel_binding() == ChannelBinding::Require => {
            return Err(
                PgError::login("channel_binding=require, but channel binding is not possible here")
                    .with_hint("it needs TLS and SCRAM-SHA-256-PLUS on the server"),
            );
        }
        // "y,,": we could bind and see that the server cannot. A server that can recognises the downgrade.
        Some(_) => (AuthMethod::Scram, SCRAM_SHA_256, ScramBinding::unrequested()),
        None => (AuthMethod::Scram, SCRAM_SHA_256, ScramBinding::unsupported()),
    };
    if !offered.contains(&mechanism) {
        return Err(PgError::login(format!(
            "the server offers only unknown logins: {}",
            offered.join(", ")
        )));
    }
    let password = password.ok_or_else(|| password_missing(config, "scram-sha-256"))?;
    let mut scram = ScramSha256::new(password.as_bytes(), binding);
    channel
        .push(|buf| frontend::sasl_initial_response(mechanism, scram.message(), buf))
        .map_err(|e| PgError::encode(&e))?;
    let Message::AuthenticationSaslContinue(challenge) = next(channel).await? else {
        return Err(unexpected("something else than a SCRAM challenge"));
    };
    if let Some(count) = iterations(challenge.data()).filter(|count| *count > MAX_SCRAM_ITERATIONS) {
        return Err(PgError::login(format!(
            "the password is stored with {count} SCRAM iterations; more than {MAX_SCRAM_ITERATIONS} are refused"
        ))
        .with_hint(SCRAM_ITERATIONS_HINT));
    }
    let failed = |e: std::io::Error| PgError::login(format!("SCRAM failed: {e}"));
    scram.update(challenge.data()).map_err(failed)?;
    channel
        .push(|buf| frontend::sasl_response(scram.message(), buf))
        .map_err(|e| PgError::encode(&e))?;
    let Message::AuthenticationSaslFinal(proof) = next(channel).await? else {
        return Err(unexpected("something else than the end of SCRAM"));
    };
    // Only a server that knows the password can have made this: without the check anyone could let us in.
    scram.finish(proof.data()).map_err(failed)?;
    Ok(method)
}

/// The iteration count of a SCRAM server-first-message (RFC 5802 §5.1): `r=…,s=…,i=4096`.
fn iterations(challenge: &[u8]) -> Option<u32> {
    std::str::from_utf8(challenge)
        .ok()?
        .split(',')
        .find_map(|part| part.strip_prefix("i="))?
        .parse()
        .ok()
}

/// Reads what follows a successful login up to the first ReadyForQuery.
async fn settle(channel: &mut Channel, auth: AuthMethod) -> Result<Session, PgError> {
    let mut parameters = BTreeMap::new();
    let mut key = (0, 0);
    loop {
        match next(channel).await? {
            Message::ParameterStatus(body) => {
                let malformed = |e| PgError::malformed(&e);
                let name = body.name().map_err(malformed)?.to_owned();
                parameters.insert(name, body.value().map_err(malformed)?.to_owned());
            }
            Message::BackendKeyData(body) => key = (body.process_id(), body.secret_key()),
            Message::ReadyForQuery(_) => break,
            _ => return Err(unexpected("an unexpected message")),
        }
    }
    let text = parameters
        .get("server_version")
        .map(String::as_str)
        .unwrap_or_default();
    let version = ServerVersion::parse(text)
        .ok_or_else(|| PgError::protocol(format!("the server's version {text:?} cannot be read")))?;
    Ok(Session {
        version,
        backend_pid: key.0,
        cancel_key: key.1,
        parameters,
        auth,
    })
}
