//! The shapes of work on the workload's own tables. Writers share all rows: they wait for each other, and now
//! and then collide.

use super::mix::Transaction;
use super::rng::Rng;
use super::schema::Table;
use super::tally::Effect::{self, Delete, Insert, Move, Update};
use super::values::{self, nullable, quote};

/// The key of an existing row, drawn evenly over the key range; NULL when the table is empty.
fn existing(rng: &mut Rng, table: &str, key: &str) -> String {
    let fraction = rng.fraction();
    format!(
        "(SELECT {key} FROM {table} WHERE {key} >= (SELECT (max({key}) * {fraction})::bigint FROM {table}) \
         ORDER BY {key} LIMIT 1)"
    )
}

fn order_columns(rng: &mut Rng) -> Vec<(&'static str, String)> {
    vec![
        ("priority", nullable(rng, values::integer)),
        ("total", nullable(rng, values::money)),
        ("exact", nullable(rng, values::numeric)),
        ("note", nullable(rng, values::text)),
        ("placed_at", nullable(rng, values::timestamptz)),
        ("attrs", nullable(rng, values::jsonb)),
        ("payload", nullable(rng, values::bytea)),
        ("paid", nullable(rng, values::boolean)),
        ("weight", nullable(rng, values::float)),
        ("tags", nullable(rng, values::text_array)),
        ("scores", nullable(rng, values::int_array)),
        ("state", nullable(rng, values::order_state)),
        ("due", nullable(rng, values::date)),
        ("took", nullable(rng, values::interval)),
        ("origin", nullable(rng, values::inet)),
    ]
}

pub(super) fn new_order(t: &mut Transaction, rng: &mut Rng) {
    let customer = existing(rng, "shop.customers", "id");
    let reference = values::uuid(rng);
    let columns = order_columns(rng);
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    // The insert reads from a select, whose output columns are text unless told otherwise.
    let values: Vec<String> = columns.iter().map(|(name, value)| typed(name, value)).collect();
    t.push(
        Insert(Table::Orders),
        format!(
            "INSERT INTO shop.orders (customer_id, ref, {}) SELECT id, {reference}::uuid, {} \
             FROM shop.customers WHERE id = {customer}",
            names.join(", "),
            values.join(", ")
        ),
    );
    t.push(
        Insert(Table::OrderItems),
        format!(
            "INSERT INTO shop.order_items (order_id, line_no, sku, quantity, price) \
             SELECT o.id, g, {}, g * {}, {} FROM shop.orders o, generate_series(1, {}) g WHERE o.ref = {reference}",
            values::text(rng),
            rng.between(1, 20),
            values::money(rng),
            rng.between(1, 4)
        ),
    );
    t.push(
        Update(Table::Customers),
        format!(
            "UPDATE shop.customers SET balance = balance - 1, updated_at = now() \
             WHERE id = (SELECT customer_id FROM shop.orders WHERE ref = {reference})"
        ),
    );
}

/// The value with the type of the column of `shop.orders`.
fn typed(column: &str, value: &str) -> String {
    let kind = match column {
        "priority" => "int",
        "total" => "numeric(12,2)",
        "exact" => "numeric",
        "note" => "text",
        "placed_at" => "timestamptz",
        "attrs" => "jsonb",
        "payload" => "bytea",
        "paid" => "bool",
        "weight" => "float8",
        "tags" => "text[]",
        "scores" => "int[]",
        "state" => "shop.order_state",
        "due" => "date",
        "took" => "interval",
        _ => "inet",
    };
    format!("CAST({value} AS {kind})")
}

pub(super) fn new_customers(t: &mut Transaction, rng: &mut Rng) {
    let rows: Vec<String> = (0..rng.between(1, 3))
        .map(|_| {
            let email = quote(&format!("{}-{:x}@example.org", values::word(rng), rng.next()));
            format!(
                "({email}, {}, {}, now())",
                nullable(rng, values::text),
                values::money(rng)
            )
        })
        .collect();
    t.push(
        Insert(Table::Customers),
        format!(
            "INSERT INTO shop.customers (email, name, balance, updated_at) VALUES {}",
            rows.join(", ")
        ),
    );
}

