//! A PostgreSQL database as a target that suites use at will.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cdc_core::engine::Fence;
use cdc_core::plan::TargetCatalog;
use cdc_core::testing::conformance::SinkHarness;
use cdc_core::testing::{AuditEntry, CellFormat, Contents, ModelDatabase, ModelRow, TableSpec};
use cdc_core::{BoxFuture, Checkpoint, Engine, Error, Result, Sink, Site, TableName, TableSelection};
use cdc_postgres::PgEngine;
use cdc_postgres::text::{PG_TEXT, TextReader};
use testbed::PgCluster;
use tokio_postgres::Client;

use crate::tables::{Folding, OWN, grant, identifier, qualified, replace, row_texts};

const PATIENCE: Duration = Duration::from_secs(60);

/// The cells that a PostgreSQL source sends, which the sink passes on as they are.
pub(crate) fn pg_text() -> CellFormat {
    CellFormat::native(PG_TEXT, Arc::new(TextReader))
}

/// Whose sessions apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Login {
    /// may set triggers and foreign keys to rest, and does
    Superuser,
    /// may not: all fire and are checked
    Ordinary,
}

/// The role that is not a superuser.
const ORDINARY: &str = "applier";

/// One database, whose tables each [`SinkHarness::prepare`] replaces.
pub(crate) struct PgSinkHarness {
    site: Box<dyn Site>,
    /// a superuser's, whatever the login
    client: Client,
    folding: Folding,
    specs: Vec<TableSpec>,
    format: CellFormat,
    login: Login,
    /// held by the instance that took over last
    fence: Mutex<Option<Box<dyn Fence>>>,
}

impl PgSinkHarness {
    /// A harness in a new database.
    pub(crate) async fn open(cluster: &PgCluster, database: &str, login: Login) -> PgSinkHarness {
        cluster.create_database(database).unwrap();
        let url = cluster.url(database);
        let client = testbed::postgres::connect(&url).await.unwrap();
        let url = match login {
            Login::Superuser => url,
            Login::Ordinary => {
                let role = format!(
                    "DO $$ BEGIN CREATE ROLE {ORDINARY} LOGIN; EXCEPTION WHEN duplicate_object THEN END $$;
                     GRANT CREATE ON DATABASE {} TO {ORDINARY};",
                    identifier(database)
                );
                client.batch_execute(&role).await.unwrap();
                url.replacen("postgres@", &format!("{ORDINARY}@"), 1)
            }
        };
        let folding = Folding::of(cluster);
        client.batch_execute(&folding.prerequisites()).await.unwrap();
        let site = PgEngine.connect(&url, PATIENCE).await.unwrap();
        site.prepare_state().await.unwrap();
        PgSinkHarness {
            site,
            client,
            folding,
            specs: Vec::new(),
            format: pg_text(),
            login,
            fence: Mutex::new(None),
        }
    }

    /// The format of the changes from now on.
    pub(crate) fn give(&mut self, format: CellFormat) {
        self.format = format;
    }

    async fn replace_all(&mut self, db: &ModelDatabase, first: &Checkpoint) -> Result<Arc<TargetCatalog>> {
        self.hold(None);
        let stream = first.stream.replace('\'', "''");
        let forget = format!(
            "DELETE FROM cdc_sync.checkpoint WHERE stream = '{stream}';
             TRUNCATE {OWN}.audit RESTART IDENTITY;"
        );
        let mut sql = replace(db, self.folding) + &forget;
        if self.login == Login::Ordinary {
            sql.push_str(&grant(db, ORDINARY));
        }
        self.client.batch_execute(&sql).await.map_err(failed)?;
        self.specs = db.specs().cloned().collect();
        let epoch = self.take_over(&first.stream).await?;
        self.site.start_stream(epoch, first, &[], false).await?;
        let selection = TableSelection {
            exclude: vec![format!("{OWN}.*")],
            ..TableSelection::default()
        };
        let tables = self.site.target_tables(&selection).await?;
        Ok(Arc::new(TargetCatalog::new(tables)))
    }

    /// Another instance holds the stream, or none; the one before is no more.
    fn hold(&self, fence: Option<Box<dyn Fence>>) {
        *self.fence.lock().unwrap_or_else(PoisonError::into_inner) = fence;
    }

    async fn take_over(&self, stream: &str) -> Result<i64> {
        self.hold(None);
        let fence = self.site.take_fence(stream, PATIENCE).await?;
        let epoch = fence.epoch();
        self.hold(Some(fence));
        Ok(epoch)
    }

    async fn rows(&self, spec: &TableSpec) -> Result<Vec<ModelRow>> {
        let sql = format!(
            "SELECT {} FROM ONLY {} t",
            row_texts(spec, "t"),
            qualified(&spec.name)
        );
        let found = self.client.query_typed(&sql, &[]).await.map_err(failed)?;
        let mut rows: Vec<ModelRow> = found.iter().map(|row| model_row(row.get(0))).collect();
        rows.sort();
        Ok(rows)
    }

    async fn audited(&self) -> Result<Vec<AuditEntry>> {
        let sql = format!("SELECT schema, name, old, new FROM {OWN}.audit ORDER BY seq");
        let found = self.client.query_typed(&sql, &[]).await.map_err(failed)?;
        let entry = |row: &tokio_postgres::Row| AuditEntry {
            table: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
            old: row.get::<_, Option<_>>(2).map(model_row),
            new: row.get::<_, Option<_>>(3).map(model_row),
        };
        Ok(found.iter().map(entry).collect())
    }
}

fn model_row(texts: Vec<Option<String>>) -> ModelRow {
    let values = texts.into_iter();
    values.map(|text| text.map(String::into_bytes)).collect()
}

/// What went wrong in the harness itself.
pub(crate) fn failed(error: tokio_postgres::Error) -> Error {
    let detail = error.as_db_error().map(ToString::to_string);
    Error::bug(format!("{error}: {}", detail.unwrap_or_default()))
}

impl SinkHarness for PgSinkHarness {
    fn prepare<'a>(
        &'a mut self,
        db: &'a ModelDatabase,
        first: &'a Checkpoint,
    ) -> BoxFuture<'a, Arc<TargetCatalog>> {
        Box::pin(self.replace_all(db, first))
    }

    fn format(&self) -> CellFormat {
        self.format.clone()
    }

    fn raise_epoch<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, i64> {
        Box::pin(self.take_over(stream))
    }

    fn sink<'a>(&'a self, stream: &'a str, epoch: i64) -> BoxFuture<'a, Box<dyn Sink>> {
        self.site.sink(stream, epoch)
    }

    fn checkpoint<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Option<Checkpoint>> {
        Box::pin(async move { Ok(self.site.stream_state(stream).await?.checkpoint) })
    }

    fn contents(&self) -> BoxFuture<'_, Contents> {
        Box::pin(async {
            let mut contents = Contents::new();
            for spec in &self.specs {
                contents.insert(spec.name.clone(), self.rows(spec).await?);
            }
            Ok(contents)
        })
    }

    fn audit(&self) -> BoxFuture<'_, Option<Vec<AuditEntry>>> {
        Box::pin(async { Ok(Some(self.audited().await?)) })
    }
}
