//! Exit codes: what a script learns from each end.

use cdc_core::Kind;

/// Done.
pub const OK: u8 = 0;
/// A defect of cdc-sync.
pub const BUG: u8 = 1;
/// Wrong usage or configuration, or no such job.
pub const USAGE: u8 = 2;
/// A precondition is not met.
pub const CHECK: u8 = 3;
/// A conflict stopped the stream, or keeps a change that was put aside from being applied.
pub const CONFLICT: u8 = 8;
/// A gate or time limit is not met; state is kept.
pub const GATE: u8 = 4;
/// `verify` found differences.
pub const DIFFERENCES: u8 = 5;
/// `verify` could not compare something.
pub const UNVERIFIABLE: u8 = 10;
/// Ended by a signal before the goal.
pub const INTERRUPTED: u8 = 130;

/// Every exit code with its meaning, for the manual.
pub const MEANINGS: &[(u8, &str)] = &[
    (OK, "done"),
    (BUG, "a defect of cdc-sync: please report it"),
    (USAGE, "wrong usage or configuration, or no such job"),
    (CHECK, "a check failed: no data was changed"),
    (
        GATE,
        "a gate or time limit was not met; state is kept, run again to resume",
    ),
    (DIFFERENCES, "differences found"),
    (
        CONFLICT,
        "stopped by a conflict under policy stop, or a retry was refused",
    ),
    (9, "the position is lost or refused: seed again"),
    (UNVERIFIABLE, "something could not be compared"),
    (11, "another instance holds the job"),
    (12, "a server cannot be reached or refuses the login"),
    (13, "stopped for the operator: data, schema or target error"),
    (INTERRUPTED, "interrupted before the goal was reached"),
];

/// The exit code of an error.
pub fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Config => USAGE,
        Kind::Unreachable | Kind::Login => 12,
        Kind::Check => CHECK,
        Kind::Deadline => GATE,
        Kind::PositionLost => 9,
        Kind::Fenced => 11,
        Kind::Conflict => CONFLICT,
        Kind::Data | Kind::Schema | Kind::Protocol | Kind::Resource | Kind::Permission | Kind::Local => 13,
        Kind::Unverifiable => UNVERIFIABLE,
        Kind::Interrupted => INTERRUPTED,
        _ => BUG,
    }
}

/// The stable name of every error's kind.
const NAMES: &[(Kind, &str)] = &[
    (Kind::Config, "config"),
    (Kind::Unreachable, "unreachable"),
    (Kind::Login, "login"),
    (Kind::Check, "check"),
    (Kind::Deadline, "deadline"),
    (Kind::PositionLost, "position_lost"),
    (Kind::Fenced, "fenced"),
    (Kind::Conflict, "conflict"),
    (Kind::Data, "data"),
    (Kind::Schema, "schema"),
    (Kind::Protocol, "protocol"),
    (Kind::Resource, "resource"),
    (Kind::Permission, "permission"),
    (Kind::Local, "local"),
    (Kind::Unverifiable, "unverifiable"),
    (Kind::Interrupted, "interrupted"),
    (Kind::Bug, "bug"),
];

/// The stable name of an error's kind: `error.code` in JSON.
pub fn name(kind: Kind) -> &'static str {
    let known = NAMES.iter().find(|(known, _)| *known == kind);
    known.map_or("bug", |(_, name)| name)
}

/// The kind of that name.
pub fn kind(name: &str) -> Kind {
    let known = NAMES.iter().find(|(_, known)| *known == name);
    known.map_or(Kind::Bug, |(kind, _)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_interface() {
        let expected = [
            (Kind::Config, 2),
            (Kind::Unreachable, 12),
            (Kind::Login, 12),
            (Kind::Check, 3),
            (Kind::Deadline, 4),
            (Kind::PositionLost, 9),
            (Kind::Fenced, 11),
            (Kind::Conflict, 8),
            (Kind::Data, 13),
            (Kind::Schema, 13),
            (Kind::Unverifiable, 10),
            (Kind::Interrupted, 130),
            (Kind::Bug, 1),
        ];
        for (kind, exit) in expected {
            assert_eq!(code(kind), exit, "{kind:?}");
            assert!(MEANINGS.iter().any(|(known, _)| *known == exit));
            assert_eq!(super::kind(name(kind)), kind);
        }
        assert_eq!(name(Kind::PositionLost), "position_lost");
    }
}
