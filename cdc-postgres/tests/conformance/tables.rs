//! Tables of the models as SQL.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use cdc_core::testing::{ColumnSpec, ModelDatabase, ModelValue, TableSpec};
use cdc_core::{DataType, TableName};
use testbed::PgCluster;

/// The schema of the tests' own objects.
pub(crate) const OWN: &str = "harness";

/// What makes `a` equal `A`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Folding {
    /// the type `citext`
    Type,
    /// a nondeterministic collation
    Collation,
}

impl Folding {
    /// The oldest server has it by type and the others by collation, so that both are tried.
    pub(crate) fn of(cluster: &PgCluster) -> Folding {
        if cluster.major() == 12 {
            Folding::Type
        } else {
            Folding::Collation
        }
    }

    /// What the tables of the models need; run once in a database.
    pub(crate) fn prerequisites(self) -> String {
        let own = match self {
            Folding::Type => format!("CREATE EXTENSION citext SCHEMA {OWN};"),
            Folding::Collation => format!(
                "CREATE COLLATION {OWN}.nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
            ),
        };
        format!(
            "CREATE SCHEMA {OWN}; {own}
             CREATE TABLE {OWN}.audit (seq bigserial PRIMARY KEY, schema text, name text, old text[], new text[]);"
        )
    }

    fn text(self) -> String {
        match self {
            Folding::Type => format!("{OWN}.citext"),
            Folding::Collation => format!("text COLLATE {OWN}.nocase"),
        }
    }
}

/// Statements that replace the schemas of `db` by its tables and rows.
pub(crate) fn replace(db: &ModelDatabase, folding: Folding) -> String {
    let specs: Vec<&TableSpec> = db.specs().collect();
    let mut sql = String::new();
    for schema in schemas(db) {
        write(
            &mut sql,
            format_args!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema};\n"),
        );
    }
    for spec in &specs {
        sql.push_str(&create(spec, folding));
        sql.push_str(&fill(db, spec));
    }
    for spec in &specs {
        sql.push_str(&references(spec, &specs));
        // Only now: the rows that are there to begin with are nobody's changes.
        if spec.trigger {
            sql.push_str(&audit(spec));
        }
    }
    if db.foreign_keys_checked() {
        sql.push_str(CHECK_ALWAYS);
    }
    sql
}

/// Statements that let `role` change the rows of `db`, and triggers record it.
pub(crate) fn grant(db: &ModelDatabase, role: &str) -> String {
    let grants = schemas(db).into_iter().chain([OWN.to_owned()]).map(|schema| {
        format!(
            "GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role};
             GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role};\n"
        )
    });
    grants.collect()
}

fn schemas(db: &ModelDatabase) -> BTreeSet<String> {
    db.specs().map(|spec| identifier(&spec.name.schema)).collect()
}

/// Foreign keys are checked by triggers, which rest in sessions that apply.
const CHECK_ALWAYS: &str = "DO $$ DECLARE t record; BEGIN
    FOR t IN SELECT tgrelid::regclass AS relation, tgname AS name FROM pg_trigger
             JOIN pg_constraint k ON k.oid = tgconstraint WHERE k.contype = 'f'
    LOOP EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', t.relation, t.name); END LOOP;
END $$;\n";

fn create(spec: &TableSpec, folding: Folding) -> String {
    let columns = spec
        .columns
        .iter()
        .map(|column| definition(spec, column, folding));
    let keys = spec.keys.iter().map(|key| {
        let kind = if key.primary { "PRIMARY KEY" } else { "UNIQUE" };
        format!("{kind} ({})", names(spec, &key.columns))
    });
    let parts: Vec<String> = columns.chain(keys).collect();
    format!("CREATE TABLE {} ({});\n", qualified(&spec.name), parts.join(", "))
}

fn definition(spec: &TableSpec, column: &ColumnSpec, folding: Folding) -> String {
    let mut text = format!("{} {}", identifier(&column.name), type_name(column, folding));
    if column.not_null {
        text.push_str(" NOT NULL");
    }
    if let Some(default) = &column.default {
        write(
            &mut text,
            format_args!(" DEFAULT {}", literal(&Some(default.clone()))),
        );
    }
    if let Some(from) = column.generated_from {
        let from = names(spec, &[from]);
        write(
            &mut text,
            format_args!(" GENERATED ALWAYS AS ('g:' || {from}) STORED"),
        );
    }
    text
}

