//! What the session knows of the tables it applies to, and the statements it has prepared for them.

use std::collections::HashMap;
use std::sync::Arc;

use cdc_core::conflict::Policy;
use cdc_core::model::Identity;
use cdc_core::plan::{ApplyPlan, PlannedTable, TargetTable};
use cdc_core::{Error, Kind, Result, TableName};

use super::sql::{self, Locating, Verb};
use crate::catalog::qualified;
use crate::column_types::{BASE_TYPE, TYPE_FACTS};
use crate::error::PgError;
use crate::rounding;
use crate::wire::session::{identifier, literal};
use crate::wire::{Connection, Row};

/// Prepared statements a session holds before it starts over: each keeps its plan in the server's memory.
const CROWDED: usize = 2_000;

/// What statements must know of a target column beyond what planning does.
#[derive(Debug, Clone)]
pub(super) struct ColumnFacts {
    /// its name, quoted
    pub(super) quoted: String,
    /// its type's name for a cast; see [`TYPE_FACTS`]
    pub(super) cast: String,
    /// its type in full, length and precision included, domains taken off
    declared: String,
    /// the operator that compares it for equality
    pub(super) equals: Option<String>,
    /// whether casting text to its type reads the text as its input function does
    pub(super) from_text: bool,
    /// whether it is GENERATED ALWAYS AS IDENTITY: an UPDATE may not set it
    pub(super) identity_always: bool,
    /// whether equal means equal in every byte
    pub(super) exact: bool,
    /// whether the server computes it
    pub(super) generated: bool,
    /// whether the role may restart the sequence of the column, if there is one
    pub(super) restarts: bool,
}

/// A planned table as the session sees it.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) planned: Arc<PlannedTable>,
    /// the target's columns, in the order of [`TargetTable::columns`]
    pub(super) columns: Arc<[ColumnFacts]>,
    /// under a policy that decides: the target columns of each unique key besides the locator
    pub(super) uniques: Vec<Vec<usize>>,
    /// the stream that applies, under whose name conflicts are logged
    pub(super) stream: Arc<str>,
    statements: Vec<Prepared>,
}

#[derive(Debug)]
struct Prepared {
    verb: Verb,
    counts: bool,
    columns: Vec<usize>,
    locate: Vec<Locating>,
    number: usize,
    name: Arc<str>,
    /// the server has confirmed that it is prepared
    proven: bool,
}

/// A statement to run.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) number: usize,
    pub(super) name: Arc<str>,
    /// its text, when it has to be prepared first
    pub(super) unprepared: Option<String>,
}

impl Bound {
    /// The target column that a source column is written to.
    pub(super) fn column(&self, source: usize) -> Result<&ColumnFacts> {
        let target = self.planned.columns.get(source);
        target
            .and_then(|target| self.columns.get(*target))
            .ok_or_else(|| {
                Error::bug(format!("column {source} of a plan is not on the target")).object(self.name())
            })
    }

    /// A column that an UPDATE may set to what it is.
    pub(super) fn touchable(&self) -> Option<&ColumnFacts> {
        let mut columns = self.columns.iter();
        columns.find(|facts| !facts.generated && !facts.identity_always)
    }

