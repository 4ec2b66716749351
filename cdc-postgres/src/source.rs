//! The source: one walsender connection that reads a slot.

mod history;
mod rolled_back;
mod streamed;
mod tail;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use cdc_core::ahead::{Ahead, DecoderMaker};
use cdc_core::engine::JobNames;
use cdc_core::source::{Decoder, Source, StreamStart};
use cdc_core::{
    Action, BoxFuture, Error, Kind, Position, RawChunk, Result, SourceIdentity, TableName, failpoint,
};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::config::Config;
use crate::error::{PgError, SqlState};
use crate::error_map::position_lsn;
use crate::lsn::Lsn;
use crate::pgoutput::{PgDecoder, ProtocolVersion};
use crate::session::{connect, during};
use crate::sink::origin;
use crate::slot_state::{SEED_AGAIN, SlotState};
use crate::walsender::{
    Frame, PgoutputOptions, Streaming, WalSender, WalSenderOptions, parse_frame, split_frames,
};
use crate::wire::{Feature, silence};

use streamed::{LaneDecoder, Streamed};
pub(crate) use tail::tail;
#[cfg(any(test, feature = "testing"))]
pub use {
    rolled_back::rolled_back_among,
    streamed::{StreamedFrames, lane_decoder},
};

/// Bytes after which a read hands its frames on.
const CHUNK_BYTES: usize = 256 * 1024;
/// The time for everything between the login and the first frame.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a walsender of our own that lingers on the slot is left alone: most end by themselves when they notice
/// that their client is gone.
const LINGER: Duration = Duration::from_secs(2);
/// How long the slot may stay in use before the attempt is given up.
const IN_USE_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// A stream that was not read for longer waits for room here: its silence tells nothing.
const READ_LATELY: Duration = Duration::from_secs(1);
/// The protocol version in which a server sends transactions that still run; what is made of it is version 1.
const STREAMING_VERSION: u32 = 2;
/// How long the server may take to end the stream.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads one slot of a PostgreSQL server with `pgoutput`.
///
/// The caller holds the fence of the stream, so a walsender that still uses the slot belongs to an instance that is
/// no more; it is ended.
#[derive(Debug)]
pub struct PgSource {
    config: Config,
    slot: String,
    identity: SourceIdentity,
    options: WalSenderOptions,
    sender: Option<WalSender>,
    /// large transactions that are still running, where the server sends them
    streamed: Option<Streamed>,
    /// a decoder as it was when the stream started
    fresh: Option<PgDecoder>,
    /// the newest position up to which a table was copied apart from the stream
    seeded: Lsn,
    /// the question which subtransactions of one of them were rolled back
    asking: Option<JoinHandle<Result<HashSet<u32>>>>,
    /// the newest position seen in a frame
    received: Lsn,
    /// the newest position durable on the target
    durable: Lsn,
    /// whether a frame has come since the last status update
    heard: bool,
    /// since when reads have found nothing
    silent_since: Instant,
    /// when frames were last asked for
    last_read: Instant,
}

impl PgSource {
    /// A source for the slot and the publication of `names` (they have one name) of the server and database in
    /// `identity`.
    ///
    /// # Errors
    /// When `identity` names another slot than `names`.
    pub fn new(config: Config, names: &JobNames, identity: SourceIdentity) -> Result<PgSource> {
        if !identity.slot.is_empty() && identity.slot != names.slot {
            return Err(Error::new(
                Kind::PositionLost,
                format!(
                    "the checkpoint belongs to slot {}, the job uses slot {}",
                    identity.slot, names.slot
                ),
            )
            .remedy(SEED_AGAIN));
        }
        Ok(PgSource {
            config,
            slot: names.slot.clone(),
            identity,
            options: WalSenderOptions::default(),
            sender: None,
            streamed: None,
            fresh: None,
            seeded: Lsn::ZERO,
            asking: None,
            received: Lsn::ZERO,
            durable: Lsn::ZERO,
            heard: false,
            silent_since: Instant::now(),
            last_read: Instant::now(),
        })
    }

    /// Sets the largest row and the session settings of the walsender.
    #[must_use]
    pub fn with_options(mut self, options: WalSenderOptions) -> PgSource {
        self.options = options;
        self
    }

