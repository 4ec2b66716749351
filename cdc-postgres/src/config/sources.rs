//! Settings that a URL leaves out: service file, environment, password file (libpq manual, "Environment Variables",
//! "The Connection Service File", "The Password File").

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{ConfigError, Parameter};

/// Looks up an environment variable. A test passes its own.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A variable that is set and not empty; libpq treats the empty ones as unset too.
pub(super) fn variable(env: Env<'_>, name: &str) -> Option<String> {
    env(name).filter(|value| !value.is_empty())
}

/// A file below `~/.postgresql`, if it exists.
pub(super) fn home_file(env: Env<'_>, name: &str) -> Option<PathBuf> {
    let path = Path::new(&variable(env, "HOME")?).join(name);
    path.is_file().then_some(path)
}

/// The settings of section `[service]` of the service file.
pub(super) fn service(service: &str, env: Env<'_>) -> Result<Vec<(Parameter, String)>, ConfigError> {
    let files = match variable(env, "PGSERVICEFILE") {
        Some(path) => vec![PathBuf::from(path)],
        None => home_file(env, ".pg_service.conf")
            .into_iter()
            .chain(variable(env, "PGSYSCONFDIR").map(|dir| Path::new(&dir).join("pg_service.conf")))
            .collect(),
    };
    for file in &files {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(ConfigError::new(format!(
                    "service file {}: {error}",
                    file.display()
                )));
            }
        };
        if let Some(settings) = service_section(service, &text, file)? {
            return Ok(settings);
        }
    }
    let searched: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    Err(ConfigError::new(format!(
        "service {service:?} is not defined: searched {}",
        if searched.is_empty() {
            "no file (there is no ~/.pg_service.conf)".into()
        } else {
            searched.join(", ")
        }
    )))
}

fn service_section(
    service: &str,
    text: &str,
    file: &Path,
) -> Result<Option<Vec<(Parameter, String)>>, ConfigError> {
    let mut found: Option<Vec<(Parameter, String)>> = None;
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if name.strip_suffix(']') == Some(service) {
                found = Some(Vec::new());
            }
            continue;
        }
        let Some(settings) = &mut found else { continue };
        let place = format!("in {} line {number}", file.display());
        let (name, value) = line
            .split_once('=')
            .ok_or_else(|| ConfigError::new(format!("{place}: expected name=value")))?;
        match Parameter::named(name.trim_end()) {
            None | Some(Parameter::Service) => {
                return Err(ConfigError::unknown_parameter(name.trim_end(), &place));
            }
            // The first wins here, in a URL the last.
            Some(parameter) if settings.iter().any(|(known, _)| *known == parameter) => {}
            Some(parameter) => settings.push((parameter, value.trim_start().to_owned())),
        }
    }
    Ok(found)
}

/// Whether others than its owner may look at a file.
pub(super) fn is_open(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o077 != 0)
}

/// The password for a connection, from the password file.
///
/// A file that others may read is ignored with a warning, as in libpq; so is one that cannot be read.
pub(super) fn password(file: &Path, host: &str, port: u16, database: &str, user: &str) -> Option<String> {
    let metadata = fs::metadata(file).ok()?;
    if !metadata.is_file() {
        return None;
    }
    if is_open(file) {
        tracing::warn!(file = %file.display(), "password file ignored: others may read it; set its mode to 0600");
        return None;
    }
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "password file ignored");
            return None;
        }
    };
    let port = port.to_string();
    let wanted = [host, &port, database, user];
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let fields = password_fields(line);
            let (password, keys) = fields.split_last()?;
            let fits = keys.len() == wanted.len()
                && keys
                    .iter()
                    .zip(wanted)
                    .all(|(key, want)| key.star || key.text == want);
            fits.then(|| password.text.clone())
        })
}

struct Field {
    text: String,
    /// Written as a bare `*`, which fits all.
    star: bool,
}

/// `host:port:database:user:password`, where `\` protects `:` and `\`.
fn password_fields(line: &str) -> Vec<Field> {
    let mut fields = vec![String::new()];
    let mut raw = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        // In the last field a ':' is part of the password.
        if c == ':' && fields.len() < 5 {
            fields.push(String::new());
            raw.push(String::new());
            continue;
        }
        let plain = if c == '\\' {
            chars.next().unwrap_or('\\')
        } else {
            c
        };
        if let (Some(field), Some(raw)) = (fields.last_mut(), raw.last_mut()) {
            field.push(plain);
            raw.push(c);
        }
    }
    fields
        .into_iter()
        .zip(raw)
        .map(|(text, raw)| Field {
            text,
            star: raw == "*",
        })
        .collect()
}

/// The name of the operating system's user, as libpq finds it; `$USER` may be another's after `sudo` or `setpriv`.
pub(super) fn system_user() -> Option<String> {
    let uid = fs::metadata("/proc/self").ok()?.uid().to_string();
    let accounts = fs::read_to_string("/etc/passwd").ok()?;
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(mode: u32, text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn the_first_line_that_fits_gives_the_password() {
        let file = file(
            0o600,
            "# h:1:d:u:comment\nshort:line\nh:1:other:u:no\nh:*:d:u:first\n*:*:*:*:any:with\\:colon\n\\*:1:d:u:star\n",
        );
        let find = |host: &str, port, database: &str| password(file.path(), host, port, database, "u");
        assert_eq!(find("h", 1, "d").as_deref(), Some("first"));
        assert_eq!(find("x", 2, "y").as_deref(), Some("any:with:colon"));
        assert_eq!(find("h", 1, "other").as_deref(), Some("no"));
    }

    #[test]
    fn a_password_file_that_others_may_read_is_ignored() {
        let open = file(0o644, "*:*:*:*:pw\n");
        assert_eq!(password(open.path(), "h", 1, "d", "u"), None);
        assert_eq!(password(Path::new("/nonexistent"), "h", 1, "d", "u"), None);
    }

    #[test]
    fn a_service_section_is_read_and_checked() {
        let good = file(
            0o644,
            "[a]\nhost=no\n\n[b]\n# comment\nhost = h1\nport=5\nport=6\n[c]\nhost=no\n",
        );
        let path = good.path().to_str().unwrap().to_owned();
        let env = |name: &str| (name == "PGSERVICEFILE").then(|| path.clone());
        let settings = service("b", &env).unwrap();
        assert_eq!(
            settings,
            [
                (Parameter::Host, "h1".to_owned()),
                (Parameter::Port, "5".to_owned())
            ]
        );
        let error = service("z", &env).unwrap_err().to_string();
        assert!(error.contains("\"z\"") && error.contains(&path), "{error}");

        let bad = file(0o644, "[b]\nhots=h1\n");
        let path = bad.path().to_str().unwrap().to_owned();
        let env = |name: &str| (name == "PGSERVICEFILE").then(|| path.clone());
        let error = service("b", &env).unwrap_err().to_string();
        assert!(error.contains("\"hots\"") && error.contains("line 2"), "{error}");
    }
}
