//! Runs the statements of a restored schema on the target.

use std::sync::atomic::{AtomicUsize, Ordering};

use cdc_core::{Error, Kind, Result, TableName, failpoint};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::script::Statement;
use crate::catalog::qualified;
use crate::config::Config;
use crate::session::{connect, during};
use crate::wire::ServerVersion;

/// Settings that a newer `pg_restore` prints and an older server does not know, with the major version they came in.
const NEW_SETTINGS: &[(&str, u32)] = &[("transaction_timeout", 17), ("idle_session_timeout", 14)];

/// Statements about roles and remarks: their failure leaves a schema that works. Named when refused.
const DISPENSABLE: &[&[&str]] = &[
    &["GRANT"],
    &["REVOKE"],
    &["COMMENT"],
    &["ALTER", "DEFAULT", "PRIVILEGES"],
    &["SET", "SESSION", "AUTHORIZATION"],
    &["RESET", "SESSION", "AUTHORIZATION"],
];

/// How a dispensable statement may fail: a role (or, for a remark, an object) that does not exist, a right that is
/// missing.
const DISPENSED: &[&str] = &["42704", "42501"];

/// Two builds at a time: each reads a table once and sorts on a processor of its own.
const BUILDERS: usize = 2;

/// How a statement fails whose object is there: schemas, relations, types and the like, functions, identity columns.
const THERE: &[&str] = &["42P06", "42P07", "42710", "42723", "55000"];

/// The statements before the data, in one transaction: a schema is there whole or not at all. One that `completes` what
/// is there leaves it as it is.
pub(super) async fn before_data(
    config: &Config,
    statements: &[Statement<'_>],
    completes: bool,
) -> Result<()> {
    let client = connect(config, &[]).await?;
    let version = server_version(&client).await?;
    let mut refused = Vec::new();
    batch(&client, "BEGIN").await?;
    for statement in statements
        .iter()
        .filter(|statement| !is_unknown_setting(**statement, version))
    {
        let dispensable = is_dispensable(*statement);
        if !dispensable && !completes {
            let text = without_existing_schema(*statement);
            client
                .batch_execute(&text)
                .await
                .map_err(|error| failed(*statement, error))?;
            continue;
        }
        let text = without_existing_schema(*statement);
        let guarded = format!("SAVEPOINT guarded; {text}; RELEASE guarded");
        if let Err(error) = client.batch_execute(&guarded).await {
            if dispensable && has_code(&error, DISPENSED) {
                refused.push(refusal(*statement, &error));
            } else if completes && has_code(&error, THERE) {
                tracing::debug!("there already: {}", statement.title());
            } else {
                return Err(failed(*statement, error));
            }
            batch(&client, "ROLLBACK TO guarded").await?;
        }
    }
    failpoint!("schema.before-commit", error);
    batch(&client, "COMMIT").await?;
    failpoint!("schema.created", error);
    warn_refused(&refused);
    tracing::info!(
        statements = statements.len(),
        "schema created, indexes and constraints follow after the data"
    );
    Ok(())
}

/// When a statement after the data is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// As soon as the tables are loaded: what concerns one table alone.
    WithinTables,
    /// When the tables agree with each other: foreign keys, triggers, all else.
    Rest,
}

/// The statements of `stage`, each by itself. What is there from an earlier attempt is left as it is.
pub(super) async fn after_data(config: &Config, statements: &[Statement<'_>], stage: Stage) -> Result<()> {
    let mut clients = Vec::with_capacity(BUILDERS);
    for _ in 0..BUILDERS {
        clients.push(connect(config, &[]).await?);
    }
    let [first, second] = clients.as_slice() else {
        return Err(Error::bug("not as many connections as builders"));
    };
    let version = server_version(first).await?;
    let statements: Vec<Statement<'_>> = statements
        .iter()
        .copied()
        .filter(|statement| !is_unknown_setting(*statement, version))
        .filter(|statement| {
            is_setting(*statement) || is_within_table(*statement) == (stage == Stage::WithinTables)
        })
        .collect();
    let mut refused = Vec::new();
    let mut done = 0;
    while let Some(statement) = statements.get(done) {
        let rest = statements.get(done..).unwrap_or_default();
        let builds = rest.iter().take_while(|statement| is_build(**statement)).count();
        if builds > 1 {
            let run = Run {
                builds: rest.get(..builds).unwrap_or_default(),
                next: AtomicUsize::new(0),
                before: done,
                of: statements.len(),
            };
            tokio::try_join!(run.work(first), run.work(second))?;
            done += builds;
            continue;
        }
        progress(*statement, done, statements.len());
        execute(first, *statement, &mut refused).await?;
        if is_setting(*statement) {
            execute(second, *statement, &mut Vec::new()).await?;
        }
        done += 1;
        if stage == Stage::Rest {
            failpoint!("foreign-keys.one-added", error);
        }
    }
    if stage == Stage::Rest {
        failpoint!("foreign-keys.added", error);
    } else {
        failpoint!("indexes.built", error);
    }
    warn_refused(&refused);
    Ok(())
}

/// Consecutive statements that do not depend on each other.
struct Run<'a> {
    builds: &'a [Statement<'a>],
    next: AtomicUsize,
    before: usize,
    of: usize,
}

