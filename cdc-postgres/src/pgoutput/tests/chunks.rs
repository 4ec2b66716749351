//! Any history, encoded and cut into chunks anywhere, decodes to itself.

use proptest::prelude::*;

use super::super::encode::Old;
use super::*;

/// A column as generated: `None` is NULL.
type Value = Option<Vec<u8>>;

#[derive(Clone, Debug)]
enum Change {
    Insert(u8, [Value; 3]),
    Update(u8, Option<[Value; 3]>, [Value; 3], [bool; 3]),
    Delete(u8, [Value; 3]),
    Truncate(bool, bool),
}

fn value() -> impl Strategy<Value = Value> {
    prop::option::weighted(0.8, prop::collection::vec(any::<u8>(), 0..20))
}

fn values() -> impl Strategy<Value = [Value; 3]> {
    [value(), value(), value()]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0..3u8, values()).prop_map(|(table, new)| Change::Insert(table, new)),
        (0..3u8, prop::option::of(values()), values(), any::<[bool; 3]>())
            .prop_map(|(table, old, new, unchanged)| Change::Update(table, old, new, unchanged)),
        (0..3u8, values()).prop_map(|(table, old)| Change::Delete(table, old)),
        (any::<bool>(), any::<bool>()).prop_map(|(cascade, restart)| Change::Truncate(cascade, restart)),
    ]
}

/// Table 0 and 1 have a key (`id`), table 2 has full identity.
fn is_full(table: u8) -> bool {
    table == 2
}

fn id(table: u8) -> u32 {
    T + u32::from(table)
}

fn fields(values: &[Value; 3]) -> [Field<'_>; 3] {
    values
        .each_ref()
        .map(|value| value.as_deref().map_or(Field::Null, Field::Text))
}

/// The old tuple as a server sends it.
fn old_fields(table: u8, values: &[Value; 3]) -> [Field<'_>; 3] {
    let mut fields = fields(values);
    if !is_full(table) {
        fields[1] = Field::Null;
        fields[2] = Field::Null;
    }
    fields
}

fn encoded(change: &Change) -> Vec<u8> {
    let old = |table, fields| {
        if is_full(table) {
            Old::Full(fields)
        } else {
            Old::Key(fields)
        }
    };
    match change {
        Change::Insert(table, new) => encode::insert(id(*table), &fields(new)),
        Change::Update(table, before, new, unchanged) => {
            let before = before.as_ref().map(|before| old_fields(*table, before));
            let before = before.as_ref().map(|before| old(*table, &before[..]));
            let mut new = fields(new);
            for (field, unchanged) in new.iter_mut().zip(unchanged) {
                if *unchanged {
                    *field = Field::Unchanged;
                }
            }
            encode::update(id(*table), before, &new)
        }
        Change::Delete(table, before) => encode::delete(id(*table), old(*table, &old_fields(*table, before))),
        Change::Truncate(cascade, restart) => encode::truncate(*cascade, *restart, &[id(0), id(2)]),
    }
}

/// What the decoder should say of a change, made without it.
fn expected(change: &Change) -> String {
    let text = |value: &Value| match value {
        Some(bytes) => format!("'{}'", bytes.escape_ascii()),
        None => "null".to_owned(),
    };
    let row = |values: &[Value; 3]| values.each_ref().map(text).join(",");
    let old = |table: u8, values: &[Value; 3]| {
        if is_full(table) {
            format!("{} full", row(values))
        } else {
            format!("{},absent,absent", text(&values[0]))
        }
    };
    match change {
        Change::Insert(table, new) => format!("Insert public.t{table} - / {}", row(new)),
        Change::Update(table, before, new, unchanged) => {
            let after: Vec<String> = (0..3)
                .map(|column| match (unchanged[column], before) {
                    (false, _) => text(&new[column]),
                    (true, Some(before)) if is_full(*table) => text(&before[column]),
                    (true, _) => "unchanged".to_owned(),
                })
                .collect();
            let before = before.as_ref().map(|before| old(*table, before));
            format!(
                "Update public.t{table} {} / {}",
                before.as_deref().unwrap_or("-"),
                after.join(",")
            )
        }
        Change::Delete(table, before) => format!("Delete public.t{table} {} / -", old(*table, before)),
        Change::Truncate(..) => "Truncate  - / -".to_owned(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_in_any_chunks_decodes_to_itself(
        history in prop::collection::vec(prop::collection::vec(change(), 0..8), 1..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        keepalives in any::<bool>(),
    ) {
        let names = ["t0", "t1", "t2"];
        let mut frames = Frames::default();
        for (number, changes) in history.iter().enumerate() {
            let commit = 0x200 + number as u64 * 0x100;
            let mut messages = Vec::new();
            if number == 0 {
                for (table, name) in (0..3u8).zip(names) {
                    let identity = if is_full(table) { b'f' } else { b'd' };
                    messages.push(encode::relation(&super::table(id(table), "public", name, identity)));
                }
            }
            messages.extend(changes.iter().map(encoded));
            transaction(&mut frames, commit, &messages);
            if keepalives {
                frames.keepalive(Lsn(commit + 0x20), false);
            }
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(frames.ends.len())).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut decoder = decoder();
        let (mut rows, mut counts, mut last_end, mut idle) = (Vec::new(), 0, 0, None);
        for chunk in frames.cut(&cuts) {
            let batch = decode(&mut decoder, &chunk).unwrap();
            rows.extend(rows_of(&batch));
            counts += batch.txns().iter().map(|txn| txn.counts.read).sum::<u64>();
            last_end += batch.txns().iter().filter(|txn| txn.last).count();
            idle = batch.idle().map(|position| position.to_string()).or(idle);
        }
        let want: Vec<String> = history.iter().flatten().map(expected).collect();
        let truncates = history.iter().flatten().filter(|change| matches!(change, Change::Truncate(..))).count();
        prop_assert_eq!(&rows, &want);
        prop_assert_eq!(counts, (want.len() + truncates) as u64);
        prop_assert_eq!(last_end, history.len());
        let end = 0x200 + (history.len() - 1) as u64 * 0x100 + 0x20;
        prop_assert_eq!(idle, keepalives.then(|| Lsn(end).to_string()));
    }
}
