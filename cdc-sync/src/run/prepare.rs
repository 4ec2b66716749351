//! Before the data: the tables on the target, the publication and slot on the source, the first checkpoint.

use cdc_core::engine::{Occupancy, SchemaDump, SchemaPhase, SeedPhase, SeedTable};
use cdc_core::model::ChangeCounts;
use cdc_core::seed::Snapshot;
use cdc_core::{Checkpoint, Error, Kind, Result, SourceIdentity, TableName};

use super::RunContext;

/// What stands when the copying can begin.
pub(super) struct Prepared {
    /// the slot's own snapshot, on a first run
    pub(super) snapshot: Option<Box<dyn Snapshot>>,
    /// the tables and how far their seed has come
    pub(super) seed: Vec<SeedTable>,
    /// whether indexes and constraints are still to be created by us
    pub(super) schema_pending: bool,
    /// the schema, if it was dumped on the way
    pub(super) dump: Option<SchemaDump>,
}

/// Finds out where the job stands and, on a first run, lays its ground.
pub(super) async fn prepare(context: &RunContext, epoch: i64) -> Result<Prepared> {
    let state = context.target.stream_state(&context.names.job).await?;
    if let Some(checkpoint) = &state.checkpoint {
        same_source(context, checkpoint)?;
        context.stats.update(|stats| {
            stats.changes = checkpoint.changes;
            stats.transactions = checkpoint.transactions;
            stats.groups = checkpoint.groups;
            stats.applied = Some(checkpoint.position.clone());
            stats.applied_commit_micros = checkpoint.commit_time_micros;
        });
        return Ok(Prepared {
            snapshot: None,
            seed: state.seed,
            schema_pending: state.schema_pending,
            dump: None,
        });
    }
    begin(context, epoch, state.schema_pending).await
}

/// A checkpoint is only good for the database it was made from.
fn same_source(context: &RunContext, checkpoint: &Checkpoint) -> Result<()> {
    let found = context.source.identity();
    let known = &checkpoint.source;
    if known.system == found.system && known.database == found.database {
        return Ok(());
    }
    Err(Error::new(
        Kind::PositionLost,
        format!(
            "the checkpoint belongs to database {} of system {}, but the source is database {} of system {}",
            known.database, known.system, found.database, found.system
        ),
    )
    .object(format!("job {}", context.names.job))
    .remedy("give the source of this job, or another --job name to seed from the new one"))
}

