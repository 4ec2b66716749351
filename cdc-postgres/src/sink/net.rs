//! Net sets of one table: deletes, updates, inserts, upserts, each in as few statements as size allows.

#[cfg(any(test, feature = "testing"))]
mod alone;

use std::sync::Arc;

use cdc_core::Result;
use cdc_core::plan::{ApplyPlan, Image, NetTable, PlannedTable, UpdateSet};

use super::flight::{Effect, Flight, Halt, Subject};
use super::rows::{RowChange, Rows};
use super::sql::{self, Locating, Verb};
use super::tables::{Bound, Tables};
use super::values::{Arrays, copy_value, text};
use crate::wire::Format;

#[cfg(any(test, feature = "testing"))]
pub use alone::NetBytes;

/// A set of fewer rows goes as single statements.
const SET_FROM: usize = 4;
/// The same in a group that is committed at once.
const SET_AT_ONCE_FROM: usize = 33;
/// Inserts of fewer rows go as single statements, the others by COPY, or as arrays in a group that is committed at once.
const COPY_FROM: usize = 4;
/// What one set statement takes at most.
const SET_ROWS: u32 = 10_000;
const SET_BYTES: usize = 8 << 20;
/// Inserts of larger rows go as single statements, too: they cost the server less than COPY's text, where it looks for the ends of
/// lines and columns in every byte. Rows of 2 kB cost the same either way (docs/performance.md).
const LARGE_ROW: usize = 4 << 10;
/// COPY data are handed over in pieces of about this size.
const COPY_BYTES: usize = 64 << 10;
/// A buffer that one large value made larger than this is given back.
const KEEP_CAPACITY: usize = 16 << 20;

/// Buffers that are filled for one statement after the other.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    pub(super) arrays: Arrays,
    pub(super) scratch: Vec<u8>,
    copy: Vec<u8>,
}

/// Rows as the image that has the key and the image that has the values.
#[derive(Clone, Copy)]
enum Pairs<'p> {
    /// one image for both
    Same(&'p [Image]),
    Two(&'p [(Image, Image)]),
}

impl Pairs<'_> {
    fn len(self) -> usize {
        match self {
            Pairs::Same(images) => images.len(),
            Pairs::Two(pairs) => pairs.len(),
        }
    }

    fn get(self, place: usize) -> Option<(Image, Image)> {
        match self {
            Pairs::Same(images) => images.get(place).map(|image| (*image, *image)),
            Pairs::Two(pairs) => pairs.get(place).copied(),
        }
    }
}

/// One set of rows.
#[derive(Clone, Copy)]
struct Set<'p> {
    effect: Effect,
    /// as a set statement, and as one for each row
    verbs: (Verb, Verb),
    columns: &'p [usize],
    rows: Pairs<'p>,
    /// whether each row must be hit
    must_hit: bool,
}

impl Set<'_> {
    /// The columns that locate its rows, beside those that are written.
    fn locator(self, planned: &PlannedTable) -> &[usize] {
        match self.effect {
            Effect::Insert | Effect::Upsert => &[],
            Effect::Update | Effect::Delete => &planned.locator,
        }
    }
}

impl Buffers {
    /// Fills the arrays with rows from number `first` on; returns how many it took.
    fn fill_arrays(
        &mut self,
        plan: &ApplyPlan,
        planned: &PlannedTable,
        set: Set<'_>,
        first: usize,
    ) -> Result<usize> {
        let Buffers { arrays, scratch, .. } = self;
        let locator = set.locator(planned);
        arrays.start(set.columns.len() + locator.len());
        let mut taken = 0;
        while arrays.rows() < SET_ROWS && arrays.bytes() < SET_BYTES {
            let Some((key, values)) = set.rows.get(first + taken) else {
                break;
            };
            let written = set.columns.iter().map(|column| (values, *column));
            let located = locator.iter().map(|column| (key, *column));
            for (place, (image, column)) in written.chain(located).enumerate() {
                scratch.clear();
                let value = text(planned, column, plan.datum(image, column), scratch)?;
                arrays.push(place, value.bytes(scratch));
            }
            arrays.end_row();
            taken += 1;
        }
        Ok(taken)
    }

