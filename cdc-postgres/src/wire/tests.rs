//! The protocol's corners, against a scripted server.

mod copy;
mod damage;
mod login;
mod pipeline;
mod query;
mod silence;

use std::time::Duration;

use super::fake;
use super::*;

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("the client hangs")
}

/// A row of text columns.
fn row(cells: &[Option<&str>]) -> Vec<u8> {
    let mut body = u16::try_from(cells.len()).unwrap().to_be_bytes().to_vec();
    for cell in cells {
        body.extend(
            cell.map_or(-1, |text| i32::try_from(text.len()).unwrap())
                .to_be_bytes(),
        );
        body.extend(cell.unwrap_or_default().bytes());
    }
    fake::message(b'D', &body)
}

/// The futures go into tasks of any runtime.
#[test]
fn futures_can_be_sent_to_other_threads() {
    fn sent<T: Send>(_: T) {}
    let config = fake::config();
    sent(Connection::connect(&config, &Purpose::Sql, &[]));
    sent(config.connect_client(&[]));
}
