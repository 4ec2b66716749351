//! A frozen view of a database, read table by table in the order that a comparison needs.
//!
//! On a source the view is the snapshot of a temporary slot: it shows exactly the transactions before the slot's
//! consistent point (protocol manual, `CREATE_REPLICATION_SLOT`). A session of ours takes the snapshot over, so that
//! the slot, which would hold back the log for as long as rows are compared, is gone at once.

mod order;
mod rows;

use std::sync::Arc;

use cdc_core::compare::KeyColumn;
use cdc_core::engine::{CompareView, JobNames, OrderedRows, Side};
use cdc_core::repair::{Asked, Found};
use cdc_core::{BoxFuture, Error, Kind, Position, Result, TableName};

use self::order::{Column, Encoding};
use self::rows::PgRows;
use crate::catalog::{RelationKind, column_list, qualified};
use crate::clients::Clients;
use crate::repair::table::Table;
use crate::session::Pool;
use crate::snapshot;
use crate::storage;
use crate::wire::copy_out::CopyOut;
use crate::wire::literal;
use crate::wire::{Connection, QueryResult, ServerVersion};

/// Adds the whole lines of `bytes`, COPY's text, to `rows`; returns how many bytes they took.
///
/// # Errors
/// [`Protocol`](cdc_core::Kind::Protocol) when a line is no row of so many columns, or a key column has no number where one
/// is due.
#[cfg(any(test, feature = "testing"))]
pub fn copied_rows(
    bytes: &[u8],
    columns: usize,
    key: &[KeyColumn],
    rows: &mut cdc_core::compare::RowBuffer,
) -> Result<usize> {
    rows::parse(bytes, columns, key, rows)
}

/// What a reading session is set to, beside the settings of every session, which give a value one text form on all
/// versions. A policy that would hide rows makes the read fail instead; blue keeps its parallel workers; no
/// statement is worth compiling, and none may write.
const SETTINGS: &[(&str, &str)] = &[
    ("row_security", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("jit", "off"),
    ("default_transaction_read_only", "on"),
    // Whoever waits for a lock makes others wait behind it.
    ("lock_timeout", "60s"),
];

/// Opens a view of the database of `clients`: on a source tied to a position, in any other role a plain snapshot.
pub(crate) async fn compare_view(
    clients: &Clients,
    version: ServerVersion,
    side: Side,
    names: &JobNames,
) -> Result<Box<dyn CompareView>> {
    let pool = Pool::new(clients.config().clone(), SETTINGS, false);
    let mut keeper = pool.take().await?;
    keeper
        .simple_query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    let position = match side {
        Side::Source => {
            let slot = snapshot::create(clients, version, names, false).await?;
            let adopt = format!("SET TRANSACTION SNAPSHOT {}", literal(slot.name()));
            keeper.simple_query(&adopt).await?;
            Some(cdc_core::seed::Snapshot::position(&slot).clone())
        }
        Side::Target | Side::Both => None,
    };
    let answer = keeper
        .simple_query("SELECT pg_export_snapshot(), current_setting('server_encoding')")
        .await?;
    let snapshot = required(&answer, 0)?;
    let encoding = Encoding::of(&required(&answer, 1)?);
    Ok(Box::new(PgView {
        shared: Arc::new(Shared { pool, snapshot }),
        position,
        encoding,
        _keeper: keeper,
    }))
}

fn required(answer: &[QueryResult], column: usize) -> Result<String> {
    let row = answer.last().and_then(|result| result.rows.first());
    let text = row.map(|row| row.text(column)).transpose()?.flatten();
    text.map(str::to_owned)
        .ok_or_else(|| Error::new(Kind::Protocol, "the server answered without a value"))
}

/// A frozen view of a database.
#[derive(Debug)]
struct PgView {
    shared: Arc<Shared>,
    position: Option<Position>,
    encoding: Encoding,
    /// its transaction holds the snapshot
    _keeper: Connection,
}

/// What readers need of the view.
#[derive(Debug)]
struct Shared {
    pool: Pool,
    snapshot: String,
}

impl Shared {
    /// A connection in a transaction that sees the snapshot.
    async fn begin(&self) -> Result<Connection> {
        let mut connection = self.pool.take().await?;
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            literal(&self.snapshot)
        );
        match connection.simple_query(&begin).await {
            Ok(_) => Ok(connection),
            Err(error) => {
                self.pool.clear();
                Err(Error::from(error).context("opening the view again").remedy(
                    "a URL must lead to one server, not through a load balancer or a pooler that shares sessions; \
                     if the server was restarted, verify again",
                ))
            }
        }
    }

    /// Ends the transaction, so that no lock on the table outlives its comparison, and keeps the connection.
    async fn end(&self, mut connection: Connection) -> Result<()> {
        connection.simple_query("COMMIT").await?;
        self.pool.put(connection);
        Ok(())
    }
}

impl PgView {
    async fn open(
        &self,
        table: &TableName,
        columns: &[String],
        key: &[String],
    ) -> Result<Box<dyn OrderedRows>> {
        let mut connection = self.shared.begin().await?;
        let kind = storage::kind(&mut connection, table).await?;
        let described = describe(&mut connection, table, kind, columns).await?;
        let (order, key) = plan(&described, key, self.encoding)?;
        let statement = format!(
            "COPY (SELECT {} FROM {}{}{order}) TO STDOUT (ENCODING {})",
            column_list(columns),
            kind.only(),
            qualified(table),
            literal(self.encoding.of_copy()),
        );
        let copy = CopyOut::start(connection, &statement).await?;
        Ok(Box::new(PgRows::new(
            Arc::clone(&self.shared),
            copy,
            columns.len(),
            key,
        )))
    }

