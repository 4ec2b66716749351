//! [`PgSite`]: one database behind the core's trait. Every method hands on to the module that knows.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cdc_core::conflict::ConflictRecord;
use cdc_core::engine::{
    Alteration, Barrier, CleanupReport, CompareView, Fence, Finding, HistoryEvent, JobNames, Occupancy,
    PublishedStatus, RenamedTable, Retention, SchemaDump, SchemaPhase, SeedTable, SequenceAdvance,
    SequenceState, Side, SiteIdentity, SiteProfile, StreamState, TableInfo, TailStream,
};
use cdc_core::plan::TargetTable;
use cdc_core::repair::Mender;
use cdc_core::seed::{BulkFormat, BulkLoader, Snapshot, TablePart};
use cdc_core::{
    BoxFuture, Checkpoint, Error, Kind, Position, Result, Sink, Site, Source, SourceIdentity, TableName,
    TableSelection,
};

use crate::catalog;
use crate::clients::{Clients, Lent};
use crate::config::Config;
use crate::first_client::first_client;
use crate::loader::LOAD_SETTINGS;
use crate::lock::LOCK_TIMEOUT;
use crate::session::{KeptClient, Pool, connect};
use crate::sink::PgSink;
use crate::source::PgSource;
use crate::state::doubt::Doubts;
use crate::wire::ServerVersion;
use crate::{
    cleanup, compare, emptying, heartbeat, loader, precheck, publication, repair, schema, sequences, slot,
    snapshot, source, state, target_catalog,
};

/// What statements of ours on a source are set to.
const SOURCE_SETTINGS: &[(&str, &str)] = &[("lock_timeout", LOCK_TIMEOUT)];

/// One PostgreSQL database.
#[derive(Debug)]
pub struct PgSite {
    config: Config,
    identity: SiteIdentity,
    version: ServerVersion,
    clients: Clients,
    /// for what is asked again and again
    asking: KeptClient,
    /// for heartbeats, which must not wait behind other questions
    beating: KeptClient,
    /// for loading the seed
    loaders: Arc<Pool>,
    /// commits of our sinks that may still run
    doubts: Arc<Doubts>,
}

impl PgSite {
    /// Connects, waiting up to `timeout` for the server to come up.
    ///
    /// # Errors
    /// As [`Engine::connect`](cdc_core::Engine::connect).
    pub async fn connect(url: &str, timeout: Duration) -> Result<PgSite> {
        let config = Config::parse(url).map_err(|error| {
            Error::new(Kind::Config, error.to_string()).remedy("correct the connection URL")
        })?;
        let clients = Clients::new(config.clone());
        let client = clients.adopt(first_client(&config, timeout).await?);
        let (identity, version) = catalog::identity(&client).await?;
        if version.major() < OLDEST {
            return Err(Error::new(
                Kind::Check,
                format!(
                    "{} is too old: PostgreSQL {OLDEST} is the oldest supported",
                    identity.product
                ),
            )
            .object(config.redacted()));
        }
        Ok(PgSite {
            asking: KeptClient::new(config.clone(), SOURCE_SETTINGS),
            beating: KeptClient::new(config.clone(), SOURCE_SETTINGS),
            loaders: Arc::new(Pool::new(config.clone(), LOAD_SETTINGS, true)),
            doubts: Arc::default(),
            clients,
            config,
            identity,
            version,
        })
    }

    /// A client for one piece of work.
    async fn client(&self) -> Result<Lent> {
        self.clients.lend(&[]).await
    }
}

/// The oldest major version that is supported.
const OLDEST: u32 = 12;

impl Site for PgSite {
    fn identity(&self) -> &SiteIdentity {
        &self.identity
    }

    fn display_url(&self) -> String {
        self.config.redacted()
    }

    fn inspect<'a>(&'a self, selection: &'a TableSelection) -> BoxFuture<'a, Vec<TableInfo>> {
        Box::pin(async move {
            let client = self.clients.lend(SOURCE_SETTINGS).await?;
            catalog::inspect(&client, selection).await
        })
    }

