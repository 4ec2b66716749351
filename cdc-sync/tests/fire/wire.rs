//! Connections that break at seeded bytes and at the borders of messages, each kind of connection by itself.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use testbed::pair::LIMIT;
use testbed::proxy::{Act, Aim, Direction, Place};
use testbed::{Process, Proxy, process};

use super::lane::{Lane, POLL};
use super::{report, servers};

/// A kind of connection: what its client sends and no other does, on which side, and whether it belongs to the seed.
#[derive(Clone, Copy, Debug)]
struct Kind {
    name: &'static str,
    text: &'static str,
    on_blue: bool,
    seeds: bool,
    /// the largest power of two of bytes, and of messages, after which it is hit
    reach: (u32, u32),
    /// of a hundred hits of one that says much
    share: usize,
}

const fn kind(name: &'static str, text: &'static str, on_blue: bool, seeds: bool, reach: (u32, u32)) -> Kind {
    Kind {
        name,
        text,
        on_blue,
        seeds,
        reach,
        share: 100,
    }
}

impl Kind {
    /// One that says little, or half of a kind.
    const fn share(self, share: usize) -> Kind {
        Kind { share, ..self }
    }

    fn hits(&self, each: usize) -> usize {
        (each * self.share).div_ceil(100)
    }
}

const KINDS: [Kind; 7] = [
    kind("walsender", "START_REPLICATION", true, false, (14, 8)),
    kind("apply", "cdc_sync.hold_fence($1::text", false, false, (12, 7)),
    kind("COPY out", " TO STDOUT", true, true, (13, 5)),
    kind("COPY in", " FROM STDIN", false, true, (12, 3)),
    kind("slot", "CREATE_REPLICATION_SLOT", true, true, (6, 1)).share(30),
    kind("catalog of blue", "-c extra_float_digits", true, true, (11, 5)).share(50),
    kind("catalog of green", "-c extra_float_digits", false, true, (11, 5)).share(50),
];

/// Where a connection is hit.
#[derive(Clone, Copy, Debug)]
struct Hit {
    kind: Kind,
    aim: Aim,
}

/// Small, seeded, good enough to spread places (Knuth's MMIX generator).
struct Places(u64);

impl Places {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// As likely between 2 and 4 as between 1000 and 2000: most borders are early.
    fn spread(&mut self, power: u32) -> u64 {
        let power = self.below(u64::from(power) + 1);
        self.below(1 << power)
    }

    fn hit(&mut self, kind: Kind, act: Act) -> Hit {
        let (bytes, messages) = kind.reach;
        let place = match self.below(2) {
            0 => Place::Bytes(self.spread(bytes)),
            _ => Place::Message {
                number: self.spread(messages),
                off: self.below(3).cast_signed() - 1,
            },
        };
        let direction = match self.below(2) {
            0 => Direction::ToServer,
            _ => Direction::ToClient,
        };
        // What a slot's connection and a walsender say is short.
        let says_little = kind.name == "slot" || kind.name == "walsender";
        let aim = Aim {
            text: kind.text,
            // No seed has fewer sessions that ask the catalog.
            skip: if kind.name.starts_with("catalog") {
                self.below(8) as u32
            } else {
                0
            },
            direction: if says_little {
                Direction::ToClient
            } else {
                direction
            },
            place,
            act,
        };
        Hit { kind, aim }
    }
}

const SEED: u64 = 20_261_122;
const LANES: usize = 3;

/// Rounds after which a lane takes new databases: every row is compared after each hit, and every load adds rows.
const ROUNDS_A_DATABASE: usize = 20;

#[test]
fn connections_cut_at_any_byte_lose_nothing_and_repeat_nothing() {
    let each = if testbed::runs_long_tier() { 200 } else { 2 };
    try_each("cut", Act::Cut, each);
}

/// They stay open and pass nothing any more. How long that is borne is a minute; here it is less.
#[test]
fn connections_frozen_at_any_byte_are_given_up() {
    let each = if testbed::runs_long_tier() { 30 } else { 1 };
    try_each("frozen", Act::Freeze, each);
}

