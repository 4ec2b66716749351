//! What speaks against using a database as source or target, or should be known before.
//!
//! Each question is one query of the catalog and one function that judges its answer, so that the judgement is
//! tested without a server. Everything is read-only and works for a plain role: a question that the role may not ask
//! is a finding itself. Ids are stable: scripts rely on them.

mod activity;
mod clock;
mod grants;
mod left_out;
mod link;
mod neighbours;
mod objects;
mod pair;
mod partitions;
mod rights;
mod server;
mod stream;
mod tables;
mod target;
mod types;
mod values;

use cdc_core::engine::{Finding, JobNames, Severity, Side};
use cdc_core::{Kind, Result, TableSelection};

pub(crate) use grants::grants;
pub(crate) use pair::{pair_findings, site_profile};

use crate::clients::{Clients, Lent};
use crate::session::during;
use crate::wire::ServerVersion;

/// Findings about what a source has and the target does not get.
pub(crate) const LEFT_BEHIND: &[&str] = &[
    "PG-UNLOGGED",
    "PG-FOREIGN-TABLE",
    "PG-LARGE-OBJECTS",
    "PG-MATVIEW",
    "PG-DATABASE-SETTINGS",
    "PG-EXTENSION-TABLE",
    "PG-CRON-JOBS",
    "PG-ROLE-MISSING",
    "PG-EXTENSION-MISSING",
];

/// A check that waits is a check that hangs: whatever it meets, production goes first.
const SETTINGS: &[(&str, &str)] = &[("statement_timeout", "60s"), ("lock_timeout", "5s")];

/// A read-only session and what every question needs to know of its server.
struct Session {
    client: Lent,
    version: ServerVersion,
    in_recovery: bool,
    /// whether transactions are read-only unless they say otherwise
    read_only: bool,
    role: String,
    database: String,
}

impl Session {
    async fn open(clients: &Clients) -> Result<Self> {
        let client = clients.lend(SETTINGS).await?;
        // What the session began with: one that was lent before is read-only by our own word below.
        let row = client
            .query_typed_one(
                "SELECT current_setting('server_version_num')::int4, pg_is_in_recovery(), \
                        (SELECT reset_val::bool FROM pg_settings WHERE name = 'default_transaction_read_only'), \
                        current_user::text, current_database()::text",
                &[],
            )
            .await
            .map_err(during("reading the server's version"))?;
        client
            .batch_execute("SET default_transaction_read_only = on")
            .await
            .map_err(during("making the session read-only"))?;
        Ok(Self {
            version: ServerVersion(row.get::<_, i32>(0).unsigned_abs()),
            in_recovery: row.get(1),
            read_only: row.get(2),
            role: row.get(3),
            database: row.get(4),
            client,
        })
    }
}

/// What speaks against the database of `clients` in the role `side`. [`Side::Both`] is for [`pair_findings`].
pub(crate) async fn findings(
    clients: &Clients,
    side: Side,
    names: &JobNames,
    selection: &TableSelection,
) -> Result<Vec<Finding>> {
    let session = Session::open(clients).await?;
    let mut found = Findings::new(side);
    server::version(&session, &mut found);
    found.ask(
        "the way to the server",
        link::inspect(&session, clients.config(), side).await,
    )?;
    let tables = tables::read(&session, selection).await?;
    if side == Side::Target {
        target::read_only(&session, &mut found);
        found.ask("session_replication_role", target::replica_role(&session).await)?;
        let foreign_keys = left_out::foreign_keys(&session, selection).await;
        found.ask("foreign keys to tables left out", foreign_keys)?;
        found.ask("replication origins", target::origin(&session).await)?;
        found.ask("triggers", target::triggers(&session, selection).await)?;
        found.ask("the rights of the role", rights::target(&session, &tables).await)?;
        found.ask("subscriptions", neighbours::subscriptions(&session).await)?;
    } else {
        of_source(&session, names, selection, &tables, &mut found).await?;
    }
    found.ask(
        "replication slots",
        neighbours::slots(&session, side, names).await,
    )?;
    found.ask("event triggers", neighbours::event_triggers(&session, side).await)?;
    found.ask("jobs of pg_cron", neighbours::cron_jobs(&session, side).await)?;
    found.ask("free connections", neighbours::connections(&session, side).await)?;
    Ok(found.list)
}

