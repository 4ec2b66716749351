//! A table whose rows are looked at again: its columns, and the statements that find the rows.
//!
//! Values stand in the statements as literals, not as parameters: a literal is read by the type's input function,
//! whatever casts the type has, and what is read is text of its output function. No cast carries a length, so what is
//! too long for a column is refused when it is assigned, and not cut.

use cdc_core::repair::{Asked, Found, TextRow};
use cdc_core::{Error, Kind, Result};

use crate::catalog::qualified;
use crate::column_types::TYPE_FACTS;
use crate::wire::session::{identifier, literal};
use crate::wire::{Connection, Row};

/// A column.
#[derive(Debug)]
pub(super) struct Column {
    name: String,
    cast: String,
    equals: Option<String>,
    /// GENERATED ALWAYS AS IDENTITY: an UPDATE may not set it
    pub(super) identity_always: bool,
    /// computed by the server
    pub(super) generated: bool,
}

impl Column {
    pub(super) fn quoted(&self) -> String {
        identifier(&self.name)
    }

    /// The value as the column's type.
    pub(super) fn value(&self, text: Option<&str>) -> String {
        let value = text.map_or_else(|| "NULL".to_owned(), literal);
        format!("{value}::{}", self.cast)
    }

    /// Whether the row `t` has the value `key`.
    fn equals(&self, key: &str, null: bool) -> String {
        let column = format!("t.{}", self.quoted());
        let same = match &self.equals {
            Some(operator) => format!("{column} {operator} {key}"),
            None => format!("format('%s', {column}) = format('%s', {key})"),
        };
        if null {
            // IS NOT DISTINCT FROM would look for the operator along the search path.
            format!("({same} OR ({column} IS NULL AND {key} IS NULL))")
        } else {
            same
        }
    }
}

/// What becomes of the rows that are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Located {
    /// They are only read.
    ForReading,
    /// They are about to be written.
    ForUpdate,
}

/// A row that was found, or copies of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) found: Found,
    /// where the row is, with a key
    pub(super) ctid: Option<String>,
}

/// The table of an [`Asked`].
#[derive(Debug)]
pub(crate) struct Table<'a> {
    pub(super) asked: &'a Asked<'a>,
    /// as many as `asked.columns`
    pub(super) columns: Vec<Column>,
}

