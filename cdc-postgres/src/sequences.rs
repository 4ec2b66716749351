//! Sequences: their values never travel in the log (PostgreSQL manual, "Logical Replication Restrictions"), so they
//! are read on the source and set on the target.

use std::collections::{HashMap, HashSet};

use cdc_core::engine::{SequenceAdvance, SequenceState};
use cdc_core::{Error, Kind, Result, TableName, failpoint};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::catalog::{USER_RELATION, qualified};
use crate::session::during;

/// Sequences read in one statement.
const CHUNK: usize = 100;

/// A sequence with its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sequence {
    state: SequenceState,
    min: i64,
    max: i64,
    /// whether it begins anew at its limit
    cycles: bool,
}

/// The tables that take values from sequence `s`: the one whose column owns it (a serial or identity column), those
/// with a default that names it, and their partitions, which may have neither. An array, for the reason of [`MEMBERS`].
///
/// [`MEMBERS`]: crate::catalog::MEMBERS
const TABLES: &str = "SELECT array_agg(n.nspname::text ORDER BY n.nspname, c.relname), \
            array_agg(c.relname::text ORDER BY n.nspname, c.relname) \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY (ARRAY( \
         WITH users (oid) AS ( \
             SELECT d.refobjid FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = s.seqrelid \
                 AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i') \
             UNION SELECT f.adrelid FROM pg_depend d JOIN pg_attrdef f ON f.oid = d.objid \
             WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass \
                 AND d.refobjid = s.seqrelid) \
         SELECT u.oid FROM users u UNION SELECT p.relid FROM users u, pg_partition_tree(u.oid) p))";

/// All sequences of the user's schemas, those of identity and serial columns included.
pub(crate) async fn read(client: &Client) -> Result<Vec<SequenceState>> {
    let sequences = read_with_limits(client).await?;
    Ok(sequences.into_iter().map(|sequence| sequence.state).collect())
}

async fn read_with_limits(client: &Client) -> Result<Vec<Sequence>> {
    let statement = format!(
        "SELECT n.nspname::text, c.relname::text, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle, \
                COALESCE(t.schemas, '{{}}'), COALESCE(t.names, '{{}}') \
         FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         CROSS JOIN LATERAL ({TABLES}) t (schemas, names) \
         WHERE {USER_RELATION} ORDER BY 1, 2"
    );
    let rows = client
        .query_typed(&statement, &[])
        .await
        .map_err(during("reading the list of sequences"))?;
    let mut sequences: Vec<Sequence> = rows
        .iter()
        .map(|row| Sequence {
            state: SequenceState {
                name: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
                last_value: 0,
                is_called: false,
                increment: row.get(2),
                tables: row
                    .get::<_, Vec<String>>(6)
                    .into_iter()
                    .zip(row.get::<_, Vec<String>>(7))
                    .map(|(schema, name)| TableName::new(schema, name))
                    .collect(),
            },
            min: row.get(3),
            max: row.get(4),
            cycles: row.get(5),
        })
        .collect();
    for chunk in sequences.chunks_mut(CHUNK) {
        read_values(client, chunk).await?;
    }
    Ok(sequences)
}

/// Reads the sequences themselves: `pg_sequences` does not tell a sequence that was never used from one that was
/// set back (`is_called`).
async fn read_values(client: &Client, sequences: &mut [Sequence]) -> Result<()> {
    let reads: Vec<String> = sequences
        .iter()
        .enumerate()
        .map(|(place, sequence)| {
            let name = qualified(&sequence.state.name);
            format!("SELECT {place}, last_value, is_called FROM {name}")
        })
        .collect();
    let rows = client
        .query_typed(&reads.join(" UNION ALL "), &[])
        .await
        .map_err(during("reading the values of the sequences"))?;
    for row in rows {
        let place = usize::try_from(row.get::<_, i32>(0)).unwrap_or(usize::MAX);
        if let Some(sequence) = sequences.get_mut(place) {
            sequence.state.last_value = row.get(1);
            sequence.state.is_called = row.get(2);
        }
    }
    Ok(())
}

