//! Sequences: their values never travel in the log (PostgreSQL manual, "Logical Replication Restrictions"), so they
//! are read on the source and set on the target.

use std::collections::HashMap;

use cdc_core::engine::{SequenceAdvance, SequenceState};
use cdc_core::{Error, Kind, Result, TableName};
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
}

/// All sequences of the user's schemas, those of identity and serial columns included.
pub(crate) async fn read(client: &Client) -> Result<Vec<SequenceState>> {
    let sequences = read_with_limits(client).await?;
    Ok(sequences.into_iter().map(|sequence| sequence.state).collect())
}

async fn read_with_limits(client: &Client) -> Result<Vec<Sequence>> {
    let statement = format!(
        "SELECT n.nspname::text, c.relname::text, s.seqincrement, s.seqmin, s.seqmax \
         FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
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
            },
            min: row.get(3),
            max: row.get(4),
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
/// set. A sequence that the target lacks is named in a warning: nothing on the target can take a value from it.
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
    let (mut plan, mut missing) = (Vec::new(), Vec::new());
    for state in source {
        match targets.remove(&state.name) {
            Some(target) => plan.push((state, goal(state, &target, buffer)?, target)),
            None => missing.push(state.name.to_string()),
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
        }
        advanced.push(SequenceAdvance {
            sequence: state.name.clone(),
            source: state.last_value,
            before: target.state.last_value,
            after: goal.map_or(target.state.last_value, |value| value.last_value),
        });
    }
    Ok(advanced)
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
    let margin = i128::from(source.increment) * i128::from(buffer);
    let wanted = i128::from(source.last_value) + margin;
    let value = wanted.clamp(i128::from(target.min), i128::from(target.max));
    if value != wanted {
        tracing::warn!(
            "sequence {}: {wanted} would pass its limit, it is set to its limit {value}",
            source.name
        );
    }
    let value = i64::try_from(value).unwrap_or(source.last_value);
    // Not called at the same value means that this value would be given once more.
    let reached = here.is_called && !is_ahead(value, here.last_value)
        || !here.is_called && is_ahead(here.last_value, value);
    Ok((!reached).then_some(Value {
        last_value: value,
        is_called: true,
    }))
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
        }
    }

    fn target(last_value: i64, is_called: bool, increment: i64, min: i64, max: i64) -> Sequence {
        Sequence {
            state: state(last_value, is_called, increment),
            min,
            max,
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
    fn limits_cap_the_margin_and_refuse_the_value() {
        assert_eq!(
            set(state(32_000, true, 1), target(1, false, 1, 1, 32_767), 1_000),
            Some((32_767, true))
        );
        assert_eq!(
            set(
                state(i64::MAX - 1, true, i64::MAX),
                target(1, false, 1, 1, i64::MAX),
                u32::MAX
            ),
            Some((i64::MAX, true))
        );
        let error = goal(&state(40_000, true, 1), &target(1, false, 1, 1, 32_767), 10).unwrap_err();
        assert_eq!(error.kind(), Kind::Schema);
        assert!(error.to_string().starts_with("sequence public.s: "), "{error}");
        assert!(goal(&state(4, true, 1), &target(1, false, -1, -9, 9), 10).is_err());
    }
}
