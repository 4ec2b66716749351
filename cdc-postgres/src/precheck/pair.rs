//! What source and target must agree on, or the target must have for the source's schema.

use std::collections::{BTreeMap, BTreeSet};

use cdc_core::engine::{Finding, Partitions, Severity, Side, SiteProfile};
use cdc_core::{Result, TableName, TableSelection};

use super::partitions::{self, Shapes};
use super::types::{self, Types};
use super::{Findings, Session, clock, few, tables};
use crate::clients::Clients;
use crate::rounding;
use crate::session::during;
use crate::wire::ServerVersion;
use crate::wire::session::identifier;

/// The product that writes and reads profiles here.
const PRODUCT: &str = "postgresql";

/// What of a database its peer is compared with.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    version: ServerVersion,
    encoding: String,
    /// provider, locale and the version of its rules, as far as the server knows it
    collation: Collation,
    /// installed extensions and their versions
    extensions: BTreeMap<String, String>,
    /// extensions that can be installed
    available: BTreeSet<String>,
    /// all roles
    roles: BTreeSet<String>,
    /// roles that own the selected tables and their schemas, or have rights on them
    needed_roles: BTreeSet<String>,
    /// schemas of the selected tables, each with an owner of tables in it
    pub(super) owners: BTreeSet<(String, String)>,
    /// extensions that do not come with the server, and the schemas they are in
    pub(super) extension_schemas: BTreeMap<String, String>,
    /// row security is on for a selected table
    pub(super) row_security: bool,
    types: Types,
    /// the selected tables, unless partitioned ones are one table each
    tables: BTreeSet<TableName>,
    shapes: Shapes,
    /// the server's clock less ours, in microseconds
    clock: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Collation {
    provider: String,
    collate: String,
    ctype: String,
    version: Option<String>,
}

/// What a peer of the database of `clients` is compared with.
pub(crate) async fn site_profile(clients: &Clients, selection: &TableSelection) -> Result<SiteProfile> {
    let profile = read(clients, selection).await?;
    Ok(SiteProfile {
        product: PRODUCT,
        facts: Box::new(profile),
    })
}

/// What speaks against replicating from the database of the profile `source` into that of `clients`.
pub(crate) async fn pair_findings(
    clients: &Clients,
    source: &SiteProfile,
    selection: &TableSelection,
) -> Result<Vec<Finding>> {
    match source.facts.downcast_ref::<Profile>() {
        Some(source) => Ok(judge(source, &read(clients, selection).await?)),
        None => Ok(Vec::new()),
    }
}

async fn read(clients: &Clients, selection: &TableSelection) -> Result<Profile> {
    let session = Session::open(clients).await?;
    let relations = tables::read(&session, selection).await?;
    // Newer columns are read through JSON, which leaves out those an older server does not have.
    let row = session
        .client
        .query_typed_one(
            "SELECT pg_encoding_to_char(encoding)::text, COALESCE(to_jsonb(d) ->> 'datlocprovider', 'c'), \
                    COALESCE(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', datcollate::text), \
                    datctype::text, to_jsonb(d) ->> 'datcollversion' \
             FROM pg_database d WHERE datname = current_database()",
            &[],
        )
        .await
        .map_err(during("reading the encoding of the database"))?;
    Ok(Profile {
        version: session.version,
        encoding: row.get(0),
        collation: Collation {
            provider: row.get(1),
            collate: row.get(2),
            ctype: row.get(3),
            version: row.get(4),
        },
        extensions: text_pairs(&session, "SELECT extname::text, extversion FROM pg_extension").await?,
        available: texts(&session, "SELECT name::text FROM pg_available_extensions").await?,
        roles: texts(&session, "SELECT rolname::text FROM pg_roles").await?,
        needed_roles: needed_roles(&session, &relations).await?,
        owners: relations
            .iter()
            .map(|relation| (relation.name.schema.clone(), relation.owner.clone()))
            .collect(),
        extension_schemas: text_pairs(
            &session,
            "SELECT e.extname::text, n.nspname::text FROM pg_extension e \
             JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname <> 'plpgsql'",
        )
        .await?,
        row_security: relations.iter().any(|relation| relation.row_security),
        types: types::read(&session, &relations).await?,
        tables: relations
            .iter()
            .filter(|relation| relation.is_table() && selection.partitions == Partitions::Leaves)
            .map(|relation| relation.name.clone())
            .collect(),
        shapes: partitions::read(&session).await?,
        clock: clock::offset(&session).await?,
    })
}

