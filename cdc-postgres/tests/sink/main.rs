//! The sink and its state on real servers, the oldest and the newest supported.

mod at_once;
mod atomic;
mod changes;
mod conflicts;
mod durable;
mod fence;
mod keyless;
mod policies;
mod sets;
mod state;
mod target;
mod touches;
mod values;

use std::sync::OnceLock;

use testbed::PgCluster;

/// The clusters that all tests share, each test in a database of its own.
fn clusters() -> &'static [PgCluster] {
    static CLUSTERS: OnceLock<Vec<PgCluster>> = OnceLock::new();
    CLUSTERS.get_or_init(|| {
        [12, 18]
            .map(|major| PgCluster::builder(major).start().unwrap())
            .into()
    })
}

/// Runs a test on each cluster, in a new database `name` that `schema` has been run in.
fn on_each<F>(name: &str, schema: &str, test: impl Fn(target::Target) -> F)
where
    F: Future<Output = ()>,
{
    for cluster in clusters() {
        cluster.create_database(name).unwrap();
        cluster.sql(name, schema).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let target = target::Target::open(cluster, name).await;
            test(target).await;
        });
    }
}
