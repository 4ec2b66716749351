//! Applying a change that was put aside.
//!
//! A change that waited may be older than what the target's row holds by now. So it is applied only to the row that it
//! was put aside for, as that was then. Rows in its way by another unique key may have gone: that is how they are mended.
//! Changes of one row wait in line: what was put aside first is decided first, and the next find the row as it left it.

use cdc_core::{Error, Kind, Result, TableName};
use tokio_postgres::{Client, Row, Transaction};

use super::row::{Place, Values};
use super::{OPEN, not_open, schema};
use crate::error::PgError;
use crate::error_map::message_without_value;
use crate::session::during;
use crate::sink::{SessionRole, origin, replica_role};

/// A policy that hides rows would make the change miss its own: fail instead.
pub(crate) const SETTINGS: &[(&str, &str)] = &[("row_security", "off")];

/// A change that was put aside, its row in the log locked.
#[derive(Debug)]
struct Aside {
    id: i64,
    op: String,
    /// what the change carried
    blue: Values,
    /// what was in its way, row by row
    green: Vec<Values>,
    place: Place,
}

/// Applies the change and marks it as retried, in one transaction of a client opened with [`SETTINGS`].
pub(crate) async fn retry(client: &mut Client, stream: &str, id: i64) -> Result<()> {
    if !schema::exists(client).await? {
        return Err(not_open(id, None));
    }
    if replica_role(client).await? == SessionRole::Replica {
        client
            .batch_execute("SET session_replication_role = replica")
            .await
            .map_err(during("setting session_replication_role"))?;
    }
    origin::take_for_retry(client, stream).await?;
    let doing = "applying a change that was put aside";
    let transaction = client.transaction().await.map_err(during(doing))?;
    let aside = lock(&transaction, stream, id).await?;
    is_first_in_line(&transaction, stream, &aside).await?;
    let logged = own_row(&transaction, &aside, &aside.place, &aside.green).await?;
    let present = is_as_logged(&transaction, &aside, logged).await?;
    apply(&transaction, &aside, present).await?;
    close(&transaction, stream, &aside, logged).await?;
    transaction.commit().await.map_err(during(doing))
}

async fn lock(transaction: &Transaction<'_>, stream: &str, id: i64) -> Result<Aside> {
    let sql = "SELECT state, schema_name, table_name, op, \
                      ARRAY(SELECT k.name FROM jsonb_each_text(key) k (name, value) ORDER BY k.name) AS key_names, \
                      ARRAY(SELECT k.value FROM jsonb_each_text(key) k (name, value) ORDER BY k.name) AS key_texts, \
                      ARRAY(SELECT k.name FROM jsonb_each_text(blue) k (name, value) ORDER BY k.name) AS blue_names, \
                      ARRAY(SELECT k.value FROM jsonb_each_text(blue) k (name, value) ORDER BY k.name) AS blue_texts \
               FROM cdc_sync.conflict_log WHERE stream = $1 AND id = $2 FOR UPDATE";
    let row = transaction
        .query_opt(sql, &[&stream, &id])
        .await
        .map_err(during("reading a change that was put aside"))?
        .ok_or_else(|| not_open(id, None))?;
    let state: String = row.get("state");
    if state != OPEN {
        return Err(not_open(id, Some(state)));
    }
    let name = TableName::new(
        row.get::<_, String>("schema_name"),
        row.get::<_, String>("table_name"),
    );
    Ok(Aside {
        id,
        op: row.get("op"),
        blue: values(&row, "blue_names", "blue_texts"),
        green: green(transaction, id).await?,
        place: Place::read(transaction, name, values(&row, "key_names", "key_texts")).await?,
    })
}

fn values(row: &Row, names: &str, texts: &str) -> Values {
    let names: Vec<String> = row.get(names);
    let texts: Vec<Option<String>> = row.get(texts);
    names.into_iter().zip(texts).collect()
}

