//! The log opened for looking at it: by a temporary slot from now on, or by a slot that exists.

use std::collections::HashMap;

use cdc_core::engine::{JobNames, SiteIdentity, TailStream};
use cdc_core::source::StreamStart;
use cdc_core::{Error, Kind, Position, Result, SourceIdentity, TableName, TableSelection};
use tokio_postgres::Client;

use super::PgSource;
use crate::catalog;
use crate::config::Config;
use crate::engine::SCHEMES;
use crate::lock::LOCK_TIMEOUT;
use crate::lsn::Lsn;
use crate::pgoutput::{PgDecoder, ProtocolVersion};
use crate::publication;
use crate::session::connect;
use crate::slot;
use crate::snapshot::temporary_name;
use crate::snapshot::waiting::create_slot;
use crate::walsender::{CreateSlot, PgoutputOptions, SlotSnapshot, WalSender};
use crate::wire::{Feature, ServerVersion};

/// Opens the log. What is read is never confirmed by itself.
pub(crate) async fn tail(
    config: &Config,
    version: ServerVersion,
    identity: &SiteIdentity,
    names: &JobNames,
    selection: &TableSelection,
    cursor: Option<&str>,
) -> Result<TailStream> {
    let client = connect(config, &[("lock_timeout", LOCK_TIMEOUT)]).await?;
    let slot = cursor.map_or_else(|| temporary_name(&names.slot), str::to_owned);
    let mut source = PgSource {
        config: config.clone(),
        slot: slot.clone(),
        identity: SourceIdentity {
            system: identity.system.clone(),
            database: identity.database.clone(),
            timeline: identity.timeline.clone(),
            slot: slot.clone(),
        },
        options: super::WalSenderOptions::default(),
        sender: None,
        streamed: None,
        fresh: None,
        seeded: Lsn::ZERO,
        asking: None,
        received: Lsn::ZERO,
        durable: Lsn::ZERO,
        heard: false,
        silent_since: std::time::Instant::now(),
        last_read: std::time::Instant::now(),
    };
    let mut sender = WalSender::connect(config, &source.options).await?;
    let (publication, from) = match cursor {
        Some(cursor) => existing(&client, identity, names, cursor).await?,
        None => {
            if !publication::exists(&client, &names.slot).await? {
                let tables = catalog::inspect(&client, selection).await?;
                let tables: Vec<TableName> = tables.into_iter().map(|table| table.name).collect();
                publication::prepare_source(&client, version, names, &tables).await?;
            }
            let wanted = CreateSlot {
                name: &slot,
                temporary: true,
                snapshot: SlotSnapshot::None,
                failover: false,
            };
            let created = create_slot(&client, &mut sender, &wanted).await?;
            (names.slot.clone(), created.consistent_point)
        }
    };
    let mut options = PgoutputOptions::new(vec![publication]);
    options.proto_version = ProtocolVersion::V1.number();
    options.messages = version.has(Feature::PgoutputMessages);
    sender
        .start_logical_replication(&slot, from, &options)
        .await
        .map_err(|error| source.stream_error(error))?;
    source.sender = Some(sender);
    // What the slot has confirmed already may be said again; nothing beyond it is.
    source.received = from;
    source.durable = from;
    let start = StreamStart {
        from: Position::new(from.to_string()),
        stream: names.job.clone(),
        selection: selection.clone(),
        seeded_to: HashMap::new(),
        aside: Default::default(),
        peer: None,
    };
    let decoder = PgDecoder::new(ProtocolVersion::V1, &start)?;
    Ok(TailStream {
        engine: SCHEMES[0],
        start,
        source: Box::new(source),
        decoder: Box::new(decoder),
    })
}

/// The publication and the position of a slot that exists. A slot of ours is read through the publication of its
/// name, another through the job's.
async fn existing(
    client: &Client,
    identity: &SiteIdentity,
    names: &JobNames,
    slot: &str,
) -> Result<(String, Lsn)> {
    let wrong = |message: String| {
        Error::new(Kind::Config, message)
            .object(format!("replication slot {slot}"))
            .remedy("SELECT slot_name, plugin, database FROM pg_replication_slots lists the slots there are")
    };
    let found = slot::find(client, slot)
        .await?
        .ok_or_else(|| wrong("it does not exist on the source".to_owned()))?;
    if found.plugin != "pgoutput" || found.database != identity.database {
        return Err(wrong(format!(
            "it is a slot of plugin {:?} for database {:?}; only slots of pgoutput for {:?} can be read",
            found.plugin, found.database, identity.database
        )));
    }
    if let Some(pid) = found.active_pid {
        return Err(Error::new(
            Kind::Fenced,
            format!("it is in use by process {pid} of the source"),
        )
        .object(format!("replication slot {slot}"))
        .remedy("leave --slot out to read by a temporary slot of its own"));
    }
    let from = found
        .confirmed
        .ok_or_else(|| wrong("its creation has not ended".to_owned()))?;
    for publication in [slot, names.slot.as_str()] {
        if publication::exists(client, publication).await? {
            return Ok((publication.to_owned(), from));
        }
    }
    Err(wrong(format!(
        "there is no publication {slot:?} or {:?} to read it through",
        names.slot
    )))
}
