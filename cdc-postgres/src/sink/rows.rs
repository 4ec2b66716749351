//! Changes by a statement of their own each: prepared once for each set of columns, one pipeline for all of them.

use cdc_core::batch::{ChangeEvent, Datum, Op};
use cdc_core::model::TxnKind;
use cdc_core::plan::{ApplyPlan, Image, OrderedRow, PlannedTable};
use cdc_core::{Error, Kind, Result};

use super::decided::{Changes, Decided};
use super::flight::{Effect, Flight, Halt, RowSubject, Subject};
use super::net::Buffers;
use super::sql::{Locating, Verb};
use super::tables::{Bound, Tables};
use super::values::{Text, text};
use crate::wire::Format;

/// One row's statement.
pub(super) struct RowChange<'a> {
    /// number of the table in the plan
    pub(super) table: usize,
    pub(super) verb: Verb,
    /// the image that has its key
    pub(super) key: Image,
    /// the image that has the values
    pub(super) values: Image,
    /// source columns to write
    pub(super) columns: &'a [usize],
    /// rows it must hit
    pub(super) expected: Option<u64>,
    /// whether it is a member of a net set
    pub(super) of_set: bool,
}

/// Sends rows one by one.
pub(super) struct Rows<'p> {
    plan: &'p ApplyPlan,
    values: Vec<Text<'p>>,
    locate: Vec<Locating>,
    scratch: Vec<u8>,
}

