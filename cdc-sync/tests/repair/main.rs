//! `repair` against real servers: what is planted on green is gone afterwards, exactly, and nothing that the stream
//! brings is lost by it.

mod kinds;
mod strangers;
mod triggers;
mod under_load;

use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::pair::LIMIT;
use testbed::{Pair, compare};

/// On green as the job itself writes there: no trigger fires and no foreign key is checked.
fn plant(pair: &Pair, script: &str) {
    let script = format!("SET session_replication_role = replica; BEGIN; {script}; COMMIT");
    pair.on_green(&script).unwrap();
}

/// Inserted, updated, deleted and remaining rows of a table.
fn counts(report: &Value, table: &str) -> [u64; 4] {
    let tables = report["tables"].as_array().unwrap();
    let found = tables.iter().find(|found| found["name"] == table);
    let found = found.unwrap_or_else(|| panic!("no {table} in {report:#}"));
    assert_eq!(found["unverifiable"], Value::Null, "{found}");
    ["inserted", "updated", "deleted", "remaining"].map(|key| found[key].as_u64().unwrap())
}

/// How many tables differ, by the testbed's own comparison.
fn differing(pair: &Pair) -> usize {
    let [blue, green] = pair.urls();
    compare::databases(&blue, &green).unwrap().len()
}

/// Waits until `query` on green says `t`.
fn wait_for_green(pair: &Pair, query: &str) {
    let deadline = Instant::now() + LIMIT;
    while pair.on_green(query).unwrap() != "t" {
        assert!(Instant::now() < deadline, "{query}");
        std::thread::sleep(Duration::from_millis(60));
    }
}

/// A session on green that stays as it is until dropped.
struct Session {
    runtime: tokio::runtime::Runtime,
    client: tokio_postgres::Client,
}

impl Session {
    fn on_green(pair: &Pair, script: &str) -> Session {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let [_, green] = pair.urls();
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&green, tokio_postgres::NoTls)
                .await
                .unwrap();
            tokio::spawn(connection);
            client.batch_execute(script).await.unwrap();
            client
        });
        Session { runtime, client }
    }

    /// Gives back what it holds.
    fn end(self, script: &str) {
        let Session { runtime, client } = self;
        runtime.block_on(client.batch_execute(script)).unwrap();
    }
}
