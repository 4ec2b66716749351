//! What became of a failed plan, in the operator's terms: kind of conflict, table, key, column, remedy.

use cdc_core::plan::{ApplyPlan, Image, Step};
use cdc_core::{Action, Error, Kind};

use super::flight::{Effect, Failure, RowSubject, Subject};
use super::suppressed::overtaken;
use super::tables::Tables;
use super::values::text;
use crate::error::{PgError, SqlState};
use crate::error_map::message_without_value;
use crate::state::{UNDECIDED, explained};

/// Bytes of a key's value that are shown.
const SHOWN: usize = 64;

const TARGET_WRITTEN: &str = "was the target written to by someone else? give the row on the target what the source had in it before this \
     change, then run again; or let the source win: run --conflict 'TABLE=blue_wins'. `verify` shows afterwards what else differs";

const VALUE_TAKEN: &str = "was the target written to by someone else? take the value away from the row on the target that holds it, then run \
     again; or let the source win: run --conflict 'TABLE=blue_wins'. `verify` shows afterwards what else differs. A constraint \
     that the source checks at the end of its transactions must be DEFERRABLE INITIALLY DEFERRED on the target too";

/// Turns a failure into an error of the core. An error that the server gave for a set of rows has the action
/// [`Action::Conflict`] when the order of statements may be to blame.
pub(super) fn explain(failure: Failure, plan: &ApplyPlan, tables: &Tables, stream: &str) -> Error {
    match failure {
        Failure::Own(error) => error,
        Failure::Overtaken(_) => overtaken(),
        Failure::Count {
            subject,
            expected,
            affected,
        } => miscount(subject, plan, expected, affected),
        Failure::Server { error, .. } if error.sqlstate.is_some_and(|code| code.as_str() == UNDECIDED) => {
            undecided(&error)
        }
        Failure::Server { subject, error, .. } => match subject {
            Some(Subject::Set { table, .. }) => refused_set(error, &table_name(plan, table)),
            Some(Subject::Row(row)) if row.of_set => {
                // What is redone in order is the table: the pipeline knows it by its name alone.
                let object = if depends_on_order(&error) {
                    table_name(plan, row.table)
                } else {
                    row_name(plan, row)
                };
                refused_set(error, &object)
            }
            Some(Subject::Row(row)) => refused_row(error, plan, tables, row),
            Some(Subject::Truncate { step }) => refused_truncate(error, plan, step),
            Some(Subject::Fence | Subject::Checkpoint | Subject::Session) | None => explained(error, stream),
        },
    }
}

/// A conflict that the table's policy cannot decide.
fn undecided(error: &PgError) -> Error {
    let table = error.table.as_deref().unwrap_or_default();
    let key = error.detail.as_deref().unwrap_or_default();
    Error::new(Kind::Conflict, error.message.clone())
        .object(format!("{table} ({key})"))
        .remedy("mend the row on the target, or choose another policy for the table; then run again")
}

pub(super) fn table_name(plan: &ApplyPlan, table: usize) -> String {
    plan.tables
        .get(table)
        .map_or_else(String::new, |table| table.target.name.to_string())
}

/// The table and the key of a row.
pub(super) fn row_name(plan: &ApplyPlan, row: RowSubject) -> String {
    let name = table_name(plan, row.table);
    match key(plan, row.table, row.key) {
        Some(key) => format!("{name} ({key})"),
        None => name,
    }
}

/// The key of an image as `a=1, b=NULL`; `None` when the table has none.
fn key(plan: &ApplyPlan, table: usize, image: Image) -> Option<String> {
    let table = plan.tables.get(table).filter(|table| table.locator_is_unique)?;
    let values = table.locator.iter().map(|column| {
        let name = table
            .source
            .columns
            .get(*column)
            .map_or("?", |column| column.name.as_str());
        let mut scratch = Vec::new();
        let value = match text(table, *column, plan.datum(image, *column), &mut scratch) {
            Ok(value) => value.bytes(&scratch).map_or_else(|| "NULL".to_owned(), shown),
            Err(_) => "?".to_owned(),
        };
        format!("{name}={value}")
    });
    Some(values.collect::<Vec<_>>().join(", "))
}

fn shown(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value.get(..SHOWN).unwrap_or(value));
    let cut = if value.len() > SHOWN { "…" } else { "" };
    format!("{}{cut}", text.replace(char::is_control, "?"))
}

fn miscount(subject: Subject, plan: &ApplyPlan, expected: u64, affected: u64) -> Error {
    let (effect, object) = match subject {
        Subject::Set { table, effect } => (effect, table_name(plan, table)),
        Subject::Row(row) => (row.effect, row_name(plan, row)),
        Subject::Session | Subject::Fence | Subject::Checkpoint | Subject::Truncate { .. } => {
            return Error::bug("rows were counted of a statement that has none");
        }
    };
    let lacking = format!("{} of {expected}", expected.saturating_sub(affected));
    let message = match effect {
        _ if affected > expected => {
            format!(
                "{affected} rows were changed where {expected} had to: its key is not unique on the target"
            )
        }
        Effect::Update if expected == 1 => {
            "update_missing: the row to update is not on the target".to_owned()
        }
        Effect::Delete if expected == 1 => {
            "delete_missing: the row to delete is not on the target".to_owned()
        }
        Effect::Update => format!("update_missing: {lacking} rows to update are not on the target"),
        Effect::Delete => format!("delete_missing: {lacking} rows to delete are not on the target"),
        Effect::Insert | Effect::Upsert => {
            return Error::new(
                Kind::Data,
                format!("a trigger or rule of the target suppresses {lacking} rows"),
            )
            .object(object)
            .remedy("disable the trigger or rule for the time of the replication");
        }
    };
    Error::new(Kind::Conflict, message)
        .object(object)
        .remedy(TARGET_WRITTEN)
}

