//! The relations of a database: which can be replicated, and which are left behind.

use cdc_core::engine::{Finding, Severity, Side};
use cdc_core::{Result, TableName, TableSelection};

use super::{Findings, Session, few};
use crate::catalog::{MEMBERS, own_table, qualified};
use crate::session::during;
use crate::wire::session::identifier;

/// What a table's rows are identified by in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowIdentity {
    /// a usable index, or the whole row
    Given,
    /// a primary key whose check is deferrable, which cannot identify rows
    DeferrableKey,
    /// `REPLICA IDENTITY NOTHING`
    Nothing,
    /// generated columns, which a server from 18 on does not take for an identity unless they are published
    Generated,
    /// no primary key
    None,
}

/// A relation of a user.
#[derive(Debug, Clone)]
pub(super) struct Relation {
    pub(super) name: TableName,
    /// `pg_class.relkind`
    pub(super) kind: char,
    pub(super) unlogged: bool,
    pub(super) identity: RowIdentity,
    /// rows updated and deleted since statistics were last reset
    pub(super) changed: i64,
    pub(super) owner: String,
    /// the role owns it, or is a member of its owner
    pub(super) owned: bool,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// row security hides rows from this role
    pub(super) filtered: bool,
    /// row security is on, whether or not it hides rows from this role
    pub(super) row_security: bool,
}

impl Relation {
    /// Whether its rows are replicated.
    pub(super) fn is_table(&self) -> bool {
        matches!(self.kind, 'r' | 'p') && !self.unlogged
    }
}

/// The worst identity of the table and its partitions, and the changes of all of them: the source refuses a change of
/// a partition by the partition's own identity, and sends what the root's says.
const IDENTITY_AND_CHANGES: &str = "SELECT min(CASE WHEN t.relreplident = 'n' THEN '0 nothing' \
         WHEN current_setting('server_version_num')::int >= 180000 AND EXISTS (SELECT FROM pg_attribute a \
             WHERE a.attrelid = t.oid AND a.attgenerated <> '' AND NOT a.attisdropped \
             AND (t.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = t.oid \
                  AND a.attnum = ANY (i.indkey) AND CASE t.relreplident WHEN 'd' THEN i.indisprimary \
                                                    ELSE i.indisreplident END))) THEN '2 generated' \
         WHEN t.relreplident = 'f' THEN '3 given' \
        WHEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = t.oid AND i.indisvalid \
              AND i.indimmediate AND CASE t.relreplident WHEN 'd' THEN i.indisprimary \
                                     ELSE i.indisreplident END) THEN '3 given' \
         WHEN t.relreplident = 'd' AND EXISTS (SELECT FROM pg_index i \
              WHERE i.indrelid = t.oid AND i.indisprimary AND NOT i.indimmediate) THEN '2 deferrable' \
         ELSE '1 none' END) AS identity, \
         COALESCE(sum(pg_stat_get_tuples_updated(t.oid) + pg_stat_get_tuples_deleted(t.oid)), 0)::int8 AS changed \
     FROM pg_class t";

/// The selected relations, members of extensions left out: `CREATE EXTENSION` makes those.
pub(super) async fn read(session: &Session, selection: &TableSelection) -> Result<Vec<Relation>> {
    let own_table = own_table(selection.partitions);
    let statement = format!(
        "SELECT n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence = 'u', m.identity, m.changed, \
                    pg_get_userbyid(c.relowner)::text, pg_has_role(c.relowner, 'USAGE'), \
                    has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), \
                    has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') \
                      AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') \
                      AND has_table_privilege(c.oid, 'DELETE') AND has_table_privilege(c.oid, 'TRUNCATE'), \
                    c.relkind IN ('r', 'p') AND row_security_active(c.oid), c.relrowsecurity \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             CROSS JOIN LATERAL ({IDENTITY_AND_CHANGES} WHERE t.oid = ANY ({MEMBERS})) m \
             WHERE (({own_table}) OR c.relkind IN ('m', 'f')) AND c.relpersistence <> 't' \
                   AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'cdc_sync') \
                   AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = 'pg_class'::regclass \
                                   AND x.objid = c.oid AND x.deptype = 'e') \
             ORDER BY 1, 2"
    );
    let rows = session
        .client
        .query_typed(&statement, &[])
        .await
        .map_err(during("reading the list of tables"))?;
    let relations = rows.iter().map(|row| Relation {
        name: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        kind: row.get::<_, String>(2).chars().next().unwrap_or('r'),
        unlogged: row.get(3),
        identity: match row.get::<_, &str>(4) {
            "3 given" => RowIdentity::Given,
            "2 generated" => RowIdentity::Generated,
            "2 deferrable" => RowIdentity::DeferrableKey,
            "0 nothing" => RowIdentity::Nothing,
            _ => RowIdentity::None,
        },
        changed: row.get(5),
        owner: row.get(6),
        owned: row.get(7),
        readable: row.get(8),
        writable: row.get(9),
        filtered: row.get(10),
        row_security: row.get(11),
    });
    Ok(relations
        .filter(|relation| selection.selects(&relation.name))
        .collect())
}

