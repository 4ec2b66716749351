//! The steps of a plan, one after the other, into a flight.

use cdc_core::plan::{ApplyPlan, Step};
use cdc_core::{Error, Result, failpoint};

use super::SessionRole;
use super::decided::Decided;
use super::flight::{Flight, Halt, Subject};
use super::net::{Buffers, NetSets};
use super::rows::Rows;
use super::tables::Tables;
use crate::catalog::qualified;
use crate::wire::session::literal;

pub(super) async fn feed(
    flight: &mut Flight<'_>,
    plan: &ApplyPlan,
    tables: &mut Tables,
    buffers: &mut Buffers,
    role: SessionRole,
) -> Result<(), Halt> {
    for (number, step) in plan.steps.iter().enumerate() {
        match step {
            Step::Net(net) if decides(plan, net.table) => {
                Decided {
                    plan,
                    table: net.table,
                    tables,
                    buffers,
                }
                .send_net(flight, net)
                .await?
            }
            Step::Net(net) => {
                NetSets {
                    plan,
                    net,
                    tables,
                    buffers,
                }
                .send(flight)
                .await?
            }
            Step::Ordered(rows) => {
                Rows::new(plan)
                    .send_ordered(flight, tables, buffers, rows)
                    .await?
            }
            Step::Truncate {
                tables: emptied,
                truncation,
            } => {
                let restarts = truncation.restart_identity && may_restart(plan, emptied, tables)?;
                let truncate = truncate(plan, emptied, restarts)?;
                let checked = checked(plan, emptied)?;
                let statements: &[&str] = match role {
                    SessionRole::Replica => &[&truncate],
                    SessionRole::Origin => &[&checked, &truncate, "SET CONSTRAINTS ALL DEFERRED"],
                };
                for sql in statements {
                    flight.once(sql, Subject::Truncate { step: number }).await?;
                }
            }
        }
        failpoint!("sink.mid-apply");
    }
    Ok(())
}

/// Whether a policy decides about the plan's table of this number.
fn decides(plan: &ApplyPlan, table: usize) -> bool {
    plan.tables
        .get(table)
        .is_some_and(|table| table.target.policy.decides())
}

/// Whether the role may restart the sequences of these tables. Where it may not, they go on: they are set ahead of the
/// source's in the end.
fn may_restart(plan: &ApplyPlan, emptied: &[usize], tables: &Tables) -> Result<bool> {
    for table in emptied {
        let bound = tables.at(tables.place(plan, *table)?)?;
        if !bound.columns.iter().all(|column| column.restarts) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Has the deferred checks made that wait for these tables, which the server does not empty otherwise. Those of other
/// tables wait on: they may hold at the source's commit only.
fn checked(plan: &ApplyPlan, tables: &[usize]) -> Result<String> {
    let mut names = Vec::with_capacity(tables.len());
    for table in tables {
        let table = plan.tables.get(*table);
        let table = table.ok_or_else(|| Error::bug("a plan names a table beyond its list"))?;
        names.push(format!("{}::regclass", literal(&qualified(&table.target.name))));
    }
    let body = format!(
        "DECLARE names text; BEGIN \
         SELECT string_agg(DISTINCT format('%I.%I', n.nspname, k.conname), ', ') INTO names \
         FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace \
         JOIN (SELECT t.oid FROM unnest(ARRAY[{0}]) t (oid) \
               UNION SELECT p.relid FROM unnest(ARRAY[{0}]) t (oid), pg_partition_tree(t.oid) p) t \
         ON t.oid IN (k.conrelid, k.confrelid) WHERE k.condeferrable; \
         IF names IS NOT NULL THEN EXECUTE format('SET CONSTRAINTS %s IMMEDIATE', names); END IF; END",
        names.join(", ")
    );
    Ok(format!("DO {}", literal(&body)))
}

/// Dependants that the source's CASCADE reached are in its list; what refers to the tables on the target alone must
/// not be emptied.
fn truncate(plan: &ApplyPlan, tables: &[usize], restart_identity: bool) -> Result<String> {
    let mut names = Vec::with_capacity(tables.len());
    for table in tables {
        let table = plan.tables.get(*table);
        let table = table.ok_or_else(|| Error::bug("a plan names a table beyond its list"))?;
        let only = if table.target.partitioned { "" } else { "ONLY " };
        names.push(format!("{only}{}", qualified(&table.target.name)));
    }
    let restart = if restart_identity { " RESTART IDENTITY" } else { "" };
    Ok(format!("TRUNCATE TABLE {}{restart} RESTRICT", names.join(", ")))
}
