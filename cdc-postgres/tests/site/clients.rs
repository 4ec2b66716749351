//! Sessions that are lent from one question to the next.

use std::time::{Duration, Instant};

use testbed::PgCluster;

use crate::faults::until;
use crate::{cluster, site};

/// The sessions of the site that are open.
fn sessions(cluster: &PgCluster) -> String {
    cluster.sql("db", &format!("SELECT {OURS}")).unwrap()
}

const OURS: &str = "coalesce(string_agg(pid::text, ' ' ORDER BY pid), '') FROM pg_stat_activity \
     WHERE application_name = 'cdc-sync' AND backend_type = 'client backend'";

#[tokio::test]
async fn one_session_answers_several_questions_and_is_closed_when_none_comes() {
    let cluster = cluster(16);
    let site = site(&cluster).await;
    // The one that was opened first, for what the server is.
    until(&cluster, &format!("SELECT {OURS}"), "").await;
    // Between two questions a slow machine may take longer than a session is kept: then the next two tell.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        site.sequences().await.unwrap();
        let before = sessions(&cluster);
        site.sequences().await.unwrap();
        if !before.is_empty() && sessions(&cluster) == before {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "each question has a session of its own"
        );
    }
    until(&cluster, &format!("SELECT {OURS}"), "").await;
    site.sequences().await.unwrap();
}