impl<'p> Rows<'p> {
    pub(super) fn new(plan: &'p ApplyPlan) -> Self {
        Self {
            plan,
            values: Vec::new(),
            locate: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Adds the statement of one row.
    pub(super) async fn send(
        &mut self,
        flight: &mut Flight<'_>,
        tables: &mut Tables,
        change: RowChange<'_>,
    ) -> Result<(), Halt> {
        let place = tables.place(self.plan, change.table)?;
        self.gather(tables.at(place)?, &change)?;
        let counts = change.expected.is_some() && flight.goes_to_commit();
        let statement = tables.statement(place, change.verb, counts, change.columns, &self.locate)?;
        if let Some(text) = &statement.unprepared {
            flight.prepare(&statement.name, text).await?;
        }
        let subject = Subject::Row(RowSubject {
            table: change.table,
            effect: match change.verb {
                Verb::Insert | Verb::InsertSet => Effect::Insert,
                Verb::Delete | Verb::DeleteSet => Effect::Delete,
                Verb::Update | Verb::Replace | Verb::UpdateSet => Effect::Update,
                Verb::Upsert | Verb::UpsertSet => Effect::Upsert,
                Verb::Decided(effect, _) => effect,
            },
            key: change.key,
            of_set: change.of_set,
            statement: statement.number,
        });
        let scratch = &self.scratch;
        let values = self.values.iter().map(|value| value.bytes(scratch));
        let expected = change.expected.filter(|_| !counts);
        flight.run(&statement.name, Format::Text, values, subject, expected)?;
        flight.flow().await
    }

    /// Collects the values of a statement in the order of its parameters.
    fn gather(&mut self, table: &Bound, change: &RowChange<'_>) -> Result<()> {
        self.values.clear();
        self.scratch.clear();
        self.locate.clear();
        let planned = &table.planned;
        for column in change.columns {
            let datum = self.plan.datum(change.values, *column);
            self.values
                .push(text(planned, *column, datum, &mut self.scratch)?);
        }
        if matches!(change.verb, Verb::Insert | Verb::Upsert) {
            return Ok(());
        }
        for column in &planned.locator {
            let datum = self.plan.datum(change.key, *column);
            // Without a key the old image is whatever the source sends of the row.
            if !planned.locator_is_unique && !datum.is_known() {
                continue;
            }
            let value = text(planned, *column, datum, &mut self.scratch)?;
            let null = matches!(value, Text::Null);
            self.locate.push(Locating {
                column: *column,
                null,
            });
            if !null {
                self.values.push(value);
            }
        }
        if self.locate.is_empty() {
            return Err(
                Error::new(Kind::Schema, "the source does not say which row changed")
                    .object(table.name())
                    .remedy("give the source's table a primary key, or REPLICA IDENTITY FULL"),
            );
        }
        Ok(())
    }

    /// Adds the statements of rows in order.
    pub(super) async fn send_ordered(
        &mut self,
        flight: &mut Flight<'_>,
        tables: &mut Tables,
        buffers: &mut Buffers,
        rows: &[OrderedRow],
    ) -> Result<(), Halt> {
        let mut columns = Vec::new();
        for row in rows {
            let event = self.plan.event(row.row);
            let event = event.ok_or_else(|| Error::bug("a plan names a row that it does not hold"))?;
            let bound = tables.at(tables.place(self.plan, row.table)?)?;
            if bound.planned.target.policy.decides() {
                let effect = choose_deciding(bound, &event, &mut columns)?;
                let key = match effect {
                    Effect::Insert => Image::After(row.row),
                    _ => Image::Identity(row.row),
                };
                let values = match effect {
                    Effect::Delete => key,
                    _ => Image::After(row.row),
                };
                let changes = Changes {
                    effect,
                    columns: &columns,
                    rows: &[(key, values)],
                };
                Decided {
                    plan: self.plan,
                    table: row.table,
                    tables,
                    buffers,
                }
                .send(flight, changes)
                .await?;
                continue;
            }
            let verb = choose(bound, &event, &mut columns)?;
            let Some(verb) = verb else { continue };
            // A net window says what is gone, not what was there.
            // Nor is it known whether a foreign key's action has taken the row away with its parent.
            let cascaded = bound.planned.target.cascaded;
            let window = event.txn().is_some_and(|txn| txn.kind == TxnKind::NetWindow);
            let located = matches!(verb, Verb::Update | Verb::Delete | Verb::Replace);
            let change = RowChange {
                table: row.table,
                verb,
                key: if located {
                    Image::Identity(row.row)
                } else {
                    Image::After(row.row)
                },
                values: Image::After(row.row),
                columns: &columns,
                expected: if verb == Verb::Upsert || (verb == Verb::Delete && (window || cascaded)) {
                    None
                } else {
                    Some(1)
                },
                of_set: false,
            };
            self.send(flight, tables, change).await?;
        }
        Ok(())
    }
}

/// The statement for a change, and the columns it writes. An update of nothing that is written still has to find its
/// row, and triggers see it; `None` when the table has no column that an update may name.
fn choose(table: &Bound, event: &ChangeEvent<'_>, columns: &mut Vec<usize>) -> Result<Option<Verb>> {
    let written = &table.planned.written;
    columns.clear();
    match event.op() {
        // What the image leaves out gets the target's default.
        Op::Insert => {
            columns.extend(
                written
                    .iter()
                    .filter(|column| event.after(**column) != Datum::Absent),
            );
            Ok(Some(Verb::Insert))
        }
        Op::Upsert => {
            columns.extend(written);
            Ok(Some(Verb::Upsert))
        }
        Op::Delete => Ok(Some(Verb::Delete)),
        Op::Update => {
            let mut verb = Verb::Update;
            for column in written
                .iter()
                .copied()
                .filter(|column| is_set(&table.planned, event, *column))
            {
                if table.column(column)?.identity_always {
                    verb = Verb::Replace;
                }
                columns.push(column);
            }
            Ok((!columns.is_empty() || table.touchable().is_some()).then_some(verb))
        }
        Op::Truncate | Op::Message => Err(Error::bug(format!("{:?} as an ordered row", event.op()))),
    }
}

/// The change that a policy may have to decide about, and the columns it carries. An update carries all that it knows:
/// it may have to become an insert.
fn choose_deciding(table: &Bound, event: &ChangeEvent<'_>, columns: &mut Vec<usize>) -> Result<Effect> {
    let planned = &table.planned;
    columns.clear();
    Ok(match event.op() {
        Op::Insert => {
            columns.extend(
                planned
                    .written
                    .iter()
                    .filter(|column| event.after(**column).is_known()),
            );
            Effect::Insert
        }
        Op::Update => {
            let moves = event.has_before()
                && planned.locator.iter().any(|column| {
                    let after = event.after(*column);
                    after.is_known() && after != event.identity(*column)
                });
            let written = planned.written.iter().copied();
            columns.extend(written.filter(|column| {
                event.after(*column).is_known() && (moves || !planned.locator.contains(column))
            }));
            Effect::Update
        }
        Op::Delete => {
            columns.extend(table.old_version());
            Effect::Delete
        }
        Op::Upsert | Op::Truncate | Op::Message => {
            return Err(Error::bug(format!("{:?} under a policy", event.op())));
        }
    })
}

/// Whether an update sets a column: its new value is known, and it is neither a part of the key that stays nor known
/// to be as before.
fn is_set(table: &PlannedTable, event: &ChangeEvent<'_>, column: usize) -> bool {
    let after = event.after(column);
    if !after.is_known() {
        return matches!(after, Datum::Patch(_));
    }
    if event.has_before() {
        let before = event.before(column);
        return before != after && (before.is_known() || !table.locator.contains(&column));
    }
    !table.locator.contains(&column)
}