    /// Whether the casts of these columns and of the locator read text as the columns' input functions do.
    pub(super) fn reads_text(&self, columns: &[usize]) -> Result<bool> {
        for column in columns.iter().chain(&self.planned.locator) {
            if !self.column(*column)?.from_text {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Under lww, the source columns of the version that a delete carries: those of a full old image.
    pub(super) fn old_version(&self) -> Vec<usize> {
        let Policy::Lww(version) = &self.planned.target.policy else {
            return Vec::new();
        };
        if self.planned.source.identity != Identity::Full {
            return Vec::new();
        }
        let names = std::iter::once(&version.version).chain(&version.node);
        let columns = &self.planned.source.columns;
        names
            .filter_map(|name| columns.iter().position(|column| column.name == *name))
            .collect()
    }

    /// The table as statements name it that change its rows: without inheritance children, which are tables of their
    /// own, but with its partitions, which are not.
    pub(super) fn rows(&self) -> String {
        let target = &self.planned.target;
        let only = if target.partitioned { "" } else { "ONLY " };
        format!("{only}{}", qualified(&target.name))
    }

    /// The table's name, for messages.
    pub(super) fn name(&self) -> String {
        self.planned.target.name.to_string()
    }
}

/// The tables of a session.
#[derive(Debug)]
pub(super) struct Tables {
    stream: Arc<str>,
    bound: Vec<Bound>,
    /// by the address of the planned table, which `held` keeps from being used again
    places: HashMap<usize, usize>,
    held: Vec<Arc<PlannedTable>>,
    /// tables with statements that are not proven
    unproven: Vec<usize>,
    prepared: usize,
}

impl Tables {
    /// None yet.
    pub(super) fn new(stream: &Arc<str>) -> Self {
        Self {
            stream: Arc::clone(stream),
            bound: Vec::new(),
            places: HashMap::new(),
            held: Vec::new(),
            unproven: Vec::new(),
            prepared: 0,
        }
    }

    /// Forgets all of them, as a new session does.
    pub(super) fn forget(&mut self) {
        *self = Self::new(&self.stream);
    }

    /// Whether the session had better start over.
    pub(super) fn crowded(&self) -> bool {
        self.prepared >= CROWDED || self.held.len() >= CROWDED
    }

    /// The table of a plan; [`Tables::learn`] must have seen the plan.
    pub(super) fn place(&self, plan: &ApplyPlan, table: usize) -> Result<usize> {
        let planned = plan.tables.get(table);
        let place = planned.and_then(|planned| self.places.get(&address(planned)));
        place
            .copied()
            .ok_or_else(|| Error::bug("a plan names a table beyond its list"))
    }

    /// The table at a place.
    pub(super) fn at(&self, place: usize) -> Result<&Bound> {
        self.bound
            .get(place)
            .ok_or_else(|| Error::bug("a table of the session that is none"))
    }

    /// Makes the plan's tables known, asking the catalog for those it has not seen.
    pub(super) async fn learn(&mut self, plan: &ApplyPlan, connection: &mut Connection) -> Result<()> {
        let mut unknown = Vec::new();
        for planned in &plan.tables {
            if !self.places.contains_key(&address(planned)) && !self.adopt(planned) {
                unknown.push(planned);
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let names: Vec<&TableName> = unknown.iter().map(|planned| &planned.target.name).collect();
        let mut read = read_columns(connection, &names).await.map_err(Error::from)?;
        let mut uniques = if plan.decides() {
            read_uniques(connection, &names).await.map_err(Error::from)?
        } else {
            HashMap::new()
        };
        for planned in unknown {
            if self.places.contains_key(&address(planned)) || self.adopt(planned) {
                continue;
            }
            let found = read
                .get_mut(&planned.target.name)
                .map(std::mem::take)
                .unwrap_or_default();
            let columns = match_columns(&planned.target, found)?;
            refuse_rounding(planned, &columns)?;
            self.hold(planned, self.bound.len());
            let found = uniques.remove(&planned.target.name).unwrap_or_default();
            self.bound.push(Bound {
                planned: Arc::clone(planned),
                columns,
                uniques: match_uniques(planned, &found),
                stream: Arc::clone(&self.stream),
                statements: Vec::new(),
            });
        }
        Ok(())
    }

    /// A table planned anew whose source and target are as they were keeps its statements.
    fn adopt(&mut self, planned: &Arc<PlannedTable>) -> bool {
        let same = |bound: &Bound| {
            let known = &bound.planned;
            known.target.name == planned.target.name
                && known.target == planned.target
                && known.source.same_shape(&planned.source)
                && known.columns == planned.columns
                && known.written == planned.written
                && known.locator == planned.locator
                && known.locator_is_unique == planned.locator_is_unique
        };
        match self.bound.iter().position(same) {
            Some(place) => {
                self.hold(planned, place);
                true
            }
            None => false,
        }
    }

    fn hold(&mut self, planned: &Arc<PlannedTable>, place: usize) {
        self.places.insert(address(planned), place);
        self.held.push(Arc::clone(planned));
    }

    /// A statement that writes `columns` of what `locate` finds; one that `counts` fails unless it hits all that are meant.
    pub(super) fn statement(
        &mut self,
        place: usize,
        verb: Verb,
        counts: bool,
        columns: &[usize],
        locate: &[Locating],
    ) -> Result<Statement> {
        let bound = self.bound.get_mut(place);
        let bound = bound.ok_or_else(|| Error::bug("a table of the session that is none"))?;
        let known = bound.statements.iter().find(|known| {
            (known.verb, known.counts) == (verb, counts) && known.columns == columns && known.locate == locate
        });
        if let Some(known) = known {
            return Ok(Statement {
                number: known.number,
                name: Arc::clone(&known.name),
                unprepared: None,
            });
        }
        let text = match counts {
            true => sql::counting_statement(bound, verb, columns, locate)?,
            false => sql::statement(bound, verb, columns, locate)?,
        };
        self.prepared += 1;
        let name: Arc<str> = format!("c{}", self.prepared).into();
        bound.statements.push(Prepared {
            verb,
            counts,
            columns: columns.to_vec(),
            locate: locate.to_vec(),
            number: self.prepared,
            name: Arc::clone(&name),
            proven: false,
        });
        self.unproven.push(place);
        Ok(Statement {
            number: self.prepared,
            name,
            unprepared: Some(text),
        })
    }

    /// The source column whose value is the parameter at `place` of a row statement.
    pub(super) fn parameter(&self, statement: usize, place: usize) -> Option<usize> {
        let mut statements = self.bound.iter().flat_map(|bound| &bound.statements);
        let found = statements.find(|known| known.number == statement)?;
        let located = found
            .locate
            .iter()
            .filter(|locating| !locating.null)
            .map(|locating| locating.column);
        found.columns.iter().copied().chain(located).nth(place)
    }

    /// The statements sent since the last call are prepared, or it is not known whether they are: then their names
    /// are not used again.
    pub(super) fn settle(&mut self, prepared: bool) {
        for place in std::mem::take(&mut self.unproven) {
            if let Some(bound) = self.bound.get_mut(place) {
                if prepared {
                    bound
                        .statements
                        .iter_mut()
                        .for_each(|statement| statement.proven = true);
                } else {
                    bound.statements.retain(|statement| statement.proven);
                }
            }
        }
    }
}

fn address(planned: &Arc<PlannedTable>) -> usize {
    Arc::as_ptr(planned) as usize
}

/// The facts of the columns of a table, by name.
type Found = HashMap<String, ColumnFacts>;

async fn read_columns(
    connection: &mut Connection,
    names: &[&TableName],
) -> std::result::Result<HashMap<TableName, Found>, PgError> {
    let list: Vec<String> = names
        .iter()
        .map(|name| format!("({}, {})", literal(&name.schema), literal(&name.name)))
        .collect();
    let sql = format!(
        "WITH RECURSIVE rels (oid, schema, name) AS ( \
             SELECT c.oid, n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE (n.nspname::text, c.relname::text) IN ({})), {TYPE_FACTS} \
         SELECT r.schema, r.name, a.attname, f.cast_name, f.equals, f.from_text, a.attidentity = 'a', \
             {BASE_TYPE}, \
         NOT EXISTS (SELECT FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
             WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = r.oid \
             AND d.refobjsubid = a.attnum AND d.deptype IN ('a', 'i') AND NOT pg_has_role(s.relowner, 'USAGE')) \
         FROM rels r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped \
         JOIN type_facts f ON f.oid = a.atttypid",
        list.join(", ")
    );
    let results = connection.simple_query(&sql).await?;
    let mut tables: HashMap<TableName, Found> = HashMap::new();
    for row in results.iter().flat_map(|result| &result.rows) {
        let text = |column| row.text(column).map(|text| text.unwrap_or_default().to_owned());
        let table = tables.entry(TableName::new(text(0)?, text(1)?)).or_default();
        table.insert(text(2)?, column_facts(row)?);
    }
    Ok(tables)
}

fn column_facts(row: &Row) -> std::result::Result<ColumnFacts, PgError> {
    let text = |column| row.text(column).map(|text| text.unwrap_or_default());
    Ok(ColumnFacts {
        quoted: identifier(text(2)?),
        cast: text(3)?.to_owned(),
        declared: text(7)?.to_owned(),
        equals: row.text(4)?.map(str::to_owned),
        from_text: text(5)? == "t",
        identity_always: text(6)? == "t",
        exact: false,
        generated: false,
        restarts: text(8)? == "t",
    })
}

/// The columns of each unique index whose violations can be foreseen: enforced at once (one that could not be built is
/// not), of all rows, on columns as they are and under their collation.
async fn read_uniques(
    connection: &mut Connection,
    names: &[&TableName],
) -> std::result::Result<HashMap<TableName, Vec<Vec<String>>>, PgError> {
    let list: Vec<String> = names
        .iter()
        .map(|name| format!("({}, {})", literal(&name.schema), literal(&name.name)))
        .collect();
    let sql = format!(
        "SELECT n.nspname, c.relname, i.indexrelid, a.attname FROM pg_index i \
         JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place) \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum \
         WHERE i.indisunique AND i.indisready AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL \
         AND k.place <= i.indnkeyatts AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[], i.indcollation::oid[]) \
             AS p (attnum, collation_oid) JOIN pg_attribute x ON x.attrelid = c.oid AND x.attnum = p.attnum \
             WHERE p.collation_oid NOT IN (0, x.attcollation)) \
         AND (n.nspname::text, c.relname::text) IN ({}) ORDER BY i.indexrelid, k.place",
        list.join(", ")
    );
    let results = connection.simple_query(&sql).await?;
    let mut tables: HashMap<TableName, Vec<Vec<String>>> = HashMap::new();
    let mut last = String::new();
    for row in results.iter().flat_map(|result| &result.rows) {
        let text = |column| row.text(column).map(|text| text.unwrap_or_default().to_owned());
        let keys = tables.entry(TableName::new(text(0)?, text(1)?)).or_default();
        let index = text(2)?;
        if index != last {
            keys.push(Vec::new());
            last = index;
        }
        if let Some(key) = keys.last_mut() {
            key.push(text(3)?);
        }
    }
    Ok(tables)
}

/// The unique keys besides the locator, as numbers of the target's columns.
fn match_uniques(planned: &PlannedTable, found: &[Vec<String>]) -> Vec<Vec<usize>> {
    let mut locator: Vec<usize> = planned
        .locator
        .iter()
        .filter_map(|column| planned.columns.get(*column).copied())
        .collect();
    locator.sort_unstable();
    let keys = found.iter().filter_map(|key| {
        let columns = key.iter().map(|name| planned.target.column(name));
        columns.collect::<Option<Vec<usize>>>()
    });
    keys.filter(|key| {
        let mut sorted = key.clone();
        sorted.sort_unstable();
        sorted != locator
    })
    .collect()
}

/// Refuses a table of which a column's type changes what the source's type holds: after a change of type on the source
/// its values would lose digits without an error.
fn refuse_rounding(planned: &PlannedTable, columns: &[ColumnFacts]) -> Result<()> {
    for source in &planned.written {
        let from = planned.source.columns.get(*source);
        let to = planned
            .columns
            .get(*source)
            .and_then(|target| columns.get(*target));
        let (Some(from), Some(to)) = (from.filter(|from| !from.declared.is_empty()), to) else {
            continue;
        };
        if let Some(effect) = rounding::effect(&from.declared, &to.declared) {
            let (is, was) = (&from.declared, &to.declared);
            return Err(Error::new(
                Kind::Schema,
                format!(
                    "the column is {is} on the source and {was} on the target: {effect} without an error"
                ),
            )
            .object(format!("table {}, column {}", planned.target.name, from.name))
            .remedy(format!("give the target's column the type {is}")));
        }
    }
    Ok(())
}

/// Puts the catalog's facts into the order of the planner's.
fn match_columns(target: &TargetTable, mut found: Found) -> Result<Arc<[ColumnFacts]>> {
    let columns = target.columns.iter().map(|column| {
        let facts = found.remove(&column.name).ok_or_else(|| {
            Error::new(
                Kind::Schema,
                format!("the target no longer has column {}", column.name),
            )
            .object(target.name.to_string())
            .remedy("bring the column back, or restart so that the target's tables are read anew")
        })?;
        Ok(ColumnFacts {
            exact: column.byte_comparable,
            generated: column.generated,
            ..facts
        })
    });
    columns.collect()
}
