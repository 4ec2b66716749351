//! What the schema holds that replication treats in its own way: sequences, computed columns, partitions.

use cdc_core::engine::{Finding, Partitions, Severity, Side};
use cdc_core::{Result, TableName, TableSelection};

use super::{Findings, Session, few};
use crate::catalog::{USER_RELATION, qualified};
use crate::session::during;
use crate::wire::session::identifier;

#[derive(Debug, Clone)]
struct Sequence {
    name: TableName,
    /// a column owns it: a serial or an identity column
    owned: bool,
    readable: bool,
    cache: i64,
    cycles: bool,
    /// the part of its values that is used, of 100
    used: i64,
}

/// From this part of 100 a sequence is worth a word.
const NEARLY_USED_UP: i64 = 90;

/// `PG-SEQUENCE-NEAR-MAX`, `PG-SEQUENCE-UNOWNED`, `PG-SEQUENCE-CACHED`, and `PG-SELECT-RIGHT` of sequences.
pub(super) async fn sequences(session: &Session) -> Result<Vec<Finding>> {
    // A value may be asked for only by who may read the sequence.
    let statement = format!(
        "SELECT n.nspname::text, c.relname::text, \
                EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
                        AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')), \
                r.readable, s.seqcache, s.seqcycle, \
                COALESCE((100 * abs(v.value::numeric - CASE WHEN s.seqincrement > 0 THEN s.seqmin ELSE s.seqmax END) \
                          / NULLIF(s.seqmax::numeric - s.seqmin::numeric, 0))::int8, 0) \
         FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         CROSS JOIN LATERAL (SELECT has_schema_privilege(n.oid, 'USAGE') \
                                    AND has_sequence_privilege(c.oid, 'SELECT') AS readable) r \
         CROSS JOIN LATERAL (SELECT CASE WHEN r.readable THEN pg_sequence_last_value(c.oid) END AS value) v \
         WHERE {USER_RELATION} ORDER BY 1, 2"
    );
    let rows = session
        .client
        .query_typed(&statement, &[])
        .await
        .map_err(during("reading the sequences"))?;
    let sequences: Vec<Sequence> = rows
        .iter()
        .map(|row| Sequence {
            name: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
            owned: row.get(2),
            readable: row.get(3),
            cache: row.get(4),
            cycles: row.get(5),
            used: row.get(6),
        })
        .collect();
    let mut found = Findings::new(Side::Source);
    judge_sequences(&sequences, &session.role, &mut found);
    Ok(found.list)
}

fn judge_sequences(sequences: &[Sequence], role: &str, found: &mut Findings) {
    for sequence in sequences.iter().filter(|sequence| !sequence.readable) {
        found.add(
            ("PG-SELECT-RIGHT", Severity::Fail),
            format!("sequence {}", sequence.name),
            "the role may not read it: its value could not be set on the target when the job is drained",
            format!(
                "GRANT USAGE ON SCHEMA {} TO {role}; GRANT SELECT ON SEQUENCE {} TO {role};",
                identifier(&sequence.name.schema),
                qualified(&sequence.name),
                role = identifier(role)
            ),
        );
    }
    let near = |sequence: &&Sequence| sequence.used >= NEARLY_USED_UP && !sequence.cycles;
    for sequence in sequences.iter().filter(near) {
        found.add(
            ("PG-SEQUENCE-NEAR-MAX", Severity::Warn),
            format!("sequence {}", sequence.name),
            format!(
                "{} % of its values are used; when the job is drained it is set ahead by some more",
                sequence.used
            ),
            format!(
                "ALTER SEQUENCE {} AS bigint NO MAXVALUE; (and its column to bigint), or a smaller --sequence-buffer",
                qualified(&sequence.name)
            ),
        );
    }
    let names = |which: &dyn Fn(&Sequence) -> bool| -> Vec<String> {
        let chosen = sequences.iter().filter(|sequence| which(sequence));
        chosen.map(|sequence| sequence.name.to_string()).collect()
    };
    let free = names(&|sequence| !sequence.owned);
    if !free.is_empty() {
        found.add(
            ("PG-SEQUENCE-UNOWNED", Severity::Info),
            format!("{} sequences", free.len()),
            format!("no column owns them: {}", few(&free)),
            "nothing, if the target has them: `run --until-caught-up` sets them ahead like all others",
        );
    }
    let cached = names(&|sequence| sequence.cache > 1);
    if !cached.is_empty() {
        found.add(
            ("PG-SEQUENCE-CACHED", Severity::Info),
            format!("{} sequences", cached.len()),
            format!(
                "sessions take several values at a time (CACHE): the target begins after all of them: {}",
                few(&cached)
            ),
            "nothing, unless gaps in the numbers matter",
        );
    }
}

/// A kind of object, what to say of it, and the query that names each.
struct Listed {
    id: &'static str,
    severity: Severity,
    what: &'static str,
    message: &'static str,
    remedy: &'static str,
    /// schema, relation, and the column or nothing
    query: &'static str,
}

