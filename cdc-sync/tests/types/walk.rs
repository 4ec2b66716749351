//! Which types a server has, and whether each is accounted for.

use std::collections::BTreeSet;

use testbed::Pair;

use super::tables::{CLEAN, Tables};
use super::values::WITHOUT_INPUT;

/// Every type that a column can have: base types, ranges and multiranges of the catalog and of the extensions, and what
/// was created beside them. Arrays are left out, since each type is tried in arrays, too.
const TYPES: &str = "SET search_path = ''; SELECT format_type(t.oid, -1)
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    LEFT JOIN pg_class c ON c.oid = t.typrelid
    WHERE n.nspname IN ('pg_catalog', 'ext', 'own') AND (t.typtype IN ('b', 'r', 'm')
        OR (n.nspname <> 'pg_catalog' AND (t.typtype IN ('e', 'd') OR (t.typtype = 'c' AND c.relkind = 'c'))))
      AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid) ORDER BY 1";

/// Fails when blue has a type without values, or one of those said to take no input does.
pub(super) fn every_type_is_accounted_for(pair: &Pair, tables: &Tables) {
    let found = pair
        .on_blue(&format!("{CLEAN}{TYPES}"))
        .expect("blue lists its types");
    let found: BTreeSet<&str> = found.lines().collect();
    assert!(found.len() > 70, "types were overlooked: {found:?}");
    let known: BTreeSet<&str> = tables.names().collect();
    // A domain over another has values only at the end of the chain.
    let unaccounted: Vec<&&str> = found
        .iter()
        .filter(|name| !known.contains(**name) && !WITHOUT_INPUT.contains(*name) && **name != "own.small")
        .collect();
    assert!(
        unaccounted.is_empty(),
        "types without values, which nothing shows to be carried: {unaccounted:?}"
    );
    for name in WITHOUT_INPUT.iter().filter(|name| found.contains(**name)) {
        let refused = format!(
            "DO $do$ BEGIN PERFORM ''::{name}; RAISE EXCEPTION 'it takes a value'; \
             EXCEPTION WHEN feature_not_supported OR internal_error THEN NULL; END $do$"
        );
        pair.on_blue(&format!("{CLEAN}{refused}")).expect(name);
    }
}
