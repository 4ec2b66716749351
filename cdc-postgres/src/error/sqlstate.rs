//! SQLSTATE codes and what each class asks for (PostgreSQL manual, Appendix A).

use std::fmt;

/// What the caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Redo the same work from the last checkpoint on the same connection, after a short pause, a bounded number of
    /// times.
    Retry,
    /// Open a new connection and read the checkpoint again: a COMMIT that was under way may or may not have happened.
    Reconnect,
    /// Nothing will get better soon: wait long, keep the slot, and tell the operator.
    Wait,
    /// Two writers met at one row: the table's conflict policy decides.
    Conflict,
    /// The work cannot succeed as it is: stop and name the object.
    Stop,
}

/// A five-character SQLSTATE code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// `invalid_authorization_specification`: no line of `pg_hba.conf` admits this connection, or no such role.
    pub const INVALID_AUTHORIZATION: SqlState = SqlState(*b"28000");
    /// `invalid_password`.
    pub const INVALID_PASSWORD: SqlState = SqlState(*b"28P01");
    /// `invalid_catalog_name`: no such database.
    pub const UNKNOWN_DATABASE: SqlState = SqlState(*b"3D000");
    /// `unique_violation`.
    pub const UNIQUE_VIOLATION: SqlState = SqlState(*b"23505");
    /// `query_canceled`.
    pub const QUERY_CANCELED: SqlState = SqlState(*b"57014");
    /// `object_not_in_prerequisite_state`: for example a slot that was invalidated.
    pub const WRONG_STATE: SqlState = SqlState(*b"55000");
    /// `object_in_use`: for example a replication slot that another session holds.
    pub const OBJECT_IN_USE: SqlState = SqlState(*b"55006");
    /// `undefined_object`: for example no such replication slot.
    pub const UNDEFINED_OBJECT: SqlState = SqlState(*b"42704");

    /// `internal_error`.
    pub const INTERNAL: SqlState = SqlState(*b"XX000");
    /// `too_many_connections`: also a limit of the role or the database.
    pub const TOO_MANY_CONNECTIONS: SqlState = SqlState(*b"53300");

    /// The code with these five characters; `None` if they are not ASCII digits and capitals.
    pub fn new(code: &str) -> Option<SqlState> {
        let bytes: [u8; 5] = code.as_bytes().try_into().ok()?;
        bytes
            .iter()
            .all(|b| b.is_ascii_digit() || b.is_ascii_uppercase())
            .then_some(SqlState(bytes))
    }

    /// The five characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("?????")
    }

    /// Whether the code starts with `prefix`, for example the class `"28"`.
    pub fn starts_with(&self, prefix: &str) -> bool {
        self.0.starts_with(prefix.as_bytes())
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// SQLSTATE prefixes and what to do; the longest prefix that fits decides, [`Action::Stop`] if none does.
const ACTIONS: &[(&str, Action)] = &[
    // Serialization failure, deadlock, lock not available, a statement someone cancelled: the same work may succeed.
    ("40", Action::Retry),
    ("55P03", Action::Retry),
    ("57014", Action::Retry),
    // The session is gone or of no more use. 40003 is "statement completion unknown".
    ("40003", Action::Reconnect),
    ("08", Action::Reconnect),
    ("57P", Action::Reconnect),
    ("53300", Action::Reconnect),
    ("25P03", Action::Reconnect),
    ("25P04", Action::Reconnect),
    // Disk full, out of memory, an I/O error below the server; a standby where a primary should be; the slot or
    // another object is held by somebody; a login that worked before is refused.
    ("53", Action::Wait),
    ("58030", Action::Wait),
    ("25006", Action::Wait),
    ("55006", Action::Wait),
    ("28", Action::Wait),
    ("3D000", Action::Wait),
    // Rows that another writer made or removed.
    ("23505", Action::Conflict),
    ("23503", Action::Conflict),
    ("23P01", Action::Conflict),
    // Data, constraints, names, rights, limits, features: only a person can change the outcome.
    ("22", Action::Stop),
    ("23", Action::Stop),
    ("42", Action::Stop),
    ("54", Action::Stop),
    ("0A", Action::Stop),
    ("55", Action::Stop),
    ("58", Action::Stop),
    ("XX", Action::Stop),
];

impl Action {
    /// The action for a SQLSTATE.
    pub fn for_sqlstate(code: SqlState) -> Action {
        ACTIONS
            .iter()
            .filter(|(prefix, _)| code.starts_with(prefix))
            .max_by_key(|(prefix, _)| prefix.len())
            .map_or(Action::Stop, |(_, action)| *action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_the_table_has_its_action() {
        use Action::*;
        let cases = [
            ("40001", Retry),
            ("40P01", Retry),
            ("55P03", Retry),
            ("57014", Retry),
            ("40003", Reconnect),
            ("08006", Reconnect),
            ("08P01", Reconnect),
            ("57P01", Reconnect),
            ("57P02", Reconnect),
            ("57P03", Reconnect),
            ("57P04", Reconnect),
            ("57P05", Reconnect),
            ("53300", Reconnect),
            ("25P03", Reconnect),
            ("25P04", Reconnect),
            ("53100", Wait),
            ("53200", Wait),
            ("53400", Wait),
            ("58030", Wait),
            ("25006", Wait),
            ("55006", Wait),
            ("28000", Wait),
            ("28P01", Wait),
            ("3D000", Wait),
            ("23505", Conflict),
            ("23503", Conflict),
            ("23P01", Conflict),
            ("22001", Stop),
            ("22P02", Stop),
            ("23502", Stop),
            ("23514", Stop),
            ("42P01", Stop),
            ("42501", Stop),
            ("54001", Stop),
            ("0A000", Stop),
            ("55000", Stop),
            ("58P01", Stop),
            ("25P02", Stop),
            ("P0001", Stop),
            ("XX000", Stop),
        ];
        for (code, want) in cases {
            assert_eq!(Action::for_sqlstate(SqlState::new(code).unwrap()), want, "{code}");
        }
    }

    #[test]
    fn every_row_of_the_table_is_reached() {
        for (prefix, action) in ACTIONS {
            let code = format!("{prefix:0<5}");
            let longer = ACTIONS
                .iter()
                .any(|(p, _)| p.len() > prefix.len() && code.starts_with(p));
            if !longer {
                assert_eq!(
                    Action::for_sqlstate(SqlState::new(&code).unwrap()),
                    *action,
                    "{prefix}"
                );
            }
        }
    }

    #[test]
    fn sqlstate_takes_five_capitals_and_digits_only() {
        assert_eq!(SqlState::new("23505"), Some(SqlState::UNIQUE_VIOLATION));
        for bad in ["", "2350", "235055", "2350a", "2350é"] {
            assert_eq!(SqlState::new(bad), None, "{bad}");
        }
    }
}
