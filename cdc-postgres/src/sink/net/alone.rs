//! What net sets look like on the wire, without a server.

use cdc_core::plan::{ApplyPlan, NetTable, PlannedTable, Step};
use cdc_core::{Error, Result};

use super::super::sql::Verb;
use super::{Buffers, Effect, Pairs, Set};

/// Makes the COPY data and arrays of plans, as for a target that takes every table's rows in sets.
#[derive(Debug, Default)]
pub struct NetBytes(Buffers);

impl NetBytes {
    /// How many bytes the net sets of `plan` have.
    ///
    /// # Errors
    /// When a change does not say a value that its statement needs.
    pub fn of(&mut self, plan: &ApplyPlan) -> Result<u64> {
        let mut bytes = 0;
        for step in &plan.steps {
            if let Step::Net(net) = step {
                let planned = plan.tables.get(net.table);
                let planned = planned.ok_or_else(|| Error::bug("a plan names a table beyond its list"))?;
                bytes += self.copied(plan, planned, net)? + self.located(plan, planned, net)?;
            }
        }
        Ok(bytes)
    }

    fn copied(&mut self, plan: &ApplyPlan, planned: &PlannedTable, net: &NetTable) -> Result<u64> {
        let (mut sent, mut bytes) = (0, 0);
        while sent < net.inserts.len() {
            let rest = net.inserts.get(sent..).unwrap_or_default();
            sent += self.0.fill_copy(plan, planned, rest)?;
            bytes += self.0.copy.len() as u64;
        }
        Ok(bytes)
    }

    fn located(&mut self, plan: &ApplyPlan, planned: &PlannedTable, net: &NetTable) -> Result<u64> {
        let deletes = Set {
            effect: Effect::Delete,
            verbs: (Verb::DeleteSet, Verb::Delete),
            columns: &[],
            rows: Pairs::Same(&net.deletes),
            must_hit: true,
        };
        let upserts = Set {
            effect: Effect::Upsert,
            verbs: (Verb::UpsertSet, Verb::Upsert),
            columns: &planned.written,
            rows: Pairs::Same(&net.upserts),
            must_hit: false,
        };
        let updates = net.updates.iter().map(|update| Set {
            effect: Effect::Update,
            verbs: (Verb::UpdateSet, Verb::Update),
            columns: &update.columns,
            rows: Pairs::Two(&update.rows),
            must_hit: true,
        });
        let mut bytes = 0;
        for set in updates.chain([deletes, upserts]) {
            let mut sent = 0;
            while sent < set.rows.len() {
                sent += self.0.fill_arrays(plan, planned, set, sent)?;
                let arrays = self.0.arrays.finish();
                bytes += arrays.flatten().map(|array| array.len() as u64).sum::<u64>();
            }
        }
        Ok(bytes)
    }
}
