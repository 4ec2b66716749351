//! Which tables can be compared, over which columns and by which key.

use std::collections::{BTreeMap, BTreeSet};

use cdc_core::engine::{Site, TableInfo};
use cdc_core::{Error, Kind, Result, TableName, TableSelection};

use super::merge::TablePlan;
use super::report::TableReport;

/// What can be compared, and what cannot be.
pub(super) type Plans = (Vec<TablePlan>, Vec<TableReport>);

/// Looks at both sides and divides the selected tables into those to compare and those that cannot be. `of_job` are the
/// tables of the job; there are none before its first run, and then all may be compared.
pub(super) async fn plan(
    source: &dyn Site,
    target: &dyn Site,
    selection: &TableSelection,
    of_job: &BTreeSet<TableName>,
) -> Result<Plans> {
    let (source, target) =
        futures_util::future::try_join(source.inspect(selection), target.inspect(selection)).await?;
    let mut plans = divide(source, target);
    if !of_job.is_empty() {
        leave_out_strangers(&mut plans, of_job);
    }
    if plans.0.is_empty() && plans.1.is_empty() {
        return Err(Error::new(Kind::Config, "no table is selected")
            .remedy("look at --table and --exclude: a pattern is schema.table, with * and ?"));
    }
    Ok(plans)
}

/// A table that the job does not follow differs as it likes: its rows on the target are the target's own.
fn leave_out_strangers((planned, unverifiable): &mut Plans, of_job: &BTreeSet<TableName>) {
    let why = |table: &TableName| {
        format!(
            "it is not one of the job's tables; give the --table, --exclude and --partitions that the job began with, \
             or take it in: cdc-sync resync --table '{table}'"
        )
    };
    let strangers = planned.extract_if(.., |plan| !of_job.contains(&plan.table));
    let strangers: Vec<TableName> = strangers.map(|plan| plan.table).collect();
    for table in strangers {
        let why = why(&table);
        unverifiable.push(TableReport::unverifiable(table, why));
    }
}

fn divide(source: Vec<TableInfo>, target: Vec<TableInfo>) -> Plans {
    let by_name = |tables: Vec<TableInfo>| -> BTreeMap<TableName, TableInfo> {
        tables
            .into_iter()
            .map(|table| (table.name.clone(), table))
            .collect()
    };
    let (source, mut target) = (by_name(source), by_name(target));
    let (mut planned, mut unverifiable) = (Vec::new(), Vec::new());
    for (name, left) in source {
        let plan = match target.remove(&name) {
            Some(right) => plan_table(&left, &right),
            None => Err("the table is not on the target".into()),
        };
        match plan {
            Ok(plan) => planned.push(plan),
            Err(reason) => unverifiable.push(TableReport::unverifiable(name, reason)),
        }
    }
    for (name, _) in target {
        unverifiable.push(TableReport::unverifiable(name, "the table is not on the source"));
    }
    (planned, unverifiable)
}

/// Compares the columns that the stream fills, and computed ones that both sides compute.
fn plan_table(source: &TableInfo, target: &TableInfo) -> Result<TablePlan, String> {
    let mut columns = Vec::new();
    // Both sides order an integer key by value and any other by text: a key whose type differs has no common
    // order, and neither has a missing one. Whole rows have.
    let mut keyed = !source.primary_key.is_empty();
    for column in &source.columns {
        let peer = target.columns.iter().find(|peer| peer.name == column.name);
        if column.generated && peer.is_none_or(|peer| !peer.generated) {
            continue;
        }
        let peer = peer.ok_or_else(|| format!("column {} is not on the target", column.name))?;
        if source.primary_key.contains(&column.name) && peer.type_name != column.type_name {
            keyed = false;
        }
        columns.push(column.name.clone());
    }
    keyed &= source.primary_key.iter().all(|key| columns.contains(key));
    Ok(TablePlan {
        table: source.name.clone(),
        columns,
        key: if keyed {
            source.primary_key.clone()
        } else {
            Vec::new()
        },
    })
}

