//! The TPC-B-like transaction of `pgbench`, on its tables.

use super::mix::Transaction;
use super::rng::Rng;
use super::schema::Table;
use super::tally::Effect;

/// Four row changes, as `pgbench`'s built-in script makes them.
pub(super) fn tpc_b(transaction: &mut Transaction, rng: &mut Rng, scale: u32) {
    let scale = u64::from(scale);
    let account = rng.between(1, 100_000 * scale);
    let teller = rng.between(1, 10 * scale);
    let branch = rng.between(1, scale);
    let delta = rng.below(10_001) as i64 - 5000;
    let mut update = |table, name: &str, column: &str, key: &str, value: u64| {
        let sql = format!("UPDATE {name} SET {column} = {column} + {delta} WHERE {key} = {value}");
        transaction.push(Effect::Update(table), sql);
    };
    update(
        Table::PgbenchAccounts,
        "pgbench_accounts",
        "abalance",
        "aid",
        account,
    );
    update(
        Table::PgbenchTellers,
        "pgbench_tellers",
        "tbalance",
        "tid",
        teller,
    );
    update(
        Table::PgbenchBranches,
        "pgbench_branches",
        "bbalance",
        "bid",
        branch,
    );
    transaction.push(
        Effect::Insert(Table::PgbenchHistory),
        format!(
            "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) \
             VALUES ({teller}, {branch}, {account}, {delta}, CURRENT_TIMESTAMP)"
        ),
    );
}