/// `PG-REPLICA-IDENTITY` with `-NOTHING` and `-GENERATED`, `PG-KEY-DEFERRABLE`, `PG-UNLOGGED`,
/// `PG-FOREIGN-TABLE`, `PG-MATVIEW`, `PG-RLS`, `PG-SELECT-RIGHT`.
pub(super) fn judge(relations: &[Relation], role: &str, found: &mut Findings) {
    for relation in relations {
        if relation.is_table() {
            judge_identity(relation, found);
            judge_readable(relation, role, found);
        } else {
            judge_left_behind(relation, found);
        }
    }
}

/// Once a table is published, the source itself refuses an UPDATE or DELETE whose rows it cannot identify
/// (PostgreSQL manual, "Publication"): it is the application that fails.
fn judge_identity(relation: &Relation, found: &mut Findings) {
    let (id, what) = match relation.identity {
        RowIdentity::Given => return,
        RowIdentity::DeferrableKey => (
            "PG-KEY-DEFERRABLE",
            "its primary key is deferrable and identifies no rows",
        ),
        RowIdentity::Nothing => ("PG-REPLICA-IDENTITY-NOTHING", "its replica identity is NOTHING"),
        RowIdentity::Generated => (
            "PG-REPLICA-IDENTITY-GENERATED",
            "its replica identity has generated columns, which are not published",
        ),
        RowIdentity::None => (
            "PG-REPLICA-IDENTITY",
            "it has neither a primary key nor another replica identity",
        ),
    };
    let (severity, effect) = if relation.changed > 0 {
        (
            Severity::Fail,
            format!(
                "and {} updates and deletes were counted, which the source would refuse",
                relation.changed
            ),
        )
    } else {
        (
            Severity::Warn,
            "inserts are replicated, but once the job has begun the source refuses every UPDATE and DELETE of it"
                .to_owned(),
        )
    };
    let table = qualified(&relation.name);
    let full = format!("ALTER TABLE {table} REPLICA IDENTITY FULL;");
    let remedy = match relation.identity {
        RowIdentity::None => format!("{full}; or: ALTER TABLE {table} ADD PRIMARY KEY (…);"),
        RowIdentity::Generated => {
            format!(
                "ALTER TABLE {table} REPLICA IDENTITY DEFAULT; it needs a primary key without generated columns"
            )
        }
        _ => full,
    };
    found.add(
        (id, severity),
        format!("table {}", relation.name),
        format!("{what}: {effect}"),
        remedy,
    );
}

fn judge_readable(relation: &Relation, role: &str, found: &mut Findings) {
    let (object, table) = (format!("table {}", relation.name), qualified(&relation.name));
    if !relation.readable {
        found.add(
            ("PG-SELECT-RIGHT", Severity::Fail),
            object,
            "the role may not read it",
            format!(
                "GRANT USAGE ON SCHEMA {} TO {role}; GRANT SELECT ON {table} TO {role};",
                identifier(&relation.name.schema),
                role = identifier(role)
            ),
        );
    } else if relation.filtered {
        judge_filtered(relation, role, found);
    }
}

/// A policy would hide rows without an error.
pub(super) fn judge_filtered(relation: &Relation, role: &str, found: &mut Findings) {
    found.add(
        ("PG-RLS", Severity::Fail),
        format!("table {}", relation.name),
        "row security applies to this role: rows would be hidden from it",
        format!(
            "ALTER ROLE {} BYPASSRLS; or use the table's owner",
            identifier(role)
        ),
    );
}