/// Sets the target's sequences to `max(target, source + buffer × increment)`; all are looked at before the first is
/// set. A sequence that the target lacks is an error when a replicated table takes values from it; another is named
/// in a warning.
pub(crate) async fn advance(
    client: &Client,
    source: &[SequenceState],
    buffer: u32,
) -> Result<Vec<SequenceAdvance>> {
    let mut targets: HashMap<TableName, Sequence> = read_with_limits(client)
        .await?
        .into_iter()
        .map(|sequence| (sequence.state.name.clone(), sequence))
        .collect();
    let replicated = replicated(client).await?;
    let (mut plan, mut missing) = (Vec::new(), Vec::new());
    for state in source {
        match targets.remove(&state.name) {
            Some(target) => plan.push((state, goal(state, &target, buffer)?, target)),
            None => match state.tables.iter().find(|table| replicated.contains(table)) {
                Some(table) => return Err(lacking(state, table)),
                None => missing.push(state.name.to_string()),
            },
        }
    }
    if !missing.is_empty() {
        tracing::warn!(
            "{} sequences of the source do not exist on the target and are not advanced: {}",
            missing.len(),
            missing.join(", ")
        );
    }
    let mut advanced = Vec::with_capacity(plan.len());
    for (state, goal, target) in plan {
        if let Some(value) = goal {
            let name = qualified(&state.name);
            client
                .query_typed(
                    "SELECT setval($1::text::regclass, $2, $3)",
                    &[
                        (&name, Type::TEXT),
                        (&value.last_value, Type::INT8),
                        (&value.is_called, Type::BOOL),
                    ],
                )
                .await
                .map_err(during("setting a sequence of the target"))
                .map_err(|error| error.object(format!("sequence {}", state.name)))?;
            failpoint!("sequences.one-set", error);
        }
        advanced.push(SequenceAdvance {
            sequence: state.name.clone(),
            source: state.last_value,
            before: target.state.last_value,
            after: goal.map_or(target.state.last_value, |value| value.last_value),
        });
    }
    failpoint!("sequences.set", error);
    Ok(advanced)
}

/// The tables of the streams into this database.
async fn replicated(client: &Client) -> Result<HashSet<TableName>> {
    let doing = "reading which tables are replicated";
    let row = client
        .query_typed_one("SELECT to_regclass('cdc_sync.seed') IS NOT NULL", &[])
        .await
        .map_err(during(doing))?;
    if !row.get::<_, bool>(0) {
        return Ok(HashSet::new());
    }
    let rows = client
        .query_typed("SELECT schema_name, table_name FROM cdc_sync.seed", &[])
        .await
        .map_err(during(doing))?;
    let table = |row: &tokio_postgres::Row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    Ok(rows.iter().map(table).collect())
}

fn lacking(state: &SequenceState, table: &TableName) -> Error {
    Error::new(
        Kind::Schema,
        format!("the target has no sequence of this name, but table {table} takes its values from it on the source"),
    )
    .object(format!("sequence {}", state.name))
    .remedy(format!(
        "create it on the target as it is on the source (CREATE SEQUENCE {} INCREMENT BY {} …, and the column's \
         default or OWNED BY), then run again",
        qualified(&state.name),
        state.increment
    ))
}

/// What a sequence is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Value {
    last_value: i64,
    is_called: bool,
}

/// The value to set, or `None` when the target stands far enough.
fn goal(source: &SequenceState, target: &Sequence, buffer: u32) -> Result<Option<Value>> {
    let here = &target.state;
    let descending = source.increment < 0;
    if descending != (here.increment < 0) {
        return Err(Error::new(
            Kind::Schema,
            "the sequence ascends on one side and descends on the other",
        )
        .object(format!("sequence {}", source.name))
        .remedy(format!(
            "ALTER SEQUENCE {} INCREMENT BY {} on the target",
            qualified(&source.name),
            source.increment
        )));
    }
    let is_ahead = |value: i64, of: i64| if descending { value < of } else { value > of };
    if !source.is_called {
        // Its next value is `last_value` itself: no value was ever given, so none has to be kept clear of.
        let moved = !here.is_called && is_ahead(source.last_value, here.last_value);
        let value = Value {
            last_value: source.last_value,
            is_called: false,
        };
        return if moved {
            within(source, target, source.last_value).map(|()| Some(value))
        } else {
            Ok(None)
        };
    }
    within(source, target, source.last_value)?;
    let step = i128::from(source.increment);
    let wanted = i128::from(source.last_value) + step * i128::from(buffer);
    let stands = i128::from(here.last_value);
    let is_ahead = |value: i128, of: i128| if descending { value < of } else { value > of };
    // Not called at the same value means that this value would be given once more.
    if here.is_called && !is_ahead(wanted, stands) || !here.is_called && is_ahead(stands, wanted) {
        return Ok(None);
    }
    let limits = i128::from(target.min)..=i128::from(target.max);
    // The first INSERT after the cutover takes the value behind it.
    if !limits.contains(&(wanted + step)) && !target.cycles {
        return Err(no_room(source, target, buffer));
    }
    let value = wanted.clamp(*limits.start(), *limits.end());
    Ok(Some(Value {
        last_value: i64::try_from(value).unwrap_or(source.last_value),
        is_called: true,
    }))
}

