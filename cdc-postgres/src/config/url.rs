//! A connection URL as a list of settings (libpq manual, "Connection URIs").
//!
//! No error here quotes a part of the URL that could be a piece of a badly encoded password.

use super::{ConfigError, Endpoint, Parameter};

/// Splits `url` into settings, in the order in which they count: a later one replaces an earlier one.
pub(super) fn parse(url: &str) -> Result<Vec<(Parameter, String)>, ConfigError> {
    let rest = ["postgres://", "postgresql://"]
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme))
        .ok_or_else(|| ConfigError::new("a PostgreSQL URL starts with postgres:// or postgresql://"))?;
    let (rest, query) = rest
        .split_once('?')
        .map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let (authority, database) = rest.split_once('/').map_or((rest, None), |(a, d)| (a, Some(d)));
    if database.is_some_and(|name| name.contains('@')) || authority.matches('@').count() > 1 {
        return Err(ConfigError::new(
            "the user name or password holds a reserved character: write '/' as %2F, '@' as %40, ':' as %3A, '?' as \
             %3F, '#' as %23 and '%' as %25",
        ));
    }
    let mut settings = Vec::new();
    let (login, hosts) = authority
        .rsplit_once('@')
        .map_or((None, authority), |(l, h)| (Some(l), h));
    if let Some(login) = login {
        push_login(login, &mut settings)?;
    }
    if !hosts.is_empty() {
        push_hosts(hosts, &mut settings)?;
    }
    if let Some(database) = database.filter(|name| !name.is_empty()) {
        settings.push((Parameter::Dbname, decode(database, "the database name")?));
    }
    if let Some(query) = query.filter(|query| !query.is_empty()) {
        // `user:pass?word=x@host` looks like a parameter named "word".
        let may_be_password = login.is_none() && query.contains('@');
        push_query(query, may_be_password, &mut settings)?;
    }
    Ok(settings)
}

fn push_login(login: &str, settings: &mut Vec<(Parameter, String)>) -> Result<(), ConfigError> {
    let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
    if !user.is_empty() {
        settings.push((Parameter::User, decode(user, "the user name")?));
    }
    if let Some(password) = password.filter(|password| !password.is_empty()) {
        settings.push((Parameter::Password, decode(password, "the password")?));
    }
    Ok(())
}

/// `h1:p1,[::1]:p2,%2Frun%2Fpostgresql`: names and ports become two lists of equal length.
fn push_hosts(hosts: &str, settings: &mut Vec<(Parameter, String)>) -> Result<(), ConfigError> {
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in hosts.split(',') {
        let (name, port) = if let Some(rest) = host.strip_prefix('[') {
            let (address, rest) = rest
                .split_once(']')
                .ok_or_else(|| ConfigError::new("an IPv6 address in the URL lacks its ']'"))?;
            match rest.strip_prefix(':') {
                Some(port) => (address, port),
                None if rest.is_empty() => (address, ""),
                None => {
                    return Err(ConfigError::new(
                        "after the ']' of an IPv6 address only ':port' may follow",
                    ));
                }
            }
        } else {
            host.split_once(':').unwrap_or((host, ""))
        };
        names.push(decode(name, "the host name")?);
        ports.push(decode(port, "the port")?);
    }
    settings.push((Parameter::Host, names.join(",")));
    if ports.iter().any(|port| !port.is_empty()) {
        settings.push((Parameter::Port, ports.join(",")));
    }
    Ok(())
}

fn push_query(
    query: &str,
    may_be_password: bool,
    settings: &mut Vec<(Parameter, String)>,
) -> Result<(), ConfigError> {
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            ConfigError::new("after '?' the URL takes parameters of the form name=value, joined by '&'")
        })?;
        let name = decode(name, "a parameter name")?;
        let parameter = Parameter::named(&name).ok_or_else(|| {
            let shown = if may_be_password { "…" } else { &name };
            ConfigError::unknown_parameter(shown, "in the URL")
        })?;
        settings.push((parameter, decode(value, parameter.name())?));
    }
    Ok(())
}

/// Undoes percent-encoding. '+' is an ordinary character, as in libpq.
fn decode(text: &str, what: &str) -> Result<String, ConfigError> {
    let wrong = |why: &str| ConfigError::new(format!("{what} in the URL {why}"));
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(wrong(
                "has a '%' that two hexadecimal digits do not follow; a plain '%' is written %25",
            ));
        };
        match u8::try_from(high * 16 + low) {
            Ok(0) | Err(_) => return Err(wrong("must not hold %00")),
            Ok(byte) => out.push(byte),
        }
    }
    String::from_utf8(out).map_err(|_| wrong("is not UTF-8 once decoded"))
}

/// Percent-encodes everything but the unreserved characters of RFC 3986.
pub(super) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A server as it stands before the database in a URL.
pub(super) fn authority(endpoint: &Endpoint) -> String {
    let (host, port) = (encode(&endpoint.host()), endpoint.port());
    if host.contains("%3A") {
        return format!("[{}]:{port}", host.replace("%3A", ":"));
    }
    format!("{host}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(url: &str, parameter: Parameter) -> Option<String> {
        parse(url)
            .unwrap()
            .into_iter()
            .rev()
            .find(|(p, _)| *p == parameter)
            .map(|(_, v)| v)
    }

    #[test]
    fn all_parts_are_found_and_decoded() {
        let url = "postgresql://us%40er:p%3Aa%2Fss@h1:1,h2,[::1]:3/d%20b?sslmode=require&options=-c%20a%3Db&options=+x";
        assert_eq!(find(url, Parameter::User).as_deref(), Some("us@er"));
        assert_eq!(find(url, Parameter::Password).as_deref(), Some("p:a/ss"));
        assert_eq!(find(url, Parameter::Host).as_deref(), Some("h1,h2,::1"));
        assert_eq!(find(url, Parameter::Port).as_deref(), Some("1,,3"));
        assert_eq!(find(url, Parameter::Dbname).as_deref(), Some("d b"));
        assert_eq!(find(url, Parameter::Options).as_deref(), Some("+x"));
    }

    #[test]
    fn empty_parts_are_left_to_the_defaults() {
        assert!(parse("postgres://").unwrap().is_empty());
        assert!(parse("postgres:///").unwrap().is_empty());
        assert!(parse("postgres://@/?").unwrap().is_empty());
        assert_eq!(
            find("postgres://%2Frun%2Fpg/db", Parameter::Host).as_deref(),
            Some("/run/pg")
        );
    }

    #[test]
    fn errors_never_quote_what_may_be_a_password() {
        for url in [
            "postgres://u:sec/ret@h/db",
            "postgres://u:sec@ret@h/db",
            "postgres://u:sec%zzret@h/db",
            "postgres://u:sec?ret@h/db",
            "postgres://u:sec%00ret@h",
            "postgres://u:pw?sec=ret@h/db",
            "postgres://u:sec%FFret@h",
            "u:sec:ret@h",
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(
                !error.contains("sec") && !error.contains("ret@"),
                "{url}: {error}"
            );
        }
    }

    #[test]
    fn an_unknown_parameter_names_the_known_ones() {
        let error = parse("postgres://h/db?sslmod=require").unwrap_err().to_string();
        assert!(
            error.contains("\"sslmod\"")
                && error.contains("sslmode")
                && error.contains("target_session_attrs")
        );
    }

    #[test]
    fn encoding_round_trips() {
        let text = "a b/ü%@:?";
        assert_eq!(decode(&encode(text), "x").unwrap(), text);
    }
}
