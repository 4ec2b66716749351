//! What the decoder makes of what the encoder writes, and of what no server would.

mod chunks;
mod hostile;
mod rows;
mod transactions;

use std::collections::HashMap;

use cdc_core::batch::Datum;
use cdc_core::engine::SiteIdentity;
use cdc_core::source::{Decoder, StreamStart};
use cdc_core::{Batch, ChangeEvent, Position, RawChunk, Result, TableName, TableSelection};

use super::encode::{self, Field, Frames};
use super::message::{Begin, Column, Commit, ProtocolVersion, Relation};
use super::{PgDecoder, transaction_lsns};
use crate::lsn::Lsn;

/// The table `public.t (id int4, note text, doc text)`.
const T: u32 = 16_400;

pub(super) fn start() -> StreamStart {
    StreamStart {
        from: Position::new("0/100"),
        stream: "job".into(),
        selection: TableSelection::default(),
        seeded_to: HashMap::new(),
        aside: Default::default(),
        peer: Some(SiteIdentity {
            product: String::new(),
            system: "7".into(),
            database: "app".into(),
            timeline: String::new(),
        }),
    }
}

fn decoder() -> PgDecoder {
    PgDecoder::new(ProtocolVersion::V1, &start()).unwrap()
}

fn table<'a>(id: u32, namespace: &'a str, name: &'a str, identity: u8) -> Relation<'a> {
    let column = |name, type_oid, key| Column {
        key: key || identity == b'f',
        name,
        type_oid,
        type_modifier: -1,
    };
    Relation {
        id,
        namespace,
        name,
        replica_identity: identity,
        columns: vec![
            column("id", 23, identity != b'n'),
            column("note", 25, false),
            column("doc", 25, false),
        ],
    }
}

/// The table [`T`] with this replica identity.
fn t(identity: u8) -> Vec<u8> {
    encode::relation(&table(T, "public", "t", identity))
}

fn text(text: &str) -> Field<'_> {
    Field::Text(text.as_bytes())
}

fn row<'a>(id: &'a str, note: &'a str) -> [Field<'a>; 3] {
    [text(id), text(note), Field::Null]
}

/// A transaction at commit LSN `commit`, 16 bytes long, of these messages.
fn transaction(frames: &mut Frames, commit: u64, messages: &[Vec<u8>]) {
    frames.message(Lsn(commit), &begin(commit));
    for message in messages {
        frames.message(Lsn(commit - 1), message);
    }
    frames.message(Lsn(commit), &commit_at(commit));
}

fn begin(commit: u64) -> Vec<u8> {
    encode::begin(&Begin {
        final_lsn: Lsn(commit),
        commit_time: 1_000_000,
        xid: 7,
    })
}

fn commit_at(commit: u64) -> Vec<u8> {
    encode::commit(&Commit {
        commit_lsn: Lsn(commit),
        end_lsn: Lsn(commit + 16),
        commit_time: 1_000_000,
    })
}

fn decode(decoder: &mut PgDecoder, chunk: &RawChunk) -> Result<Batch> {
    let mut batch = Batch::new();
    let result = decoder.decode(&mut RawChunk::new(chunk.bytes.clone()), &mut batch);
    batch.verify().unwrap();
    result.map(|()| batch)
}

/// What one transaction of these messages decodes to.
fn one(messages: &[Vec<u8>]) -> Result<Batch> {
    let mut frames = Frames::default();
    transaction(&mut frames, 0x200, messages);
    decode(&mut decoder(), &frames.chunk())
}

/// The error that one transaction of these messages ends in.
fn refused(messages: &[Vec<u8>]) -> String {
    one(messages).unwrap_err().to_string()
}

/// The images of a row, column by column: `before / after`.
fn images(event: &ChangeEvent<'_>) -> String {
    let columns = 0..event.table().map_or(0, |table| table.columns.len());
    let join = |cells: Vec<String>| cells.join(",");
    let before = columns.clone().map(|column| cell_text(event.before(column)));
    let after = columns.map(|column| cell_text(event.after(column)));
    let before = event.has_before().then(|| join(before.collect()));
    let after = event.has_after().then(|| join(after.collect()));
    format!(
        "{}{} / {}",
        before.as_deref().unwrap_or("-"),
        if event.before_is_full() { " full" } else { "" },
        after.as_deref().unwrap_or("-")
    )
}

fn cell_text(cell: Datum<'_>) -> String {
    match cell {
        Datum::Null => "null".into(),
        Datum::Unchanged => "unchanged".into(),
        Datum::Absent => "absent".into(),
        Datum::Bytes(bytes) | Datum::Patch(bytes) => format!("'{}'", bytes.escape_ascii()),
    }
}

/// Operation and images of every row of a batch.
fn rows_of(batch: &Batch) -> Vec<String> {
    let row = |index: usize| {
        let event = batch.event(index).unwrap();
        let table = event.table().map(|table| table.name.to_string());
        format!(
            "{:?} {} {}",
            event.op(),
            table.unwrap_or_default(),
            images(&event)
        )
    };
    (0..batch.rows().len()).map(row).collect()
}

fn named(schema: &str, name: &str) -> TableName {
    TableName::new(schema, name)
}

fn ends(batch: &Batch) -> Vec<(u64, u64)> {
    let lsns = |id| transaction_lsns(id).unwrap();
    batch
        .txns()
        .iter()
        .map(|txn| lsns(&txn.id))
        .map(|(commit, end)| (commit.0, end.0))
        .collect()
}