#[cfg(test)]
mod tests {
    use cdc_core::engine::ColumnInfo;

    use super::*;

    /// A table from `name type` lines; `*` marks key columns, `=` computed ones.
    fn table(name: &str, columns: &[&str]) -> TableInfo {
        let split = |line: &&str| {
            let (name, type_name) = line.split_once(' ').unwrap();
            (
                name.trim_matches(['*', '=']).to_owned(),
                type_name.to_owned(),
                line.contains('*'),
                line.contains('='),
            )
        };
        TableInfo {
            name: TableName::new("s", name),
            primary_key: columns
                .iter()
                .map(split)
                .filter(|column| column.2)
                .map(|column| column.0)
                .collect(),
            columns: columns
                .iter()
                .map(split)
                .map(|(name, type_name, key, generated)| ColumnInfo {
                    name,
                    type_name,
                    not_null: key,
                    has_default: false,
                    generated,
                })
                .collect(),
            unique_keys: Vec::new(),
            opaque_constraints: Vec::new(),
            fixed_columns: Vec::new(),
            leaves_out_values: false,
            identity: "default".into(),
            has_identity: true,
            estimated_rows: 0,
            bytes: 0,
        }
    }

    fn planned(source: &[&str], target: &[&str]) -> Result<(Vec<String>, Vec<String>), String> {
        plan_table(&table("t", source), &table("t", target)).map(|plan| (plan.columns, plan.key))
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn columns_are_matched_by_name_and_the_key_is_the_sources() {
        let plan = planned(&["a* integer", "b text"], &["extra text", "b text", "a* integer"]);
        assert_eq!(plan, Ok((names(&["a", "b"]), names(&["a"]))));
        let plan = planned(&["a* integer", "b* text"], &["a integer", "b text"]);
        assert_eq!(plan, Ok((names(&["a", "b"]), names(&["a", "b"]))));
        assert!(
            planned(&["a* integer", "b text"], &["a* integer"])
                .unwrap_err()
                .contains("column b")
        );
    }

    #[test]
    fn a_key_of_another_type_has_no_common_order() {
        assert_eq!(
            planned(&["a* integer"], &["a* text"]),
            Ok((names(&["a"]), names(&[])))
        );
        assert_eq!(
            planned(&["a integer"], &["a* integer"]),
            Ok((names(&["a"]), names(&[])))
        );
    }

    #[test]
    fn computed_columns_are_compared_only_where_both_compute_them() {
        let both = planned(&["a* integer", "b= integer"], &["a* integer", "b= integer"]);
        assert_eq!(both, Ok((names(&["a", "b"]), names(&["a"]))));
        let plain = planned(&["a* integer", "b= integer"], &["a* integer", "b integer"]);
        assert_eq!(plain, Ok((names(&["a"]), names(&["a"]))));
        let gone = planned(&["a* integer", "b= integer"], &["a* integer"]);
        assert_eq!(gone, Ok((names(&["a"]), names(&["a"]))));
        let newly = planned(&["a* integer", "b integer"], &["a* integer", "b= integer"]);
        assert_eq!(newly, Ok((names(&["a", "b"]), names(&["a"]))));
    }

    #[test]
    fn tables_of_one_side_only_are_unverifiable() {
        let (planned, unverifiable) = divide(
            vec![table("a", &["x* integer"]), table("b", &["x* integer"])],
            vec![table("b", &["x* integer"]), table("c", &["x* integer"])],
        );
        assert_eq!(planned.len(), 1);
        let reasons: Vec<_> = unverifiable
            .iter()
            .map(|t| (t.name.name.as_str(), t.unverifiable.clone().unwrap()))
            .collect();
        assert_eq!(
            reasons,
            [
                ("a", "the table is not on the target".to_owned()),
                ("c", "the table is not on the source".to_owned())
            ]
        );
    }
}
