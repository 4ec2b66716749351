//! Reading values as typed ones, type by type: what a sink of another encoding does with every cell.

use std::hint::black_box;
use std::time::Duration;

use cdc_core::ColumnSchema;
use cdc_core::model::CellReader;
use cdc_core::testing::Rng;
use cdc_postgres::text::{PG_TEXT, TextReader, data_type};
use criterion::{Criterion, Throughput};

/// Values of each type that are read in turn.
const VALUES: usize = 1000;

/// A type by its name and OID, and how its `n`-th value is written.
type Kind = (&'static str, u32, fn(&mut Rng) -> String);

const KINDS: [Kind; 17] = [
    ("bool", 16, |rng| {
        String::from(if rng.percent(50) { "t" } else { "f" })
    }),
    ("int2", 21, |rng| (rng.next_u64() as i16).to_string()),
    ("int4", 23, |rng| (rng.next_u64() as i32).to_string()),
    ("int8", 20, |rng| rng.next_u64().cast_signed().to_string()),
    ("float4", 700, |rng| {
        format!("{}.{}", rng.below(1_000), rng.below(1_000))
    }),
    ("float8", 701, |rng| {
        format!("{}.{}", rng.below(1_000_000), rng.below(1_000_000))
    }),
    ("numeric", 1700, |rng| {
        format!("{}.{:02}", rng.below(1_000_000_000), rng.below(100))
    }),
    ("text-20", 25, |rng| letters(rng, 20)),
    ("text-1000", 25, |rng| letters(rng, 1000)),
    ("bytea-100", 17, |rng| {
        format!("\\x{}", format!("{:016x}", rng.next_u64()).repeat(13))
    }),
    ("date", 1082, day),
    ("time", 1083, time_of_day),
    ("timestamp", 1114, |rng| {
        format!("{} {}", day(rng), time_of_day(rng))
    }),
    ("timestamptz", 1184, |rng| {
        format!("{} {}+00", day(rng), time_of_day(rng))
    }),
    ("uuid", 2950, |rng| {
        let (high, low) = (rng.next_u64(), rng.next_u64());
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }),
    ("json", 114, object),
    ("jsonb", 3802, object),
];

fn letters(rng: &mut Rng, length: usize) -> String {
    (0..length)
        .map(|_| char::from(b'a' + rng.below(26) as u8))
        .collect()
}

fn object(rng: &mut Rng) -> String {
    format!(
        "{{\"name\": \"{}\", \"number\": {}}}",
        letters(rng, 20),
        rng.below(1000)
    )
}

fn day(rng: &mut Rng) -> String {
    format!(
        "{:04}-{:02}-{:02}",
        1950 + rng.below(100),
        1 + rng.below(12),
        1 + rng.below(28)
    )
}

fn time_of_day(rng: &mut Rng) -> String {
    format!(
        "{:02}:{:02}:{:02}.{:06}",
        rng.below(24),
        rng.below(60),
        rng.below(60),
        rng.below(1_000_000)
    )
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("value");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    for (name, oid, write) in KINDS {
        let mut rng = Rng::new(u64::from(oid));
        let texts: Vec<String> = (0..VALUES).map(|_| write(&mut rng)).collect();
        let column = ColumnSchema {
            name: "v".into(),
            data_type: data_type(oid, -1, None),
            declared: "".into(),
            encoding: PG_TEXT,
            identity: false,
        };
        group.throughput(Throughput::ElementsAndBytes {
            elements: VALUES as u64,
            bytes: texts.iter().map(|text| text.len() as u64).sum(),
        });
        group.bench_function(name, |b| {
            b.iter(|| {
                for text in &texts {
                    black_box(TextReader.value(&column, text.as_bytes())).unwrap();
                }
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
