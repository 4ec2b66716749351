//! Plain connections for the testbed's own work and for tests.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio_postgres::{Client, Config, NoTls};

/// Connects by URL, without TLS. The task that drives the connection runs on the current runtime, and its
/// errors reach the user of the client.
pub async fn connect(url: &str) -> Result<Client> {
    let mut config: Config = url.parse().context("not a usable PostgreSQL URL")?;
    config
        .application_name("testbed")
        .connect_timeout(Duration::from_secs(30));
    let (client, connection) = config
        .connect(NoTls)
        .await
        .context("cannot connect to PostgreSQL")?;
    tokio::spawn(connection);
    Ok(client)
}
