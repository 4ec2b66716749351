//! The job file, and the values of flags.

use std::path::Path;

use cdc_sync::config::{self, DatabaseUrl, Flags, Settings};

use crate::limit::within;

/// The tree of the file and, for each of its few bytes that are wrong, a message that names what is known.
fn most_bytes(bytes: &[u8]) -> usize {
    (64 << 10) + 512 * bytes.len()
}

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if refers_to_another_folder(text) {
        return;
    }
    let environment = |name: &str| (name == "SET").then(|| "value".to_owned());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    within(most_bytes(bytes), || {
        match config::parse(text, folder, &environment, &["target.url"]) {
            Ok(file) => {
                let shown = format!("{file:?}");
                let settings = Settings::resolve(Flags::default(), file);
                assert_eq!(settings.sha256().len(), 64, "{shown}");
            }
            Err(issues) => {
                for issue in issues {
                    assert!(issue.line <= 1 + text.matches('\n').count(), "{issue}");
                }
            }
        }
        let _ = config::expand_flag(text, &environment);
        let _ = config::parse_policy_rule(text);
        let _ = config::parse_duration(text);
        let _ = config::parse_size(text);
        let _ = config::parse_count(text);
        let _ = DatabaseUrl::new(text).to_string();
    });
}

/// What the operator's own files hold is up to the operator; some devices never end.
fn refers_to_another_folder(text: &str) -> bool {
    let paths = text.split("file:").skip(1);
    let mut paths = paths.map(|rest| rest.split_once('}').map_or(rest, |(path, _)| path));
    paths.any(|path| path.contains(['/', '\\']))
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let seeds = [
        ("every-key", EVERY_KEY),
        ("issues", ISSUES),
        ("rule-of-a-flag", "public.*=lww:cdc_ts"),
        ("duration", "1h 30m"),
        ("size", "1.5GiB"),
    ];
    seeds
        .map(|(name, text)| (name, text.as_bytes().to_vec()))
        .to_vec()
}

const EVERY_KEY: &str = r#"[job]
name = "shop"
[source]
url = "postgres://u:${file:Cargo.toml}@blue"
[target]
url = "${env:GONE}"
[tables]
include = ["public.*", "$${literal}"]
exclude = ["tmp_?"]
partitions = "root"
[[tables.rule]]
match = "accounts"
conflict = "lww"
version = { column = "ts", node = "node" }
[[tables.rule]]
match = "*"
conflict = "dead_letter"
[seed]
parallel = 0x8
max_retained_wal = "50GB"
part_mb = 128
[apply]
group_rows = 1_000
group_mb = 4
[heartbeat]
interval = "250ms"
[sequences]
buffer = 10
[http]
listen = "${env:SET}:9187"
[log]
format = "json"
"#;
const ISSUES: &str = r#"job = 1
[sourec]
url = "x"
[seed]
paralel = 4
parallel = "four"
part_mb = 99999999999999999999
[heartbeat]
interval = 1979-05-27T07:32:00Z
[[tables.rule]]
match = ""
conflict = "lww"
version = { colum = 1.5 }
[log]
format =
"#;