fn no_room(source: &SequenceState, target: &Sequence, buffer: u32) -> Error {
    Error::new(
        Kind::Schema,
        format!(
            "{buffer} values behind the source's {}, the target's sequence has no value left: its limits are {} to {}",
            source.last_value, target.min, target.max
        ),
    )
    .object(format!("sequence {}", source.name))
    .remedy(format!(
        "give the sequence room on the target (ALTER SEQUENCE {} AS bigint NO MINVALUE NO MAXVALUE, and its column a \
         type that holds the values), or take a smaller --sequence-buffer",
        qualified(&source.name)
    ))
}

fn within(source: &SequenceState, target: &Sequence, value: i64) -> Result<()> {
    if (target.min..=target.max).contains(&value) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Schema,
        format!(
            "the source's value {value} is outside the limits {} to {} of the target's sequence",
            target.min, target.max
        ),
    )
    .object(format!("sequence {}", source.name))
    .remedy(format!(
        "give the target's sequence the limits of the source's (ALTER SEQUENCE {} AS bigint NO MINVALUE NO MAXVALUE)",
        qualified(&source.name)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(last_value: i64, is_called: bool, increment: i64) -> SequenceState {
        SequenceState {
            name: TableName::new("public", "s"),
            last_value,
            is_called,
            increment,
            tables: Vec::new(),
        }
    }

    fn target(last_value: i64, is_called: bool, increment: i64, min: i64, max: i64) -> Sequence {
        Sequence {
            state: state(last_value, is_called, increment),
            min,
            max,
            cycles: false,
        }
    }

    fn set(source: SequenceState, target: Sequence, buffer: u32) -> Option<(i64, bool)> {
        goal(&source, &target, buffer)
            .unwrap()
            .map(|value| (value.last_value, value.is_called))
    }

    #[test]
    fn an_ascending_sequence_moves_up_only() {
        assert_eq!(
            set(state(10, true, 1), target(1, false, 1, 1, i64::MAX), 100),
            Some((110, true))
        );
        assert_eq!(
            set(state(10, true, 5), target(1, false, 1, 1, i64::MAX), 3),
            Some((25, true))
        );
        assert_eq!(
            set(state(10, true, 1), target(500, true, 1, 1, i64::MAX), 100),
            None
        );
        assert_eq!(set(state(10, true, 1), target(10, true, 1, 1, i64::MAX), 0), None);
        assert_eq!(
            set(state(10, true, 1), target(10, false, 1, 1, i64::MAX), 0),
            Some((10, true))
        );
    }

    #[test]
    fn a_descending_sequence_moves_down_only() {
        assert_eq!(
            set(state(-10, true, -1), target(-1, false, -1, i64::MIN, -1), 100),
            Some((-110, true))
        );
        assert_eq!(
            set(state(-10, true, -1), target(-500, true, -1, i64::MIN, -1), 100),
            None
        );
    }

    #[test]
    fn a_sequence_never_used_keeps_its_start() {
        assert_eq!(set(state(1, false, 1), target(1, false, 1, 1, 100), 10), None);
        assert_eq!(set(state(1, false, 1), target(7, true, 1, 1, 100), 10), None);
        assert_eq!(
            set(state(50, false, 1), target(1, false, 1, 1, 100), 10),
            Some((50, false))
        );
    }

    #[test]
    fn what_would_pass_the_limit_is_refused() {
        let near = |value| state(value, true, 1);
        let small = || target(1, false, 1, 1, 32_767);
        assert_eq!(set(near(32_000), small(), 766), Some((32_766, true)));
        assert_eq!(set(near(32_000), target(32_767, true, 1, 1, 32_767), 700), None);
        for (source, target, buffer) in [
            (near(32_000), small(), 767),
            (near(40_000), small(), 10),
            (
                state(i64::MAX - 1, true, i64::MAX),
                target(1, false, 1, 1, i64::MAX),
                u32::MAX,
            ),
            (state(-5, true, -1), target(-1, false, -1, -9, -1), 4),
        ] {
            let error = goal(&source, &target, buffer).unwrap_err();
            assert_eq!(error.kind(), Kind::Schema);
            assert!(error.to_string().starts_with("sequence public.s: "), "{error}");
            assert!(error.remedy_text().unwrap().contains("ALTER SEQUENCE"));
        }
        let cycling = Sequence {
            cycles: true,
            ..small()
        };
        assert_eq!(set(near(32_000), cycling, 1_000), Some((32_767, true)));
        assert!(goal(&near(4), &target(1, false, -1, -9, 9), 10).is_err());
    }
}
