//! The target's row that a change was put aside for, and the statements that compare and write it.
//!
//! Values are text in the form that the type's input function reads. They stand in the statements as literals, not as
//! parameters: a literal is read by that function whatever casts the type has. No cast carries a length, so what is too
//! long for a column is refused when it is assigned, and not cut.

use cdc_core::{Error, Kind, Result, TableName};
use tokio_postgres::Transaction;

use crate::catalog::qualified;
use crate::column_types::TYPE_FACTS;
use crate::session::during;
use crate::wire::session::{identifier, literal};

/// A row or a part of one: columns and their text.
pub(super) type Values = Vec<(String, Option<String>)>;

/// A column of the target.
#[derive(Debug, Clone)]
pub(super) struct Column {
    name: String,
    cast: String,
    equals: Option<String>,
    /// GENERATED ALWAYS AS IDENTITY: an UPDATE may not set it
    identity_always: bool,
    /// computed by the server
    generated: bool,
}

impl Column {
    fn quoted(&self) -> String {
        identifier(&self.name)
    }

    fn value(&self, text: &Option<String>) -> String {
        match text {
            Some(text) => format!("{}::{}", literal(text), self.cast),
            None => "NULL".to_owned(),
        }
    }

    /// Whether `left`, an expression of the column's type, equals the value.
    fn equals(&self, left: &str, text: &Option<String>) -> String {
        match (text, &self.equals) {
            (None, _) => format!("{left} IS NULL"),
            (Some(_), Some(operator)) => format!("{left} {operator} {}", self.value(text)),
            (Some(_), None) => format!("({left})::text = ({})::text", self.value(text)),
        }
    }

    /// Whether the column holds exactly the value, not one that is merely equal to it.
    fn is(&self, text: &Option<String>) -> String {
        match text {
            None => format!("{} IS NULL", self.quoted()),
            Some(_) => format!("{}::text = ({})::text", self.quoted(), self.value(text)),
        }
    }
}

/// The table that a change belongs to, and where its row is.
#[derive(Debug)]
pub(super) struct Place {
    name: TableName,
    columns: Vec<Column>,
    key: Values,
}

impl Place {
    /// Reads the columns of the table.
    pub(super) async fn read(transaction: &Transaction<'_>, name: TableName, key: Values) -> Result<Place> {
        let sql = format!(
            "WITH RECURSIVE rels (oid) AS ( \
                 SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = $1 AND c.relname = $2), {TYPE_FACTS} \
             SELECT a.attname::text, f.cast_name, f.equals, a.attidentity = 'a', a.attgenerated <> '' \
             FROM rels r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped \
             JOIN type_facts f ON f.oid = a.atttypid ORDER BY a.attnum"
        );
        let rows = transaction
            .query(&sql, &[&name.schema, &name.name])
            .await
            .map_err(during("reading the columns of the table"))?;
        let columns: Vec<Column> = rows
            .iter()
            .map(|row| Column {
                name: row.get(0),
                cast: row.get(1),
                equals: row.get(2),
                identity_always: row.get(3),
                generated: row.get(4),
            })
            .collect();
        if columns.is_empty() || key.is_empty() {
            return Err(Error::new(
                Kind::Schema,
                "the row cannot be found any more: its table or key is gone",
            )
            .object(format!("table {name}"))
            .remedy("bring the table back, or discard the change"));
        }
        Ok(Place { name, columns, key })
    }

    /// The row for people.
    pub(super) fn shown(&self) -> String {
        let key = self.key.iter();
        let key: Vec<String> = key
            .map(|(column, text)| format!("{column}={}", text.as_deref().unwrap_or("NULL")))
            .collect();
        format!("{} ({})", self.name, key.join(", "))
    }

    /// The names and texts of the key.
    pub(super) fn key(&self) -> (Vec<&str>, Vec<Option<&str>>) {
        let key = self.key.iter();
        key.map(|(name, text)| (name.as_str(), text.as_deref())).unzip()
    }

    /// Where a change that carries `values` leaves the row, if that is another key.
    pub(super) fn moved_by(&self, values: &Values) -> Option<Place> {
        let key = self.key.iter().map(|(name, text)| {
            let carried = values.iter().find(|(carried, _)| carried == name);
            (name.clone(), carried.map_or(text, |(_, text)| text).clone())
        });
        let key: Values = key.collect();
        (key != self.key).then(|| Place {
            name: self.name.clone(),
            columns: self.columns.clone(),
            key,
        })
    }

    fn column(&self, name: &str) -> Result<&Column> {
        let found = self.columns.iter().find(|column| column.name == name);
        found.ok_or_else(|| {
            Error::new(Kind::Schema, format!("the target no longer has column {name}"))
                .object(format!("table {}", self.name))
                .remedy("bring the column back, or discard the change")
        })
    }

