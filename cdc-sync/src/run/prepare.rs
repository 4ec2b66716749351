//! Before the data: the tables on the target, the publication and slot on the source, the first checkpoint.

use cdc_core::engine::{Occupancy, SchemaDump, SchemaPhase, SeedPhase, SeedTable, Severity, Side};
use cdc_core::model::ChangeCounts;
use cdc_core::seed::Snapshot;
use cdc_core::{Checkpoint, Error, Kind, Result, SourceIdentity, TableName};

use super::retention::standing;
use super::retry::persist;
use super::tables::JobTables;
use super::{RunContext, Unfinished};
use crate::check::{compare_schemas, judge_references};

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
    let state = persist(context, "reading the job's state", || {
        context.target.stream_state(&context.names.job)
    })
    .await?;
    if let Some(checkpoint) = &state.checkpoint {
        resumes(context, checkpoint, &state.seed).await?;
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

/// Refuses what `run` would refuse before it changes anything; what a resumed one finds at its slot included.
pub(super) async fn rehearse(context: &RunContext) -> Result<()> {
    let RunContext {
        source,
        target,
        names,
        ..
    } = context;
    let state = target.stream_state(&names.job).await?;
    if let Some(checkpoint) = &state.checkpoint {
        resumes(context, checkpoint, &state.seed).await?;
        standing(names, source.retention(names).await?)?;
        source.resume(checkpoint).await?;
        return Ok(());
    }
    find_ground(context, &origin(context), state.schema_pending).await?;
    Ok(())
}

/// Refuses to go on with other tables, or from another database, than the job began with.
async fn resumes(context: &RunContext, checkpoint: &Checkpoint, seed: &[SeedTable]) -> Result<()> {
    same_source(context, checkpoint)?;
    let tables = JobTables::new(seed);
    tables.expect_selected(&context.selection)?;
    persist(context, "comparing the tables", || tables.look(context)).await
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

/// What a first run builds on.
struct Ground {
    tables: Vec<TableName>,
    /// the target has none of them
    bare: bool,
    /// they are empty and made by a first run that was cut short
    ours: bool,
    /// those of them that hold rows, which may be emptied
    occupied: Vec<TableName>,
}

/// Looks at both sides and refuses what a first run cannot build on. `schema_begun` says that an earlier first run was
/// about to create the schema and did not get to its checkpoint.
async fn find_ground(context: &RunContext, origin: &SourceIdentity, schema_begun: bool) -> Result<Ground> {
    let RunContext { source, target, .. } = context;
    let tables: Vec<TableName> = persist(context, "reading the list of tables", || {
        source.inspect(&context.selection)
    })
    .await?
    .into_iter()
    .map(|table| table.name)
    .collect();
    if tables.is_empty() {
        return Err(Error::new(Kind::Config, "no table of the source is selected")
            .object(source.display_url())
            .remedy("check --table and --exclude, and that the database is the right one"));
    }
    // Before anything is created on the target for a job that cannot be.
    persist(context, "looking for the slot", || is_leftover(context, origin)).await?;
    let occupancy = persist(context, "looking at the target's tables", || {
        target.occupancy(&tables)
    })
    .await?;
    let all = |wanted: Occupancy| occupancy.iter().all(|(_, found)| *found == wanted);
    // Empty tables that an interrupted first run made are ours: they still lack what comes after the data.
    let ours = schema_begun && all(Occupancy::Empty);
    let bare = all(Occupancy::Missing);
    if !bare && !ours {
        expect_fit(context, &occupancy).await?;
    }
    let occupied = occupancy.into_iter();
    let occupied = occupied
        .filter(|(_, found)| *found == Occupancy::Rows)
        .map(|(table, _)| table)
        .collect();
    Ok(Ground {
        tables,
        bare,
        ours,
        occupied,
    })
}

/// Empties the target's tables together, because those that refer to each other cannot be emptied one by one by a role
/// that foreign keys hold for. Where a table that is not the job's refers to them too, each is left to its own seed.
async fn empty(context: &RunContext, occupied: &[TableName]) -> Result<()> {
    if occupied.is_empty() {
        return Ok(());
    }
    let emptied = persist(context, "emptying the tables", || {
        context.target.truncate(occupied)
    })
    .await;
    match emptied {
        Err(error) if error.kind() == Kind::Interrupted => Err(error),
        Err(error) => {
            tracing::info!(%error, "the tables are emptied one by one");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

async fn begin(context: &RunContext, epoch: i64, schema_begun: bool) -> Result<Prepared> {
    let origin = origin(context);
    let ground = find_ground(context, &origin, schema_begun).await?;
    let Ground {
        tables, bare, ours, ..
    } = ground;
    empty(context, &ground.occupied).await?;
    let dump = if bare {
        Some(create_tables(context, epoch, &tables).await?)
    } else {
        None
    };
    let schema_pending = bare || ours;
    let snapshot = persist(context, "preparing the source", || {
        lay_ground(context, epoch, &origin, &tables)
    })
    .await?;
    let seed = start_stream(context, epoch, origin, &*snapshot, tables, schema_pending).await?;
    Ok(Prepared {
        snapshot: Some(snapshot),
        seed,
        schema_pending,
        dump,
    })
}

/// The job's slot, on the source as it is now.
fn origin(context: &RunContext) -> SourceIdentity {
    let identity = context.source.identity();
    SourceIdentity {
        system: identity.system.clone(),
        database: identity.database.clone(),
        timeline: identity.timeline.clone(),
        slot: context.names.slot.clone(),
    }
}

/// Copies the schema without what comes after the data.
async fn create_tables(context: &RunContext, epoch: i64, tables: &[TableName]) -> Result<SchemaDump> {
    let RunContext { target, names, .. } = context;
    context
        .reporter
        .note("the target has none of the tables: copying the schema");
    let schema = dump_schema(context).await?;
    persist(context, "storing that the schema is created", || {
        target.begin_schema(&names.job, epoch)
    })
    .await?;
    persist(context, "creating the schema", || async {
        // In one transaction: an attempt whose answer was lost has made all of them or none.
        let found = target.occupancy(tables).await?;
        if found.iter().all(|(_, found)| *found != Occupancy::Missing) {
            return Ok(());
        }
        target.create_schema(&schema, SchemaPhase::BeforeData).await
    })
    .await?;
    Ok(schema)
}

pub(super) async fn dump_schema(context: &RunContext) -> Result<SchemaDump> {
    let tools = context.settings.tools_dir.as_deref();
    persist(context, "dumping the schema", || {
        context.source.dump_schema(
            &context.selection,
            context.present.as_ref(),
            context.target.identity(),
            tools,
        )
    })
    .await
}

/// A target that has its schema is compared, not overwritten; its tables are empty, or may be emptied.
async fn expect_fit(context: &RunContext, occupancy: &[(TableName, Occupancy)]) -> Result<()> {
    let with = |wanted: Occupancy| -> Vec<TableName> {
        occupancy
            .iter()
            .filter(|(_, found)| *found == wanted)
            .map(|(table, _)| table.clone())
            .collect()
    };
    let missing = with(Occupancy::Missing);
    if !missing.is_empty() {
        return Err(Error::new(
            Kind::Check,
            format!("the target lacks {} of the tables", missing.len()),
        )
        .object(list(&missing))
        .remedy(
            "create them, exclude them with --exclude, or empty the target so that the schema is copied; where the \
             target divides a table into other partitions: --partitions root",
        ));
    }
    same_schema(context).await?;
    let occupied = with(Occupancy::Rows);
    if !occupied.is_empty() && !context.settings.truncate_target {
        return Err(Error::new(
            Kind::Check,
            format!("{} target tables already hold rows", occupied.len()),
        )
        .object(list(&occupied))
        .remedy("empty them, or say --truncate-target to have them emptied"));
    }
    Ok(())
}

/// What of the target's tables cannot take the source's rows, or takes them otherwise.
async fn same_schema(context: &RunContext) -> Result<()> {
    let RunContext {
        source,
        target,
        selection,
        ..
    } = context;
    let of_source = persist(context, "reading the list of tables", || {
        source.inspect(selection)
    })
    .await?;
    let of_target = persist(context, "reading the list of tables", || {
        target.inspect(selection)
    })
    .await?;
    let facts = persist(context, "reading the target's foreign keys", || {
        target.target_tables(selection)
    })
    .await?;
    let (fail, warn): (Vec<_>, Vec<_>) = compare_schemas(&of_source, &of_target)
        .into_iter()
        .chain(judge_references(&facts))
        .partition(|finding| finding.severity == Severity::Fail);
    for finding in warn {
        tracing::warn!(
            id = finding.id,
            "{}: {}; {}",
            finding.object,
            finding.message,
            finding.remedy
        );
    }
    if fail.is_empty() {
        return Ok(());
    }
    let listed: Vec<String> = fail
        .iter()
        .map(|finding| format!("{} {}", finding.object, finding.message))
        .collect();
    Err(Error::new(
        Kind::Check,
        format!(
            "the target's tables do not fit the source's: {}",
            listed.join("; ")
        ),
    )
    .object(
        fail.iter()
            .map(|finding| finding.object.clone())
            .collect::<Vec<_>>()
            .join(", "),
    )
    .remedy("change them as `cdc-sync check` says, or drop them all so that the schema is copied"))
}

/// Whether the job's slot is there, left by a first run of this target that was cut short.
///
/// # Errors
/// [`Kind::Check`] for one that this target did not intend: another target's job may read it, and what it has not
/// read yet would be lost with the slot.
async fn is_leftover(context: &RunContext, origin: &SourceIdentity) -> Result<bool> {
    let RunContext {
        source,
        target,
        names,
        ..
    } = context;
    if source.retention(names).await?.is_none() {
        return Ok(false);
    }
    if target.intends_cursor(&names.job, origin).await? {
        return Ok(true);
    }
    Err(Error::new(
        Kind::Check,
        "it exists on the source, and this target knows nothing of it: a job of the same name with another target \
         may read it",
    )
    .object(format!("replication slot {}", names.slot))
    .remedy(
        "give this job another name with --job NAME; if no other job needs the slot, `cdc-sync cleanup` drops it",
    ))
}

/// Makes what the stream needs on the source, and the snapshot to copy from. Whatever an earlier attempt left is
/// replaced: no checkpoint names it, so nothing depends on it.
async fn lay_ground(
    context: &RunContext,
    epoch: i64,
    origin: &SourceIdentity,
    tables: &[TableName],
) -> Result<Box<dyn Snapshot>> {
    let RunContext {
        source,
        target,
        names,
        reporter,
        ..
    } = context;
    if is_leftover(context, origin).await? {
        reporter.note("removing what an interrupted first run left on the source");
        source.cleanup(Side::Source, names, false).await?;
    }
    source.prepare_source(names, tables).await?;
    target.intend_cursor(&names.job, epoch, origin, true).await?;
    let created = source.create_snapshot(names, true).await;
    if created.as_ref().is_err_and(|error| error.kind() == Kind::Check) {
        // Another job was faster, and what was intended is now its slot.
        target.intend_cursor(&names.job, epoch, origin, false).await?;
    }
    created
}

/// Stores the first checkpoint, at the snapshot's position, and the tables to seed.
async fn start_stream(
    context: &RunContext,
    epoch: i64,
    source: SourceIdentity,
    snapshot: &dyn Snapshot,
    tables: Vec<TableName>,
    schema_pending: bool,
) -> Result<Vec<SeedTable>> {
    let RunContext { target, names, .. } = context;
    let position = snapshot.position().clone();
    let checkpoint = Checkpoint {
        stream: names.job.clone(),
        source,
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
    persist(context, "storing the first checkpoint", || async {
        // An attempt whose answer was lost may have stored it.
        let stored = target.stream_state(&names.job).await?.checkpoint;
        if stored.is_some_and(|stored| stored.position == checkpoint.position) {
            return Ok(());
        }
        target
            .start_stream(epoch, &checkpoint, &seed, schema_pending)
            .await
    })
    .await?;
    Ok(seed)
}

/// Adds indexes and keys after the data, and returns what remains.
pub(super) async fn create_indexes(context: &RunContext, dump: Option<SchemaDump>) -> Result<Unfinished> {
    let target = &context.target;
    let schema = match dump {
        Some(dump) => dump,
        None => dump_schema(context).await?,
    };
    context.reporter.note("building indexes");
    persist(context, "building indexes", || {
        target.create_schema(&schema, SchemaPhase::AfterData)
    })
    .await?;
    let tables = persist(context, "reading the list of tables", || {
        target.inspect(&context.selection)
    })
    .await?;
    Ok(Unfinished {
        schema,
        filled: tables.into_iter().map(|table| table.name).collect(),
    })
}

/// Gathers statistics of tables that were just filled.
pub(super) async fn analyze(context: &RunContext, tables: &[TableName]) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    persist(context, "gathering statistics", || context.target.analyze(tables)).await
}

pub(super) fn list(tables: &[TableName]) -> String {
    tables
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
