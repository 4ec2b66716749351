//! What leaves the process: data on stdout, errors on stderr, and with `--json` one object on stdout.

use std::io::{self, Write};

use cdc_core::Error;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::exit;
use crate::redact::redact;

/// The version of the JSON objects; raised when a stable key changes its meaning.
const VERSION: u32 = 1;

/// How a verb ended.
#[derive(Debug)]
pub struct Report {
    /// the exit code
    pub exit: u8,
    /// the verb's own keys of the JSON object
    pub body: Map<String, Value>,
    /// the same for people
    pub human: String,
    /// why it did not reach its goal
    pub error: Option<Error>,
}

impl Report {
    /// A verb that reached an answer, which `exit` tells in one number.
    pub fn new(exit: u8, body: &impl Serialize, human: String) -> Self {
        Self {
            exit,
            body: object(body),
            human,
            error: None,
        }
    }

    /// A verb that failed with nothing to say but why.
    pub fn failed(error: Error) -> Self {
        Self {
            exit: exit::code(error.kind()),
            body: Map::new(),
            human: String::new(),
            error: Some(error),
        }
    }

    /// Adds why the goal was not reached, which decides the exit code.
    #[must_use]
    pub fn with_error(mut self, error: Option<Error>) -> Self {
        if let Some(error) = &error {
            self.exit = exit::code(error.kind());
        }
        self.error = error;
        self
    }

    /// The JSON object.
    pub fn envelope(&self, kind: &str, job: Option<&str>) -> Value {
        let mut object = Map::new();
        object.insert("version".into(), VERSION.into());
        object.insert("kind".into(), kind.into());
        object.insert("job".into(), job.into());
        object.insert("exit".into(), self.exit.into());
        object.insert(
            "error".into(),
            self.error.as_ref().map_or(Value::Null, error_object),
        );
        object.extend(self.body.clone());
        for key in stable_keys(kind) {
            object.entry(*key).or_insert(Value::Null);
        }
        Value::Object(object)
    }
}

/// Keys that a verb's object always has: null where a failed verb cannot tell.
fn stable_keys(kind: &str) -> &'static [&'static str] {
    match kind {
        "check" => &["findings", "counts"],
        "run" => &[
            "seed",
            "transactions",
            "changes",
            "position",
            "lag_ms",
            "sequences",
            "caught_up",
        ],
        "status" => &[
            "state",
            "lag",
            "tables",
            "slot",
            "changes",
            "conflicts",
            "throttled",
            "next_command",
        ],
        "conflicts" => &["conflicts"],
        "resync" => &["tables", "running", "setback"],
        "verify" => &["tables", "differences", "unverifiable"],
        "report" => &[
            "program",
            "generated_at",
            "config_sha256",
            "source",
            "target",
            "missing",
            "status",
            "accounting",
            "timings",
            "tables",
            "sequences",
            "conflicts",
            "findings",
            "not_carried",
            "verify",
            "repair",
        ],
        "repair" => &["tables", "totals", "differences", "unverifiable"],
        _ => &[],
    }
}

fn object(body: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(body) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// An error as JSON has it.
pub fn error_object(error: &Error) -> Value {
    let text = |text: Option<&str>| text.map_or(Value::Null, |text| redact(text).into());
    serde_json::json!({
        "code": exit::name(error.kind()),
        "message": redact(&message(error)),
        "object": text(error.object_name()),
        "remedy": text(error.remedy_text()),
    })
}

/// What went wrong and why, without object and remedy.
pub(crate) fn message(error: &Error) -> String {
    let mut message = error.message().to_owned();
    if let Some(code) = error.server_code() {
        message.push_str(&format!(" (SQLSTATE {code})"));
    }
    if let Some(position) = error.position() {
        message.push_str(&format!(" at {position}"));
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !message.contains(&text) {
            message.push_str(&format!(": {text}"));
        }
        cause = inner.source();
    }
    message
}

/// An error for people: what, where, what next.
pub fn describe(error: &Error) -> String {
    let mut out = format!("error: {}", message(error));
    if let Some(object) = error.object_name() {
        out.push_str(&format!("\n  where: {object}"));
    }
    if let Some(remedy) = error.remedy_text() {
        out.push_str(&format!("\n  next:  {remedy}"));
    }
    out.push('\n');
    redact(&out).into_owned()
}

/// Writes data to stdout. A reader that went away is not an error: whoever reads has what he wanted.
pub fn data(text: &str) -> Printed {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Printed::Read,
        Err(_) => Printed::ReaderGone,
    }
}

/// Whether anyone still reads stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Printed {
    /// written
    Read,
    /// the other end of the pipe is closed
    ReaderGone,
}

/// Writes to stderr; when that fails there is nobody left to tell.
pub fn notice(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Ends a verb: its object or its text on stdout, its error on stderr.
pub fn finish(kind: &str, job: Option<&str>, json: bool, report: &Report) {
    if json {
        data(&format!("{}\n", report.envelope(kind, job)));
    } else {
        data(&report.human);
    }
    if let Some(error) = &report.error {
        notice(&describe(error));
    }
}

#[cfg(test)]
mod tests {
    use cdc_core::Kind;

    use super::*;

    fn error() -> Error {
        Error::new(Kind::Unreachable, "cannot connect")
            .object("db://u:secret@h/d")
            .remedy("start the server")
            .code("08001")
            .caused_by(io::Error::other("refused by db://u:secret@h/d"))
    }

    #[test]
    fn the_envelope_of_an_error() {
        let report = Report::failed(error());
        assert_eq!(
            report.envelope("check", None).to_string(),
            "{\"version\":1,\"kind\":\"check\",\"job\":null,\"exit\":12,\"error\":{\"code\":\"unreachable\",\
             \"message\":\"cannot connect (SQLSTATE 08001): refused by db://u:***@h/d\",\
             \"object\":\"db://u:***@h/d\",\"remedy\":\"start the server\"},\"findings\":null,\"counts\":null}"
        );
    }

    #[test]
    fn a_body_follows_the_common_keys() {
        #[derive(Serialize)]
        struct Body {
            differences: u64,
        }
        let report = Report::new(5, &Body { differences: 2 }, String::new());
        assert_eq!(
            report.envelope("verify", Some("shop")).to_string(),
            "{\"version\":1,\"kind\":\"verify\",\"job\":\"shop\",\"exit\":5,\"error\":null,\"differences\":2,\
             \"tables\":null,\"unverifiable\":null}"
        );
    }

    #[test]
    fn errors_for_people_say_what_where_and_next() {
        assert_eq!(
            describe(&error()),
            "error: cannot connect (SQLSTATE 08001): refused by db://u:***@h/d\n  where: db://u:***@h/d\n  \
             next:  start the server\n"
        );
    }
}
