//! What to do about a stream that stopped because the tables have grown apart.

use cdc_core::engine::Alteration;
use cdc_core::{Error, Kind, Result, TableName, TableSelection};

use super::RunContext;

/// Adds to the error of a stream that met a table of another shape, or a value that its table does not take, the
/// statements to run on the target. The error stays as it is when there are none, or the servers cannot be asked.
pub(super) async fn advised(context: &RunContext, error: Error) -> Error {
    if !matches!(error.kind(), Kind::Schema | Kind::Data) {
        return error;
    }
    match alterations(context).await {
        Ok(found) => with_advice(error, &found),
        Err(unknown) => {
            tracing::debug!(%unknown, "cannot say what to run on the target");
            error
        }
    }
}

fn with_advice(error: Error, alterations: &[Alteration]) -> Error {
    let object = error.object_name().unwrap_or_default().to_owned();
    let concerned =
        |alteration: &&Alteration| error.kind() == Kind::Schema || is_about(&object, &alteration.table);
    let statements: Vec<&str> = alterations
        .iter()
        .filter(concerned)
        .map(|alteration| alteration.statement.as_str())
        .collect();
    let run = format!(
        "run on the target: {} Then run again: the stream goes on at that transaction",
        statements.join(" ")
    );
    if error.remedy_text().is_some_and(|said| said.contains(&run)) {
        return error;
    }
    match (statements.is_empty(), error.kind()) {
        (true, _) => error,
        (false, Kind::Schema) => error.with_remedy(format!(
            "{run}. A column that may be NULL can be added to the target first, and a type can be widened there first; \
             then nothing stops"
        )),
        // A value may be refused for another reason than the table's shape.
        (false, _) => {
            let remedy = error.remedy_text().unwrap_or_default().to_owned();
            error.with_remedy(format!(
                "the table is not as it is on the source now; if that is the reason, {run}. Otherwise {remedy}"
            ))
        }
    }
}

/// Whether an error's object is the table, or a row of it.
fn is_about(object: &str, table: &TableName) -> bool {
    let name = table.to_string();
    object
        .strip_prefix(&name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(" ("))
}

async fn alterations(context: &RunContext) -> Result<Vec<Alteration>> {
    let RunContext {
        source,
        target,
        names,
        ..
    } = context;
    let seed = target.stream_state(&names.job).await?.seed;
    let mut tables = target.inspect(&TableSelection::default()).await?;
    tables.retain(|table| seed.iter().any(|known| known.table == table.name));
    source.alterations(names, &tables).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remedy(error: Error) -> String {
        let of = |name: &str| Alteration {
            table: TableName::new("s", name),
            statement: format!("ALTER {name};"),
        };
        let advised = with_advice(error, &[of("a"), of("b")]);
        advised.remedy_text().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_shape_is_mended_whole_and_a_value_by_its_table() {
        let schema = remedy(Error::new(Kind::Schema, "lacks").object("table s.a, column c"));
        assert!(schema.starts_with("run on the target: ALTER a; ALTER b; Then run again"));
        let data = |object: &str| remedy(Error::new(Kind::Data, "no").object(object).remedy("mend the row"));
        let said = data("s.a (id=1)");
        assert!(
            said.contains("ALTER a; Then") && !said.contains("ALTER b;"),
            "{said}"
        );
        assert!(said.ends_with("Otherwise mend the row"), "{said}");
        assert_eq!(data("s.ab (id=1)"), "mend the row");
    }
}