    async fn find(&self, asked: &Asked<'_>) -> Result<Vec<Found>> {
        let mut connection = self.shared.begin().await?;
        let kind = storage::kind(&mut connection, asked.table).await?;
        if kind == RelationKind::Partitioned {
            return Err(Error::new(
                Kind::Unverifiable,
                "rows of a partitioned table that is replicated as one table are not written one by one",
            )
            .remedy("copy it anew: `cdc-sync resync`"));
        }
        describe(&mut connection, asked.table, kind, asked.columns).await?;
        let table = Table::read(&mut connection, asked).await?;
        let found = table.find(&mut connection).await?;
        self.shared.end(connection).await?;
        Ok(found)
    }
}

impl CompareView for PgView {
    fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    fn rows<'a>(
        &'a self,
        table: &'a TableName,
        columns: &'a [String],
        key: &'a [String],
    ) -> BoxFuture<'a, Box<dyn OrderedRows>> {
        Box::pin(self.open(table, columns, key))
    }

    fn find<'a>(&'a self, asked: &'a Asked<'a>) -> BoxFuture<'a, Vec<Found>> {
        Box::pin(self.find(asked))
    }
}

/// The clause that orders the rows, and the key part that says the same of their text.
fn plan(columns: &[Column], key: &[String], encoding: Encoding) -> Result<(String, Vec<KeyColumn>)> {
    let keyed = !key.is_empty();
    let indexes: Vec<usize> = if keyed {
        let place = |name: &String| columns.iter().position(|column| column.name == *name);
        key.iter()
            .map(|name| place(name).ok_or_else(|| Error::bug(format!("key column {name} is not compared"))))
            .collect::<Result<_>>()?
    } else {
        (0..columns.len()).collect()
    };
    let mut terms = Vec::with_capacity(indexes.len());
    let mut parts = Vec::with_capacity(indexes.len());
    for index in indexes {
        if let Some(column) = columns.get(index) {
            let order = column.order(keyed);
            terms.push(column.sort_term(order, encoding));
            parts.push(KeyColumn { index, order });
        }
    }
    let clause = if terms.is_empty() {
        String::new()
    } else {
        format!(" ORDER BY {}", terms.join(", "))
    };
    Ok((clause, parts))
}

/// Locks the table against change and looks up the columns to compare.
async fn describe(
    connection: &mut Connection,
    table: &TableName,
    kind: RelationKind,
    columns: &[String],
) -> Result<Vec<Column>> {
    let statement = format!(
        "{}; \
         SELECT c.relkind, {}, a.attname, a.atttypid, a.attnotnull \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         WHERE n.nspname = {} AND c.relname = {}",
        storage::lock(table, kind),
        storage::unchanged(kind),
        literal(&table.schema),
        literal(&table.name)
    );
    let answer = connection.simple_query(&statement).await?;
    let rows = answer
        .last()
        .map(|result| result.rows.as_slice())
        .unwrap_or_default();
    let Some(first) = rows.first() else {
        return Err(Error::new(
            Kind::Schema,
            "the table was made after the view was opened",
        ));
    };
    if !matches!(first.text(0)?, Some("r" | "p")) {
        return Err(Error::new(Kind::Schema, "this is no table"));
    }
    if first.text(1)? != Some("t") {
        return Err(Error::new(
            Kind::Schema,
            "the table was rewritten (ALTER TABLE, VACUUM FULL, CLUSTER), truncated or divided otherwise after the view \
             was opened",
        )
        .remedy("verify again"));
    }
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        if let (Some(name), Some(type_oid)) = (row.text(2)?, row.text(3)?) {
            found.push(Column {
                name: name.to_owned(),
                type_oid: type_oid.parse().unwrap_or(0),
                not_null: row.text(4)? == Some("t"),
            });
        }
    }
    let wanted = |name: &String| {
        found
            .iter()
            .find(|column| column.name == *name)
            .cloned()
            .ok_or_else(|| {
                Error::new(Kind::Schema, format!("column {name} is not there any more"))
                    .remedy("verify again")
            })
    };
    columns.iter().map(wanted).collect()
}

#[cfg(test)]
mod tests {
    use cdc_core::compare::KeyOrder;

    use super::*;

    fn column(name: &str, type_oid: u32) -> Column {
        Column {
            name: name.into(),
            type_oid,
            not_null: true,
        }
    }

    #[test]
    fn the_key_orders_and_without_one_the_whole_row() {
        let columns = [column("a", 25), column("id", 20)];
        let (clause, key) = plan(&columns, &["id".into()], Encoding::Utf8).unwrap();
        assert_eq!(clause, r#" ORDER BY "id""#);
        assert_eq!(
            key,
            [KeyColumn {
                index: 1,
                order: KeyOrder::Integer
            }]
        );
        let (clause, key) = plan(&columns, &[], Encoding::Utf8).unwrap();
        assert_eq!(
            clause,
            r#" ORDER BY "a" COLLATE "C", format('%s', "id") COLLATE "C""#
        );
        assert!(key.iter().all(|column| column.order == KeyOrder::Text) && key.len() == 2);
        assert_eq!(
            plan(&[], &[], Encoding::Utf8).unwrap(),
            (String::new(), Vec::new())
        );
        assert!(plan(&columns, &["x".into()], Encoding::Utf8).is_err());
    }
}
