//! Sending changes of tables whose conflicts a policy decides: each statement takes the source transaction beside the
//! values, and answers with what became of the changes.

use cdc_core::plan::{ApplyPlan, Image, NetTable, RowRef, UpdateSet};
use cdc_core::{Error, Result};

use super::flight::{Effect, Flight, Halt, RowSubject, Subject};
use super::net::Buffers;
use super::policy::Form;
use super::sql::{Locating, Verb};
use super::tables::Tables;
use super::values::text;
use crate::wire::Format;

/// What one set statement takes at most.
const SET_ROWS: u32 = 1_000;
const SET_BYTES: usize = 4 << 20;

/// Changes of one kind: columns to write, and for each row the image that locates it and the image with the values.
#[derive(Clone, Copy)]
pub(super) struct Changes<'c> {
    pub(super) effect: Effect,
    pub(super) columns: &'c [usize],
    pub(super) rows: &'c [(Image, Image)],
}

/// Sends changes of the plan's table of this number.
pub(super) struct Decided<'p, 's> {
    pub(super) plan: &'p ApplyPlan,
    pub(super) table: usize,
    pub(super) tables: &'s mut Tables,
    pub(super) buffers: &'s mut Buffers,
}

impl Decided<'_, '_> {
    /// Adds the statements of all sets. A table with a policy has no other ones: net windows are refused.
    pub(super) async fn send_net(&mut self, flight: &mut Flight<'_>, net: &NetTable) -> Result<(), Halt> {
        let place = self.tables.place(self.plan, self.table)?;
        let planned = self.tables.at(place)?.planned.clone();
        let same = |images: &[Image]| -> Vec<(Image, Image)> {
            images.iter().map(|image| (*image, *image)).collect()
        };
        let version = self.tables.at(place)?.old_version();
        let deletes = Changes {
            effect: Effect::Delete,
            columns: &version,
            rows: &same(&net.deletes),
        };
        self.send(flight, deletes).await?;
        for UpdateSet { columns, rows } in &net.updates {
            let updates = Changes {
                effect: Effect::Update,
                columns,
                rows,
            };
            self.send(flight, updates).await?;
        }
        let inserts = Changes {
            effect: Effect::Insert,
            columns: &planned.written,
            rows: &same(&net.inserts),
        };
        self.send(flight, inserts).await
    }

    /// Adds the statements of some changes: as sets where casts read every value as its column's input does.
    pub(super) async fn send(&mut self, flight: &mut Flight<'_>, changes: Changes<'_>) -> Result<(), Halt> {
        let place = self.tables.place(self.plan, self.table)?;
        let bound = self.tables.at(place)?;
        let located = bound.planned.locator.clone();
        let as_set = changes.rows.len() > 1 && bound.reads_text(changes.columns)?;
        let form = if as_set { Form::Set } else { Form::Row };
        let locate: Vec<Locating> = located
            .iter()
            .map(|column| Locating {
                column: *column,
                null: false,
            })
            .collect();
        let verb = Verb::Decided(changes.effect, form);
        let statement = self
            .tables
            .statement(place, verb, false, changes.columns, &locate)?;
        if let Some(text) = &statement.unprepared {
            flight.prepare(&statement.name, text).await?;
        }
        let mut sent = 0;
        while let Some((key, _)) = changes.rows.get(sent) {
            let taken = self.fill(&changes, &located, sent, form)?;
            let subject = match form {
                Form::Row => Subject::Row(RowSubject {
                    table: self.table,
                    effect: changes.effect,
                    key: *key,
                    of_set: false,
                    statement: statement.number,
                }),
                Form::Set => Subject::Set {
                    table: self.table,
                    effect: changes.effect,
                },
            };
            let arrays = &mut self.buffers.arrays;
            match form {
                Form::Row => {
                    flight.run_deciding(&statement.name, Format::Text, arrays.single(), subject, 1)?
                }
                Form::Set => {
                    flight.run_deciding(
                        &statement.name,
                        Format::Binary,
                        arrays.finish(),
                        subject,
                        taken as u64,
                    )?;
                }
            }
            flight.flow().await?;
            sent += taken;
        }
        Ok(())
    }

    /// Fills the arrays with rows from number `first` on; returns how many it took.
    fn fill(&mut self, changes: &Changes<'_>, located: &[usize], first: usize, form: Form) -> Result<usize> {
        let place = self.tables.place(self.plan, self.table)?;
        let planned = &self.tables.at(place)?.planned;
        let Buffers { arrays, scratch, .. } = self.buffers;
        let most = if form == Form::Row { 1 } else { SET_ROWS };
        arrays.start(changes.columns.len() + located.len() + 1);
        let mut taken = 0;
        while arrays.rows() < most && arrays.bytes() < SET_BYTES {
            let Some((key, values)) = changes.rows.get(first + taken) else {
                break;
            };
            let written = changes.columns.iter().map(|column| (*values, *column));
            let locating = located.iter().map(|column| (*key, *column));
            let mut last = 0;
            for (place, (image, column)) in written.chain(locating).enumerate() {
                scratch.clear();
                let value = text(planned, column, self.plan.datum(image, column), scratch)?;
                arrays.push(place, value.bytes(scratch));
                last = place + 1;
            }
            let position = self.plan.label(row_of(*key)?);
            arrays.push(last, Some(position.as_bytes()));
            arrays.end_row();
            taken += 1;
        }
        Ok(taken)
    }
}

/// The change that an image which locates a row came with.
fn row_of(key: Image) -> Result<RowRef> {
    match key {
        Image::After(row) | Image::Identity(row) => Ok(row),
        Image::Merged(_) => Err(Error::bug("a merged image locates a row")),
    }
}
