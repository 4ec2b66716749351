//! The options of `START_REPLICATION` for the `pgoutput` plugin.

use crate::error::PgError;
use crate::wire::session::{identifier, literal};
use crate::wire::{Feature, ServerVersion};

/// Which changes the server sends by where they came from (PostgreSQL 16 and later).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Only those made on the server itself.
    None,
    /// All, also those that replication brought there; the server's default.
    Any,
}

/// When large transactions are sent (PostgreSQL 14 and later).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streaming {
    /// After their commit.
    Off,
    /// While they run, in blocks (protocol version 2).
    On,
}

/// What the output plugin is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgoutputOptions {
    /// `proto_version`.
    pub proto_version: u32,
    /// The publications, as named.
    pub publications: Vec<String>,
    /// Send logical messages (PostgreSQL 14 and later).
    pub messages: bool,
    /// Send values in binary form (PostgreSQL 14 and later).
    pub binary: bool,
    /// When large transactions are sent.
    pub streaming: Streaming,
    /// Which changes are sent by where they came from; `None` leaves it to the server (PostgreSQL 16 and later).
    pub origin: Option<Origin>,
}

impl PgoutputOptions {
    /// Protocol version 1 in text form: what every server from 10 on can send.
    pub fn new(publications: Vec<String>) -> PgoutputOptions {
        PgoutputOptions {
            proto_version: 1,
            publications,
            messages: false,
            binary: false,
            streaming: Streaming::Off,
            origin: None,
        }
    }

    /// The option list in parentheses. Options that are off are left out, since older servers do not know them.
    pub(super) fn to_sql(&self, version: ServerVersion) -> Result<String, PgError> {
        if self.publications.is_empty() {
            return Err(PgError::usage("a logical stream needs at least one publication"));
        }
        // A list of quoted identifiers inside a quoted string.
        let publications: Vec<String> = self.publications.iter().map(|name| identifier(name)).collect();
        let mut options = vec![
            ("proto_version", self.proto_version.to_string()),
            ("publication_names", publications.join(",")),
        ];
        let mut add = |feature, name: &'static str, value: &str| {
            version.require(feature, &format!("the pgoutput option {name}"))?;
            options.push((name, value.to_owned()));
            Ok::<_, PgError>(())
        };
        if self.messages {
            add(Feature::PgoutputMessages, "messages", "true")?;
        }
        if self.binary {
            add(Feature::PgoutputBinary, "binary", "true")?;
        }
        if self.streaming == Streaming::On {
            add(Feature::PgoutputStreaming, "streaming", "on")?;
        }
        if let Some(origin) = self.origin {
            let origin = match origin {
                Origin::None => "none",
                Origin::Any => "any",
            };
            add(Feature::PgoutputOrigin, "origin", origin)?;
        }
        let options: Vec<String> = options
            .iter()
            .map(|(name, value)| format!("{} {}", identifier(name), literal(value)))
            .collect();
        Ok(format!("({})", options.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_twice() {
        let options = PgoutputOptions::new(vec!["plain".into(), r#"a"b'c.d,e\f"#.into()]);
        assert_eq!(
            options.to_sql(ServerVersion(120_000)).unwrap(),
            r#"("proto_version" '1', "publication_names" '"plain","a""b''c.d,e\f"')"#
        );
    }

    #[test]
    fn options_of_newer_servers_are_refused_on_older_ones() {
        let mut options = PgoutputOptions::new(vec!["p".into()]);
        options.messages = true;
        options.binary = true;
        options.streaming = Streaming::On;
        options.origin = Some(Origin::None);
        let sql = options.to_sql(ServerVersion(160_000)).unwrap();
        assert_eq!(
            sql,
            r#"("proto_version" '1', "publication_names" '"p"', "messages" 'true', "binary" 'true', "streaming" 'on', "origin" 'none')"#
        );
        let error = options.to_sql(ServerVersion(150_002)).unwrap_err().to_string();
        assert_eq!(
            error,
            "the pgoutput option origin needs PostgreSQL 16, the server is 15.2"
        );
        let error = options.to_sql(ServerVersion(130_000)).unwrap_err().to_string();
        assert!(error.contains("messages needs PostgreSQL 14"), "{error}");
        assert!(
            PgoutputOptions::new(Vec::new())
                .to_sql(ServerVersion(180_000))
                .is_err()
        );
    }
}
