//! The statements that give the roles of the URLs the rights a job needs, for an administrator to review and run.
//!
//! A publication takes tables from their owner only (PostgreSQL manual, "CREATE PUBLICATION"). Membership in each owner
//! would give our role the right to change production's tables; so the administrator makes the publication and hands
//! it over.

use std::collections::BTreeSet;

use cdc_core::engine::{JobNames, Partitions, Side, SiteProfile};
use cdc_core::{Result, TableName, TableSelection};
use tokio_postgres::types::Type;

use super::Session;
use super::pair::Profile;
use super::target::ORIGIN_FUNCTIONS;
use crate::catalog::{self, OWN_SCHEMA, qualified};
use crate::clients::Clients;
use crate::publication;
use crate::session::during;
use crate::wire::session::identifier;

/// Names in one GRANT.
const CHUNK: usize = 50;

/// The statements for the role of `clients` in the role `side`; for a target with the profile of its source.
pub(crate) async fn grants(
    clients: &Clients,
    side: Side,
    names: &JobNames,
    selection: &TableSelection,
    source: Option<&SiteProfile>,
) -> Result<Vec<String>> {
    let session = Session::open(clients).await?;
    let row = session
        .client
        .query_typed_one("SELECT rolsuper FROM pg_roles WHERE rolname = current_user", &[])
        .await
        .map_err(during("reading the rights of the role"))?;
    if row.get(0) {
        return Ok(vec![format!(
            "-- {} is a superuser: there is nothing to grant.",
            identifier(&session.role)
        )]);
    }
    let objects = Objects::read(&session, selection).await?;
    let mut statements = Statements {
        role: identifier(&session.role),
        list: Vec::new(),
    };
    statements.push(
        "-- Lets `check` and `status` see what the sessions of other roles do.\nGRANT pg_monitor TO {role};",
    );
    statements.push(&format!(
        "GRANT CREATE, TEMPORARY ON DATABASE {} TO {{role}};",
        identifier(&session.database)
    ));
    if side == Side::Target {
        let source = source.and_then(|source| source.facts.downcast_ref::<Profile>());
        on_target(&session, &objects, source, &mut statements).await?;
    } else {
        on_source(&session, names, selection, &objects, &mut statements).await?;
    }
    Ok(statements.list)
}

struct Statements {
    /// quoted
    role: String,
    list: Vec<String>,
}

impl Statements {
    /// Adds a statement with the role in place of `{role}`.
    fn push(&mut self, statement: &str) {
        self.list.push(statement.replace("{role}", &self.role));
    }

    /// Adds `GRANT rights ON kind names TO role`, as many as it takes.
    fn grant(&mut self, rights: &str, kind: &str, names: &[String]) {
        for chunk in names.chunks(CHUNK) {
            self.push(&format!(
                "GRANT {rights} ON {kind} {} TO {{role}};",
                chunk.join(", ")
            ));
        }
    }
}

/// What there is to grant rights on, names quoted.
struct Objects {
    schemas: BTreeSet<String>,
    /// selected tables, and the partitioned tables that hold them
    tables: Vec<String>,
    sequences: Vec<String>,
    /// row security is on for one of the tables
    row_security: bool,
}

impl Objects {
    async fn read(session: &Session, selection: &TableSelection) -> Result<Objects> {
        // Unlogged tables too: pg_dump locks every table that it dumps, which takes the right to read it.
        let rows = session
            .client
            .query_typed(
                "SELECT n.nspname::text, c.relname::text, c.relkind::text, c.relrowsecurity, \
                        rn.nspname::text, r.relname::text \
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 LEFT JOIN pg_class r ON r.oid = pg_partition_root(c.oid) \
                 LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace \
                 WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' \
                       AND n.nspname NOT IN ('information_schema', 'cdc_sync') \
                       AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = 'pg_class'::regclass \
                                       AND x.objid = c.oid AND x.deptype = 'e') ORDER BY 1, 2",
                &[],
            )
            .await
            .map_err(during("reading the list of tables"))?;
        let mut objects = Objects {
            schemas: BTreeSet::new(),
            tables: Vec::new(),
            sequences: Vec::new(),
            row_security: false,
        };
        for row in rows {
            let name = table_name(&row);
            let kind: &str = row.get(2);
            let root: (Option<String>, Option<String>) = (row.get(4), row.get(5));
            let chosen = match (selection.partitions, root) {
                (Partitions::Root, (Some(schema), Some(root))) => TableName::new(schema, root),
                _ => name.clone(),
            };
            if kind == "r" && !selection.selects(&chosen) {
                continue;
            }
            objects.schemas.insert(identifier(&name.schema));
            objects.row_security |= row.get::<_, bool>(3);
            let names = match kind {
                "S" => &mut objects.sequences,
                _ => &mut objects.tables,
            };
            names.push(qualified(&name));
        }
        Ok(objects)
    }
}