impl<'a> Table<'a> {
    /// Reads what has to be known of the columns.
    pub(crate) async fn read(connection: &mut Connection, asked: &'a Asked<'a>) -> Result<Table<'a>> {
        let sql = format!(
            "WITH RECURSIVE rels (oid) AS (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = {} AND c.relname = {}), {TYPE_FACTS} \
             SELECT a.attname, f.cast_name, f.equals, a.attidentity = 'a', a.attgenerated <> '' \
             FROM rels r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped \
             JOIN type_facts f ON f.oid = a.atttypid",
            literal(&asked.table.schema),
            literal(&asked.table.name)
        );
        let answer = connection.simple_query(&sql).await?;
        let rows = answer
            .first()
            .map(|result| result.rows.as_slice())
            .unwrap_or_default();
        let known: Vec<Column> = rows.iter().map(column).collect::<Result<_>>()?;
        let mut columns = Vec::with_capacity(asked.columns.len());
        let mut known: Vec<Option<Column>> = known.into_iter().map(Some).collect();
        for name in asked.columns {
            let of_name =
                |slot: &&mut Option<Column>| slot.as_ref().is_some_and(|column| column.name == *name);
            let found = known.iter_mut().find(of_name).and_then(Option::take);
            columns.push(found.ok_or_else(|| {
                Error::new(Kind::Schema, format!("column {name} is not there any more"))
                    .object(format!("table {}", asked.table))
            })?);
        }
        Ok(Table { asked, columns })
    }

    pub(super) fn name(&self) -> String {
        qualified(self.asked.table)
    }

    pub(super) fn keyed(&self) -> bool {
        !self.asked.key.is_empty()
    }

    fn column(&self, name: &str) -> Result<&Column> {
        let known = self.columns.iter().find(|column| column.name == *name);
        known.ok_or_else(|| Error::bug(format!("key column {name} is not compared")))
    }

    /// What there is of each row that was asked for, for a view that only reads.
    pub(crate) async fn find(&self, connection: &mut Connection) -> Result<Vec<Found>> {
        let places = self.locate(connection, Located::ForReading).await?;
        Ok(places.into_iter().map(|place| place.found).collect())
    }

    /// The same with places. Rows to be written are locked: with a key one by one, else with the table, because a count
    /// must not change.
    pub(super) async fn locate(&self, connection: &mut Connection, how: Located) -> Result<Vec<Place>> {
        let mut places = vec![Place::default(); self.asked.rows.len()];
        if self.asked.rows.is_empty() {
            return Ok(places);
        }
        let sql = if self.keyed() {
            self.by_key(how)?
        } else {
            self.copies(how)
        };
        let answer = connection.simple_query(&sql).await?;
        for row in answer
            .last()
            .map(|result| result.rows.as_slice())
            .unwrap_or_default()
        {
            let number = required(row, 0)?.parse::<usize>().ok();
            let place = number.and_then(|number| places.get_mut(number));
            let place = place.ok_or_else(|| Error::bug("a row that was not asked for"))?;
            if !self.keyed() {
                place.found.copies = required(row, 1)?.parse().unwrap_or(0);
                continue;
            }
            place.found.copies += 1;
            if place.found.copies > 1 {
                return Err(Error::new(Kind::Unverifiable, "two rows have the same key")
                    .object(format!("table {}", self.asked.table))
                    .remedy("check the primary key's index of this table (REINDEX), then verify again"));
            }
            place.ctid = Some(required(row, 1)?.to_owned());
            place.found.row = Some(texts(row, 2, self.columns.len())?);
        }
        Ok(places)
    }

    fn by_key(&self, how: Located) -> Result<String> {
        let key: Vec<&Column> = self
            .asked
            .key
            .iter()
            .map(|name| self.column(name))
            .collect::<Result<_>>()?;
        let values = numbered(self.asked.rows, |row| {
            let values = key.iter().zip(row);
            let values: Vec<String> = values
                .map(|(column, text)| column.value(text.as_deref()))
                .collect();
            values.join(", ")
        });
        let names: Vec<String> = (0..key.len()).map(|place| format!("k{place}")).collect();
        let conditions: Vec<String> = key
            .iter()
            .enumerate()
            .map(|(place, column)| {
                let mut texts = self.asked.rows.iter().map(|row| row.get(place));
                let null = texts.any(|text| text.is_none_or(Option::is_none));
                column.equals(&format!("k.k{place}"), null)
            })
            .collect();
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|column| format!(", t.{}", column.quoted()))
            .collect();
        let lock = match how {
            Located::ForReading => "",
            Located::ForUpdate => " FOR UPDATE OF t",
        };
        Ok(format!(
            // Statistics may be stale, and a scan of the table look cheap; without an index it is scanned all the same.
            "SET LOCAL enable_seqscan = off; SELECT k.n, t.ctid{} FROM (VALUES {values}) AS k (n, {}) \
             JOIN ONLY {} AS t ON {}{lock}",
            columns.concat(),
            names.join(", "),
            self.name(),
            conditions.join(" AND ")
        ))
    }

    fn copies(&self, how: Located) -> String {
        let lock = match how {
            Located::ForReading => String::new(),
            Located::ForUpdate => format!("LOCK TABLE ONLY {} IN SHARE ROW EXCLUSIVE MODE; ", self.name()),
        };
        format!(
            "{lock}SELECT k.n, count(*) FROM (VALUES {}) AS k (n, row) JOIN {} ON t.row = k.row GROUP BY k.n",
            numbered(self.asked.rows, whole),
            self.whole_rows("")
        )
    }

    /// The table's rows as `t (…, row)`, each as the array of its columns' text, by the output function and with NULL as
    /// what it is: rows are the same when these are, to the byte. `also` is what else is wanted of them.
    pub(super) fn whole_rows(&self, also: &str) -> String {
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|column| {
                let name = column.quoted();
                // format() makes NULL the empty text. IS NULL would be true for a row of NULLs, too.
                format!("CASE WHEN {name} IS DISTINCT FROM NULL THEN format('%s', {name}) COLLATE \"C\" END")
            })
            .collect();
        format!(
            "(SELECT {also}ARRAY[{}]::text[] AS row FROM ONLY {}) AS t",
            columns.join(", "),
            self.name()
        )
    }
}

/// `row` as the array that [`Table::whole_rows`] has of it.
pub(super) fn whole(row: &TextRow) -> String {
    let texts: Vec<String> = row
        .iter()
        .map(|text| text.as_deref().map_or_else(|| "NULL".to_owned(), literal))
        .collect();
    format!("ARRAY[{}]::text[]", texts.join(", "))
}

/// The rows with their numbers, for VALUES.
pub(super) fn numbered<R>(rows: impl IntoIterator<Item = R>, show: impl Fn(R) -> String) -> String {
    let rows = rows.into_iter().enumerate();
    let rows: Vec<String> = rows
        .map(|(number, row)| format!("({number}, {})", show(row)))
        .collect();
    rows.join(", ")
}

fn column(row: &Row) -> Result<Column> {
    Ok(Column {
        name: required(row, 0)?.to_owned(),
        cast: required(row, 1)?.to_owned(),
        equals: row.text(2)?.map(str::to_owned),
        identity_always: row.text(3)? == Some("t"),
        generated: row.text(4)? == Some("t"),
    })
}

fn required(row: &Row, column: usize) -> Result<&str> {
    let text = row.text(column)?;
    text.ok_or_else(|| Error::new(Kind::Protocol, "the server answered without a value"))
}

fn texts(row: &Row, first: usize, count: usize) -> Result<TextRow> {
    let texts = (first..first + count).map(|column| Ok(row.text(column)?.map(Box::from)));
    texts.collect()
}
