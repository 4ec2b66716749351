//! What to do about a stream that stopped because the tables have grown apart.

use cdc_core::engine::TableInfo;
use cdc_core::{Error, Kind, Result, TableName};

use super::RunContext;

/// Adds to the error of a stream that met a table of another shape the statements to run on the target. The error stays
/// as it is when there are none, or the servers cannot be asked.
pub(super) async fn advised(context: &RunContext, error: Error) -> Error {
    if error.kind() != Kind::Schema {
        return error;
    }
    match statements(context).await {
        Ok(statements) if !statements.is_empty() => {
            let run = format!(
                "run on the target: {} Then run again: the stream goes on at that transaction. A column that may be \
                 NULL can be added to the target first; then nothing stops",
                statements.join(" ")
            );
            error.with_remedy(run)
        }
        Ok(_) => error,
        Err(unknown) => {
            tracing::debug!(%unknown, "cannot say what to run on the target");
            error
        }
    }
}

async fn statements(context: &RunContext) -> Result<Vec<String>> {
    let of_source = context.source.inspect(&context.selection).await?;
    let of_target = context.target.inspect(&context.selection).await?;
    context.source.add_columns(&lacking(&of_source, &of_target)).await
}

/// Columns of the source that the target's table of that name lacks.
fn lacking(source: &[TableInfo], target: &[TableInfo]) -> Vec<(TableName, String)> {
    let mut lacking = Vec::new();
    for table in source {
        let Some(peer) = target.iter().find(|peer| peer.name == table.name) else {
            continue;
        };
        for column in &table.columns {
            if !peer.columns.iter().any(|known| known.name == column.name) {
                lacking.push((table.name.clone(), column.name.clone()));
            }
        }
    }
    lacking
}
