//! The text of the sink's statements.
//!
//! Values come first, then those that locate the row, both as parameters from `$1` on. A row statement takes them one
//! by one, with the types that the server gives them; a set statement takes one `text[]` for each, whose elements it
//! casts row by row, because an array of arrays does not exist as such (`unnest` would flatten it). No cast carries a
//! length: what is too long is refused when it is assigned to the column, and not cut.

use std::fmt::Write as _;

use cdc_core::{Error, Kind, Result};

use super::flight::Effect;
use super::policy::{self, Form};
use super::tables::{Bound, ColumnFacts};
use crate::catalog::qualified;

/// What a statement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// inserts a row
    Insert,
    /// sets columns of a row; without columns, sets one to what it is
    Update,
    /// removes a row
    Delete,
    /// inserts a row, or overwrites the one with its key
    Upsert,
    /// sets columns of a row that an UPDATE may not set: where they differ, removes it and inserts it again, what is not given
    /// as it was
    Replace,
    /// inserts a set of rows, where COPY cannot be had
    InsertSet,
    /// updates a set of rows
    UpdateSet,
    /// removes a set of rows
    DeleteSet,
    /// upserts a set of rows
    UpsertSet,
    /// changes a row or a set of rows and decides conflicts by the table's policy
    Decided(Effect, Form),
}

/// One column that locates a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Locating {
    /// the source column
    pub(super) column: usize,
    /// whether its value is NULL, which no parameter can stand for
    pub(super) null: bool,
}

/// A statement that writes `columns` of the row or rows that `locate` finds.
pub(super) fn statement(table: &Bound, verb: Verb, columns: &[usize], locate: &[Locating]) -> Result<String> {
    let name = table.rows();
    Ok(match verb {
        Verb::Insert => insert(table, columns, &values(columns))?,
        Verb::Upsert => {
            let insert = insert(table, columns, &values(columns))?;
            format!("{insert} {}", on_conflict(table, columns)?)
        }
        Verb::Update => {
            let set = match table.touchable().filter(|_| columns.is_empty()) {
                Some(facts) => format!("{0} = {0}", facts.quoted),
                None => list(columns.iter().enumerate(), |(place, column)| {
                    Ok(format!("{} = ${}", table.column(*column)?.quoted, place + 1))
                })?,
            };
            let condition = updated_condition(table, columns, locate)?;
            format!("UPDATE {name} SET {set} WHERE {condition}")
        }
        Verb::Delete => format!("DELETE FROM {name} WHERE {}", row_condition(table, locate, 0)?),
        Verb::Replace => {
            let (replaced, rows) = replace(table, columns, locate)?;
            format!("WITH {replaced} {rows}")
        }
        Verb::UpdateSet => {
            let (identities, set): (Vec<_>, Vec<_>) = columns
                .iter()
                .enumerate()
                .map(|(place, column)| table.column(*column).map(|facts| (place, facts)))
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .partition(|(_, facts)| facts.identity_always);
            let set = list(set, |(place, facts)| {
                Ok(format!("{} = {}", facts.quoted, element(facts, place)))
            })?;
            let mut condition = set_condition(table, locate, columns.len())?;
            for (place, facts) in identities {
                // An UPDATE may not set it; a row where it differs is left to the statements in order.
                and(
                    &mut condition,
                    &equal(facts, &format!("t.{}", facts.quoted), &element(facts, place)),
                );
            }
            let arrays = arrays(columns.len() + locate.len());
            format!("UPDATE {name} AS t SET {set} FROM {arrays} WHERE {condition}")
        }
        Verb::DeleteSet => {
            let arrays = arrays(locate.len());
            format!(
                "DELETE FROM {name} AS t USING {arrays} WHERE {}",
                set_condition(table, locate, 0)?
            )
        }
        Verb::InsertSet => insert(table, columns, &elements(table, columns)?)?,
        Verb::UpsertSet => {
            let insert = insert(table, columns, &elements(table, columns)?)?;
            format!("{insert} {}", on_conflict(table, columns)?)
        }
        Verb::Decided(effect, form) => policy::statement(table, effect, form, columns, locate)?,
    })
}

/// The same, failing unless every row is hit that is meant: nobody looks at its answer before the COMMIT.
pub(super) fn counting_statement(
    table: &Bound,
    verb: Verb,
    columns: &[usize],
    locate: &[Locating],
) -> Result<String> {
    let (before, hit) = match verb {
        Verb::Replace => {
            let (replaced, rows) = replace(table, columns, locate)?;
            (replaced + ", ", rows)
        }
        _ => {
            let writes = statement(table, verb, columns, locate)?;
            (String::new(), writes + " RETURNING 1")
        }
    };
    let meant = match verb {
        Verb::InsertSet | Verb::UpdateSet | Verb::DeleteSet => "cardinality($1::text[])",
        Verb::Insert | Verb::Update | Verb::Delete | Verb::Replace => "1",
        Verb::Upsert | Verb::UpsertSet | Verb::Decided(..) => {
            return Err(Error::bug("rows are counted of what may hit none"));
        }
    };
    // Divides by zero otherwise.
    Ok(format!(
        "WITH {before}hit AS ({hit}) SELECT 1 / (count(*) = {meant})::int FROM hit"
    ))
}