    /// Writes rows for COPY until it is worth a message; returns how many.
    fn fill_copy(&mut self, plan: &ApplyPlan, planned: &PlannedTable, images: &[Image]) -> Result<usize> {
        let Buffers { scratch, copy, .. } = self;
        copy.clear();
        copy.shrink_to(KEEP_CAPACITY);
        let mut taken = 0;
        for image in images {
            for (place, column) in planned.written.iter().enumerate() {
                if place > 0 {
                    copy.push(b'\t');
                }
                scratch.clear();
                let value = text(planned, *column, plan.datum(*image, *column), scratch)?;
                copy_value(value.bytes(scratch), copy);
            }
            copy.push(b'\n');
            taken += 1;
            if copy.len() >= COPY_BYTES {
                break;
            }
        }
        Ok(taken)
    }

    /// Whether rows are large, going by the first, the last and the one in the middle.
    fn are_large(&mut self, plan: &ApplyPlan, planned: &PlannedTable, images: &[Image]) -> Result<bool> {
        let scratch = &mut self.scratch;
        let (mut rows, mut bytes) = (0, 0);
        let middle = images.get(images.len() / 2);
        for image in images.first().into_iter().chain(middle).chain(images.last()) {
            rows += 1;
            for column in &planned.written {
                scratch.clear();
                let value = text(planned, *column, plan.datum(*image, *column), scratch)?;
                bytes += value.bytes(scratch).map_or(0, <[u8]>::len);
            }
        }
        Ok(bytes >= rows * LARGE_ROW && rows > 0)
    }
}

/// Sends the sets of a table.
pub(super) struct NetSets<'p, 's> {
    pub(super) plan: &'p ApplyPlan,
    pub(super) net: &'p NetTable,
    pub(super) tables: &'s mut Tables,
    pub(super) buffers: &'s mut Buffers,
}

impl NetSets<'_, '_> {
    /// Adds the statements of all sets.
    pub(super) async fn send(&mut self, flight: &mut Flight<'_>) -> Result<(), Halt> {
        let net = self.net;
        for (images, must_hit) in [(&net.deletes, true), (&net.deletes_if_present, false)] {
            let set = Set {
                effect: Effect::Delete,
                verbs: (Verb::DeleteSet, Verb::Delete),
                columns: &[],
                rows: Pairs::Same(images),
                must_hit,
            };
            self.send_set(flight, set).await?;
        }
        for UpdateSet { columns, rows } in &net.updates {
            let replaces = self.bound()?.identities(columns)? > 0;
            let set = Set {
                effect: Effect::Update,
                verbs: (
                    Verb::UpdateSet,
                    if replaces { Verb::Replace } else { Verb::Update },
                ),
                columns,
                rows: Pairs::Two(rows),
                must_hit: true,
            };
            self.send_set(flight, set).await?;
        }
        self.send_inserts(flight).await?;
        let planned = Arc::clone(&self.bound()?.planned);
        let upserts = Set {
            effect: Effect::Upsert,
            verbs: (Verb::UpsertSet, Verb::Upsert),
            columns: &planned.written,
            rows: Pairs::Same(&net.upserts),
            must_hit: false,
        };
        self.send_set(flight, upserts).await
    }

    fn bound(&self) -> Result<&Bound> {
        self.tables.at(self.tables.place(self.plan, self.net.table)?)
    }

    async fn send_set(&mut self, flight: &mut Flight<'_>, set: Set<'_>) -> Result<(), Halt> {
        let bound = self.bound()?;
        let from = if flight.goes_to_commit() {
            SET_AT_ONCE_FROM
        } else {
            SET_FROM
        };
        if set.rows.len() >= from && bound.can_be_set(set.verbs.0, set.columns)? {
            return self.send_arrays(flight, set).await;
        }
        let mut rows = Rows::new(self.plan);
        for place in 0..set.rows.len() {
            let Some((key, values)) = set.rows.get(place) else {
                break;
            };
            let change = RowChange {
                table: self.net.table,
                verb: set.verbs.1,
                key,
                values,
                columns: set.columns,
                expected: set.must_hit.then_some(1),
                of_set: true,
            };
            rows.send(flight, self.tables, change).await?;
        }
        Ok(())
    }

