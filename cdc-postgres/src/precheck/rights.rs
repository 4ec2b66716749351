//! What the role of the URL must be allowed to do, beyond reading.

use cdc_core::Result;
use cdc_core::engine::{Finding, JobNames, Severity, Side};
use tokio_postgres::types::Type;

use super::tables::{Relation, judge_filtered, names as table_names};
use super::{Findings, Session};
use crate::session::during;
use crate::wire::session::identifier;

#[derive(Debug, Clone, Default)]
struct Rights {
    replication: bool,
    /// may create schemas and publications
    create: bool,
    /// schema `cdc_sync` exists and the role may create in it
    own_schema: bool,
    /// the job's publication exists and the role owns it
    publication: bool,
    /// that publication is FOR ALL TABLES
    all_tables: bool,
    /// tables in the publication, as `schema.table`
    published: Vec<String>,
}

async fn read(session: &Session, publication: &str) -> Result<Rights> {
    // Amazon RDS gives the right to replicate through membership in a role of its own.
    let row = session
        .client
        .query_typed_one(
            "SELECT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = current_user \
                            AND (r.rolsuper OR r.rolreplication)) \
                    OR EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'rds_replication' \
                               AND pg_has_role(r.oid, 'USAGE')), \
                    has_database_privilege(current_database(), 'CREATE'), \
                    EXISTS (SELECT FROM pg_namespace WHERE nspname = 'cdc_sync' \
                            AND has_schema_privilege(oid, 'CREATE')), \
                    EXISTS (SELECT FROM pg_publication WHERE pubname = $1 AND pg_has_role(pubowner, 'USAGE')), \
                    EXISTS (SELECT FROM pg_publication WHERE pubname = $1 AND puballtables), \
                    ARRAY(SELECT format('%s.%s', schemaname, tablename) FROM pg_publication_tables \
                          WHERE pubname = $1)",
            &[(&publication, Type::TEXT)],
        )
        .await
        .map_err(during("reading the rights of the role"))?;
    Ok(Rights {
        replication: row.get(0),
        create: row.get(1),
        own_schema: row.get(2),
        publication: row.get(3),
        all_tables: row.get(4),
        published: row.get(5),
    })
}

/// `PG-REPLICATION-RIGHT`, `PG-CREATE-RIGHT`.
pub(super) async fn source(
    session: &Session,
    names: &JobNames,
    relations: &[Relation],
) -> Result<Vec<Finding>> {
    let rights = read(session, &names.slot).await?;
    let mut found = Findings::new(Side::Source);
    judge_source(&rights, &session.role, &session.database, relations, &mut found);
    Ok(found.list)
}

fn judge_source(rights: &Rights, role: &str, database: &str, relations: &[Relation], found: &mut Findings) {
    let quoted = identifier(role);
    if !rights.replication {
        found.add(
            ("PG-REPLICATION-RIGHT", Severity::Fail),
            format!("role {role}"),
            "may not replicate: it can neither make a slot nor read the log",
            format!("ALTER ROLE {quoted} REPLICATION; (Amazon RDS: GRANT rds_replication TO {quoted};)"),
        );
    }
    let publishes = rights.create || rights.publication || rights.all_tables;
    judge_create(
        rights.create || (rights.own_schema && publishes),
        role,
        database,
        found,
    );
    // A publication takes tables from their owner only (PostgreSQL manual, "CREATE PUBLICATION").
    let foreign: Vec<&Relation> = relations
        .iter()
        .filter(|relation| relation.is_table() && !relation.owned && !rights.all_tables)
        .filter(|relation| !rights.published.contains(&relation.name.to_string()))
        .collect();
    if let Some(first) = foreign.first() {
        found.add(
            ("PG-CREATE-RIGHT", Severity::Fail),
            format!("{} tables", foreign.len()),
            format!("only their owner can publish them, and {role} is not: {}", table_names(foreign.iter().copied())),
            format!(
                "GRANT {} TO {quoted}; for each owner, or let a superuser make the publication (cdc-sync init \
                 prints it)",
                identifier(&first.owner)
            ),
        );
    }
}

fn judge_create(allowed: bool, role: &str, database: &str, found: &mut Findings) {
    if !allowed {
        found.add(
            ("PG-CREATE-RIGHT", Severity::Fail),
            format!("role {role}"),
            "may not create schema cdc_sync, or what else the job needs, in this database",
            format!(
                "GRANT CREATE ON DATABASE {} TO {};",
                identifier(database),
                identifier(role)
            ),
        );
    }
}

