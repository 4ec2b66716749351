//! The job file that `init` writes: every key with its meaning, what is a default commented out.

use super::keys::{KEYS, RULES};

/// A commented job file. `values` are `(section.key, TOML value)` that are set; the others are shown with their
/// defaults but commented out, except the URLs, which come from the environment.
pub fn template(job: Option<&str>, values: &[(&str, String)]) -> String {
    let mut out = String::from(
        "# A cdc-sync job. What is commented out is the default, or an example where the default is none.\n",
    );
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            out.push_str(&format!("\n[{section}]\n"));
        }
        for line in key.doc.lines() {
            out.push_str(&format!("# {line}\n"));
        }
        let path = format!("{section}.{}", key.name);
        let given = match (path.as_str(), job) {
            ("job.name", Some(job)) => Some(toml_string(job)),
            _ => values
                .iter()
                .find(|(name, _)| *name == path)
                .map(|(_, value)| value.clone()),
        };
        match given {
            Some(value) => out.push_str(&format!("{} = {value}\n", key.name)),
            None if key.name == "url" => out.push_str(&format!("{} = {}\n", key.name, key.example)),
            None if (key.section, key.name) == RULES => {
                for line in key.example.lines() {
                    out.push_str(&format!("#{line}\n"));
                }
            }
            None => out.push_str(&format!("#{} = {}\n", key.name, key.example)),
        }
    }
    out
}

/// A TOML basic string: JSON's escapes are a part of TOML's.
pub fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse::parse;

    #[test]
    fn what_init_writes_is_read_back_also_with_every_comment_taken_off() {
        let environment = |name: &str| Some(format!("db://{name}/d"));
        let text = template(Some("shop"), &[("tables.include", "[\"public.*\"]".to_owned())]);
        let read = parse(&text, Path::new(""), &environment, &[]).expect("as written");
        assert_eq!(read.job.as_deref(), Some("shop"));
        assert_eq!(read.include, Some(vec!["public.*".to_owned()]));
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let read = parse(&uncommented, Path::new(""), &environment, &[]).expect("uncommented");
        assert_eq!(read.seed_parallel, Some(4));
        assert_eq!(read.rules.len(), 1);
        assert_eq!(read.sequence_buffer, Some(1000));
    }
}