fn type_name(column: &ColumnSpec, folding: Folding) -> String {
    match &column.data_type {
        DataType::Int {
            bits: 64,
            signed: true,
        } => "bigint".into(),
        DataType::Text if column.case_insensitive => folding.text(),
        DataType::Text => "text".into(),
        DataType::Decimal { precision: None } => "numeric".into(),
        DataType::Bool => "boolean".into(),
        other => panic!("the models have no columns of type {other:?}"),
    }
}

fn fill(db: &ModelDatabase, spec: &TableSpec) -> String {
    let columns: Vec<usize> = (0..spec.columns.len())
        .filter(|column| spec.columns[*column].generated_from.is_none())
        .collect();
    let rows: Vec<String> = db
        .rows(&spec.name)
        .map(|(_, row)| {
            let values: Vec<String> = columns.iter().map(|column| literal(&row[*column])).collect();
            format!("({})", values.join(", "))
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "INSERT INTO {} ({}) VALUES {};\n",
        qualified(&spec.name),
        names(spec, &columns),
        rows.join(", ")
    )
}

/// The foreign keys whose parents have the key that the server asks for.
fn references(spec: &TableSpec, specs: &[&TableSpec]) -> String {
    let mut sql = String::new();
    for key in &spec.foreign_keys {
        let parent = specs.iter().find(|other| other.name == key.parent);
        let parent = parent.expect("the models know the parent");
        if parent
            .keys
            .iter()
            .any(|unique| unique.columns == key.parent_columns)
        {
            write(
                &mut sql,
                format_args!(
                    "ALTER TABLE {} ADD FOREIGN KEY ({}) REFERENCES {} ({});\n",
                    qualified(&spec.name),
                    names(spec, &key.columns),
                    qualified(&parent.name),
                    names(parent, &key.parent_columns)
                ),
            );
        }
    }
    sql
}

/// A trigger that records every row change, also in sessions that apply.
fn audit(spec: &TableSpec) -> String {
    let (table, schema) = (qualified(&spec.name), identifier(&spec.name.schema));
    let function = format!("{schema}.{}", identifier(&format!("audit {}", spec.name.name)));
    let (old, new) = (row_texts(spec, "old"), row_texts(spec, "new"));
    format!(
        "CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO {OWN}.audit (schema, name, old, new) VALUES (tg_table_schema, tg_table_name,
                 CASE WHEN tg_op <> 'INSERT' THEN {old} END, CASE WHEN tg_op <> 'DELETE' THEN {new} END);
             RETURN NULL;
         END $$;
         CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {function}();
         ALTER TABLE {table} ENABLE ALWAYS TRIGGER audit;\n"
    )
}

/// A row as `text[]` in the models' text form, which is that of the types' output functions.
pub(crate) fn row_texts(spec: &TableSpec, row: &str) -> String {
    let texts = spec.columns.iter().map(|column| {
        let value = format!("{row}.{}", identifier(&column.name));
        match column.data_type {
            // The cast to text writes true and false.
            DataType::Bool => format!("CASE {value} WHEN true THEN 't' WHEN false THEN 'f' END"),
            _ => format!("{value}::text"),
        }
    });
    format!("ARRAY[{}]", texts.collect::<Vec<_>>().join(", "))
}

pub(crate) fn qualified(name: &TableName) -> String {
    format!("{}.{}", identifier(&name.schema), identifier(&name.name))
}

/// The names of columns, separated by commas.
pub(crate) fn names(spec: &TableSpec, columns: &[usize]) -> String {
    let names = columns
        .iter()
        .map(|column| identifier(&spec.columns[*column].name));
    names.collect::<Vec<_>>().join(", ")
}

pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A value of whatever type its place asks for.
pub(crate) fn literal(value: &ModelValue) -> String {
    match value {
        None => "NULL".into(),
        Some(text) => {
            let text = std::str::from_utf8(text).expect("the models' values are text");
            format!("'{}'", text.replace('\'', "''"))
        }
    }
}

fn write(sql: &mut String, text: std::fmt::Arguments<'_>) {
    sql.write_fmt(text).expect("a String takes everything");
}