    fn never_replicated<'a>(&'a self, pattern: &'a str) -> BoxFuture<'a, Option<String>> {
        Box::pin(async move { catalog::never_replicated(&*self.client().await?, pattern).await })
    }

    fn findings<'a>(
        &'a self,
        side: Side,
        names: &'a JobNames,
        selection: &'a TableSelection,
    ) -> BoxFuture<'a, Vec<Finding>> {
        Box::pin(precheck::findings(&self.clients, side, names, selection))
    }

    fn is_left_behind(&self, finding: &Finding) -> bool {
        finding.side != Side::Target && precheck::LEFT_BEHIND.contains(&finding.id)
    }

    fn profile<'a>(&'a self, selection: &'a TableSelection) -> BoxFuture<'a, SiteProfile> {
        Box::pin(precheck::site_profile(&self.clients, selection))
    }

    fn pair_findings<'a>(
        &'a self,
        source: &'a SiteProfile,
        selection: &'a TableSelection,
    ) -> BoxFuture<'a, Vec<Finding>> {
        Box::pin(precheck::pair_findings(&self.clients, source, selection))
    }

    fn dump_schema<'a>(
        &'a self,
        selection: &'a TableSelection,
        present: Option<&'a TableSelection>,
        target: &'a SiteIdentity,
        tools_dir: Option<&'a Path>,
    ) -> BoxFuture<'a, SchemaDump> {
        Box::pin(schema::dump(
            &self.clients,
            self.version,
            selection,
            present,
            target,
            tools_dir,
        ))
    }

    fn prepare_source<'a>(&'a self, names: &'a JobNames, tables: &'a [TableName]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let client = self.clients.lend(SOURCE_SETTINGS).await?;
            publication::prepare_source(&client, self.version, names, tables).await
        })
    }

    fn unpublished<'a>(
        &'a self,
        names: &'a JobNames,
        tables: &'a [TableName],
    ) -> BoxFuture<'a, Vec<(TableName, String)>> {
        Box::pin(async move {
            let client = self.clients.lend(SOURCE_SETTINGS).await?;
            publication::unpublished(&client, self.version, names, tables).await
        })
    }

    fn create_snapshot<'a>(
        &'a self,
        names: &'a JobNames,
        permanent: bool,
    ) -> BoxFuture<'a, Box<dyn Snapshot>> {
        Box::pin(async move {
            let snapshot = snapshot::create(&self.clients, self.version, names, permanent).await?;
            Ok(Box::new(snapshot) as Box<dyn Snapshot>)
        })
    }

    fn resume<'a>(&'a self, checkpoint: &'a Checkpoint) -> BoxFuture<'a, SourceIdentity> {
        Box::pin(source::resume(
            &self.config,
            &checkpoint.source,
            &checkpoint.position,
        ))
    }

    fn source(&self, names: &JobNames, identity: &SourceIdentity) -> Result<Box<dyn Source>> {
        Ok(Box::new(PgSource::new(
            self.config.clone(),
            names,
            identity.clone(),
        )?))
    }

    fn tail<'a>(
        &'a self,
        names: &'a JobNames,
        selection: &'a TableSelection,
        cursor: Option<&'a str>,
    ) -> BoxFuture<'a, TailStream> {
        Box::pin(source::tail(
            &self.config,
            self.version,
            &self.identity,
            names,
            selection,
            cursor,
        ))
    }

    fn retention<'a>(&'a self, names: &'a JobNames) -> BoxFuture<'a, Option<Retention>> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            let retention = slot::retention(&client, self.version, &names.slot).await;
            self.asking.settle(retention).await
        })
    }

    fn log_end<'a>(&'a self, applied: Option<&'a Position>) -> BoxFuture<'a, (Position, u64)> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            self.asking.settle(slot::log_end(&client, applied).await).await
        })
    }

    fn beat<'a>(&'a self, names: &'a JobNames, beat: i64) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let client = self.beating.get().await?;
            let beaten = heartbeat::beat(&client, &names.job, beat).await;
            self.beating.settle(beaten).await
        })
    }

    fn mark<'a>(&'a self, names: &'a JobNames, id: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let client = self.beating.get().await?;
            let marked = heartbeat::mark(&client, &names.job, id).await;
            self.beating.settle(marked).await
        })
    }

    fn sequences(&self) -> BoxFuture<'_, Vec<SequenceState>> {
        Box::pin(async move { sequences::read(&*self.clients.lend(SOURCE_SETTINGS).await?).await })
    }

    fn alterations<'a>(
        &'a self,
        names: &'a JobNames,
        tables: &'a [TableInfo],
    ) -> BoxFuture<'a, Vec<Alteration>> {
        Box::pin(async move { schema::alterations(&*self.client().await?, names, tables).await })
    }

    fn renamed<'a>(
        &'a self,
        names: &'a JobNames,
        tables: &'a [TableName],
    ) -> BoxFuture<'a, Vec<RenamedTable>> {
        Box::pin(async move { schema::renamed(&*self.client().await?, names, tables).await })
    }

    fn occupancy<'a>(&'a self, tables: &'a [TableName]) -> BoxFuture<'a, Vec<(TableName, Occupancy)>> {
        Box::pin(async move {
            let client = self.clients.lend(LOAD_SETTINGS).await?;
            catalog::occupancy(&client, tables).await
        })
    }

    fn create_schema<'a>(&'a self, dump: &'a SchemaDump, phase: SchemaPhase) -> BoxFuture<'a, ()> {
        Box::pin(schema::create(&self.config, dump, phase))
    }

    fn prepare_state(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { state::prepare(&*self.client().await?).await })
    }

    fn take_fence<'a>(
        &'a self,
        stream: &'a str,
        takeover_timeout: Duration,
    ) -> BoxFuture<'a, Box<dyn Fence>> {
        Box::pin(async move {
            let fence = state::fence::take(&self.config, stream, takeover_timeout).await?;
            Ok(Box::new(fence) as Box<dyn Fence>)
        })
    }

    fn stream_state<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, StreamState> {
        Box::pin(async move {
            self.doubts.settle(&self.config, stream).await?;
            let client = self.client().await?;
            state::checkpoint::read(&client, stream).await
        })
    }

    fn start_stream<'a>(
        &'a self,
        epoch: i64,
        checkpoint: &'a Checkpoint,
        seed: &'a [SeedTable],
        schema_pending: bool,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut client = self.client().await?;
            state::checkpoint::start(&mut client, epoch, checkpoint, seed, schema_pending).await
        })
    }

    fn intends_cursor<'a>(&'a self, stream: &'a str, source: &'a SourceIdentity) -> BoxFuture<'a, bool> {
        Box::pin(async move { state::intent::stands(&*self.client().await?, stream, source).await })
    }

    fn intend_cursor<'a>(
        &'a self,
        stream: &'a str,
        epoch: i64,
        source: &'a SourceIdentity,
        wanted: bool,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut client = self.client().await?;
            state::intent::store(&mut client, stream, epoch, source, wanted).await
        })
    }

    fn begin_schema<'a>(&'a self, stream: &'a str, epoch: i64) -> BoxFuture<'a, ()> {
        Box::pin(
            async move { state::checkpoint::begin_schema(&mut *self.client().await?, stream, epoch).await },
        )
    }

    fn store_seed<'a>(&'a self, stream: &'a str, epoch: i64, seed: &'a SeedTable) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut client = self.client().await?;
            state::checkpoint::store_seed(&mut client, stream, epoch, seed).await
        })
    }

    fn set_aside<'a>(&'a self, stream: &'a str, tables: &'a [TableName]) -> BoxFuture<'a, ()> {
        Box::pin(async move { state::aside::set(&mut *self.client().await?, stream, tables).await })
    }

    fn aside<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Vec<TableName>> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            self.asking
                .settle(state::aside::list(&client, stream).await)
                .await
        })
    }

    fn take_back<'a>(&'a self, stream: &'a str, epoch: i64, beside: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(
            async move { state::aside::take_back(&mut *self.client().await?, stream, epoch, beside).await },
        )
    }

    fn give_up_aside<'a>(
        &'a self,
        stream: &'a str,
        epoch: i64,
        tables: &'a [TableName],
    ) -> BoxFuture<'a, ()> {
        Box::pin(
            async move { state::aside::give_up(&mut *self.client().await?, stream, epoch, tables).await },
        )
    }

    fn begin_anew<'a>(&'a self, stream: &'a str, epoch: i64) -> BoxFuture<'a, ()> {
        Box::pin(async move { state::aside::begin_anew(&mut *self.client().await?, stream, epoch).await })
    }

    fn finish_schema<'a>(&'a self, stream: &'a str, epoch: i64) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut client = self.client().await?;
            state::checkpoint::finish_schema(&mut client, stream, epoch).await
        })
    }

    fn analyze<'a>(&'a self, tables: &'a [TableName]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let first = self.client().await?;
            // Where the role may have no more connections, one does it.
            let second = match tables {
                [_, _, ..] => self.client().await.ok(),
                _ => None,
            };
            catalog::analyze(&first, second.as_deref(), tables).await
        })
    }

    fn truncate<'a>(&'a self, tables: &'a [TableName]) -> BoxFuture<'a, ()> {
        Box::pin(async move { emptying::all(&*self.client().await?, &self.loaders, tables).await })
    }

    fn bulk_formats<'a>(&'a self, part: &'a TablePart) -> BoxFuture<'a, Vec<BulkFormat>> {
        Box::pin(loader::formats(&self.loaders, part))
    }

    fn loader<'a>(
        &'a self,
        stream: &'a str,
        epoch: i64,
        part: &'a TablePart,
        format: BulkFormat,
    ) -> BoxFuture<'a, Box<dyn BulkLoader>> {
        let fence = loader::Held {
            stream: stream.to_owned(),
            epoch,
        };
        Box::pin(loader::open(Arc::clone(&self.loaders), fence, part, format))
    }

    fn target_tables<'a>(&'a self, selection: &'a TableSelection) -> BoxFuture<'a, Vec<TargetTable>> {
        Box::pin(async move { target_catalog::target_tables(&*self.client().await?, selection).await })
    }

    fn sink<'a>(&'a self, stream: &'a str, epoch: i64) -> BoxFuture<'a, Box<dyn Sink>> {
        let sink = PgSink::new(self.config.clone(), stream, epoch, Arc::clone(&self.doubts));
        Box::pin(async move { Ok(Box::new(sink) as Box<dyn Sink>) })
    }

    fn lane<'a>(&'a self, stream: &'a str, epoch: i64) -> BoxFuture<'a, Box<dyn Sink>> {
        let sink = PgSink::new(self.config.clone(), stream, epoch, Arc::clone(&self.doubts)).ahead();
        Box::pin(async move { Ok(Box::new(sink) as Box<dyn Sink>) })
    }

    fn advance_sequences<'a>(
        &'a self,
        source: &'a [SequenceState],
        buffer: u32,
    ) -> BoxFuture<'a, Vec<SequenceAdvance>> {
        Box::pin(async move { sequences::advance(&*self.client().await?, source, buffer).await })
    }

    fn request_barrier<'a>(&'a self, stream: &'a str, barrier: Option<&'a Barrier>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            self.asking
                .settle(state::barrier::request(&client, stream, barrier).await)
                .await
        })
    }

    fn barrier<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Option<Barrier>> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            self.asking
                .settle(state::barrier::wanted(&client, stream).await)
                .await
        })
    }

    fn barrier_reached<'a>(
        &'a self,
        stream: &'a str,
        barrier: &'a Barrier,
        position: &'a Position,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            self.asking
                .settle(state::barrier::reached(&client, stream, barrier, position).await)
                .await
        })
    }

    fn barrier_state<'a>(&'a self, stream: &'a str, barrier: &'a Barrier) -> BoxFuture<'a, Option<Position>> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            self.asking
                .settle(state::barrier::state(&client, stream, barrier).await)
                .await
        })
    }

    fn holder<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Option<String>> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            self.asking
                .settle(state::fence::holder(&client, stream).await)
                .await
        })
    }

    fn publish_status<'a>(&'a self, stream: &'a str, status: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            self.asking
                .settle(state::barrier::publish(&client, stream, status).await)
                .await
        })
    }

    fn published_status<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Option<PublishedStatus>> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            self.asking
                .settle(state::barrier::published(&client, stream).await)
                .await
        })
    }

    fn conflicts<'a>(
        &'a self,
        stream: &'a str,
        before: Option<i64>,
        limit: u32,
        open: bool,
    ) -> BoxFuture<'a, Vec<ConflictRecord>> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            self.asking
                .settle(state::conflicts::read(&client, stream, before, limit, open).await)
                .await
        })
    }

    fn conflict_counts<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, BTreeMap<String, u64>> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            self.asking
                .settle(state::conflicts::counts(&client, stream).await)
                .await
        })
    }

    fn open_conflicts<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, u64> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            self.asking
                .settle(state::conflicts::open(&client, stream).await)
                .await
        })
    }

    fn retry_conflict<'a>(&'a self, stream: &'a str, id: i64) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // What it sets and takes in its session is not for the next one.
            let mut client = connect(&self.config, state::conflicts::SETTINGS).await?;
            state::conflicts::retry(&mut client, stream, id).await
        })
    }

    fn discard_conflict<'a>(&'a self, stream: &'a str, id: i64) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let client = self.asking.get().await?;
            self.asking
                .settle(state::conflicts::discard(&client, stream, id).await)
                .await
        })
    }

    fn record<'a>(&'a self, stream: &'a str, event: &'a HistoryEvent) -> BoxFuture<'a, ()> {
        Box::pin(async move { state::history::record(&*self.client().await?, stream, event).await })
    }

    fn history<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Vec<HistoryEvent>> {
        Box::pin(async move { state::history::read(&*self.client().await?, stream).await })
    }

    fn mender<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Box<dyn Mender>> {
        Box::pin(repair::open(&self.config, stream))
    }

    fn preparation<'a>(
        &'a self,
        side: Side,
        names: &'a JobNames,
        selection: &'a TableSelection,
    ) -> BoxFuture<'a, Vec<String>> {
        Box::pin(async move {
            if side == Side::Target {
                return Ok(state::statements());
            }
            let client = self.clients.lend(SOURCE_SETTINGS).await?;
            let tables = catalog::inspect(&client, selection).await?;
            let tables: Vec<TableName> = tables.into_iter().map(|table| table.name).collect();
            publication::statements(&client, self.version, names, &tables).await
        })
    }

    fn grants<'a>(
        &'a self,
        side: Side,
        names: &'a JobNames,
        selection: &'a TableSelection,
        source: Option<&'a SiteProfile>,
    ) -> BoxFuture<'a, Vec<String>> {
        Box::pin(precheck::grants(&self.clients, side, names, selection, source))
    }

    fn compare_view<'a>(&'a self, side: Side, names: &'a JobNames) -> BoxFuture<'a, Box<dyn CompareView>> {
        Box::pin(compare::compare_view(&self.clients, self.version, side, names))
    }

    fn cleanup<'a>(&'a self, side: Side, names: &'a JobNames, dry_run: bool) -> BoxFuture<'a, CleanupReport> {
        Box::pin(cleanup::cleanup(&self.clients, side, names, dry_run))
    }
}
