//! The connection to a PostgreSQL server: stream, login, simple queries, the pipeline of the extended protocol, and
//! COPY in.
//!
//! tokio-postgres serves catalog queries and snapshot reads ([`client`]). What it cannot do is here: replication
//! mode, a pipeline of any length with one Sync and bounded memory, and COPY that reports an error at once.

pub mod client;
pub mod connection;
pub mod copy;
pub mod copy_out;
pub mod pipeline;
pub mod rows;
pub mod stream;
pub mod version;

mod attempts;
pub(crate) mod channel;
mod login;
pub(crate) mod session;
pub(crate) mod silence;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(any(test, feature = "testing"))]
pub mod hearing;
#[cfg(test)]
mod tests;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;

pub(crate) use client::OpenedClient;
pub use connection::{CancelToken, Connection, TransactionStatus};
pub use copy::CopyIn;
pub use login::AuthMethod;
pub use pipeline::{Completion, Format, Pipeline, PipelineError, Stage};
pub use rows::{Column, QueryResult, Row};
pub use session::{Purpose, ReplicationSettings};
pub(crate) use session::{identifier, literal};
pub(crate) use silence::{Backend, Owed};
pub use stream::Stream;
pub use version::{Feature, ServerVersion};

/// Logs a NoticeResponse.
fn notice(mut fields: ErrorFields<'_>) {
    let (mut severity, mut message) = (String::new(), String::new());
    while let Ok(Some(field)) = fields.next() {
        match field.type_() {
            // 'S' may be translated; 'V' comes after it.
            b'S' | b'V' => severity = String::from_utf8_lossy(field.value_bytes()).into_owned(),
            b'M' => message = String::from_utf8_lossy(field.value_bytes()).into_owned(),
            _ => {}
        }
    }
    if severity == "WARNING" {
        tracing::warn!(message, "warning from the server");
    } else {
        tracing::debug!(severity, message, "notice from the server");
    }
}