    async fn start(&mut self, start: &StreamStart) -> Result<PgDecoder> {
        let version = ProtocolVersion::V1;
        let mut decoder = PgDecoder::new(version, start)?;
        let from = position_lsn(&start.from)?;
        let mut sender = WalSender::connect(&self.config, &self.options).await?;
        let server = sender.identify_system().await?;
        history::expect_server(&self.identity, &server)?;
        history::expect_written(&server, from)?;
        if history::known_timeline(&self.identity).is_some_and(|known| known != server.timeline) {
            // Checkpoints that are written from here on must carry the new timeline: see `resume`.
            return Err(Error::new(
                Kind::Unreachable,
                format!(
                    "the source was promoted to timeline {} meanwhile",
                    server.timeline
                ),
            )
            .action(Action::Reconnect));
        }
        let slot = self.free_slot(&mut sender).await?;
        slot.expect_usable(&server.dbname, from)?;

        let client = connect(&self.config, &[]).await?;
        decoder.expect_selected(self.selected(&client, start).await?);
        let mut options = PgoutputOptions::new(vec![self.slot.clone()]);
        options.proto_version = version.number();
        options.messages = sender.server_version().has(Feature::PgoutputMessages);
        (self.streamed, self.asking) = (None, None);
        // Jobs of cdc-sync that apply changes to this server are known by their origin, which it does not tell of a streamed
        // transaction whose first change is one of its catalogs' (`ReorderBufferProcessTXN`).
        if sender.server_version().has(Feature::PgoutputStreaming) && !origin::exists(&client).await? {
            options.proto_version = STREAMING_VERSION;
            options.streaming = Streaming::On;
            self.streamed = Some(Streamed::default());
        }
        sender
            .start_logical_replication(&self.slot, from, &options)
            .await
            .map_err(|error| self.stream_error(error))?;
        tracing::info!(slot = self.slot, position = %from, server = %sender.server_version(), "stream started");
        self.sender = Some(sender);
        self.fresh = Some(decoder.clone());
        let seeded = start.seeded_to.values().map(position_lsn);
        self.seeded = seeded
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .max()
            .unwrap_or_default();
        // The checkpoint is on the target, so the slot may know of it at once.
        self.received = from;
        self.durable = from;
        self.heard = false;
        self.silent_since = Instant::now();
        failpoint!("stream.started", error);
        Ok(decoder)
    }

    /// The published tables whose name is selected now, by their OID. Those that are set aside come and go.
    ///
    /// Asked on a connection of its own: what a walsender's caches hold of a table before it decodes is used for changes
    /// that are older, whose rows it then reads by the newer definition (seen on 18, where the view opens the tables).
    async fn selected(&self, client: &Client, start: &StreamStart) -> Result<HashMap<u32, TableName>> {
        let rows = client
            .query_typed(
                "SELECT c.oid, t.schemaname::text, t.tablename::text FROM pg_publication_tables t \
                 JOIN pg_namespace n ON n.nspname = t.schemaname \
                 JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename WHERE t.pubname = $1",
                &[(&self.slot, Type::TEXT)],
            )
            .await
            .map_err(during("reading the tables of the publication"))?;
        let named = rows.iter().map(|row| {
            let table = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
            (row.get::<_, u32>(0), table)
        });
        Ok(named
            .filter(|(_, table)| start.selection.selects(table) && !start.aside.contains(table))
            .collect())
    }

