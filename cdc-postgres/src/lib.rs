//! PostgreSQL for `cdc-sync`: walsender client, `pgoutput` decoder, snapshot, catalog and sink.

pub mod config;
pub mod error;
pub mod lsn;
pub mod pgoutput;
pub mod site;
pub mod source;
pub mod text;
pub mod tracker;
pub mod walsender;
pub mod wire;

mod catalog;
mod cleanup;
mod clients;
mod column_types;
mod compare;
mod copy_format;
mod emptying;
mod engine;
mod error_map;
mod first_client;
mod heartbeat;
mod loader;
mod lock;
mod precheck;
mod publication;
mod repair;
mod rounding;
mod schema;
mod sequences;
mod session;
mod sink;
mod slot;
mod slot_state;
mod snapshot;
mod state;
mod storage;
mod target_catalog;
mod tls;

pub use engine::PgEngine;
#[cfg(any(test, feature = "testing"))]
pub use {
    compare::copied_rows, schema::schema_statements, sink::NetBytes, tls::certificate_parts,
    wire::silence::told_by_a_server,
};