impl Run<'_> {
    async fn work(&self, client: &Client) -> Result<()> {
        loop {
            let place = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(statement) = self.builds.get(place) else {
                return Ok(());
            };
            progress(*statement, self.before + place, self.of);
            execute(client, *statement, &mut Vec::new()).await?;
            failpoint!("indexes.one-built", error);
        }
    }
}

fn progress(statement: Statement<'_>, done: usize, of: usize) {
    if is_setting(statement) {
        return;
    }
    tracing::info!("schema statement {} of {of}: {}", done + 1, statement.title());
}

async fn execute(client: &Client, statement: Statement<'_>, refused: &mut Vec<String>) -> Result<()> {
    let Err(error) = client.batch_execute(statement.text()).await else {
        return Ok(());
    };
    if is_dispensable(statement) && has_code(&error, DISPENSED) {
        refused.push(refusal(statement, &error));
        return Ok(());
    }
    // duplicate_table (indexes are relations), duplicate_object, invalid_table_definition (a second primary key);
    // unique_violation in a catalog: the session of an earlier attempt was still at it.
    if has_code(&error, &["42P07", "42710", "42P16", "23505"]) && is_there(client, statement).await? {
        tracing::debug!("there already: {}", statement.title());
        return Ok(());
    }
    Err(failed(statement, error))
}

fn is_setting(statement: Statement<'_>) -> bool {
    statement.starts_with(&["SET"])
        || statement.starts_with(&["SELECT", "pg_catalog.set_config('search_path',"])
}

fn is_unknown_setting(statement: Statement<'_>, server: ServerVersion) -> bool {
    NEW_SETTINGS
        .iter()
        .any(|(name, since)| server.major() < *since && statement.starts_with(&["SET", name]))
}

fn is_dispensable(statement: Statement<'_>) -> bool {
    let words = tokens(statement.text());
    let gives_owner = words.first() == Some(&"ALTER")
        && words.get(words.len().saturating_sub(3)..words.len().saturating_sub(1)) == Some(&["OWNER", "TO"]);
    gives_owner || DISPENSABLE.iter().any(|start| statement.starts_with(start))
}

/// An index or a key: it reads and locks one table.
fn is_build(statement: Statement<'_>) -> bool {
    let words = tokens(statement.text());
    match words.as_slice() {
        ["CREATE", "INDEX", ..] | ["CREATE", "UNIQUE", "INDEX", ..] => true,
        ["ALTER", "TABLE", "ONLY", _, "ADD", "CONSTRAINT", _, kind, ..] => {
            matches!(*kind, "PRIMARY" | "UNIQUE")
        }
        _ => false,
    }
}

/// Whether a statement concerns one table alone.
fn is_within_table(statement: Statement<'_>) -> bool {
    let words = tokens(statement.text());
    match words.as_slice() {
        ["CREATE", "STATISTICS", ..] | ["ALTER", "INDEX" | "STATISTICS", ..] => true,
        ["ALTER", "TABLE", "ONLY", _, rest @ ..] | ["ALTER", "TABLE", _, rest @ ..] => match rest {
            ["ADD", "CONSTRAINT", _, kind, ..] => *kind != "FOREIGN",
            ["REPLICA", "IDENTITY", ..] | ["CLUSTER", "ON", ..] => true,
            _ => false,
        },
        _ => is_build(statement),
    }
}

/// `CREATE SCHEMA` is printed without regard to schemas that the target has from the start, such as `public`.
fn without_existing_schema(statement: Statement<'_>) -> String {
    match tokens(statement.text()).as_slice() {
        ["CREATE", "SCHEMA", name] => format!("CREATE SCHEMA IF NOT EXISTS {name}"),
        _ => statement.text().to_owned(),
    }
}

