//! Takes secrets out of text that leaves the process: errors, logs, echoed arguments.
//!
//! Errors are written without secrets in the first place; this is the net below them, because a URL can reach
//! a message by ways nobody thought of (an argument in the wrong place, a server that quotes its input).

use std::borrow::Cow;

const MASK: &str = "***";
/// Parameters whose value is a secret, in URLs and `key=value` connection strings.
const SECRET_PARAMETERS: [&str; 4] = ["password", "passwd", "pwd", "sslpassword"];

/// `text` with the passwords of URLs and the values of password parameters replaced by `***`.
pub fn redact(text: &str) -> Cow<'_, str> {
    let lower = text.to_ascii_lowercase();
    let suspicious = lower.contains("://") || SECRET_PARAMETERS.iter().any(|name| lower.contains(name));
    if !suspicious {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let length = rest.find(ends_token).unwrap_or(rest.len());
        let (token, after) = rest.split_at(length);
        out.push_str(&redact_parameters(&redact_userinfo(token)));
        let delimiter = after.chars().next().map_or(0, char::len_utf8);
        out.push_str(&after[..delimiter]);
        rest = &after[delimiter..];
    }
    Cow::Owned(out)
}

/// Whether `text` holds something [`redact`] takes out.
pub fn has_secret(text: &str) -> bool {
    redact(text) != text
}

fn ends_token(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>')
}

/// The last `@` ends the password even if that is wrong for a URL with `@` in its parameters: masking too much
/// is the safe side.
fn redact_userinfo(token: &str) -> Cow<'_, str> {
    let Some(start) = token.find("://").map(|at| at + "://".len()) else {
        return Cow::Borrowed(token);
    };
    let authority = &token[start..];
    match (authority.find(':'), authority.rfind('@')) {
        (Some(colon), Some(at)) if colon < at => {
            let user = &authority[..=colon];
            Cow::Owned(format!("{}{user}{MASK}{}", &token[..start], &authority[at..]))
        }
        _ => Cow::Borrowed(token),
    }
}

fn redact_parameters(token: &str) -> Cow<'_, str> {
    let lower = token.to_ascii_lowercase();
    let mut spans = Vec::new();
    for name in SECRET_PARAMETERS {
        for (at, _) in lower.match_indices(name) {
            let value = at + name.len() + 1;
            let assigned = lower.as_bytes().get(value - 1) == Some(&b'=');
            if assigned && spans.iter().all(|(start, _)| *start != value) {
                let end = lower[value..].find('&').map_or(lower.len(), |end| value + end);
                spans.push((value, end));
            }
        }
    }
    if spans.is_empty() {
        return Cow::Borrowed(token);
    }
    spans.sort_unstable();
    let mut out = String::with_capacity(token.len());
    let mut from = 0;
    for (start, end) in spans {
        if start < from {
            continue;
        }
        out.push_str(&token[from..start]);
        out.push_str(MASK);
        from = end;
    }
    out.push_str(&token[from..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_urls_are_masked() {
        for (text, redacted) in [
            ("no secret here", "no secret here"),
            ("db://u:secret@h:5432/d", "db://u:***@h:5432/d"),
            ("db://u:se@cr/et?@h/d is bad", "db://u:***@h/d is bad"),
            (
                "unexpected argument 'db://u:s3@h/d' found",
                "unexpected argument 'db://u:***@h/d' found",
            ),
            ("db://u@h:5432/d", "db://u@h:5432/d"),
            ("db://h:5432/d", "db://h:5432/d"),
            (
                "db://u@h/d?password=secret&sslmode=require",
                "db://u@h/d?password=***&sslmode=require",
            ),
            ("host=h password=secret user=u", "host=h password=*** user=u"),
            (
                "db://h/?sslpassword=a&password=b",
                "db://h/?sslpassword=***&password=***",
            ),
            ("PASSWORD=ä", "PASSWORD=***"),
            (
                "password authentication failed for user \"u\"",
                "password authentication failed for user \"u\"",
            ),
            ("password=", "password=***"),
        ] {
            assert_eq!(redact(text), redacted);
        }
        assert!(has_secret("db://u:x@h/"));
        assert!(!has_secret("db://u@h/"));
    }
}
