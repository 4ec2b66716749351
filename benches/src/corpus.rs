//! Streams of `pgoutput`: made from a seed, and recorded.

use std::fs::File;
use std::io::{BufReader, Read};

use bytes::Bytes;
use cdc_core::capture::{CaptureHeader, CaptureReader};
use cdc_core::source::StreamStart;
use cdc_core::testing::Rng;
use cdc_core::{Position, RawChunk, Result, TableSelection};
use cdc_postgres::lsn::Lsn;
use cdc_postgres::pgoutput::encode::{self, Field, Frames, Old};
use cdc_postgres::pgoutput::{Begin, Column, Commit, PgDecoder, ProtocolVersion, Relation};
use cdc_postgres::walsender::{Frame, parse_frame, split_frames};

/// The size in which the reader hands on what has come, at most.
const CHUNK_BYTES: usize = 256 * 1024;
/// A stream of a server 18, small transactions of many types; `benches/recorded` has what was written.
const RECORDED: &[u8] = include_bytes!("../recorded/mixed.capture");
/// Names another capture to read as well.
const CAPTURE: &str = "CDC_SYNC_CAPTURE";
/// Types of columns, by their OIDs.
const BOOL: u32 = 16;
const INT8: u32 = 20;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const FLOAT8: u32 = 701;
const TIMESTAMPTZ: u32 = 1184;
const NUMERIC: u32 = 1700;
const UUID: u32 = 2950;
const JSONB: u32 = 3802;

/// A stream from its first transaction to its last.
#[derive(Debug)]
pub struct Corpus {
    /// what it holds, in a word
    pub name: &'static str,
    /// the messages of the plugin, without the frames around them: what other decoders take
    pub messages: Vec<Bytes>,
    /// the same in frames, cut as a connection delivers them: what ours takes
    chunks: Vec<Vec<u8>>,
    /// where it comes from, for a decoder
    header: CaptureHeader,
    /// changed rows
    pub rows: u64,
    /// bytes of all messages
    pub bytes: u64,
}

