//! A server with transactions in transactions, of which every change is streamed at once, against what comes out.

use std::collections::{BTreeMap, HashSet};

use cdc_core::RawChunk;
use cdc_core::testing::LaneModel;
use proptest::prelude::*;

use super::*;
use crate::lsn::Lsn;
use crate::pgoutput::encode::{self, Field, Frames};
use crate::pgoutput::{Begin, Commit, Origin, Relation, TypeName};

const TABLES: u32 = 3;
/// Bytes of a wide row.
const WIDE: usize = 100_000;

/// What happens on the server.
#[derive(Debug, Clone)]
enum Step {
    /// rows of one transaction in one block
    Block {
        txn: u8,
        tables: Vec<u32>,
    },
    Savepoint {
        txn: u8,
    },
    /// and whether the server tells
    RollBackTo {
        txn: u8,
        told: bool,
    },
    Release {
        txn: u8,
    },
    Commit {
        txn: u8,
    },
    RollBack {
        txn: u8,
    },
    /// a small transaction of another session
    Plain {
        table: u32,
    },
    /// a change of a table's definition, where no transaction has it locked
    Alter {
        table: u32,
    },
    Keepalive,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (txn, table) = (0_u8..3, 0..TABLES);
    let step = prop_oneof![
        5 => (txn.clone(), prop::collection::vec(table.clone(), 0..4))
            .prop_map(|(txn, tables)| Step::Block { txn, tables }),
        2 => txn.clone().prop_map(|txn| Step::Savepoint { txn }),
        2 => (txn.clone(), prop::bool::weighted(0.7)).prop_map(|(txn, told)| Step::RollBackTo { txn, told }),
        1 => txn.clone().prop_map(|txn| Step::Release { txn }),
        2 => txn.clone().prop_map(|txn| Step::Commit { txn }),
        1 => txn.prop_map(|txn| Step::RollBack { txn }),
        2 => table.clone().prop_map(|table| Step::Plain { table }),
        1 => table.prop_map(|table| Step::Alter { table }),
        1 => Just(Step::Keepalive),
    ];
    prop::collection::vec(step, 0..60)
}

/// A subtransaction, or the transaction itself.
struct Level {
    xid: u32,
    /// how many rows came before it
    began: usize,
    /// subtransactions that were released into it
    released: Vec<u32>,
}

/// A transaction of the server.
#[derive(Default)]
struct Running {
    levels: Vec<Level>,
    /// comes with the first block, whatever becomes of its rows
    origin: Vec<u8>,
    rows: Vec<Vec<u8>>,
    streamed: bool,
    /// tables that were announced in its blocks
    announced: HashSet<u32>,
    /// tables that it has locked
    touched: HashSet<u32>,
}

#[derive(Default)]
struct Server {
    frames: Frames,
    running: BTreeMap<u8, Running>,
    /// the definition of each table, and whether it is announced outside of streamed transactions
    versions: [u32; TABLES as usize],
    announced: HashSet<u32>,
    lsn: u64,
    xids: u32,
    rolled_back: HashSet<u32>,
    /// begin, rows, commit of what is to come out
    wanted: Vec<Vec<u8>>,
}

fn with_xid(xid: u32, mut message: Vec<u8>) -> Vec<u8> {
    message.splice(1..1, xid.to_be_bytes());
    message
}

fn announcement(table: u32, version: u32) -> [Vec<u8>; 2] {
    let named = TypeName {
        oid: 90_000 + table,
        namespace: "app",
        name: "mood",
    };
    let relation = Relation {
        id: table,
        namespace: "app",
        name: &format!("t{version}"),
        replica_identity: b'd',
        columns: Vec::new(),
    };
    [encode::type_name(&named), encode::relation(&relation)]
}

impl Server {
    fn next(&mut self) -> Lsn {
        self.lsn += 0x10;
        Lsn(self.lsn)
    }

    fn send(&mut self, message: &[u8]) {
        let at = self.next();
        self.frames.message(at, message);
    }

    /// A row that tells with which definition and in which place it was made. Of the first table's, few fill a segment.
    fn row(&mut self, table: u32) -> Vec<u8> {
        let said = format!("{} {}", self.versions[table as usize], self.lsn);
        let wide = if table == 0 { WIDE } else { 0 };
        encode::insert(
            table,
            &[Field::Text(said.as_bytes()), Field::Text(&vec![b' '; wide])],
        )
    }

    fn new_xid(&mut self) -> u32 {
        self.xids += 1;
        self.xids
    }