fn try_each(name: &str, act: Act, each: usize) {
    let mut places = Places(SEED);
    let mut seeding = Vec::new();
    let mut following = Vec::new();
    for kind in KINDS {
        let hits = (0..kind.hits(each)).map(|_| places.hit(kind, act));
        if kind.seeds {
            seeding.extend(hits)
        } else {
            following.extend(hits)
        }
    }
    let (all, tried) = (seeding.len() + following.len(), AtomicUsize::new(0));
    let (seeding, following) = (Mutex::new(seeding), Mutex::new(following));
    let missed = Mutex::new(Vec::new());
    let next = |of: &Mutex<Vec<Hit>>| of.lock().expect("no other lane failed").pop();
    std::thread::scope(|scope| {
        for number in 0..LANES {
            let (seeding, following, missed, next, tried) = (&seeding, &following, &missed, &next, &tried);
            scope.spawn(move || {
                let note = |hit: Hit, was_hit: bool| {
                    if !was_hit {
                        missed.lock().expect("no other lane failed").push(hit);
                    }
                    let tried = tried.fetch_add(1, Ordering::Relaxed) + 1;
                    if tried.is_multiple_of(100) {
                        eprintln!("{name}: {tried} of {all}");
                    }
                };
                let mut lane = Lane::new(&format!("{name}_{number}"));
                for round in 1.. {
                    let (seed, follow) = (next(seeding), next(following));
                    if seed.is_none() && follow.is_none() {
                        break;
                    }
                    if round % ROUNDS_A_DATABASE == 0 {
                        lane.remove();
                        lane = Lane::new(&format!("{name}_{number}_{round}"));
                    }
                    if let Some(hit) = seed {
                        if lane.has_checkpoint() {
                            lane.clear();
                        }
                        note(hit, seed_through(&mut lane, hit));
                    }
                    if let Some(hit) = follow {
                        if !lane.has_checkpoint() {
                            lane.assert_whole("new databases");
                        }
                        follow_through(&mut lane, hit);
                        note(hit, true);
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().expect("no lane failed");
    eprintln!("{} of {all} places were not reached: {missed:?}", missed.len());
    assert!(missed.len() * 3 <= all, "most places must be reached");
}

/// A proxy before each server, aimed at one connection.
fn proxies(hit: Hit) -> [Proxy; 2] {
    let proxies =
        [&servers().blue, &servers().green].map(|server| Proxy::start(server.port()).expect("a proxy"));
    proxies[usize::from(!hit.kind.on_blue)].aim(hit.aim);
    proxies
}

fn has_hit(proxies: &[Proxy; 2]) -> bool {
    proxies.iter().any(Proxy::has_hit)
}

fn through(lane: &Lane, proxies: &[Proxy; 2], hit: Hit, arguments: &[&str]) -> Process {
    let binary = match hit.aim.act {
        Act::Freeze => process::cdc_sync_with_failpoints(),
        _ => process::cdc_sync(),
    };
    let ports = [&proxies[0], &proxies[1]].map(Proxy::port);
    let mut command = lane.between(binary.expect("the binary"), arguments, ports);
    command.env("CDC_SYNC_PATIENCE_MS", "2000");
    Process::spawn(command).expect("run starts")
}

fn seed_through(lane: &mut Lane, hit: Hit) -> bool {
    let proxies = proxies(hit);
    let mut running = through(lane, &proxies, hit, &["run", "--until-caught-up"]);
    let load = lane.load_from_checkpoint(&mut running);
    let ended = running.wait_timeout(LIMIT).expect("it ends");
    // What is asked before the job is taken up is not asked again: the start has failed.
    let at_start = ended.code() == Some(12) && hit.kind.name.starts_with("catalog");
    assert!(
        ended.code() == Some(0) || at_start,
        "{hit:?}: {:?}\n{}\n{}",
        ended.code(),
        ended.stdout,
        ended.stderr
    );
    if let Some(load) = load {
        lane.book(load);
    }
    let was_hit = has_hit(&proxies);
    lane.assert_whole(&format!("{hit:?}"));
    was_hit
}

fn follow_through(lane: &mut Lane, hit: Hit) {
    let proxies = proxies(hit);
    let mut running = through(lane, &proxies, hit, &["run"]);
    let load = lane.load();
    // The load writes until it is told to stop: every place is reached, however slow the machine.
    let deadline = Instant::now() + LIMIT;
    while !has_hit(&proxies) {
        assert!(running.is_running(), "{hit:?}: {}", running.stderr());
        assert!(
            Instant::now() < deadline,
            "{hit:?}: it is not reached\n{}",
            running.stderr()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let written = lane.on_blue("SELECT pg_current_wal_insert_lsn()");
    let applied = format!("SELECT position::pg_lsn >= '{written}' FROM cdc_sync.checkpoint");
    let deadline = Instant::now() + LIMIT;
    while lane.on_green(&applied) != "t" {
        assert!(running.is_running(), "{hit:?}: {}", running.stderr());
        assert!(
            Instant::now() < deadline,
            "{hit:?}: it does not go on\n{}",
            running.stderr()
        );
        std::thread::sleep(POLL);
    }
    lane.book(load);
    running.sigterm().expect("the signal arrives");
    report(running, 0);
    lane.assert_whole(&format!("{hit:?}"));
}
