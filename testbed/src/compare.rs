//! Whether two PostgreSQL databases hold the same rows, found without any code of cdc-sync.
//!
//! Each table is a multiset of whole rows in text form. Both sides first compute a digest of it; only where
//! the digests differ are the sorted rows read and merged.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use futures_util::{Stream, TryStreamExt};
use tokio_postgres::Client;

use crate::blocking::block_on;
use crate::postgres::connect;
use crate::table::{TableName, quote_identifier};

/// Rows shown of each table's differences.
const SAMPLES: usize = 10;

/// What is different about a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The table.
    pub table: TableName,
    /// In what it differs.
    pub kind: Kind,
}

/// The kinds of difference between the table on the left and on the right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only the left database has the table.
    OnlyLeft,
    /// Only the right database has the table.
    OnlyRight,
    /// The columns (name and type) differ; rows were not compared.
    Columns {
        /// Those of the left table.
        left: Vec<String>,
        /// Those of the right table.
        right: Vec<String>,
    },
    /// The rows differ. A changed row counts on both sides.
    Rows {
        /// Rows of the left table that the right one lacks.
        missing: u64,
        /// Rows of the right table that the left one lacks.
        extra: u64,
        /// The first ten of them, with a sign: `-` missing, `+` extra.
        samples: Vec<String>,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.table)?;
        match &self.kind {
            Kind::OnlyLeft => f.write_str("only in the left database"),
            Kind::OnlyRight => f.write_str("only in the right database"),
            Kind::Columns { left, right } => write!(f, "columns {left:?} and {right:?}"),
            Kind::Rows {
                missing,
                extra,
                samples,
            } => {
                write!(f, "{missing} rows missing, {extra} rows extra")?;
                samples.iter().try_for_each(|row| write!(f, "\n  {row}"))
            }
        }
    }
}

/// Compares all user tables, except those of schema `cdc_sync`; of partitioned tables, the partitions.
/// Empty when they are equal. Blocks, and may be called from anywhere.
pub fn databases(left_url: &str, right_url: &str) -> Result<Vec<Difference>> {
    let (left_url, right_url) = (left_url.to_owned(), right_url.to_owned());
    block_on(async move {
        let left = snapshot(&left_url).await?;
        let right = snapshot(&right_url).await?;
        let left_tables = tables(&left).await?;
        let mut right_tables = tables(&right).await?;
        let mut differences = Vec::new();
        for (table, columns) in left_tables {
            let kind = match right_tables.remove(&table) {
                None => Some(Kind::OnlyLeft),
                Some(other) if other != columns => Some(Kind::Columns {
                    left: columns.iter().map(Column::to_string).collect(),
                    right: other.iter().map(Column::to_string).collect(),
                }),
                Some(_) => compare_rows(&left, &right, &table, &columns).await?,
            };
            differences.extend(kind.map(|kind| Difference { table, kind }));
        }
        differences.extend(right_tables.into_keys().map(|table| Difference {
            table,
            kind: Kind::OnlyRight,
        }));
        Ok(differences)
    })
}

/// The number of rows of each table that [`databases`] would compare.
pub fn row_counts(url: &str) -> Result<BTreeMap<TableName, u64>> {
    let url = url.to_owned();
    block_on(async move {
        let client = snapshot(&url).await?;
        let mut counts = BTreeMap::new();
        for table in tables(&client).await?.into_keys() {
            let sql = format!("SELECT count(*) FROM ONLY {}", table.quoted());
            let count: i64 = client.query_one(&sql, &[]).await?.try_get(0)?;
            counts.insert(table, u64::try_from(count)?);
        }
        Ok(counts)
    })
}

/// A connection that sees one state of the database and prints values the same way on every server.
async fn snapshot(url: &str) -> Result<Client> {
    let client = connect(url).await?;
    client
        .batch_execute(
            "SET extra_float_digits = 3; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = postgres; \
             SET TimeZone = 'UTC'; SET bytea_output = hex; SET lc_monetary = 'C'; SET search_path = pg_catalog; \
             SET quote_all_identifiers = off; SET statement_timeout = 0; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        )
        .await
        .context("cannot begin a snapshot to compare")?;
    Ok(client)
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Column {
    name: String,
    kind: String,
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.kind)
    }
}

