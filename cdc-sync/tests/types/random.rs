//! Random values through the seed and the stream: keys of every type that can be one, and every pattern of bits that a
//! floating-point number can have. The seeds are fixed; the long tier draws more.

use std::fmt::Write as _;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use testbed::{Pair, compare};

use super::set_against_each_other;

/// Types of keys, and an expression for a value of each; `{}` stands for what was drawn.
struct Key {
    type_name: &'static str,
    value: &'static str,
    drawn: BoxedStrategy<String>,
}

fn key<T: ToString + std::fmt::Debug>(
    type_name: &'static str,
    value: &'static str,
    drawn: impl Strategy<Value = T> + 'static,
) -> Key {
    Key {
        type_name,
        value,
        drawn: drawn.prop_map(|value| value.to_string()).boxed(),
    }
}

fn keys() -> Vec<Key> {
    let text = || "[^\\x00]{0,40}".prop_map(|text| text.replace('\'', "''"));
    let digits = "-?[0-9]{1,30}(\\.[0-9]{1,20})?";
    let micros = || -200_000_000_000_000_000_i64..200_000_000_000_000_000;
    let after = "timestamp '2000-01-01' + {} * interval '1 microsecond'";
    vec![
        key("smallint", "'{}'", any::<i16>()),
        key("integer", "'{}'", any::<i32>()),
        key("bigint", "'{}'", any::<i64>()),
        key("oid", "'{}'", any::<u32>()),
        key("boolean", "'{}'", any::<bool>()),
        key("numeric", "'{}'", digits),
        key("numeric(40,7)", "'{}'", digits),
        key("money", "'{}'::numeric / 100::numeric", any::<i32>()),
        key("double precision", "'{}'", any::<u64>().prop_map(double)),
        key("real", "'{}'", any::<u32>().prop_map(single)),
        key("text", "'{}'", text()),
        key("text COLLATE \"C\"", "'{}'", text()),
        key("varchar(60)", "'{}'", text()),
        key("char(12)", "'{}'", "[a-zA-Z ]{0,12}"),
        key("name", "'{}'", "[a-zA-Z \"]{0,60}"),
        key("\"char\"", "'{}'", "[ -&(-~]?"),
        key("bytea", "decode('{}', 'hex')", "([0-9a-f]{2}){0,40}"),
        key("uuid", "'{}'", "[0-9a-f]{32}"),
        key("bit varying", "B'{}'", "[01]{0,80}"),
        key("date", "date '2000-01-01' + {}", -700_000..5_000_000),
        key("timestamp", after, micros()),
        key(
            "timestamptz",
            "timestamptz '2000-01-01' + {} * interval '1 microsecond'",
            micros(),
        ),
        key(
            "time",
            "'{}'",
            "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\\.[0-9]{6}",
        ),
        key(
            "timetz",
            "'{}'",
            "[01][0-9]:[0-5][0-9]:[0-5][0-9][+-]1[0-5]:[0-5][0-9]:[0-5][0-9]",
        ),
        key(
            "interval",
            "'{}'",
            "-?[0-9]{1,4} mons -?[0-9]{1,6} days -?[0-9]{1,9}\\.[0-9]{1,6} secs",
        ),
        key("inet", "'{}'", "(1[0-9]{2}\\.){3}2[0-4][0-9](/[12][0-9])?"),
        key("macaddr", "'{}'", "([0-9a-f]{2}:){5}[0-9a-f]{2}"),
        key("int4range", "'[{},)'", any::<i32>()),
        key(
            "jsonb",
            "'{\"a\": {}}'",
            "(0|-?[1-9][0-9]{0,25})(\\.[0-9]{1,10})?",
        ),
        key(
            "integer[]",
            "'{{}}'",
            "[1-9][0-9]{0,8}(,(NULL|-?[1-9][0-9]{0,8})){0,5}",
        ),
        key("text[]", "ARRAY['{}']", text()),
        key("small", "'{}'", "[0-9]{1,5}\\.[0-9]{1,9}"),
    ]
}

/// As PostgreSQL reads it: the shortest digits that lead back to the same bits.
fn double(bits: u64) -> String {
    format!("{:?}", f64::from_bits(bits))
}

fn single(bits: u32) -> String {
    format!("{:?}", f32::from_bits(bits))
}

fn draw(runner: &mut TestRunner, from: &BoxedStrategy<String>) -> String {
    from.new_tree(runner).expect("a value").current()
}

/// Statements that insert `count` drawn keys into each table, those numbered from `first` on.
fn insert(runner: &mut TestRunner, keys: &[Key], first: usize, count: usize) -> String {
    let mut script = String::new();
    for (number, key) in keys.iter().enumerate() {
        let rows: Vec<String> = (first..first + count)
            .map(|n| {
                let value = key.value.replacen("{}", &draw(runner, &key.drawn), 1);
                format!("SELECT ({value})::{}, {n}", key.type_name)
            })
            .collect();
        let rows = rows.join(" UNION ALL ");
        writeln!(script, "INSERT INTO key_{number} {rows} ON CONFLICT DO NOTHING;").expect("a string");
    }
    script
}

