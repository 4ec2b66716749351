//! The server's own account of row changes, by its `test_decoding` plugin.

use std::collections::BTreeMap;

use testbed::PgCluster;
use testbed::workload::{Changes, Fill, Totals, prepare};

/// The database that tests use.
pub(crate) const DB: &str = "postgres";

pub(crate) fn prepared(major: u16, fill: Fill) -> PgCluster {
    let cluster = PgCluster::builder(major).start().unwrap();
    prepare(&cluster.url(DB), fill).unwrap();
    let slot = "SELECT pg_create_logical_replication_slot('account', 'test_decoding')";
    cluster.sql(DB, slot).unwrap();
    cluster
}

/// Row changes by table as `test_decoding` reports them, one line a change: `table shop.orders: INSERT: …`.
pub(crate) fn decoded(cluster: &PgCluster) -> BTreeMap<String, Changes> {
    let rows = cluster
        .sql(
            DB,
            "SELECT parts[1] || ' ' || parts[2] || ' ' || count(*) FROM (
                SELECT regexp_match(data, '^table (.+?): (INSERT|UPDATE|DELETE|TRUNCATE):') AS parts
                FROM pg_logical_slot_get_changes('account', NULL, NULL) WHERE data LIKE 'table %') changes
             GROUP BY parts",
        )
        .unwrap();
    let mut tables: BTreeMap<String, Changes> = BTreeMap::new();
    for row in rows.lines() {
        let mut words = row.rsplitn(3, ' ');
        let count: u64 = words.next().unwrap().parse().unwrap();
        let op = words.next().unwrap();
        let changes = tables.entry(words.next().unwrap().replace('"', "")).or_default();
        match op {
            "INSERT" => changes.inserts = count,
            "UPDATE" => changes.updates = count,
            "DELETE" => changes.deletes = count,
            _ => changes.truncates = count,
        }
    }
    tables
}

pub(crate) fn counted(totals: &Totals) -> BTreeMap<String, Changes> {
    totals
        .tables
        .iter()
        .map(|(table, changes)| (table.to_string(), *changes))
        .collect()
}