/// What was in the way: nothing, one row or a list of them.
async fn green(transaction: &Transaction<'_>, id: i64) -> Result<Vec<Values>> {
    let sql = "SELECT ARRAY(SELECT k.name FROM jsonb_each_text(g) k (name, value) ORDER BY k.name) AS names, \
                      ARRAY(SELECT k.value FROM jsonb_each_text(g) k (name, value) ORDER BY k.name) AS texts \
               FROM cdc_sync.conflict_log c CROSS JOIN LATERAL jsonb_array_elements( \
                   CASE jsonb_typeof(c.green) WHEN 'array' THEN c.green WHEN 'object' THEN jsonb_build_array(c.green) \
                   ELSE '[]' END) g WHERE c.id = $1";
    let rows = transaction
        .query(sql, &[&id])
        .await
        .map_err(during("reading what was in a change's way"))?;
    Ok(rows.iter().map(|row| values(row, "names", "texts")).collect())
}

/// # Errors
/// [`Kind::Conflict`] when an earlier change of the row is not decided yet, one that brings a row to this key, or one of
/// the key that this change brings its row to.
async fn is_first_in_line(transaction: &Transaction<'_>, stream: &str, aside: &Aside) -> Result<()> {
    let sql = "SELECT e.id FROM cdc_sync.conflict_log e JOIN cdc_sync.conflict_log f ON f.id = $2 \
               WHERE e.stream = $1 AND e.id < f.id AND e.state = 'open' AND e.schema_name = f.schema_name \
               AND e.table_name = f.table_name AND (e.key = f.key OR e.blue @> f.key OR f.blue @> e.key) \
               ORDER BY e.id LIMIT 1";
    let earlier = transaction
        .query_opt(sql, &[&stream, &aside.id])
        .await
        .map_err(during("looking for earlier changes of the row"))?;
    let Some(earlier) = earlier.map(|row| row.get::<_, i64>(0)) else {
        return Ok(());
    };
    Err(Error::new(
        Kind::Conflict,
        format!("conflict {earlier} is about the same row, was put aside before it and is not decided"),
    )
    .object(object(aside))
    .remedy(format!(
        "`cdc-sync conflicts retry {earlier}`, or discard it; then retry this one"
    )))
}

/// Which of the rows that were in the way is the one of `place`.
async fn own_row<'a>(
    transaction: &Transaction<'_>,
    aside: &Aside,
    place: &Place,
    rows: &'a [Values],
) -> Result<Option<&'a Values>> {
    for row in rows {
        let asked = transaction.query_one(&place.is_of_key(row)?, &[]).await;
        if asked.map_err(|error| refused(error, aside))?.get(0) {
            return Ok(Some(row));
        }
    }
    Ok(None)
}

/// Locks the row of the change and says whether it is there; `logged` is how it was.
///
/// # Errors
/// [`Kind::Conflict`] when it is not as it was logged.
async fn is_as_logged(transaction: &Transaction<'_>, aside: &Aside, logged: Option<&Values>) -> Result<bool> {
    let place = &aside.place;
    let ask = async |sql: String| {
        let row = transaction.query_one(&sql, &[]).await;
        row.map_err(|error| refused(error, aside))
    };
    let found: i64 = ask(place.lock()?).await?.get(0);
    let same = match (found, logged) {
        (0, None) => true,
        (1, Some(row)) => ask(place.is_still(row)?).await?.get(0),
        _ => false,
    };
    if same {
        return Ok(found == 1);
    }
    let message = match (found, logged) {
        (0, _) => "the row has gone since the change was put aside",
        (_, None) => "the row has come since the change was put aside",
        _ => "the row has changed since the change was put aside",
    };
    Err(Error::new(Kind::Conflict, message)
        .object(object(aside))
        .remedy(format!(
            "compare with `cdc-sync conflicts show {}` and mend the row, then discard the change",
            aside.id
        )))
}