const BYPASS: &str = "-- Row security would hide rows from it.\nALTER ROLE {role} BYPASSRLS;";

async fn on_source(
    session: &Session,
    names: &JobNames,
    selection: &TableSelection,
    objects: &Objects,
    statements: &mut Statements,
) -> Result<()> {
    statements.push("-- On Amazon RDS: GRANT rds_replication TO {role};\nALTER ROLE {role} REPLICATION;");
    let schemas: Vec<String> = objects.schemas.iter().cloned().collect();
    statements.grant("USAGE", "SCHEMA", &schemas);
    statements.grant("SELECT", "TABLE", &objects.tables);
    statements.grant("SELECT", "SEQUENCE", &objects.sequences);
    if objects.row_security {
        statements.push(BYPASS);
    }
    let tables = catalog::inspect(&session.client, selection).await?;
    let foreign = not_owned(session).await?;
    let tables: Vec<TableName> = tables.into_iter().map(|table| table.name).collect();
    if tables.iter().any(|table| foreign.contains(table)) {
        hand_over(session, names, &tables, statements).await?;
    }
    Ok(())
}

/// Tables that the role neither owns itself nor as a member of their owner.
async fn not_owned(session: &Session) -> Result<BTreeSet<TableName>> {
    let rows = session
        .client
        .query_typed(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND NOT pg_has_role(c.relowner, 'USAGE')",
            &[],
        )
        .await
        .map_err(during("reading the owners of the tables"))?;
    Ok(rows.iter().map(table_name).collect())
}

/// Schema, tables and publication of the job, made by the administrator and given to the role.
async fn hand_over(
    session: &Session,
    names: &JobNames,
    tables: &[TableName],
    statements: &mut Statements,
) -> Result<()> {
    let publication = identifier(&names.slot);
    if publication::exists(&session.client, &names.slot).await? {
        for statement in publication::own_statements() {
            statements.push(&statement);
        }
        let published = published(session, &names.slot).await?;
        let missing: Vec<String> = tables
            .iter()
            .filter(|table| !published.contains(table))
            .map(|table| format!("ONLY {}", qualified(table)))
            .collect();
        for chunk in missing.chunks(CHUNK) {
            statements.push(&format!(
                "ALTER PUBLICATION {publication} ADD TABLE {};",
                chunk.join(", ")
            ));
        }
    } else {
        let made = publication::statements(&session.client, session.version, names, tables);
        for statement in made.await? {
            statements.push(&statement);
        }
    }
    statements.push(&format!("ALTER SCHEMA {OWN_SCHEMA} OWNER TO {{role}};"));
    for table in publication::own_tables() {
        statements.push(&format!("ALTER TABLE {} OWNER TO {{role}};", qualified(&table)));
    }
    statements.push(&format!("ALTER PUBLICATION {publication} OWNER TO {{role}};"));
    Ok(())
}

async fn published(session: &Session, publication: &str) -> Result<BTreeSet<TableName>> {
    let rows = session
        .client
        .query_typed(
            "SELECT schemaname::text, tablename::text FROM pg_publication_tables WHERE pubname = $1",
            &[(&publication, Type::TEXT)],
        )
        .await
        .map_err(during("reading the tables of the publication"))?;
    Ok(rows.iter().map(table_name).collect())
}

fn table_name(row: &tokio_postgres::Row) -> TableName {
    TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))
}

