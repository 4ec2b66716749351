//! The tables of every type, and what is done to their rows.
//!
//! Four for each type, named after it: `plain` is found by an integer key, `fully` as well but with old images in the
//! log, `whole` has no key and is found by all its values, and `keyed` has the type as primary key, where the type has
//! an order. The first rows of `plain` stay as they are: one for each value, the last of them NULL.

use testbed::Pair;

use super::values;

/// What a value's text means the same under, whatever the database is set to.
pub(super) const CLEAN: &str = "SET client_encoding = 'UTF8'; SET standard_conforming_strings = on;
    SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET lc_monetary = 'C';
    SET array_nulls = on; SET xmloption = content; SET search_path = pg_catalog, ext; SET client_min_messages = warning;
    SET quote_all_identifiers = off; SET extra_float_digits = 3; SET bytea_output = hex;\n";

const SCHEMAS: &str = "CREATE SCHEMA plain; CREATE SCHEMA fully; CREATE SCHEMA whole; CREATE SCHEMA keyed;\n";

/// The types of a server and the scripts for their tables.
pub(super) struct Tables(Vec<Kind>);

struct Kind {
    /// as a column's type
    name: &'static str,
    texts: Vec<&'static str>,
    /// whether it has table `keyed`
    keyed: bool,
}

impl Tables {
    /// The types of a server of this version.
    pub(super) fn of(major: u16) -> Self {
        let kind = |(name, texts)| Kind {
            name,
            texts,
            keyed: false,
        };
        Self(values::of(major).into_iter().map(kind).collect())
    }

    /// The names of the types.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|kind| kind.name)
    }

    /// Makes the tables on blue, and learns which types can be a key.
    pub(super) fn create(&mut self, pair: &Pair) {
        pair.on_blue(&self.created()).expect("the tables");
        let keyed = pair.on_blue("SELECT relname FROM pg_class WHERE relnamespace = 'keyed'::regnamespace");
        let keyed = keyed.expect("blue answers");
        let keyed: Vec<&str> = keyed.lines().collect();
        for kind in &mut self.0 {
            kind.keyed = keyed.contains(&kind.name);
        }
    }

    /// How many types can be a key.
    pub(super) fn keyed(&self) -> usize {
        self.0.iter().filter(|kind| kind.keyed).count()
    }

    /// The script that makes the tables.
    pub(super) fn created(&self) -> String {
        format!("{SCHEMAS}{}", self.script(Kind::create))
    }

    /// The rows that are there before the job begins.
    pub(super) fn filled(&self) -> String {
        self.script(Kind::fill)
    }

    /// Every value once more.
    pub(super) fn inserted(&self) -> String {
        self.script(Kind::insert)
    }

    /// Every value made another, and rows found by every value.
    pub(super) fn updated(&self) -> String {
        self.script(Kind::update)
    }

    /// Rows that go, by every value, and one that moves to the key of one that went. Where values are equal without
    /// being the same, one of the two goes.
    pub(super) fn deleted(&self) -> String {
        self.script(Kind::delete)
    }

    fn script(&self, of: impl Fn(&Kind) -> String) -> String {
        let statements: Vec<String> = self.0.iter().map(of).collect();
        format!("{CLEAN}{}", statements.join("\n"))
    }
}

impl Kind {
    /// The name of its tables, quoted.
    fn table(&self) -> String {
        format!("\"{}\"", self.name.replace('"', "\"\""))
    }

    /// Its values.
    fn pool(&self) -> String {
        format!("(SELECT id, v FROM plain.{} WHERE id < 1000)", self.table())
    }

    /// The value with this number.
    fn value(&self, id: usize) -> String {
        format!("(SELECT v FROM {} x WHERE id = {id})", self.pool())
    }

    /// NULL included.
    fn count(&self) -> usize {
        self.texts.len() + 1
    }

    /// An array of arrays is no type of its own.
    fn with_array(&self, text: &str) -> String {
        if self.name.ends_with("[]") {
            String::new()
        } else {
            text.replace("TYPE[]", &format!("{}[]", self.name))
        }
    }

    fn create(&self) -> String {
        let (table, name, array) = (self.table(), self.name, self.with_array(", a TYPE[]"));
        // An array of anything can be a key, but boxes have no order: the second row would be refused.
        let keyed = if name == "box[]" {
            String::new()
        } else {
            format!(
                "DO $do$ BEGIN CREATE TABLE keyed.{table} (k {name} PRIMARY KEY, n integer); \
                 EXCEPTION WHEN undefined_object THEN NULL; END $do$;"
            )
        };
        format!(
            "CREATE TABLE plain.{table} (id integer PRIMARY KEY, v {name}{array});
             CREATE TABLE fully.{table} (id integer PRIMARY KEY, v {name}{array});
             CREATE TABLE whole.{table} (v {name}{array}, n integer);
             ALTER TABLE fully.{table} REPLICA IDENTITY FULL; ALTER TABLE whole.{table} REPLICA IDENTITY FULL;
             {keyed}"
        )
    }