/// Whether the index, constraint or other object that a statement makes is on its table already. One of the same
/// name elsewhere does not count.
async fn is_there(client: &Client, statement: Statement<'_>) -> Result<bool> {
    let words = tokens(statement.text());
    let (table, name, catalog) = match words.as_slice() {
        ["CREATE", "UNIQUE", "INDEX", name, "ON", "ONLY", table, ..]
        | ["CREATE", "UNIQUE", "INDEX", name, "ON", table, ..]
        | ["CREATE", "INDEX", name, "ON", "ONLY", table, ..]
        | ["CREATE", "INDEX", name, "ON", table, ..] => (
            *table,
            *name,
            "SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid \
             WHERE i.indrelid = to_regclass($1) AND x.relname = $2",
        ),
        ["ALTER", "TABLE", "ONLY", table, "ADD", "CONSTRAINT", name, ..]
        | ["ALTER", "TABLE", table, "ADD", "CONSTRAINT", name, ..] => (
            *table,
            *name,
            "SELECT FROM pg_constraint x WHERE x.conrelid = to_regclass($1) AND x.conname = $2",
        ),
        // Triggers, rules, policies: their names belong to their tables, so that "exists" says which is meant.
        // Statistics and event triggers have names of their own.
        ["CREATE", ..] => return Ok(true),
        _ => return Ok(false),
    };
    // Whether the script quotes a name that need not be is up to a setting of the server that was dumped.
    let name = unquoted(name);
    let found = client
        .query_typed_opt(catalog, &[(&table, Type::TEXT), (&name, Type::TEXT)])
        .await
        .map_err(during("looking for an index or constraint"))?;
    Ok(found.is_some())
}

/// An identifier as the catalog has it.
fn unquoted(identifier: &str) -> String {
    match identifier
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
    {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => identifier.to_owned(),
    }
}

/// The words of a statement; space within quotes divides nothing.
fn tokens(text: &str) -> Vec<&str> {
    let mut quote: Option<char> = None;
    text.split(move |c: char| {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            _ => {}
        }
        quote.is_none() && c.is_ascii_whitespace()
    })
    .filter(|word| !word.is_empty())
    .collect()
}

/// Fills the materialized views that were filled on the source, as often as it takes for those that read others.
/// One that cannot be filled is no reason to stop: its rows are derived, and REFRESH tells its owner why.
pub(super) async fn refresh(config: &Config, views: &[TableName]) -> Result<()> {
    if views.is_empty() {
        return Ok(());
    }
    let client = connect(config, &[]).await?;
    let mut todo: Vec<&TableName> = views.iter().collect();
    loop {
        let mut left = Vec::new();
        for view in &todo {
            let statement = format!("REFRESH MATERIALIZED VIEW {}", qualified(view));
            if let Err(error) = client.batch_execute(&statement).await {
                if client.is_closed() {
                    return Err(during("filling a materialized view")(error).object(format!("view {view}")));
                }
                left.push((*view, error));
            }
        }
        if left.is_empty() || left.len() == todo.len() {
            for (view, error) in left {
                let error = during("it is left empty")(error);
                tracing::warn!("materialized view {view}: {error}");
            }
            return Ok(());
        }
        todo = left.into_iter().map(|(view, _)| view).collect();
    }
}

async fn batch(client: &Client, statement: &str) -> Result<()> {
    client
        .batch_execute(statement)
        .await
        .map_err(during(format!("{statement} while creating the schema")))
}

async fn server_version(client: &Client) -> Result<ServerVersion> {
    let row = client
        .query_typed_one("SELECT current_setting('server_version_num')::int4", &[])
        .await
        .map_err(during("reading the version of the server"))?;
    Ok(ServerVersion(row.get::<_, i32>(0).unsigned_abs()))
}

fn has_code(error: &tokio_postgres::Error, codes: &[&str]) -> bool {
    error.code().is_some_and(|code| codes.contains(&code.code()))
}

fn failed(statement: Statement<'_>, error: tokio_postgres::Error) -> Error {
    let code = error.code().map(|code| code.code().to_owned());
    let error =
        during("creating the schema on the target")(error).object(format!("statement {}", statement.title()));
    match (error.kind(), code.as_deref()) {
        (Kind::Unreachable, _) => error,
        (_, Some("53200")) => error.remedy(
            "raise max_locks_per_transaction on the target (the schema is created in one transaction), then run again",
        ),
        (_, Some("0A000" | "58P01")) => error.remedy(
            "if it is an extension: install its package on the target's machine, then run again",
        ),
        _ => error.remedy("mend what the statement needs on the target, or run it there yourself; then run again"),
    }
}

fn refusal(statement: Statement<'_>, error: &tokio_postgres::Error) -> String {
    let reason = error
        .as_db_error()
        .map_or_else(|| error.to_string(), |db| db.message().to_owned());
    format!("{} ({reason})", statement.title())
}

