//! Every transition of a key's state, every reason to keep the order, and every barrier.

use crate::words::*;
use cdc_core::batch::Op;
use cdc_core::error::Kind;
use cdc_core::model::{Identity, TableName, TableRole, TxnKind};
use cdc_core::plan::{PlanMode, TargetCatalog};
use cdc_core::testing::{ColumnSpec, SourceChange, SourceTable, TableSpec};

fn items() -> TableSpec {
    let columns = vec![
        ColumnSpec::int("id").not_null(),
        ColumnSpec::text("a"),
        ColumnSpec::text("b"),
    ];
    TableSpec::new(TableName::new("s", "items"), columns).primary_key([0])
}

/// The plan of changes of `items` in one transaction; the same when each is a transaction of its own.
fn net(changes: &[SourceChange]) -> Vec<String> {
    let mut plans = Plans::of(&[SourceTable::new(items())]);
    let together = plans.net(&[changes]);
    let each: Vec<&[SourceChange]> = changes.chunks(1).collect();
    assert_eq!(together, plans.net(&each), "piece borders change nothing");
    together
}

fn ordered(changes: &[SourceChange]) {
    let rows = net(changes);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert!(rows[0].starts_with("ordered: "), "{rows:?}");
    assert_eq!(
        rows[0].matches("items").count(),
        changes.len(),
        "all rows: {rows:?}"
    );
}

const ROW: &[&str] = &["1", "x", "y"];
const NEW: &[&str] = &["1", "X", "Y"];
const PART: &[&str] = &["1", "X", "="];

#[test]
fn from_untouched() {
    assert_eq!(net(&[insert(ROW)]), ["insert items: 1 x y"]);
    assert_eq!(net(&[update(ROW)]), ["update items (a b): 1 = x y"]);
    assert_eq!(net(&[update(PART)]), ["update items (a): 1 = X"]);
    assert_eq!(net(&[delete(&["1", "?", "?"])]), ["delete items: 1"]);
    assert_eq!(net(&[upsert(ROW)]), ["upsert items: 1 x y"]);
}

#[test]
fn from_inserted() {
    assert_eq!(net(&[insert(ROW), update(NEW)]), ["insert items: 1 X Y"]);
    assert_eq!(net(&[insert(ROW), update(PART)]), ["insert items: 1 X y"]);
    assert_eq!(net(&[insert(ROW), upsert(NEW)]), ["insert items: 1 X Y"]);
    assert!(net(&[insert(ROW), delete(&["1", "?", "?"])]).is_empty());
    ordered(&[insert(ROW), insert(NEW)]);
}

#[test]
fn from_updated() {
    assert_eq!(net(&[update(ROW), update(NEW)]), ["update items (a b): 1 = X Y"]);
    assert_eq!(
        net(&[update(&["1", "=", "y"]), update(PART)]),
        ["update items (a b): 1 = X y"]
    );
    assert_eq!(
        net(&[update(PART), update(&["1", "XX", "="])]),
        ["update items (a): 1 = XX"]
    );
    assert_eq!(net(&[update(ROW), upsert(NEW)]), ["update items (a b): 1 = X Y"]);
    assert_eq!(net(&[update(ROW), delete(&["1", "?", "?"])]), ["delete items: 1"]);
    ordered(&[update(ROW), insert(NEW)]);
}

#[test]
fn from_deleted() {
    let gone = delete(&["1", "?", "?"]);
    let replaced = ["delete items: 1", "insert items: 1 X Y"];
    assert_eq!(net(&[gone.clone(), insert(NEW)]), replaced);
    assert_eq!(net(&[gone.clone(), upsert(NEW)]), replaced);
    ordered(&[gone.clone(), update(NEW)]);
    ordered(&[gone.clone(), gone]);
}

#[test]
fn from_replaced() {
    let gone = delete(&["1", "?", "?"]);
    let replace = [gone.clone(), insert(ROW)];
    let and = |change: SourceChange| net(&[replace.as_slice(), &[change]].concat());
    assert_eq!(and(update(PART)), ["delete items: 1", "insert items: 1 X y"]);
    assert_eq!(and(upsert(NEW)), ["delete items: 1", "insert items: 1 X Y"]);
    assert_eq!(and(gone), ["delete items: 1"]);
    ordered(&[replace.as_slice(), &[insert(NEW)]].concat());
}

