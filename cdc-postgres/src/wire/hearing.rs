//! A session with a server of which every byte is given beforehand, for fuzzing what reads them.

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::connection::Connection;
use super::copy_out::CopyOut;
use super::session::{Purpose, ReplicationSettings};
use super::stream::{Encryption, Stream};
use crate::config::Config;
use crate::error::PgError;
use crate::lsn::Lsn;
use crate::walsender::{PgoutputOptions, WalSender};

/// Largest frame of a stream here, in bytes.
const MAX_FRAME: usize = 4 << 10;

/// What is asked of the server after the login.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// a query and its rows
    Query,
    /// `COPY … TO STDOUT`
    Copy,
    /// a replication stream
    Stream,
}

/// Logs in as `config` says to a server that says `bytes` and hangs up, whatever it is asked, and goes on to `work` if it is let in.
/// Returns the bytes of values, rows or frames that were heard.
///
/// # Errors
/// Whatever is wrong with what the server said; of a stream, which ends in no other way, only what was wrong before it began.
pub async fn hear(config: &Config, work: Work, bytes: &[u8]) -> Result<usize, PgError> {
    let (mut server, client) = UnixStream::pair()?;
    let speak = async {
        // A client that has heard enough may have hung up.
        let _ = server.write_all(bytes).await;
        let _ = server.shutdown().await;
    };
    let ((), heard) = tokio::join!(speak, listen(config, work, Stream::Unix(client)));
    heard
}

async fn listen(config: &Config, work: Work, stream: Stream) -> Result<usize, PgError> {
    let purpose = match work {
        Work::Query | Work::Copy => Purpose::Sql,
        Work::Stream => Purpose::Replication(ReplicationSettings::default()),
    };
    let [endpoint, ..] = config.endpoints() else {
        return Err(PgError::usage("no server is named"));
    };
    let login = Connection::log_in(stream, config, endpoint, Encryption::Plain, &purpose, &[]);
    let mut connection = login.await?;
    let mut heard = 0;
    match work {
        Work::Query => {
            for row in connection
                .simple_query("q")
                .await?
                .iter()
                .flat_map(|result| &result.rows)
            {
                // As many as any query of ours has, and one more.
                let values = (0..17).filter_map(|place| row.text(place).ok().flatten());
                heard += values.map(str::len).sum::<usize>();
            }
        }
        Work::Copy => {
            let mut copy = CopyOut::start(connection, "c").await?;
            let mut out = BytesMut::new();
            while copy.read(&mut out, 64).await? {
                heard += out.len();
                out.clear();
            }
        }
        Work::Stream => {
            let mut sender = WalSender::over(connection, MAX_FRAME);
            let options = PgoutputOptions::new(vec!["p".into()]);
            sender.start_logical_replication("s", Lsn(0), &options).await?;
            let mut frames = Vec::new();
            while sender.read_frames(&mut frames, 64).await.is_ok() {
                heard += frames.len();
                frames.clear();
            }
        }
    }
    Ok(heard)
}