fn warn_refused(refused: &[String]) {
    const SHOWN: usize = 20;
    if refused.is_empty() {
        return;
    }
    let more = refused.len().saturating_sub(SHOWN);
    let more = if more > 0 {
        format!("; and {more} more")
    } else {
        String::new()
    };
    let shown: Vec<&str> = refused.iter().take(SHOWN).map(String::as_str).collect();
    tracing::warn!(
        "{} statements about owners, rights and remarks were refused by the target: {}{more}",
        refused.len(),
        shown.join("; ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_the_target_lacks_are_left_out() {
        let new = Statement("SET transaction_timeout = 0");
        assert!(is_unknown_setting(new, ServerVersion(140_023)));
        assert!(!is_unknown_setting(new, ServerVersion(170_000)));
        assert!(!is_unknown_setting(
            Statement("SET statement_timeout = 0"),
            ServerVersion(120_000)
        ));
        assert!(is_setting(new));
        assert!(is_setting(Statement(
            "SELECT pg_catalog.set_config('search_path', '', false)"
        )));
    }

    #[test]
    fn owners_rights_and_remarks_are_dispensable() {
        for text in [
            "ALTER TABLE public.\"a b\" OWNER TO \"the role\"",
            "ALTER FUNCTION public.f(integer, text) OWNER TO x",
            "GRANT SELECT ON TABLE public.t TO x",
            "REVOKE ALL ON SCHEMA public FROM PUBLIC",
            "COMMENT ON EXTENSION plpgsql IS 'x'",
            "ALTER DEFAULT PRIVILEGES FOR ROLE x GRANT ALL ON TABLES TO y",
        ] {
            assert!(is_dispensable(Statement(text)), "{text}");
        }
        for text in [
            "ALTER TABLE ONLY public.t ALTER COLUMN a SET DEFAULT 'x OWNER TO y'",
            "CREATE TABLE a (b int)",
            "SET x = y",
            "ALTER",
            "",
        ] {
            assert!(!is_dispensable(Statement(text)), "{text}");
        }
    }

    #[test]
    fn builds_are_indexes_and_keys() {
        for text in [
            "CREATE INDEX i ON public.t USING btree (a)",
            "CREATE UNIQUE INDEX i ON ONLY public.t USING btree (a)",
            "ALTER TABLE ONLY public.\"T x\"\n    ADD CONSTRAINT \"T x_pkey\" PRIMARY KEY (a)",
            "ALTER TABLE ONLY public.t ADD CONSTRAINT k UNIQUE (a)",
        ] {
            assert!(is_build(Statement(text)), "{text}");
        }
        for text in [
            "ALTER TABLE ONLY public.t ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES public.u(a)",
            "ALTER INDEX public.i ATTACH PARTITION public.j",
            "CREATE TRIGGER t AFTER INSERT ON public.t",
        ] {
            assert!(!is_build(Statement(text)), "{text}");
        }
    }

    #[test]
    fn foreign_keys_and_triggers_wait_for_the_catch_up() {
        for text in [
            "CREATE INDEX i ON public.t USING btree (a)",
            "ALTER INDEX public.i ATTACH PARTITION public.j",
            "ALTER TABLE ONLY public.t ADD CONSTRAINT k EXCLUDE USING gist (a WITH &&)",
            "ALTER TABLE public.t ADD CONSTRAINT c CHECK ((a > 0)) NOT VALID",
            "ALTER TABLE ONLY public.t REPLICA IDENTITY USING INDEX i",
            "CREATE STATISTICS public.s ON a, b FROM public.t",
        ] {
            assert!(is_within_table(Statement(text)), "{text}");
        }
        for text in [
            "ALTER TABLE ONLY public.t ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES public.u(a)",
            "ALTER TABLE public.t ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES public.u(a) NOT VALID",
            "CREATE TRIGGER t AFTER INSERT ON public.t",
            "ALTER TABLE public.t ENABLE ROW LEVEL SECURITY",
            "COMMENT ON INDEX public.i IS 'x'",
        ] {
            assert!(!is_within_table(Statement(text)), "{text}");
        }
    }

    #[test]
    fn names_are_compared_without_their_quotes() {
        for (identifier, name) in [("i", "i"), ("\"i\"", "i"), ("\"A \"\"b\"", "A \"b")] {
            assert_eq!(unquoted(identifier), name);
        }
    }

    #[test]
    fn a_schema_may_be_there_already() {
        assert_eq!(
            without_existing_schema(Statement("CREATE SCHEMA \"a b\"")),
            "CREATE SCHEMA IF NOT EXISTS \"a b\""
        );
        let other = "CREATE TABLE a (b int)";
        assert_eq!(without_existing_schema(Statement(other)), other);
    }
}