    /// The cast by which values become elements: an array of what is an array itself would be one of more dimensions,
    /// unless it is made from their text.
    fn element(&self) -> &'static str {
        match self.name {
            "int2vector" | "oidvector" | "own.few" => "::text",
            _ => "",
        }
    }

    /// An array of the values `p.v` and `q.v`: with NULL, of two dimensions, empty, with a lower bound of its own, NULL.
    fn array(&self) -> String {
        let text = self.element();
        let (p, q) = (format!("p.v{text}"), format!("q.v{text}"));
        self.with_array(&format!(
            ", a = CASE p.id % 5 WHEN 0 THEN NULL WHEN 1 THEN ARRAY[{p}, NULL, {q}]{text}::TYPE[] \
             WHEN 2 THEN ARRAY[ARRAY[{p}, {q}], ARRAY[{q}, {p}]]{text}::TYPE[] WHEN 3 THEN '{{}}' \
             ELSE ('[-1:0]=' || (ARRAY[{p}, {q}]{text}::TYPE[])::text)::TYPE[] END"
        ))
    }

    fn fill(&self) -> String {
        let (table, name, pool, count) = (self.table(), self.name, self.pool(), self.count());
        let texts = self.texts.iter().map(|text| format!("$v${text}$v$"));
        let rows: Vec<String> = (1..)
            .zip(texts.chain(["NULL".to_owned()]))
            .map(|(id, text)| format!("({id}, {text}::{name})"))
            .collect();
        let (rows, array, text) = (rows.join(", "), self.array(), self.element());
        let all = self.with_array(&format!(
            ", (SELECT array_agg(v{text} ORDER BY id){text}::TYPE[] FROM {pool} y)"
        ));
        let keyed = self.if_keyed(format!(
            "INSERT INTO keyed.{table} SELECT v, 0 FROM {pool} x WHERE id < {count} AND id % 2 = 0 \
             ON CONFLICT DO NOTHING;"
        ));
        format!(
            "INSERT INTO plain.{table} (id, v) VALUES {rows};
             UPDATE plain.{table} p SET v = p.v{array} FROM plain.{table} q WHERE q.id = p.id % {count} + 1;
             INSERT INTO fully.{table} SELECT * FROM plain.{table};
             INSERT INTO whole.{table} SELECT v{all}, 0 FROM {pool} x; {keyed}"
        )
    }

    fn insert(&self) -> String {
        let (table, pool, count, array) = (self.table(), self.pool(), self.count(), self.with_array(", a"));
        let keyed = self.if_keyed(format!(
            "INSERT INTO keyed.{table} SELECT v, 1 FROM {pool} x WHERE id < {count} AND id % 2 = 1 \
             ON CONFLICT DO NOTHING;"
        ));
        format!(
            "INSERT INTO plain.{table} SELECT id + 1000, v{array} FROM plain.{table};
             INSERT INTO fully.{table} SELECT id + 1000, v{array} FROM fully.{table};
             INSERT INTO whole.{table} SELECT v{array}, 1 FROM whole.{table}; {keyed}"
        )
    }

    fn update(&self) -> String {
        let (table, count, array) = (self.table(), self.count(), self.with_array(", a = q.a"));
        let rotated = |schema: &str| {
            format!(
                "UPDATE {schema}.{table} p SET v = q.v{array} FROM {schema}.{table} q
                     WHERE p.id > 1000 AND q.id = (p.id - 1000) % {count} + 1;"
            )
        };
        let keyed = self.if_keyed(format!("UPDATE keyed.{table} SET n = n + 2;"));
        format!(
            "{} {} UPDATE whole.{table} SET n = n + 2; {keyed}",
            rotated("plain"),
            rotated("fully")
        )
    }

    fn delete(&self) -> String {
        let table = self.table();
        let keyed = self.if_keyed(format!(
            "DELETE FROM keyed.{table} WHERE n = 3;
             UPDATE keyed.{table} SET k = {}, n = 9 WHERE k = {}; DELETE FROM keyed.{table} WHERE k = {};",
            self.value(1),
            self.value(2),
            self.value(4)
        ));
        format!(
            "DELETE FROM plain.{table} WHERE id % 3 = 0; DELETE FROM fully.{table} WHERE id % 3 = 0;
             DELETE FROM whole.{table} WHERE n = 3;
             DELETE FROM whole.{table} WHERE ctid IN (SELECT ctid FROM (SELECT ctid, row_number()
                 OVER (ORDER BY format('%s', v)) AS place FROM whole.{table}) x WHERE place % 2 = 0); {keyed}"
        )
    }

    fn if_keyed(&self, statements: String) -> String {
        if self.keyed { statements } else { String::new() }
    }
}