/// `COPY` of whole rows. It takes values of identity columns as they are.
pub(super) fn copy(table: &Bound) -> Result<String> {
    let name = qualified(&table.planned.target.name);
    Ok(format!(
        "COPY {name} ({}) FROM STDIN",
        names(table, &table.planned.written)?
    ))
}

fn insert(table: &Bound, columns: &[usize], rows: &str) -> Result<String> {
    let name = qualified(&table.planned.target.name);
    Ok(if columns.is_empty() {
        format!("INSERT INTO {name} DEFAULT VALUES")
    } else {
        // Without identity columns the clause has no effect.
        format!(
            "INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE {rows}",
            names(table, columns)?
        )
    })
}

fn values(columns: &[usize]) -> String {
    let parameters: Vec<String> = (1..=columns.len()).map(|number| format!("${number}")).collect();
    format!("VALUES ({})", parameters.join(", "))
}

fn on_conflict(table: &Bound, columns: &[usize]) -> Result<String> {
    let planned = &table.planned;
    if !planned.locator_is_unique {
        return Err(Error::new(
            Kind::Schema,
            "without a key of the target a row can be neither found nor overwritten",
        )
        .object(table.name())
        .remedy("give the target's table the source's primary key"));
    }
    let mut set = String::new();
    for column in columns.iter().filter(|column| !planned.locator.contains(column)) {
        let facts = table.column(*column)?;
        if !facts.identity_always {
            let comma = if set.is_empty() { "" } else { ", " };
            // Writing to a String cannot fail.
            let _ = write!(set, "{comma}{0} = excluded.{0}", facts.quoted);
        }
    }
    let key = names(table, &planned.locator)?;
    Ok(if set.is_empty() {
        format!("ON CONFLICT ({key}) DO NOTHING")
    } else {
        format!("ON CONFLICT ({key}) DO UPDATE SET {set}")
    })
}

/// All in one statement: what the change does not say (an unchanged TOAST value) comes from the row removed. The changes for
/// the statement's WITH, and the rows changed behind it.
///
/// A row that has its identity already is not removed: with it would go what refers to it, and its triggers would see other
/// changes than the source's. Where an action of a foreign key would take place, none is removed: the change then finds no row.
fn replace(table: &Bound, columns: &[usize], locate: &[Locating]) -> Result<(String, String)> {
    let (rows, name) = (table.rows(), qualified(&table.planned.target.name));
    let (mut set, mut identity) = (Vec::new(), String::new());
    for (place, column) in columns.iter().enumerate() {
        let facts = table.column(*column)?;
        let value = format!("${}::{}", place + 1, facts.cast);
        if facts.identity_always {
            and(&mut identity, &equal(facts, &facts.quoted, &value));
        } else {
            set.push(format!("{} = {value}", facts.quoted));
        }
    }
    let condition = updated_condition(table, columns, locate)?;
    if set.is_empty() {
        set.extend(table.touchable().map(|facts| format!("{0} = {0}", facts.quoted)));
    }
    let kept = if set.is_empty() {
        format!("kept AS (SELECT 1 FROM {rows} WHERE ({condition}) AND {identity})")
    } else {
        let set = set.join(", ");
        format!("kept AS (UPDATE {rows} SET {set} WHERE ({condition}) AND {identity} RETURNING 1)")
    };
    if table.planned.target.acts_on_others {
        return Ok((kept, String::from("SELECT 1 FROM kept")));
    }
    let (mut targets, mut sources) = (Vec::new(), Vec::new());
    for (number, facts) in table
        .columns
        .iter()
        .enumerate()
        .filter(|(_, facts)| !facts.generated)
    {
        let given = columns
            .iter()
            .position(|column| table.planned.columns.get(*column) == Some(&number));
        targets.push(facts.quoted.clone());
        sources.push(match given {
            Some(place) => format!("${}::{}", place + 1, facts.cast),
            None => format!("old.{}", facts.quoted),
        });
    }
    Ok((
        format!(
            "{kept}, old AS (DELETE FROM {rows} WHERE ({condition}) AND NOT ({identity}) RETURNING *), \
             put AS (INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM old RETURNING 1)",
            targets.join(", "),
            sources.join(", ")
        ),
        String::from("SELECT 1 FROM kept UNION ALL SELECT 1 FROM put"),
    ))
}