async fn of_source(
    session: &Session,
    names: &JobNames,
    selection: &TableSelection,
    tables: &[tables::Relation],
    found: &mut Findings,
) -> Result<()> {
    server::standby(session, found);
    found.ask("server settings", server::settings(session, names).await)?;
    found.ask("slot and publication", stream::named(session, names).await)?;
    found.ask(
        "other publications",
        neighbours::publications(session, names).await,
    )?;
    found.ask(
        "the rights of the role",
        rights::source(session, names, tables).await,
    )?;
    tables::judge(tables, &session.role, found);
    found.ask(
        "columns and partitions",
        objects::listed(session, selection).await,
    )?;
    found.list.extend(partitions::roots(session, selection, tables));
    found.ask("sequences", objects::sequences(session).await)?;
    found.ask("tables of extensions", left_out::of_extensions(session).await)?;
    found.ask("pg_partman", objects::partman(session).await)?;
    found.ask(
        "settings of the database",
        server::database_settings(session).await,
    )?;
    found.ask("the types of columns", values::judge(session, tables).await)?;
    found.ask("large objects", tables::large_objects(session).await)?;
    found.ask("prepared transactions", activity::prepared(session, names).await)?;
    found.ask("sessions", activity::sessions(session).await)
}

/// Findings about one side, in the order in which they were made.
#[derive(Debug)]
struct Findings {
    side: Side,
    list: Vec<Finding>,
}

impl Findings {
    fn new(side: Side) -> Self {
        Self {
            side,
            list: Vec::new(),
        }
    }

    fn add(
        &mut self,
        (id, severity): (&'static str, Severity),
        object: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.list.push(Finding {
            id,
            severity,
            side: self.side,
            object: object.into(),
            message: message.into(),
            remedy: remedy.into(),
        });
    }

    /// Takes the answer to a question. What the role may not see, or the server does not answer in time, is said and
    /// not an error.
    fn ask(&mut self, what: &str, answer: Result<Vec<Finding>>) -> Result<()> {
        let error = match answer {
            Ok(found) => {
                self.list.extend(found);
                return Ok(());
            }
            Err(error) => error,
        };
        // 57014: statement_timeout.
        if error.kind() != Kind::Permission && error.server_code() != Some("57014") {
            return Err(error);
        }
        self.add(
            ("PG-NOT-CHECKED", Severity::Info),
            what,
            format!("could not be checked: {error}"),
            "GRANT pg_monitor TO the role of the URL, or run check as a superuser",
        );
        Ok(())
    }
}

/// `names` for a message: the first few, and how many more.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

#[cfg(test)]
mod tests {
    use cdc_core::Error;

    use super::*;

    #[test]
    fn a_question_that_may_not_be_asked_is_a_finding() {
        let mut found = Findings::new(Side::Source);
        found
            .ask("sessions", Err(Error::new(Kind::Permission, "permission denied")))
            .unwrap();
        found
            .ask(
                "sessions",
                Err(Error::new(Kind::Deadline, "canceled").code("57014")),
            )
            .unwrap();
        assert!(found.list.iter().all(|finding| finding.id == "PG-NOT-CHECKED"));
        assert_eq!(found.list.len(), 2);
        assert!(
            found
                .ask("sessions", Err(Error::new(Kind::Unreachable, "gone")))
                .is_err()
        );
    }

    #[test]
    fn every_finding_is_documented() {
        let documented = include_str!("../../docs/findings.md");
        let folder =
            std::path::PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("src/precheck");
        let mut files = vec![folder.with_extension("rs")];
        files.extend(
            std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().path()),
        );
        let mut ids = 0;
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let capitals = |c: char| c.is_ascii_uppercase() || c == '-';
            for id in text
                .split('"')
                .filter(|text| text.starts_with("PG-") && text.len() > 3 && text.chars().all(capitals))
            {
                ids += 1;
                assert!(documented.contains(id), "{id} is not in docs/findings.md");
            }
        }
        assert!(ids > 20, "{ids} ids found");
    }

    #[test]
    fn long_lists_are_cut() {
        let names = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(few(&names(2)), "0, 1");
        assert_eq!(few(&names(5)), "0, 1, 2, 3, 4");
        assert_eq!(few(&names(8)), "0, 1, 2, 3, 4 and 3 more");
    }
}
