//! Which of the rows are inserted, updated and deleted, and the statements that do it.

use std::collections::HashSet;

use cdc_core::repair::{Asked, Found, Mended, TextRow};

use super::table::{Place, Table, numbered, whole};
use crate::error::PgError;
use crate::wire::Connection;

/// What is to be written: rows of the source and where rows of the target are.
#[derive(Debug, Default)]
struct Work<'w> {
    delete: Vec<&'w str>,
    /// which an UPDATE cannot make right, because it may not set an identity column: removed and inserted again
    replace: Vec<(&'w str, &'w TextRow)>,
    update: Vec<(&'w str, &'w TextRow)>,
    insert: Vec<&'w TextRow>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) mended: Mended,
    /// rows that statements were to write and did not: the target suppresses them, for nobody else can change them
    pub(super) suppressed: u64,
}

/// Makes what is at the `target` of each row that was asked for what the `source` has of it.
pub(super) async fn write(
    connection: &mut Connection,
    table: &Table<'_>,
    source: &[Found],
    target: &[Place],
) -> Result<Written, PgError> {
    if !table.keyed() {
        return write_copies(connection, table, source, target).await;
    }
    let work = divide(table, source, target);
    let mut mended = Mended::default();
    let gone: Vec<&str> = work
        .delete
        .iter()
        .copied()
        .chain(work.replace.iter().map(|(ctid, _)| *ctid))
        .collect();
    let deleted = affected(connection, &delete(table, &gone)).await?;
    let replaced = (work.replace.len() as u64).min(deleted);
    mended.deleted = deleted - replaced;
    let updated = affected(connection, &update(table, &work.update)).await?;
    mended.updated = updated + replaced;
    let come: Vec<&TextRow> = work
        .replace
        .iter()
        .map(|(_, row)| *row)
        .chain(work.insert.iter().copied())
        .collect();
    let inserted = affected(connection, &insert(table, &come)).await?;
    mended.inserted = inserted.saturating_sub(replaced);
    let asked = gone.len() + work.update.len() + come.len();
    Ok(Written {
        mended,
        suppressed: (asked as u64).saturating_sub(deleted + updated + inserted),
    })
}

/// Keys that differ as text may be equal by the key's operator (numeric 1.0 and 1.00, letters under a collation), and of
/// the two sides it may be another operator. So a row of the source counts under its own key only, one of the target is
/// removed under its own key only, and each is taken once.
fn divide<'w>(table: &Table<'_>, source: &'w [Found], target: &'w [Place]) -> Work<'w> {
    let mut work = Work::default();
    let mut taken = HashSet::new();
    for (asked, (source, target)) in table.asked.rows.iter().zip(source.iter().zip(target)) {
        let wanted = source.row.as_ref().filter(|row| has_key(table, row, asked));
        let present = target.ctid.as_deref().zip(target.found.row.as_ref());
        let present = present
            .filter(|(ctid, row)| (wanted.is_some() || has_key(table, row, asked)) && taken.insert(*ctid));
        match (wanted, present) {
            (Some(row), Some((ctid, present))) => match difference(table, row, present) {
                Difference::None => {}
                Difference::Settable => work.update.push((ctid, row)),
                Difference::Identity => work.replace.push((ctid, row)),
            },
            (Some(row), None) => work.insert.push(row),
            (None, Some((ctid, _))) => work.delete.push(ctid),
            (None, None) => {}
        }
    }
    work
}

/// Whether the key of `row` is `asked` to the byte.
fn has_key(table: &Table<'_>, row: &TextRow, asked: &TextRow) -> bool {
    let Asked { columns, key, .. } = table.asked;
    key.iter().zip(asked).all(|(name, text)| {
        let place = columns.iter().position(|column| column == name);
        place.and_then(|place| row.get(place)) == Some(text)
    })
}

/// How a row of the target differs from the source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    /// not at all, or in what the server computes
    None,
    /// in columns that an UPDATE may set
    Settable,
    /// in an identity column that it may not set as well
    Identity,
}

fn difference(table: &Table<'_>, wanted: &TextRow, present: &TextRow) -> Difference {
    let texts = wanted.iter().zip(present);
    let differing = table.columns.iter().zip(texts).filter(|(_, (a, b))| a != b);
    let differing = differing
        .map(|(column, _)| column)
        .filter(|column| !column.generated);
    differing.fold(Difference::None, |found, column| {
        if column.identity_always || found == Difference::Identity {
            Difference::Identity
        } else {
            Difference::Settable
        }
    })
}

/// Runs a statement, or several, if there is one.
async fn affected(connection: &mut Connection, statement: &Option<String>) -> Result<u64, PgError> {
    let Some(statement) = statement else {
        return Ok(0);
    };
    let results = connection.simple_query(statement).await?;
    Ok(results.iter().map(|result| result.affected).sum())
}

