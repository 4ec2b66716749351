//! Tables described once, from which models, source schemas and target facts are made.

use std::sync::Arc;

use super::text::{MODEL_TEXT, TextReader, parse};
use crate::conflict::Policy;
use crate::error::Result;
use crate::model::{
    CanonicalReader, CellReader, ColumnSchema, DataType, Encoding, Identity, TableName, TableRole,
    TableSchema, encode_canonical,
};
use crate::plan::{TargetColumn, TargetTable, UniqueKey};

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnSpec {
    /// name
    pub name: String,
    /// what it holds: an integer of 64 bits, text, a decimal or a truth value
    pub data_type: DataType,
    /// whether NULL is refused
    pub not_null: bool,
    /// whether `a` equals `A`; text only
    pub case_insensitive: bool,
    /// the column whose text, after `g:`, is this one's value, computed by the server; text only
    pub generated_from: Option<usize>,
    /// what an insert that does not name it stores
    pub default: Option<Vec<u8>>,
}

impl ColumnSpec {
    /// A nullable column without any special property.
    pub fn new(name: impl Into<String>, data_type: DataType) -> Self {
        Self {
            name: name.into(),
            data_type,
            not_null: false,
            case_insensitive: false,
            generated_from: None,
            default: None,
        }
    }

    /// The same, refusing NULL.
    #[must_use]
    pub fn not_null(mut self) -> Self {
        self.not_null = true;
        self
    }

    /// An integer column.
    pub fn int(name: impl Into<String>) -> Self {
        Self::new(
            name,
            DataType::Int {
                bits: 64,
                signed: true,
            },
        )
    }

    /// A text column.
    pub fn text(name: impl Into<String>) -> Self {
        Self::new(name, DataType::Text)
    }
}

/// A unique constraint, checked row by row as statements run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySpec {
    /// its columns
    pub columns: Vec<usize>,
    /// whether it is the primary key
    pub primary: bool,
}

/// A foreign key, checked when a statement ends; nothing cascades.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKeySpec {
    /// its columns
    pub columns: Vec<usize>,
    /// the table it refers to
    pub parent: TableName,
    /// the columns it refers to: a key of that table
    pub parent_columns: Vec<usize>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// name
    pub name: TableName,
    /// columns
    pub columns: Vec<ColumnSpec>,
    /// unique constraints
    pub keys: Vec<KeySpec>,
    /// foreign keys
    pub foreign_keys: Vec<ForeignKeySpec>,
    /// whether a trigger records every row change, so that their order is visible
    pub trigger: bool,
}

impl TableSpec {
    /// A table without keys.
    pub fn new(name: TableName, columns: Vec<ColumnSpec>) -> Self {
        Self {
            name,
            columns,
            keys: Vec::new(),
            foreign_keys: Vec::new(),
            trigger: false,
        }
    }

    /// The same with a primary key.
    #[must_use]
    pub fn primary_key(mut self, columns: impl Into<Vec<usize>>) -> Self {
        self.keys.insert(
            0,
            KeySpec {
                columns: columns.into(),
                primary: true,
            },
        );
        self
    }

    /// The same with one more unique constraint.
    #[must_use]
    pub fn unique(mut self, columns: impl Into<Vec<usize>>) -> Self {
        self.keys.push(KeySpec {
            columns: columns.into(),
            primary: false,
        });
        self
    }

    /// The same with a foreign key.
    #[must_use]
    pub fn references(
        mut self,
        columns: impl Into<Vec<usize>>,
        parent: &TableName,
        parent_columns: impl Into<Vec<usize>>,
    ) -> Self {
        self.foreign_keys.push(ForeignKeySpec {
            columns: columns.into(),
            parent: parent.clone(),
            parent_columns: parent_columns.into(),
        });
        self
    }

    /// The columns of the primary key, or none.
    pub fn primary_columns(&self) -> &[usize] {
        self.keys
            .iter()
            .find(|key| key.primary)
            .map_or(&[], |key| key.columns.as_slice())
    }

    /// The table as a source describes it, with `identity_columns` flagged. Generated columns are not sent.
    pub fn schema(
        &self,
        identity: Identity,
        identity_columns: &[usize],
        role: TableRole,
        format: &CellFormat,
    ) -> Arc<TableSchema> {
        let columns = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| ColumnSchema {
                name: column.name.clone(),
                data_type: column.data_type.clone(),
                declared: Box::default(),
                encoding: format.encoding,
                identity: identity_columns.contains(&index),
            });
        Arc::new(TableSchema {
            name: self.name.clone(),
            columns: columns.collect(),
            identity,
            role,
            reader: Arc::clone(&format.reader),
        })
    }

    /// The facts of the table as a target, with its foreign keys checked or not. The foreign keys of other
    /// tables are not its business: see [`super::MemoryTarget`], which adds them.
    pub fn facts(&self, foreign_keys_checked: bool) -> TargetTable {
        let columns = self.columns.iter().map(|column| TargetColumn {
            name: column.name.clone(),
            type_name: format!("{:?}", column.data_type),
            generated: column.generated_from.is_some(),
            byte_comparable: !column.case_insensitive,
            has_equality: true,
        });
        let locates = |key: &&KeySpec| {
            key.columns
                .iter()
                .all(|column| self.columns.get(*column).is_some_and(|c| c.not_null))
        };
        let keys = self.keys.iter().filter(locates).map(|key| UniqueKey {
            columns: key.columns.clone(),
            primary: key.primary,
        });
        TargetTable {
            name: self.name.clone(),
            columns: columns.collect(),
            keys: keys.collect(),
            unique_constraints: self.keys.len(),
            policy: Policy::Stop,
            cascaded: false,
            sees_others: self.trigger,
            acts_on_others: false,
            partitioned: false,
            order_visible: self.trigger || (foreign_keys_checked && !self.foreign_keys.is_empty()),
            references: self.foreign_keys.iter().map(|key| key.parent.clone()).collect(),
        }
    }
}

/// The encoding in which a source's cells come, and what reads it.
#[derive(Debug, Clone)]
pub struct CellFormat {
    pub(super) encoding: Encoding,
    reader: Arc<dyn CellReader>,
}

impl CellFormat {
    /// The models' own text.
    pub fn text() -> Self {
        Self::native(MODEL_TEXT, Arc::new(TextReader))
    }

    /// The core's typed encoding: what a sink meets that reads another engine's source.
    pub fn canonical() -> Self {
        Self::native(Encoding::CANONICAL, Arc::new(CanonicalReader))
    }

    /// An engine's text encoding: cells hold the texts of the values.
    pub fn native(encoding: Encoding, reader: Arc<dyn CellReader>) -> Self {
        Self { encoding, reader }
    }

    /// The bytes of a cell for a value given as text.
    ///
    /// # Errors
    /// When the text is not of the type.
    pub fn encode(&self, data_type: &DataType, text: &[u8]) -> Result<Vec<u8>> {
        if self.encoding != Encoding::CANONICAL {
            return Ok(text.to_vec());
        }
        let mut bytes = Vec::new();
        encode_canonical(&parse(data_type, text)?, &mut bytes);
        Ok(bytes)
    }
}