    fn running(&mut self, txn: u8) -> &mut Running {
        let xid = self.new_xid();
        let running = self.running.entry(txn).or_default();
        if running.levels.is_empty() {
            let (began, released) = (0, Vec::new());
            running.levels.push(Level { xid, began, released });
        }
        running
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Block { txn, tables } => self.block(*txn, tables),
            Step::Savepoint { txn } => {
                let xid = self.new_xid();
                let running = self.running(*txn);
                let (began, released) = (running.rows.len(), Vec::new());
                running.levels.push(Level { xid, began, released });
            }
            Step::Release { txn } => {
                let running = self.running(*txn);
                if running.levels.len() > 1
                    && let Some(level) = running.levels.pop()
                    && let Some(parent) = running.levels.last_mut()
                {
                    parent.released.extend(level.released);
                    parent.released.push(level.xid);
                }
            }
            Step::RollBackTo { txn, told } => {
                let running = self.running(*txn);
                if running.levels.len() > 1 {
                    let level = running.levels.pop().unwrap();
                    running.rows.truncate(level.began);
                    let (top, streamed) = (running.levels[0].xid, running.streamed);
                    self.rolled_back.extend(level.released.iter().chain([&level.xid]));
                    self.abort(top, streamed && *told, level);
                }
            }
            Step::RollBack { txn } => {
                if let Some(mut running) = self.running.remove(txn) {
                    let top = running.levels[0].xid;
                    while let Some(level) = running.levels.pop() {
                        self.abort(top, running.streamed, level);
                    }
                }
            }
            Step::Commit { txn } => self.commit(*txn),
            Step::Plain { table } => self.plain(*table),
            Step::Alter { table } => {
                if !self
                    .running
                    .values()
                    .any(|running| running.touched.contains(table))
                {
                    self.versions[*table as usize] += 1;
                    self.announced.remove(table);
                }
            }
            Step::Keepalive => {
                let at = self.next();
                self.frames.keepalive(at, false);
            }
        }
    }

    fn block(&mut self, txn: u8, tables: &[u32]) {
        let running = self.running(txn);
        let (top, xid) = (running.levels[0].xid, running.levels.last().unwrap().xid);
        let is_first = !std::mem::replace(&mut running.streamed, true);
        let start = [&b"S"[..], &top.to_be_bytes(), &[u8::from(is_first)]].concat();
        self.send(&start);
        if is_first {
            let origin = Origin {
                commit_lsn: Lsn(7),
                name: "elsewhere",
            };
            let origin = encode::origin(&origin);
            self.send(&origin);
            self.running(txn).origin = origin;
        }
        for table in tables {
            let version = self.versions[*table as usize];
            let running = self.running(txn);
            running.touched.insert(*table);
            if running.announced.insert(*table) {
                for message in announcement(*table, version) {
                    self.send(&with_xid(xid, message));
                }
            }
            let row = self.row(*table);
            self.running(txn).rows.push(row.clone());
            self.send(&with_xid(xid, row));
        }
        self.send(b"E");
    }

    fn abort(&mut self, top: u32, streamed: bool, level: Level) {
        if streamed {
            // From then on the server takes nothing for announced in this transaction.
            let of_top = self
                .running
                .values_mut()
                .find(|running| running.levels[0].xid == top);
            of_top.into_iter().for_each(|running| running.announced.clear());
            for xid in level.released.into_iter().chain([level.xid]) {
                let abort = [&b"A"[..], &top.to_be_bytes(), &xid.to_be_bytes()].concat();
                self.send(&abort);
            }
        }
    }

    fn commit(&mut self, txn: u8) {
        let Some(running) = self.running.remove(&txn).filter(|running| running.streamed) else {
            return;
        };
        let xid = running.levels[0].xid;
        let lsn = self.next();
        let rows = [vec![running.origin], running.rows].concat();
        let commit = self.wants(xid, lsn, rows);
        let streamed = [&b"c"[..], &xid.to_be_bytes(), &commit[1..]].concat();
        self.frames.message(lsn, &streamed);
        self.announced.extend(running.announced);
    }

    /// What is to come out of a transaction; returns its commit.
    fn wants(&mut self, xid: u32, lsn: Lsn, rows: Vec<Vec<u8>>) -> Vec<u8> {
        let commit_time = i64::from(xid) * 1_000_003;
        let begin = Begin {
            final_lsn: lsn,
            commit_time,
            xid,
        };
        let commit = Commit {
            commit_lsn: lsn,
            end_lsn: Lsn(lsn.0 + 8),
            commit_time,
        };
        let commit = encode::commit(&commit);
        self.wanted.push(encode::begin(&begin));
        self.wanted.extend(rows);
        self.wanted.push(commit.clone());
        commit
    }

    fn plain(&mut self, table: u32) {
        let xid = self.new_xid();
        let (lsn, row) = (self.next(), self.row(table));
        let commit = self.wants(xid, lsn, vec![row.clone()]);
        let begin = self.wanted[self.wanted.len() - 3].clone();
        self.send(&begin);
        if self.announced.insert(table) {
            for message in announcement(table, self.versions[table as usize]) {
                self.send(&message);
            }
        }
        self.send(&row);
        self.send(&commit);
    }
}

