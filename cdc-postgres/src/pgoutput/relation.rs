//! The tables of one session, as the server announced them.
//!
//! A Relation message is sent before a table's first change in a session and again after every invalidation, also
//! in the middle of a transaction. Ids mean nothing beyond the session, so the cache lives and dies with it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cdc_core::engine::TableSelection;
use cdc_core::model::{CellReader, Identity, TableRole};
use cdc_core::source::StreamStart;
use cdc_core::{Batch, ColumnSchema, Error, Kind, Result, TableName, TableSchema};
use foldhash::fast::RandomState;

use super::message::{Relation, TypeName};
use crate::lsn::Lsn;
use crate::text::{PG_TEXT, TextReader, data_type, declared};

/// The schema of cdc-sync's own tables; nothing of it is ever replicated.
const OWN_SCHEMA: &str = "cdc_sync";

/// How many relations are found without a look into the index; a power of two.
const RECENT: usize = 16;

/// What is done with the changes of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handling {
    /// They are decoded.
    Decode,
    /// They are decoded if this column names our stream.
    DecodeOwn {
        /// the place of the column `stream`
        stream: usize,
    },
    /// They are only counted, as internal.
    Internal,
    /// They are only counted, as filtered.
    Filtered,
}

/// A table of the session.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// the Relation message it comes from; empty when it has to be looked at again
    announced: Vec<u8>,
    pub(super) schema: Arc<TableSchema>,
    pub(super) handling: Handling,
    /// transactions committed before this are in the table's seed already
    pub(super) seeded_to: Option<Lsn>,
    /// its number in the batch that it was last used in
    number: u16,
}

impl Known {
    /// The table's number in `batch`.
    ///
    /// The number of another batch is told by the table that it stands for, not by the generation: each batch
    /// counts its own generations, and several are under way.
    #[inline(always)]
    pub(super) fn number_in(&mut self, batch: &mut Batch) -> Result<u16> {
        let there = batch.tables().get(usize::from(self.number));
        if !there.is_some_and(|table| Arc::ptr_eq(table, &self.schema)) {
            self.add_to(batch)?;
        }
        Ok(self.number)
    }

    #[inline(never)]
    fn add_to(&mut self, batch: &mut Batch) -> Result<()> {
        self.number = batch.add_table(&self.schema)?;
        Ok(())
    }

    /// Whether a transaction with this commit LSN is in the table's seed. A snapshot at consistent point P holds
    /// exactly the transactions whose commit record lies below P.
    #[inline]
    pub(super) fn has_seeded(&self, commit_lsn: Lsn) -> bool {
        self.seeded_to.is_some_and(|seeded_to| commit_lsn < seeded_to)
    }
}

/// The tables and types of a session.
#[derive(Clone, Debug)]
pub(super) struct Relations {
    selection: TableSelection,
    aside: HashSet<TableName>,
    /// tables by their OID, under the selected name that they had when the session began or in it since
    selected: HashMap<u32, TableName>,
    seeded_to: HashMap<TableName, Lsn>,
    tables: Vec<Known>,
    index: HashMap<u32, usize, RandomState>,
    /// relations asked for of late, and their places in `tables`; each has its slot, which others may take
    recent: [(u32, usize); RECENT],
    types: HashMap<u32, (String, String), RandomState>,
    reader: Arc<dyn CellReader>,
}

impl Relations {
    pub(super) fn new(start: &StreamStart, seeded_to: HashMap<TableName, Lsn>) -> Relations {
        Relations {
            selection: start.selection.clone(),
            aside: start.aside.clone(),
            selected: HashMap::new(),
            seeded_to,
            tables: Vec::new(),
            index: HashMap::default(),
            recent: [(0, usize::MAX); RECENT],
            types: HashMap::default(),
            reader: Arc::new(TextReader),
        }
    }

    /// Refuses these tables, by their OID, when they come under a name that is not selected.
    pub(super) fn expect_selected(&mut self, selected: HashMap<u32, TableName>) {
        self.selected = selected;
    }

    /// The table with this id.
    #[inline]
    pub(super) fn get(&mut self, id: u32) -> Result<&mut Known> {
        let recent = slot(&mut self.recent, id);
        if recent.0 != id {
            let Some(place) = self.index.get(&id) else {
                return Err(unknown(id));
            };
            *recent = (id, *place);
        }
        self.tables.get_mut(recent.1).ok_or_else(|| unknown(id))
    }

    /// Whether this Relation message announces a table exactly as it was announced before.
    pub(super) fn is_known(&self, message: &[u8]) -> bool {
        let [_, id @ ..] = message else { return false };
        let id = id.first_chunk().map(|id| u32::from_be_bytes(*id));
        let place = id.and_then(|id| self.index.get(&id));
        let known = place.and_then(|place| self.tables.get(*place));
        known.is_some_and(|known| known.announced == message)
    }