/// The condition for one row. Where the locator is no key, exactly one of the rows that are equal is taken, one that
/// is the same to the byte before one that is merely equal.
///
/// NULL has a condition of its own because `IS NOT DISTINCT FROM` can use no index.
fn row_condition(table: &Bound, locate: &[Locating], first: usize) -> Result<String> {
    let (mut condition, mut same) = (String::new(), Vec::new());
    let mut number = first;
    for locating in locate {
        let facts = table.column(locating.column)?;
        if locating.null {
            and(&mut condition, &format!("{} IS NULL", facts.quoted));
            continue;
        }
        number += 1;
        let value = format!("${number}::{}", facts.cast);
        and(&mut condition, &equal(facts, &facts.quoted, &value));
        if !facts.exact && facts.equals.is_some() {
            // By the output function: the cast of bpchar to text cuts the blanks in which two may differ.
            same.push(format!("format('%s', {}) = format('%s', {value})", facts.quoted));
        }
    }
    if table.planned.locator_is_unique {
        return Ok(condition);
    }
    let order = if same.is_empty() {
        String::new()
    } else {
        format!(" ORDER BY {} DESC", same.join(" AND "))
    };
    let rows = table.rows();
    // A place in a partition is one in each of them.
    let place = if table.planned.target.partitioned {
        "(tableoid, ctid)"
    } else {
        "ctid"
    };
    let columns = place.trim_matches(['(', ')']);
    Ok(format!(
        "{place} = (SELECT {columns} FROM {rows} WHERE {condition}{order} LIMIT 1)"
    ))
}

/// The condition for the row that an update means.
fn updated_condition(table: &Bound, columns: &[usize], locate: &[Locating]) -> Result<String> {
    let condition = row_condition(table, locate, columns.len())?;
    Ok(match moved_condition(table, columns, locate)? {
        Some(moved) => format!("({condition}) OR ({moved})"),
        None => condition,
    })
}

/// The condition for a row that a foreign key's action has given its new key already.
fn moved_condition(table: &Bound, columns: &[usize], locate: &[Locating]) -> Result<Option<String>> {
    let planned = &table.planned;
    let moves = columns.iter().any(|column| planned.locator.contains(column));
    if !planned.target.cascaded || !planned.locator_is_unique || !moves {
        return Ok(None);
    }
    let mut condition = String::new();
    for (located, Locating { column, .. }) in locate.iter().enumerate() {
        let facts = table.column(*column)?;
        // Parts of the key that stay are as in the old image.
        let set = columns.iter().position(|set| set == column);
        let value = format!("${}::{}", set.unwrap_or(columns.len() + located) + 1, facts.cast);
        and(&mut condition, &equal(facts, &facts.quoted, &value));
    }
    Ok(Some(condition))
}

/// Joins the table `t` with the arrays from number `first` on.
fn set_condition(table: &Bound, locate: &[Locating], first: usize) -> Result<String> {
    let mut condition = String::new();
    for (place, locating) in locate.iter().enumerate() {
        let facts = table.column(locating.column)?;
        and(
            &mut condition,
            &equal(
                facts,
                &format!("t.{}", facts.quoted),
                &element(facts, first + place),
            ),
        );
    }
    Ok(condition)
}

/// Types without equality are compared as text, both sides as this server writes them.
pub(super) fn equal(facts: &ColumnFacts, column: &str, value: &str) -> String {
    match &facts.equals {
        Some(operator) => format!("{column} {operator} {value}"),
        None => format!("{column}::text = ({value})::text"),
    }
}

fn and(condition: &mut String, term: &str) {
    if !condition.is_empty() {
        condition.push_str(" AND ");
    }
    condition.push_str(term);
}

/// `unnest` of the first `count` parameters as `k (c0, c1, …)`.
fn arrays(count: usize) -> String {
    let parameters: Vec<String> = (1..=count).map(|number| format!("${number}::text[]")).collect();
    let columns: Vec<String> = (0..count).map(|place| format!("c{place}")).collect();
    format!("unnest({}) AS k ({})", parameters.join(", "), columns.join(", "))
}

/// Rows from the arrays.
fn elements(table: &Bound, columns: &[usize]) -> Result<String> {
    let elements = list(columns.iter().enumerate(), |(place, column)| {
        Ok(element(table.column(*column)?, place))
    })?;
    Ok(format!("SELECT {elements} FROM {}", arrays(columns.len())))
}

/// One element of the arrays as a value of its column.
pub(super) fn element(facts: &ColumnFacts, place: usize) -> String {
    format!("k.c{place}::{}", facts.cast)
}

pub(super) fn names(table: &Bound, columns: &[usize]) -> Result<String> {
    list(columns, |column| Ok(table.column(*column)?.quoted.clone()))
}

pub(super) fn list<T>(
    items: impl IntoIterator<Item = T>,
    show: impl Fn(T) -> Result<String>,
) -> Result<String> {
    let shown: Vec<String> = items.into_iter().map(show).collect::<Result<_>>()?;
    Ok(shown.join(", "))
}