/// The messages that come out, and how many keepalives.
fn sifted(chunks: Vec<RawChunk>, rolled_back: &HashSet<u32>) -> (Vec<Vec<u8>>, usize) {
    let (mut streamed, mut out) = (StreamedFrames::default(), Vec::new());
    for mut chunk in chunks {
        streamed.sift(&mut chunk).unwrap();
        let mut more = true;
        while more {
            out.append(&mut chunk.bytes);
            more = streamed
                .next(|xid| rolled_back.contains(&xid), &mut chunk)
                .unwrap();
        }
    }
    let frames = split_frames(&out).map(|payload| parse_frame(payload.unwrap()).unwrap());
    let mut messages = Vec::new();
    let mut keepalives = 0;
    for frame in frames {
        match frame {
            Frame::XLogData { data, .. } => messages.push(data.to_vec()),
            Frame::Keepalive { .. } => keepalives += 1,
        }
    }
    (messages, keepalives)
}

/// Each row comes after the definition by which it was made.
fn expect_announced(messages: &[Vec<u8>]) {
    let mut known: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    for message in messages {
        let table = || u32::from_be_bytes(message[1..5].try_into().unwrap());
        match message[0] {
            b'R' => drop(known.insert(table(), message.clone())),
            b'I' => {
                let said = String::from_utf8_lossy(&message[12..]).into_owned();
                let version = said
                    .trim_start_matches('\0')
                    .split_whitespace()
                    .next()
                    .unwrap()
                    .to_owned();
                let name = format!("t{}", version.trim_matches(|c: char| !c.is_ascii_digit()));
                let relation = known.get(&table()).expect("an announced table");
                assert!(
                    String::from_utf8_lossy(relation).contains(&name),
                    "{name}: {relation:?}"
                );
            }
            _ => {}
        }
    }
}

fn messages_of(frames: &[u8]) -> Vec<Vec<u8>> {
    let frames = split_frames(frames).map(|payload| parse_frame(payload.unwrap()).unwrap());
    let messages = frames.filter_map(|frame| match frame {
        Frame::XLogData { data, .. } => Some(data.to_vec()),
        Frame::Keepalive { .. } => None,
    });
    messages.collect()
}

/// What is sifted, with what the lane has of it in its place.
struct WithLane {
    streamed: Streamed,
    lane: LaneModel,
    runtime: tokio::runtime::Runtime,
    answers: std::iter::Cycle<std::vec::IntoIter<bool>>,
    rolled_back: HashSet<u32>,
    /// what is handed out
    decoded: Vec<Vec<u8>>,
    /// the same with what the lane has of it
    out: Vec<Vec<u8>>,
    /// what the lane has ready
    ready: Vec<u8>,
}

impl WithLane {
    fn new(answers: Vec<bool>, rolled_back: HashSet<u32>) -> Self {
        let (ahead, lane) = LaneModel::new();
        let mut streamed = Streamed::default();
        streamed.hand_out(ahead, Lsn(1), Lsn(1));
        Self {
            streamed,
            lane,
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
            answers: answers.into_iter().cycle(),
            rolled_back,
            decoded: Vec::new(),
            out: Vec::new(),
            ready: Vec::new(),
        }
    }

    fn sift(&mut self, mut chunk: Vec<u8>) {
        self.streamed.sift(&mut chunk, 0).unwrap();
        self.take(&chunk);
        while self.streamed.has_more() {
            self.lane.listen().unwrap();
            if !self.answers.next().unwrap() {
                self.lane.give_up();
            }
            if let Some((doubtful, _)) = self.streamed.doubtful() {
                let found = doubtful
                    .iter()
                    .copied()
                    .filter(|xid| self.rolled_back.contains(xid));
                let found = found.collect();
                self.streamed.settle(found);
                self.lane.listen().unwrap();
            }
            if let Some(ahead) = self.streamed.asks_lane() {
                self.ready = self.lane.is_ready().unwrap_or_default();
                let is_ready = self.runtime.block_on(ahead.is_ready());
                assert_eq!(is_ready, !self.ready.is_empty());
                self.streamed.lane_answers(is_ready);
            }
            let mut chunk = Vec::new();
            self.streamed.fill(&mut chunk).unwrap();
            self.take(&chunk);
        }
        self.lane.listen().unwrap();
    }