    /// Takes up a type that is not built in.
    pub(super) fn name_type(&mut self, named: &TypeName<'_>) {
        let name = (named.namespace.to_owned(), named.name.to_owned());
        if self.types.get(&named.oid) != Some(&name) {
            self.types.insert(named.oid, name);
            // The types of tables announced before may read otherwise now.
            for known in &mut self.tables {
                known.announced.clear();
            }
        }
    }

    /// Takes up a table. One that is as before keeps its schema, so that changes before and after can be merged.
    pub(super) fn announce(&mut self, relation: &Relation<'_>, message: &[u8]) -> Result<()> {
        let name = TableName::new(relation.namespace, relation.name);
        let role = role(&name);
        let schema = TableSchema {
            columns: self.columns(relation),
            identity: identity(relation),
            role,
            reader: Arc::clone(&self.reader),
            name,
        };
        let handling = self.handling(&schema)?;
        if handling == Handling::Decode {
            let name = || schema.name.clone();
            self.selected.entry(relation.id).or_insert_with(name);
        } else if handling == Handling::Filtered
            && !self.selection.selects(&schema.name)
            && let Some(was) = self.selected.get(&relation.id)
        {
            return Err(renamed(was, &schema.name));
        }
        let known = Known {
            announced: message.to_vec(),
            handling,
            seeded_to: self.seeded_to.get(&schema.name).copied(),
            schema: Arc::new(schema),
            number: 0,
        };
        match self
            .index
            .get(&relation.id)
            .and_then(|place| self.tables.get_mut(*place))
        {
            Some(before) if before.schema.same_shape(&known.schema) => before.announced = known.announced,
            Some(before) => *before = known,
            None => {
                self.index.insert(relation.id, self.tables.len());
                self.tables.push(known);
                *slot(&mut self.recent, relation.id) = (relation.id, self.tables.len() - 1);
            }
        }
        Ok(())
    }

    fn columns(&self, relation: &Relation<'_>) -> Vec<ColumnSchema> {
        let column = |column: &super::message::Column<'_>| {
            let named = self.types.get(&column.type_oid);
            ColumnSchema {
                name: column.name.to_owned(),
                data_type: data_type(
                    column.type_oid,
                    column.type_modifier,
                    named.map(|(schema, name)| (schema.as_str(), name.as_str())),
                ),
                declared: declared(column.type_oid, column.type_modifier).into(),
                encoding: PG_TEXT,
                identity: column.key,
            }
        };
        relation.columns.iter().map(column).collect()
    }

    fn handling(&self, schema: &TableSchema) -> Result<Handling> {
        Ok(match schema.role {
            TableRole::User if schema.name.schema == OWN_SCHEMA => Handling::Internal,
            TableRole::User if self.aside.contains(&schema.name) => Handling::Filtered,
            TableRole::User if self.selection.selects(&schema.name) => Handling::Decode,
            TableRole::User => Handling::Filtered,
            TableRole::Heartbeat | TableRole::Marker => match schema.column("stream") {
                Some(stream) => Handling::DecodeOwn { stream },
                None => {
                    return Err(Error::new(Kind::Schema, "the table has no column stream")
                        .object(schema.name.to_string())
                        .remedy("drop schema cdc_sync on the source; run creates it anew"));
                }
            },
        })
    }
}

/// The slot of a relation. OIDs of tables that were made together are close together: their last bits differ.
#[inline]
fn slot(recent: &mut [(u32, usize); RECENT], id: u32) -> &mut (u32, usize) {
    &mut recent[id as usize % RECENT]
}

#[cold]
fn unknown(id: u32) -> Error {
    Error::new(
        Kind::Protocol,
        format!("a change of the relation with OID {id}, which the server has not announced"),
    )
}

/// Its changes would be left out without a word.
#[cold]
fn renamed(was: &TableName, now: &TableName) -> Error {
    Error::new(
        Kind::Schema,
        format!("its changes come under the name {now}, which is not selected: they would be left out"),
    )
    .object(format!("table {was}"))
    .remedy(format!(
        "if it was renamed: run with --table '{now}' besides the others; if it was given the selected name later: \
         `cdc-sync resync --table '{was}'`"
    ))
}

fn role(name: &TableName) -> TableRole {
    match (name.schema.as_str(), name.name.as_str()) {
        (OWN_SCHEMA, "heartbeat") => TableRole::Heartbeat,
        (OWN_SCHEMA, "marker") => TableRole::Marker,
        _ => TableRole::User,
    }
}

/// With `FULL` the server flags all columns; with no column flagged there is nothing to find a row by, whatever
/// the setting says (`DEFAULT` without a primary key, `USING INDEX` after the index was dropped).
fn identity(relation: &Relation<'_>) -> Identity {
    match relation.replica_identity {
        b'f' => Identity::Full,
        b'd' | b'i' if relation.columns.iter().any(|column| column.key) => Identity::Key,
        _ => Identity::Nothing,
    }
}