/// A delete that cascades over two levels. The rows to go are locked and so counted first, parents before
/// children: a lock on a parent row keeps other writers from adding children to it.
pub(super) fn delete_customer(t: &mut Transaction, rng: &mut Rng) {
    let customer = existing(rng, "shop.customers", "id");
    // The key is drawn once and kept in a setting of the transaction: drawn anew in each statement, another
    // writer's commit in between could make it another customer.
    let chosen = "current_setting('testbed.chosen')::bigint";
    t.push(
        Effect::None,
        format!("SELECT set_config('testbed.chosen', coalesce({customer}, 0)::text, true)"),
    );
    t.push(
        Effect::None,
        format!("SELECT 1 FROM shop.customers WHERE id = {chosen} FOR UPDATE"),
    );
    t.push(
        Delete(Table::Orders),
        format!("SELECT 1 FROM shop.orders WHERE customer_id = {chosen} FOR UPDATE"),
    );
    t.push(
        Delete(Table::OrderItems),
        format!(
            "SELECT 1 FROM shop.order_items WHERE order_id IN \
             (SELECT id FROM shop.orders WHERE customer_id = {chosen}) FOR UPDATE"
        ),
    );
    t.push(
        Delete(Table::Customers),
        format!("DELETE FROM shop.customers WHERE id = {chosen}"),
    );
}

pub(super) fn delete_order(t: &mut Transaction, rng: &mut Rng) {
    let order = existing(rng, "shop.orders", "id");
    let chosen = "current_setting('testbed.chosen')::bigint";
    t.push(
        Effect::None,
        format!("SELECT set_config('testbed.chosen', coalesce({order}, 0)::text, true)"),
    );
    t.push(
        Effect::None,
        format!("SELECT 1 FROM shop.orders WHERE id = {chosen} FOR UPDATE"),
    );
    t.push(
        Delete(Table::OrderItems),
        format!("SELECT 1 FROM shop.order_items WHERE order_id = {chosen} FOR UPDATE"),
    );
    t.push(
        Delete(Table::Orders),
        format!("DELETE FROM shop.orders WHERE id = {chosen}"),
    );
}

pub(super) fn update_order(t: &mut Transaction, rng: &mut Rng) {
    let order = existing(rng, "shop.orders", "id");
    let columns = order_columns(rng);
    let mut changes: Vec<String> = Vec::new();
    for (name, value) in columns {
        if rng.chance(20) {
            changes.push(format!("{name} = {value}"));
        }
    }
    if changes.is_empty() {
        // Changes nothing, and is logged all the same.
        changes.push("note = note".to_owned());
    }
    t.push(
        Update(Table::Orders),
        format!("UPDATE shop.orders SET {} WHERE id = {order}", changes.join(", ")),
    );
}

pub(super) fn change_items(t: &mut Transaction, rng: &mut Rng) {
    let order = existing(rng, "shop.orders", "id");
    let table = Table::OrderItems;
    match rng.below(3) {
        0 => t.push(
            Update(table),
            format!("UPDATE shop.order_items SET quantity = quantity + 1 WHERE order_id = {order}"),
        ),
        // Part of the primary key changes, in several rows at once.
        1 => t.push(
            Update(table),
            format!("UPDATE shop.order_items SET line_no = line_no + 10 WHERE order_id = {order}"),
        ),
        _ => t.push(
            Delete(table),
            format!("DELETE FROM shop.order_items WHERE order_id = {order} AND line_no > 2"),
        ),
    }
}

/// Updates that leave the out-of-line body alone; sometimes of several rows.
pub(super) fn retitle_document(t: &mut Transaction, rng: &mut Rng) {
    let document = existing(rng, "shop.documents", "id");
    let span = if rng.chance(20) { rng.between(1, 10) } else { 0 };
    t.push(
        Update(Table::Documents),
        format!(
            "UPDATE shop.documents SET title = {}, revision = revision + 1 \
             WHERE id BETWEEN {document} AND {document} + {span}",
            values::text(rng)
        ),
    );
}

/// A text that does not compress and is long enough to be stored out of line.
fn body(rng: &mut Rng) -> String {
    let salt = rng.next();
    let parts = rng.between(80, 400);
    format!("(SELECT string_agg(md5('{salt:x}' || i), '') FROM generate_series(1, {parts}) i)")
}

pub(super) fn rewrite_document(t: &mut Transaction, rng: &mut Rng) {
    let document = existing(rng, "shop.documents", "id");
    let body = if rng.chance(20) {
        "'short now'".to_owned()
    } else {
        body(rng)
    };
    t.push(
        Update(Table::Documents),
        format!("UPDATE shop.documents SET body = {body}, revision = revision + 1 WHERE id = {document}"),
    );
}