#[test]
fn from_gone() {
    let gone = delete(&["1", "?", "?"]);
    let come_and_go = [insert(ROW), gone.clone()];
    let and = |change: SourceChange| net(&[come_and_go.as_slice(), &[change]].concat());
    assert_eq!(and(insert(NEW)), ["insert items: 1 X Y"]);
    assert_eq!(and(upsert(NEW)), ["insert items: 1 X Y"]);
    ordered(&[come_and_go.as_slice(), &[update(NEW)]].concat());
    ordered(&[come_and_go.as_slice(), &[gone]].concat());
}

#[test]
fn from_upserted() {
    let gone = delete(&["1", "?", "?"]);
    assert_eq!(net(&[upsert(ROW), update(PART)]), ["upsert items: 1 X y"]);
    assert_eq!(net(&[upsert(ROW), upsert(NEW)]), ["upsert items: 1 X Y"]);
    assert_eq!(net(&[upsert(ROW), gone.clone()]), ["delete-if items: 1"]);
    ordered(&[upsert(ROW), insert(NEW)]);
    let and = |change: SourceChange| [upsert(ROW), gone.clone(), change];
    assert_eq!(net(&and(upsert(NEW))), ["upsert items: 1 X Y"]);
    ordered(&and(insert(NEW)));
    ordered(&and(update(NEW)));
    ordered(&and(gone.clone()));
}

#[test]
fn a_key_change_is_a_delete_and_an_insert() {
    let moved = update_from(&["1", "?", "?"], &["2", "x", "y"]);
    assert_eq!(
        net(std::slice::from_ref(&moved)),
        ["delete items: 1", "insert items: 2 x y"]
    );
    // An old image with the same key is no key change.
    assert_eq!(
        net(&[update_from(&["1", "?", "?"], NEW)]),
        ["update items (a b): 1 = X Y"]
    );
    // The new image leaves out what did not change, the key included.
    assert_eq!(
        net(&[update_from(&["1", "?", "?"], &["?", "X", "?"])]),
        ["update items (a): 1 = X"]
    );
    // A chain of keys, and back again.
    let back = update_from(&["2", "?", "?"], &["1", "z", "="]);
    assert_eq!(
        net(&[moved.clone(), back]),
        ["delete items: 1", "insert items: 1 z y"]
    );
    // A row that comes and moves was never at the first key.
    assert_eq!(net(&[insert(ROW), moved.clone()]), ["insert items: 2 x y"]);
    ordered(&[delete(&["1", "?", "?"]), moved.clone()]);
    ordered(&[insert(&["2", "", ""]), moved]);
}

#[test]
fn a_key_change_needs_the_whole_row() {
    let partly = update_from(&["1", "?", "?"], &["2", "=", "y"]);
    ordered(std::slice::from_ref(&partly));
    // The group knows what the change leaves out.
    assert_eq!(
        net(&[update(&["1", "x", "="]), partly.clone()]),
        ["delete items: 1", "insert items: 2 x y"]
    );
    assert_eq!(
        net(&[update(&["1", "x", "="]), update(&["1", "=", "z"]), partly]),
        ["delete items: 1", "insert items: 2 x y"]
    );
    // A full old image knows it too.
    let mut table = SourceTable::new(items());
    table.identity = Identity::Full;
    let moved = update_full(ROW, &["2", "=", "y"]);
    assert_eq!(
        Plans::of(&[table]).net(&[&[moved]]),
        ["delete items: 1", "insert items: 2 x y"]
    );
}

