//! A target database with a stream, ready to apply.

use std::sync::Arc;
use std::time::Duration;

use cdc_core::conflict::Policy;
use cdc_core::engine::Fence;
use cdc_core::model::ChangeCounts;
use cdc_core::plan::{ApplyPlan, PlanMode, Planner, TargetCatalog, TargetTable, TxnGroup};
use cdc_core::{
    Checkpoint, CommitOutcome, Engine, Position, Result, Sink, Site, SourceIdentity, TableName,
    TableSelection,
};
use cdc_postgres::PgEngine;
use testbed::PgCluster;

pub(crate) const STREAM: &str = "job";

pub(crate) struct Target {
    pub(crate) cluster: &'static PgCluster,
    pub(crate) database: String,
    pub(crate) site: Box<dyn Site>,
    pub(crate) fence: Box<dyn Fence>,
    pub(crate) sink: Box<dyn Sink>,
    catalog: Arc<TargetCatalog>,
    planner: Planner,
    groups: u64,
}

pub(crate) async fn site(cluster: &PgCluster, database: &str) -> Box<dyn Site> {
    PgEngine
        .connect(&cluster.url(database), Duration::from_secs(60))
        .await
        .unwrap()
}

pub(crate) fn checkpoint(groups: u64) -> Checkpoint {
    Checkpoint {
        stream: STREAM.into(),
        source: SourceIdentity {
            system: "7".into(),
            database: "shop".into(),
            timeline: "1".into(),
            slot: "cdc_sync_job".into(),
        },
        position: Position::new(format!("0/{groups:X}")),
        commit_time_micros: 1_700_000_000_000_000 + groups as i64,
        groups,
        transactions: groups * 2,
        changes: ChangeCounts {
            read: groups * 3,
            applied: groups * 3,
            ..ChangeCounts::default()
        },
    }
}

impl Target {
    pub(crate) async fn open(cluster: &'static PgCluster, database: &str) -> Target {
        let site = site(cluster, database).await;
        site.prepare_state().await.unwrap();
        let fence = site.take_fence(STREAM, Duration::from_secs(60)).await.unwrap();
        site.start_stream(fence.epoch(), &checkpoint(0), &[], false)
            .await
            .unwrap();
        let sink = site.sink(STREAM, fence.epoch()).await.unwrap();
        let tables = site.target_tables(&TableSelection::default()).await.unwrap();
        let catalog = Arc::new(TargetCatalog::new(tables));
        Target {
            cluster,
            database: database.to_owned(),
            site,
            fence,
            sink,
            planner: Planner::new(Arc::clone(&catalog)),
            catalog,
            groups: 0,
        }
    }

    pub(crate) fn sql(&self, script: &str) -> String {
        self.cluster.sql(&self.database, script).unwrap()
    }

    /// The facts of `public.<name>`.
    pub(crate) fn facts(&self, name: &str) -> Arc<TargetTable> {
        self.catalog.get(&TableName::new("public", name)).unwrap().0
    }

    /// Gives `public.<name>` a policy.
    pub(crate) async fn set_policy(&self, name: &str, policy: &Policy) {
        let mut tables = self.site.target_tables(&TableSelection::default()).await.unwrap();
        for table in tables.iter_mut().filter(|table| table.name.name == name) {
            table.policy = policy.clone();
        }
        self.catalog.replace(tables);
    }

    pub(crate) fn plan(&mut self, group: TxnGroup, mode: PlanMode) -> ApplyPlan {
        self.planner.compile(group, mode).unwrap()
    }

    /// What becomes of planning a group.
    pub(crate) fn try_plan(&mut self, group: TxnGroup) -> Result<ApplyPlan> {
        self.planner.compile(group, PlanMode::Net)
    }

    /// Applies a group in a target transaction of its own; the rows hit.
    pub(crate) async fn apply(&mut self, group: TxnGroup, mode: PlanMode) -> Result<u64> {
        let plan = self.plan(group, mode);
        self.apply_plan(&plan).await
    }

    pub(crate) async fn apply_plan(&mut self, plan: &ApplyPlan) -> Result<u64> {
        self.sink.begin().await?;
        match self.sink.apply(plan).await {
            Ok(applied) => {
                self.commit().await?;
                Ok(applied.rows)
            }
            Err(error) => {
                self.sink.rollback().await.unwrap();
                Err(error)
            }
        }
    }

    pub(crate) async fn commit(&mut self) -> Result<()> {
        assert_eq!(
            self.sink.commit(&checkpoint(self.groups + 1)).await?,
            CommitOutcome::Done
        );
        self.groups += 1;
        let state = self.site.stream_state(STREAM).await?;
        assert_eq!(state.checkpoint, Some(checkpoint(self.groups)));
        Ok(())
    }
}

/// A planner for these tables.
pub(crate) fn planner(tables: Vec<TargetTable>) -> Planner {
    Planner::new(Arc::new(TargetCatalog::new(tables)))
}
