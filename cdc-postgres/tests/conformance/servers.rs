//! The servers that all tests share.

use std::sync::OnceLock;
use std::time::Duration;

use testbed::PgCluster;

/// Ten times what the longest of the tests takes: a sink or a source that waits for ever fails.
const DEADLINE: Duration = Duration::from_secs(600);

/// The cluster of a major version. Each test works in databases of its own. The newer one sends every change while its
/// transaction runs, as it otherwise does with large ones only.
pub(crate) fn cluster(major: u16) -> &'static PgCluster {
    static OLDEST: OnceLock<PgCluster> = OnceLock::new();
    static NEWEST: OnceLock<PgCluster> = OnceLock::new();
    let held = match major {
        12 => &OLDEST,
        18 => &NEWEST,
        other => panic!("no test is for PostgreSQL {other}"),
    };
    held.get_or_init(|| {
        let builder = PgCluster::builder(major);
        let builder = match major {
            18 => builder.setting("debug_logical_replication_streaming", "immediate"),
            _ => builder,
        };
        builder.start().unwrap()
    })
}

/// A runtime for a test; what its connections do goes on while [`within_deadline`] runs.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Runs `work`, which must end.
pub(crate) fn within_deadline<T>(runtime: &tokio::runtime::Runtime, work: impl Future<Output = T>) -> T {
    runtime
        .block_on(async { tokio::time::timeout(DEADLINE, work).await })
        .expect("it takes for ever")
}