#[test]
fn columns_that_only_the_target_has_forbid_what_would_reset_them() {
    let mut spec = items();
    spec.columns.push(ColumnSpec::text("local"));
    let plan = |changes: &[SourceChange]| {
        let catalog = TargetCatalog::new(vec![spec.facts(false)]);
        Plans::onto(&[SourceTable::new(items())], catalog).net(&[changes])
    };
    assert_eq!(
        plan(&[update_from(&["1", "?", "?"], &["2", "x", "y"])]),
        ["ordered: update items"]
    );
    assert_eq!(
        plan(&[upsert(ROW), delete(&["1", "?", "?"]), upsert(NEW)]),
        ["ordered: upsert items, delete items, upsert items"]
    );
    assert_eq!(
        plan(&[update(ROW), update(PART)]),
        ["update items (a b): 1 = X y"]
    );
}

#[test]
fn generated_columns_are_not_written() {
    let mut spec = items();
    if let Some(column) = spec.columns.get_mut(1) {
        column.generated_from = Some(2);
    }
    let catalog = TargetCatalog::new(vec![spec.facts(false)]);
    let mut plans = Plans::onto(&[SourceTable::new(items())], catalog);
    assert_eq!(plans.net(&[&[insert(ROW)]]), ["insert items: 1 y"]);
    assert_eq!(plans.net(&[&[update(ROW)]]), ["update items (b): 1 = y"]);
    assert!(plans.net(&[&[update(PART)]]).is_empty(), "nothing left to set");
    // A generated column that would be unknown does not matter.
    assert_eq!(
        plans.net(&[&[update_from(&["1", "?", "?"], &["2", "=", "y"])]]),
        ["delete items: 1", "insert items: 2 y"]
    );
}

#[test]
fn updates_are_grouped_by_the_columns_they_set() {
    let changes = [
        update(&["1", "x", "="]),
        update(&["2", "=", "y"]),
        update(&["3", "z", "="]),
        update(&["4", "=", "="]),
        update(&["5", "-", "y"]),
    ];
    assert_eq!(
        net(&changes),
        [
            "update items (a): 1 = x, 3 = z",
            "update items (b): 2 = y",
            "update items (a b): 5 = - y"
        ]
    );
}

#[test]
fn many_columns_are_grouped_too() {
    let columns = (0..150).map(|number| ColumnSpec::text(format!("c{number}")));
    let columns = std::iter::once(ColumnSpec::int("id").not_null()).chain(columns);
    let spec = TableSpec::new(TableName::new("s", "wide"), columns.collect()).primary_key([0]);
    let image = |id: &'static str, set: usize| {
        let mut texts = vec!["="; 151];
        texts[0] = id;
        texts[set] = "v";
        texts
    };
    let changes = [
        update(&image("1", 1)),
        update(&image("2", 150)),
        update(&image("3", 1)),
    ];
    assert_eq!(
        Plans::of(&[SourceTable::new(spec)]).net(&[&changes]),
        ["update wide (c0): 1 = v, 3 = v", "update wide (c149): 2 = v"]
    );
}

#[test]
fn patches_and_unknown_cells_keep_the_order() {
    ordered(&[update(&["1", "+x", "y"])]);
    ordered(&[insert(ROW), update(&["1", "+x", "y"])]);
    ordered(&[insert(&["1", "?", "y"])]);
    ordered(&[upsert(&["1", "=", "y"])]);
}

#[test]
fn a_change_that_cannot_be_merged_takes_the_tables_earlier_rows_along() {
    let other = TableSpec::new(TableName::new("s", "others"), items().columns).primary_key([0]);
    let mut plans = Plans::of(&[SourceTable::new(items()), SourceTable::new(other)]);
    let in_other = |change| of_table(1, change);
    let first = [insert(ROW), in_other(insert(ROW))];
    let second = [
        insert(&["2", "x", "y"]),
        in_other(update(NEW)),
        update(&["1", "+x", "="]),
        update(&["2", "z", "="]),
    ];
    assert_eq!(
        plans.net(&[&first, &second]),
        [
            "ordered: insert items, insert items, update items, update items",
            "insert others: 1 X Y"
        ]
    );
}