/// Whether the order in which rows are written decides if the constraint holds.
fn depends_on_order(error: &PgError) -> bool {
    let codes = ["23505", "23P01", "23503"];
    error.sqlstate.is_some_and(|code| codes.contains(&code.as_str()))
}

fn refused_set(error: PgError, object: &str) -> Error {
    let in_order = depends_on_order(&error);
    let refused = refused(error, object);
    if in_order {
        refused.action(Action::Conflict)
    } else {
        refused
    }
}

fn refused_row(error: PgError, plan: &ApplyPlan, tables: &Tables, row: RowSubject) -> Error {
    let object = row_name(plan, row);
    let in_order = depends_on_order(&error);
    let exists = error.is(SqlState::UNIQUE_VIOLATION);
    // The detail quotes the key that is there already, and nothing else of the row.
    let detail = error
        .detail
        .clone()
        .filter(|_| in_order)
        .map(|detail| format!(": {detail}"));
    let column = refused_column(&error, plan, tables, row);
    let refused = refused(error, &object);
    let message = format!(
        "{}{}{}",
        column.unwrap_or_default(),
        refused.message(),
        detail.unwrap_or_default()
    );
    let (kind, message) = match (exists, row.effect) {
        (true, Effect::Insert) => (Kind::Conflict, format!("insert_exists: {message}")),
        (true, _) => (Kind::Conflict, format!("update_exists: {message}")),
        (false, _) => (refused.kind(), message),
    };
    let action = if in_order {
        Action::Stop
    } else {
        refused.what_to_do()
    };
    let mut error = Error::new(kind, message).action(action).object(object);
    if let Some(code) = refused.server_code() {
        error = error.code(code);
    }
    match refused.remedy_text() {
        Some(remedy) => error.remedy(remedy),
        None if kind == Kind::Conflict => error.remedy(VALUE_TAKEN),
        None => error.remedy("mend the row or the target's column or constraint, then run again"),
    }
}

/// `column c: ` where the server tells the column, or the parameter of the statement that it cannot read.
fn refused_column(error: &PgError, plan: &ApplyPlan, tables: &Tables, row: RowSubject) -> Option<String> {
    let column = error.column.clone().or_else(|| {
        let parameter = parameter_number(error.server_context.as_deref()?)?;
        let column = tables.parameter(row.statement, parameter)?;
        Some(
            plan.tables
                .get(row.table)?
                .source
                .columns
                .get(column)?
                .name
                .clone(),
        )
    })?;
    (!error.message.contains(&format!("\"{column}\""))).then(|| format!("column {column}: "))
}

/// The place in the statement's parameters, from `unnamed portal parameter $2 = '…'` (PostgreSQL 14 and later).
fn parameter_number(context: &str) -> Option<usize> {
    let (_, rest) = context.split_once("portal parameter $")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..digits)?.parse::<usize>().ok()?.checked_sub(1)
}

/// An error of the server with the object that we know, and without the value that its message may quote.
fn refused(error: PgError, object: &str) -> Error {
    let message = message_without_value(&error);
    let mapped = Error::from(error);
    let mut refused = Error::new(mapped.kind(), message)
        .action(mapped.what_to_do())
        .object(object);
    if let Some(code) = mapped.server_code() {
        refused = refused.code(code);
    }
    match mapped.remedy_text() {
        Some(remedy) => refused.remedy(remedy),
        None => refused,
    }
}

fn refused_truncate(error: PgError, plan: &ApplyPlan, step: usize) -> Error {
    let tables = match plan.steps.get(step) {
        Some(Step::Truncate { tables, .. }) => tables.iter().map(|table| table_name(plan, *table)).collect(),
        _ => Vec::new(),
    };
    let object = tables.join(", ");
    if !error.sqlstate.is_some_and(|code| code.starts_with("0A")) {
        return refused(error, &object);
    }
    // The detail names the table that refers to one of them.
    let detail = error
        .detail
        .clone()
        .map_or_else(String::new, |detail| format!(" ({detail})"));
    let refused = refused(error, &object);
    let message = format!(
        "the source's TRUNCATE cannot be repeated: {}{detail}",
        refused.message()
    );
    Error::new(Kind::Schema, message)
        .object(object)
        .code(refused.server_code().unwrap_or("0A000"))
        .remedy("drop the foreign key on the target, or replicate the table that refers to it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_is_found_in_the_context() {
        assert_eq!(parameter_number("unnamed portal parameter $12 = 'x'"), Some(11));
        assert_eq!(parameter_number("unnamed portal parameter $1"), Some(0));
        assert_eq!(parameter_number("COPY t, line 1"), None);
    }

    #[test]
    fn keys_are_shown_on_one_line_and_cut() {
        assert_eq!(shown(b"a\nb"), "a?b");
        assert_eq!(shown(&[b'x'; 65]), format!("{}…", "x".repeat(64)));
    }
}
