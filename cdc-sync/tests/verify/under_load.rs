//! Differences of each kind, planted on green beside a running job while blue is written, and counted exactly.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::pair::LIMIT;
use testbed::{Pair, Process};

use super::job::Writer;

/// The key of the row with a number, as the report prints it.
type Key = fn(u64) -> Value;

/// How a kind of difference is planted into its own table, and what it must be counted as.
struct Planted {
    table: &'static str,
    /// makes $n of them on green
    plant: &'static str,
    /// how many missing, extra and different rows one of them is
    counts: [u64; 3],
    /// the keys and their kinds, in the order of the report
    keys: &'static [(Key, &'static str)],
}

fn id(number: u64) -> Value {
    json!({ "id": number.to_string() })
}

const EACH: &[Planted] = &[
    Planted {
        table: "missing",
        plant: "DELETE FROM missing WHERE id <= $n",
        counts: [1, 0, 0],
        keys: &[(id, "missing")],
    },
    Planted {
        table: "extra",
        plant: "INSERT INTO extra SELECT 100000 + i FROM generate_series(1, $n) i",
        counts: [0, 1, 0],
        keys: &[(|number| id(100_000 + number), "extra")],
    },
    Planted {
        table: "changed",
        plant: "UPDATE changed SET v = v || '!' WHERE id <= $n",
        counts: [0, 0, 1],
        keys: &[(id, "different")],
    },
    Planted {
        table: "null_for_empty",
        plant: "UPDATE null_for_empty SET e = NULL WHERE id <= $n",
        counts: [0, 0, 1],
        keys: &[(id, "different")],
    },
    Planted {
        table: "negative_zero",
        plant: "UPDATE negative_zero SET f = '-0' WHERE id <= $n",
        counts: [0, 0, 1],
        keys: &[(id, "different")],
    },
    Planted {
        table: "blank_in_text",
        plant: "UPDATE blank_in_text SET v = v || ' ' WHERE id <= $n",
        counts: [0, 0, 1],
        keys: &[(id, "different")],
    },
    Planted {
        table: "blank_in_varchar",
        plant: "UPDATE blank_in_varchar SET w = w || ' ' WHERE id <= $n",
        counts: [0, 0, 1],
        keys: &[(id, "different")],
    },
    // Blanks that the type itself fills up are no difference.
    Planted {
        table: "blank_in_char",
        plant: "UPDATE blank_in_char SET c = 'c  ' WHERE id <= $n",
        counts: [0, 0, 0],
        keys: &[],
    },
    Planted {
        table: "collation_equal",
        plant: "UPDATE collation_equal SET l = upper(l) WHERE id <= $n",
        counts: [0, 0, 1],
        keys: &[(id, "different")],
    },
    // By its bytes the one key is missing and another there.
    Planted {
        table: "collation_equal_key",
        plant: "UPDATE collation_equal_key SET k = upper(k) WHERE k <= 'k' || to_char($n, 'FM00000')",
        counts: [1, 1, 0],
        keys: &[
            (|number| json!({ "k": format!("K{number:05}") }), "extra"),
            (|number| json!({ "k": format!("k{number:05}") }), "missing"),
        ],
    },
];

const BY_TEXT: &str = "collation_equal_key";
const NUMBERS: [u64; 3] = [0, 1, 1000];
/// Rows that are planted into have the ids to 2000, rows that blue writes those above.
const ROW: &str = "SELECT i, 'v' || i, '', 0, 'c', 'w' || i, 'l' || i";

fn by_id() -> impl Iterator<Item = &'static str> {
    EACH.iter()
        .map(|planted| planted.table)
        .filter(|table| *table != BY_TEXT)
}

fn schema() -> String {
    let mut schema = format!(
        "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TABLE other (id int PRIMARY KEY, v int); INSERT INTO other SELECT i, 0 FROM generate_series(1, 500) i;
         CREATE TABLE {BY_TEXT} (k text COLLATE loose PRIMARY KEY, v int);
         INSERT INTO {BY_TEXT} SELECT 'k' || to_char(i, 'FM00000'), i FROM generate_series(1, 2500) i;"
    );
    for table in by_id() {
        schema += &format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, v text, e text, f float8, c char(8), w varchar(20),
                l text COLLATE loose);
             INSERT INTO {table} {ROW} FROM generate_series(1, 2500) i;"
        );
    }
    schema
}