#[test]
fn keys_whose_bytes_do_not_tell_keep_the_order_unless_rows_only_come() {
    let mut columns = items().columns;
    columns[0] = ColumnSpec::text("id").not_null();
    columns[0].case_insensitive = true;
    let spec = TableSpec::new(TableName::new("s", "items"), columns).primary_key([0]);
    let mut plans = Plans::of(&[SourceTable::new(spec)]);
    assert_eq!(
        plans.net(&[&[insert(ROW), insert(&["2", "x", "y"])]]),
        ["insert items: 1 x y, 2 x y"]
    );
    assert_eq!(
        plans.net(&[&[insert(ROW), update(NEW)]]),
        ["ordered: insert items, update items"]
    );
}

#[test]
fn tables_without_key_keep_the_order_unless_rows_only_come() {
    let spec = TableSpec::new(TableName::new("s", "log"), items().columns);
    let mut plans = Plans::of(&[SourceTable::new(spec)]);
    let plan = plans
        .plan(TxnKind::Log, PlanMode::Net, &[&[insert(ROW), insert(ROW)]])
        .expect("a plan");
    assert_eq!(words(&plan), ["insert log: 1 x y, 1 x y"]);
    assert_eq!((plan.applied, plan.coalesced), (2, 0));
    assert_eq!(plan.tables[0].locator, [0, 1, 2]);
    assert!(!plan.tables[0].locator_is_unique);
    assert_eq!(
        plans.net(&[&[insert(ROW), delete_full(ROW)]]),
        ["ordered: insert log, delete log"]
    );
}

#[test]
fn the_locator_is_a_key_that_old_images_carry() {
    let columns = vec![
        ColumnSpec::int("id").not_null(),
        ColumnSpec::int("code").not_null(),
        ColumnSpec::text("a"),
    ];
    let spec = TableSpec::new(TableName::new("s", "items"), columns)
        .primary_key([0])
        .unique([1]);
    let locator = |identity: Identity, columns: &[usize], spec: &TableSpec| {
        let mut table = SourceTable::new(spec.clone());
        table.identity = identity;
        table.identity_columns = columns.to_vec();
        let mut plans = Plans::of(&[table]);
        let change = insert(&["1", "2", "x"]);
        let plan = plans
            .plan(TxnKind::Log, PlanMode::Net, &[&[change]])
            .expect("a plan");
        (plan.tables[0].locator.clone(), plan.tables[0].locator_is_unique)
    };
    assert_eq!(locator(Identity::Key, &[0], &spec), (vec![0], true));
    assert_eq!(locator(Identity::Key, &[1], &spec), (vec![1], true));
    assert_eq!(locator(Identity::Key, &[0, 1], &spec), (vec![0], true));
    assert_eq!(locator(Identity::Key, &[2], &spec), (vec![2], false));
    assert_eq!(locator(Identity::Full, &[], &spec), (vec![0], true));
    let mut nullable = spec.clone();
    nullable.keys.remove(0);
    nullable.columns[1].not_null = false;
    assert_eq!(locator(Identity::Full, &[], &nullable), (vec![0, 1, 2], false));
}

#[test]
fn full_identity_without_a_whole_old_row_keeps_the_order() {
    let mut table = SourceTable::new(items());
    table.identity = Identity::Full;
    let mut plans = Plans::of(&[table]);
    assert_eq!(
        plans.net(&[&[update_full(ROW, NEW)]]),
        ["update items (a b): 1 = X Y"]
    );
    assert_eq!(plans.net(&[&[update(NEW)]]), ["ordered: update items"]);
    assert_eq!(
        plans.net(&[&[delete_full(&["-", "x", "y"])]]),
        ["ordered: delete items"],
        "NULL is no key"
    );
}

#[test]
fn tables_whose_order_is_visible_share_one_step() {
    let mut watched = items();
    watched.trigger = true;
    let mut other = watched.clone();
    other.name = TableName::new("s", "others");
    let mut free = items();
    free.name = TableName::new("s", "free");
    let tables = [watched, free, other].map(SourceTable::new);
    let changes = [
        of_table(2, insert(ROW)),
        of_table(0, insert(ROW)),
        of_table(1, insert(ROW)),
        of_table(2, update(NEW)),
        of_table(1, update(NEW)),
    ];
    let mut facts = tables.each_ref().map(|table| table.spec.facts(false));
    // As if it were foreign keys that see the order: they look at tables with foreign keys alone.
    facts.iter_mut().for_each(|table| table.sees_others = false);
    let mut plans = Plans::onto(&tables, TargetCatalog::new(facts.to_vec()));
    assert_eq!(
        plans.net(&[&changes]),
        [
            "insert free: 1 X Y",
            "ordered: insert others, insert items, update others"
        ]
    );
    // Triggers look at any.
    assert_eq!(
        Plans::of(&tables).net(&[&changes]),
        [
            "ordered: insert others, insert items",
            "insert free: 1 x y",
            "ordered: update others",
            "update free (a b): 1 = X Y"
        ]
    );
}

