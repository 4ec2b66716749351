//! Which columns of a table were renamed and which dropped, told by their places: a renamed column keeps its own, a dropped
//! one leaves it empty, an added one takes the next behind all others.
//!
//! The peer's table is as it was when the schema was copied, without the places that were empty then. So a column that is
//! between others can be recognised; one at the end, beside an empty place, cannot always be.

use std::collections::BTreeSet;

/// Empty places up to which the possibilities are counted out.
const COUNTABLE: usize = 10;

/// What became of columns that only the peer has.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is called this now.
    Renamed(String),
    Dropped,
    /// It was dropped, or it is one of the columns that only the source has.
    Unknown,
}

/// The fate of each column of `peer` that `source` does not have, in order. `None` in `source` is an empty place.
pub(super) fn fates(source: &[Option<String>], peer: &[String]) -> Vec<(String, Fate)> {
    let is_new = |name: &String| !peer.contains(name);
    let (gaps, common) = split(source, |place| place.as_ref().is_some_and(|name| !is_new(name)));
    let of_source = |name: &String| source.iter().flatten().any(|known| known == name);
    let (lost, peer_common) = split(peer, of_source);
    let same_order = common
        .iter()
        .map(|place| place.as_ref())
        .eq(peer_common.iter().map(Some));
    let any_new = source.iter().flatten().any(is_new);
    let mut found = Vec::new();
    for (number, lost) in lost.iter().enumerate() {
        let gap = gaps.get(number).map_or(&[][..], Vec::as_slice);
        let last = number + 1 == gaps.len();
        let certain = if same_order {
            outcome(gap, lost.len(), last)
        } else {
            None
        };
        for (place, name) in lost.iter().enumerate() {
            let fate = match certain.as_ref().and_then(|fates| fates.get(place)) {
                Some(Some(now)) => Fate::Renamed(now.clone()),
                Some(None) => Fate::Dropped,
                None if any_new => Fate::Unknown,
                None => Fate::Dropped,
            };
            found.push((name.clone(), fate));
        }
    }
    found
}

/// The runs of elements between those that `is_common`, and these.
fn split<T: Clone>(all: &[T], is_common: impl Fn(&T) -> bool) -> (Vec<Vec<T>>, Vec<T>) {
    let gaps = all.split(&is_common).map(<[T]>::to_vec).collect();
    (gaps, all.iter().filter(|one| is_common(one)).cloned().collect())
}

/// What became of `lost` columns that were at the places of `gap`, if only one thing can have: the new name of each, `None`
/// for one that was dropped. What was added stands at the end of the last gap.
fn outcome(gap: &[Option<String>], lost: usize, last: bool) -> Option<Vec<Option<String>>> {
    if gap.iter().filter(|place| place.is_none()).count() > COUNTABLE {
        return None;
    }
    let mut possible = BTreeSet::new();
    let shortest = if last { 0 } else { gap.len() };
    for end in shortest..=gap.len() {
        align(gap.get(..end)?, lost, &mut Vec::new(), &mut possible);
    }
    let first = possible.pop_first()?;
    possible.is_empty().then_some(first)
}

/// All ways in which `lost` columns can have been at `places`, each of which holds a column that is called otherwise now, or
/// is empty since then or since before.
fn align(
    places: &[Option<String>],
    lost: usize,
    so_far: &mut Vec<Option<String>>,
    possible: &mut BTreeSet<Vec<Option<String>>>,
) {
    let Some((place, rest)) = places.split_first() else {
        if lost == 0 {
            possible.insert(so_far.clone());
        }
        return;
    };
    if place.is_none() {
        align(rest, lost, so_far, possible);
    }
    if let Some(fewer) = lost.checked_sub(1) {
        so_far.push(place.clone());
        align(rest, fewer, so_far, possible);
        so_far.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns by a letter, `.` for an empty place.
    fn told(source: &str, peer: &str) -> String {
        let places: Vec<Option<String>> = source
            .chars()
            .map(|name| (name != '.').then(|| name.to_string()))
            .collect();
        let peer: Vec<String> = peer.chars().map(String::from).collect();
        let fates = fates(&places, &peer);
        let told = fates.iter().map(|(name, fate)| match fate {
            Fate::Renamed(now) => format!("{name}>{now} "),
            Fate::Dropped => format!("{name}- "),
            Fate::Unknown => format!("{name}? "),
        });
        told.collect::<String>().trim_end().to_owned()
    }

    #[test]
    fn a_column_at_its_place_was_renamed() {
        assert_eq!(told("axc", "abc"), "b>x");
        assert_eq!(told("xbc", "abc"), "a>x");
        assert_eq!(told("abx", "abc"), "c>x");
        assert_eq!(told("axy", "abc"), "b>x c>y");
        // With columns added behind, and an empty place from before the copy.
        assert_eq!(told("abxyz", "abc"), "c>x");
        assert_eq!(told("a.xc", "abc"), "b>x");
        assert_eq!(told("axcd", "abc"), "b>x");
    }

    #[test]
    fn an_empty_place_was_a_column() {
        assert_eq!(told("a.c", "abc"), "b-");
        assert_eq!(told("ab.", "abc"), "c-");
        assert_eq!(told("a.cx", "abc"), "b-");
        assert_eq!(told("a..", "abc"), "b- c-");
        assert_eq!(told("a.x", "abc"), "b- c>x");
        // The peer alone has it.
        assert_eq!(told("ab", "abc"), "c-");
        assert_eq!(told("abc", "abc"), "");
    }

    #[test]
    fn an_empty_place_before_a_new_column_at_the_end_may_be_older() {
        assert_eq!(told("ab.x", "abc"), "c?");
        assert_eq!(told("ab..x", "abc"), "c?");
        // Another order is no copy's.
        assert_eq!(told("bax", "abc"), "c?");
    }
}
