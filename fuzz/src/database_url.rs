//! A database URL, the service file and the password file, separated by lines `---`.

use cdc_postgres::config::Config;
use tempfile::NamedTempFile;

use crate::limit::within;

/// Both files as text, their settings, a few copies of each setting, and the names of all parameters in an error. Most
/// for its length takes a comma in the list of hosts: the default server, with its folder.
fn most_bytes(bytes: &[u8]) -> usize {
    (16 << 10) + 512 * bytes.len()
}

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut parts = text.splitn(3, "\n---\n");
    let url = parts.next().unwrap_or_default();
    let services = written(parts.next());
    let passwords = written(parts.next());
    let path = |file: &NamedTempFile| file.path().display().to_string();
    let environment = |name: &str| match name {
        "PGSERVICEFILE" => services.as_ref().map(path),
        "PGPASSFILE" => passwords.as_ref().map(path),
        "USER" => Some("somebody".to_owned()),
        _ => None,
    };
    within(most_bytes(bytes), || {
        let Ok(config) = Config::parse_with(url, &environment) else {
            return;
        };
        for endpoint in config.endpoints() {
            let _ = config.password_for(endpoint);
        }
        let _ = config.to_libpq_env();
        let shown = config.redacted();
        let again = Config::parse_with(&shown, &environment);
        assert_eq!(again.map(|again| again.redacted()).as_ref(), Ok(&shown));
    });
}

/// A file with this text, as only its owner can read it; `None` when there is none.
fn written(text: Option<&str>) -> Option<NamedTempFile> {
    let text = text?;
    let file = NamedTempFile::new().unwrap();
    std::fs::write(&file, text).unwrap();
    Some(file)
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let seeds = [
        (
            "all-parts",
            "postgresql://us%40er:p%3Aa%2Fss@h1:1,h2,[::1]:3/d%20b?sslmode=require&options=-c%20a%3Db\
             &target_session_attrs=read-write&channel_binding=disable&connect_timeout=5&application_name=x",
        ),
        ("reserved", "postgres://u:sec?ret@h/db"),
        ("socket", "postgres:///db?host=%2Frun%2Fpg&port=5433"),
        ("unknown", "postgres://h/db?sslmod=require"),
        (
            "with-files",
            "postgres://h/db?service=shop\n---\n# services\n[other]\nport=1\n[shop]\nport=5433\nuser = u\n\
             sslmode=verify-full\nsslrootcert=system\n---\n# passwords\nh:5433:db:other:no\n*:*:d\\:b:u:no\n\
             h:5433:*:u:p\\:w:\\\\",
        ),
    ];
    seeds
        .map(|(name, text)| (name, text.as_bytes().to_vec()))
        .to_vec()
}