    /// The state of the slot once nobody uses it.
    async fn free_slot(&self, sender: &mut WalSender) -> Result<SlotState> {
        let begun = Instant::now();
        let mut told_to_end = None;
        loop {
            let Some(state) = SlotState::read(sender, &self.slot).await? else {
                return Err(SlotState::missing(&self.slot));
            };
            let Some(pid) = state.active_pid else {
                return Ok(state);
            };
            if begun.elapsed() >= IN_USE_TIMEOUT {
                return Err(state.in_use(pid));
            }
            if begun.elapsed() >= LINGER && told_to_end != Some(pid) {
                told_to_end = Some(pid);
                match state
                    .end_walsender(sender, pid, self.config.application_name())
                    .await
                {
                    Ok(true) => {
                        tracing::warn!(slot = self.slot, pid, "ended a former walsender of this job");
                    }
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(slot = self.slot, pid, %error, "cannot end a former walsender");
                    }
                }
            }
            sleep(POLL).await;
        }
    }

    /// Errors of the stream itself, where some codes mean that the WAL or the slot is gone.
    fn stream_error(&self, error: PgError) -> Error {
        let code = error.sqlstate;
        let is = |wanted: &str| code.is_some_and(|code| code.as_str() == wanted);
        let lost = is("58P01") || is("55000");
        let in_use = error.is(SqlState::OBJECT_IN_USE);
        let no_publication = error.is(SqlState::UNDEFINED_OBJECT);
        let mapped = Error::from(error).object(format!("slot {}", self.slot));
        if lost {
            // "requested WAL segment has already been removed", "can no longer get changes from replication slot"
            Error::new(Kind::PositionLost, mapped.message())
                .object(format!("slot {}", self.slot))
                .code(mapped.server_code().unwrap_or_default())
                .remedy(SEED_AGAIN)
        } else if in_use {
            Error::new(Kind::Fenced, mapped.message())
                .object(format!("slot {}", self.slot))
                .action(Action::Retry)
        } else if no_publication {
            // The server looks a publication up as it was when the change was made.
            mapped.remedy(format!(
                "publication {} must be older than the slot: {SEED_AGAIN}",
                self.slot
            ))
        } else {
            mapped
        }
    }

    /// Reports what has been received and what is durable. Never waits for the network.
    async fn report(&mut self, want_answer: bool) -> Result<()> {
        let sender = self.sender.as_mut().ok_or_else(not_open)?;
        // What is durable has been received, also when it was in the session before.
        let written = self.received.max(self.durable);
        failpoint!("confirm.before", error);
        sender
            .try_send_status(written, self.durable, self.durable, want_answer)
            .await?;
        failpoint!("confirm.sent", error);
        Ok(())
    }

    /// A server that was asked for a word in every silence and is read from all the time, but says nothing for long,
    /// is at work on something large or out of reach.
    async fn expect_work(&mut self) -> Result<()> {
        let is_read = self.last_read.elapsed() < READ_LATELY;
        let sender = self.sender.as_mut().ok_or_else(not_open)?;
        // Of a large frame that comes slowly, bytes come before it is one.
        let silence = self
            .silent_since
            .elapsed()
            .min(sender.connection.heard().elapsed());
        if !is_read || silence < silence::patience() {
            return Ok(());
        }
        sender.connection.expect_work().await?;
        self.silent_since = Instant::now();
        Ok(())
    }

    /// Looks at new frames: how far they reach, and whether the server wants to hear from us.
    fn look_at(&mut self, frames: &[u8]) -> Result<bool> {
        let mut wanted = false;
        for payload in split_frames(frames) {
            let reached = match parse_frame(payload?)? {
                Frame::XLogData { start, wal_end, .. } => start.max(wal_end),
                Frame::Keepalive {
                    wal_end,
                    reply_requested,
                    ..
                } => {
                    wanted |= reply_requested;
                    wal_end
                }
            };
            self.received = self.received.max(reached);
        }
        Ok(wanted)
    }
}

/// Looks whether the source's log still has what `known` and `from` mean, and returns the identity under which the
/// stream goes on: after a promotion it has the new timeline.
pub(crate) async fn resume(
    config: &Config,
    known: &SourceIdentity,
    from: &Position,
) -> Result<SourceIdentity> {
    let from = position_lsn(from)?;
    let looking = async {
        let mut sender = WalSender::connect(config, &WalSenderOptions::default()).await?;
        let server = sender.identify_system().await?;
        history::expect_server(known, &server)?;
        if let Some(timeline) = history::known_timeline(known) {
            history::expect_continued(&mut sender, &server, timeline, from).await?;
        }
        history::expect_written(&server, from)?;
        sender.close().await;
        Ok(SourceIdentity {
            timeline: server.timeline.to_string(),
            ..known.clone()
        })
    };
    timeout(OPEN_TIMEOUT, looking).await.map_err(|_| {
        Error::from(PgError::timeout(format!(
            "the source did not tell its identity within {} s",
            OPEN_TIMEOUT.as_secs()
        )))
    })?
}

fn not_open() -> Error {
    Error::new(Kind::Unreachable, "the stream is not open").action(Action::Reconnect)
}

impl Source for PgSource {
    fn open<'a>(&'a mut self, start: &'a StreamStart) -> BoxFuture<'a, Box<dyn Decoder>> {
        Box::pin(async move {
            self.sender = None;
            let decoder = timeout(OPEN_TIMEOUT, self.start(start)).await.map_err(|_| {
                Error::from(PgError::timeout(format!(
                    "the server did not start the stream of slot {} within {} s",
                    self.slot,
                    OPEN_TIMEOUT.as_secs()
                )))
            })??;
            Ok(Box::new(decoder) as Box<dyn Decoder>)
        })
    }

    fn hand_out(&mut self, ahead: Ahead) -> Option<DecoderMaker> {
        let (streamed, fresh) = (self.streamed.as_mut()?, self.fresh.clone()?);
        streamed.hand_out(ahead, self.durable, self.seeded);
        let decoder = LaneDecoder(fresh);
        Some(Box::new(move || Box::new(decoder.clone())))
    }