const LISTED: &[Listed] = &[
    Listed {
        id: "PG-GENERATED-COLUMN",
        severity: Severity::Info,
        what: "generated columns",
        message: "are not replicated but computed by the target",
        remedy: "see that the target's columns have the same expressions: the schema that cdc-sync copies has",
        query: "SELECT n.nspname::text, c.relname::text, a.attname::text FROM pg_attribute a \
                JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
                WHERE a.attgenerated <> '' AND NOT a.attisdropped AND c.relkind = 'r'",
    },
    Listed {
        id: "PG-IDENTITY-COLUMN",
        severity: Severity::Info,
        what: "identity columns",
        message: "keep the source's values; their sequences are set ahead when the job is drained",
        remedy: "before the target takes over: cdc-sync run --until-caught-up",
        query: "SELECT n.nspname::text, c.relname::text, a.attname::text FROM pg_attribute a \
                JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
                WHERE a.attidentity <> '' AND NOT a.attisdropped AND c.relkind = 'r'",
    },
    Listed {
        id: "PG-PARTITIONED",
        severity: Severity::Info,
        what: "partitioned tables",
        message: "are replicated partition by partition; a partition made later stops the job until it is added",
        remedy: "make the partitions that the job will live to see before it begins",
        query: "SELECT n.nspname::text, c.relname::text, NULL::text FROM pg_class c \
                JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'p' AND NOT c.relispartition",
    },
    Listed {
        id: "PG-INHERITANCE",
        severity: Severity::Info,
        what: "tables with children by inheritance",
        message: "are replicated each for itself, parent and children",
        remedy: "select the children as well as the parent",
        query: "SELECT n.nspname::text, c.relname::text, NULL::text FROM pg_class c \
                JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' \
                AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid)",
    },
];

/// `PG-GENERATED-COLUMN`, `PG-IDENTITY-COLUMN`, `PG-PARTITIONED`, `PG-INHERITANCE`.
pub(super) async fn listed(session: &Session, selection: &TableSelection) -> Result<Vec<Finding>> {
    let mut found = Findings::new(Side::Source);
    // As a whole they have a finding of their own.
    let whole = |id: &str| id == "PG-PARTITIONED" && selection.partitions == Partitions::Root;
    for kind in LISTED.iter().filter(|kind| !whole(kind.id)) {
        let statement = format!("{} AND {USER_RELATION} ORDER BY 1, 2, 3", kind.query);
        let rows = session
            .client
            .query_typed(&statement, &[])
            .await
            .map_err(during(format!("looking for {}", kind.what)))?;
        let names: Vec<String> = rows
            .iter()
            .filter_map(|row| {
                let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
                let column: Option<String> = row.get(2);
                selection.selects(&table).then(|| match column {
                    Some(column) => format!("{table}.{column}"),
                    None => table.to_string(),
                })
            })
            .collect();
        if !names.is_empty() {
            found.add(
                (kind.id, kind.severity),
                format!("{} {}", names.len(), kind.what),
                format!("{}: {}", kind.message, few(&names)),
                kind.remedy,
            );
        }
    }
    Ok(found.list)
}

/// `PG-PARTMAN`.
pub(super) async fn partman(session: &Session) -> Result<Vec<Finding>> {
    let row = session
        .client
        .query_typed_opt("SELECT FROM pg_extension WHERE extname = 'pg_partman'", &[])
        .await
        .map_err(during("looking for pg_partman"))?;
    let mut found = Findings::new(Side::Source);
    if row.is_some() {
        found.add(
            ("PG-PARTMAN", Severity::Warn),
            "extension pg_partman",
            "makes and drops partitions by itself: a partition made while the job runs stops it until it is added",
            "make the partitions ahead (premake), or pause its maintenance until the target has taken over",
        );
    }
    Ok(found.list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence() -> Sequence {
        Sequence {
            name: TableName::new("s", "q"),
            owned: true,
            readable: true,
            cache: 1,
            cycles: false,
            used: 0,
        }
    }

    fn judged(sequence: Sequence) -> Vec<&'static str> {
        let mut found = Findings::new(Side::Source);
        judge_sequences(&[sequence], "cdc", &mut found);
        found.list.iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn sequences_that_need_a_word() {
        assert!(judged(sequence()).is_empty());
        let near = Sequence {
            used: NEARLY_USED_UP,
            ..sequence()
        };
        assert_eq!(judged(near.clone()), ["PG-SEQUENCE-NEAR-MAX"]);
        // One that begins anew has no end to be near to.
        assert!(judged(Sequence { cycles: true, ..near }).is_empty());
        let free = Sequence {
            owned: false,
            cache: 5,
            ..sequence()
        };
        assert_eq!(judged(free), ["PG-SEQUENCE-UNOWNED", "PG-SEQUENCE-CACHED"]);
        let closed = Sequence {
            readable: false,
            ..sequence()
        };
        assert_eq!(judged(closed), ["PG-SELECT-RIGHT"]);
    }
}