    async fn send_arrays(&mut self, flight: &mut Flight<'_>, set: Set<'_>) -> Result<(), Halt> {
        let place = self.tables.place(self.plan, self.net.table)?;
        let planned = Arc::clone(&self.tables.at(place)?.planned);
        let locate: Vec<Locating> = set
            .locator(&planned)
            .iter()
            .map(|column| Locating {
                column: *column,
                null: false,
            })
            .collect();
        let counts = set.must_hit && flight.goes_to_commit();
        let statement = self
            .tables
            .statement(place, set.verbs.0, counts, set.columns, &locate)?;
        if let Some(text) = &statement.unprepared {
            flight.prepare(&statement.name, text).await?;
        }
        let mut sent = 0;
        while sent < set.rows.len() {
            sent += self.buffers.fill_arrays(self.plan, &planned, set, sent)?;
            let arrays = &mut self.buffers.arrays;
            let subject = Subject::Set {
                table: self.net.table,
                effect: set.effect,
            };
            let rows = u64::from(arrays.rows());
            let expected = (set.must_hit && !counts).then_some(rows);
            flight.run(
                &statement.name,
                Format::Binary,
                arrays.finish(),
                subject,
                expected,
            )?;
            flight.flow().await?;
        }
        Ok(())
    }

    async fn send_inserts(&mut self, flight: &mut Flight<'_>) -> Result<(), Halt> {
        let net = self.net;
        let planned = Arc::clone(&self.bound()?.planned);
        let one_by_one = net.inserts.len() < COPY_FROM
            || planned.written.is_empty()
            || self.buffers.are_large(self.plan, &planned, &net.inserts)?;
        // How many rows a COPY took is only in its answer.
        if one_by_one || flight.goes_to_commit() {
            let set = Set {
                effect: Effect::Insert,
                verbs: (
                    if one_by_one { Verb::Insert } else { Verb::InsertSet },
                    Verb::Insert,
                ),
                columns: &planned.written,
                rows: Pairs::Same(&net.inserts),
                must_hit: true,
            };
            return self.send_set(flight, set).await;
        }
        let sql = sql::copy(self.bound()?)?;
        let subject = Subject::Set {
            table: net.table,
            effect: Effect::Insert,
        };
        flight.copy(&sql, subject, net.inserts.len() as u64).await?;
        let mut sent = 0;
        while sent < net.inserts.len() {
            sent +=
                self.buffers
                    .fill_copy(self.plan, &planned, net.inserts.get(sent..).unwrap_or_default())?;
            flight.copy_data(&self.buffers.copy).await?;
        }
        flight.copy_done().await
    }
}

impl Bound {
    /// Whether rows can go as arrays: a key locates those that are there, and casts read every value as its column's input does.
    fn can_be_set(&self, verb: Verb, columns: &[usize]) -> Result<bool> {
        let locator = match verb {
            // COPY inserts for less, but for rows that are large.
            Verb::Insert => return Ok(false),
            Verb::InsertSet => &[][..],
            _ if self.planned.locator_is_unique => &self.planned.locator,
            _ => return Ok(false),
        };
        if columns.is_empty() && locator.is_empty() {
            return Ok(false);
        }
        if verb == Verb::UpdateSet && self.identities(columns)? == columns.len() {
            return Ok(false);
        }
        for column in columns.iter().chain(locator) {
            if !self.column(*column)?.from_text {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How many of the columns an UPDATE may not set.
    fn identities(&self, columns: &[usize]) -> Result<usize> {
        let mut count = 0;
        for column in columns {
            count += usize::from(self.column(*column)?.identity_always);
        }
        Ok(count)
    }
}