pub(super) fn replace_document(t: &mut Transaction, rng: &mut Rng) {
    let document = existing(rng, "shop.documents", "id");
    t.push(
        Delete(Table::Documents),
        format!("DELETE FROM shop.documents WHERE id = {document}"),
    );
    t.push(
        Insert(Table::Documents),
        format!(
            "INSERT INTO shop.documents VALUES ({}, {}, 1, {}) ON CONFLICT DO NOTHING",
            rng.between(1, 5000),
            values::text(rng),
            body(rng)
        ),
    );
    // Updated in the transaction that may have inserted it.
    t.push(
        Update(Table::Documents),
        format!(
            "UPDATE shop.documents SET revision = revision + 1 WHERE id = {}",
            existing(rng, "shop.documents", "id")
        ),
    );
}

pub(super) fn transfer(t: &mut Transaction, rng: &mut Rng) {
    for sign in ["-", "+"] {
        let account = existing(rng, "shop.accounts", "id");
        t.push(
            Update(Table::Accounts),
            format!("UPDATE shop.accounts SET balance = balance {sign} 10 WHERE id = {account}"),
        );
    }
}

/// Two rows exchange their unique values by way of a third one.
pub(super) fn swap_handles(t: &mut Transaction, rng: &mut Rng) {
    let (one, two) = (
        existing(rng, "shop.accounts", "id"),
        existing(rng, "shop.accounts", "id"),
    );
    let salt = rng.next();
    t.push(
        Effect::None,
        format!(
            "SELECT set_config('testbed.one', h.one, true), set_config('testbed.two', h.two, true) FROM (SELECT \
             coalesce((SELECT handle FROM shop.accounts WHERE id = {one}), '') AS one, \
             coalesce((SELECT handle FROM shop.accounts WHERE id = {two}), '') AS two) h"
        ),
    );
    let steps = [
        (
            quote(&format!("moving-{salt:x}")),
            "current_setting('testbed.one')".to_owned(),
        ),
        (
            "current_setting('testbed.one')".to_owned(),
            "current_setting('testbed.two')".to_owned(),
        ),
        (
            "current_setting('testbed.two')".to_owned(),
            quote(&format!("moving-{salt:x}")),
        ),
    ];
    for (to, from) in steps {
        t.push(
            Update(Table::Accounts),
            format!("UPDATE shop.accounts SET handle = {to} WHERE handle = {from}"),
        );
    }
}

pub(super) fn change_account_key(t: &mut Transaction, rng: &mut Rng) {
    let account = existing(rng, "shop.accounts", "id");
    let new_key = rng.between(1, 1_000_000_000);
    t.push(
        Update(Table::Accounts),
        format!("UPDATE shop.accounts SET id = {new_key}, balance = balance + 1 WHERE id = {account}"),
    );
    if rng.chance(50) {
        // Changed again in the same transaction, under the new key.
        t.push(
            Update(Table::Accounts),
            format!("UPDATE shop.accounts SET balance = balance - 1 WHERE id = {new_key}"),
        );
    }
}

pub(super) fn delete_and_reinsert_account(t: &mut Transaction, rng: &mut Rng) {
    let account = existing(rng, "shop.accounts", "id");
    let salt = rng.next();
    t.push(
        Effect::None,
        format!("SELECT set_config('testbed.chosen', coalesce({account}, 0)::text, true)"),
    );
    t.push(
        Delete(Table::Accounts),
        "DELETE FROM shop.accounts WHERE id = current_setting('testbed.chosen')::bigint",
    );
    let key = if rng.chance(60) {
        "current_setting('testbed.chosen')::bigint".to_owned()
    } else {
        rng.between(1, 100_000).to_string()
    };
    t.push(
        Insert(Table::Accounts),
        format!("INSERT INTO shop.accounts VALUES ({key}, 'again-{salt:x}', 5) ON CONFLICT DO NOTHING"),
    );
}

pub(super) fn audit(t: &mut Transaction, rng: &mut Rng) {
    let actor = format!("'actor-{}'", rng.below(200));
    let some = format!(
        "ctid = ANY(ARRAY(SELECT ctid FROM shop.audit WHERE actor = {actor} LIMIT {}))",
        rng.between(1, 3)
    );
    match rng.below(5) {
        0 | 1 => {
            // Equal rows on purpose: a table without a key is a multiset.
            let row = format!(
                "({}, {actor}, {}, {})",
                nullable(rng, values::timestamptz),
                nullable(rng, values::text),
                nullable(rng, values::jsonb)
            );
            let rows = vec![row; rng.between(1, 3) as usize];
            t.push(
                Insert(Table::Audit),
                format!("INSERT INTO shop.audit VALUES {}", rows.join(", ")),
            );
        }
        2 => t.push(
            Update(Table::Audit),
            format!(
                "UPDATE shop.audit SET action = {} WHERE {some}",
                nullable(rng, values::text)
            ),
        ),
        _ => t.push(
            Delete(Table::Audit),
            format!("DELETE FROM shop.audit WHERE {some}"),
        ),
    }
}