    fn read<'a>(&'a mut self, chunk: &'a mut RawChunk) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let begin = chunk.bytes.len();
            if let Some(streamed) = self.streamed.as_mut().filter(|streamed| streamed.has_more()) {
                self.heard = true;
                if let Some((doubtful, ends)) = streamed.doubtful() {
                    // A task of its own: this call may be given up before there is an answer.
                    let asking = self.asking.get_or_insert_with(|| {
                        tokio::spawn(rolled_back::among(self.config.clone(), doubtful.to_vec(), ends))
                    });
                    let answer = asking.await;
                    self.asking = None;
                    streamed.settle(answer.map_err(|_| not_open())??);
                }
                if let Some(lane) = streamed.asks_lane() {
                    let ready = lane.is_ready().await;
                    streamed.lane_answers(ready);
                }
                chunk.received = Some(Instant::now());
                return streamed.fill(&mut chunk.bytes);
            }
            if self.last_read.elapsed() >= READ_LATELY {
                self.silent_since = Instant::now();
            }
            self.last_read = Instant::now();
            let sender = self.sender.as_mut().ok_or_else(not_open)?;
            let read = sender.read_frames(&mut chunk.bytes, CHUNK_BYTES).await;
            if let Err(error) = read {
                return Err(self.stream_error(error));
            }
            // Up to the report nothing waits, so that dropping the call loses no frame, nor leaves one that is not sifted.
            chunk.received = Some(Instant::now());
            self.heard = true;
            self.silent_since = Instant::now();
            let wanted = self.look_at(chunk.bytes.get(begin..).unwrap_or_default())?;
            if let Some(streamed) = &mut self.streamed {
                streamed.sift(&mut chunk.bytes, begin)?;
            }
            if wanted {
                self.report(false).await?;
            }
            Ok(())
        })
    }

    fn pause(&mut self) -> Option<Duration> {
        self.sender.as_mut().and_then(WalSender::pause)
    }

    fn confirm<'a>(&'a mut self, durable: Option<&'a Position>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(durable) = durable {
                self.durable = self.durable.max(position_lsn(durable)?);
            }
            // Our updates keep the server from sending keepalives of its own, so in a silence we ask for one: it
            // tells how far the log is.
            let silent = !std::mem::replace(&mut self.heard, false);
            self.report(silent).await?;
            self.expect_work().await
        })
    }

    fn close(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let told = if self.sender.is_some() {
                self.report(false).await
            } else {
                Ok(())
            };
            if let Some(sender) = self.sender.take() {
                sender.stop(STOP_TIMEOUT).await?;
            }
            told
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use postgres_protocol::message::backend::Message;

    use super::*;
    use crate::pgoutput::encode::Frames;

    fn source() -> PgSource {
        let config = Config::parse_with("postgres://u@h/d", &|_| None).unwrap();
        let names = JobNames {
            job: "j".into(),
            slot: "cdc_sync_j".into(),
        };
        let identity = SourceIdentity {
            system: "7".into(),
            database: "d".into(),
            timeline: "2".into(),
            slot: "cdc_sync_j".into(),
        };
        PgSource::new(config, &names, identity).unwrap()
    }

    #[test]
    fn frames_tell_how_far_and_whether_to_answer() {
        let mut source = source();
        let mut frames = Frames::default();
        frames.message(Lsn(5), b"x").keepalive(Lsn(9), false);
        assert!(!source.look_at(&frames.bytes).unwrap());
        assert_eq!(source.received, Lsn(9));
        frames.keepalive(Lsn(3), true);
        assert!(source.look_at(&frames.bytes).unwrap());
        assert_eq!(source.received, Lsn(9));
        assert!(source.look_at(&frames.bytes[..7]).is_err());
    }

    fn server_error(code: &str) -> PgError {
        let fields = format!("SERROR\0C{code}\0Mno\0\0");
        let mut frame = BytesMut::from(&b"E"[..]);
        frame.extend((fields.len() as u32 + 4).to_be_bytes());
        frame.extend(fields.bytes());
        match Message::parse(&mut frame) {
            Ok(Some(Message::ErrorResponse(body))) => PgError::from_fields(body.fields()),
            _ => panic!("not an ErrorResponse"),
        }
    }

    #[test]
    fn lost_wal_and_a_slot_in_use_are_told_apart() {
        let source = source();
        let of = |code: &str| {
            let error = source.stream_error(server_error(code));
            (error.kind(), error.what_to_do())
        };
        assert_eq!(of("58P01"), (Kind::PositionLost, Action::Stop));
        assert_eq!(of("55000"), (Kind::PositionLost, Action::Stop));
        assert_eq!(of("55006"), (Kind::Fenced, Action::Retry));
        assert_eq!(of("57P01"), (Kind::Unreachable, Action::Reconnect));
        assert_eq!(of("42704"), (Kind::Schema, Action::Stop));
    }
}
