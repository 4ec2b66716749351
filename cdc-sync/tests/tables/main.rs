//! What tables can be like, and what can be done to them: through seed and stream, merged in one large group and
//! followed as it happens, on the oldest and a recent server.

mod cases;
mod effects;
mod foreign_keys;
mod partitions;
mod sequences;

use cases::{CASES, Case};
use testbed::pair::LIMIT;
use testbed::{Pair, PgCluster};

fn pair(old: u16, new: u16) -> Pair {
    let start = |major| {
        let cluster = PgCluster::builder(major)
            .setting("max_prepared_transactions", "10")
            .start()
            .unwrap();
        cluster.create_database(Pair::DATABASE).unwrap();
        cluster
    };
    Pair::of(start(old), start(new))
}

/// Runs a case's changes for the `pass`-th time; `{n}` stands for the number. A statement ends with `;;`, so that each is
/// a transaction of its own and bodies of functions can hold semicolons.
fn change(pair: &Pair, case: &Case, pass: usize) {
    for statement in case
        .changes
        .split(";;")
        .filter(|statement| !statement.trim().is_empty())
    {
        pair.on_blue(&statement.replace("{n}", &pass.to_string()))
            .unwrap_or_else(|error| panic!("{}, pass {pass}: {error:#}\n{statement}", case.name));
    }
}

/// How a job stands on its servers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ground {
    /// superusers, and a target that is bare
    Bare,
    /// roles for which triggers fire and foreign keys are checked, and a target that is bare
    Plain,
    /// the same, and a target that has the tables and other rows
    PlainOccupied,
}

fn every_table(old: u16, new: u16, ground: Ground) {
    let mut pair = pair(old, new);
    let cases: Vec<&Case> = CASES.iter().filter(|case| old >= case.from).collect();
    for case in &cases {
        pair.on_blue(case.setup)
            .unwrap_or_else(|error| panic!("{}: {error:#}", case.name));
    }
    let quieten = |pair: &Pair| {
        for case in &cases {
            pair.on_green(case.when_triggers_fire).unwrap();
        }
    };
    match ground {
        Ground::Bare => {}
        Ground::Plain => pair.use_plain_roles().unwrap(),
        Ground::PlainOccupied => {
            for case in &cases {
                pair.on_green(case.setup)
                    .unwrap_or_else(|error| panic!("{}: {error:#}", case.name));
            }
            quieten(&pair);
            pair.use_plain_roles().unwrap();
        }
    }
    pair.verb(&["run", "--until-caught-up", "--truncate-target"], 0)
        .unwrap();
    if ground == Ground::Plain {
        quieten(&pair);
    }
    pair.assert_equal().unwrap();
    // Gathered while nobody reads: as few and as large groups as there can be.
    for case in &cases {
        change(&pair, case, 1);
    }
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    pair.assert_equal().unwrap();
    // As it happens.
    let mut running = pair.spawn(&["run"]).unwrap();
    running.wait_for("stream started", LIMIT).unwrap();
    for case in &cases {
        change(&pair, case, 2);
    }
    running.sigterm().unwrap();
    let ended = running.wait_timeout(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    let drained = pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    pair.assert_equal().unwrap();

    let changes = &drained["changes"];
    assert_eq!(changes["read"], changes["applied"], "{drained}");
    for case in &cases {
        for (query, wanted) in case.on_green {
            assert_eq!(pair.on_green(query).unwrap(), *wanted, "{}: {query}", case.name);
        }
    }
}

#[test]
fn every_table_of_the_oldest_server() {
    every_table(12, 18, Ground::Bare);
}

#[test]
fn every_table_of_a_recent_server() {
    every_table(18, 18, Ground::Bare);
}

/// On 14 nobody but a superuser may set `session_replication_role`.
#[test]
fn every_table_where_triggers_fire() {
    every_table(12, 14, Ground::PlainOccupied);
    if testbed::runs_long_tier() {
        every_table(12, 14, Ground::Plain);
        every_table(17, 18, Ground::Plain);
        every_table(17, 18, Ground::PlainOccupied);
    }
}
