//! The names a job will use on the source: whether its slot and publication exist, and are its own.

use cdc_core::Result;
use cdc_core::engine::{Finding, JobNames, Severity, Side};
use tokio_postgres::types::Type;

use super::{Findings, Session, few};
use crate::session::during;
use crate::wire::session::identifier;

#[derive(Debug, Clone, Default)]
struct Slot {
    /// empty for a physical slot
    plugin: String,
    database: String,
    temporary: bool,
    /// `None` before PostgreSQL 13
    wal_status: Option<String>,
}

#[derive(Debug, Clone, Default)]
struct Publication {
    all_tables: bool,
    /// holds our heartbeat table, by which we know it for ours
    ours: bool,
    /// tables of which it publishes only some rows or columns
    partial: Vec<String>,
}

/// `PG-SLOT-EXISTS-FOREIGN`, `PG-SLOT-LOST`, `PG-PUBLICATION-EXISTS-FOREIGN`, `PG-PUBLICATION-PARTIAL`.
pub(super) async fn named(session: &Session, names: &JobNames) -> Result<Vec<Finding>> {
    // Newer columns are read through JSON, which leaves out those an older server does not have.
    let slot = session
        .client
        .query_typed_opt(
            "SELECT COALESCE(plugin::text, ''), COALESCE(database::text, ''), temporary, \
                    to_jsonb(s) ->> 'wal_status' FROM pg_replication_slots s WHERE slot_name = $1",
            &[(&names.slot, Type::TEXT)],
        )
        .await
        .map_err(during("looking for the replication slot"))?;
    let publication = session
        .client
        .query_typed_opt(
            "SELECT p.puballtables, \
                    EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid \
                            AND r.prrelid = to_regclass('cdc_sync.heartbeat')), \
                    ARRAY(SELECT format('%s.%s', n.nspname, c.relname) FROM pg_publication_rel r \
                          JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
                          WHERE r.prpubid = p.oid AND (to_jsonb(r) ->> 'prqual' IS NOT NULL \
                                OR to_jsonb(r) ->> 'prattrs' IS NOT NULL) ORDER BY 1) \
             FROM pg_publication p WHERE p.pubname = $1",
            &[(&names.slot, Type::TEXT)],
        )
        .await
        .map_err(during("looking for the publication"))?;
    let mut found = Findings::new(Side::Source);
    if let Some(row) = slot {
        let slot = Slot {
            plugin: row.get(0),
            database: row.get(1),
            temporary: row.get(2),
            wal_status: row.get(3),
        };
        judge_slot(&names.slot, &session.database, &slot, &mut found);
    }
    if let Some(row) = publication {
        let publication = Publication {
            all_tables: row.get(0),
            ours: row.get(1),
            partial: row.get(2),
        };
        judge_publication(&names.slot, &publication, &mut found);
    }
    Ok(found.list)
}

fn judge_slot(name: &str, database: &str, slot: &Slot, found: &mut Findings) {
    let foreign = if slot.plugin.is_empty() {
        Some("is a physical slot".to_owned())
    } else if slot.plugin != "pgoutput" {
        Some(format!("has the output plugin {}", slot.plugin))
    } else if slot.database != database {
        Some(format!("belongs to database {}", slot.database))
    } else if slot.temporary {
        Some("is a session's temporary slot".to_owned())
    } else {
        None
    };
    let object = format!("replication slot {name}");
    if let Some(foreign) = foreign {
        found.add(
            ("PG-SLOT-EXISTS-FOREIGN", Severity::Fail),
            object,
            format!("exists and is not this job's: it {foreign}"),
            format!("give the job another name (--job), or: SELECT pg_drop_replication_slot('{name}');"),
        );
    } else if slot.wal_status.as_deref() == Some("lost") {
        found.add(
            ("PG-SLOT-LOST", Severity::Fail),
            object,
            "the server has removed log that this slot still needed",
            "cdc-sync cleanup, then seed again; raise max_slot_wal_keep_size before",
        );
    }
}

fn judge_publication(name: &str, publication: &Publication, found: &mut Findings) {
    let object = format!("publication {name}");
    if !publication.partial.is_empty() {
        found.add(
            ("PG-PUBLICATION-PARTIAL", Severity::Fail),
            object.clone(),
            format!(
                "publishes only some rows or columns of {}",
                few(&publication.partial)
            ),
            format!("ALTER PUBLICATION {} DROP TABLE …;", identifier(name)),
        );
    }
    // One that an administrator made FOR ALL TABLES holds whatever we need.
    if !publication.ours && !publication.all_tables {
        found.add(
            ("PG-PUBLICATION-EXISTS-FOREIGN", Severity::Warn),
            object,
            "exists and was not made by cdc-sync, which will add the tables it needs to it",
            format!(
                "if it is another's, give the job another name (--job); else: DROP PUBLICATION {};",
                identifier(name)
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot_ids(slot: &Slot) -> Vec<&'static str> {
        let mut found = Findings::new(Side::Source);
        judge_slot("cdc_sync_j", "app", slot, &mut found);
        found.list.iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn slots() {
        let own = Slot {
            plugin: "pgoutput".into(),
            database: "app".into(),
            ..Slot::default()
        };
        assert!(slot_ids(&own).is_empty());
        assert!(
            slot_ids(&Slot {
                wal_status: Some("reserved".into()),
                ..own.clone()
            })
            .is_empty()
        );
        assert_eq!(
            slot_ids(&Slot {
                wal_status: Some("lost".into()),
                ..own.clone()
            }),
            ["PG-SLOT-LOST"]
        );
        for foreign in [
            Slot::default(),
            Slot {
                plugin: "test_decoding".into(),
                ..own.clone()
            },
            Slot {
                database: "other".into(),
                ..own.clone()
            },
            Slot {
                temporary: true,
                ..own.clone()
            },
        ] {
            assert_eq!(slot_ids(&foreign), ["PG-SLOT-EXISTS-FOREIGN"], "{foreign:?}");
        }
    }

    #[test]
    fn publications() {
        let ids = |publication: Publication| {
            let mut found = Findings::new(Side::Source);
            judge_publication("p", &publication, &mut found);
            found.list.iter().map(|finding| finding.id).collect::<Vec<_>>()
        };
        assert!(
            ids(Publication {
                ours: true,
                ..Publication::default()
            })
            .is_empty()
        );
        assert!(
            ids(Publication {
                all_tables: true,
                ..Publication::default()
            })
            .is_empty()
        );
        assert_eq!(ids(Publication::default()), ["PG-PUBLICATION-EXISTS-FOREIGN"]);
        let partial = Publication {
            ours: true,
            partial: vec!["s.t".into()],
            ..Publication::default()
        };
        assert_eq!(ids(partial), ["PG-PUBLICATION-PARTIAL"]);
    }
}