#[test]
fn what_the_catalog_learns_counts_from_the_next_plan_on() {
    let mut plans = Plans::of(&[SourceTable::new(items())]);
    assert_eq!(plans.net(&[&[insert(ROW)]]), ["insert items: 1 x y"]);
    plans.catalog.set_ordered(&items().name);
    assert_eq!(plans.net(&[&[insert(ROW)]]), ["ordered: insert items"]);
    let mut wider = items();
    wider.columns.push(ColumnSpec::text("c"));
    plans.catalog.replace(vec![wider.facts(false)]);
    let plan = plans
        .plan(TxnKind::Log, PlanMode::Net, &[&[insert(ROW)]])
        .expect("a plan");
    assert_eq!(words(&plan), ["ordered: insert items"], "what was learned stays");
    assert_eq!(plan.tables[0].target.columns.len(), 4);
}

#[test]
fn a_planned_table_stays_the_same_until_facts_change() {
    let mut plans = Plans::of(&[SourceTable::new(items())]);
    let mut table = || {
        let plan = plans
            .plan(TxnKind::Log, PlanMode::Net, &[&[insert(ROW)]])
            .expect("a plan");
        (
            std::sync::Arc::clone(&plan.tables[0]),
            std::sync::Arc::clone(&plans.catalog),
        )
    };
    let (first, catalog) = table();
    assert!(std::sync::Arc::ptr_eq(&first, &table().0));
    catalog.replace(vec![items().facts(false)]);
    assert!(!std::sync::Arc::ptr_eq(&first, &table().0));
}

#[test]
fn truncate_is_a_barrier_and_counts_its_tables() {
    let mut other = items();
    other.name = TableName::new("s", "others");
    let mut plans = Plans::of(&[items(), other].map(SourceTable::new));
    let changes = [
        insert(ROW),
        update(NEW),
        SourceChange::Truncate(vec![1, 0]),
        insert(ROW),
    ];
    let plan = plans
        .plan(TxnKind::Log, PlanMode::Net, &[&changes])
        .expect("a plan");
    assert_eq!(
        words(&plan),
        [
            "insert items: 1 X Y",
            "truncate others, items",
            "insert items: 1 x y"
        ]
    );
    assert_eq!((plan.applied, plan.coalesced), (5, 1));
}

#[test]
fn another_shape_of_a_table_is_a_barrier() {
    let mut wider = items();
    wider.columns.push(ColumnSpec::text("c"));
    let catalog = TargetCatalog::new(vec![wider.facts(false)]);
    let mut plans = Plans::onto(&[items(), wider].map(SourceTable::new), catalog);
    let new = of_table(1, update(&["1", "X", "=", "c"]));
    let changes = [insert(ROW), new.clone(), new, update(ROW)];
    let plan = plans
        .plan(TxnKind::Log, PlanMode::Net, &[&changes])
        .expect("a plan");
    assert_eq!(
        words(&plan),
        [
            "insert items: 1 x y",
            "update items (a c): 1 = X c",
            "update items (a b): 1 = x y"
        ]
    );
    assert_eq!((plan.applied, plan.coalesced), (4, 1));
}

#[test]
fn ordered_mode_keeps_everything_in_one_order() {
    let mut other = items();
    other.name = TableName::new("s", "others");
    let mut plans = Plans::of(&[items(), other].map(SourceTable::new));
    let changes = [
        insert(ROW),
        of_table(1, insert(ROW)),
        update(NEW),
        SourceChange::Message,
    ];
    let plan = plans
        .plan(TxnKind::Log, PlanMode::Ordered, &[&changes])
        .expect("a plan");
    assert_eq!(
        words(&plan),
        ["ordered: insert items, insert others, update items"]
    );
    assert_eq!((plan.applied, plan.coalesced), (3, 0));
}