async fn apply(transaction: &Transaction<'_>, aside: &Aside, present: bool) -> Result<()> {
    let (place, blue) = (&aside.place, &aside.blue);
    let statement = match (aside.op.as_str(), present) {
        ("delete", true) => Some(place.delete()?),
        ("delete", false) => None,
        ("insert" | "update", true) => place.update(blue)?,
        ("insert", false) => Some(place.insert(blue)?),
        ("update", false) => {
            let lacking = place.lacking(blue);
            if !lacking.is_empty() {
                return Err(Error::new(
                    Kind::Conflict,
                    format!(
                        "the row is missing, and the change does not carry all of it: not {}",
                        lacking.join(", ")
                    ),
                )
                .object(object(aside))
                .remedy("insert the row by hand, then discard the change"));
            }
            Some(place.insert(blue)?)
        }
        (other, _) => {
            return Err(Error::new(Kind::Schema, format!("unknown operation {other}")).object(object(aside)));
        }
    };
    let Some(statement) = statement else {
        return Ok(());
    };
    let changed = transaction.execute(&statement, &[]).await;
    match changed.map_err(|error| refused(error, aside))? {
        1 => Ok(()),
        _ => Err(Error::new(
            Kind::Conflict,
            "the row was not written: an identity column differs, which cannot be updated, or a trigger stands in \
             the way",
        )
        .object(object(aside))
        .remedy("write the row by hand, then discard the change")),
    }
}

/// Marks the change as retried. Later ones of the same row find the row as this one leaves it: they waited in line, and
/// are retried in that order. Where the change moved the row to another key, later ones of that key met no row there.
async fn close(
    transaction: &Transaction<'_>,
    stream: &str,
    aside: &Aside,
    logged: Option<&Values>,
) -> Result<()> {
    hand_on(transaction, stream, aside, &aside.place, logged).await?;
    if let Some(moved) = aside.place.moved_by(&aside.blue) {
        hand_on(transaction, stream, aside, &moved, None).await?;
    }
    let sql = "UPDATE cdc_sync.conflict_log SET state = 'retried' WHERE id = $1";
    transaction
        .execute(sql, &[&aside.id])
        .await
        .map_err(during("marking the change as retried"))?;
    Ok(())
}

/// Tells the later changes of `place` that met its row as it was `before` how it is now.
async fn hand_on(
    transaction: &Transaction<'_>,
    stream: &str,
    aside: &Aside,
    place: &Place,
    before: Option<&Values>,
) -> Result<()> {
    let doing = "looking for later changes of the row";
    let (names, texts) = place.key();
    let sql = "SELECT l.id FROM cdc_sync.conflict_log l JOIN cdc_sync.conflict_log f ON f.id = $2 \
               WHERE l.stream = $1 AND l.id > f.id AND l.state = 'open' AND l.schema_name = f.schema_name \
               AND l.table_name = f.table_name AND l.key = jsonb_object($3::text[], $4::text[])";
    let later = transaction
        .query(sql, &[&stream, &aside.id, &names, &texts])
        .await
        .map_err(during(doing))?;
    let update = format!(
        "UPDATE cdc_sync.conflict_log SET green = {} WHERE id = $1",
        place.as_logged()?
    );
    for id in later.iter().map(|row| row.get::<_, i64>(0)) {
        let rows = green(transaction, id).await?;
        if own_row(transaction, aside, place, &rows).await? == before {
            transaction
                .execute(&update, &[&id])
                .await
                .map_err(during(doing))?;
        }
    }
    Ok(())
}

fn object(aside: &Aside) -> String {
    format!("conflict {} on {}", aside.id, aside.place.shown())
}

/// An error of the server about the change's row.
fn refused(error: tokio_postgres::Error, aside: &Aside) -> Error {
    let error = PgError::from(error);
    let message = message_without_value(&error);
    let cause = Error::from(error);
    let remedy = match cause.kind() {
        Kind::Conflict => {
            "another row has a unique value of the change: mend that one, then retry, or discard the change"
        }
        _ => "mend the row, its column or the constraint, then retry, or discard the change",
    };
    let mut refused = Error::new(cause.kind(), message)
        .action(cause.what_to_do())
        .object(object(aside))
        .remedy(remedy);
    if let Some(code) = cause.server_code() {
        refused = refused.code(code);
    }
    refused
}