pub(super) fn odd_names(t: &mut Transaction, rng: &mut Rng) {
    const NAME: &str = r#""Odd Names"."Line Items""#;
    let key = rng.between(1, 2000);
    let (one, two) = (nullable(rng, values::text), nullable(rng, values::text));
    match rng.below(4) {
        0 => t.push(
            Delete(Table::LineItems),
            format!(r#"DELETE FROM {NAME} WHERE "Id" = {key}"#),
        ),
        1 => t.push(
            Update(Table::LineItems),
            format!(r#"UPDATE {NAME} SET "select" = {one} WHERE "Id" BETWEEN {key} AND {key} + 5"#),
        ),
        _ => {
            t.push(
                Insert(Table::LineItems),
                format!("INSERT INTO {NAME} VALUES ({key}, {one}, {two}) ON CONFLICT DO NOTHING"),
            );
            t.push(
                Update(Table::LineItems),
                format!(r#"UPDATE {NAME} SET "Größe ""x""" = {two} WHERE "Id" = {key}"#),
            );
        }
    }
}

/// Regions with the partitions that hold them.
const REGIONS: [(&str, Table); 4] = [
    ("eu", Table::EventsEu),
    ("us", Table::EventsUs),
    ("asia", Table::EventsRest),
    ("mars", Table::EventsRest),
];

pub(super) fn events(t: &mut Transaction, rng: &mut Rng) {
    let (region, table) = rng.pick(&REGIONS);
    let fraction = rng.fraction();
    let row = format!(
        "region = '{region}' AND id = (SELECT id FROM shop.events WHERE region = '{region}' AND id >= \
         (SELECT (max(id) * {fraction})::bigint FROM shop.events WHERE region = '{region}') ORDER BY id LIMIT 1)"
    );
    match rng.below(5) {
        0 | 1 => t.push(
            Insert(table),
            format!(
                "INSERT INTO shop.events VALUES ({}, '{region}', {}, {})",
                rng.between(1, 1 << 60),
                values::timestamptz(rng),
                nullable(rng, values::text)
            ),
        ),
        2 => t.push(
            Update(table),
            format!("UPDATE shop.events SET body = {} WHERE {row}", values::text(rng)),
        ),
        3 => {
            let (to_region, to_table) = rng.pick(&REGIONS);
            // Within one partition it is an update of the key, between two a delete and an insert.
            let effect = if to_table == table {
                Update(table)
            } else {
                Move(table, to_table)
            };
            t.push(
                effect,
                format!("UPDATE shop.events SET region = '{to_region}' WHERE {row}"),
            );
        }
        _ => t.push(Delete(table), format!("DELETE FROM shop.events WHERE {row}")),
    }
}

/// A statement of some hundred rows, and one that deletes most of them again.
pub(super) fn many_events(t: &mut Transaction, rng: &mut Rng) {
    let (region, table) = rng.pick(&REGIONS);
    let base = rng.between(1 << 60, 1 << 61);
    let rows = rng.between(100, 600);
    t.push(
        Insert(table),
        format!(
            "INSERT INTO shop.events SELECT {base} + g, '{region}', now(), md5('{base}' || g) \
             FROM generate_series(1, {rows}) g"
        ),
    );
    t.push(
        Delete(table),
        format!(
            "DELETE FROM shop.events WHERE region = '{region}' AND id BETWEEN {base} + 5 AND {base} + {rows}"
        ),
    );
}

pub(super) fn scratch(t: &mut Transaction, rng: &mut Rng) {
    let base = rng.between(1, 200);
    t.push(
        Insert(Table::Scratch),
        format!(
            "INSERT INTO shop.scratch SELECT g, {} FROM generate_series({base}, {base} + {}) g ON CONFLICT DO NOTHING",
            values::text(rng),
            rng.below(10)
        ),
    );
    t.push(
        Update(Table::Scratch),
        format!(
            "UPDATE shop.scratch SET value = {} WHERE id = {base}",
            nullable(rng, values::text)
        ),
    );
}