#[test]
fn own_tables_and_messages_are_left_out() {
    let mut heartbeat = SourceTable::new(items());
    heartbeat.role = TableRole::Heartbeat;
    // No such table on the target: it is not even looked for.
    let mut plans = Plans::onto(&[heartbeat], TargetCatalog::default());
    let changes = [
        update(ROW),
        SourceChange::Message,
        SourceChange::Truncate(vec![0]),
    ];
    let plan = plans
        .plan(TxnKind::Log, PlanMode::Net, &[&changes])
        .expect("a plan");
    assert!(plan.is_empty() && plan.tables.is_empty());
    assert_eq!((plan.applied, plan.coalesced), (0, 0));
}

#[test]
fn counts_are_changes_and_what_was_merged() {
    let gone = delete(&["1", "?", "?"]);
    let moved = update_from(&["1", "?", "?"], &["2", "x", "y"]);
    for (changes, coalesced) in [
        (vec![insert(ROW)], 0),
        (vec![insert(ROW), update(NEW), update(PART)], 2),
        (vec![insert(ROW), gone.clone()], 2),
        (vec![update(&["1", "=", "="])], 1),
        (vec![gone.clone(), insert(ROW)], 0),
        (vec![moved.clone()], 0),
        (vec![update(ROW), moved.clone()], 1),
        (vec![update(&["1", "+x", "y"]), update(ROW)], 0),
    ] {
        let mut plans = Plans::of(&[SourceTable::new(items())]);
        let plan = plans
            .plan(TxnKind::Log, PlanMode::Net, &[&changes])
            .expect("a plan");
        assert_eq!(
            (plan.applied, plan.coalesced),
            (changes.len() as u64, coalesced),
            "{changes:?}"
        );
    }
}

#[test]
fn what_the_target_lacks_is_named_with_a_remedy() {
    let mut plans = Plans::onto(&[SourceTable::new(items())], TargetCatalog::default());
    let plan = |plans: &mut Plans| plans.plan(TxnKind::Log, PlanMode::Net, &[&[insert(ROW)]]).err();
    let error = plan(&mut plans).expect("no table");
    assert_eq!(error.kind(), Kind::Schema);
    assert!(error.to_string().contains("s.items") && error.remedy_text().is_some());
    let mut narrow = items();
    narrow.columns.pop();
    plans.catalog.replace(vec![narrow.facts(false)]);
    let error = plan(&mut plans).expect("no column");
    assert_eq!(error.kind(), Kind::Schema);
    assert!(error.to_string().contains("column b") && error.remedy_text().is_some());
    plans.catalog.replace(vec![items().facts(false)]);
    assert!(plan(&mut plans).is_none(), "a failed plan leaves nothing behind");
}

#[test]
fn a_failed_plan_leaves_nothing_behind() {
    let mut unknown = items();
    unknown.name = TableName::new("s", "unknown");
    let catalog = TargetCatalog::new(vec![items().facts(false)]);
    let mut plans = Plans::onto(&[items(), unknown].map(SourceTable::new), catalog);
    let changes = [insert(ROW), of_table(1, insert(ROW))];
    assert!(plans.plan(TxnKind::Log, PlanMode::Net, &[&changes]).is_err());
    assert_eq!(plans.net(&[&[insert(&["2", "x", "y"])]]), ["insert items: 2 x y"]);
}

#[test]
fn ops_of_rows_are_those_of_the_source() {
    let mut plans = Plans::of(&[SourceTable::new(items())]);
    let plan = plans
        .plan(TxnKind::Log, PlanMode::Ordered, &[&[update(ROW)]])
        .expect("a plan");
    let Some(cdc_core::plan::Step::Ordered(rows)) = plan.steps.first() else {
        panic!("{:?}", plan.steps);
    };
    assert_eq!(plan.event(rows[0].row).map(|event| event.op()), Some(Op::Update));
}