/// `schema_begun` says that an earlier first run was about to create the schema and did not get to its checkpoint.
async fn begin(context: &RunContext, epoch: i64, schema_begun: bool) -> Result<Prepared> {
    let RunContext {
        source,
        target,
        names,
        selection,
        settings,
        ..
    } = context;
    let tables: Vec<TableName> = source
        .inspect(selection)
        .await?
        .into_iter()
        .map(|table| table.name)
        .collect();
    if tables.is_empty() {
        return Err(Error::new(Kind::Config, "no table of the source is selected")
            .object(source.display_url())
            .remedy("check --table and --exclude, and that the database is the right one"));
    }
    let occupancy = target.occupancy(&tables).await?;
    let all = |wanted: Occupancy| occupancy.iter().all(|(_, found)| *found == wanted);
    let with = |wanted: Occupancy| -> Vec<TableName> {
        occupancy
            .iter()
            .filter(|(_, found)| *found == wanted)
            .map(|(table, _)| table.clone())
            .collect()
    };
    let mut dump = None;
    if all(Occupancy::Missing) {
        context
            .reporter
            .note("the target has none of the tables: copying the schema");
        let schema = source
            .dump_schema(selection, target.identity(), settings.tools_dir.as_deref())
            .await?;
        target.begin_schema(&names.job, epoch).await?;
        target.create_schema(&schema, SchemaPhase::BeforeData).await?;
        dump = Some(schema);
    } else {
        let missing = with(Occupancy::Missing);
        if !missing.is_empty() {
            return Err(Error::new(
                Kind::Check,
                format!("the target lacks {} of the tables", missing.len()),
            )
            .object(list(&missing))
            .remedy(
                "create them, exclude them with --exclude, or empty the target so that the schema is copied",
            ));
        }
        same_columns(context, &tables).await?;
        let occupied = with(Occupancy::Rows);
        if !occupied.is_empty() && !settings.truncate_target {
            return Err(Error::new(
                Kind::Check,
                format!("{} target tables already hold rows", occupied.len()),
            )
            .object(list(&occupied))
            .remedy("empty them, or say --truncate-target to have them emptied"));
        }
    }
    // Empty tables that an interrupted first run made are ours: they still lack what comes after the data.
    let schema_pending = dump.is_some() || (schema_begun && all(Occupancy::Empty));
    if source.retention(names).await?.is_some() {
        // No checkpoint names this slot: a first run was killed between creating it and storing the
        // checkpoint. Nothing depends on it.
        context
            .reporter
            .note("removing what an interrupted first run left on the source");
        source
            .cleanup(cdc_core::engine::Side::Source, names, false)
            .await?;
    }
    source.prepare_source(names, &tables).await?;
    let snapshot = source.create_snapshot(names, true).await?;
    let position = snapshot.position().clone();
    let identity = source.identity();
    let checkpoint = Checkpoint {
        stream: names.job.clone(),
        source: SourceIdentity {
            system: identity.system.clone(),
            database: identity.database.clone(),
            timeline: identity.timeline.clone(),
            slot: names.slot.clone(),
        },
        position: position.clone(),
        commit_time_micros: 0,
        groups: 0,
        transactions: 0,
        changes: ChangeCounts::default(),
    };
    let seed: Vec<SeedTable> = tables
        .into_iter()
        .map(|table| SeedTable {
            table,
            phase: SeedPhase::Todo,
            position: position.clone(),
            rows: 0,
            bytes: 0,
        })
        .collect();
    target
        .start_stream(epoch, &checkpoint, &seed, schema_pending)
        .await?;
    Ok(Prepared {
        snapshot: Some(snapshot),
        seed,
        schema_pending,
        dump,
    })
}

/// A target that has its schema is compared, not overwritten: each source column must exist there.
async fn same_columns(context: &RunContext, tables: &[TableName]) -> Result<()> {
    let source = context.source.inspect(&context.selection).await?;
    let target = context.target.inspect(&context.selection).await?;
    let mut lacking = Vec::new();
    for table in source.iter().filter(|table| tables.contains(&table.name)) {
        let Some(peer) = target.iter().find(|peer| peer.name == table.name) else {
            continue;
        };
        for column in table.columns.iter().filter(|column| !column.generated) {
            if !peer.columns.iter().any(|peer| peer.name == column.name) {
                lacking.push(format!("{}.{}", table.name, column.name));
            }
        }
    }
    if lacking.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Check,
        format!("the target lacks {} columns of the source", lacking.len()),
    )
    .object(lacking.join(", "))
    .remedy("add the columns to the target, or drop its tables so that the schema is copied"))
}

/// Adds indexes and keys after the data, and returns the schema for the phase that remains.
pub(super) async fn create_indexes(context: &RunContext, dump: Option<SchemaDump>) -> Result<SchemaDump> {
    let dump = match dump {
        Some(dump) => dump,
        None => {
            let tools = context.settings.tools_dir.as_deref();
            context
                .source
                .dump_schema(&context.selection, context.target.identity(), tools)
                .await?
        }
    };
    context.reporter.note("building indexes");
    context
        .target
        .create_schema(&dump, SchemaPhase::AfterData)
        .await?;
    let tables: Vec<TableName> = context
        .target
        .inspect(&context.selection)
        .await?
        .into_iter()
        .map(|table| table.name)
        .collect();
    context.target.analyze(&tables).await?;
    Ok(dump)
}

fn list(tables: &[TableName]) -> String {
    tables
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
