//! `${env:NAME}` and `${file:/path}` in the strings of a job file, so that secrets stay out of it.

use std::path::Path;

/// Looks up an environment variable; a parameter so that tests need not change the process.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces every placeholder of `text`. `$${` stands for `${`. What is inserted is not looked at again, and one
/// line break at the end of a file is dropped. Relative files are looked up in `folder`.
///
/// # Errors
/// Names the placeholder that cannot be replaced, never what it would be replaced with.
pub(super) fn expand(text: &str, folder: &Path, environment: Environment<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, placeholder) = rest.split_at(at);
        if let Some(literal) = before.strip_suffix('$') {
            out.push_str(literal);
            out.push_str("${");
            rest = &placeholder[2..];
            continue;
        }
        out.push_str(before);
        let end = placeholder
            .find('}')
            .ok_or_else(|| "`${` without `}` (write `$${` for a literal one)".to_owned())?;
        out.push_str(&replacement(&placeholder[2..end], folder, environment)?);
        rest = &placeholder[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn replacement(inner: &str, folder: &Path, environment: Environment<'_>) -> Result<String, String> {
    match inner.split_once(':') {
        Some(("env", name)) => {
            environment(name).ok_or_else(|| format!("environment variable {name} is not set"))
        }
        Some(("file", path)) => {
            let mut content = std::fs::read_to_string(folder.join(path))
                .map_err(|error| format!("cannot read file {path}: {error}"))?;
            if content.ends_with('\n') {
                content.pop();
                if content.ends_with('\r') {
                    content.pop();
                }
            }
            Ok(content)
        }
        _ => Err(format!(
            "unknown placeholder `${{{inner}}}` (there are `${{env:NAME}}` and `${{file:/path}}`)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        expand(text, Path::new("/nowhere"), &|name| {
            (name == "WHO").then(|| "${env:WHO}".to_owned())
        })
    }

    #[test]
    fn placeholders_are_replaced_once() {
        assert_eq!(expanded("plain $ {text}"), Ok("plain $ {text}".into()));
        assert_eq!(
            expanded("<${env:WHO}|${env:WHO}>"),
            Ok("<${env:WHO}|${env:WHO}>".into())
        );
        assert_eq!(expanded("$${env:X}"), Ok("${env:X}".into()));
    }

    #[test]
    fn what_cannot_be_replaced_is_named() {
        for (text, part) in [
            ("${env:NOPE}", "NOPE is not set"),
            ("${file:gone}", "cannot read file gone"),
            ("${vault:x}", "unknown placeholder `${vault:x}`"),
            ("${env:X", "without `}`"),
        ] {
            let message = expanded(text).expect_err(text);
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn files_lose_their_last_line_break() {
        let folder = tempfile::tempdir().expect("temporary folder");
        std::fs::write(folder.path().join("pw"), "se\ncret\r\n").expect("written");
        assert_eq!(
            expand("<${file:pw}>", folder.path(), &|_| None),
            Ok("<se\ncret>".into())
        );
    }
}