    fn take(&mut self, chunk: &[u8]) {
        for message in messages_of(chunk) {
            self.decoded.push(message.clone());
            let [b'c', fields @ ..] = message.as_slice() else {
                self.out.push(message);
                continue;
            };
            // transaction 4, flags 1, commit LSN 8, end LSN 8, commit time 8
            let (xid, commit) = fields.split_at(4);
            let begin = [b"B", &commit[1..9], &commit[17..25], xid].concat();
            let mut given = std::mem::take(&mut self.ready);
            unmark(&mut given, 0, &HashSet::new()).unwrap();
            let given = messages_of(&given);
            assert_eq!(given[0][0], b'B');
            expect_announced(&given);
            self.out.push(begin);
            let changes = given.into_iter().skip(1);
            self.out
                .extend(changes.filter(|message| !matches!(message[0], b'R' | b'Y')));
            self.out.push([b"C", commit].concat());
        }
    }
}

/// What comes out and what the lane has make what the server means; how often the lane had it.
fn expect_wanted(steps: &[Step], cuts: impl Iterator<Item = usize>, answers: Vec<bool>) -> usize {
    let mut server = Server::default();
    steps.iter().for_each(|step| server.step(step));
    let cuts: Vec<usize> = cuts.filter(|cut| *cut < server.frames.ends.len()).collect();
    let mut ahead = WithLane::new(answers, server.rolled_back.clone());
    for chunk in server.frames.cut(&cuts) {
        ahead.sift(chunk.bytes);
    }
    let is_change = |message: &&Vec<u8>| !matches!(message[0], b'R' | b'Y');
    let changes: Vec<_> = ahead.out.iter().filter(is_change).cloned().collect();
    assert_eq!(changes, server.wanted);
    expect_announced(&ahead.decoded);
    ahead.decoded.iter().filter(|message| message[0] == b'c').count()
}

/// The lane has read segments of it by then.
#[test]
fn what_the_lane_was_given_is_taken_back() {
    let (txn, wide) = (0, || vec![0; 4]);
    let block = |tables| Step::Block { txn, tables };
    for told in [true, false] {
        let steps = [
            block(wide()),
            Step::Savepoint { txn },
            block(wide()),
            Step::RollBackTo { txn, told },
            block(wide()),
            Step::Commit { txn },
        ];
        assert_eq!(expect_wanted(&steps, 0..99, vec![true]), 0, "told: {told}");
    }
    let steps = [
        block(wide()),
        Step::Savepoint { txn },
        block(wide()),
        Step::Commit { txn },
    ];
    assert_eq!(expect_wanted(&steps, 0..99, vec![true]), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_comes_out_is_what_version_1_would_have_sent(
        steps in steps(),
        cuts in prop::collection::btree_set(0_usize..200, 0..5),
    ) {
        let mut server = Server::default();
        steps.iter().for_each(|step| server.step(step));
        let cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < server.frames.ends.len()).collect();
        let (messages, keepalives) = sifted(server.frames.cut(&cuts), &server.rolled_back);
        let sent = steps.iter().filter(|step| matches!(step, Step::Keepalive)).count();
        prop_assert_eq!(keepalives, sent);
        let (announcements, changes): (Vec<_>, Vec<_>) =
            messages.iter().partition(|message| matches!(message[0], b'R' | b'Y'));
        prop_assert_eq!(announcements.iter().filter(|m| m[0] == b'R').count() * 2, announcements.len());
        prop_assert_eq!(changes.into_iter().cloned().collect::<Vec<_>>(), server.wanted);
        expect_announced(&messages);
    }

    /// With a lane that gives up now and then, what comes out and what it was given make the same.
    #[test]
    fn what_goes_ahead_is_what_the_rest_lacks(
        steps in steps(),
        cuts in prop::collection::btree_set(0_usize..200, 0..9),
        answers in prop::collection::vec(prop::bool::weighted(0.95), 1..30),
    ) {
        expect_wanted(&steps, cuts.into_iter(), answers);
    }

    #[test]
    fn any_bytes_are_refused_or_passed_on(bytes in prop::collection::vec(
        prop::collection::vec(prop_oneof![
            Just(b'S'), Just(b'E'), Just(b'c'), Just(b'A'), Just(b'R'), Just(b'I'), Just(b'T'), Just(0), Just(1), any::<u8>()
        ], 0..40), 0..8)) {
        let mut frames = Frames::default();
        for message in &bytes {
            frames.message(Lsn(1), message);
        }
        let mut streamed = Streamed::default();
        let mut chunk = frames.bytes;
        let mut ended = streamed.sift(&mut chunk, 0);
        while ended.is_ok() && streamed.has_more() {
            streamed.settle(HashSet::new());
            chunk.clear();
            ended = streamed.fill(&mut chunk);
        }
    }
}