/// One transaction of blue's load: each table has a row changed, one replaced and one that comes and goes.
fn load(number: u64) -> String {
    let row = 2001 + number % 250;
    let mut script = format!(
        "BEGIN; UPDATE other SET v = v + 1 WHERE id = {}; \
         UPDATE {BY_TEXT} SET v = v + 1 WHERE k = 'k{row:05}'; \
         DELETE FROM {BY_TEXT} WHERE v = {0} + 250 AND k > 'k02000';",
        number % 500 + 1
    );
    for table in by_id() {
        script += &format!(
            "UPDATE {table} SET v = 'n{number}', f = -f, l = upper(l) WHERE id = {row}; \
             DELETE FROM {table} WHERE id = {row} + 250; INSERT INTO {table} (id, v) VALUES ({row} + 250, 'n{number}');"
        );
    }
    script + "COMMIT"
}

/// Puts green's rows to 2000 back to what blue has.
fn mend() -> String {
    let mut script = format!("UPDATE {BY_TEXT} SET k = lower(k) WHERE k <= 'k02000';");
    for table in by_id() {
        script += &format!(
            "DELETE FROM {table} WHERE id <= 2000 OR id > 100000; \
             INSERT INTO {table} {ROW} FROM generate_series(1, 2000) i;"
        );
    }
    script
}

/// On green as the job itself writes there: no trigger fires.
fn on_green(pair: &Pair, script: &str) {
    let script = format!("SET session_replication_role = replica; BEGIN; {script}; COMMIT");
    pair.on_green(&script).unwrap();
}

fn wait_until_verifiable(pair: &Pair, running: &mut Process) {
    let deadline = Instant::now() + LIMIT;
    let complete = "SELECT NOT schema_pending FROM cdc_sync.stream";
    while pair.on_green(complete).ok().as_deref() != Some("t") {
        assert!(running.is_running(), "{}", running.stderr());
        assert!(Instant::now() < deadline, "no seed\n{}", running.stderr());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn assert_found(report: &Value, planted: &Planted, number: u64) {
    let name = format!("public.{}", planted.table);
    let tables = report["tables"].as_array().unwrap();
    let table = tables.iter().find(|table| table["name"] == name).unwrap();
    assert_eq!(table["unverifiable"], Value::Null, "{name}");
    let counted = ["missing", "extra", "different"].map(|kind| table[kind].as_u64().unwrap());
    assert_eq!(
        counted,
        planted.counts.map(|count| count * number),
        "{name} with {number}"
    );
    let (keys, kinds): (Vec<Value>, Vec<Value>) = planted
        .keys
        .iter()
        .flat_map(|(key, kind)| (1..=number).map(move |number| (key(number), json!(kind))))
        .take(100)
        .unzip();
    assert_eq!(
        (&table["keys"], &table["kinds"]),
        (&json!(keys), &json!(kinds)),
        "{name} with {number}"
    );
}

#[test]
fn planted_differences_are_counted_exactly_while_blue_is_written() {
    let pair = Pair::start(12, 18).unwrap();
    pair.on_blue(&schema()).unwrap();
    let writer = Writer::with(&pair.urls()[0], load);
    let mut running = pair.spawn(&["run"]).unwrap();
    wait_until_verifiable(&pair, &mut running);
    for number in NUMBERS {
        for planted in EACH {
            on_green(&pair, &planted.plant.replace("$n", &number.to_string()));
        }
        let report = pair.verb(&["verify"], if number == 0 { 0 } else { 5 }).unwrap();
        assert_eq!(report["alignment"], "running", "{report}");
        for planted in EACH {
            assert_found(&report, planted, number);
        }
        let each: u64 = EACH.iter().flat_map(|planted| planted.counts).sum();
        assert_eq!(report["differences"], each * number, "{report}");
        on_green(&pair, &mend());
        let mended = pair.verb(&["verify"], 0).unwrap();
        assert_eq!(
            (&mended["alignment"], &mended["differences"]),
            (&json!("running"), &json!(0))
        );
    }
    assert!(writer.stop() > 20);
    running.sigterm().unwrap();
    let ended = running.wait_timeout(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    // What blue wrote last may not have arrived before the stop.
    pair.verb(&["run", "--until-caught-up"], 0).unwrap();
    pair.assert_equal().unwrap();
}
