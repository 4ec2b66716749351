//! Which tables a job replicates.

use std::fmt;
use std::str::FromStr;

use crate::model::TableName;

/// What a partitioned table is to a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Partitions {
    /// each leaf partition is a table of its own
    #[default]
    Leaves,
    /// the root is one table, however each side divides it
    Root,
}

impl FromStr for Partitions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "leaves" => Ok(Self::Leaves),
            "root" => Ok(Self::Root),
            _ => Err(format!("{text:?} is neither leaves nor root")),
        }
    }
}

impl fmt::Display for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leaves => "leaves",
            Self::Root => "root",
        })
    }
}

/// Which tables a job replicates: patterns of `schema.table` with `*` and `?`. Without includes: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableSelection {
    /// patterns of tables to take
    pub include: Vec<String>,
    /// patterns of tables to leave, stronger than `include`
    pub exclude: Vec<String>,
    /// whether the patterns mean partitions or partitioned tables
    pub partitions: Partitions,
}

impl TableSelection {
    /// Whether `table` is replicated. A pattern without a dot matches the table name in any schema.
    pub fn selects(&self, table: &TableName) -> bool {
        let hit = |pattern: &String| matches_pattern(pattern, table);
        (self.include.is_empty() || self.include.iter().any(hit)) && !self.exclude.iter().any(hit)
    }
}

/// Whether a pattern means `table`: `schema.table`, or the table name in any schema when it has no dot.
pub fn matches_pattern(pattern: &str, table: &TableName) -> bool {
    if pattern.contains('.') {
        wildcard_match(pattern.as_bytes(), table.to_string().as_bytes())
    } else {
        wildcard_match(pattern.as_bytes(), table.name.as_bytes())
    }
}

/// `*` is any run of bytes, `?` any one. Linear in the subject for each star: the classic two-pointer walk.
fn wildcard_match(pattern: &[u8], subject: &[u8]) -> bool {
    let (mut p, mut s, mut star) = (0, 0, None);
    while let Some(&byte) = subject.get(s) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, s));
                p += 1;
            }
            Some(&want) if want == b'?' || want == byte => {
                p += 1;
                s += 1;
            }
            _ => match star {
                Some((star_p, star_s)) => {
                    p = star_p + 1;
                    s = star_s + 1;
                    star = Some((star_p, s));
                }
                None => return false,
            },
        }
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_takes_patterns_with_and_without_schema() {
        let selection = TableSelection {
            include: vec!["public.*".into(), "orders".into()],
            exclude: vec!["public.audit_*".into(), "tm?".into()],
            ..TableSelection::default()
        };
        let selects = |schema: &str, name: &str| selection.selects(&TableName::new(schema, name));
        assert!(selects("public", "users"));
        assert!(selects("sales", "orders"));
        assert!(!selects("sales", "order_items"));
        assert!(!selects("public", "audit_2026"));
        assert!(!selects("public", "tmp"));
        assert!(selects("public", "tmpx"));
        assert!(TableSelection::default().selects(&TableName::new("a", "b")));
    }

    #[test]
    fn wildcards_backtrack() {
        assert!(wildcard_match(b"a*b*c", b"axxbyybzc"));
        assert!(!wildcard_match(b"a*b*c", b"axxbyybz"));
        assert!(wildcard_match(b"*", b""));
        assert!(!wildcard_match(b"?", b""));
    }
}
