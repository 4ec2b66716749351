//! What is known of the target's tables, shared by all sessions of a run: what one has learned about the order that a
//! table needs, the next one knows.

use std::sync::Arc;

use cdc_core::Result;
use cdc_core::plan::TargetCatalog;
use tokio::sync::Mutex;

use super::RunContext;
use super::tables::widened;

/// The facts of a run.
#[derive(Debug, Default)]
pub(super) struct TargetFacts {
    catalog: Arc<TargetCatalog>,
    /// one reading at a time, so that an older one does not replace a newer
    reading: Mutex<()>,
}

impl TargetFacts {
    /// The facts, which change for whoever holds them when they are read again.
    pub(super) fn catalog(&self) -> Arc<TargetCatalog> {
        Arc::clone(&self.catalog)
    }

    /// Reads the facts: for a new session, and after the target's schema was changed by us.
    pub(super) async fn read(&self, context: &RunContext) -> Result<()> {
        let _reading = self.reading.lock().await;
        let state = context.target.stream_state(&context.names.job).await?;
        let selection = widened(&context.selection, &state.seed);
        let mut tables = context.target.target_tables(&selection).await?;
        for table in &mut tables {
            table.policy = context.settings.conflicts.policy(&table.name);
        }
        self.catalog.replace(tables);
        Ok(())
    }
}