/// The tables to compare, with their columns by name: their order in the table does not matter.
async fn tables(client: &Client) -> Result<BTreeMap<TableName, Vec<Column>>> {
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
               AND n.nspname NOT IN ('information_schema', 'cdc_sync')
             ORDER BY a.attname COLLATE \"C\"",
            &[],
        )
        .await
        .context("cannot list the tables")?;
    let mut tables: BTreeMap<TableName, Vec<Column>> = BTreeMap::new();
    for row in rows {
        let table = TableName {
            schema: row.try_get(0)?,
            name: row.try_get(1)?,
        };
        let columns = tables.entry(table).or_default();
        if let Some(name) = row.try_get(2)? {
            columns.push(Column {
                name,
                kind: row.try_get(3)?,
            });
        }
    }
    Ok(tables)
}

async fn compare_rows(
    left: &Client,
    right: &Client,
    table: &TableName,
    columns: &[Column],
) -> Result<Option<Kind>> {
    let columns: Vec<String> = columns
        .iter()
        .map(|column| quote_identifier(&column.name))
        .collect();
    let rows = format!(
        "SELECT ROW({})::text COLLATE \"C\" AS row FROM ONLY {}",
        columns.join(", "),
        table.quoted()
    );
    if digest(left, &rows).await? == digest(right, &rows).await? {
        return Ok(None);
    }
    let mut left_rows = std::pin::pin!(sorted(left, &rows).await?);
    let mut right_rows = std::pin::pin!(sorted(right, &rows).await?);
    let (mut missing, mut extra, mut samples) = (0, 0, Vec::new());
    let (mut l, mut r) = (left_rows.try_next().await?, right_rows.try_next().await?);
    loop {
        // The end of a side sorts after all its rows.
        let order = match (&l, &r) {
            (None, None) => break,
            (Some(l), Some(r)) => l.cmp(r),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
        };
        let mut sample = |sign, row: &Option<String>| {
            if samples.len() < SAMPLES {
                samples.extend(row.as_ref().map(|row| format!("{sign} {row}")));
            }
        };
        if order == Ordering::Less {
            missing += 1;
            sample('-', &l);
        } else if order == Ordering::Greater {
            extra += 1;
            sample('+', &r);
        }
        if order.is_le() {
            l = left_rows.try_next().await?;
        }
        if order.is_ge() {
            r = right_rows.try_next().await?;
        }
    }
    Ok(Some(Kind::Rows {
        missing,
        extra,
        samples,
    }))
}

/// Row count and the sums of both halves of each row's MD5: equal for equal multisets, and different for
/// different ones unless somebody sets out to build a collision. Text is digested as UTF-8, and where a database
/// states no encoding, as it is.
async fn digest(client: &Client, rows: &str) -> Result<(i64, String, String)> {
    let half = |which| format!("coalesce(sum(('x' || {which}(hash, 16))::bit(64)::bigint), 0)::text");
    let sql = format!(
        "SELECT count(*), {}, {} FROM (SELECT md5(convert_to(row, CASE getdatabaseencoding() \
         WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)) AS hash FROM ({rows}) r) h",
        half("left"),
        half("right")
    );
    let row = client
        .query_one(&sql, &[])
        .await
        .with_context(|| format!("cannot digest: {rows}"))?;
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

async fn sorted(client: &Client, rows: &str) -> Result<impl Stream<Item = Result<String>>> {
    let none: [&str; 0] = [];
    let stream = client.query_raw(&format!("{rows} ORDER BY 1"), none).await?;
    Ok(stream
        .map_err(anyhow::Error::from)
        .and_then(|row| async move { Ok(row.try_get(0)?) }))
}
