//! What to leave out of the dump when only some tables are replicated.
//!
//! The whole database is dumped without the relations below, rather than the selected tables alone: `pg_dump
//! --table` leaves out the types, functions and schemas that the tables need.

use std::collections::{HashMap, HashSet};

use cdc_core::engine::Partitions;
use cdc_core::{Result, TableName, TableSelection};
use tokio_postgres::Client;

use crate::session::during;

/// Relations of the source that matter to the choice, by OID.
#[derive(Debug, Default)]
struct Relations {
    names: HashMap<u32, (TableName, char)>,
    /// child and parent, for partitions and inheritance
    parents: Vec<(u32, u32)>,
    /// view and what it reads
    reads: Vec<(u32, u32)>,
    /// foreign key, its table and the table it refers to
    foreign_keys: Vec<(u32, u32, u32)>,
}

impl Relations {
    /// The table by whose name a relation is selected.
    fn chosen_by(&self, oid: u32, partitions: Partitions) -> Option<&TableName> {
        let mut oid = oid;
        if partitions == Partitions::Root {
            let parent = |oid| {
                let (_, parent) = self.parents.iter().find(|(child, _)| *child == oid)?;
                let (_, kind) = self.names.get(parent)?;
                (*kind == 'p').then_some(*parent)
            };
            while let Some(parent) = parent(oid) {
                oid = parent;
            }
        }
        self.names.get(&oid).map(|(name, _)| name)
    }
}

/// What is left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// tables, views and foreign tables
    pub(super) relations: Vec<TableName>,
    /// OIDs of foreign keys of selected tables that refer to tables left out
    pub(super) foreign_keys: Vec<u32>,
}

/// What `selection` leaves out of the database. Foreign keys may refer to tables that are `present` on the target.
pub(super) async fn left_out(
    client: &Client,
    selection: &TableSelection,
    present: Option<&TableSelection>,
) -> Result<LeftOut> {
    if selection.include.is_empty() && selection.exclude.is_empty() {
        return Ok(LeftOut::default());
    }
    Ok(choose(&read(client).await?, selection, present))
}

async fn read(client: &Client) -> Result<Relations> {
    let mut relations = Relations::default();
    let rows = client
        .query_typed(
            "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' \
               AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'cdc_sync')",
            &[],
        )
        .await
        .map_err(during("reading the relations of the source"))?;
    for row in rows {
        let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        let kind = row.get::<_, &str>(3).chars().next().unwrap_or('r');
        relations.names.insert(row.get(0), (name, kind));
    }
    relations.parents = pairs(client, "SELECT inhrelid, inhparent FROM pg_inherits").await?;
    relations.reads = pairs(
        client,
        "SELECT DISTINCT r.ev_class, d.refobjid FROM pg_rewrite r JOIN pg_depend d \
         ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass \
         WHERE d.refobjid <> r.ev_class",
    )
    .await?;
    let rows = client
        .query_typed(
            "SELECT oid, conrelid, confrelid FROM pg_constraint WHERE contype = 'f'",
            &[],
        )
        .await
        .map_err(during("reading the foreign keys of the source"))?;
    relations.foreign_keys = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    Ok(relations)
}

async fn pairs(client: &Client, statement: &str) -> Result<Vec<(u32, u32)>> {
    let rows = client
        .query_typed(statement, &[])
        .await
        .map_err(during("reading the dependencies of the source's relations"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Selected tables stay, with their parents; views stay when all they read stays.
fn choose(relations: &Relations, selection: &TableSelection, present: Option<&TableSelection>) -> LeftOut {
    let mut kept: HashSet<u32> = relations
        .names
        .iter()
        .filter(|(oid, (_, kind))| {
            let table = relations.chosen_by(**oid, selection.partitions);
            matches!(kind, 'v' | 'm') || table.is_some_and(|table| selection.selects(table))
        })
        .map(|(oid, _)| *oid)
        .collect();
    while relations
        .parents
        .iter()
        .any(|(child, parent)| is_table(relations, *child) && kept.contains(child) && kept.insert(*parent))
    {
    }
    while relations
        .reads
        .iter()
        .any(|(view, read)| relations.names.contains_key(read) && !kept.contains(read) && kept.remove(view))
    {
    }
    let mut left: Vec<TableName> = relations
        .names
        .iter()
        .filter(|(oid, _)| !kept.contains(oid))
        .map(|(_, (name, _))| name.clone())
        .collect();
    left.sort();
    let is_present = |oid: &u32| {
        let name = relations.names.get(oid).map(|(name, _)| name);
        name.zip(present)
            .is_some_and(|(name, present)| present.selects(name))
    };
    let dangling = |(_, table, refers): &&(u32, u32, u32)| {
        kept.contains(table) && !kept.contains(refers) && !is_present(refers)
    };
    LeftOut {
        relations: left,
        foreign_keys: relations
            .foreign_keys
            .iter()
            .filter(dangling)
            .map(|(oid, _, _)| *oid)
            .collect(),
    }
}

/// Not an index, which has parents as well.
fn is_table(relations: &Relations, oid: u32) -> bool {
    relations.names.contains_key(&oid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(left: &LeftOut) -> Vec<String> {
        left.relations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn parents_stay_and_views_of_what_is_left_out_go() {
        let all = [
            (1, "part", 'p'),
            (2, "part_1", 'r'),
            (3, "part_2", 'r'),
            (4, "other", 'r'),
            (5, "v_part", 'v'),
            (6, "v_other", 'v'),
            (7, "v_v_other", 'm'),
        ];
        let relations = Relations {
            names: all
                .into_iter()
                .map(|(oid, name, kind)| (oid, (TableName::new("public", name), kind)))
                .collect(),
            parents: vec![(2, 1), (3, 1), (90, 91)],
            reads: vec![(5, 1), (7, 6), (6, 4), (6, 2)],
            foreign_keys: vec![(10, 2, 4), (11, 4, 2), (12, 2, 2)],
        };
        let selection = TableSelection {
            include: vec!["part_1".into()],
            ..TableSelection::default()
        };
        let left = choose(&relations, &selection, None);
        assert_eq!(
            names(&left),
            [
                "public.other",
                "public.part_2",
                "public.v_other",
                "public.v_v_other"
            ]
        );
        assert_eq!(left.foreign_keys, [10]);
        let everything = TableSelection::default();
        let left = choose(&relations, &selection, Some(&everything));
        assert!(
            left.foreign_keys.is_empty() && left.relations.len() == 4,
            "{left:?}"
        );
        let selection = TableSelection {
            exclude: vec!["other".into()],
            ..TableSelection::default()
        };
        assert_eq!(
            names(&choose(&relations, &selection, None)),
            ["public.other", "public.v_other", "public.v_v_other"]
        );
    }
}