fn judge_left_behind(relation: &Relation, found: &mut Findings) {
    let table = qualified(&relation.name);
    let (id, severity, object, message, remedy) = match relation.kind {
        'm' => (
            "PG-MATVIEW",
            Severity::Info,
            "materialized view",
            "is not replicated but computed on the target",
            format!("on the target, before it takes over: REFRESH MATERIALIZED VIEW {table};"),
        ),
        'f' => (
            "PG-FOREIGN-TABLE",
            Severity::Warn,
            "foreign table",
            "its rows are elsewhere and are not replicated",
            "make sure that the target reaches the foreign server too".to_owned(),
        ),
        _ => (
            "PG-UNLOGGED",
            Severity::Warn,
            "table",
            "is unlogged: its rows are not in the log and not replicated",
            format!("ALTER TABLE {table} SET LOGGED; (rewrites the table), or fill it on the target"),
        ),
    };
    found.add(
        (id, severity),
        format!("{object} {}", relation.name),
        message,
        remedy,
    );
}

/// `PG-LARGE-OBJECTS`.
pub(super) async fn large_objects(session: &Session) -> Result<Vec<Finding>> {
    let row = session
        .client
        .query_typed_one(
            "SELECT count(*) FROM (SELECT FROM pg_largeobject_metadata LIMIT 1000000) AS o",
            &[],
        )
        .await
        .map_err(during("looking for large objects"))?;
    let mut found = Findings::new(Side::Source);
    judge_large_objects(row.get(0), &mut found);
    Ok(found.list)
}

fn judge_large_objects(count: i64, found: &mut Findings) {
    if count > 0 {
        found.add(
            ("PG-LARGE-OBJECTS", Severity::Warn),
            "large objects",
            format!("there are {count}; logical decoding does not know them, so they are not replicated"),
            "copy them while nobody writes them (pg_dump --large-objects), or move them to bytea columns first",
        );
    }
}

/// Names of relations for a message.
pub(super) fn names<'a>(relations: impl IntoIterator<Item = &'a Relation>) -> String {
    few(&relations
        .into_iter()
        .map(|relation| relation.name.to_string())
        .collect::<Vec<_>>())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn table(name: &str) -> Relation {
        Relation {
            name: TableName::new("s", name),
            kind: 'r',
            unlogged: false,
            identity: RowIdentity::Given,
            changed: 0,
            owner: "app".into(),
            owned: true,
            readable: true,
            writable: true,
            filtered: false,
            row_security: false,
        }
    }

    fn judged(relations: &[Relation]) -> Vec<(&'static str, Severity)> {
        let mut found = Findings::new(Side::Source);
        judge(relations, "cdc", &mut found);
        found
            .list
            .iter()
            .map(|finding| (finding.id, finding.severity))
            .collect()
    }

    #[test]
    fn identity_matters_where_rows_change() {
        use Severity::{Fail, Warn};
        assert!(judged(&[table("t")]).is_empty());
        for (identity, id) in [
            (RowIdentity::None, "PG-REPLICA-IDENTITY"),
            (RowIdentity::Nothing, "PG-REPLICA-IDENTITY-NOTHING"),
            (RowIdentity::Generated, "PG-REPLICA-IDENTITY-GENERATED"),
            (RowIdentity::DeferrableKey, "PG-KEY-DEFERRABLE"),
        ] {
            assert_eq!(
                judged(&[Relation {
                    identity,
                    changed: 1,
                    ..table("t")
                }]),
                [(id, Fail)]
            );
            assert_eq!(
                judged(&[Relation {
                    identity,
                    ..table("t")
                }]),
                [(id, Warn)]
            );
        }
    }

    #[test]
    fn what_is_left_behind_is_named() {
        let others = [
            table("t"),
            Relation {
                kind: 'm',
                readable: false,
                ..table("m")
            },
            Relation {
                kind: 'f',
                ..table("f")
            },
            Relation {
                unlogged: true,
                ..table("u")
            },
        ];
        let ids: Vec<_> = judged(&others).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, ["PG-MATVIEW", "PG-FOREIGN-TABLE", "PG-UNLOGGED"]);
    }

    #[test]
    fn rows_that_cannot_be_read() {
        let hidden = Relation {
            filtered: true,
            ..table("t")
        };
        assert_eq!(judged(&[hidden]), [("PG-RLS", Severity::Fail)]);
        let closed = Relation {
            readable: false,
            filtered: true,
            ..table("t")
        };
        assert_eq!(judged(&[closed]), [("PG-SELECT-RIGHT", Severity::Fail)]);
    }

    #[test]
    fn large_objects_are_counted() {
        let mut found = Findings::new(Side::Source);
        judge_large_objects(0, &mut found);
        assert!(found.list.is_empty());
        judge_large_objects(3, &mut found);
        assert_eq!(found.list[0].id, "PG-LARGE-OBJECTS");
    }
}
