//! A PostgreSQL database as a source that suites use at will.

use std::time::Duration;

use cdc_core::engine::JobNames;
use cdc_core::model::Identity;
use cdc_core::source::StreamStart;
use cdc_core::testing::conformance::SourceHarness;
use cdc_core::testing::{ModelDatabase, ModelValue, SourceTable, Statement, TableSpec};
use cdc_core::{
    BoxFuture, DataType, Engine, Position, Result, Site, Source, SourceIdentity, TableName, TableSelection,
};
use cdc_postgres::PgEngine;
use testbed::PgCluster;
use tokio_postgres::Client;

use crate::sink_harness::failed;
use crate::tables::{Folding, OWN, identifier, literal, names, qualified, replace};

/// One database, whose tables, publication and slot each [`SourceHarness::prepare`] replaces.
pub(crate) struct PgSourceHarness {
    site: Box<dyn Site>,
    client: Client,
    folding: Folding,
    specs: Vec<TableSpec>,
    job: JobNames,
    /// how often it was prepared
    prepared: u32,
}

impl PgSourceHarness {
    /// A harness in a new database.
    pub(crate) async fn open(cluster: &PgCluster, database: &str) -> PgSourceHarness {
        cluster.create_database(database).unwrap();
        let url = cluster.url(database);
        let client = testbed::postgres::connect(&url).await.unwrap();
        let folding = Folding::of(cluster);
        let own = folding.prerequisites() + &format!("CREATE TABLE {OWN}.unseen (n int);");
        client.batch_execute(&own).await.unwrap();
        PgSourceHarness {
            site: PgEngine.connect(&url, Duration::from_secs(60)).await.unwrap(),
            client,
            folding,
            specs: Vec::new(),
            job: job(database, 0),
            prepared: 0,
        }
    }

    async fn replace_all(&mut self, tables: &[SourceTable]) -> Result<StreamStart> {
        // A slot can be dropped when its reader is gone, so one may be left behind; each has a name of its own.
        let publication = identifier(&self.job.slot);
        self.run(&format!("DROP PUBLICATION IF EXISTS {publication}"))
            .await?;
        self.run(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE NOT active AND database = current_database()",
        )
        .await?;
        self.prepared += 1;
        self.job = job(&self.site.identity().database, self.prepared);
        self.specs = tables.iter().map(|table| table.spec.clone()).collect();
        let empty = ModelDatabase::new(self.specs.clone(), true);
        let identities: String = tables.iter().map(replica_identity).collect();
        self.run(&(replace(&empty, self.folding) + &identities)).await?;
        let selected: Vec<TableName> = self.specs.iter().map(|spec| spec.name.clone()).collect();
        self.site.prepare_source(&self.job, &selected).await?;
        let snapshot = self.site.create_snapshot(&self.job, true).await?;
        Ok(StreamStart {
            from: snapshot.position().clone(),
            stream: self.job.job.clone(),
            selection: TableSelection::default(),
            seeded_to: Default::default(),
            aside: Default::default(),
            peer: None,
        })
    }

    async fn run(&self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.map_err(failed)
    }

    fn statement(&self, statement: &Statement) -> String {
        let spec = |table: &usize| &self.specs[*table];
        match statement {
            Statement::Insert { table, row } => {
                let values: Vec<String> = row.iter().map(literal).collect();
                let name = qualified(&spec(table).name);
                format!("INSERT INTO {name} VALUES ({});", values.join(", "))
            }
            Statement::Update { table, key, set } => {
                let first = names(spec(table), &[0]);
                let set = set.iter().map(|(column, value)| {
                    let name = names(spec(table), &[*column]);
                    format!(", {name} = {}", literal(value))
                });
                // Also where nothing is set.
                let set = set.collect::<String>();
                let set = set
                    .strip_prefix(", ")
                    .map_or(format!("{first} = {first}"), str::to_owned);
                let name = qualified(&spec(table).name);
                format!("UPDATE {name} SET {set} WHERE {};", one_row(spec(table), key))
            }
            Statement::Delete { table, key } => {
                let name = qualified(&spec(table).name);
                format!("DELETE FROM {name} WHERE {};", one_row(spec(table), key))
            }
            Statement::Truncate(tables) => {
                let names: Vec<String> = tables.iter().map(|table| qualified(&spec(table).name)).collect();
                format!("TRUNCATE {};", names.join(", "))
            }
        }
    }
}

/// Slots have names of their own in the whole cluster.
fn job(database: &str, number: u32) -> JobNames {
    let name = format!("{database}_{number}");
    JobNames {
        slot: format!("cdc_sync_{name}"),
        job: name,
    }
}

/// The condition for one of the rows that have these values, to the byte.
fn one_row(spec: &TableSpec, key: &[(usize, ModelValue)]) -> String {
    let terms = key.iter().map(|(column, value)| {
        let name = names(spec, &[*column]);
        match (value, &spec.columns[*column].data_type) {
            (None, _) => format!("{name} IS NULL"),
            (Some(_), DataType::Text) => format!("{name}::text COLLATE \"C\" = {}", literal(value)),
            (Some(_), _) => format!("{name} = {}", literal(value)),
        }
    });
    let condition = terms.collect::<Vec<_>>().join(" AND ");
    let table = qualified(&spec.name);
    format!("ctid = (SELECT ctid FROM {table} WHERE {condition} LIMIT 1)")
}

fn replica_identity(table: &SourceTable) -> String {
    let (spec, columns) = (&table.spec, &table.identity_columns);
    let name = qualified(&spec.name);
    match table.identity {
        Identity::Full => format!("ALTER TABLE {name} REPLICA IDENTITY FULL;"),
        Identity::Nothing => format!("ALTER TABLE {name} REPLICA IDENTITY NOTHING;"),
        Identity::Key if columns.as_slice() == spec.primary_columns() => String::new(),
        Identity::Key => {
            let index = identifier(&format!("identity of {}", spec.name.name));
            let columns = names(spec, columns);
            format!(
                "CREATE UNIQUE INDEX {index} ON {name} ({columns}); ALTER TABLE {name} REPLICA IDENTITY USING INDEX {index};"
            )
        }
    }
}

impl SourceHarness for PgSourceHarness {
    fn prepare<'a>(&'a mut self, tables: &'a [SourceTable]) -> BoxFuture<'a, StreamStart> {
        Box::pin(self.replace_all(tables))
    }

    fn commit<'a>(&'a mut self, statements: &'a [Statement]) -> BoxFuture<'a, ()> {
        let statements: String = statements
            .iter()
            .map(|statement| self.statement(statement))
            .collect();
        Box::pin(async move { self.run(&format!("BEGIN; {statements} COMMIT")).await })
    }

    fn idle(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.run(&format!("INSERT INTO {OWN}.unseen VALUES (1)")).await })
    }

    fn source(&mut self) -> BoxFuture<'_, Box<dyn Source>> {
        let site = self.site.identity();
        let identity = SourceIdentity {
            system: site.system.clone(),
            database: site.database.clone(),
            timeline: site.timeline.clone(),
            slot: self.job.slot.clone(),
        };
        Box::pin(async move { self.site.source(&self.job, &identity) })
    }

    fn confirmed(&mut self) -> BoxFuture<'_, Position> {
        Box::pin(async {
            let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name::text = $1";
            let row = self
                .client
                .query_one(sql, &[&self.job.slot])
                .await
                .map_err(failed)?;
            Ok(Position::new(row.get::<_, String>(0)))
        })
    }
}