async fn on_target(
    session: &Session,
    objects: &Objects,
    source: Option<&Profile>,
    statements: &mut Statements,
) -> Result<()> {
    if session.version.major() >= 15 {
        statements.push(
            "-- Without it triggers fire and foreign keys are checked while changes are applied.\n\
             GRANT SET ON PARAMETER session_replication_role TO {role};",
        );
    } else {
        statements.push(
            "-- session_replication_role can be granted since PostgreSQL 15. Here triggers fire and foreign keys are \
             checked while changes are applied, unless {role} is a superuser.",
        );
    }
    if session.version.major() >= 14 {
        statements.push(&format!(
            "-- Marks what the job applies, so that a stream back does not return it.\n\
             GRANT EXECUTE ON FUNCTION {} TO {{role}};",
            ORIGIN_FUNCTIONS.join(", ")
        ));
    }
    let present = present(session).await?;
    let needed = |schema: &String| {
        source.is_none_or(|source| {
            let of_tables = source.owners.iter().any(|(needed, _)| needed == schema);
            of_tables || source.extension_schemas.values().any(|needed| needed == schema)
        })
    };
    let schemas: Vec<String> = present
        .schemas
        .iter()
        .filter(|schema| needed(schema))
        .map(|schema| identifier(schema))
        .collect();
    statements.grant("USAGE, CREATE", "SCHEMA", &schemas);
    statements.grant(
        "SELECT, INSERT, UPDATE, DELETE, TRUNCATE",
        "TABLE",
        &objects.tables,
    );
    statements.grant("SELECT, UPDATE", "SEQUENCE", &objects.sequences);
    let Some(source) = source else { return Ok(()) };
    if objects.row_security || source.row_security {
        statements.push(BYPASS);
    }
    for (name, schema) in &source.extension_schemas {
        if !present.extensions.contains(name) {
            let (name, schema) = (identifier(name), identifier(schema));
            statements.push(&format!("CREATE SCHEMA IF NOT EXISTS {schema};"));
            // What the administrator has made is not the role's.
            statements.push(&format!("GRANT USAGE, CREATE ON SCHEMA {schema} TO {{role}};"));
            statements.push(&format!("CREATE EXTENSION IF NOT EXISTS {name} SCHEMA {schema};"));
        }
    }
    own_by_others(source, &present, statements);
    Ok(())
}

/// Who gives a table to another role must be a member of that role, which must have the right to create in the schema.
fn own_by_others(source: &Profile, present: &Present, statements: &mut Statements) {
    let owners = source.owners.iter();
    let mut granted = BTreeSet::new();
    for (schema, owner) in owners.filter(|(_, owner)| present.grantable.contains(owner)) {
        let quoted = identifier(owner);
        if granted.insert(owner) {
            statements.push(&format!(
                "-- Lets the copied tables have their owner.\nGRANT {quoted} TO {{role}};"
            ));
        }
        if present.schemas.contains(schema) {
            statements.push(&format!(
                "GRANT USAGE, CREATE ON SCHEMA {} TO {quoted};",
                identifier(schema)
            ));
        }
    }
}

/// What a target has already.
struct Present {
    schemas: BTreeSet<String>,
    extensions: BTreeSet<String>,
    /// roles that membership in can be granted without making a superuser
    grantable: BTreeSet<String>,
}

async fn present(session: &Session) -> Result<Present> {
    let row = session
        .client
        .query_typed_one(
            "SELECT ARRAY(SELECT nspname::text FROM pg_namespace WHERE nspname !~ '^pg_' \
                          AND nspname NOT IN ('information_schema', 'cdc_sync')), \
                    ARRAY(SELECT extname::text FROM pg_extension), \
                    ARRAY(SELECT rolname::text FROM pg_roles WHERE NOT rolsuper AND rolname !~ '^pg_' \
                          AND rolname <> current_user)",
            &[],
        )
        .await
        .map_err(during("reading what the target has"))?;
    let set = |column: usize| row.get::<_, Vec<String>>(column).into_iter().collect();
    Ok(Present {
        schemas: set(0),
        extensions: set(1),
        grantable: set(2),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_granted_in_parts() {
        let mut statements = Statements {
            role: "\"r\"".into(),
            list: Vec::new(),
        };
        let names: Vec<String> = (0..=CHUNK).map(|n| format!("t{n}")).collect();
        statements.grant("SELECT", "TABLE", &names);
        assert_eq!(statements.list.len(), 2);
        assert_eq!(
            statements.list[1],
            format!("GRANT SELECT ON TABLE t{CHUNK} TO \"r\";")
        );
        statements.grant("SELECT", "TABLE", &[]);
        assert_eq!(statements.list.len(), 2);
    }
}
