//! The text of statements that decide conflicts: the change, what is in its way, who wins and the log, all in one.
//!
//! ```text
//! r        the changes: v0… the values, k0… what locates the row, at the source transaction
//! found    what each meets: the row of its key, rows in the way by another unique key
//! conflict those that meet what they should not, with kind and winner
//! logged   a row of cdc_sync.conflict_log for each
//! cleared  blue_wins: rows in the way are removed
//! acted    the changes that have not lost
//! ```
//!
//! One snapshot decides for all of it. Its one row of numbers says how many changes lost, how many were put aside, how
//! many had nothing to do and how many were applied; they must add up, or the target was written to in between.

use cdc_core::conflict::{ConflictKind, Policy, VersionColumns};
use cdc_core::{Error, Kind, Result};

use super::flight::Effect;
use super::sql::{Locating, element, equal, list, names};
use super::tables::{Bound, ColumnFacts};
use crate::catalog::qualified;
use crate::wire::session::literal;

/// Whether a statement takes one row, its values as parameters, or many as arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Row,
    Set,
}

/// A statement that writes `columns` of what `locate` finds as the table's policy says.
pub(super) fn statement(
    table: &Bound,
    effect: Effect,
    form: Form,
    columns: &[usize],
    locate: &[Locating],
) -> Result<String> {
    Deciding {
        table,
        effect,
        columns,
        locate,
        name: qualified(&table.planned.target.name),
    }
    .text(form)
}

struct Deciding<'a> {
    table: &'a Bound,
    effect: Effect,
    columns: &'a [usize],
    locate: &'a [Locating],
    name: String,
}