impl Corpus {
    /// What decoding, planning and the pipeline are timed with.
    pub fn all() -> Vec<Corpus> {
        let recorded = |name, capture: &mut dyn Read| {
            Corpus::recorded(name, capture).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let mut all = vec![
            Corpus::wide(300_000),
            Corpus::narrow(500_000),
            Corpus::toast(100_000),
            Corpus::small_transactions(100_000),
            recorded("recorded", &mut &*RECORDED),
        ];
        if let Some(path) = std::env::var_os(CAPTURE) {
            let file = File::open(&path).unwrap_or_else(|error| panic!("{CAPTURE}: {error}"));
            all.push(recorded("capture", &mut BufReader::new(file)));
        }
        all
    }

    /// What `cdc-sync tail --capture` wrote.
    fn recorded(name: &'static str, capture: &mut dyn Read) -> Result<Corpus> {
        let (mut reader, header) = CaptureReader::open(capture)?;
        let mut corpus = Corpus {
            name,
            messages: Vec::new(),
            chunks: Vec::new(),
            header,
            rows: 0,
            bytes: 0,
        };
        let mut chunk = RawChunk::default();
        while reader.next(&mut chunk)? {
            for payload in split_frames(&chunk.bytes) {
                if let Frame::XLogData { data, .. } = parse_frame(payload?)? {
                    corpus.rows += u64::from(matches!(data.first(), Some(b'I' | b'U' | b'D')));
                    corpus.bytes += data.len() as u64;
                    corpus.messages.push(Bytes::copy_from_slice(data));
                }
            }
            corpus.chunks.push(chunk.bytes.to_vec());
        }
        Ok(corpus)
    }

    /// One transaction of `rows` inserts of three columns.
    pub fn narrow(rows: u64) -> Corpus {
        let mut out = Writer::new("narrow", 1);
        out.relation(1, "narrow", &[("id", INT8), ("n", INT4), ("t", TEXT)]);
        out.transaction(|out| {
            for id in 0..rows {
                let values = [id.to_string(), out.number(100_000), out.word(8)];
                out.insert(1, &values);
            }
        });
        out.finish()
    }

    /// One transaction of `rows` inserts of ten columns: numbers, texts, a time, a uuid, a document.
    pub fn wide(rows: u64) -> Corpus {
        let mut out = Writer::new("wide", 2);
        out.relation(
            1,
            "wide",
            &[
                ("id", INT8),
                ("a", INT4),
                ("b", INT8),
                ("c", TEXT),
                ("d", TIMESTAMPTZ),
                ("e", NUMERIC),
                ("f", BOOL),
                ("g", UUID),
                ("h", JSONB),
                ("i", FLOAT8),
            ],
        );
        out.transaction(|out| {
            for id in 0..rows {
                let values = out.wide_row(id);
                out.insert(1, &values);
            }
        });
        out.finish()
    }

    /// Updates of a table with a text of 4 KB, in transactions of a hundred: nine in ten leave it as it is, and one in
    /// ten changes the key.
    pub fn toast(rows: u64) -> Corpus {
        let mut out = Writer::new("toast", 3);
        out.relation(
            1,
            "documents",
            &[("id", INT8), ("title", TEXT), ("body", TEXT), ("seen", INT4)],
        );
        for _ in 0..rows / 100 {
            out.transaction(|out| {
                for _ in 0..100 {
                    let (id, title, seen) = (out.number(1_000_000), out.word(20), out.number(1000));
                    let body = out.rng.percent(10).then(|| out.word(4096));
                    let old = out.rng.percent(10).then(|| out.number(1_000_000));
                    let new = [
                        Field::Text(id.as_bytes()),
                        Field::Text(title.as_bytes()),
                        body.as_ref()
                            .map_or(Field::Unchanged, |body| Field::Text(body.as_bytes())),
                        Field::Text(seen.as_bytes()),
                    ];
                    let key = old
                        .as_ref()
                        .map(|old| [Field::Text(old.as_bytes()), Field::Null, Field::Null, Field::Null]);
                    let message = encode::update(1, key.as_ref().map(|key| Old::Key(key)), &new);
                    out.row(&message);
                }
            });
        }
        out.finish()
    }

    /// Transactions like those of TPC-B: three updates and an insert each.
    pub fn small_transactions(transactions: u64) -> Corpus {
        let mut out = Writer::new("tx", 4);
        let balances = |id| [(id, INT4), ("bid", INT4), ("balance", INT4), ("filler", TEXT)];
        out.relation(1, "accounts", &balances("aid"));
        out.relation(2, "tellers", &balances("tid"));
        out.relation(3, "branches", &balances("id"));
        let history = [
            ("tid", INT4),
            ("bid", INT4),
            ("aid", INT4),
            ("delta", INT4),
            ("mtime", TIMESTAMPTZ),
            ("filler", TEXT),
        ];
        out.relation(4, "history", &history);
        for _ in 0..transactions {
            out.transaction(|out| {
                let (aid, tid, bid) = (out.number(1_000_000), out.number(100), out.number(10));
                let filler = " ".repeat(84);
                for (relation, id, filler) in [(1, &aid, Some(&filler)), (2, &tid, None), (3, &bid, None)] {
                    let balance = out.number(1_000_000);
                    let new = [
                        Field::Text(id.as_bytes()),
                        Field::Text(bid.as_bytes()),
                        Field::Text(balance.as_bytes()),
                        filler.map_or(Field::Null, |filler| Field::Text(filler.as_bytes())),
                    ];
                    out.row(&encode::update(relation, None, &new));
                }
                let (delta, time) = (out.number(5000), out.time());
                let texts = [&tid, &bid, &aid, &delta, &time].map(|text| Field::Text(text.as_bytes()));
                let [tid, bid, aid, delta, time] = texts;
                out.row(&encode::insert(4, &[tid, bid, aid, delta, time, Field::Null]));
            });
        }
        out.finish()
    }

    /// The stream as our reader hands it on.
    pub fn chunks(&self) -> Vec<RawChunk> {
        self.chunks.iter().cloned().map(RawChunk::new).collect()
    }

    /// Inserts of `rows` rows in turn into each of `tables` tables of `columns` columns, in transactions of a thousand.
    pub fn tables(tables: u32, columns: usize, rows: u64) -> Corpus {
        let mut out = Writer::new("tables", 5);
        let names: Vec<String> = (0..columns).map(|column| format!("c{column}")).collect();
        let described: Vec<(&str, u32)> = names.iter().map(|name| (name.as_str(), TEXT)).collect();
        for table in 1..=tables {
            out.relation(table, &format!("t{table}"), &described);
        }
        for first in (0..rows).step_by(1000) {
            out.transaction(|out| {
                for id in first..rows.min(first + 1000) {
                    let mut values = vec![id.to_string()];
                    values.resize_with(columns, || out.number(1000));
                    out.insert(1 + (id % u64::from(tables)) as u32, &values);
                }
            });
        }
        out.finish()
    }

    /// The position that its first transaction comes after.
    pub fn from(&self) -> &Position {
        &self.header.from
    }

    /// A decoder for it.
    pub fn decoder(&self) -> PgDecoder {
        let start = StreamStart {
            from: self.header.from.clone(),
            stream: self.header.stream.clone(),
            selection: TableSelection::default(),
            seeded_to: Default::default(),
            aside: Default::default(),
            peer: None,
        };
        PgDecoder::new(ProtocolVersion::V1, &start).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Writes messages one after the other.
struct Writer {
    name: &'static str,
    rng: Rng,
    messages: Vec<u8>,
    ends: Vec<usize>,
    frames: Frames,
    chunks: Vec<Vec<u8>>,
    lsn: u64,
    rows: u64,
}

impl Writer {
    fn new(name: &'static str, seed: u64) -> Writer {
        Writer {
            name,
            rng: Rng::new(seed),
            messages: Vec::new(),
            ends: Vec::new(),
            frames: Frames::default(),
            chunks: Vec::new(),
            lsn: 0x1000,
            rows: 0,
        }
    }

    fn message(&mut self, message: &[u8]) {
        self.messages.extend_from_slice(message);
        self.ends.push(self.messages.len());
        if self.frames.bytes.len() + message.len() > CHUNK_BYTES {
            self.cut();
        }
        self.frames.message(Lsn(self.lsn), message);
    }

    fn cut(&mut self) {
        let frames = std::mem::take(&mut self.frames);
        self.chunks.push(frames.bytes);
    }

    fn row(&mut self, message: &[u8]) {
        self.rows += 1;
        self.message(message);
    }

    fn insert(&mut self, relation: u32, values: &[String]) {
        let fields: Vec<Field<'_>> = values.iter().map(|value| Field::Text(value.as_bytes())).collect();
        self.row(&encode::insert(relation, &fields));
    }

    /// Announces a table whose first column is its key.
    fn relation(&mut self, id: u32, name: &str, columns: &[(&str, u32)]) {
        let columns = columns
            .iter()
            .enumerate()
            .map(|(index, (name, type_oid))| Column {
                key: index == 0,
                name,
                type_oid: *type_oid,
                type_modifier: -1,
            });
        self.message(&encode::relation(&Relation {
            id,
            namespace: "public",
            name,
            replica_identity: b'd',
            columns: columns.collect(),
        }));
    }

    fn transaction(&mut self, changes: impl FnOnce(&mut Writer)) {
        let (lsn, time) = (self.lsn, 800_000_000_000_000);
        self.message(&encode::begin(&Begin {
            final_lsn: Lsn(lsn),
            commit_time: time,
            xid: 7,
        }));
        changes(self);
        self.message(&encode::commit(&Commit {
            commit_lsn: Lsn(lsn),
            end_lsn: Lsn(lsn + 8),
            commit_time: time,
        }));
        self.lsn += 8;
    }

    fn number(&mut self, below: usize) -> String {
        self.rng.below(below).to_string()
    }

    fn word(&mut self, length: usize) -> String {
        let letter = |rng: &mut Rng| char::from(b'a' + rng.below(26) as u8);
        (0..length).map(|_| letter(&mut self.rng)).collect()
    }

    fn time(&mut self) -> String {
        let mut two = |below| format!("{:02}", self.rng.below(below));
        let (hours, minutes, seconds) = (two(24), two(60), two(60));
        format!(
            "2026-11-21 {hours}:{minutes}:{seconds}.{:06}+00",
            self.rng.below(1_000_000)
        )
    }

    fn wide_row(&mut self, id: u64) -> [String; 10] {
        let (high, low) = (self.rng.next_u64(), self.rng.next_u64());
        let uuid = format!(
            "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xfff,
            low >> 52,
            low & 0xffff_ffff_ffff
        );
        [
            id.to_string(),
            self.number(1_000_000),
            self.rng.next_u64().cast_signed().to_string(),
            self.word(24),
            self.time(),
            format!("{}.{:02}", self.number(1_000_000_000), self.rng.below(100)),
            String::from(if self.rng.percent(50) { "t" } else { "f" }),
            uuid,
            format!(
                "{{\"k\": {}, \"tags\": [\"{}\"]}}",
                self.number(100),
                self.word(12)
            ),
            format!("{}.{}", self.number(1000), self.number(1_000_000)),
        ]
    }

    fn finish(mut self) -> Corpus {
        self.cut();
        let all = Bytes::from(self.messages);
        let mut from = 0;
        let messages = self
            .ends
            .iter()
            .map(|end| all.slice(std::mem::replace(&mut from, *end)..*end));
        Corpus {
            name: self.name,
            messages: messages.collect(),
            chunks: self.chunks,
            header: CaptureHeader {
                engine: "postgres".into(),
                stream: "bench".into(),
                from: Position::new("0/0"),
            },
            rows: self.rows,
            bytes: all.len() as u64,
        }
    }
}