async fn texts(session: &Session, query: &str) -> Result<BTreeSet<String>> {
    let rows = session
        .client
        .query_typed(query, &[])
        .await
        .map_err(during("reading the catalog"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn text_pairs(session: &Session, query: &str) -> Result<BTreeMap<String, String>> {
    let rows = session
        .client
        .query_typed(query, &[])
        .await
        .map_err(during("reading the catalog"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Roles that the dumped schema names: owners, and who has been granted rights. Roles that the server brings, such as
/// `pg_database_owner`, are not the user's to create.
async fn needed_roles(session: &Session, relations: &[tables::Relation]) -> Result<BTreeSet<String>> {
    let schemas: Vec<&str> = relations
        .iter()
        .map(|relation| relation.name.schema.as_str())
        .collect();
    let names: Vec<&str> = relations
        .iter()
        .map(|relation| relation.name.name.as_str())
        .collect();
    let rows = session
        .client
        .query(
            "WITH t AS (SELECT n.oid AS schema, c.oid AS relation FROM unnest($1::text[], $2::text[]) AS s (a, b) \
                        JOIN pg_namespace n ON n.nspname = s.a \
                        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = s.b), \
                  r AS (SELECT c.relowner AS role FROM pg_class c JOIN t ON t.relation = c.oid \
                        UNION SELECT n.nspowner FROM pg_namespace n JOIN t ON t.schema = n.oid \
                        UNION SELECT (aclexplode(c.relacl)).grantee FROM pg_class c JOIN t ON t.relation = c.oid \
                        UNION SELECT (aclexplode(n.nspacl)).grantee FROM pg_namespace n JOIN t ON t.schema = n.oid) \
             SELECT rolname::text FROM pg_roles JOIN r ON r.role = pg_roles.oid WHERE rolname !~ '^pg_'",
            &[&schemas, &names],
        )
        .await
        .map_err(during("reading the owners of the tables"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// `PG-VERSION-OLDER`, `PG-ENCODING`, `PG-COLLATION-PROVIDER`, `PG-EXTENSION-MISSING`,
/// `PG-ROLE-MISSING`.
fn judge(source: &Profile, target: &Profile) -> Vec<Finding> {
    let mut found = Findings::new(Side::Both);
    if target.version.major() < source.version.major() {
        found.add(
            ("PG-VERSION-OLDER", Severity::Info),
            format!("PostgreSQL {}", target.version),
            format!(
                "the target is older than the source, PostgreSQL {}: what is new there may be missing here",
                source.version
            ),
            "read the release notes of the versions between backwards",
        );
    }
    judge_encoding(source, target, &mut found);
    judge_collation(&source.collation, &target.collation, &mut found);
    judge_extensions(source, target, &mut found);
    judge_rounding(&source.types, &target.types, &mut found);
    types::judge(&source.types, &target.types, &mut found);
    partitions::judge(source.tables.iter(), &source.shapes, &target.shapes, &mut found);
    clock::judge(source.clock, target.clock, &mut found);
    let missing: Vec<String> = source.needed_roles.difference(&target.roles).cloned().collect();
    for role in missing {
        found.add(
            ("PG-ROLE-MISSING", Severity::Warn),
            format!("role {role}"),
            "owns objects of the source or has rights on them and is not on the target; roles are not replicated",
            format!("on the target: CREATE ROLE {}; (pg_dumpall --roles-only writes all of them)", identifier(&role)),
        );
    }
    found.list
}

fn judge_encoding(source: &Profile, target: &Profile, found: &mut Findings) {
    let (from, to) = (source.encoding.as_str(), target.encoding.as_str());
    if from == to {
        return;
    }
    let (severity, effect) = match (from, to) {
        ("SQL_ASCII", _) => (
            Severity::Fail,
            "the source's bytes have no stated encoding: the first that are not valid on the target would stop the job",
        ),
        (_, "UTF8") => (
            Severity::Warn,
            "text is converted, which works for all its characters",
        ),
        (_, "SQL_ASCII") => (
            Severity::Warn,
            "the target stores UTF-8 without checking or knowing it",
        ),
        _ => (
            Severity::Fail,
            "a character that the target's encoding lacks would stop the job",
        ),
    };
    found.add(
        ("PG-ENCODING", severity),
        "encoding",
        format!("source {from}, target {to}: {effect}"),
        format!("make the target with the source's encoding (CREATE DATABASE … ENCODING '{from}' TEMPLATE template0) or UTF8"),
    );
}

fn judge_collation(source: &Collation, target: &Collation, found: &mut Findings) {
    // Rules without a known version cannot be compared.
    let versions = source.version.is_none() || target.version.is_none() || source.version == target.version;
    let same = source.provider == target.provider
        && source.collate == target.collate
        && source.ctype == target.ctype;
    if same && versions {
        return;
    }
    let show = |collation: &Collation| {
        let provider = match collation.provider.as_str() {
            "i" => "ICU",
            "b" => "builtin",
            _ => "libc",
        };
        let version = collation
            .version
            .as_deref()
            .map_or(String::new(), |version| format!(" {version}"));
        format!(
            "{provider} {}{version}, ctype {}",
            collation.collate, collation.ctype
        )
    };
    found.add(
        ("PG-COLLATION-PROVIDER", Severity::Warn),
        "collation",
        format!(
            "source {}; target {}: text sorts differently, and range conditions on text may select other rows",
            show(source),
            show(target)
        ),
        "make the target with the source's locale and provider, or test the queries that sort or compare text",
    );
}

fn judge_extensions(source: &Profile, target: &Profile, found: &mut Findings) {
    let missing: Vec<String> = source
        .extensions
        .iter()
        .filter(|(name, _)| !target.available.contains(*name) && !target.extensions.contains_key(*name))
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    if missing.is_empty() {
        return;
    }
    found.add(
        ("PG-EXTENSION-MISSING", Severity::Fail),
        format!("{} extensions", missing.len()),
        format!(
            "are installed on the source and cannot be installed on the target: {}",
            few(&missing)
        ),
        "install their packages on the target's machine, or drop them on the source",
    );
}

fn judge_rounding(source: &Types, target: &Types, found: &mut Findings) {
    for (column, from) in &source.columns {
        let to = target.columns.get(column);
        if let Some((to, effect)) = to.and_then(|to| Some((to, rounding::effect(&from.base, &to.base)?))) {
            found.add(
                ("PG-COLUMN-ROUNDS", Severity::Fail),
                format!("column {column}"),
                format!(
                    "{} on the source, {} on the target: {effect} without an error",
                    shown(from),
                    shown(to)
                ),
                format!("give the target's column the type {}", from.base),
            );
        }
    }
}

/// The type, and of a domain what is below it.
fn shown(column: &types::Column) -> String {
    if column.base == column.type_name {
        column.base.clone()
    } else {
        format!("{} ({})", column.type_name, column.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(type_name: &str) -> types::Column {
        types::Column {
            type_name: type_name.into(),
            base: type_name.into(),
            ..types::Column::default()
        }
    }

    fn profile() -> Profile {
        let set = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<BTreeSet<_>>()
        };
        Profile {
            version: ServerVersion(160_001),
            encoding: "UTF8".into(),
            collation: Collation {
                provider: "c".into(),
                collate: "C".into(),
                ctype: "C".into(),
                version: None,
            },
            extensions: BTreeMap::from([("plpgsql".to_owned(), "1.0".to_owned())]),
            available: set(&["plpgsql", "hstore"]),
            roles: set(&["postgres", "app"]),
            needed_roles: set(&["app"]),
            owners: BTreeSet::from([("public".to_owned(), "app".to_owned())]),
            extension_schemas: BTreeMap::new(),
            row_security: false,
            types: Types {
                columns: BTreeMap::from([("public.t.n".to_owned(), column("numeric(12,2)"))]),
                ..Types::default()
            },
            tables: BTreeSet::new(),
            shapes: Shapes::new(),
            clock: 0,
        }
    }

    #[test]
    fn columns_that_round_fail() {
        let mut target = profile();
        let narrower = column("numeric(12,1)");
        target.types.columns.insert("public.t.n".into(), narrower);
        assert_eq!(ids(&profile(), &target), [("PG-COLUMN-ROUNDS", Severity::Fail)]);
        assert!(ids(&target, &profile()).is_empty());
    }

    fn ids(source: &Profile, target: &Profile) -> Vec<(&'static str, Severity)> {
        judge(source, target)
            .iter()
            .map(|finding| (finding.id, finding.severity))
            .collect()
    }

    #[test]
    fn alike_databases_have_no_findings() {
        assert!(ids(&profile(), &profile()).is_empty());
    }

    #[test]
    fn encodings() {
        let judged = |from: &str, to: &str| {
            let (mut source, mut target) = (profile(), profile());
            source.encoding = from.into();
            target.encoding = to.into();
            ids(&source, &target).first().map(|(_, severity)| *severity)
        };
        assert_eq!(judged("LATIN1", "LATIN1"), None);
        assert_eq!(judged("LATIN1", "UTF8"), Some(Severity::Warn));
        assert_eq!(judged("UTF8", "SQL_ASCII"), Some(Severity::Warn));
        assert_eq!(judged("UTF8", "LATIN1"), Some(Severity::Fail));
        assert_eq!(judged("SQL_ASCII", "UTF8"), Some(Severity::Fail));
    }

    #[test]
    fn collations() {
        let judged = |change: &dyn Fn(&mut Collation)| {
            let (mut source, mut target) = (profile(), profile());
            source.collation.version = Some("2.36".into());
            change(&mut target.collation);
            ids(&source, &target)
                .iter()
                .map(|(id, _)| *id)
                .collect::<Vec<_>>()
        };
        assert!(judged(&|_| ()).is_empty());
        assert!(judged(&|target| target.version = Some("2.36".into())).is_empty());
        assert_eq!(
            judged(&|target| target.version = Some("2.41".into())),
            ["PG-COLLATION-PROVIDER"]
        );
        assert_eq!(
            judged(&|target| target.provider = "i".into()),
            ["PG-COLLATION-PROVIDER"]
        );
        assert_eq!(
            judged(&|target| target.ctype = "de_DE".into()),
            ["PG-COLLATION-PROVIDER"]
        );
    }

    #[test]
    fn extensions_roles_and_direction() {
        let (mut source, target) = (profile(), profile());
        source.extensions.insert("hstore".into(), "1.8".into());
        assert!(ids(&source, &target).is_empty());
        source.extensions.insert("postgis".into(), "3.4".into());
        source.needed_roles.insert("reporting".into());
        source.version = ServerVersion(180_000);
        let mut target = target;
        target.extensions.insert("hstore".into(), "1.8".into());
        let found = judge(&source, &target);
        let ids: Vec<_> = found.iter().map(|finding| finding.id).collect();
        assert_eq!(
            ids,
            ["PG-VERSION-OLDER", "PG-EXTENSION-MISSING", "PG-ROLE-MISSING"]
        );
        assert!(found[1].message.contains("postgis 3.4") && !found[1].message.contains("hstore"));
    }
}