/// What the databases were set to does not hold for our own statements.
fn clean() -> String {
    format!("{}SET search_path = public;", super::tables::CLEAN)
}

fn numbers() -> usize {
    if testbed::runs_long_tier() { 2_000 } else { 60 }
}

#[test]
fn random_keys_of_every_type_find_their_rows() {
    let pair = Pair::start(14, 17).expect("two servers");
    set_against_each_other(&pair, ["SQL, DMY", "German"]);
    let (keys, mut runner) = (keys(), TestRunner::deterministic());
    let mut script = clean() + "CREATE DOMAIN small AS numeric(15,5);";
    for (number, key) in keys.iter().enumerate() {
        let of = key.type_name;
        writeln!(script, "CREATE TABLE key_{number} (k {of} PRIMARY KEY, n int);").expect("a string");
    }
    script += &insert(&mut runner, &keys, 0, numbers());
    pair.on_blue(&script).expect("the seed");
    pair.verb(&["run", "--until-caught-up"], 0).expect("a run");
    let each = |statement: &str| -> String {
        let all =
            (0..keys.len()).map(|number| format!("{};", statement.replace("{}", &format!("key_{number}"))));
        clean() + &all.collect::<String>()
    };
    for (step, script) in [
        (
            "inserts",
            clean() + &insert(&mut runner, &keys, numbers(), numbers()),
        ),
        // Each row by its key, also those that were not seeded, several times in one transaction.
        ("updates", each("UPDATE {} SET n = n + 100000 WHERE n % 3 > 0")),
        (
            "changes",
            each(
                "BEGIN; UPDATE {} SET n = -n WHERE n % 2 = 0; UPDATE {} SET n = n - 1; DELETE FROM {} WHERE n % 5 = 0; COMMIT",
            ),
        ),
    ] {
        pair.on_blue(&script).expect(step);
        pair.verb(&["run", "--until-caught-up"], 0).expect(step);
        let [blue, green] = pair.urls();
        assert_eq!(compare::databases(&blue, &green).expect(step), [], "{step}");
    }
    let rows = compare::row_counts(&pair.urls()[0]).expect("blue counts");
    assert!(rows.values().filter(|rows| **rows > 20).count() > 28, "{rows:?}");
}

#[test]
fn random_bits_of_floating_point_numbers_arrive() {
    let pair = Pair::start(12, 18).expect("two servers");
    set_against_each_other(&pair, ["SQL, DMY", "German"]);
    let mut runner = TestRunner::deterministic();
    let mut script = |first: usize| -> String {
        let rows: Vec<String> = (first..first + 10 * numbers())
            .map(|n| {
                // Any bits, and of those that are rare by chance: no exponent, or all of it.
                let [many, few] =
                    [any::<u64>(), any::<u64>()].map(|of| of.new_tree(&mut runner).expect("bits").current());
                let rare = [0, 0x7FF0_0000_0000_0000][n % 2] | (many & 0x800F_FFFF_FFFF_FFFF);
                let one = match n {
                    0 => double(1 << 63),
                    1 => double(0x7FF0_0000_0000_0000),
                    2 => double(0xFFF0_0000_0000_0000),
                    3 => double(1),
                    _ => double(many),
                };
                let narrow = single((few >> 32) as u32);
                let subnormal = single((few & 0x807F_FFFF) as u32);
                format!("({n}, '{one}', '{}', '{narrow}', '{subnormal}')", double(rare))
            })
            .collect();
        format!("INSERT INTO public.floats VALUES {};", rows.join(","))
    };
    pair.on_blue(&format!(
        "CREATE TABLE public.floats (id int PRIMARY KEY, a float8, b float8, c float4, d float4); {}",
        script(0)
    ))
    .expect("the seed");
    pair.verb(&["run", "--until-caught-up"], 0).expect("a run");
    pair.on_blue(&script(1_000_000)).expect("inserts");
    pair.on_blue("UPDATE public.floats SET a = b, b = a, c = d, d = c WHERE id % 2 = 0")
        .expect("updates");
    pair.verb(&["run", "--until-caught-up"], 0).expect("a run");
    // By their bits: a text would hide what it was rounded to.
    let bits = "SELECT count(*), md5(string_agg(id || encode(float8send(a) || float8send(b) || float4send(c) || float4send(d), \
                'hex'), ',' ORDER BY id)) FROM public.floats";
    let [blue, green] = [pair.on_blue(bits), pair.on_green(bits)].map(|bits| bits.expect("an answer"));
    assert!(blue.starts_with(&(20 * numbers()).to_string()), "{blue}");
    assert_eq!(blue, green);
}