fn delete(table: &Table<'_>, places: &[&str]) -> Option<String> {
    let places: Vec<String> = places.iter().map(|ctid| format!("'{ctid}'")).collect();
    (!places.is_empty()).then(|| {
        format!(
            "DELETE FROM ONLY {} WHERE ctid = ANY (ARRAY[{}]::tid[])",
            table.name(),
            places.join(", ")
        )
    })
}

fn update(table: &Table<'_>, rows: &[(&str, &TextRow)]) -> Option<String> {
    let settable: Vec<usize> = (0..table.columns.len())
        .filter(|index| {
            let column = table.columns.get(*index);
            column.is_some_and(|column| !column.generated && !column.identity_always)
        })
        .collect();
    let columns = || settable.iter().filter_map(|index| table.columns.get(*index));
    let values = numbered(rows, |(ctid, row)| {
        let texts = settable
            .iter()
            .map(|index| row.get(*index).and_then(Option::as_deref));
        let values: Vec<String> = columns()
            .zip(texts)
            .map(|(column, text)| column.value(text))
            .collect();
        format!("'{ctid}'::tid, {}", values.join(", "))
    });
    let (mut set, mut names) = (Vec::new(), Vec::new());
    for (place, column) in columns().enumerate() {
        set.push(format!("{} = w.c{place}", column.quoted()));
        names.push(format!("c{place}"));
    }
    (!rows.is_empty() && !set.is_empty()).then(|| {
        format!(
            "UPDATE ONLY {} AS t SET {} FROM (VALUES {values}) AS w (n, place, {}) WHERE t.ctid = w.place",
            table.name(),
            set.join(", "),
            names.join(", ")
        )
    })
}

fn insert(table: &Table<'_>, rows: &[&TextRow]) -> Option<String> {
    let (mut names, mut written) = (Vec::new(), Vec::new());
    for (index, column) in table.columns.iter().enumerate() {
        if !column.generated {
            names.push(column.quoted());
            written.push((index, column));
        }
    }
    let values: Vec<String> = rows
        .iter()
        .map(|row| {
            let values: Vec<String> = written
                .iter()
                .map(|(index, column)| column.value(row.get(*index).and_then(Option::as_deref)))
                .collect();
            format!("({})", values.join(", "))
        })
        .collect();
    if values.is_empty() {
        return None;
    }
    if names.is_empty() {
        let one = format!("INSERT INTO {} DEFAULT VALUES", table.name());
        return Some(vec![one; values.len()].join("; "));
    }
    Some(format!(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES {}",
        table.name(),
        names.join(", "),
        values.join(", ")
    ))
}

/// Without a key: as many copies of each row as the source has. Which of equal rows goes does not matter.
async fn write_copies(
    connection: &mut Connection,
    table: &Table<'_>,
    source: &[Found],
    target: &[Place],
) -> Result<Written, PgError> {
    let (mut surplus, mut lacking) = (Vec::new(), Vec::new());
    for ((row, source), target) in table.asked.rows.iter().zip(source).zip(target) {
        let (wanted, present) = (source.copies, target.found.copies);
        if present > wanted {
            surplus.push((row, present - wanted));
        }
        // One by one: a row is rarely lacking many times, and the statement would say it only once.
        for _ in present..wanted {
            lacking.push(row);
        }
    }
    let mut mended = Mended {
        deleted: affected(connection, &delete_copies(table, &surplus)).await?,
        ..Mended::default()
    };
    for part in lacking.chunks(INSERTED_AT_ONCE) {
        mended.inserted += affected(connection, &insert(table, part)).await?;
    }
    let asked = surplus.iter().map(|(_, copies)| copies).sum::<u64>() + lacking.len() as u64;
    Ok(Written {
        mended,
        suppressed: asked.saturating_sub(mended.deleted + mended.inserted),
    })
}

/// Rows in a statement that inserts copies.
const INSERTED_AT_ONCE: usize = 500;

fn delete_copies(table: &Table<'_>, surplus: &[(&TextRow, u64)]) -> Option<String> {
    let values = numbered(surplus, |(row, count)| format!("{count}, {}", whole(row)));
    (!surplus.is_empty()).then(|| {
        format!(
            "DELETE FROM ONLY {} WHERE ctid = ANY (ARRAY(SELECT place FROM (SELECT t.place, k.surplus, \
             row_number() OVER (PARTITION BY k.n) AS number FROM (VALUES {values}) AS k (n, surplus, row) JOIN {} \
             ON t.row = k.row) AS equal WHERE number <= surplus))",
            table.name(),
            table.whole_rows("ctid AS place, ")
        )
    })
}
