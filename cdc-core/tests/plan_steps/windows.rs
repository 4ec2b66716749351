//! Net windows: deletes before upserts, children before parents and the other way round.

use crate::words::*;
use cdc_core::error::Kind;
use cdc_core::model::{TableName, TxnKind};
use cdc_core::plan::{PlanMode, TargetCatalog};
use cdc_core::testing::{ColumnSpec, SourceTable, TableSpec};

fn table(name: &str, parents: &[&str]) -> TableSpec {
    let columns = vec![ColumnSpec::int("id").not_null(), ColumnSpec::int("p")];
    let mut spec = TableSpec::new(TableName::new("s", name), columns).primary_key([0]);
    for parent in parents {
        spec = spec.references([1], &TableName::new("s", *parent), [0]);
    }
    spec
}

const OLD: &[&str] = &["1", "?"];
const ROW: &[&str] = &["2", "7"];

#[test]
fn deletes_come_first_and_need_not_hit() {
    let mut plans = Plans::of(&[SourceTable::new(table("a", &[]))]);
    let changes = [upsert(ROW), delete(OLD)];
    assert_eq!(
        plans.window(PlanMode::Net, &changes),
        ["delete-if a: 1", "upsert a: 2 7"]
    );
}

#[test]
fn children_are_deleted_first_and_parents_written_first() {
    let specs = [
        table("parent", &[]),
        table("grandchild", &["child"]),
        table("child", &["parent", "child"]),
    ];
    let mut plans = Plans::of(&specs.map(SourceTable::new));
    let changes: Vec<_> = (0..3)
        .flat_map(|number| [of_table(number, upsert(ROW)), of_table(number, delete(OLD))])
        .collect();
    assert_eq!(
        plans.window(PlanMode::Net, &changes),
        [
            "delete-if grandchild: 1",
            "delete-if child: 1",
            "delete-if parent: 1",
            "upsert parent: 2 7",
            "upsert child: 2 7",
            "upsert grandchild: 2 7",
        ]
    );
}

#[test]
fn without_foreign_keys_upserts_come_in_the_reverse_of_the_deletes() {
    let mut plans = Plans::of(&[table("a", &[]), table("b", &[])].map(SourceTable::new));
    let changes: Vec<_> = (0..2)
        .flat_map(|number| [of_table(number, upsert(ROW)), of_table(number, delete(OLD))])
        .collect();
    assert_eq!(
        plans.window(PlanMode::Net, &changes),
        [
            "delete-if a: 1",
            "delete-if b: 1",
            "upsert b: 2 7",
            "upsert a: 2 7"
        ]
    );
}

#[test]
fn cycles_of_foreign_keys_end() {
    let specs = [table("a", &["b"]), table("b", &["a"]), table("c", &["a"])];
    let mut plans = Plans::of(&specs.map(SourceTable::new));
    let changes: Vec<_> = (0..3).map(|number| of_table(number, delete(OLD))).collect();
    assert_eq!(
        plans.window(PlanMode::Net, &changes),
        ["delete-if c: 1", "delete-if a: 1", "delete-if b: 1"]
    );
}

#[test]
fn what_met_a_violation_is_deleted_whole_and_inserted() {
    let mut plans = Plans::of(&[SourceTable::new(table("a", &[]))]);
    plans.catalog.set_ordered(&TableName::new("s", "a"));
    let whole = ["delete-if a: 1, 2", "insert a: 2 7"];
    let changes = [upsert(ROW), delete(OLD)];
    assert_eq!(plans.window(PlanMode::Net, &changes), whole);
    let mut fresh = Plans::of(&[SourceTable::new(table("a", &[]))]);
    assert_eq!(fresh.window(PlanMode::Ordered, &changes), whole);
}

#[test]
fn rows_go_one_by_one_where_a_whole_delete_would_lose_something() {
    let mut wider = table("a", &[]);
    wider.columns.push(ColumnSpec::text("local"));
    let catalog = TargetCatalog::new(vec![wider.facts(false)]);
    let mut plans = Plans::onto(&[SourceTable::new(table("a", &[]))], catalog);
    assert_eq!(
        plans.window(PlanMode::Ordered, &[upsert(ROW), delete(OLD)]),
        ["ordered: delete a", "ordered: upsert a"]
    );
}

#[test]
fn a_window_that_names_a_key_twice_takes_the_later() {
    let mut plans = Plans::of(&[SourceTable::new(table("a", &[]))]);
    let changes = [
        upsert(ROW),
        delete(&["2", "?"]),
        delete(OLD),
        delete(OLD),
        upsert(&["1", "8"]),
    ];
    let plan = plans
        .plan(TxnKind::NetWindow, PlanMode::Net, &[&changes])
        .expect("a plan");
    assert_eq!(words(&plan), ["delete-if a: 2", "upsert a: 1 8"]);
    assert_eq!((plan.applied, plan.coalesced), (5, 3));
}

#[test]
fn what_cannot_be_in_a_window_is_refused() {
    let refused = |spec: TableSpec, change| {
        let mut plans = Plans::of(&[SourceTable::new(spec)]);
        let plan = plans.plan(TxnKind::NetWindow, PlanMode::Net, &[&[change]]);
        plan.err().map(|error| error.kind())
    };
    assert_eq!(refused(table("a", &[]), upsert(&["1", "?"])), Some(Kind::Bug));
    assert_eq!(refused(table("a", &[]), update(ROW)), Some(Kind::Bug));
    let mut keyless = table("a", &[]);
    keyless.keys.clear();
    assert_eq!(refused(keyless, upsert(ROW)), Some(Kind::Schema));
}

#[test]
fn a_window_stands_alone() {
    let mut plans = Plans::of(&[SourceTable::new(table("a", &[]))]);
    let mut group = group(&plans.schemas, TxnKind::NetWindow, &[&[upsert(ROW)]]);
    let log = crate::words::group(&plans.schemas, TxnKind::Log, &[&[insert(ROW)]]);
    group.pieces.extend(log.pieces);
    let error = plans.planner.compile(group, PlanMode::Net).err();
    assert_eq!(error.map(|error| error.kind()), Some(Kind::Bug));
}
