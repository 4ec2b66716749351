//! A target whose tables are those of a stream, for planning without a server.

use std::collections::BTreeMap;
use std::sync::Arc;

use cdc_core::conflict::Policy;
use cdc_core::model::Identity;
use cdc_core::plan::{TargetCatalog, TargetColumn, TargetTable, UniqueKey};
use cdc_core::{Batch, TableName, TableSchema};

/// A catalog with every table that the batches name. Their keys are those of the source; nothing watches them.
pub fn catalog<'b>(batches: impl IntoIterator<Item = &'b Batch>) -> Arc<TargetCatalog> {
    let mut tables: BTreeMap<TableName, TargetTable> = BTreeMap::new();
    for schema in batches.into_iter().flat_map(|batch| batch.tables()) {
        tables.entry(schema.name.clone()).or_insert_with(|| table(schema));
    }
    Arc::new(TargetCatalog::new(tables.into_values().collect()))
}

fn table(schema: &TableSchema) -> TargetTable {
    let column = |column: &cdc_core::ColumnSchema| TargetColumn {
        name: column.name.clone(),
        type_name: "text".into(),
        generated: false,
        byte_comparable: true,
        has_equality: true,
    };
    let key: Vec<usize> = (0..schema.columns.len())
        .filter(|index| schema.identity == Identity::Key && schema.columns[*index].identity)
        .collect();
    TargetTable {
        name: schema.name.clone(),
        columns: schema.columns.iter().map(column).collect(),
        unique_constraints: usize::from(!key.is_empty()),
        keys: vec![UniqueKey {
            columns: key,
            primary: true,
        }],
        order_visible: false,
        cascaded: false,
        sees_others: false,
        acts_on_others: false,
        partitioned: false,
        policy: Policy::Stop,
        references: Vec::new(),
    }
}
