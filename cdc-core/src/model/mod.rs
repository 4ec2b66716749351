//! What all engines share: names, schemas, types, values, positions and transaction records.

mod canonical;
mod position;
mod schema;
mod txn;
mod types;
mod value;

pub use canonical::{CanonicalReader, encode_canonical};
pub use position::{Position, SourceIdentity, TxnId, TxnSeq};
pub use schema::{CellReader, ColumnSchema, Identity, TableName, TableRole, TableSchema};
pub use txn::{ChangeCounts, TxnKind, TxnRecord};
pub use types::{DataType, Encoding};
pub use value::Value;
