//! How a table is divided for parallel copying. Pure arithmetic: the SQL conditions cover every row once.
//!
//! The first and the last part are open-ended: the size of a table is not part of its snapshot, and rows can lie
//! beyond the blocks that were counted.

use crate::wire::session::identifier;

/// Whatever was asked for, a part is worth a statement of its own.
const SMALLEST_PART: u64 = 64 * 1024;

/// How many parts of roughly `part_bytes` a table of `bytes` makes.
fn part_count(bytes: u64, part_bytes: u64) -> u64 {
    bytes.div_ceil(part_bytes.max(SMALLEST_PART)).max(1)
}

/// Conditions on `ctid` that divide a table of `blocks` blocks, which with its TOAST takes `bytes`.
pub(super) fn by_block(blocks: u64, bytes: u64, part_bytes: u64) -> Vec<Option<String>> {
    let parts = part_count(bytes, part_bytes).min(blocks);
    let starts = bounds(0, i128::from(blocks), parts);
    conditions(&starts, |bound| format!("'({bound},0)'::pg_catalog.tid"), "ctid")
}

/// Conditions on the integer column `key`, whose values lie between `min` and `max`.
pub(super) fn by_key(key: &str, min: i64, max: i64, bytes: u64, part_bytes: u64) -> Vec<Option<String>> {
    let values = i128::from(max) - i128::from(min) + 1;
    let parts = part_count(bytes, part_bytes);
    let parts = u64::try_from(values).map_or(parts, |values| parts.min(values));
    let starts = bounds(i128::from(min), i128::from(min) + values, parts);
    // A negative literal needs the quotes: `- 9223372036854775808` is out of range before it is negated.
    conditions(&starts, |bound| format!("'{bound}'::int8"), &identifier(key))
}

/// The starts of all parts but the first, evenly spread over `from..to`.
fn bounds(from: i128, to: i128, parts: u64) -> Vec<i128> {
    let width = to - from;
    (1..parts)
        .map(|part| from + width * i128::from(part) / i128::from(parts))
        .collect()
}

fn conditions(starts: &[i128], literal: impl Fn(i128) -> String, column: &str) -> Vec<Option<String>> {
    let Some(first) = starts.first() else {
        return vec![None];
    };
    let mut parts = vec![Some(format!("{column} < {}", literal(*first)))];
    for (place, start) in starts.iter().enumerate() {
        let from = format!("{column} >= {}", literal(*start));
        parts.push(Some(match starts.get(place + 1) {
            Some(end) => format!("{from} AND {column} < {}", literal(*end)),
            None => from,
        }));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn small_tables_are_one_part() {
        for (blocks, bytes) in [(0, 0), (1, 8192), (1, 10 * MIB), (128, MIB)] {
            assert_eq!(by_block(blocks, bytes, MIB), [None], "{blocks} {bytes}");
        }
        assert_eq!(by_key("id", 5, 5, 10 * MIB, MIB), [None]);
    }

    #[test]
    fn blocks_are_divided_without_gap_or_overlap() {
        assert_eq!(
            by_block(1280, 10 * MIB, 4 * MIB),
            [
                Some("ctid < '(426,0)'::pg_catalog.tid".to_owned()),
                Some("ctid >= '(426,0)'::pg_catalog.tid AND ctid < '(853,0)'::pg_catalog.tid".to_owned()),
                Some("ctid >= '(853,0)'::pg_catalog.tid".to_owned()),
            ]
        );
        // Mostly TOAST: as many parts as there are blocks at most.
        assert_eq!(by_block(2, 100 * MIB, MIB).len(), 2);
        assert_eq!(by_block(u64::from(u32::MAX), u64::MAX, u64::MAX / 2).len(), 3);
        assert_eq!(by_block(16, 131_072, 0).len(), 2);
    }

    #[test]
    fn keys_are_divided_over_the_whole_range_of_their_type() {
        assert_eq!(
            by_key("Id", 1, 100, 2 * MIB, MIB),
            [
                Some("\"Id\" < '51'::int8".to_owned()),
                Some("\"Id\" >= '51'::int8".to_owned())
            ]
        );
        let all = by_key("id", i64::MIN, i64::MAX, 4 * MIB, MIB);
        assert_eq!(all.len(), 4);
        assert_eq!(
            all.first().unwrap().as_deref(),
            Some("\"id\" < '-4611686018427387904'::int8")
        );
        // Every bound is distinct however few values there are.
        let parts = by_key("id", -1, 1, 100 * MIB, MIB);
        assert_eq!(parts.len(), 3);
        assert_eq!(parts.last().unwrap().as_deref(), Some("\"id\" >= '1'::int8"));
    }
}