    /// What of `values` can be written, with its columns.
    fn written<'a>(&'a self, values: &'a Values) -> Result<Vec<(&'a Column, &'a Option<String>)>> {
        let known = values.iter().map(|(name, text)| Ok((self.column(name)?, text)));
        let known: Vec<_> = known.collect::<Result<_>>()?;
        Ok(known
            .into_iter()
            .filter(|(column, _)| !column.generated)
            .collect())
    }

    fn condition(&self) -> Result<String> {
        let terms = self.key.iter().map(|(name, text)| {
            let column = self.column(name)?;
            Ok(column.equals(&column.quoted(), text))
        });
        Ok(terms.collect::<Result<Vec<_>>>()?.join(" AND "))
    }

    /// Locks the rows of the key and counts them.
    pub(super) fn lock(&self) -> Result<String> {
        let (name, condition) = (qualified(&self.name), self.condition()?);
        Ok(format!(
            "SELECT count(*) FROM (SELECT FROM ONLY {name} WHERE {condition} FOR UPDATE) r"
        ))
    }

    /// Whether `row`, as it was logged, is the one of the key.
    pub(super) fn is_of_key(&self, row: &Values) -> Result<String> {
        let terms = self.key.iter().map(|(name, wanted)| {
            let column = self.column(name)?;
            let logged = row.iter().find(|(logged, _)| logged == name);
            Ok(match logged {
                Some((_, text)) => format!("coalesce({}, false)", column.equals(&column.value(text), wanted)),
                None => "false".to_owned(),
            })
        });
        Ok(format!(
            "SELECT {}",
            terms.collect::<Result<Vec<_>>>()?.join(" AND ")
        ))
    }

    /// Whether the row of the key still is as it was logged.
    pub(super) fn is_still(&self, row: &Values) -> Result<String> {
        let mut terms = vec![self.condition()?];
        for (name, text) in row {
            terms.push(self.column(name)?.is(text));
        }
        let (name, terms) = (qualified(&self.name), terms.join(" AND "));
        Ok(format!("SELECT EXISTS (SELECT FROM ONLY {name} WHERE {terms})"))
    }

    /// The row of the key as it is logged; no row gives NULL.
    pub(super) fn as_logged(&self) -> Result<String> {
        let columns = self.columns.iter();
        let (names, texts): (Vec<String>, Vec<String>) = columns
            .map(|column| (literal(&column.name), format!("{}::text", column.quoted())))
            .unzip();
        let (names, texts) = (names.join(", "), texts.join(", "));
        let (name, condition) = (qualified(&self.name), self.condition()?);
        Ok(format!(
            "(SELECT jsonb_object(ARRAY[{names}]::text[], ARRAY[{texts}]::text[]) FROM ONLY {name} WHERE {condition})"
        ))
    }

    /// Inserts the row.
    pub(super) fn insert(&self, values: &Values) -> Result<String> {
        let name = qualified(&self.name);
        let written = self.written(values)?;
        if written.is_empty() {
            return Ok(format!("INSERT INTO {name} DEFAULT VALUES"));
        }
        let columns: Vec<String> = written.iter().map(|(column, _)| column.quoted()).collect();
        let texts: Vec<String> = written.iter().map(|(column, text)| column.value(text)).collect();
        let (columns, texts) = (columns.join(", "), texts.join(", "));
        Ok(format!(
            "INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE VALUES ({texts})"
        ))
    }

    /// Sets what the change carried; `None` when it carried nothing to set. An identity column that may not be set has
    /// to be right already.
    pub(super) fn update(&self, values: &Values) -> Result<Option<String>> {
        let written = self.written(values)?;
        let (fixed, set): (Vec<_>, Vec<_>) = written
            .into_iter()
            .partition(|(column, _)| column.identity_always);
        if set.is_empty() {
            return Ok(None);
        }
        let set: Vec<String> = set
            .iter()
            .map(|(column, text)| format!("{} = {}", column.quoted(), column.value(text)))
            .collect();
        let mut terms = vec![self.condition()?];
        terms.extend(
            fixed
                .iter()
                .map(|(column, text)| column.equals(&column.quoted(), text)),
        );
        let (name, set, terms) = (qualified(&self.name), set.join(", "), terms.join(" AND "));
        Ok(Some(format!("UPDATE ONLY {name} SET {set} WHERE {terms}")))
    }

    /// Removes the row.
    pub(super) fn delete(&self) -> Result<String> {
        let (name, condition) = (qualified(&self.name), self.condition()?);
        Ok(format!("DELETE FROM ONLY {name} WHERE {condition}"))
    }

    /// Columns that an insert needs and `values` does not have.
    pub(super) fn lacking(&self, values: &Values) -> Vec<&str> {
        let columns = self.columns.iter().filter(|column| !column.generated);
        columns
            .map(|column| column.name.as_str())
            .filter(|name| !values.iter().any(|(known, _)| known == name))
            .collect()
    }
}