/// `PG-CREATE-RIGHT`, `PG-WRITE-RIGHT`, `PG-RLS`.
pub(super) async fn target(session: &Session, relations: &[Relation]) -> Result<Vec<Finding>> {
    let rights = read(session, "").await?;
    let mut found = Findings::new(Side::Target);
    judge_target(&rights, &session.role, &session.database, relations, &mut found);
    Ok(found.list)
}

fn judge_target(rights: &Rights, role: &str, database: &str, relations: &[Relation], found: &mut Findings) {
    judge_create(rights.create || rights.own_schema, role, database, found);
    let tables = || relations.iter().filter(|relation| relation.is_table());
    let closed: Vec<&Relation> = tables().filter(|relation| !relation.writable).collect();
    if !closed.is_empty() {
        found.add(
            ("PG-WRITE-RIGHT", Severity::Fail),
            format!("{} tables", closed.len()),
            format!(
                "{role} may not write them: {}",
                table_names(closed.iter().copied())
            ),
            format!(
                "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON each of them TO {};",
                identifier(role)
            ),
        );
    }
    tables()
        .filter(|relation| relation.filtered)
        .for_each(|relation| judge_filtered(relation, role, found));
}

#[cfg(test)]
mod tests {
    use super::super::tables::tests::table;
    use super::*;

    fn source_ids(rights: &Rights, relations: &[Relation]) -> Vec<&'static str> {
        let mut found = Findings::new(Side::Source);
        judge_source(rights, "repl", "app", relations, &mut found);
        found.list.iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn the_source_must_be_published_and_read() {
        let all = Rights {
            replication: true,
            create: true,
            ..Rights::default()
        };
        assert!(source_ids(&all, &[table("t")]).is_empty());
        assert_eq!(
            source_ids(
                &Rights {
                    replication: false,
                    ..all.clone()
                },
                &[]
            ),
            ["PG-REPLICATION-RIGHT"]
        );
        assert_eq!(
            source_ids(
                &Rights {
                    create: false,
                    ..all.clone()
                },
                &[]
            ),
            ["PG-CREATE-RIGHT"]
        );
        let foreign = [Relation {
            owned: false,
            ..table("t")
        }];
        assert_eq!(source_ids(&all, &foreign), ["PG-CREATE-RIGHT"]);
        assert!(
            source_ids(
                &Rights {
                    all_tables: true,
                    ..all.clone()
                },
                &foreign
            )
            .is_empty()
        );
        assert!(
            source_ids(
                &Rights {
                    published: vec!["s.t".into()],
                    ..all
                },
                &foreign
            )
            .is_empty()
        );
    }

    #[test]
    fn what_an_administrator_made_needs_no_right_to_make() {
        let made = Rights {
            replication: true,
            own_schema: true,
            all_tables: true,
            ..Rights::default()
        };
        assert!(source_ids(&made, &[]).is_empty());
        assert_eq!(
            source_ids(
                &Rights {
                    own_schema: false,
                    ..made.clone()
                },
                &[]
            ),
            ["PG-CREATE-RIGHT"]
        );
        assert_eq!(
            source_ids(
                &Rights {
                    all_tables: false,
                    ..made
                },
                &[]
            ),
            ["PG-CREATE-RIGHT"]
        );
    }

    #[test]
    fn the_target_must_be_written() {
        let ids = |rights: &Rights, relations: &[Relation]| {
            let mut found = Findings::new(Side::Target);
            judge_target(rights, "repl", "app", relations, &mut found);
            found.list.iter().map(|finding| finding.id).collect::<Vec<_>>()
        };
        let create = Rights {
            create: true,
            ..Rights::default()
        };
        assert!(ids(&create, &[table("t")]).is_empty());
        assert!(
            ids(
                &Rights {
                    own_schema: true,
                    ..Rights::default()
                },
                &[]
            )
            .is_empty()
        );
        assert_eq!(ids(&Rights::default(), &[]), ["PG-CREATE-RIGHT"]);
        assert_eq!(
            ids(
                &create,
                &[Relation {
                    writable: false,
                    ..table("t")
                }]
            ),
            ["PG-WRITE-RIGHT"]
        );
        assert_eq!(
            ids(
                &create,
                &[Relation {
                    filtered: true,
                    ..table("t")
                }]
            ),
            ["PG-RLS"]
        );
    }
}