impl Deciding<'_> {
    fn text(&self, form: Form) -> Result<String> {
        let acted = self.acted()?;
        let cleared = match self.in_the_way("c")?.as_slice() {
            [] => String::new(),
            terms if *self.policy() == Policy::BlueWins => {
                let name = &self.name;
                let rows: Vec<String> = terms
                    .iter()
                    .map(|term| {
                        format!(
                            "SELECT t.ctid FROM conflict AS c JOIN ONLY {name} AS t ON {term} WHERE c.winner = 'blue'"
                        )
                    })
                    .collect();
                format!(
                    "cleared AS (DELETE FROM ONLY {name} AS t WHERE t.ctid = ANY (ARRAY({})) RETURNING 1), ",
                    rows.join(" UNION ")
                )
            }
            _ => String::new(),
        };
        let cleared_first = if cleared.is_empty() {
            ""
        } else {
            " AND (SELECT count(*) FROM cleared) >= 0"
        };
        Ok(format!(
            "WITH {}, {}, {}, {}, {cleared}{} \
             SELECT count(*) FILTER (WHERE winner = 'green'), count(*) FILTER (WHERE winner = 'none'), \
             count(*) FILTER (WHERE winner = 'both'), {} FROM logged",
            self.changes(form)?,
            self.found()?,
            self.conflict()?,
            self.logged()?,
            acted.text.replace("{cleared}", cleared_first),
            acted.count
        ))
    }

    fn policy(&self) -> &Policy {
        &self.table.planned.target.policy
    }

    fn lww(&self) -> Option<&VersionColumns> {
        match self.policy() {
            Policy::Lww(version) => Some(version),
            _ => None,
        }
    }

    /// The changes with their values in the types of their columns.
    fn changes(&self, form: Form) -> Result<String> {
        let located = self.locate.iter().map(|locating| &locating.column);
        let value = |(place, column): (usize, &usize)| {
            let facts = self.table.column(*column)?;
            let name = match place.checked_sub(self.columns.len()) {
                None => format!("v{place}"),
                Some(place) => format!("k{place}"),
            };
            Ok(match form {
                Form::Row => format!("${}::{} AS {name}", place + 1, facts.cast),
                Form::Set => format!("{} AS {name}", element(facts, place)),
            })
        };
        let values = list(self.columns.iter().chain(located).enumerate(), value)?;
        let count = self.columns.len() + self.locate.len();
        Ok(match form {
            Form::Row => format!("r AS (SELECT {values}, ${}::text AS at, 1 AS n)", count + 1),
            Form::Set => {
                let arrays: Vec<String> = (1..=count + 1).map(|place| format!("${place}::text[]")).collect();
                let elements: Vec<String> = (0..=count).map(|place| format!("c{place}")).collect();
                format!(
                    "r AS (SELECT {values}, k.c{count} AS at, k.n FROM unnest({}) WITH ORDINALITY AS k ({}, n))",
                    arrays.join(", "),
                    elements.join(", ")
                )
            }
        })
    }

    /// That row `t` is the one that the change of `r` is about.
    fn own(&self, r: &str) -> Result<String> {
        let mut terms = Vec::new();
        for (place, locating) in self.locate.iter().enumerate() {
            let facts = self.table.column(locating.column)?;
            terms.push(equal(
                facts,
                &format!("t.{}", facts.quoted),
                &format!("{r}.k{place}"),
            ));
        }
        Ok(terms.join(" AND "))
    }

    /// That row `t` is another one that has a unique value which the change of `r` writes: one condition for each
    /// unique key of which the change knows every column.
    fn in_the_way(&self, r: &str) -> Result<Vec<String>> {
        if self.effect == Effect::Delete {
            return Ok(Vec::new());
        }
        let planned = &self.table.planned;
        let own_key: Vec<usize> = planned
            .locator
            .iter()
            .filter_map(|column| planned.columns.get(*column).copied())
            .collect();
        let moves = self.columns.iter().any(|column| planned.locator.contains(column));
        let own_key = (self.effect == Effect::Update && moves).then_some(own_key);
        let mut conditions = Vec::new();
        for key in self.table.uniques.iter().chain(&own_key) {
            let terms: Option<Vec<String>> = key
                .iter()
                .map(|target| {
                    let facts = self.table.columns.get(*target)?;
                    let value = self.value_of(*target, r)?;
                    Some(equal(facts, &format!("t.{}", facts.quoted), &value))
                })
                .collect();
            if let Some(terms) = terms.filter(|terms| !terms.is_empty()) {
                conditions.push(format!("({} AND NOT ({}))", terms.join(" AND "), self.own(r)?));
            }
        }
        Ok(conditions)
    }

    /// The value that the change leaves in a column of the target.
    fn value_of(&self, target: usize, r: &str) -> Option<String> {
        let source = self
            .table
            .planned
            .columns
            .iter()
            .position(|column| *column == target)?;
        if let Some(place) = self.columns.iter().position(|column| *column == source) {
            return Some(format!("{r}.v{place}"));
        }
        let place = self
            .locate
            .iter()
            .position(|locating| locating.column == source)?;
        Some(format!("{r}.k{place}"))
    }

    /// Each change with the row of its key and how many other unique keys find another row. One condition a query: an
    /// OR of them could only be answered by a bitmap or a scan, which the session's plans avoid.
    fn found(&self) -> Result<String> {
        let hits: Vec<String> = self
            .in_the_way("r")?
            .iter()
            .map(|condition| {
                format!(
                    "EXISTS (SELECT FROM ONLY {} AS t WHERE {condition})::int",
                    self.name
                )
            })
            .collect();
        let hits = if hits.is_empty() {
            "0".to_owned()
        } else {
            hits.join(" + ")
        };
        let versions: String = self
            .version_columns("f")?
            .iter()
            .enumerate()
            .map(|(place, (facts, _))| format!(", t.{} AS version{place}", facts.quoted))
            .collect();
        let (name, own) = (&self.name, self.own("r")?);
        Ok(format!(
            "found AS (SELECT r.*, m.own_at IS NOT NULL AS own, {hits} AS hits, m.* FROM r LEFT JOIN LATERAL \
             (SELECT t.ctid AS own_at{versions} FROM ONLY {name} AS t WHERE {own} LIMIT 1) AS m ON true)"
        ))
    }

    /// The rows that a change of `conflict` met, as an object of texts or a list of them; none where none was there.
    fn green(&self) -> Result<String> {
        let name = &self.name;
        let others = self.in_the_way("c")?;
        let others: String = others
            .iter()
            .map(|condition| format!(" UNION SELECT t.ctid FROM ONLY {name} AS t WHERE {condition}"))
            .collect();
        let row = self.row_as_text();
        Ok(format!(
            "(SELECT CASE count(*) WHEN 0 THEN NULL WHEN 1 THEN jsonb_agg({row}) -> 0 ELSE jsonb_agg({row}) END \
             FROM ONLY {name} AS t WHERE t.ctid = ANY (ARRAY(SELECT c.own_at WHERE c.own{others})))"
        ))
    }

    /// Row `t` as an object of texts.
    fn row_as_text(&self) -> String {
        let columns = self
            .table
            .planned
            .target
            .columns
            .iter()
            .zip(self.table.columns.iter());
        let pairs: Vec<String> = columns
            .map(|(column, facts)| format!("{}, t.{}::text", literal(&column.name), facts.quoted))
            .collect();
        format!("jsonb_object(ARRAY[{}]::text[])", pairs.join(", "))
    }

    /// Under lww, the columns that make up the version, and the change's value of each.
    fn version_columns(&self, r: &str) -> Result<Vec<(&ColumnFacts, String)>> {
        let Some(version) = self.lww() else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for name in std::iter::once(&version.version).chain(&version.node) {
            let target = self.table.planned.target.column(name);
            let facts = target.and_then(|target| self.table.columns.get(target));
            let value = target.and_then(|target| self.value_of(target, r));
            match (facts, value) {
                (Some(facts), Some(value)) => found.push((facts, value)),
                // The old row is not known in full: there is nothing to compare, and the delete stands.
                (Some(_), None) if self.effect == Effect::Delete => return Ok(Vec::new()),
                _ => {
                    return Err(Error::new(
                        Kind::Schema,
                        format!("policy lww needs column {name} on both sides, in every change"),
                    )
                    .object(self.table.name())
                    .remedy("add the column, or choose another policy for the table"));
                }
            }
        }
        Ok(found)
    }

    /// `(blue's version) <operator> (green's)`; NULL where one is not known.
    fn compare_versions(&self, operator: &str) -> Result<Option<String>> {
        let columns = self.version_columns("f")?;
        if columns.is_empty() {
            return Ok(None);
        }
        let blue: Vec<&str> = columns.iter().map(|(_, value)| value.as_str()).collect();
        let green: Vec<String> = (0..columns.len())
            .map(|place| format!("f.version{place}"))
            .collect();
        Ok(Some(format!(
            "(({}) {operator} ({}))",
            blue.join(", "),
            green.join(", ")
        )))
    }

    /// Under lww, that the change of `r` is not older than row `t` as it is when it is written: it may have become newer
    /// since the snapshot, and was waited for. The numbers do not add up then, and the group is applied again.
    fn still_newer(&self, r: &str) -> Result<String> {
        let columns = self.version_columns(r)?;
        if columns.is_empty() {
            return Ok(String::new());
        }
        let blue: Vec<&str> = columns.iter().map(|(_, value)| value.as_str()).collect();
        let green: Vec<String> = columns
            .iter()
            .map(|(facts, _)| format!("t.{}", facts.quoted))
            .collect();
        Ok(format!(" AND (({}) >= ({}))", blue.join(", "), green.join(", ")))
    }

    fn conflict(&self) -> Result<String> {
        let newer = self.compare_versions("<")?;
        let differs = newer.as_ref().map_or_else(String::new, |newer| {
            format!(" OR (f.own AND coalesce({newer}, true))")
        });
        let name = |kind: ConflictKind| literal(kind.name());
        let (meets, kind) = match self.effect {
            Effect::Insert | Effect::Upsert => (
                "f.own OR f.hits > 0".to_owned(),
                format!(
                    "CASE WHEN f.own::int + f.hits > 1 THEN {} ELSE {} END",
                    name(ConflictKind::MultipleUniqueConflicts),
                    name(ConflictKind::InsertExists)
                ),
            ),
            Effect::Update => (
                format!("NOT f.own OR f.hits > 0{differs}"),
                format!(
                    "CASE WHEN NOT f.own THEN {} WHEN f.hits > 1 THEN {} WHEN f.hits = 1 THEN {} ELSE {} END",
                    name(ConflictKind::UpdateMissing),
                    name(ConflictKind::MultipleUniqueConflicts),
                    name(ConflictKind::UpdateExists),
                    name(ConflictKind::UpdateOriginDiffers)
                ),
            ),
            Effect::Delete => (
                format!("NOT f.own{differs}"),
                format!(
                    "CASE WHEN NOT f.own THEN {} ELSE {} END",
                    name(ConflictKind::DeleteMissing),
                    name(ConflictKind::DeleteOriginDiffers)
                ),
            ),
        };
        Ok(format!(
            "conflict AS (SELECT f.*, {} AS winner FROM (SELECT f.*, {kind} AS kind FROM found AS f WHERE {meets}) AS f)",
            self.winner()?
        ))
    }

    fn winner(&self) -> Result<String> {
        let missing_row = match self.effect {
            Effect::Delete => "'both'".to_owned(),
            Effect::Update if !self.is_complete() => {
                self.undecided("the change does not carry every column, so the row cannot be inserted")?
            }
            _ => "'blue'".to_owned(),
        };
        Ok(match self.policy() {
            Policy::DeadLetter => "'none'".to_owned(),
            Policy::GreenWins if self.effect == Effect::Delete => "'both'".to_owned(),
            Policy::GreenWins => "'green'".to_owned(),
            Policy::BlueWins if self.effect == Effect::Insert => "'blue'".to_owned(),
            Policy::BlueWins => format!("CASE WHEN f.own THEN 'blue' ELSE {missing_row} END"),
            Policy::Lww(_) => {
                let wins = self.compare_versions(">=")?.unwrap_or_else(|| "true".to_owned());
                let missing = if self.effect == Effect::Insert {
                    String::new()
                } else {
                    format!("WHEN NOT f.own THEN {missing_row} ")
                };
                format!(
                    "CASE WHEN f.hits > 0 THEN {} {missing}WHEN {wins} IS NULL THEN {} WHEN {wins} THEN 'blue' \
                     ELSE 'green' END",
                    self.undecided("versions do not decide about another unique key")?,
                    self.undecided("the version of one of the rows is NULL")?
                )
            }
            Policy::Stop | Policy::Ask => {
                return Err(Error::bug("a policy that decides nothing is to decide"));
            }
        })
    }

    fn undecided(&self, reason: &str) -> Result<String> {
        Ok(format!(
            "cdc_sync.undecided(f.kind, {}, {}, {})",
            literal(&self.table.name()),
            self.key("f")?,
            literal(reason)
        ))
    }

    /// What locates the row, as an object of texts.
    fn key(&self, r: &str) -> Result<String> {
        let pairs = list(self.locate.iter().enumerate(), |(place, locating)| {
            let name = self.source_name(locating.column);
            Ok(format!("{}, {r}.k{place}::text", literal(name)))
        })?;
        Ok(format!("jsonb_object(ARRAY[{pairs}]::text[])"))
    }

    fn source_name(&self, column: usize) -> &str {
        let columns = &self.table.planned.source.columns;
        columns.get(column).map_or("?", |column| column.name.as_str())
    }

    fn logged(&self) -> Result<String> {
        let op = match self.effect {
            Effect::Insert | Effect::Upsert => "insert",
            Effect::Update => "update",
            Effect::Delete => "delete",
        };
        let blue = match self.effect {
            Effect::Delete => "NULL".to_owned(),
            _ => format!("jsonb_object(ARRAY[{}]::text[])", self.carried()),
        };
        let green = self.green()?;
        let target = &self.table.planned.target.name;
        Ok(format!(
            "logged AS (INSERT INTO cdc_sync.conflict_log (stream, position, schema_name, table_name, key, op, kind, \
             policy, winner, blue, green, state) SELECT {}, c.at, {}, {}, {}, {}, c.kind, {}, c.winner, {blue}, {green}, \
             CASE c.winner WHEN 'none' THEN 'open' ELSE 'settled' END FROM conflict AS c ORDER BY c.n RETURNING winner)",
            literal(&self.table.stream),
            literal(&target.schema),
            literal(&target.name),
            self.key("c")?,
            literal(op),
            literal(self.policy().name()),
        ))
    }

    /// Names and texts of what the change carries: the values it writes and, where these do not say it, the key.
    fn carried(&self) -> String {
        let values = self
            .columns
            .iter()
            .enumerate()
            .map(|(place, column)| (*column, format!("c.v{place}")));
        let located = self.locate.iter().enumerate();
        let key = located
            .filter(|(_, locating)| !self.columns.contains(&locating.column))
            .map(|(place, locating)| (locating.column, format!("c.k{place}")));
        let pairs: Vec<String> = values
            .chain(key)
            .map(|(column, value)| format!("{}, {value}::text", literal(self.source_name(column))))
            .collect();
        pairs.join(", ")
    }

    /// Whether the change and what locates its row say every column that is written.
    fn is_complete(&self) -> bool {
        let written = self.table.planned.written.iter();
        let mut known = written.map(|column| {
            self.columns.contains(column) || self.locate.iter().any(|locating| locating.column == *column)
        });
        known.all(|known| known)
    }

    fn acted(&self) -> Result<Acted> {
        let stays = "r.n NOT IN (SELECT n FROM conflict WHERE winner IN ('green', 'none')){cleared}";
        let newer = self.still_newer("r")?;
        let blue_may_win = matches!(self.policy(), Policy::BlueWins | Policy::Lww(_));
        let one = |text: String| Acted {
            text,
            count: "(SELECT count(*) FROM acted)".to_owned(),
        };
        Ok(match self.effect {
            Effect::Insert | Effect::Upsert => {
                let values: Vec<String> = (0..self.columns.len())
                    .map(|place| format!("r.v{place}"))
                    .collect();
                let overwrite = if blue_may_win {
                    self.overwrite()?
                } else {
                    String::new()
                };
                one(format!(
                    "acted AS (INSERT INTO {} AS t ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM r WHERE {stays}{overwrite} \
                     RETURNING 1)",
                    self.name,
                    names(self.table, self.columns)?,
                    values.join(", ")
                ))
            }
            Effect::Delete => one(format!(
                "acted AS (DELETE FROM ONLY {} AS t USING r WHERE {} AND {stays}{newer} RETURNING 1)",
                self.name,
                self.own("r")?
            )),
            Effect::Update => {
                let update = format!(
                    "acted AS (UPDATE ONLY {} AS t SET {} FROM r WHERE {} AND {stays}{newer} RETURNING 1)",
                    self.name,
                    self.assignments()?,
                    self.own("r")?
                );
                if !blue_may_win || !self.is_complete() {
                    return Ok(one(update));
                }
                let planned = &self.table.planned;
                let values: Option<Vec<String>> = planned
                    .written
                    .iter()
                    .map(|column| self.value_of(*planned.columns.get(*column)?, "r"))
                    .collect();
                let values = values.ok_or_else(|| Error::bug("a complete change lacks a column"))?;
                let insert = format!(
                    "inserted AS (INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM conflict AS r \
                     WHERE r.kind = {} AND r.winner = 'blue'{{cleared}} RETURNING 1)",
                    self.name,
                    names(self.table, &planned.written)?,
                    values.join(", "),
                    literal(ConflictKind::UpdateMissing.name())
                );
                Acted {
                    text: format!("{update}, {insert}"),
                    count: "(SELECT count(*) FROM acted) + (SELECT count(*) FROM inserted)".to_owned(),
                }
            }
        })
    }

    /// The columns that an UPDATE sets; one to what it is when the change says none.
    fn assignments(&self) -> Result<String> {
        if let Some(facts) = self.table.touchable().filter(|_| self.columns.is_empty()) {
            return Ok(format!("{0} = t.{0}", facts.quoted));
        }
        list(self.columns.iter().enumerate(), |(place, column)| {
            let facts = self.settable(*column)?;
            Ok(format!("{} = r.v{place}", facts.quoted))
        })
    }

    fn overwrite(&self) -> Result<String> {
        let planned = &self.table.planned;
        let mut set = Vec::new();
        for column in self
            .columns
            .iter()
            .filter(|column| !planned.locator.contains(column))
        {
            let facts = self.settable(*column)?;
            set.push(format!("{0} = excluded.{0}", facts.quoted));
        }
        if set.is_empty() {
            let key = planned.locator.first().copied().unwrap_or_default();
            set.push(format!("{0} = excluded.{0}", self.settable(key)?.quoted));
        }
        let versions = self.version_columns("r")?;
        let newer = if versions.is_empty() {
            String::new()
        } else {
            let of = |row: &str| -> String {
                let columns = versions
                    .iter()
                    .map(|(facts, _)| format!("{row}.{}", facts.quoted));
                columns.collect::<Vec<_>>().join(", ")
            };
            format!(" WHERE (({}) >= ({}))", of("excluded"), of("t"))
        };
        Ok(format!(
            " ON CONFLICT ({}) DO UPDATE SET {}{newer}",
            names(self.table, &planned.locator)?,
            set.join(", ")
        ))
    }

    fn settable(&self, column: usize) -> Result<&ColumnFacts> {
        let facts = self.table.column(column)?;
        if !facts.identity_always {
            return Ok(facts);
        }
        Err(Error::new(
            Kind::Schema,
            format!(
                "policy {} cannot overwrite {}, which is GENERATED ALWAYS AS IDENTITY",
                self.policy().name(),
                facts.quoted
            ),
        )
        .object(self.table.name())
        .remedy(
            "ALTER TABLE … ALTER COLUMN … SET GENERATED BY DEFAULT on the target, or choose another policy",
        ))
    }
}

/// The statements that change data, and the number of rows they change.
struct Acted {
    text: String,
    count: String,
}
